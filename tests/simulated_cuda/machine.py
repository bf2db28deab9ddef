"""The machine: its devices, which of them is current, what the host knows, and what went wrong."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simulated_cuda.memory import DeviceMemory
from simulated_cuda.timeline import Clock, LateCopy, Stream

if TYPE_CHECKING:
    from simulated_cuda.graphs import Capture

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent

_active: list[Machine] = []


class Device:
    """One simulated GPU: its memory, its streams, and which of them is current."""

    def __init__(self, machine: Machine, index: int, memory: int) -> None:
        self.index = index
        self.torch_device = torch.device("cuda", index)
        self.memory = DeviceMemory(machine, self, memory)
        self.streams: list[Stream] = []
        self.default_stream = Stream.of(machine, self)
        self.current_stream = self.default_stream


class Machine:
    """Simulated GPUs of `memory` bytes each, and a host.

    `problems` lists what a real GPU would have let pass with wrong numbers, or perhaps so: the
    rule, what happened and where. `captures` and `replays` count those of graphs.
    """

    def __init__(self, devices: int = 2, memory: int = 80 << 30, seed: int = 0) -> None:
        self.problems: list[str] = []
        self.captures = 0
        self.replays = 0
        self.current_index = 0
        self.fatal_error = ""  # after which nothing works any more
        self.host = Clock()
        self.random = random.Random(seed)
        self.late: list[LateCopy] = []
        self.capture: Capture | None = None  # the one that is underway
        self._pinned: dict[int, torch.UntypedStorage] = {}
        self._stream_count = 0
        self.devices = [Device(self, index, memory) for index in range(devices)]

    # ------------------------------------------------------------------ devices and streams

    @property
    def current(self) -> Device:
        """Return the current device."""
        return self.devices[self.current_index]

    def device(self, which: torch.device | str | int | None) -> Device:
        """Return a device; None, and a name without a number, are the current one."""
        if isinstance(which, str):
            which = torch.device(which)
        index = which.index if isinstance(which, torch.device) else which
        if index is None or index < 0:
            return self.current
        if index >= len(self.devices):
            raise RuntimeError("CUDA error: invalid device ordinal")
        return self.devices[index]

    def number_stream(self) -> int:
        """Return the number of a new stream."""
        self._stream_count += 1
        return self._stream_count

    # ------------------------------------------------------------------ the host

    def fail(self, error: str) -> None:
        """Raise an error that no later work of the process survives, caught or not."""
        self.fatal_error = f"CUDA error: {error}"
        self.expect_alive()

    def expect_alive(self) -> None:
        """Raise RuntimeError if the machine has failed."""
        if self.fatal_error:
            raise RuntimeError(self.fatal_error)

    def wait(self, clock: Clock, what: str) -> None:
        """Let the host wait until all that a clock knows of is done."""
        self.expect_alive()
        self.expect_no_capture(what)
        self.host.learn(clock)
        self.land_copies()

    def land_copies(self) -> None:
        """Carry out the copies from and to pinned memory that the host knows to be over."""
        waiting = []
        for copy in self.late:
            if self.host.knows(copy.stream, copy.number):
                copy.land()
            else:
                waiting.append(copy)
        self.late = waiting

    def expect_no_capture(self, what: str) -> None:
        """Raise RuntimeError for what is not allowed while a graph is captured; that spoils it."""
        if self.capture is not None:
            self.capture.is_invalid = True
            raise RuntimeError(
                f"CUDA error: operation not permitted when stream is capturing ({what})"
            )

    def report(self, rule: str, what: str, where: str | None = None) -> None:
        """Note a problem, once for each place."""
        line = f"{rule}: {what} at {where or project_line()}"
        if line not in self.problems:
            self.problems.append(line)

    def finish(self) -> None:
        """Wait for all devices."""
        for device in self.devices:
            for stream in device.streams:
                self.host.learn(stream.clock)
        self.land_copies()

    # ------------------------------------------------------------------ pinned memory

    def pin(self, tensor: Tensor) -> Tensor:
        """Make the memory of a CPU tensor pinned."""
        storage = tensor.untyped_storage()
        self._pinned[storage._cdata] = storage  # kept, so that its number stays its own
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Tell whether a CPU tensor lies in pinned memory."""
        return tensor.untyped_storage()._cdata in self._pinned


def active_machine() -> Machine:
    """Return the machine that is being simulated."""
    return _active[-1]


def push_machine(machine: Machine) -> None:
    """Begin to simulate a machine."""
    _active.append(machine)


def pop_machine() -> None:
    """End the simulation that began last."""
    _active.pop()


def project_line() -> str:
    """Name the innermost line of the project that is being executed, outside this package."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        is_project = path.is_relative_to(PROJECT) and "site-packages" not in path.parts
        if is_project and not path.is_relative_to(HERE):
            return f"{path.relative_to(PROJECT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"
