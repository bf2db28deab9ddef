"""HPSv2.1 (Wu et al. 2023): a CLIP ViT-H/14 trained on what people prefer; its cosine is the score.

Reference: github.com/tgxs002/HPSv2 at 866735ec, in float32 instead of mixed precision. Scores of
v2.0, whose weights are another file, are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.metrics.network import ScoringNetwork, Weights
from benchmarks.metrics.pictures import LENGTH, clip_tokenizer, pad_as_hps
from harness.records import Count, UserError

if TYPE_CHECKING:
    from torch import Tensor

REVISION = "697403c78157020a1ae59d23f111aa58ced35b0a"
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {
        "context_length": LENGTH,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 2,
    },
}


class Hps(ScoringNetwork):
    """Score by HPSv2.1: the cosine of picture and text."""

    name = "hps21-antialias"
    hub = "xswu/HPSv2"
    file = "HPS_v2.1_compressed.pt"
    unit = "cosine"
    digits = 5
    width = 257 * 1280

    def __init__(
        self,
        checkpoint: str | None = None,
        revision: str = REVISION,
        weights: Weights = "published",
        device: str = "auto",
        batch: Count | None = None,
    ) -> None:
        super().__init__(checkpoint, revision, weights, device, batch)

    def build(self) -> Any:
        """Build open_clip's ViT-H-14, with plain GELU."""
        import open_clip

        sizes = TINY if self.weights == "tiny" else open_clip.get_model_config("ViT-H-14")
        return open_clip.CLIP(**sizes)

    def read(self, file: Path) -> Mapping[str, Tensor]:
        """Read the released file: its weights are under `state_dict`."""
        from harness.models.checkpoint import unpickle

        released = unpickle(file).get("state_dict")
        if not isinstance(released, Mapping):
            raise UserError(f"{file} is no checkpoint of {self.name}: it has no state_dict")
        return released

    def prepare(self, image: np.ndarray) -> Tensor:
        """Pad a picture to a square, as the reference does."""
        return pad_as_hps(image)

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Tokenize texts by open_clip's tokenizer, cut to 77."""
        return {"ids": clip_tokenizer()(list(texts))}

    def count_cut(self, text: str) -> int:
        """Count the tokens behind the 77 that are read."""
        return max(0, len(clip_tokenizer().encode(text)) + 2 - LENGTH)

    def forward(self, network: Any, tokens: Mapping[str, Tensor], pixels_B3HW: Tensor) -> Tensor:
        """Return the cosine of each picture and its text."""
        image_BD = network.encode_image(pixels_B3HW, normalize=True)
        text_BD = network.encode_text(tokens["ids"], normalize=True)
        return (image_BD * text_BD).sum(-1)
