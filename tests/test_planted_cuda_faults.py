"""The guard of the CUDA path sees faults: each that is planted here into the product is reported.

A fault shows as a problem that the machine reports, as graphs that are off, as an error, or as
tokens or pixels that are not the CPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from combinations import (
    CFG,
    SUBJECTS,
    THROUGHPUT,
    Drawn,
    draw_on,
    make_sampler,
    tokens_of,
)
from simulated_cuda import simulated_cuda
from simulated_cuda.timeline import Stream
from torch import Tensor
from toy import PixelSum

from harness.engine import bursts, scheduler
from harness.engine.cuda_graphs import Graphs, Staging
from harness.engine.rendering import Picture, Renderer
from harness.engine.session import Method
from methods.best_of_n import BestOfN
from methods.plain import Plain
from methods.scalingar import ScalingAR

TOY = SUBJECTS["toy"]
Patch = pytest.MonkeyPatch


def drawn_on(device: str, method: Method) -> tuple[Drawn, str]:
    """What a device draws, and the state of its graphs."""
    sampler = make_sampler(method, TOY.make(device), CFG, THROUGHPUT)
    return draw_on(sampler, method, TOY.jobs(3), THROUGHPUT), sampler.graphs.state


def list_reports(
    method: Method,
    plant: Callable[[Patch], None],
    patch: Patch,
    *,
    device: str = "cuda:0",
    use_kernels: bool = True,
) -> list[str]:
    """What the guard says of a product with a fault."""
    expected, _ = drawn_on("cpu", method)
    plant(patch)
    with simulated_cuda(use_kernels=use_kernels) as machine:
        try:
            drawn, state = drawn_on(device, method)
        except (RuntimeError, ValueError) as error:
            return [*machine.problems, f"ERROR: {error}"]
    reports = list(machine.problems)
    if state != "on":
        reports.append(f"GRAPHS: {state}")
    errors = [delivery.error for delivery in drawn.values() if delivery.error]
    if errors:
        return [*reports, f"JOB: {errors[0]}"]
    if tokens_of(drawn) != tokens_of(expected):
        reports.append("TOKENS: not the CPU's")
    elif any((d.image != expected[key].image).any() for key, d in drawn.items()):
        reports.append("PIXELS: not the CPU's")
    if any(delivery.notes != expected[key].notes for key, delivery in drawn.items()):
        reports.append("NOTES: not the CPU's")
    return reports


# ------------------------------------------------------------------ the faults


def nothing(_patch: Patch) -> None:
    """The product as it is."""


def refilled_pinned_buffer(patch: Patch) -> None:
    """A table is written into pinned memory before the copy of the last one has left it."""

    def put(self: Staging, name: Any, table: Tensor) -> Tensor:
        static = self._static.setdefault(name, torch.empty_like(table, device=self._device))
        if name not in self._pinned:
            self._pinned[name] = (torch.empty_like(table).pin_memory(), torch.cuda.Event())
        pinned, _ = self._pinned[name]
        pinned.copy_(table)
        return static.copy_(pinned, non_blocking=True)

    patch.setattr(Staging, "put", put)


def tensor_that_is_not_static(patch: Patch) -> None:
    """Each round's table is a new tensor, which the graph does not know of."""
    patch.setattr(Staging, "put", lambda self, _name, table: table.to(self._device))


def pixels_read_early(patch: Patch) -> None:
    """An image is taken before its copy to the host is over."""
    patch.setattr(Picture, "image", lambda self: self.pixels_HW3.numpy().copy())
    patch.setattr(Picture, "ready", True)


def counter_not_reset(patch: Patch) -> None:
    """A burst goes on counting where the last one stopped."""
    load = bursts.Burst.load

    def forget(self: bursts.Burst, *given: Any) -> None:
        before = self._step_1.clone()
        load(self, *given)
        self._step_1.copy_(before)

    patch.setattr(bursts.Burst, "load", forget)


def host_read_in_captured_round(patch: Patch) -> None:
    """The host looks at a number of the device while it is captured."""
    draw_one = bursts.draw_one

    def read(
        guide: Any, sampling: Any, logits: Tensor, slot: Tensor, scale: Tensor, *rest: Any
    ) -> Any:
        return draw_one(guide, sampling, logits, slot, scale * float(scale.max() > -1), *rest)

    patch.setattr(bursts, "draw_one", read)


def value_baked_into_graph(patch: Patch) -> None:
    """The guidance scale is a number of the host's, which is captured with the first round."""
    draw_one = bursts.draw_one
    load = bursts.Burst.load
    scale_now = [1.0]

    def remember(self: bursts.Burst, stored: Tensor, start: Tensor, groups: Any) -> None:
        if groups:
            scale_now[0] = float(groups[0].scales[0])
        load(self, stored, start, groups)

    def bake(
        guide: Any, sampling: Any, logits: Tensor, slot: Tensor, scale: Tensor, *rest: Any
    ) -> Any:
        baked = torch.full_like(scale, scale_now[0])
        return draw_one(guide, sampling, logits, slot, baked, *rest)

    patch.setattr(bursts.Burst, "load", remember)
    patch.setattr(bursts, "draw_one", bake)


def tensor_of_pool_kept(patch: Patch) -> None:
    """A tensor that the capture made is kept, where later replays overwrite it."""
    draw_one = bursts.draw_one
    kept: list[Sequence[Tensor]] = []

    def keep(*given: Any) -> Any:
        drawn = draw_one(*given)
        kept.append(drawn)
        return drawn

    patch.setattr(bursts, "draw_one", keep)


def memory_of_graph_freed(patch: Patch) -> None:
    """A tensor that the graph reads is let go of."""
    draw_one = bursts.draw_one
    ones: list[Tensor] = []

    def let_go(
        guide: Any, sampling: Any, logits: Tensor, slot: Tensor, scale: Tensor, *rest: Any
    ) -> Any:
        return draw_one(guide, sampling, logits, slot, scale * ones[0], *rest)

    def prepare(self: Graphs, name: Any, work: Any, clear_inputs: Any) -> None:
        ones[:] = [torch.ones(1, dtype=torch.float64, device=self._device)]
        begin(self, name, work, clear_inputs)
        ones.clear()

    begin = Graphs.prepare
    patch.setattr(Graphs, "prepare", prepare)
    patch.setattr(bursts, "draw_one", let_go)


def capture_on_wrong_device(patch: Patch) -> None:
    """Nobody makes the run's device the current one, and the capture names no stream."""

    def capture(self: Graphs, work: Callable[[], None]) -> Any:
        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        self._pool = self._pool or graph.pool()
        return graph

    patch.setattr(scheduler, "on_device", lambda _device: nullcontext())
    patch.setattr(Graphs, "_capture", capture)


def current_device_not_set(patch: Patch) -> None:
    """Nobody makes the run's device the current one."""
    patch.setattr(scheduler, "on_device", lambda _device: nullcontext())


FAULTS = [
    (refilled_pinned_buffer, ScalingAR(2), "REFILLED: pinned memory changed"),
    (tensor_that_is_not_static, ScalingAR(2), "GONE: a graph uses memory that was freed"),
    (pixels_read_early, BestOfN(2, PixelSum()), "NOTES: not the CPU's"),
    (counter_not_reset, Plain(), "TOKENS: not the CPU's"),
    (host_read_in_captured_round, Plain(), "GRAPHS: off (CUDA error"),
    (value_baked_into_graph, Plain(), "TOKENS: not the CPU's"),
    (tensor_of_pool_kept, Plain(), "ESCAPE: a tensor of"),
    (memory_of_graph_freed, Plain(), "GONE: a graph uses memory that was freed"),
]


@pytest.mark.parametrize(
    ("plant", "method", "report"), FAULTS, ids=[plant.__name__ for plant, _, _ in FAULTS]
)
@torch.no_grad()
def test_a_planted_fault_is_reported(
    plant: Callable[[Patch], None], method: Method, report: str, monkeypatch: Patch
) -> None:
    assert not list_reports(method, nothing, monkeypatch)
    reports = list_reports(method, plant, monkeypatch)
    assert any(line.startswith(report) for line in reports), reports


@pytest.mark.parametrize(
    ("plant", "use_kernels", "report"),
    [
        (capture_on_wrong_device, False, "EMPTY: a graph captured nothing"),
        (current_device_not_set, True, "ERROR: CUDA error: an illegal memory access"),
    ],
)
@torch.no_grad()
def test_a_fault_of_the_second_device_is_reported(
    plant: Callable[[Patch], None], use_kernels: bool, report: str, monkeypatch: Patch
) -> None:
    options = {"device": "cuda:1", "use_kernels": use_kernels}
    assert not list_reports(Plain(), nothing, monkeypatch, **options)  # type: ignore[arg-type]
    reports = list_reports(Plain(), plant, monkeypatch, **options)  # type: ignore[arg-type]
    assert any(line.startswith(report) for line in reports), reports


@pytest.mark.parametrize("is_planted", [False, True])
@torch.no_grad()
def test_a_render_stream_that_does_not_wait_for_the_weights_is_reported(
    is_planted: bool, monkeypatch: Patch
) -> None:
    """The weights are still being made when they are rendered with."""
    with simulated_cuda() as machine:
        model = SUBJECTS["llamagen"].make("cuda:0")
        for weight in model.vq.parameters():  # type: ignore[attr-defined]
            weight.mul_(1.0)
        if is_planted:
            monkeypatch.setattr(Stream, "wait_stream", lambda *_: None)
        renderer = Renderer(model, 2)
        with renderer.beside():
            (picture,) = renderer.decode([[1] * model.num_tokens])
        picture.image()
    assert any(line.startswith("RACE: ") for line in machine.problems) == is_planted
