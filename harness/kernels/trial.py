"""Try kernels on a device: numbers of a few rows, with answers that torch knows.

Shapes: R rows, N outer width, K inner width of a product; the others as in `flash` and `race`.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.kernels import Use, flash, race
from harness.kernels import products as even
from harness.kernels.noise import DRAW, Noise
from harness.kernels.rows import find_row_dependence

CLOSE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
TOP_K = 5
SCALE = 2.0


def find_disagreement(device: torch.device) -> str:
    """Say which kernel's answer differs from torch's; an empty string where all agree."""
    for use in (
        Use("attention", torch.float32, 8),
        Use("draws", torch.float32, 24, top_k=TOP_K),
        Use("signals", torch.float32, 24),
    ):
        if reason := try_use(device, use):
            return reason
    return ""


def try_use(device: torch.device, use: Use) -> str:
    """Say why a kernel does not serve a use, or how its answer differs; an empty string if it does.

    Every variant that the use needs is compiled and run, on that device: Triton launches on the
    current one, whatever its tensors are on.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if use.kernel == "attention":
            return flash.why_not(use.dtype, use.size) or _try_attention(device, use)
        if use.kernel == "products":
            return even.why_not(use.dtype) or _try_products(device, use)
        reason = race.why_not(use.dtype, use.size, use.top_p)
        if reason:
            return reason
        return _try_draws(device, use) if use.kernel == "draws" else _try_signals(device, use)


# ------------------------------------------------------------------ kernels against torch


def _waves(shape: tuple[int, ...], pitch: float, device: torch.device) -> Tensor:
    """Numbers between -1 and 1 without a generator, float32."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float32, device=device) * pitch).view(shape)


def _try_attention(device: torch.device, use: Use) -> str:
    """Attend over more than one part of a cache, with and without bias and mask."""
    slots, heads, width, length = 2, 2, 3, flash.KEYS * flash.BLOCKS + 16
    q_SHWd = _waves((slots, heads, width, use.size), 1.1, device).to(use.dtype)
    stored = _waves((2, slots, heads, length + 1, use.size), 1.3, device).to(use.dtype)
    keys_SHLd, values_SHLd = stored[..., :length, :]
    pos_SW = torch.tensor([[0, 1, 2], [length - 3, length - 2, length - 1]], device=device)
    column_L = torch.arange(length, device=device)
    bias_SL = _waves((slots, length), 1.7, device).to(use.dtype)
    mask_SWL = (column_L % 3 != 1) | (column_L == pos_SW.unsqueeze(-1))

    for bias in (None, bias_SL):
        for mask in (None, mask_SWL):
            sees_SWL = column_L <= pos_SW.unsqueeze(-1)
            if mask is not None:
                sees_SWL = sees_SWL & mask
            added_SWL = torch.zeros(sees_SWL.shape, dtype=torch.float64, device=device)
            if bias is not None:
                is_own_SWL = column_L == pos_SW.unsqueeze(-1)
                added_SWL = bias.double().unsqueeze(1).expand_as(added_SWL)
                added_SWL = added_SWL.masked_fill(is_own_SWL, 0.0)
            added_SWL = added_SWL.masked_fill(~sees_SWL, -torch.inf)
            expected = F.scaled_dot_product_attention(
                q_SHWd.double(),
                keys_SHLd.double(),
                values_SHLd.double(),
                attn_mask=added_SWL.unsqueeze(1),
            )
            got = flash.attend(q_SHWd, keys_SHLd, values_SHLd, pos_SW, bias, mask)
            if not torch.allclose(got.double(), expected, rtol=0, atol=CLOSE[use.dtype]):
                return "attention differs from torch's"
    return ""


def _try_draws(device: torch.device, use: Use) -> str:
    """Draw from one branch and from two."""
    logits_MV = 3 * _waves((2, use.size), 1.1, device)
    scale_N = torch.full((1,), SCALE, device=device)
    key_N2 = torch.tensor([[1, 2]], device=device)
    place_N = torch.tensor([3], device=device)
    guided_NV = logits_MV[:1] + SCALE * (logits_MV[1:] - logits_MV[:1])

    for rows, expected_NV in (([[0]], logits_MV[:1]), ([[0, 1]], guided_NV)):
        if 0 < use.top_k < use.size:
            kth_N1 = expected_NV.topk(use.top_k).values[:, -1:]
            expected_NV = expected_NV.masked_fill(expected_NV < kth_N1, -torch.inf)
        probs_NV = expected_NV.softmax(-1)
        expected_N1 = Noise(key_N2, place_N[:, None]).race(DRAW, probs_NV[:, None])
        if use.greedy:
            expected_N1 = expected_NV.argmax(-1, keepdim=True)
        drawn = race.draw(
            logits_MV,
            torch.tensor(rows, device=device),
            scale_N,
            key_N2,
            place_N,
            temperature=0.0 if use.greedy else 1.0,
            top_k=use.top_k,
        )
        if not bool((drawn.token == expected_N1[:, 0]).all()):
            return "draws differ from torch's"
    return ""


def _try_signals(device: torch.device, use: Use) -> str:
    logits_MV = 3 * _waves((2, use.size), 1.1, device)
    text_probs_NV = logits_MV[1:].double().softmax(-1)
    expected_N = torch.special.entr(text_probs_NV).sum(-1)
    signals = race.measure_signals(logits_MV[:1], logits_MV[1:])
    agrees = torch.allclose(signals.entropy, expected_N, atol=CLOSE[torch.float32])
    return "" if agrees else "signals differ from torch's"


def _try_products(device: torch.device, use: Use) -> str:
    """Multiply rows of every class, with the inner axis whole and in parts, with and without bias.

    Then see that the kernel itself treats rows alike.
    """
    outer = 80
    bias_N = _waves((outer,), 2.3, device).to(use.dtype)
    for inner in (use.size, min(use.size, 64)):
        weight_NK = _waves((outer, inner), 1.3, device).to(use.dtype)
        for rows in (3, even.FEW + 1, even.SOME + 1):
            x_RK = _waves((rows, inner), 1.1, device).to(use.dtype)
            for bias in (None, bias_N):
                expected = F.linear(
                    x_RK.double(), weight_NK.double(), None if bias is None else bias.double()
                )
                got = even.multiply(x_RK, weight_NK, bias)
                close = CLOSE[use.dtype] * expected.abs().max()
                if not bool(((got.double() - expected).abs() <= close).all()):
                    return "products differ from torch's"
            if find_row_dependence(even.multiply, rows, weight_NK):
                return "products do not treat all rows alike"
    return ""
