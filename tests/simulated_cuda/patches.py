"""`torch.cuda` as it is on the simulated machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._device import _device_constructors

from harness import kernels
from harness.kernels import flash, products, race
from harness.models import linear
from simulated_cuda import graphs
from simulated_cuda import kernels as stand_ins
from simulated_cuda.machine import (
    Machine,
    active_machine,
    pop_machine,
    push_machine,
)
from simulated_cuda.tensors import SimulatedTensor, Simulation, perform, without_modes
from simulated_cuda.timeline import Event, Stream

CAPABILITY = (9, 0)
TOO_OLD_FOR_KERNELS = (7, 5)


@contextmanager
def simulated_cuda(
    *, devices: int = 2, memory: int = 80 << 30, use_kernels: bool = True, seed: int = 0
) -> Iterator[Machine]:
    """Let torch have so many CUDA devices of so many bytes inside; yield the machine.

    Without kernels the devices are of a kind that is too old for them. Tensors of the devices must
    not be used afterwards.
    """
    machine = Machine(devices, memory, seed)
    capability = CAPABILITY if use_kernels else TOO_OLD_FOR_KERNELS
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._ensureCUDADeviceGuardSet()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    kernels.forget()
    linear.forget()
    graphs.graph.default_capture_stream = None
    _device_constructors()  # torch keeps this set of its functions: it must see the real ones
    push_machine(machine)
    patches = [
        *_patch_torch_cuda(capability),
        *_patch_torch(),
        *_patch_kernels(),
    ]
    try:
        for patch in patches:
            patch.start()
        with Simulation():
            yield machine
            machine.finish()
    finally:
        for patch in reversed(patches):
            patch.stop()
        pop_machine()
        graphs.graph.default_capture_stream = None
        kernels.forget()
        linear.forget()
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


# ------------------------------------------------------------------ torch.cuda


def _patch_torch_cuda(capability: tuple[int, int]) -> list[Any]:
    """Functions and classes of `torch.cuda`; those in Python above these stay as they are."""
    values: dict[str, Any] = {
        "CUDAGraph": graphs.CUDAGraph,
        "Event": Event,
        "Stream": Stream,
        "_exchange_device": _exchange_device,
        "_lazy_init": lambda: None,
        "_maybe_exchange_device": _exchange_device,
        "current_device": lambda: active_machine().current_index,
        "current_stream": lambda device=None: active_machine().device(device).current_stream,
        "default_stream": lambda device=None: active_machine().device(device).default_stream,
        "device_count": lambda: len(active_machine().devices),
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": _properties,
        "get_device_name": lambda device=None: _properties(device).name,
        "graph": graphs.graph,
        "graph_pool_handle": graphs.new_pool_handle,
        "is_available": lambda: True,
        "is_current_stream_capturing": _is_capturing,
        "is_initialized": lambda: True,
        "set_device": _set_device,
        "set_stream": _set_stream,
        "stream": _StreamContext,
        "synchronize": _synchronize,
        **_memory_functions(),
    }
    return [mock.patch.object(torch.cuda, name, value) for name, value in values.items()]


def _memory_functions() -> dict[str, Callable[..., Any]]:
    def read(what: str) -> Callable[..., int]:
        return lambda device=None: getattr(active_machine().device(device).memory, what)

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        memory = active_machine().device(device).memory
        return memory.limit - memory.reserved, memory.limit

    def empty_cache() -> None:
        for device in active_machine().devices:
            device.memory.empty_cache()

    return {
        "empty_cache": empty_cache,
        "max_memory_allocated": read("most_allocated"),
        "max_memory_reserved": read("most_reserved"),
        "mem_get_info": mem_get_info,
        "memory_allocated": read("allocated"),
        "memory_reserved": read("reserved"),
        "reset_peak_memory_stats": lambda device=None: (
            active_machine().device(device).memory.reset_peaks()
        ),
    }


def _exchange_device(index: int) -> int:
    """Make a device current, unless it has no number; return the one that was."""
    machine = active_machine()
    before = machine.current_index
    if index >= 0:
        machine.current_index = machine.device(index).index
    return before


def _set_device(device: Any) -> None:
    machine = active_machine()
    machine.current_index = machine.device(device).index


def _set_stream(stream: Stream | None) -> None:
    """Make a stream the current one of its device, and that device current, as torch does."""
    if stream is not None:
        stream.owner.current_stream = stream
        stream.machine.current_index = stream.owner.index


class _StreamContext:
    """Stands for `torch.cuda.stream`."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        if self._stream is None:
            return
        self._here = active_machine().current
        self._before = self._stream.owner.current_stream
        _set_stream(self._stream)

    def __exit__(self, *_: object) -> None:
        if self._stream is None:
            return
        _set_stream(self._before)
        _set_device(self._here.index)


def _synchronize(device: Any = None) -> None:
    machine = active_machine()
    for stream in machine.device(device).streams:
        machine.wait(stream.clock, "synchronize")


def _is_capturing() -> bool:
    return active_machine().current.current_stream.capture is not None


def _properties(device: Any = None) -> SimpleNamespace:
    chosen = active_machine().device(device)
    return SimpleNamespace(
        name=f"simulated GPU {chosen.index}",
        total_memory=chosen.memory.limit,
        uuid=f"00000000-0000-0000-0000-00000000000{chosen.index}",
        multi_processor_count=1,
    )


# ------------------------------------------------------------------ torch


def _patch_torch() -> list[Any]:
    """What makes tensors of the device in C++ without an operation that could be seen."""
    made_on_cpu = {name: getattr(torch, name) for name in ("tensor", "as_tensor")}

    def then_moved(name: str) -> Callable[..., Tensor]:
        def make(data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
            if device is None or torch.device(device).type != "cuda":
                return made_on_cpu[name](data, dtype=dtype, device=device, **options)
            if isinstance(data, SimulatedTensor):
                return data.to(device, dtype)
            return made_on_cpu[name](data, dtype=dtype).to(device)

        return make

    def pinned(tensor: Tensor, device: Any = None) -> Tensor:
        return active_machine().pin(tensor.clone())

    def is_pinned(tensor: Tensor, device: Any = None) -> bool:
        return active_machine().is_pinned(tensor)

    return [
        mock.patch.object(torch, "tensor", then_moved("tensor")),
        mock.patch.object(torch, "as_tensor", then_moved("as_tensor")),
        mock.patch.object(torch, "Generator", _Generator),
        mock.patch.object(Tensor, "pin_memory", pinned),
        mock.patch.object(Tensor, "is_pinned", is_pinned),
        mock.patch.object(F, "scaled_dot_product_attention", _attention()),
    ]


class _Generator(torch.Generator):
    """A generator of random numbers that draws on a device what it draws on the CPU."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")


def _attention() -> Callable[..., Tensor]:
    """Attention as one operation: in C++ it would ask the devices which kernel they have."""
    on_cpu = F.scaled_dot_product_attention

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        given = [t for t in (query, key, value, attn_mask) if t is not None]
        simulated = [t for t in given if isinstance(t, SimulatedTensor)]
        if not simulated:
            return on_cpu(query, key, value, attn_mask, **options)
        devices = {tensor.device for tensor in given}
        if len(devices) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, found {devices}")
        if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
            raise RuntimeError(
                "Expected attn_mask dtype to be bool or to match query dtype, "
                f"but got {attn_mask.dtype} and {query.dtype}"
            )
        inner = [tensor.inner for tensor in simulated]
        device = active_machine().device(simulated[0].device)
        with without_modes():
            return perform(device, lambda: on_cpu(*inner, **options), simulated, [])

    return attend


# ------------------------------------------------------------------ harness.kernels


def _patch_kernels() -> list[Any]:
    """The kernels, in their modules, where they are looked up."""
    return [
        mock.patch.object(flash, "attend", stand_ins.attend),
        mock.patch.object(race, "draw", stand_ins.draw),
        mock.patch.object(race, "measure_signals", stand_ins.measure_signals),
        mock.patch.object(products, "multiply", stand_ins.multiply),
    ]
