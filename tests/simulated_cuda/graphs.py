"""CUDA graphs: a capture records operations without executing them, a replay repeats them.

Operations are computed while they are recorded, because their shapes are needed; what they wrote to
memory from outside the capture is put back at its end. Python is not run again by a replay, so
everything that the host decided is baked in.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simulated_cuda.machine import Machine, active_machine, project_line
from simulated_cuda.memory import Block, Pool
from simulated_cuda.tensors import SimulatedTensor, list_tensors, touch, without_modes
from simulated_cuda.timeline import Stream

_pool_numbers = itertools.count(1)


def new_pool_handle() -> tuple[int, int]:
    """Return a handle under which graphs share their memory."""
    return (0, next(_pool_numbers))


@dataclass(slots=True)
class OutsideUse:
    """Memory from outside that a graph uses: a replay finds it at the same place, or nothing."""

    where: str
    is_written: bool = False


class Capture:
    """The operations that a stream was given since its capture began."""

    def __init__(self, stream: Stream, pool: Pool) -> None:
        self.stream = stream
        self.pool = pool
        self.is_invalid = False
        self.tape: list[Callable[[], Any]] = []
        self.outside: dict[weakref.ref[Block], OutsideUse] = {}
        self._made: set[weakref.ref[Block]] = set()
        self._saved: dict[weakref.ref[Block], tuple[Tensor, Tensor]] = {}

    def note_use(self, used: Sequence[SimulatedTensor], written: Sequence[SimulatedTensor]) -> None:
        """Note what an operation uses of the memory outside; keep what it is about to overwrite."""
        for tensor in (*used, *written):
            block = weakref.ref(tensor.block)
            if block not in self._made and block not in self.outside:
                self.outside[block] = OutsideUse(project_line())
        for tensor in written:
            block = weakref.ref(tensor.block)
            if block in self._made:
                continue
            self.outside[block].is_written = True
            if block not in self._saved:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.block.storage)
                self._saved[block] = (whole, whole.clone())

    def record(
        self, run: Callable[[], Any], made: Sequence[Tensor], blocks: Sequence[Block]
    ) -> None:
        """Record an operation and the memory that it made."""
        for block in blocks:
            if weakref.ref(block) not in self.outside:
                self._made.add(weakref.ref(block))
        if not made:
            self.tape.append(run)
            return
        results = list(made)

        def repeat() -> None:
            again = list_tensors(run())
            for result, value in zip(results, again[-len(results) :], strict=True):
                result.copy_(value)

        self.tape.append(repeat)

    def end(self) -> None:
        """Put back what the recorded operations wrote to memory outside."""
        with without_modes():
            for whole, kept in self._saved.values():
                whole.copy_(kept)
        self._saved.clear()

    def report_escapes(self, machine: Machine) -> None:
        """Report tensors of the capture that are still held: later replays overwrite them."""
        if any(self._alive()):
            gc.collect()
        for block in self._alive():
            machine.report("ESCAPE", f"a tensor of {block.nbytes} bytes of the capture is kept")

    def _alive(self) -> list[Block]:
        blocks = [reference() for reference in self._made]
        return [block for block in blocks if block is not None]


class CUDAGraph:
    """Stands for `torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._machine = active_machine()
        self._capture: Capture | None = None
        self._pool_number: int | None = None
        self._is_ready = False

    def pool(self) -> tuple[int, int]:
        """Return the handle of the graph's pool."""
        assert self._pool_number is not None, "the graph has captured nothing"
        return (0, self._pool_number)

    def capture_begin(
        self, pool: tuple[int, int] | None = None, capture_error_mode: str = "global"
    ) -> None:
        """Record from now on what the current stream of the current device is given."""
        machine = self._machine
        device = machine.current
        stream = device.current_stream
        if stream is device.default_stream:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        machine.expect_no_capture("a capture within a capture")
        self._pool_number = new_pool_handle()[1] if pool is None else pool[1]
        kept = device.memory.pools.setdefault(self._pool_number, Pool())
        device.memory.add_graph(kept)
        weakref.finalize(self, device.memory.drop_graph, kept)
        self._capture = Capture(stream, kept)
        stream.capture = self._capture
        machine.capture = self._capture

    def capture_end(self) -> None:
        """End the recording. Raises RuntimeError if something spoiled it."""
        machine = self._machine
        capture = self._capture
        assert capture is not None
        capture.stream.capture = None
        machine.capture = None
        capture.end()
        if capture.is_invalid:
            self._capture = None
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )
        if not capture.tape:
            machine.report("EMPTY", "a graph captured nothing: wrong device or stream")
        machine.captures += 1
        self._is_ready = True

    def replay(self) -> None:
        """Do again what was recorded, on the current stream of the capture's device."""
        machine = self._machine
        machine.expect_no_capture("a replay")
        capture = self._capture
        if capture is None or not self._is_ready:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        machine.replays += 1
        read, written = self._find_outside(capture)
        touch(capture.stream.owner.current_stream, read, written)
        with without_modes():
            for repeat in capture.tape:
                repeat()

    def reset(self) -> None:
        """Forget what was recorded."""
        self._capture = None
        self._is_ready = False

    def _find_outside(self, capture: Capture) -> tuple[list[Block], list[Block]]:
        read = []
        written = []
        for reference, use in capture.outside.items():
            block = reference()
            if block is None:
                self._machine.report("GONE", "a graph uses memory that was freed", use.where)
                continue
            read.append(block)
            if use.is_written:
                written.append(block)
        return read, written


class graph:  # noqa: N801 - as torch names it
    """Stands for `torch.cuda.graph`, which captures on one stream of its own for all graphs.

    That stream is of the device that was current at the first capture.
    """

    default_capture_stream: Stream | None = None

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: tuple[int, int] | None = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> None:
        if stream is None and graph.default_capture_stream is None:
            graph.default_capture_stream = torch.cuda.Stream()  # type: ignore[assignment]
        self._pool = pool
        self._context = torch.cuda.stream(stream or graph.default_capture_stream)  # type: ignore[arg-type]
        self._graph = cuda_graph
        self._mode = capture_error_mode

    def __enter__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self._context.__enter__()
        self._graph.capture_begin(self._pool, capture_error_mode=self._mode)

    def __exit__(self, *error: Any) -> None:
        self._graph.capture_end()
        self._context.__exit__(*error)
        capture = self._graph._capture
        if capture is not None and error[0] is None:
            capture.report_escapes(self._graph._machine)
