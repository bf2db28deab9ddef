"""Kernels of our own for CUDA, written in Triton, and whether this device can use them.

Each has a portable form elsewhere, in torch, which serves where these do not; `missing` says why
they do not. Triton is imported when a device is first asked about that could use them.

flash  decode attention over the used part of the cache      race  guided draws, and the signals of branches
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

log = logging.getLogger("harness")

LEAST_CAPABILITY = (8, 0)
"""Of a CUDA device: the first that multiplies bfloat16."""


def attention(
    device: torch.device, dtype: torch.dtype = torch.float32
) -> Callable[..., Tensor] | None:
    """`flash.attend`, or None where kernels are not used or do not compute in that type."""
    if missing(device):
        return None
    from harness.kernels.flash import TYPES, attend

    return attend if dtype in TYPES else None


def guided_draw(
    device: torch.device, vocab: int = 0, top_p: float = 1.0
) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """`race.draw`, or None where kernels are not used or a law is asked for that they do not
    make.
    """
    if missing(device) or top_p < 1:
        return None
    from harness.kernels.race import MOST_TOKENS, draw

    return draw if vocab <= MOST_TOKENS else None


def confidence(device: torch.device, vocab: int = 0) -> Callable[..., tuple[Tensor, ...]] | None:
    """`race.signals`, or None as `guided_draw`."""
    if guided_draw(device, vocab) is None:
        return None
    from harness.kernels.race import signals

    return signals


@lru_cache
def missing(device: torch.device) -> str:
    """Why kernels are not used on a device, in words; empty where they are. What is found out is
    found out once.

    On the CPU they run under Triton's interpreter (TRITON_INTERPRET=1) alone, which is for tests.
    """
    if device.type != "cuda" and not (
        device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    ):
        return f"{device.type} is no CUDA device"
    reason = _unfit(device)
    if reason:
        log.warning("kernels are not used, torch's own operations are: %s", reason)
    return reason


def _unfit(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        has = torch.cuda.get_device_capability(device)
        if has < LEAST_CAPABILITY:
            return f"the device's compute capability is {has[0]}.{has[1]}, they need {LEAST_CAPABILITY[0]}.0"
    try:
        from harness.kernels.trial import disagreement

        return disagreement(device)
    except Exception as error:  # whatever compilers and drivers raise
        return f"they do not compile or run: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
