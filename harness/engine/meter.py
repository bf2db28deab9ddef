"""Measure work on the machine that numbers belong to: seconds, joules, peak memory, warm-up.

What a GPU's driver does not tell (no NVML, no permission) is left out.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.records import Stage, Usage

STABLE = 0.02
"""A warm-up ends when three consecutive medians agree within this share."""
GROUP = 3
"""Images of one median."""


# ------------------------------------------------------------------ warm-up


def settled(seen: Sequence[float]) -> bool:
    """Tell whether the last three values agree within STABLE of their median."""
    last = np.array(seen[-3:])
    if len(last) < 3:
        return False
    return float(np.ptp(last)) <= STABLE * float(np.median(last))


def warm_up(draw: Callable[[int], object], most: int) -> tuple[list[float], bool]:
    """Draw images until three consecutive medians of GROUP agree, or `most` are drawn.

    `draw(i)` draws the i-th. Returns the seconds of each image, and whether the medians agree. The
    first image includes compiling and capturing.
    """
    seconds: list[float] = []
    while len(seconds) < most:
        began = time.perf_counter()
        draw(len(seconds))
        seconds.append(time.perf_counter() - began)

        group_is_complete = len(seconds) % GROUP == 0
        if group_is_complete and settled(_medians(seconds)):
            return seconds, True
    return seconds, False


def _medians(seconds: Sequence[float]) -> list[float]:
    """Return the medians of consecutive groups of GROUP."""
    return np.median(np.reshape(seconds, (-1, GROUP)), axis=1).tolist()


# ------------------------------------------------------------------ the machine


def describe(device: torch.device) -> dict[str, str]:
    """Name a device; of a GPU also its driver, its highest clocks and its power cap."""
    if device.type != "cuda":
        threads = torch.get_num_threads()
        return {"device": f"{_processor()}, {threads} thread{'s' * (threads > 1)}"}

    facts = {"device": torch.cuda.get_device_properties(device).name}
    nvml, handle = _nvml(device)
    if nvml is None:
        return facts
    with suppress(nvml.NVMLError):
        facts["driver"] = str(nvml.nvmlSystemGetDriverVersion())
    with suppress(nvml.NVMLError):
        cores_mhz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
        memory_mhz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
        facts["clocks"] = f"at most {cores_mhz} and {memory_mhz} MHz"
    with suppress(nvml.NVMLError):
        milliwatts = nvml.nvmlDeviceGetEnforcedPowerLimit(handle)
        facts["power_cap"] = f"{milliwatts / 1000:.0f} W"
    return facts


def joules(device: torch.device) -> float | None:
    """Read the joules that a GPU has used since its driver was loaded; None if it does not tell."""
    nvml, handle = _nvml(device)
    if nvml is None:
        return None
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except nvml.NVMLError:
        return None


def _nvml(device: torch.device) -> tuple[Any, Any]:
    """Return the driver's library and a GPU's handle in it; (None, None) without them."""
    if device.type != "cuda":
        return None, None
    import pynvml

    try:
        pynvml.nvmlInit()  # it counts its users: calling it again is cheap
        identity = torch.cuda.get_device_properties(device).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")
    except pynvml.NVMLError:
        return None, None


def _processor() -> str:
    """Name the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# ------------------------------------------------------------------ work as a whole


class Meter:
    """Measures seconds by the host's clock, joules and peak memory since its start.

    Work done inside `pause` is left out of seconds and joules.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start()

    def start(self) -> None:
        """Forget everything measured before."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._began = time.perf_counter()
        self._joules = joules(self._device)
        self.paused_s = 0.0
        self._paused_joules = 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what is done inside; `paused_s` adds up how long that takes."""
        began = time.perf_counter()
        before = joules(self._device)
        try:
            yield
        finally:
            self.paused_s += time.perf_counter() - began
            self._paused_joules += (joules(self._device) or 0.0) - (before or 0.0)

    @property
    def seconds(self) -> float:
        """Host seconds, until the device has done its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - self._began - self.paused_s

    @property
    def joules(self) -> float | None:
        """Return the joules of the whole GPU; None if it does not tell."""
        now = joules(self._device)
        if now is None or self._joules is None:
            return None
        return now - self._joules - self._paused_joules

    @property
    def peak_memory_gb(self) -> float | None:
        """Peak of this process: on a GPU its tensors, otherwise all that it has in memory."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e9
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1]) / 1e9
        return None


# ------------------------------------------------------------------ shares of jobs


@dataclass(frozen=True, slots=True)
class _Measured:
    """Work that is enqueued on the device, and perhaps not done yet."""

    before: torch.cuda.Event
    after: torch.cuda.Event
    shares: list[Usage]
    stage: Stage

    def concerns(self, usage: Usage | None) -> bool:
        """Tell whether a job has a share in it; None is any job."""
        return usage is None or any(share is usage for share in self.shares)

    def charge(self) -> None:
        """Wait for the work to be done, and charge it."""
        self.after.synchronize()
        seconds = self.before.elapsed_time(self.after) / 1000.0
        _charge_seconds(seconds, self.shares, self.stage)


class Clock:
    """Measures device seconds by stage, shared evenly among the rows of each piece of work.

    On CUDA it records events and reads them in `settle`, so that measuring never waits for the
    device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._unsettled: list[_Measured] = []

    @contextmanager
    def measure(self, shares: list[Usage], stage: Stage) -> Iterator[None]:
        """Charge what is done inside to `shares`: one ledger for each row of the batch."""
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            before = torch.cuda.Event(enable_timing=True)
            after = torch.cuda.Event(enable_timing=True)
            before.record(stream)
            yield
            after.record(stream)
            self._unsettled.append(_Measured(before, after, shares, stage))
        else:
            began = time.perf_counter()
            yield
            _charge_seconds(time.perf_counter() - began, shares, stage)

    def settle(self, usage: Usage | None) -> None:
        """Charge all work in which a job has a share (None: all work), once it is done."""
        unsettled = []
        for work in self._unsettled:
            if work.concerns(usage):
                work.charge()
            else:
                unsettled.append(work)
        self._unsettled = unsettled


def _charge_seconds(seconds: float, shares: list[Usage], stage: Stage) -> None:
    """Add equal shares of device seconds to each ledger, in total and in its stage."""
    field = f"{stage}_s"
    for usage in shares:
        usage.device_s += seconds / len(shares)
        setattr(usage, field, getattr(usage, field) + seconds / len(shares))
