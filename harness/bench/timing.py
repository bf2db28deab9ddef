"""Timing two or more things side by side: interleaved blocks, warm-up until stable, ratios paired
by block.

On a CPU the clock is the processor time of this process, which other jobs on shared cores distort
little; on CUDA it is the wall clock between two synchronisations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.engine.meter import settled

CLOCKS = {"cuda": time.perf_counter, "cpu": time.process_time}
"""By device."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each subject, one for each block; `unstable` names those whose warm-up did not
    settle.

    `first` is the first call of the warm-up, with compiling and graph capture in it, which is in no
    other number.
    """

    seconds: Mapping[str, np.ndarray]
    unstable: tuple[str, ...] = ()
    first: Mapping[str, float] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def spread(self, name: str) -> float:
        """Half the interquartile range over the median."""
        low, high = np.quantile(self.seconds[name], [0.25, 0.75])
        return float((high - low) / 2 / self.median(name))

    def ratio(self, slower: str, faster: str, *, draws: int = 10_000) -> tuple[float, float, float]:
        """How many times longer `slower` takes: geometric mean over blocks, with a 95 % bootstrap
        interval.

        The interval is (nan, nan) for fewer than three blocks.
        """
        logs = np.log(self.seconds[slower] / self.seconds[faster])
        if len(logs) < 3:
            return float(np.exp(logs.mean())), np.nan, np.nan
        chosen = np.random.default_rng(0).integers(0, len(logs), (draws, len(logs)))
        low, high = np.exp(np.quantile(logs[chosen].mean(1), [0.025, 0.975]))
        return float(np.exp(logs.mean())), float(low), float(high)


def interleave(
    subjects: Mapping[str, Callable[[int], object]],
    blocks: int,
    device: torch.device,
    *,
    warm_up: int,
) -> Times:
    """Time every subject once in each block, in an order that turns by one from block to block.

    A subject is called with the number of its block (the same number, the same work). It is warmed
    up before, in block 0, until it is stable or has run `warm_up` times.
    """
    before = {name: _warmed(subject, device, warm_up) for name, subject in subjects.items()}
    names = list(subjects)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for block in range(blocks):
        for name in names[block % len(names) :] + names[: block % len(names)]:
            seconds[name].append(timed(subjects[name], block, device))
    return Times(
        {name: np.array(values) for name, values in seconds.items()},
        tuple(name for name, seen in before.items() if not settled(seen)),
        {name: seen[0] for name, seen in before.items() if seen},
    )


def timed(subject: Callable[[int], object], block: int, device: torch.device) -> float:
    """Seconds of one call."""
    cuda = device.type == "cuda"
    clock = CLOCKS[device.type]
    if cuda:
        torch.cuda.synchronize(device)
    began = clock()
    subject(block)
    if cuda:
        torch.cuda.synchronize(device)
    return clock() - began


def _warmed(subject: Callable[[int], object], device: torch.device, most: int) -> list[float]:
    """Seconds of calls until three agree."""
    seen: list[float] = []
    while len(seen) < most and not settled(seen):
        seen.append(timed(subject, 0, device))
    return seen
