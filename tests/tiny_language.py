"""Tiny language models that draw images: of the kinds of SimpleAR, Lumina-mGPT and Emu3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from harness.kernels.noise import derive
from harness.models.language_model import (
    ImageTokenizer,
    ImageWords,
    LanguageModel,
    LanguageNet,
    LanguageSpec,
)
from harness.models.trunk import TrunkSpec

TRUNK = TrunkSpec(layers=2, dim=32, heads=4, hidden=48)
TRUNKS = {
    "simplear": replace(TRUNK, groups=2, bias=True),
    "lumina": replace(TRUNK, head_norm="layer"),
    "emu3": replace(TRUNK, groups=1),
}
"""Each kind's addition to the trunk."""
HAS_ROW_ENDS = {"simplear": False, "lumina": True, "emu3": True}

WORDS = 60
FIRST = 20
CODES = 32
LINE = 55


class HashedPrompts:
    """A word for each word of a text, behind a first one; the null prompt is longer than most."""

    def __call__(self, text: str | None) -> Sequence[int]:
        if text is None:
            return [1, 2, 3, 4, 5]
        return [0, *(6 + derive(word) % 12 for word in text.split()[:8])]


class Greys(nn.Module):
    """An image decoder that shows a code as a level of grey, so that codes can be read off."""

    def decode(self, codes_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        level_BHW = (codes_BN + 1).float().unflatten(1, grid)
        return level_BHW.unsqueeze(1).expand(-1, 3, -1, -1)

    def decode_bytes(self, codes: int) -> int:
        return 12 * codes


def to_levels(x_B3HW: Tensor) -> Tensor:
    return x_B3HW.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def tiny(
    kind: str,
    device: str | torch.device = "cpu",
    grid: tuple[int, int] = (4, 4),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """A model of a kind with random weights, which are spread enough to tell mistakes."""
    spec = LanguageSpec(TRUNKS[kind], WORDS, 10000.0, 200)
    image = ImageWords(FIRST, CODES, LINE if HAS_ROW_ENDS[kind] else None)
    generator = torch.Generator().manual_seed(seed)
    net = LanguageNet(spec, image)
    words = nn.Embedding(WORDS, spec.trunk.dim)
    for module in (net, words):
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.3
            is_norm = name.endswith("norm.weight")
            parameter.data = (values + is_norm).to(dtype)
    codebook = torch.randn(CODES, 6, generator=torch.Generator().manual_seed(1)).to(device)
    return LanguageModel(
        net.to(device),
        words,
        ImageTokenizer(Greys(), codebook, to_levels),
        HashedPrompts(),
        spec=spec,
        image=image,
        grid=grid,
        name=f"tiny_{kind}",
        revision="random",
        max_context=9,
        dtype=dtype,
        device=device,
    )
