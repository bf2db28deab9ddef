"""Count what a device is given to do: the kernels that some work launches.

At a few rows a decode step is bound by launches, not by bytes: each costs about two microseconds
even inside a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
"""Operators of torch that launch nothing, besides views."""


def count_launches(work: Callable[[], object], device: torch.device) -> int:
    """Count the kernels, copies and fills of some work, which is done once.

    On CUDA they are those that the profiler sees, a replayed graph's included. Elsewhere they are
    the operators that torch dispatches, without views and allocations: what a GPU would launch at
    least, were it given the same operators.
    """
    if device.type == "cuda":
        return _count_on_cuda(work, device)
    with _OperatorCount() as counted:
        work()
    return counted.count


def _count_on_cuda(work: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize(device)
    return sum(event.device_type == DeviceType.CUDA for event in profiled.events())


class _OperatorCount(TorchDispatchMode):
    """Counts dispatched operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if not _launches_nothing(func):
            self.count += 1
        return func(*args, **(kwargs or {}))


def _launches_nothing(func: Any) -> bool:
    """Tell whether an operator only allocates, asks of types, or returns a view of its input."""
    name = func.overloadpacket.__name__
    return func.is_view or name in ALLOCATIONS or name in ("_unsafe_view", "promote_types")
