"""Time two or more things side by side: interleaved blocks, after a warm-up until they are stable.

Ratios are paired by block. On a CPU the clock is the processor time of this process, which other
jobs on shared cores distort little; on CUDA it is the wall clock between two synchronisations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.engine.meter import settled

Subject = Callable[[int], object]
"""Something to time: called with the number of a block."""
CLOCKS = {"cuda": time.perf_counter, "cpu": time.process_time}
"""Clock of each type of device."""


@dataclass(frozen=True, slots=True)
class Times:
    """The seconds of each subject, one for each block.

    `unstable` names those whose warm-up did not settle. `first` is the first call of the warm-up,
    with compiling and graph capture in it, which is in no other number.
    """

    seconds: Mapping[str, np.ndarray]
    unstable: tuple[str, ...] = ()
    first: Mapping[str, float] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Return the median seconds of a subject."""
        return float(np.median(self.seconds[name]))

    def spread(self, name: str) -> float:
        """Return half the interquartile range over the median."""
        low, high = np.quantile(self.seconds[name], [0.25, 0.75])
        return float((high - low) / 2 / self.median(name))

    def is_warm(self, name: str) -> bool:
        """Tell whether the warm-up of a subject settled."""
        return name not in self.unstable

    def ratio(self, slower: str, faster: str, *, draws: int = 10_000) -> tuple[float, float, float]:
        """Return how many times longer `slower` takes, and the ends of a 95 % bootstrap interval.

        It is the geometric mean over blocks. The ends are NaN for fewer than three blocks.
        """
        logs = np.log(self.seconds[slower] / self.seconds[faster])
        ratio = float(np.exp(logs.mean()))
        if len(logs) < 3:
            return ratio, np.nan, np.nan

        chosen = np.random.default_rng(0).integers(0, len(logs), (draws, len(logs)))
        means = logs[chosen].mean(1)
        low, high = np.exp(np.quantile(means, [0.025, 0.975]))
        return ratio, float(low), float(high)


def interleave(
    subjects: Mapping[str, Subject], blocks: int, device: torch.device, *, warm_up: int
) -> Times:
    """Time every subject once in each block, in an order that turns by one from block to block.

    A subject is called with the number of its block, and does the same work for the same number.
    Before, it is warmed up in block 0 until it is stable or has run `warm_up` times.
    """
    # 1. Warm up one subject after the other.
    warm_ups = {name: _warm_up(subject, device, warm_up) for name, subject in subjects.items()}

    # 2. Time them in turn.
    names = list(subjects)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for block in range(blocks):
        turn = block % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(time_call(subjects[name], block, device))

    # 3. Tell which were not stable when they were timed.
    arrays = {name: np.array(values) for name, values in seconds.items()}
    unstable = tuple(name for name, calls in warm_ups.items() if not settled(calls))
    first = {name: calls[0] for name, calls in warm_ups.items() if calls}
    return Times(arrays, unstable, first)


def time_call(subject: Subject, block: int, device: torch.device) -> float:
    """Return the seconds of one call."""
    is_cuda = device.type == "cuda"
    clock = CLOCKS[device.type]
    if is_cuda:
        torch.cuda.synchronize(device)
    began = clock()
    subject(block)
    if is_cuda:
        torch.cuda.synchronize(device)
    return clock() - began


def _warm_up(subject: Subject, device: torch.device, most: int) -> list[float]:
    """Call a subject until its last calls took equally long; return the seconds of all calls."""
    seconds: list[float] = []
    while len(seconds) < most and not settled(seconds):
        seconds.append(time_call(subject, 0, device))
    return seconds
