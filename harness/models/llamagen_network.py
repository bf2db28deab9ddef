"""LlamaGen's text-to-image GPT: its dimensions, its weights, and its rotary table.

Shapes: T condition positions (120), P prompt positions, C feature width, N image tokens, d head
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.linear import Linear
from harness.models.trunk import Trunk, TrunkSpec, axial_rotary

SIZES = {
    "B": TrunkSpec(12, 768, 12, 2048),
    "L": TrunkSpec(24, 1024, 16, 2816),
    "XL": TrunkSpec(36, 1280, 20, 3584),
    "XXL": TrunkSpec(48, 1536, 24, 4096),
    "XXXL": TrunkSpec(48, 2560, 40, 6912),
    "1B": TrunkSpec(22, 2048, 32, 5632),
    "3B": TrunkSpec(24, 3200, 32, 8704),
    "7B": TrunkSpec(32, 4096, 32, 11008),
}
"""Trunks by the names that LlamaGen gives them; only XL has published text-to-image weights."""


@dataclass(frozen=True, slots=True)
class GPTSpec:
    """Dimensions of a text-to-image GPT.

    Trunk, side of the image grid in tokens, number of codes, condition positions and width of the
    caption features. All but the first two are the same in every published one.
    """

    trunk: TrunkSpec
    side: int
    codes: int = 16384
    condition: int = 120
    caption_dim: int = 2048


class GPT(nn.Module):
    """The transformer.

    Names are the checkpoint's, except that the trunk's layers and norm have `trunk.` in front.
    """

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.spec = spec
        self.cls_embedding = CaptionEmbedding(spec)
        self.tok_embeddings = nn.Embedding(spec.codes, spec.trunk.dim)
        self.trunk = Trunk(spec.trunk)
        self.output = Linear(spec.trunk.dim, spec.codes, bias=False)


class CaptionEmbedding(nn.Module):
    """Caption features to embeddings, and the learned features of the null prompt, [T, C]."""

    uncond_embedding: Tensor

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.cap_proj = Projection(spec.caption_dim, spec.trunk.dim)
        self.register_buffer("uncond_embedding", torch.zeros(spec.condition, spec.caption_dim))


class Projection(nn.Module):
    """Two linear layers from caption features to embeddings; a row of zeros stays one."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, dim, bias=False)
        self.fc2 = Linear(dim, dim, bias=False)

    def forward(self, row_PC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(row_PC), approximate="tanh"))


def rotary_table(spec: GPTSpec) -> Tensor:
    """Tabulate (cosine, sine) for the prompt and for each image token, [1 + N, d/2, 2].

    Row 0 is that of every prompt position: cosine and sine are both zero.
    """
    place = torch.arange(spec.side**2)
    coords = torch.stack((place // spec.side, place % spec.side), -1)
    image = axial_rotary(coords, spec.trunk.head_dim)
    return torch.cat((torch.zeros_like(image[:1]), image))
