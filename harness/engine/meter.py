"""The machine that numbers belong to, and what work on it takes: seconds, joules, peak memory, and
when it is warm.

What a GPU's driver does not tell (no NVML, no permission) is left out.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.records import Stage, Usage

STABLE = 0.02
"""Three consecutive times, or medians, that agree within this share end a warm-up."""
GROUP = 3
"""Images of a median."""


def settled(seen: Sequence[float]) -> bool:
    """Whether the last three agree within STABLE of their median."""
    last = np.array(seen[-3:])
    return len(last) == 3 and float(np.ptp(last)) <= STABLE * float(np.median(last))


def warm_up(draw: Callable[[int], object], most: int) -> tuple[list[float], bool]:
    """Draw images until three consecutive medians of GROUP agree, at most `most`: their seconds,
    and whether they do.

    The first has compiling and capturing in it.
    """
    seconds: list[float] = []
    while len(seconds) < most:
        began = time.perf_counter()
        draw(len(seconds))
        seconds.append(time.perf_counter() - began)
        whole = len(seconds) // GROUP * GROUP
        if whole == len(seconds) and settled(
            np.median(np.reshape(seconds, (-1, GROUP)), axis=1).tolist()
        ):
            return seconds, True
    return seconds, False


def describe(device: torch.device) -> dict[str, str]:
    """What a device is called; of a GPU also its driver, its clocks (cores and memory) and its
    power cap.
    """
    if device.type != "cuda":
        threads = torch.get_num_threads()
        return {"device": f"{_processor()}, {threads} thread{'s' * (threads > 1)}"}
    told = {"device": torch.cuda.get_device_properties(device).name}
    nvml, handle = _nvml(device)
    if nvml is not None:
        with suppress(nvml.NVMLError):
            told["driver"] = str(nvml.nvmlSystemGetDriverVersion())
        with suppress(nvml.NVMLError):
            clocks = [
                nvml.nvmlDeviceGetMaxClockInfo(handle, kind)
                for kind in (nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM)
            ]
            told["clocks"] = f"at most {clocks[0]} and {clocks[1]} MHz"
        with suppress(nvml.NVMLError):
            told["power_cap"] = f"{nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000:.0f} W"
    return told


class Meter:
    """Seconds by the host's clock, joules and peak memory since its start; without what is done
    `apart`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start()

    def start(self) -> None:
        """Forget everything before."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._began = time.perf_counter()
        self._joules = joules(self._device)
        self.apart_s = 0.0
        self._apart_joules = 0.0

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is done inside belongs to something else; how long it takes is kept in `apart_s`."""
        began = time.perf_counter()
        before = joules(self._device)
        try:
            yield
        finally:
            self.apart_s += time.perf_counter() - began
            self._apart_joules += (joules(self._device) or 0.0) - (before or 0.0)

    @property
    def seconds(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - self._began - self.apart_s

    @property
    def joules(self) -> float | None:
        """Of the whole GPU; None where it does not tell."""
        now = joules(self._device)
        return (
            None if now is None or self._joules is None else now - self._joules - self._apart_joules
        )

    @property
    def peak_memory_gb(self) -> float | None:
        """Of this process: on a GPU its tensors, otherwise all that it has in memory."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e9
        with suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(
                1024 * int(line.split()[1]) / 1e9 for line in lines if line.startswith("VmHWM:")
            )
        return None


def joules(device: torch.device) -> float | None:
    """Energy that a GPU has used since its driver was loaded; None where it does not tell."""
    nvml, handle = _nvml(device)
    if nvml is None:
        return None
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except nvml.NVMLError:
        return None


def _nvml(device: torch.device) -> tuple[Any, Any]:
    """The driver's library and a GPU's handle in it; (None, None) without them."""
    if device.type != "cuda":
        return None, None
    import pynvml

    try:
        pynvml.nvmlInit()  # counted by the library: again is cheap
        identity = torch.cuda.get_device_properties(device).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")
    except pynvml.NVMLError:
        return None, None


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    return platform.processor() or platform.machine()


class Clock:
    """Device seconds by stage, shared evenly among the rows of each measured piece of work.

    On CUDA it records events and reads them in `settle`, so that measuring never waits for the
    device.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._open: list[tuple[torch.cuda.Event, torch.cuda.Event, list[Usage], Stage]] = []

    @contextmanager
    def measure(self, shares: list[Usage], stage: Stage) -> Iterator[None]:
        if self._cuda:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            after.record()
            self._open.append((before, after, shares, stage))
        else:
            began = time.perf_counter()
            yield
            _share(time.perf_counter() - began, shares, stage)

    def settle(self, usage: Usage | None) -> None:
        still_open = []
        for before, after, shares, stage in self._open:
            if usage is None or any(share is usage for share in shares):
                after.synchronize()
                _share(before.elapsed_time(after) / 1000.0, shares, stage)
            else:
                still_open.append((before, after, shares, stage))
        self._open = still_open


def _share(seconds: float, shares: list[Usage], stage: Stage) -> None:
    for usage in shares:
        usage.device_s += seconds / len(shares)
        setattr(usage, f"{stage}_s", getattr(usage, f"{stage}_s") + seconds / len(shares))
