"""How the logits of a canvas's branches become one distribution: guides, and the warp by
temperature, top-k and top-p.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.records import UserError

Guide = Callable[[Tensor, Tensor], Tensor]
"""(logits_RKTV, scale_R) -> logits_RTV: how the branches of a canvas become one prediction."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a law is made of logits, for target and drafter alike.

    `scale` is the usual guidance scale, null + scale * (text - null); 1 switches guidance off.
    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep everything. `interval` k >= 0 guides the
    first k + 2 tokens only and takes the scale 1 for the others (LlamaGen `generate.py`,
    cfg_interval). Raises UserError for values out of range.
    """

    scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
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
                f"sampling.interval={self.interval}: must be -1 (guide always) or the last guided step"
            )


def unguided(logits_RKTV: Tensor, _scale_R: Tensor) -> Tensor:
    """The only branch, as it is."""
    return logits_RKTV[:, 0]


def cfg(logits_RKTV: Tensor, scale_R: Tensor) -> Tensor:
    """Classifier-free guidance over the branches (null, text): null + scale * (text - null)."""
    null, text = logits_RKTV.unbind(1)
    return null + scale_R.to(null.dtype)[:, None, None] * (text - null)


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Law over the last axis: temperature, top-k (ties at the k-th survive), top-p, softmax, in
    this order.

    Top-p keeps the smallest prefix of the sorted law that exceeds p, the crossing token included
    (LlamaGen `generate.py`, top_k_top_p_filtering).
    """
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0.0
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(
            -1, order, before > sampling.top_p
        )
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits.softmax(-1)
