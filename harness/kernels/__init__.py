"""Kernels of our own for CUDA, written in Triton, and the decision whether a device uses them.

| module | kernels |
|---|---|
| `flash` | decode attention over the used part of the cache |
| `race` | guided draws, and the signals that probes read of branches |

Each has a portable counterpart in torch, which is used where the kernel is not. Triton is imported
when a device is first asked about that could use it. `noise` is plain torch, `trial` tests the
kernels before they are used.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

log = logging.getLogger("harness")

LEAST_CAPABILITY = (8, 0)
"""The first compute capability of CUDA devices that multiply bfloat16."""

_switched_off = ""  # why nobody is offered a kernel; see `switched_off`


@contextmanager
def switched_off(reason: str) -> Iterator[None]:
    """Offer no kernels inside, for comparisons with torch's operations.

    Samplers are made and used inside, as graphs that were captured before keep their kernels.
    """
    global _switched_off
    before = _switched_off
    _switched_off = reason
    try:
        yield
    finally:
        _switched_off = before


def attention(
    device: torch.device, dtype: torch.dtype = torch.float32
) -> Callable[..., Tensor] | None:
    """Return `flash.attend`, or None if the device uses no kernels or they do not take the type."""
    if _switched_off or why_unused(device):
        return None
    from harness.kernels.flash import TYPES, attend

    return attend if dtype in TYPES else None


def guided_draw(
    device: torch.device, vocab: int = 0, top_p: float = 1.0
) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Return `race.draw`, or None if the device uses no kernels.

    Also None for top-p and for vocabularies that are too large, which the kernel does not do.
    """
    if _switched_off or why_unused(device) or top_p < 1:
        return None
    from harness.kernels.race import MOST_TOKENS, draw

    return draw if vocab <= MOST_TOKENS else None


def confidence(device: torch.device, vocab: int = 0) -> Callable[..., tuple[Tensor, ...]] | None:
    """Return `race.measure_signals`, or None under the conditions of `guided_draw`."""
    if guided_draw(device, vocab) is None:
        return None
    from harness.kernels.race import measure_signals

    return measure_signals


@lru_cache
def why_unused(device: torch.device) -> str:
    """Say why a device uses no kernels; an empty string if it uses them.

    A device is examined once. On the CPU the kernels run under Triton's interpreter alone
    (TRITON_INTERPRET=1), which is for tests.
    """
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"{device.type} is no CUDA device"
    reason = _find_obstacle(device)
    if reason:
        log.warning("kernels are not used, torch's own operations are: %s", reason)
    return reason


def _find_obstacle(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"

    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        has = torch.cuda.get_device_capability(device)
        if has < LEAST_CAPABILITY:
            return (
                f"the device's compute capability is {has[0]}.{has[1]}, "
                f"they need {LEAST_CAPABILITY[0]}.0"
            )

    try:
        from harness.kernels.trial import find_disagreement

        return find_disagreement(device)
    except Exception as error:  # whatever compilers and drivers raise
        first_line = str(error).strip().partition("\n")[0]
        return f"they do not compile or run: {type(error).__name__}: {first_line}"
