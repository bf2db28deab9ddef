"""Timing two or more things side by side: interleaved blocks, warm-up until stable, ratios paired by block.

On a CPU the clock is the processor time of this process, which other jobs on shared cores distort little; on CUDA it
is the wall clock between two synchronisations.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import torch

STABLE = 0.02
"""Three consecutive warm-up times that agree within this share end the warm-up."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each subject, one for each block; `unstable` names those whose warm-up did not settle."""

    seconds: Mapping[str, np.ndarray]
    unstable: tuple[str, ...]

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def spread(self, name: str) -> float:
        """Half the interquartile range over the median."""
        low, high = np.quantile(self.seconds[name], [0.25, 0.75])
        return float((high - low) / 2 / self.median(name))

    def ratio(self, slower: str, faster: str, *, draws: int = 10_000) -> tuple[float, float, float]:
        """How many times longer `slower` takes: geometric mean over blocks, with a 95 % bootstrap interval.

        The interval is (nan, nan) for fewer than three blocks.
        """
        logs = np.log(self.seconds[slower] / self.seconds[faster])
        if len(logs) < 3:
            return float(np.exp(logs.mean())), np.nan, np.nan
        chosen = np.random.default_rng(0).integers(0, len(logs), (draws, len(logs)))
        low, high = np.exp(np.quantile(logs[chosen].mean(1), [0.025, 0.975]))
        return float(np.exp(logs.mean())), float(low), float(high)


def interleave(
    subjects: Mapping[str, Callable[[int], object]], blocks: int, device: torch.device, *, warm_up: int
) -> Times:
    """Time every subject once in each block, in an order that turns by one from block to block.

    A subject is called with the number of its block (the same number, the same work). It is warmed up before, in block
    0, until it is stable or has run `warm_up` times.
    """
    unstable = [name for name, subject in subjects.items() if not _settles(subject, device, warm_up)]
    names = list(subjects)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for block in range(blocks):
        for name in names[block % len(names) :] + names[: block % len(names)]:
            seconds[name].append(timed(subjects[name], block, device))
    return Times({name: np.array(values) for name, values in seconds.items()}, tuple(unstable))


def timed(subject: Callable[[int], object], block: int, device: torch.device) -> float:
    """Seconds of one call."""
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize(device)
    began = clock()
    subject(block)
    if cuda:
        torch.cuda.synchronize(device)
    return clock() - began


def _settles(subject: Callable[[int], object], device: torch.device, most: int) -> bool:
    seen: list[float] = []
    while len(seen) < most:
        seen.append(timed(subject, 0, device))
        if settled(seen):
            return True
    return False


def settled(seen: Sequence[float]) -> bool:
    """Whether the last three agree within STABLE of their median."""
    last = np.array(seen[-3:])
    return len(last) == 3 and float(np.ptp(last)) <= STABLE * float(np.median(last))


def machine(device: torch.device) -> dict[str, str]:
    """What the numbers belong to."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
    else:
        name = f"{_processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return {
        "device": name,
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "capability": str(torch.backends.cpu.get_cpu_capability()) if device.type == "cpu" else "",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            named = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        named = []
    return named[0] if named else platform.processor() or platform.machine()
