"""The simulated CUDA machine raises what torch raises on CUDA, and counts memory as it does."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from simulated_cuda import simulated_cuda
from torch import Tensor
from torch.utils._device import _device_constructors

from harness.kernels import race

MIB = 1 << 20


def made(mebibytes: int, device: str = "cuda:0") -> Tensor:
    return torch.zeros(mebibytes * MIB, dtype=torch.uint8, device=device)


def captured(work: object, pool: object = None) -> torch.cuda.CUDAGraph:
    """A graph of work that takes no arguments."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):  # type: ignore[arg-type]
        work()  # type: ignore[operator]
    return graph


# ------------------------------------------------------------------ devices


def test_a_tensor_says_where_it_is_and_does_not_leave_by_itself() -> None:
    with simulated_cuda():
        tensor = torch.arange(6, device="cuda").view(2, 3)
        assert tensor.device == torch.device("cuda:0")
        assert tensor.is_cuda
        assert (tensor + 1).sum().item() == 21
        assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            np.asarray(tensor)


def test_a_device_context_reaches_every_maker_after_the_machine_is_gone() -> None:
    _device_constructors.cache_clear()
    with simulated_cuda(), torch.device("meta"):
        torch.empty(1)
    with torch.device("meta"):
        assert torch.tensor([]).is_meta
        assert torch.as_tensor([1.0]).is_meta


def test_devices_are_not_mixed() -> None:
    with simulated_cuda():
        here = torch.ones(3, device="cuda:0")
        there = torch.ones(3, device="cuda:1")
        for other in (torch.ones(3), there):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                here + other
        assert (here + torch.tensor(2.0)).tolist() == [3, 3, 3]  # a number may be on the CPU
        assert (here + there.to("cuda:0")).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="Expected all tensors"):
            torch.cat((here, torch.tensor(2.0).view(1)))
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.ones(1, device="cuda:2")


def test_what_names_no_device_is_made_on_the_current_one() -> None:
    with simulated_cuda() as machine:
        with torch.cuda.device(1):
            assert torch.ones(1, device="cuda").device.index == 1
            assert torch.cuda.Stream().device.index == 1
            assert torch.cuda.current_device() == 1
        assert torch.ones(1, device="cuda").device.index == 0
        torch.cuda.set_device("cuda:1")
        event = torch.cuda.Event()
        event.record()
        with pytest.raises(RuntimeError, match="does not match recording stream's device"):
            event.record(torch.cuda.current_stream(0))
        side = torch.cuda.Stream(0)
        with torch.cuda.stream(side):
            assert torch.cuda.current_device() == 0
            assert torch.cuda.current_stream() is side
        assert torch.cuda.current_device() == 1
    assert not machine.problems


def test_a_machine_leaves_nothing_behind() -> None:
    before = torch.cuda.is_available(), torch.tensor, torch.cuda.Stream
    with simulated_cuda():
        assert torch.cuda.device_count() == 2
    assert before == (torch.cuda.is_available(), torch.tensor, torch.cuda.Stream)


def test_nothing_works_after_an_illegal_access() -> None:
    """A kernel is launched on the current device, whatever the tensors are on."""
    logits_NV = torch.ones(1, 5)
    with simulated_cuda():
        there_NV = logits_NV.to("cuda:1")
        with torch.cuda.device(1):
            assert len(race.measure_signals(there_NV, there_NV)) == 4
        for work in (lambda: race.measure_signals(there_NV, there_NV), lambda: there_NV + 1):
            with pytest.raises(RuntimeError, match="an illegal memory access was encountered"):
                work()


# ------------------------------------------------------------------ streams and copies


@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_stream_that_does_not_wait_is_a_race(is_ordered: bool) -> None:
    with simulated_cuda() as machine:
        numbers = torch.ones(3, device="cuda").mul(2)
        side = torch.cuda.Stream()
        if is_ordered:
            side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            total = numbers.sum()
        torch.cuda.current_stream().wait_stream(side)
        assert total.item() == 6
    assert [line.partition(":")[0] for line in machine.problems] == ([] if is_ordered else ["RACE"])


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_memory_freed_under_another_stream_is_reported(is_waited_for: bool) -> None:
    with simulated_cuda() as machine:
        numbers = torch.ones(3, device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            numbers.sum()
        if is_waited_for:
            torch.cuda.current_stream().wait_stream(side)
        del numbers
    assert any("FREED" in line for line in machine.problems) != is_waited_for


def test_pinned_memory_has_a_copy_once_it_is_waited_for() -> None:
    with simulated_cuda() as machine:
        target = torch.empty(3, dtype=torch.uint8, pin_memory=True)
        target.copy_(torch.arange(3, dtype=torch.uint8, device="cuda"), non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        assert target.tolist() != [0, 1, 2]
        arrived.synchronize()
        assert target.tolist() == [0, 1, 2]
    assert not machine.problems


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_a_pinned_source_must_not_change_before_its_copy_is_over(is_waited_for: bool) -> None:
    with simulated_cuda() as machine:
        source = torch.ones(3).pin_memory()
        source.to("cuda", non_blocking=True)
        if is_waited_for:
            torch.cuda.synchronize()
        source.fill_(2)
    assert any("REFILLED" in line for line in machine.problems) != is_waited_for


def test_events_are_read_once_they_have_passed() -> None:
    with simulated_cuda():
        before = torch.cuda.Event(enable_timing=True)
        after = torch.cuda.Event(enable_timing=True)
        before.record()
        after.record()
        with pytest.raises(RuntimeError, match="device not ready"):
            before.elapsed_time(after)
        after.synchronize()
        assert before.elapsed_time(after) > 0


# ------------------------------------------------------------------ graphs


def test_a_graph_repeats_over_the_same_memory_and_executes_nothing_before() -> None:
    with simulated_cuda() as machine:
        given = torch.zeros(2, device="cuda")
        total = torch.zeros(1, device="cuda")
        graph = captured(lambda: total.add_((given * 2).sum()))
        assert total.item() == 0
        marked = torch.zeros(2, device="cuda")
        captured(lambda: marked.__setitem__(given == 0, 5.0)).replay()  # nothing is read for it
        assert marked.tolist() == [5, 5]
        for value in (1, 10):
            given.fill_(value)
            graph.replay()
        assert total.item() == 4 + 40
    assert (machine.captures, machine.replays) == (2, 3)
    assert not machine.problems


@pytest.mark.parametrize(
    "look",
    [Tensor.item, Tensor.cpu, Tensor.nonzero, lambda t: t.tolist(), lambda t: t[t > 0]],
)
def test_the_host_may_not_look_while_capturing(look: object) -> None:
    with simulated_cuda():
        given = torch.zeros(1, device="cuda")
        with pytest.raises(RuntimeError, match="previous error during capture") as raised:
            captured(lambda: look(given))  # type: ignore[operator]
        assert "not permitted when stream is capturing" in str(raised.value.__context__)
        assert given.item() == 0  # the machine captures no more


def test_a_capture_on_another_device_is_empty_and_reported() -> None:
    with simulated_cuda() as machine:
        given = torch.zeros(1, device="cuda:1")
        captured(lambda: given.add_(1))
        assert given.item() == 1  # it was executed
    assert any("EMPTY" in line for line in machine.problems)


# ------------------------------------------------------------------ memory


def test_memory_is_counted_by_device_and_kept_until_the_cache_is_emptied() -> None:
    with simulated_cuda(memory=100 * MIB) as machine:
        kept = made(10, "cuda:1")
        made(30, "cuda:1")
        assert torch.cuda.memory_allocated(1) == 10 * MIB
        assert torch.cuda.memory_reserved(1) == 40 * MIB
        assert torch.cuda.max_memory_allocated(1) == 40 * MIB
        assert torch.cuda.mem_get_info(1) == (60 * MIB, 100 * MIB)
        assert torch.cuda.memory_reserved() == 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(1)
        assert torch.cuda.memory_reserved(1) == torch.cuda.max_memory_reserved(1) == 10 * MIB
        view = kept[: 5 * MIB]
        del kept
        assert torch.cuda.memory_allocated(1) == 10 * MIB  # a view holds all of it
        del view
        assert torch.cuda.memory_allocated(1) == 0
    assert not machine.problems


def test_memory_runs_out_at_the_limit_once_the_cache_is_emptied() -> None:
    with simulated_cuda(memory=100 * MIB):
        made(70)
        kept = made(80)  # in the place of the first, which is freed
        with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate"):
            made(30)
        assert torch.cuda.memory_allocated() == 80 * MIB
        del kept
        assert made(90).numel() == 90 * MIB


def test_a_graphs_pool_stays_reserved_while_a_graph_of_it_lives() -> None:
    with simulated_cuda() as machine:
        given = made(1)
        first = captured(lambda: given.add_((given.repeat(20) + 1)[: len(given)]))
        size = torch.cuda.memory_reserved() - MIB
        assert size >= 40 * MIB
        assert torch.cuda.memory_allocated() == MIB
        second = captured(lambda: given.add_(given.repeat(10)[: len(given)]), first.pool())
        assert torch.cuda.memory_reserved() == size + MIB  # one pool serves both
        torch.cuda.empty_cache()
        del first
        gc.collect()
        assert torch.cuda.memory_reserved() == size + MIB
        del second
        gc.collect()
        assert torch.cuda.memory_reserved() == MIB
    assert not machine.problems


def test_memory_may_run_out_inside_a_capture() -> None:
    with simulated_cuda(memory=20 * MIB) as machine:
        given = made(1)
        with pytest.raises(torch.OutOfMemoryError):
            captured(lambda: given.repeat(30))
        gc.collect()
        assert torch.cuda.memory_reserved() == MIB
        machine.devices[0].memory.refuse(1, while_capturing=True)
        assert given.repeat(2).numel() == 2 * MIB  # outside a capture it is there
        with pytest.raises(torch.OutOfMemoryError):
            captured(lambda: given.add_(given + 1))
        captured(lambda: given.add_(given + 1)).replay()
        assert given[0].item() == 1
