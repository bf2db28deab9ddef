"""Kernels of our own for CUDA, written in Triton, and the decision whether a device uses them.

| module | kernels |
|---|---|
| `flash` | decode attention over the used part of the cache |
| `race` | guided draws, and the signals that probes read of branches |
| `products` | matrix products that treat all rows alike |

Each has a portable counterpart in torch, which is used where the kernel is not. Whoever needs a
kernel asks for it before the first image, with what it is to compute (`Use`): the kernel must serve
that, and has then computed it once on the device, with torch's answer (`trial`). So what a compiler
or a device refuses is found before a run begins, and the whole run takes torch's operations
instead. Triton is imported when a device is first asked about that could use it. `noise` is plain
torch.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger("harness")

LEAST_CAPABILITY = (8, 0)
"""The first compute capability of CUDA devices that multiply bfloat16."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs the kernels on the CPU, which is for tests."""

_switched_off = ""  # why nobody is offered a kernel; see `switched_off`


class Use(NamedTuple):
    """What a kernel is to be used for: `size` numbers of a type at a time.

    They are the numbers of a head for "attention", the vocabulary for "draws" and "signals", and
    the numbers that each result of "products" sums up. The others tell how tokens are drawn.
    """

    kernel: Literal["attention", "draws", "signals", "products"]
    dtype: torch.dtype
    size: int
    greedy: bool = False
    top_k: int = 0
    top_p: float = 1.0


_reasons: dict[tuple[torch.device, Use | None], str] = {}
"""Why a device uses no kernels, or none for a use, of all that was examined."""


# ------------------------------------------------------------------ what a device is offered


def attention(
    device: torch.device, dtype: torch.dtype, head_width: int
) -> Callable[..., Tensor] | None:
    """Return `flash.attend`, or None if the device does not use it for such heads."""
    if why_unused(device, Use("attention", dtype, head_width)):
        return None
    from harness.kernels.flash import attend

    return attend


def guided_draw(device: torch.device, use: Use) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Return `race.draw`, or None if the device does not use it for such draws."""
    if why_unused(device, use):
        return None
    from harness.kernels.race import draw

    return draw


def confidence(
    device: torch.device, dtype: torch.dtype, vocab: int
) -> Callable[..., tuple[Tensor, ...]] | None:
    """Return `race.measure_signals`, or None if the device does not use it for such logits."""
    if why_unused(device, Use("signals", dtype, vocab)):
        return None
    from harness.kernels.race import measure_signals

    return measure_signals


def even_product(
    device: torch.device, dtype: torch.dtype, inner: int
) -> Callable[..., Tensor] | None:
    """Return `products.multiply`, or None if the device does not use it for such products."""
    if why_unused(device, Use("products", dtype, inner)):
        return None
    from harness.kernels.products import multiply

    return multiply


# ------------------------------------------------------------------ why it is not


def why_unused(device: torch.device, use: Use | None = None) -> str:
    """Say why a device uses no kernels, or none for a use; an empty string if it does.

    A device and a use are examined once. On the CPU the kernels run under the interpreter alone.
    """
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"{device.type} is no CUDA device"
    if _switched_off:
        return _switched_off
    if (device, None) not in _reasons:
        _reasons[device, None] = _examine_device(device)
    reason = _reasons[device, None]
    if reason or use is None:
        return reason
    if (device, use) not in _reasons:
        _reasons[device, use] = _examine_use(device, use)
    return _reasons[device, use]


def describe(device: torch.device, uses: Iterable[Use]) -> str:
    """Say for records what a device uses: "Triton", or what is left to torch, and why.

    Uses that nobody has asked about yet are left out.
    """
    if reason := why_unused(device):
        return reason
    parts = ["Triton"]
    for use in uses:
        if obstacle := _reasons.get((device, use)):
            parts.append(f"torch for {use.kernel} ({obstacle})")
    return "; ".join(parts)


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


def forget() -> None:
    """Examine devices and uses anew when they are asked about next."""
    _reasons.clear()


def _examine_device(device: torch.device) -> str:
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
    except torch.OutOfMemoryError:
        raise  # which says nothing of the kernels
    except Exception as error:  # whatever compilers and drivers raise
        return _shorten(error)


def _examine_use(device: torch.device, use: Use) -> str:
    try:
        from harness.kernels.trial import try_use

        reason = try_use(device, use)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton's OutOfResources and CompilationError are no RuntimeErrors
        reason = _shorten(error)
    if reason:
        log.warning("torch computes %s: %s", use.kernel, reason)
    return reason


def _shorten(error: Exception) -> str:
    # A CompilationError begins with the source; what is wrong with it is an attribute.
    message = getattr(error, "error_message", None) or str(error)
    first_line = message.strip().partition("\n")[0][:200]
    return f"they do not compile or run: {type(error).__name__}: {first_line}"
