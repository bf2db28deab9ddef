"""PickScore v1 (Kirstain et al. 2023): a CLIP ViT-H/14 trained on which images people picked.

Reference: github.com/yuvalkirstain/PickScore at f79607ff. Only differences between images of one
text mean something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.metrics.network import ScoringNetwork, Weights
from benchmarks.metrics.pictures import LENGTH, crop_as_clip, hub_tokenizer
from harness.records import Count

if TYPE_CHECKING:
    from torch import Tensor

REVISION = "a4e4367c6dfa7288a00c550414478f865b875800"
FULL: dict[str, Any] = {
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
    "projection_dim": 1024,
}
TINY: dict[str, Any] = {
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 32,
        "hidden_act": "gelu",
    },
    "projection_dim": 16,
}


class PickScore(ScoringNetwork):
    """Score by PickScore: the cosine of picture and text, times the network's temperature."""

    name = "pickscore"
    hub = "yuvalkirstain/PickScore_v1"
    file = "model.safetensors"
    unit = "PickScore"
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
        """Build transformers' CLIP."""
        from transformers import CLIPConfig, CLIPModel

        sizes = TINY if self.weights == "tiny" else FULL
        return CLIPModel(CLIPConfig(**sizes))

    def read(self, file: Path) -> Mapping[str, Tensor]:
        """Read the released file, without the tables of positions, which are constants."""
        from harness.models.checkpoint import read_file

        released = read_file(file)
        return {name: released[name] for name in released if not name.endswith("position_ids")}

    def prepare(self, image: np.ndarray) -> Tensor:
        """Prepare a picture as CLIP does, by Pillow's filter."""
        return crop_as_clip(image)

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Tokenize texts as the reference's processor does, padded and cut to 77."""
        made = hub_tokenizer()(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        )
        return {"ids": made["input_ids"], "mask": made["attention_mask"]}

    def count_cut(self, text: str) -> int:
        """Count the tokens behind the 77 that are read."""
        return max(0, len(hub_tokenizer()(text)["input_ids"]) - LENGTH)

    def forward(self, network: Any, tokens: Mapping[str, Tensor], pixels_B3HW: Tensor) -> Tensor:
        """Return the scaled cosine of each picture and its text."""
        import torch.nn.functional as F

        image = network.get_image_features(pixel_values=pixels_B3HW)
        text = network.get_text_features(input_ids=tokens["ids"], attention_mask=tokens["mask"])
        image_BD = F.normalize(image.pooler_output, dim=-1)
        text_BD = F.normalize(text.pooler_output, dim=-1)
        return network.logit_scale.exp() * (image_BD * text_BD).sum(-1)
