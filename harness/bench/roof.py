"""What memory bandwidth allows, and the bars: seconds on an H100, elsewhere the same share of what
is possible there.

The floor of an image is the time to read, for each of its tokens, every weight once and the keys
and values of the mean context once. Prompts, logits, kernels' launches and the image decoder are
left out of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.bench.timing import timed
from harness.models import ImageModel

H100 = 3.0e12
"""Bytes a second that a copy reads and writes on an H100 with HBM3, which the bars in seconds are
for.
"""
TABLES = ("vq.", "words.", "embedding", "gen_embed", "gen_aligner")
"""Parameters of the tokenizer, and of tables that a decoding step looks rows up in."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What decoding reads of memory."""

    weights: int  # bytes, every step
    position: int  # bytes of the keys and values of a position, for each row
    context: float  # positions before the first image token
    tokens: int  # of an image

    def floor_s(self, rows: int, bandwidth: float) -> float:
        """Least seconds for all tokens of so many rows, at a bandwidth in bytes a second."""
        mean = rows * self.position * (self.context + self.tokens / 2)
        return self.tokens * (self.weights + mean) / bandwidth


def reading(model: ImageModel, texts: Sequence[str]) -> Reading:
    """Of a model that draws images of `texts`. A collapsed prompt is as short as it lies in the
    cache.
    """
    cache = model.cache(1)
    modules = [
        part for name, part in vars(model).items() if isinstance(part, nn.Module) and name != "vq"
    ]
    return Reading(
        weights=sum(map(streamed_bytes, modules)),
        position=cache.slot_bytes // (cache.length + 1),
        context=sum(len(model.context(text, text)) for text in texts) / len(texts),
        tokens=model.num_tokens,
    )


def streamed_bytes(module: nn.Module) -> int:
    """Bytes of the parameters that every decoding step reads."""
    return sum(
        t.nbytes
        for name, t in module.named_parameters()
        if not any(table in name for table in TABLES)
    )


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return (
        2 * source.nbytes / min(timed(lambda _: target.copy_(source), 0, device) for _ in range(5))
    )


def matvec_bandwidth(device: torch.device, dtype: torch.dtype, megabytes: int = 256) -> float:
    """Bytes of a large matrix a second that its product with a vector reads."""
    columns = 4096
    matrix = torch.zeros(
        (megabytes * 2**20 // (columns * dtype.itemsize), columns), dtype=dtype, device=device
    )
    vector = torch.zeros(columns, dtype=dtype, device=device)
    return matrix.nbytes / min(
        timed(lambda _: torch.mv(matrix, vector), 0, device) for _ in range(5)
    )


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that was measured, and what it must be: at least `least`, or at most `most`."""

    what: str
    measured: float
    least: float = float("-inf")
    most: float = float("inf")
    binding: bool = True  # whether the exit status depends on it on this device

    @property
    def held(self) -> bool:
        return self.least <= self.measured <= self.most

    def __str__(self) -> str:
        wanted = (
            f"at least {self.least:.3g}"
            if self.least > float("-inf")
            else f"at most {self.most:.3g}"
        )
        outcome = "holds" if self.held else "does not hold"
        aside = "" if self.binding else ", not binding here"
        return f"bar: {self.what} {self.measured:.3g}, {wanted}: {outcome}{aside}"


def all_hold(bars: Iterable[Bar]) -> bool:
    """Print bars; whether all that bind hold."""
    bars = list(bars)
    for bar in bars:
        print(bar)
    return all(bar.held or not bar.binding for bar in bars)


def seconds_allowed(
    bar_s: float, read: Reading, rows: int, device_name: str, bandwidth: float
) -> float:
    """Most seconds for all tokens: the bar's own on an H100, elsewhere those that are the same
    share of the floor.
    """
    if is_h100(device_name):
        return bar_s
    return bar_s * read.floor_s(rows, bandwidth) / read.floor_s(rows, H100)


def is_h100(name: str) -> bool:
    """Whether a device is an H100 with HBM3; the PCIe and NVL cards have other memory."""
    return "H100" in name and not any(other in name for other in ("PCIe", "NVL"))


def pairs(given: Any) -> dict[int, float]:
    """Bars of a configuration, [[images, value], ...], by images."""
    return {int(images): float(value) for images, value in given or ()}
