"""Tensors of the device, and the operations on them: computed on the CPU under CUDA's rules.

Every operation on such a tensor, or that makes one, passes `dispatch`. It is launched on the
current stream of the tensors' device, and is recorded instead where that stream is capturing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from simulated_cuda.machine import Device, active_machine, project_line
from simulated_cuda.memory import Block
from simulated_cuda.timeline import LateCopy, Stream

POISON = 77
"""What pinned memory shows while a copy to it is underway."""

READS_ON_HOST = {
    "aten::_local_scalar_dense",
    "aten::_unique",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::repeat_interleave",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
"""Operations whose result, or the size of it, the host waits for."""

INDEXING = {
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
}
"""Operations that also take indices on the CPU, and copy them."""

TAKES_NO_CPU_SCALAR = {
    "aten::bmm",
    "aten::cat",
    "aten::embedding",
    "aten::gather",
    "aten::index_copy",
    "aten::index_copy_",
    "aten::index_select",
    "aten::mm",
    "aten::scatter",
    "aten::scatter_",
    "aten::scatter_add",
    "aten::stack",
}
"""Operations for which even a number in a CPU tensor is on the wrong device."""


class SimulatedTensor(Tensor):
    """A tensor of the device: `inner` has its numbers, `block` is the memory that it lies in."""

    inner: Tensor
    block: Block

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, block: Block, device: Device) -> SimulatedTensor:
        made: SimulatedTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device.torch_device,
            requires_grad=False,
        )
        made.inner = inner
        made.block = block
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with _disable_current_modes():
            return dispatch(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy.")

    __array__ = numpy

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_with_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_with_tensors(index), value)

    def __repr__(self, *_args: Any, **_kwargs: Any) -> str:
        return f"SimulatedTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = self.detach().clone()
        if getattr(self, "_is_param", False):
            made._is_param = True
        return made


class Simulation(TorchDispatchMode):
    """Sends all operations through `dispatch`, those that make the first tensor too."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to load the compiler takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def _with_tensors(index: Any) -> Any:
    """Lists in an index become tensors, as torch makes of them."""
    if isinstance(index, tuple):
        return tuple(_with_tensors(part) for part in index)
    if not isinstance(index, list):
        return index
    return torch.tensor(index) if index else torch.zeros(0, dtype=torch.long)


def without_modes() -> AbstractContextManager[Any]:
    """Compute inside as if nothing were simulated."""
    return _disable_current_modes()


# ------------------------------------------------------------------ operations


@dataclass(frozen=True, slots=True)
class Signature:
    """What an operation's schema says: which arguments it writes, and whether it only views."""

    name: str
    written_positions: tuple[int, ...]
    written_names: tuple[str, ...]
    is_view: bool

    def written(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[SimulatedTensor]:
        """List the tensors of the device that a call writes to."""
        given = [args[i] for i in self.written_positions if i < len(args)]
        given += [kwargs[name] for name in self.written_names if name in kwargs]
        return [tensor for tensor in given if isinstance(tensor, SimulatedTensor)]


@cache
def signature_of(func: Any) -> Signature:
    """Read the schema of an operation."""
    schema = func._schema
    written = []
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append((i, argument.name))
    is_view = any(
        result.alias_info is not None and not result.alias_info.is_write
        for result in schema.returns
    )
    return Signature(
        schema.name,
        tuple(i for i, _ in written),
        tuple(name for _, name in written),
        is_view,
    )


def dispatch(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Carry out an operation on whichever device it is for."""
    tensors = list_tensors((args, kwargs))
    simulated = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
    target = kwargs.get("device")
    is_for_cuda = target is not None and torch.device(target).type == "cuda"
    if not simulated and not is_for_cuda:
        return _run_on_host(func, args, kwargs)

    signature = signature_of(func)
    if signature.name == "aten::_to_copy":
        return _convert(func, args[0], kwargs)
    if signature.name == "aten::copy_":
        return _copy_into(func, args, kwargs)
    if target is not None and not is_for_cuda:  # new_zeros(..., device="cpu") of a CUDA tensor
        return _run_on_host(func, inner_of(args), inner_of(kwargs))

    device = _device_of(simulated, target if is_for_cuda else None)
    host_tensors = [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor)]
    _expect_one_device(signature.name, args, host_tensors, device, bool(simulated))
    if signature.name in READS_ON_HOST:
        wait_for(device, signature.name)

    inner_args = inner_of(args)
    inner_kwargs = inner_of(kwargs)
    inner_kwargs.pop("pin_memory", None)
    if "device" in kwargs:
        inner_kwargs["device"] = "cpu"
    return perform(
        device,
        lambda: func(*inner_args, **inner_kwargs),
        simulated,
        signature.written(args, kwargs),
        is_view=signature.is_view,
    )


def _run_on_host(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Carry out an operation on CPU tensors; there is pinned memory among them."""
    if kwargs.get("pin_memory"):
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        return active_machine().pin(func(*args, **kwargs))
    return func(*args, **kwargs)


def list_tensors(tree: Any) -> list[Tensor]:
    """List the tensors among arguments, or in sequences and dictionaries of them."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    found = []
    for part in tree:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, (list, tuple, dict)):
            found += list_tensors(part)
    return found


def map_tensors(change: Callable[[Any], Any], tree: Any) -> Any:
    """Change the tensors among arguments, or in sequences and dictionaries of them."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        parts = [
            map_tensors(change, part) if isinstance(part, (Tensor, list, tuple)) else part
            for part in tree
        ]
        if isinstance(tree, list):
            return parts
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(tree, dict):
        return {name: map_tensors(change, part) for name, part in tree.items()}
    return tree


def inner_of(tree: Any) -> Any:
    """Put their numbers in the place of tensors of the device."""
    return map_tensors(_inner_of_one, tree)


def _inner_of_one(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, SimulatedTensor) else tensor


def _device_of(simulated: Sequence[SimulatedTensor], target: Any) -> Device:
    """Return the device of an operation: that of its tensors, or the one that it names."""
    if not simulated:
        return active_machine().device(target)
    device = simulated[0].block.memory.device
    for tensor in simulated[1:]:
        if tensor.block.memory.device is not device:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{device.torch_device} and {tensor.device}!"
            )
    return device


def _expect_one_device(
    name: str,
    args: Sequence[Any],
    host_tensors: Sequence[Tensor],
    device: Device,
    has_simulated: bool,
) -> None:
    """Raise RuntimeError for CPU tensors where CUDA takes none."""
    if name in INDEXING:
        _expect_index(args, device)
        return
    for tensor in host_tensors:
        # Without tensors of the device, the operation only asks for a shape: empty_like, new_full.
        if has_simulated and (tensor.dim() > 0 or name in TAKES_NO_CPU_SCALAR):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{device.torch_device} and cpu! ({name})"
            )


def _expect_index(args: Sequence[Any], device: Device) -> None:
    """Check what an indexing takes from the CPU, and let the host wait where it must."""
    machine = active_machine()
    if not isinstance(args[0], SimulatedTensor):
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
        )
    indices = [index for index in args[1] if index is not None]
    if _is_fill(args, indices):
        return
    for index in indices:
        if index.dtype in (torch.bool, torch.uint8):
            wait_for(device, "an index of booleans")
        if not isinstance(index, SimulatedTensor):
            machine.expect_no_capture("an index on the CPU")
    if len(args) > 2 and not isinstance(args[2], SimulatedTensor):
        if args[2].dim() > 0:
            raise RuntimeError("Expected all tensors to be on the same device (values on the CPU)")
        machine.expect_no_capture("a value on the CPU")


def _is_fill(args: Sequence[Any], indices: Sequence[Tensor]) -> bool:
    """Tell whether an assignment fills what a mask marks with one number, for which none waits."""
    is_assignment = len(args) > 2 and args[2].numel() == 1
    return is_assignment and len(indices) == 1 and indices[0].dtype == torch.bool


def wait_for(device: Device, what: str) -> None:
    """Let the host wait for the current stream of a device."""
    active_machine().wait(device.current_stream.clock, what)


def perform(
    device: Device,
    run: Callable[[], Any],
    used: Sequence[SimulatedTensor],
    written: Sequence[SimulatedTensor],
    *,
    is_view: bool = False,
) -> Any:
    """Launch `run`, which works on inner tensors, and wrap what it makes; or record it."""
    stream = device.current_stream
    capture = stream.capture
    if capture is not None and not is_view:
        capture.note_use(used, written)
    made = run()
    if capture is None and not is_view:
        touch(stream, [tensor.block for tensor in used], [tensor.block for tensor in written])

    known = {id(tensor.inner): tensor for tensor in used}
    fresh: list[SimulatedTensor] = []

    def wrap(inner: Tensor) -> SimulatedTensor:
        if id(inner) in known:
            return known[id(inner)]
        fresh.append(wrap_inner(inner, device))
        return fresh[-1]

    result = map_tensors(wrap, made)
    if is_view:
        return result
    if capture is not None:
        capture.record(run, [tensor.inner for tensor in fresh], [t.block for t in fresh])
    else:
        for tensor in fresh:
            tensor.block.write = (stream.id, stream.launches)
    return result


def wrap_inner(inner: Tensor, device: Device) -> SimulatedTensor:
    """Make a tensor of the device of numbers on the CPU; new memory is entered in its books."""
    storage = inner.untyped_storage()
    block = device.memory.blocks.get(storage._cdata)
    if block is None:
        block = device.memory.allocate(storage, device.current_stream)
    return SimulatedTensor(inner, block, device)


def touch(stream: Stream, read: Sequence[Block], written: Sequence[Block]) -> None:
    """Launch work that reads and writes memory; report what it is not ordered behind."""
    number = stream.launch()
    for block in read:
        if block.write is not None and not _is_behind(stream, block.write):
            stream.machine.report("RACE", f"stream {stream.id} reads what {block.write[0]} writes")
        block.reads[stream.id] = number
    for block in written:
        for use in block.uses:
            if not _is_behind(stream, use):
                stream.machine.report("RACE", f"stream {stream.id} writes what {use[0]} uses")
        block.write = (stream.id, number)


def _is_behind(stream: Stream, use: tuple[int, int]) -> bool:
    return use[0] == stream.id or stream.clock.knows(*use)


# ------------------------------------------------------------------ copies


def _convert(func: Any, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Carry out `to`: another type, another device, or both."""
    machine = active_machine()
    is_quick = kwargs.get("non_blocking", False)
    rest = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory", "non_blocking")}
    target = kwargs.get("device")
    to_cuda = target is None or torch.device(target).type == "cuda"

    if isinstance(source, SimulatedTensor):
        here = _device_of([source], None)
        there = here if target is None else machine.device(target) if to_cuda else None
        given = source.inner
        if there is here:
            return perform(here, lambda: func(given, **rest), [source], [])
        machine.expect_no_capture(f"copy from {source.device} to {target}")
        touch(here.current_stream, [source.block], [])
        made = _apart(func(given, **rest), given)
        if there is not None:
            return _arrive_from_peer(made, here, there)
        if is_quick:
            machine.report("LATE", "to('cpu', non_blocking=True) is read before it is there")
        wait_for(here, "copy to the CPU")
        return made

    there = machine.device(target)
    machine.expect_no_capture(f"copy from the CPU to {target}")
    arrived = wrap_inner(_apart(func(source, **rest), source), there)
    _send(there, arrived, source, is_quick)
    return arrived


def _copy_into(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Carry out `copy_`."""
    machine = active_machine()
    target, source = args[0], args[1]
    is_quick = bool(args[2]) if len(args) > 2 else kwargs.get("non_blocking", False)
    if isinstance(target, SimulatedTensor) and isinstance(source, SimulatedTensor):
        into, given = target.inner, source.inner
        if target.device == source.device:
            there = _device_of([target], None)
            perform(there, lambda: func(into, given), [target, source], [target])
            return target
    machine.expect_no_capture(f"copy from {source.device} to {target.device}")

    if isinstance(target, SimulatedTensor):
        there = _device_of([target], None)
        if isinstance(source, SimulatedTensor):
            here = _device_of([source], None)
            touch(here.current_stream, [source.block], [])
            target.inner.copy_(source.inner)
            _meet(here, there)
            touch(there.current_stream, [], [target.block])
        else:
            target.inner.copy_(source)
            _send(there, target, source, is_quick)
        return target

    here = _device_of([source], None)
    touch(here.current_stream, [source.block], [])
    if is_quick and machine.is_pinned(target):
        _fetch_late(here.current_stream, target, source.inner.clone())
    else:
        target.copy_(source.inner)
        wait_for(here, "copy to the CPU")
    return target


def _apart(made: Tensor, source: Tensor) -> Tensor:
    """Return numbers that share no memory with the source."""
    return made.clone() if made.data_ptr() == source.data_ptr() else made


def _meet(one: Device, other: Device) -> None:
    """Let the current streams of two devices wait for each other, as a copy between them does."""
    one.current_stream.wait_stream(other.current_stream)
    other.current_stream.wait_stream(one.current_stream)


def _arrive_from_peer(made: Tensor, here: Device, there: Device) -> SimulatedTensor:
    arrived = wrap_inner(made, there)
    _meet(here, there)
    touch(there.current_stream, [], [arrived.block])
    return arrived


def _send(there: Device, arrived: SimulatedTensor, source: Tensor, is_quick: bool) -> None:
    """Enqueue a copy to the device; one from pinned memory is late, all others have left it."""
    machine = active_machine()
    stream = there.current_stream
    touch(stream, [], [arrived.block])
    if not is_quick:
        wait_for(there, "copy to the device")
    elif machine.is_pinned(source):
        sent = source.clone()
        where = project_line()

        def expect_unchanged() -> None:
            with without_modes():
                is_same = torch.equal(source, sent)
            if not is_same:
                machine.report("REFILLED", "pinned memory changed before its copy was over", where)

        machine.late.append(LateCopy(stream.id, stream.launches, expect_unchanged))


def _fetch_late(stream: Stream, target: Tensor, value: Tensor) -> None:
    """Enqueue a copy to pinned memory, which shows nonsense until it is surely over."""
    target.fill_(POISON)

    def arrive() -> None:
        with without_modes():
            target.copy_(value)

    stream.machine.late.append(LateCopy(stream.id, stream.launches, arrive))
