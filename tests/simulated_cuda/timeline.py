"""Streams and events, and what each of them and the host know to be done: vector clocks.

Every launch has a number in its stream. A clock knows of each stream the last launch that is
surely done before whatever comes next. Work that touches memory after work which its clock does not
know of is a race.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from simulated_cuda.graphs import Capture
    from simulated_cuda.machine import Device, Machine

NOT_YET = 0.4
"""Share of queries that find an event not done, although it might be."""


class Clock(dict[int, int]):
    """The last launch of each stream that is known to be done."""

    def learn(self, other: Clock) -> None:
        """Know what another clock knows, too."""
        for stream, number in other.items():
            if self.get(stream, 0) < number:
                self[stream] = number

    def knows(self, stream: int, number: int) -> bool:
        """Tell whether a launch is known to be done."""
        return self.get(stream, 0) >= number


@dataclass(frozen=True, slots=True)
class LateCopy:
    """A copy from or to pinned memory that is enqueued; `land` is called once it is surely over."""

    stream: int
    number: int
    land: Callable[[], None]


class Stream:
    """Stands for `torch.cuda.Stream`: a queue of work on the device that was current."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        from simulated_cuda.machine import active_machine

        machine = active_machine()
        self._settle_in(machine, machine.device(device))

    @classmethod
    def of(cls, machine: Machine, device: Device) -> Stream:
        """Make a stream of a device."""
        made = cls.__new__(cls)
        made._settle_in(machine, device)
        return made

    def _settle_in(self, machine: Machine, device: Device) -> None:
        self.machine = machine
        self.id = machine.number_stream()
        self.owner = device
        self.clock = Clock()
        self.launches = 0
        self.capture: Capture | None = None  # underway on this stream
        device.streams.append(self)

    @property
    def device(self) -> torch.device:
        """Return the device of the stream."""
        return self.owner.torch_device

    def launch(self) -> int:
        """Enqueue work behind all that the host knows to be done; return its number."""
        self.machine.expect_alive()
        self.clock.learn(self.machine.host)
        self.launches += 1
        self.clock[self.id] = self.launches
        return self.launches

    def wait_stream(self, stream: Stream) -> None:
        """Let later work wait for all that another stream was given."""
        self.clock.learn(stream.clock)

    def wait_event(self, event: Event) -> None:
        """Let later work wait for an event."""
        self.clock.learn(event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event behind all work so far."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Let the host wait for all work so far."""
        self.machine.wait(self.clock, "stream.synchronize")

    def query(self) -> bool:
        """Tell whether all work is done, which this machine always manages by then."""
        self.synchronize()
        return True


class Event:
    """Stands for `torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        from simulated_cuda.machine import active_machine

        self.machine = active_machine()
        self.enable_timing = enable_timing
        self.clock = Clock()
        self.stream: Stream | None = None  # that it was recorded on last
        self.is_captured = False

    def record(self, stream: Stream | None = None) -> None:
        """Record the event behind all work of a stream, else the current one of the current device.

        Raises RuntimeError on another device than before, as torch does.
        """
        stream = stream or self.machine.current.current_stream
        if self.stream is not None and self.stream.device != stream.device:
            raise RuntimeError(
                f"Event device {self.stream.device} does not match recording stream's "
                f"device {stream.device}."
            )
        stream.launch()
        self.stream = stream
        self.is_captured = stream.capture is not None
        self.clock = Clock(stream.clock)

    def wait(self, stream: Stream | None = None) -> None:
        """Let later work of a stream wait for the event."""
        (stream or self.machine.current.current_stream).wait_event(self)

    def synchronize(self) -> None:
        """Let the host wait for the event; one that was never recorded is over."""
        if self.stream is None:
            return
        self._expect_outside_graph()
        self.machine.wait(self.clock, "event.synchronize")

    def query(self) -> bool:
        """Tell whether the event has happened; sometimes not yet, although it might have."""
        if self.stream is None or self.is_done():
            return True
        self._expect_outside_graph()
        self.machine.expect_no_capture("event.query")
        if self.machine.random.random() < NOT_YET:
            return False
        self.machine.wait(self.clock, "event.query")
        return True

    def is_done(self) -> bool:
        """Tell whether the host knows that the event has happened."""
        return all(self.machine.host.knows(*launch) for launch in self.clock.items())

    def elapsed_time(self, end: Event) -> float:
        """Return milliseconds between two events. Raises RuntimeError as torch does."""
        for event in (self, end):
            if not event.enable_timing:
                raise ValueError("Both events must be created with argument 'enable_timing=True'.")
            if event.stream is None:
                raise ValueError("Both events must be recorded before calculating elapsed time.")
            event._expect_outside_graph()
            if not event.is_done():
                raise RuntimeError("CUDA error: device not ready")
        assert self.stream is not None and end.stream is not None
        if self.stream.device != end.stream.device:
            raise RuntimeError("CUDA error: invalid resource handle (events of two devices)")
        return 1.0

    def _expect_outside_graph(self) -> None:
        if self.is_captured:
            raise RuntimeError(
                "CUDA error: operation not permitted on an event last recorded in a "
                "capturing stream"
            )
