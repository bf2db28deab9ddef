"""CUDA graphs: work over static tensors that is captured once and replayed.

Elsewhere, and where a capture fails, the same work is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

log = logging.getLogger("harness")

WARM_UPS = 3
"""Calls before a capture, in which libraries choose their kernels and allocate their workspaces."""


class Replay(Protocol):
    """Work that was captured."""

    def replay(self) -> None:
        """Do the work again on the same tensors."""
        ...


class Graphs:
    """Captured work by name.

    `state` is "on", or "off" with the reason: there is no CUDA device, or a capture failed. While
    it is off, all work is called.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._captured: dict[Hashable, Replay] = {}
        self._pool: Any = None  # a handle, whose type torch keeps to itself
        self._stream: torch.cuda.Stream | None = None  # of the device; the first capture makes it
        self.state = "on" if device.type == "cuda" else f"off ({device.type})"

    def run(self, name: Hashable, work: Callable[[], None]) -> None:
        """Do work that was prepared under a name."""
        if self.state == "on":
            self._captured[name].replay()
        else:
            work()

    def prepare(
        self, name: Hashable, work: Callable[[], None], clear_inputs: Callable[[], None]
    ) -> None:
        """Capture work whose inputs and outputs are tensors that stay where they are.

        Do nothing if it is captured already. The work is called a few times before that, after
        `clear_inputs` has marked all rows as padding. If a capture fails, all work is called from
        then on.
        """
        if self.state != "on" or name in self._captured:
            return
        try:
            clear_inputs()
            self._captured[name] = self._capture(work)
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)
            reason = str(error).strip().partition("\n")[0][:120]
            self.state = f"off ({reason})"
            log.warning("CUDA graphs are off, every round is launched by the host: %s", reason)

    def _capture(self, work: Callable[[], None]) -> Replay:
        # 1. Warm up on a stream of its own, as torch asks for.
        side = self._stream or torch.cuda.Stream(self._device)
        self._stream = side
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(side)
        # 2. Capture there: torch's own capture stream is one of whatever device captured first. All
        #    graphs share one memory pool, since one runs at a time.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=side, capture_error_mode="thread_local"
        ):
            work()
        self._pool = self._pool or graph.pool()
        return graph


class Staging:
    """Static tensors of the device that the host writes tables to.

    On CUDA a table goes through pinned memory, so that the copy does not wait for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._static: dict[Hashable, Tensor] = {}
        self._pinned: dict[Hashable, tuple[Tensor, torch.cuda.Event]] = {}

    def put(self, name: Hashable, table: Tensor) -> Tensor:
        """Copy a table to the device; the same name always means the same tensor there."""
        if name not in self._static:
            self._static[name] = torch.empty_like(table, device=self._device)
        static = self._static[name]
        if self._device.type != "cuda":
            return static.copy_(table)
        if name not in self._pinned:
            self._pinned[name] = (torch.empty_like(table).pin_memory(), torch.cuda.Event())
        pinned, sent = self._pinned[name]
        sent.synchronize()  # the copy before has left the pinned memory
        pinned.copy_(table)
        static.copy_(pinned, non_blocking=True)
        sent.record(torch.cuda.current_stream(self._device))
        return static
