"""Turn the logits of a canvas's branches into one distribution: guidance, then temperature and
filters.

Shapes: R canvases, K branches (the null branch first, where there is one), T places, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.records import Natural, NotNegative, Positive, Share, UserError

Guide = Callable[[Tensor, Tensor], Tensor]
"""(logits_RKTV, scale_R) -> logits_RTV: combine the branches of a canvas into one prediction."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How logits become a distribution, for target and drafter alike.

    `scale` is the usual guidance scale, null + scale * (text - null); 1 switches guidance off.
    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep everything. `interval` k >= 0 guides the
    first k + 2 tokens only and uses scale 1 for the others (LlamaGen `generate.py`, cfg_interval);
    -1 guides all. Raises UserError for values out of range.
    """

    scale: Positive = 1.0
    temperature: NotNegative = 1.0
    top_k: Natural = 0
    top_p: Share = 1.0
    interval: int = -1

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise UserError(
                f"sampling.scale={self.scale}: guidance scales start at 1 (no guidance)"
            )
        if self.temperature < 0:
            raise UserError(
                f"sampling.temperature={self.temperature}: must be 0 (greedy) or positive"
            )
        if self.top_k < 0:
            raise UserError(f"sampling.top_k={self.top_k}: must be 0 (all tokens) or positive")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p={self.top_p}: must be in (0, 1]")
        if self.interval < -1:
            raise UserError(
                f"sampling.interval={self.interval}: "
                "must be -1 (guide always) or the last guided step"
            )


def unguided(logits_RKTV: Tensor, _scale_R: Tensor) -> Tensor:
    """Return the logits of the first branch as they are: the `Guide` of one branch."""
    return logits_RKTV[:, 0]


def cfg(logits_RKTV: Tensor, scale_R: Tensor) -> Tensor:
    """Apply classifier-free guidance to the branches (null, text): null + scale * (text - null)."""
    null_RTV, text_RTV = logits_RKTV.unbind(1)
    scale_R11 = scale_R.to(null_RTV.dtype)[:, None, None]
    return null_RTV + scale_R11 * (text_RTV - null_RTV)


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Turn logits into probabilities over the last axis, as `sampling` says.

    Temperature, top-k, top-p and softmax, in this order; temperature 0 gives all the mass to the
    likeliest token. Where a logit is no number or infinitely large, all probabilities are NaN.
    """
    if sampling.temperature == 0:
        probs = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        is_bad = (logits.isnan() | logits.isposinf()).any(-1, keepdim=True)
        return probs.masked_fill(is_bad, torch.nan)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _mask_below_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = _mask_outside_top_p(logits, sampling.top_p)
    return logits.softmax(-1)


def _mask_below_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Mask all logits below the k-th largest with -inf; ties at the k-th survive."""
    largest = logits.topk(top_k, dim=-1, sorted=False).values
    kth = largest.amin(-1, keepdim=True)
    return logits.masked_fill(logits < kth, -torch.inf)


def _mask_outside_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Mask with -inf all but the smallest set of likeliest tokens whose mass exceeds `top_p`.

    The token that crosses the bound is kept (LlamaGen `generate.py`, top_k_top_p_filtering).
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
    mass_before[..., 0] = 0.0
    nothing = torch.zeros_like(logits, dtype=torch.bool)
    dropped = nothing.scatter(-1, order, mass_before > top_p)
    return logits.masked_fill(dropped, -torch.inf)
