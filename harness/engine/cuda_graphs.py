"""CUDA graphs: work over static tensors that is captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.engine.bursts import log

WARM_UPS = 3
"""Calls before a capture, in which libraries choose their kernels and allocate their workspaces."""


class Replay(Protocol):
    """Captured work."""

    def replay(self) -> None: ...


class Graphs:
    """Work that is replayed: by name, captured on CUDA at its first use, called elsewhere.

    `state` says "on", or "off" and why: on a CPU, or after a capture failed. Then everything is
    called.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._captured: dict[Hashable, Replay] = {}
        self._pool: Any = None  # a handle, whose type torch keeps to itself
        self.state = "on" if device.type == "cuda" else f"off ({device.type})"

    def run(self, name: Hashable, work: Callable[[], None]) -> None:
        """Do work that was prepared."""
        if self.state == "on":
            self._captured[name].replay()
        else:
            work()

    def prepare(self, name: Hashable, work: Callable[[], None], idle: Callable[[], None]) -> None:
        """Capture work whose inputs and outputs are tensors that stay where they are, once for each
        name.

        For that it is called a few times, after `idle` has put inputs there that say that no row is
        live. Where capturing fails, all work is called from then on.
        """
        if self.state != "on" or name in self._captured:
            return
        try:
            idle()
            self._captured[name] = self._capture(work)
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)
            reason = str(error).strip().partition("\n")[0][:120]
            self.state = f"off ({reason})"
            log.warning("CUDA graphs are off, every round is launched by the host: %s", reason)

    def _capture(self, work: Callable[[], None]) -> Replay:
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        self._pool = self._pool or graph.pool()
        return graph


class Staging:
    """Tables on their way to static tensors of the device: pinned there, so that a copy waits for
    nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._static: dict[Hashable, Tensor] = {}
        self._pinned: dict[Hashable, tuple[Tensor, torch.cuda.Event]] = {}

    def put(self, name: Hashable, table: Tensor) -> Tensor:
        """The table on the device, always at the same place for the same name."""
        static = self._static.setdefault(name, torch.empty_like(table, device=self._device))
        if self._device.type != "cuda":
            return static.copy_(table)
        if name not in self._pinned:
            self._pinned[name] = torch.empty_like(table).pin_memory(), torch.cuda.Event()
        pinned, sent = self._pinned[name]
        sent.synchronize()  # the copy before has left the pinned memory
        pinned.copy_(table)
        static.copy_(pinned, non_blocking=True)
        sent.record()
        return static
