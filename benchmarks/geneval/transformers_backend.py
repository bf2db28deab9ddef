"""Run a variant of GenEval's detector: the original authors' Mask2Former, through transformers.

It was trained separately from the reference's network and its own processor prepares the pictures,
so its scores are not comparable with published ones. Its id keeps them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.geneval.detector import LONG_SIDE_RATIO, USUAL_SIDE, Mask2Former, expect_coco
from harness.download import prepare_hub
from harness.records import Count, UserError, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Transformers(Mask2Former):
    """Detect objects with a Mask2Former of transformers.

    `model` is a folder, or a hub id at a `revision`; without a revision the newest one is looked
    up, since the id names it. `weights` are "published", or "random" ones in the shape of `model`'s
    configuration, which test the path. Pictures are resized to a short side of `short_side` pixels;
    None leaves that to the model's processor. Raises UserError if the model cannot be had.
    """

    def __init__(
        self,
        model: str = "facebook/mask2former-swin-small-coco-instance",
        revision: str | None = None,
        weights: str = "published",
        short_side: Count | None = None,
        device: str = "auto",
        batch: Count | None = None,
    ) -> None:
        super().__init__(device, batch, weights)
        self._model = model
        self._revision = revision
        self._short_side = short_side
        self._processor: Any = None

        name = model.rstrip("/").split("/")[-1]
        weights_name = "random" if self.random else (revision or find_revision(model))[:8]
        self.id = f"transformers-{name}-{weights_name}"
        if short_side:
            self.id += f"@{short_side}"

    @property
    def side(self) -> int:
        return self._short_side or USUAL_SIDE

    def build(self) -> torch.nn.Module:
        """Build the network on the CPU, and the processor that prepares its pictures."""
        from transformers import AutoImageProcessor

        prepare_hub()
        try:
            self._processor = AutoImageProcessor.from_pretrained(
                self._model, revision=self._revision
            )
            network = self._random_network() if self.random else self._published_network()
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise explain_missing(self._model, error) from None
        if self._short_side:
            longest = round(LONG_SIDE_RATIO * self._short_side)
            self._processor.size = {"shortest_edge": self._short_side, "longest_edge": longest}
        expect_coco(network.config.num_labels, self._model)
        return network

    def prepare(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """Prepare a picture with the model's own processor.

        It resizes to multiples of 32 where others pad, so that all of its output is used.
        """
        (pixels_CHW,) = self._processor(image.copy(), return_tensors="pt")["pixel_values"]
        return pixels_CHW, (int(pixels_CHW.shape[1]), int(pixels_CHW.shape[2]))

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Compute class and mask logits."""
        outputs = self.network(pixel_values=pixels_BCHW)
        return outputs.class_queries_logits, outputs.masks_queries_logits

    def _random_network(self) -> Any:
        import torch
        from transformers import AutoConfig, Mask2FormerForUniversalSegmentation

        config = AutoConfig.from_pretrained(self._model, revision=self._revision)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Mask2FormerForUniversalSegmentation(config)

    def _published_network(self) -> Any:
        import torch
        from transformers import Mask2FormerForUniversalSegmentation

        kind: Any = Mask2FormerForUniversalSegmentation
        network, report = kind.from_pretrained(
            self._model, revision=self._revision, output_loading_info=True, dtype=torch.float32
        )
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"{self._model} lacks {len(missing)} tensors of a Mask2Former, such as {missing[0]}"
            )
        return network


def find_revision(model: str) -> str:
    """Look up what identifies a detector's checkpoint: a folder's hash, or the hub's commit.

    Raises UserError for one that cannot be had.
    """
    from harness.models.checkpoint import locate, revision_of

    try:
        folder = Path(model)
        if not folder.is_dir():
            folder = locate(model, None, ["config.json"], None)
        return revision_of(folder)
    except UserError as error:
        raise explain_missing(model, error) from None


def explain_missing(model: str, error: Exception) -> UserError:
    """Make the error for a detector whose files cannot be had."""
    return UserError(
        f"detector {model!r} cannot be had ({one_line(error)[:200]}): "
        "set benchmark.detector.model to a folder with its files"
    )
