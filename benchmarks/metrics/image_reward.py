"""ImageReward v1.0 (Xu et al. 2023): BLIP reads text and picture together, five layers score them.

Reference: github.com/zai-org/ImageReward at c1392c6d. Its package does not load under today's
transformers, so its checkpoint is put into transformers' BLIP. The checkpoint's names are BLIP's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.coco.conventions import REWARD_DEVIATION, REWARD_MEAN
from benchmarks.metrics.network import ScoringNetwork, Weights
from benchmarks.metrics.pictures import crop_as_clip
from benchmarks.t2i_compbench.blip import find_vocabulary
from benchmarks.t2i_compbench.blip_network import MAX_TOKENS, VISION_EPSILON, rename_tensor
from harness.records import Count

if TYPE_CHECKING:
    from torch import Tensor

REVISION = "5736be03b2652728fb87788c9797b0570450ab72"
UNUSED = ("blip.vision_proj.", "blip.text_proj.")
"""Parts of the checkpoint that no score depends on."""
HEAD = (1024, 128, 64, 16, 1)
"""Widths of the layers that score; between them is dropout only, which is off."""
FULL: dict[str, dict[str, Any]] = {
    "vision": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
    },
    "text": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
}
TINY: dict[str, dict[str, Any]] = {
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 224,
        "patch_size": 32,
    },
    "text": {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
}


class ImageReward(ScoringNetwork):
    """Score by ImageReward; `vocabulary` is bert-base-uncased's vocab.txt, None its download."""

    name = "imagereward"
    hub = "zai-org/ImageReward"
    file = "ImageReward.pt"
    unit = "ImageReward"
    width = 197 * 1024

    def __init__(
        self,
        checkpoint: str | None = None,
        revision: str = REVISION,
        weights: Weights = "published",
        vocabulary: str | None = None,
        device: str = "auto",
        batch: Count | None = None,
    ) -> None:
        super().__init__(checkpoint, revision, weights, device, batch)
        self._vocabulary = vocabulary
        self._tokenizer: Any = None

    def build(self) -> Any:
        """Build vision, text and head under the names that `read` gives to the checkpoint's."""
        from torch import nn
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        sizes = TINY if self.weights == "tiny" else FULL
        vision = BlipVisionConfig(
            **sizes["vision"], layer_norm_eps=VISION_EPSILON, hidden_act="gelu"
        )
        text = BlipTextConfig(
            **sizes["text"],
            encoder_hidden_size=sizes["vision"]["hidden_size"],
            vocab_size=30524,
            max_position_embeddings=512,
            layer_norm_eps=1e-12,
            hidden_act="gelu",
        )
        widths = (sizes["text"]["hidden_size"], *HEAD)
        linear = [nn.Linear(a, b) for a, b in pairwise(widths)]
        dropout = nn.Dropout(0.0)
        layers = [linear[0], dropout, linear[1], dropout, linear[2], dropout, *linear[3:]]
        return nn.ModuleDict(
            {
                "vision_model": BlipVisionModel(vision),
                "text_encoder": BlipTextModel(text, add_pooling_layer=False),
                "mlp": nn.ModuleDict({"layers": nn.Sequential(*layers)}),
            }
        )

    def read(self, file: Path) -> Mapping[str, Tensor]:
        """Read the released file, and rename its tensors."""
        from harness.models.checkpoint import read_file

        return rename_checkpoint(read_file(file))

    def prepare(self, image: np.ndarray) -> Tensor:
        """Prepare a picture as CLIP does."""
        return crop_as_clip(image)

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Tokenize texts, padded and cut to 35; the first token stays what it is."""
        import torch

        tokenizer = self._load_tokenizer()
        ids_BW = torch.zeros((len(texts), MAX_TOKENS), dtype=torch.long)
        mask_BW = torch.zeros_like(ids_BW)
        for b, text in enumerate(texts):
            row = tokenizer.encode(text).ids
            if len(row) > MAX_TOKENS:
                row = [*row[: MAX_TOKENS - 1], row[-1]]
            ids_BW[b, : len(row)] = torch.tensor(row)
            mask_BW[b, : len(row)] = 1
        return {"ids": ids_BW, "mask": mask_BW}

    def count_cut(self, text: str) -> int:
        """Count the tokens behind the 35 that are read."""
        return max(0, len(self._load_tokenizer().encode(text).ids) - MAX_TOKENS)

    def forward(self, network: Any, tokens: Mapping[str, Tensor], pixels_B3HW: Tensor) -> Tensor:
        """Score by the state of the first token, standardised."""
        states_BPD = network["vision_model"](pixel_values=pixels_B3HW).last_hidden_state
        read_BWD = network["text_encoder"](
            input_ids=tokens["ids"],
            attention_mask=tokens["mask"],
            encoder_hidden_states=states_BPD,
            encoder_attention_mask=states_BPD.new_ones(states_BPD.shape[:2]).long(),
            is_decoder=False,
            return_dict=True,
        ).last_hidden_state
        raw_B1 = network["mlp"]["layers"](read_BWD[:, 0])
        return (raw_B1[:, 0].double() - REWARD_MEAN) / REWARD_DEVIATION

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from tokenizers import BertWordPieceTokenizer

            path = find_vocabulary(self._vocabulary, "vocabulary")
            self._tokenizer = BertWordPieceTokenizer(str(path), lowercase=True)
        return self._tokenizer


def rename_checkpoint(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of the released file the names that they have in transformers' BLIP."""
    renamed = {}
    for name, tensor in released.items():
        if name.startswith(UNUSED):
            continue
        known = rename_tensor(name.removeprefix("blip."))
        if known:
            renamed[known] = tensor
    return renamed
