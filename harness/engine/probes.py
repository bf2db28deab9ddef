"""Read signals of the next token's distribution before the token is drawn.

Shapes: R canvases, K branches (the null branch first, the text branch last), T places, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness import kernels

Probe = Callable[[Tensor, Callable[[], Tensor]], dict[str, Tensor]]
"""(logits_RKTV, make_probs) -> {name: [R]}: compute the signals that a method reads with `look`.

`make_probs()` gives the distributions [R, T, V] that the next tokens are drawn from, guided and
warped; a probe that reads the logits alone does not call it.
"""


def confidence(logits_RKTV: Tensor, probs_RV: Tensor | None = None) -> dict[str, Tensor]:
    """Measure how sure the text branch is of the next token, at temperature 1; float64 [R] each.

    `entropy` is divided by that of as many equally likely tokens, so it lies in 0 to 1; `margin` is
    the probability by which the likeliest token leads the second. Both are those of `probs_RV`
    instead of the text branch where it is given. `kl` is the divergence of the text branch from the
    null branch, in nats; it is 0 where one branch serves as both. Ids masked with -inf count
    nowhere. Computed in float64, so that no rounding depends on what else is in the batch.
    """
    null_RV = logits_RKTV[:, 0, 0]
    text_RV = logits_RKTV[:, -1, 0]
    kernel = kernels.confidence(logits_RKTV.device, logits_RKTV.dtype, logits_RKTV.shape[-1])
    measure = kernel or measure_confidence
    entropy_R, margin_R, kl_R, known_R = measure(null_RV, text_RV)
    if probs_RV is not None:
        entropy_R, margin_R = _measure_spread(probs_RV.double())
    return {"entropy": entropy_R / known_R.log(), "margin": margin_R, "kl": kl_R}


def measure_confidence(null_RV: Tensor, text_RV: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute what the kernel `race.measure_signals` computes, in torch.

    Returns entropy in nats, margin, divergence in nats, and the number of tokens that are not
    masked, float64 [R] each.
    """
    log_null_RV = null_RV.double().log_softmax(-1)
    log_text_RV = text_RV.double().log_softmax(-1)
    probs_RV = log_text_RV.exp()
    entropy_R, margin_R = _measure_spread(probs_RV)

    masked_RV = log_text_RV.isneginf()
    divergence_RV = probs_RV * (log_text_RV - log_null_RV)
    kl_R = torch.where(masked_RV, 0.0, divergence_RV).sum(-1)
    known_R = (~masked_RV).sum(-1).double()
    return entropy_R, margin_R, kl_R, known_R


def _measure_spread(probs_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy in nats, and by how much the likeliest token leads the second."""
    entropy_R = torch.special.entr(probs_RV).sum(-1)
    first_R, second_R = probs_RV.topk(2).values.unbind(-1)
    return entropy_R, first_R - second_R


def entropy(_logits_RKTV: Tensor, make_probs: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Compute the Shannon entropy of the next token's distribution, in nats: a `Probe`."""
    probs_RV = make_probs()[:, 0]
    return {"entropy": torch.special.entr(probs_RV).sum(-1)}
