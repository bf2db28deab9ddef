"""Stand-ins of the kernels of `harness.kernels`: the same results, by torch on the CPU.

A launch goes to the current stream of the current device, whatever device its tensors are on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.draw import draw_one
from harness.engine.guidance import Sampling, cfg, unguided
from harness.engine.probes import measure_confidence
from harness.kernels import flash, products, race
from simulated_cuda.machine import active_machine
from simulated_cuda.tensors import (
    SimulatedTensor,
    inner_of,
    list_tensors,
    perform,
    without_modes,
)


def launch(compute: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run a kernel of which `compute` knows the result, on the current device."""
    tensors = list_tensors((args, kwargs))
    simulated = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
    if not simulated:
        return compute(*args, **kwargs)
    if len(simulated) < len(tensors):
        raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
    machine = active_machine()
    device = machine.current
    for tensor in simulated:
        if tensor.device != device.torch_device:
            machine.fail(
                "an illegal memory access was encountered (a kernel launched on "
                f"{device.torch_device} was given a tensor on {tensor.device})"
            )
    inner_args, inner_kwargs = inner_of((args, kwargs))
    with without_modes():
        return perform(device, lambda: compute(*inner_args, **inner_kwargs), simulated, [])


def attend(*args: Any, **kwargs: Any) -> Any:
    """Stand for `flash.attend`."""
    return launch(_attend, args, kwargs)


def draw(*args: Any, **kwargs: Any) -> Any:
    """Stand for `race.draw`."""
    return launch(_draw, args, kwargs)


def measure_signals(*args: Any, **kwargs: Any) -> Any:
    """Stand for `race.measure_signals`."""
    return launch(_measure_signals, args, kwargs)


def multiply(*args: Any, **kwargs: Any) -> Any:
    """Stand for `products.multiply`."""
    return launch(_multiply, args, kwargs)


def _attend(
    q_SHWd: Tensor,
    keys_SHLd: Tensor,
    values_SHLd: Tensor,
    pos_SW: Tensor,
    bias_SL: Tensor | None = None,
    seen_SWL: Tensor | None = None,
) -> Tensor:
    """Attend to what each query sees; the column at a query's own place has no bias."""
    _expect(flash.why_not(q_SHWd.dtype, q_SHWd.shape[-1]))
    length = keys_SHLd.shape[2]
    column_L = torch.arange(length)
    sees_SWL = column_L <= pos_SW.unsqueeze(-1)
    if seen_SWL is not None:
        sees_SWL = sees_SWL & seen_SWL
    scale = q_SHWd.shape[-1] ** -0.5
    score_SHWL = q_SHWd.float() @ keys_SHLd.float().transpose(2, 3) * scale
    if bias_SL is not None:
        is_self_SWL = column_L == pos_SW.unsqueeze(-1)
        bias_SWL = bias_SL.float().unsqueeze(1).expand(sees_SWL.shape)
        score_SHWL = score_SHWL + bias_SWL.masked_fill(is_self_SWL, 0.0).unsqueeze(1)
    weight_SHWL = score_SHWL.masked_fill(~sees_SWL.unsqueeze(1), -torch.inf).softmax(-1)
    out_SHWd = weight_SHWL.nan_to_num(0.0) @ values_SHLd.float()
    is_real_SHWd = (pos_SW < length)[:, None, :, None]
    return torch.where(is_real_SHWd, out_SHWd, 0.0).to(q_SHWd.dtype)


def _draw(
    logits_MV: Tensor,
    row_NK: Tensor,
    scale_N: Tensor,
    key_N2: Tensor,
    place_N: Tensor,
    *,
    temperature: float,
    top_k: int,
) -> race.Drawn:
    """Draw as the engine does without kernels."""
    _expect(race.why_not(logits_MV.dtype, logits_MV.shape[1]))
    guide = cfg if row_NK.shape[1] == 2 else unguided
    sampling = Sampling(temperature=temperature, top_k=top_k)
    return race.Drawn(*draw_one(guide, sampling, logits_MV, row_NK, scale_N, key_N2, place_N))


def _measure_signals(null_NV: Tensor, text_NV: Tensor) -> race.Signals:
    """Measure as the engine does without kernels."""
    _expect(race.why_not(text_NV.dtype, text_NV.shape[1]))
    return race.Signals(*measure_confidence(null_NV, text_NV))


def _multiply(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Multiply each row on its own, so that all are treated alike."""
    _expect(products.why_not(x.dtype))
    rows = [F.linear(x_1K, weight_NK, bias_N) for x_1K in x.reshape(-1, x.shape[-1]).split(1)]
    shape = (*x.shape[:-1], len(weight_NK))
    return torch.cat(rows).view(shape) if rows else x.new_empty(shape)


def _expect(obstacle: str) -> None:
    """Raise ValueError if there is an obstacle, as the kernels do."""
    if obstacle:
        raise ValueError(obstacle)
