"""Try the kernels on a device: inputs of a few numbers, with answers that torch knows."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from harness.kernels.flash import attend
from harness.kernels.noise import DRAW, Noise
from harness.kernels.race import draw, measure_signals

CLOSE = 1e-5
TOP_K = 5
SCALE = 2.0


def find_disagreement(device: torch.device) -> str:
    """Say which kernel's answer differs from torch's; an empty string where all agree."""
    number = torch.arange(2 * 3 * 8, dtype=torch.float32, device=device)
    q_SHWd = torch.sin(number * 1.1).view(2, 1, 3, 8)
    keys_SHLd = torch.sin(number * 1.3).view(2, 1, 3, 8)
    values_SHLd = torch.sin(number * 1.7).view(2, 1, 3, 8)
    if not _attention_agrees(q_SHWd, keys_SHLd, values_SHLd):
        return "attention differs from torch's"

    logits_MV = q_SHWd.view(2, 24)  # the null branch and the text branch of one draw
    if not _draws_agree(logits_MV):
        return "draws differ from torch's"
    if not _signals_agree(logits_MV):
        return "signals differ from torch's"
    return ""


def _attention_agrees(
    q_SHWd: torch.Tensor, keys_SHLd: torch.Tensor, values_SHLd: torch.Tensor
) -> bool:
    pos_SW = torch.arange(3, device=q_SHWd.device).expand(2, 3)
    expected = F.scaled_dot_product_attention(q_SHWd, keys_SHLd, values_SHLd, is_causal=True)
    got = attend(q_SHWd, keys_SHLd, values_SHLd, pos_SW)
    return torch.allclose(got, expected, atol=CLOSE)


def _draws_agree(logits_MV: torch.Tensor) -> bool:
    device = logits_MV.device
    row_NK = torch.tensor([[0, 1]], device=device)
    scale_N = torch.full((1,), SCALE, device=device)
    key_N2 = torch.tensor([[1, 2]], device=device)
    place_N = torch.tensor([3], device=device)

    guided_NV = logits_MV[:1] + SCALE * (logits_MV[1:] - logits_MV[:1])
    kth_N1 = guided_NV.topk(TOP_K).values[:, -1:]
    probs_NV = guided_NV.masked_fill(guided_NV < kth_N1, -torch.inf).softmax(-1)
    expected_N1 = Noise(key_N2, place_N[:, None]).race(DRAW, probs_NV[:, None])

    drawn = draw(logits_MV, row_NK, scale_N, key_N2, place_N, temperature=1.0, top_k=TOP_K)
    return bool((drawn.token == expected_N1[:, 0]).all())


def _signals_agree(logits_MV: torch.Tensor) -> bool:
    text_probs_NV = logits_MV[1:].double().softmax(-1)
    expected_N = torch.special.entr(text_probs_NV).sum(-1)
    signals = measure_signals(logits_MV[:1], logits_MV[1:])
    return torch.allclose(signals.entropy, expected_N, atol=CLOSE)
