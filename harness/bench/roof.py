"""Compute what memory bandwidth allows, and hold measurements against bars.

The floor of an image is the time to read, for each of its tokens, every weight once and the keys
and values of the mean context once. Prompts, logits, kernel launches and the image decoder are left
out of it. A bar in seconds is one of an H100; on other devices it is the same share of their floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.bench.timing import Subject, time_call
from harness.models import ImageModel

H100 = 3.0e12
"""Bytes a second that a copy reads and writes on an H100 with HBM3; bars in seconds are for it."""
TABLES = ("vq.", "words.", "embedding", "gen_embed", "gen_aligner")
"""Name parts of the parameters of the tokenizer, and of tables of which a step reads few rows."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The bytes of memory that decoding reads."""

    weights: int  # bytes, every step
    position: int  # bytes of the keys and values of a position, of one branch
    context: float  # positions before the first image token
    tokens: int  # of an image

    def floor_s(self, branches: int, bandwidth: float) -> float:
        """Return the least seconds for all tokens of so many branches.

        `bandwidth` is in bytes a second.
        """
        mean_cache = branches * self.position * (self.context + self.tokens / 2)
        return self.tokens * (self.weights + mean_cache) / bandwidth


def count_reads(model: ImageModel, texts: Sequence[str]) -> Reading:
    """Count what a model reads when it draws images of `texts`.

    A collapsed prompt counts as the positions that it takes in the cache.
    """
    cache = model.cache(1)
    modules = [
        part for name, part in vars(model).items() if isinstance(part, nn.Module) and name != "vq"
    ]
    prompt_lengths = [len(model.context(text, text)) for text in texts]
    return Reading(
        weights=sum(count_streamed_bytes(module) for module in modules),
        position=cache.slot_bytes // (cache.length + 1),
        context=sum(prompt_lengths) / len(texts),
        tokens=model.num_tokens,
    )


def count_streamed_bytes(module: nn.Module) -> int:
    """Count the bytes of the parameters that every decode step reads."""
    total = 0
    for name, parameter in module.named_parameters():
        is_looked_up = any(table in name for table in TABLES)
        if not is_looked_up:
            total += parameter.nbytes
    return total


def measure_copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Measure the bytes a second that a large copy reads and writes."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _time_fastest(lambda _: target.copy_(source), device)


def measure_matvec_bandwidth(
    device: torch.device, dtype: torch.dtype, megabytes: int = 256
) -> float:
    """Measure the bytes of a large matrix that its product with a vector reads a second."""
    columns = 4096
    rows = megabytes * 2**20 // (columns * dtype.itemsize)
    matrix = torch.zeros((rows, columns), dtype=dtype, device=device)
    vector = torch.zeros(columns, dtype=dtype, device=device)
    return matrix.nbytes / _time_fastest(lambda _: torch.mv(matrix, vector), device)


def _time_fastest(subject: Subject, device: torch.device) -> float:
    """Return the seconds of the fastest of five calls."""
    return min(time_call(subject, 0, device) for _ in range(5))


@dataclass(frozen=True, slots=True)
class Bar:
    """A measurement and what it must be: at least `least`, or at most `most`."""

    what: str
    measured: float
    least: float = float("-inf")
    most: float = float("inf")
    binding: bool = True  # whether the exit status depends on it on this device

    @property
    def holds(self) -> bool:
        """Tell whether the measurement is within; NaN is not."""
        return self.least <= self.measured <= self.most

    def __str__(self) -> str:
        wanted = f"at most {self.most:.3g}"
        if self.least > float("-inf"):
            wanted = f"at least {self.least:.3g}"
        outcome = "holds" if self.holds else "does not hold"
        aside = "" if self.binding else ", not binding here"
        return f"bar: {self.what} {self.measured:.3g}, {wanted}: {outcome}{aside}"


def all_hold(bars: Iterable[Bar]) -> bool:
    """Print bars; return whether all that bind hold."""
    bars = list(bars)
    for bar in bars:
        print(bar)
    return all(bar.holds for bar in bars if bar.binding)


def seconds_allowed(
    bar_s: float, read: Reading, branches: int, device_name: str, bandwidth: float
) -> float:
    """Return the most seconds for all tokens.

    They are the bar's on an H100. On another device they are the same share of its floor.
    """
    if is_h100(device_name):
        return bar_s
    return bar_s * read.floor_s(branches, bandwidth) / read.floor_s(branches, H100)


def is_h100(name: str) -> bool:
    """Tell whether a device is an H100 with HBM3; PCIe and NVL cards have other memory."""
    return "H100" in name and not any(other in name for other in ("PCIe", "NVL"))


def bars_by_images(given: Any) -> dict[int, float]:
    """Return the bars of a configuration, [[images, value], ...], by images."""
    return {int(images): float(value) for images, value in given or ()}
