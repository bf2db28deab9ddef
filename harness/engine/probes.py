"""Probes: signals that a method reads of the next token's distribution before the token is
drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness import kernels

Probe = Callable[[Tensor, Callable[[], Tensor]], dict[str, Tensor]]
"""(logits_RKTV, law) -> {name: [R]}: signals that a method reads with `look`; `law()` makes the law
[R, T, V].
"""


def confidence(logits_RKTV: Tensor, probs_RV: Tensor | None = None) -> dict[str, Tensor]:
    """What the text branch's distribution at temperature 1 says of itself at the frontier, float64
    [R] each.

    `entropy` over that of as many equally likely tokens, 0 to 1, and `margin`, by which the
    likeliest token leads, of `probs_RV` instead where it is given; `kl`, the divergence from the
    null branch's distribution, in nats. In float64, so that no rounding depends on how many rows
    are asked together. Ids masked with -inf count nowhere. One branch, which is text and null at
    once, has no divergence.
    """
    null_RV = logits_RKTV[:, 0, 0]
    text_RV = logits_RKTV[:, -1, 0]
    kernel = kernels.confidence(logits_RKTV.device, logits_RKTV.shape[-1])
    entropy_R, margin_R, kl_R, known_R = (kernel or _confidence)(null_RV, text_RV)
    if probs_RV is not None:
        entropy_R, margin_R = _spread(probs_RV.double())
    return {"entropy": entropy_R / known_R.log(), "margin": margin_R, "kl": kl_R}


def _confidence(null_RV: Tensor, text_RV: Tensor) -> tuple[Tensor, ...]:
    """Entropy, margin and divergence, as the kernel has them, and the number of tokens that are not
    masked.
    """
    null_RV = null_RV.double().log_softmax(-1)
    text_RV = text_RV.double().log_softmax(-1)
    probs_RV = text_RV.exp()
    masked_RV = text_RV.isneginf()
    kl_R = torch.where(masked_RV, 0.0, probs_RV * (text_RV - null_RV)).sum(-1)
    return *_spread(probs_RV), kl_R, (~masked_RV).sum(-1).double()


def _spread(probs_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy in nats, and by how much the likeliest token leads."""
    first_R, second_R = probs_RV.topk(2).values.unbind(-1)
    return torch.special.entr(probs_RV).sum(-1), first_R - second_R


def entropy(_logits_RKTV: Tensor, probs: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Shannon entropy of the next token's law, in nats."""
    return {"entropy": torch.special.entr(probs()[:, 0]).sum(-1)}
