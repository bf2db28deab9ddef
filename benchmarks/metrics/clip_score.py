"""CLIP score (Hessel et al. 2021): the cosine of a picture and its text, in the units of papers.

Papers differ in network, unit, prefix and what is done to a picture before; all are in the id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.coco.conventions import put_prefix
from benchmarks.metrics.hps import TINY
from benchmarks.metrics.network import ScoringNetwork
from benchmarks.metrics.pictures import (
    LENGTH,
    clip_tokenizer,
    crop_as_clip,
    squeeze_as_torchmetrics,
)
from harness.download import prepare_hub
from harness.records import Count, UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

Convention = Literal["cosine", "percent", "clipscore"]
SCALES = {"cosine": 1.0, "percent": 100.0, "clipscore": 2.5}
"""What a cosine is multiplied by; "clipscore" is cut at 0, too."""
OFFICIAL = "ViT-B-32-quickgelu"
"""OpenAI's weights were trained with QuickGELU; open_clip builds it only on request."""


class ClipScore(ScoringNetwork):
    """Score by a CLIP of open_clip.

    `model` is a name among open_clip's; `weights` are a tag that open_clip has for it, such as
    "openai", or "random" or "tiny". `prefix` is put before each text as LANTERN's evaluation does.
    `squeeze` resizes pictures to so many pixels a side first, as SJD's evaluation does by 299.
    """

    name = "clip"
    width = 257 * 1024

    def __init__(
        self,
        model: str = OFFICIAL,
        weights: str = "openai",
        checkpoint: str | None = None,
        convention: Convention = "cosine",
        prefix: str = "",
        squeeze: Count | None = None,
        device: str = "auto",
        batch: Count | None = None,
    ) -> None:
        if weights == "openai" and not model.endswith("-quickgelu"):
            raise UserError(f"clip: model={model} has no QuickGELU, which openai's weights need")
        if convention not in SCALES:
            raise UserError(f"clip: convention={convention}: choose from {', '.join(SCALES)}")
        self._model = model
        self._tag = weights
        self._scale = SCALES[convention]
        self._is_cut = convention == "clipscore"
        self._prefix = prefix
        self._squeeze = squeeze
        kind: Any = weights if weights in ("random", "tiny") else "published"
        super().__init__(checkpoint, weights, kind, device, batch)
        self.unit = {"cosine": "cosine", "percent": "100 x cosine", "clipscore": "CLIPScore"}[
            convention
        ]
        parts = [self.id, convention]
        if prefix:
            parts.append("prefix-" + "-".join(prefix.split()))
        if squeeze:
            parts.append(f"squeeze{squeeze}")
        self.id = "-".join(parts)

    def build(self) -> Any:
        """Build open_clip's network."""
        import open_clip

        if self.weights == "tiny":
            return open_clip.CLIP(**TINY, quick_gelu=True)
        sizes = open_clip.get_model_config(self._model)
        if sizes is None:
            known = ", ".join(name for name in open_clip.list_models() if "quickgelu" in name)
            raise UserError(f"clip: model={self._model}: open_clip has {known}, and others")
        if further := sizes.keys() - {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}:
            raise UserError(f"clip: model={self._model} is no plain CLIP: it has {min(further)}")
        return open_clip.CLIP(**sizes)

    def read(self, file: Path) -> Mapping[str, Tensor]:
        """Read a file as open_clip does: OpenAI's own archives, too."""
        from open_clip.factory import load_state_dict

        try:
            state: dict[str, Tensor] = load_state_dict(str(file))
        except Exception as error:  # of whichever reader the file's kind has
            raise UserError(f"{file} cannot be read as a CLIP ({one_line(error)[:200]})") from None
        return state

    def prepare(self, image: np.ndarray) -> Tensor:
        """Crop a picture as CLIP does, squeezed first if that is asked for."""
        return crop_as_clip(
            squeeze_as_torchmetrics(image, self._squeeze) if self._squeeze else image
        )

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Tokenize texts by open_clip's tokenizer, cut to 77, with the prefix put in."""
        import torch

        ids_BW = clip_tokenizer()(list(texts))
        if self._prefix:
            before = clip_tokenizer().encode(self._prefix)
            ids_BW = torch.tensor([put_prefix(row, before) for row in ids_BW.tolist()])
        return {"ids": ids_BW}

    def count_cut(self, text: str) -> int:
        """Count the tokens behind the 77 that are read."""
        tokenizer = clip_tokenizer()
        read = len(tokenizer.encode(self._prefix)) if self._prefix else 0
        return max(0, read + len(tokenizer.encode(text)) + 2 - LENGTH)

    def forward(self, network: Any, tokens: Mapping[str, Tensor], pixels_B3HW: Tensor) -> Tensor:
        """Return the cosine of each picture and its text, in the convention's unit."""
        image_BD = network.encode_image(pixels_B3HW, normalize=True)
        text_BD = network.encode_text(tokens["ids"], normalize=True)
        score_B = self._scale * (image_BD * text_BD).sum(-1)
        return score_B.clamp(min=0) if self._is_cut else score_B

    def name_weights(self) -> str:
        """Name the network and its weights."""
        model = "" if self.weights == "tiny" else f"{self._model}-"
        published = self.weights == "published" and self._checkpoint is None
        return f"{model}{self._tag if published else super().name_weights()}"

    def find_file(self) -> Path:
        """Find the file of weights: as given, or open_clip's own download."""
        if self._checkpoint is not None:
            return self._checkpoint
        import open_clip
        from open_clip.pretrained import download_pretrained

        about = open_clip.get_pretrained_cfg(self._model, self._tag)
        if not about:
            known = ", ".join(open_clip.list_pretrained_tags_by_model(self._model))
            raise UserError(f"clip: weights={self._tag}: open_clip has {known} for {self._model}")
        prepare_hub()
        try:
            return Path(download_pretrained(about))
        except Exception as error:  # of the hub or its client: the file cannot be had
            raise UserError(
                f"open_clip_model.safetensors of CLIP {self._model} {self._tag} "
                f"({about.get('hf_hub') or about.get('url')}) cannot be downloaded "
                f"({one_line(error)[:200]}): download it where there is a network, or set "
                "checkpoint=PATH"
            ) from None
