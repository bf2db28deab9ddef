"""A first try of the kernels on a device: inputs of a few numbers, with answers that torch
knows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from harness.kernels.flash import attend
from harness.kernels.noise import DRAW, Noise
from harness.kernels.race import draw, signals

CLOSE = 1e-5
TOP_K = 5


def disagreement(device: torch.device) -> str:
    """Where the kernels' answers differ from torch's, in words; empty where they agree."""
    number = torch.arange(2 * 3 * 8, dtype=torch.float32, device=device)
    q_SHWd, keys_SHLd, values_SHLd = (
        torch.sin(number * step).view(2, 1, 3, 8) for step in (1.1, 1.3, 1.7)
    )
    pos_SW = torch.arange(3, device=device).expand(2, 3)
    expected = F.scaled_dot_product_attention(q_SHWd, keys_SHLd, values_SHLd, is_causal=True)
    if not torch.allclose(attend(q_SHWd, keys_SHLd, values_SHLd, pos_SW), expected, atol=CLOSE):
        return "attention differs from torch's"

    logits_MV = q_SHWd.view(2, 24)
    key_N2 = torch.tensor([[1, 2]], device=device)
    row_NK = torch.tensor([[0, 1]], device=device)
    place_N = torch.tensor([3], device=device)
    scale_N = torch.full((1,), 2.0, device=device)
    guided_NV = logits_MV[:1] + 2.0 * (logits_MV[1:] - logits_MV[:1])
    kept_NV = guided_NV.masked_fill(guided_NV < guided_NV.topk(TOP_K).values[:, -1:], -torch.inf)
    probs_NV = kept_NV.softmax(-1)
    token_N1 = Noise(key_N2, place_N[:, None]).race(DRAW, probs_NV[:, None])
    drawn = draw(logits_MV, row_NK, scale_N, key_N2, place_N, temperature=1.0, top_k=TOP_K)
    if not (drawn.token == token_N1[:, 0]).all():
        return "draws differ from torch's"
    entropy_N = torch.special.entr(logits_MV[1:].double().softmax(-1)).sum(-1)
    if not torch.allclose(signals(logits_MV[:1], logits_MV[1:]).entropy, entropy_N, atol=CLOSE):
        return "signals differ from torch's"
    return ""
