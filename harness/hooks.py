"""The mathematics a method may plug into the sampler: guides, rules and probes, all pure and batched.

Shapes: R canvases, K streams (contexts over the same image tokens), T positions (1 + draft length G), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.noise import ACCEPT, DRAW, RESIDUAL, Noise
from harness.records import UserError

Guide = Callable[[Tensor, Tensor], Tensor]
"""(logits_RKTV, scale_R) -> logits_RTV: how the streams of a canvas become one prediction."""

Probe = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""(logits_RKTV, law_RTV) -> {name: [R]}: signals that a method reads with `look`."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposed continuation of one canvas: `tokens` int64 [G]; `law` [G, V] that they were drawn from.

    `law` None says that the tokens were chosen deterministically. `followed` asks the sampler to keep what the target
    says of it (`Sampler.verdict`) until the canvas changes: the next draft is made from that.
    """

    tokens: Tensor
    law: Tensor | None = None
    followed: bool = False

    def __len__(self) -> int:
        return self.tokens.shape[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target said of a followed draft: its laws [1 + G, V], the first at the place of the first draft token.

    `accepted` tokens of the draft were committed, and one more; the laws behind that one saw a rejected token.
    """

    draft: Draft
    law_TV: Tensor
    accepted: int


@dataclass(frozen=True, slots=True)
class Drafts:
    """The drafts of R canvases, padded to the longest: `length_R` says how much of each row counts."""

    token_RG: Tensor
    law_RGV: Tensor
    length_R: Tensor

    @classmethod
    def stack(cls, drafts: list[Draft | None], law_RTV: Tensor) -> Drafts:
        """Pad; a deterministic draft gets the law that has all its mass on the token."""
        rows, columns, vocab = len(drafts), law_RTV.shape[1] - 1, law_RTV.shape[2]
        token_RG = law_RTV.new_zeros((rows, columns), dtype=torch.int64)
        law_RGV = law_RTV.new_zeros((rows, columns, vocab))
        for r, draft in enumerate(drafts):
            if draft is not None and len(draft):
                law = torch.nn.functional.one_hot(draft.tokens, vocab) if draft.law is None else draft.law
                token_RG[r, : len(draft)], law_RGV[r, : len(draft)] = draft.tokens, law.to(law_RGV.dtype)
        lengths = [0 if draft is None else len(draft) for draft in drafts]
        return cls(token_RG, law_RGV, torch.tensor(lengths, device=law_RTV.device))


Rule = Callable[[Tensor, Drafts, Noise], tuple[Tensor, Tensor]]
"""(law_RTV, drafts, noise) -> accepted path (draft indices [R, G], -1 padded), next token [R].

A rule may also have `signals(law_RTV, drafts, noise, path_RG) -> {name: [R]}`: what it has to say of the round; the
sampler adds these up over a canvas's rounds in `Canvas.signals`.
"""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a law is made of logits, for target and drafter alike.

    `scale` is the usual guidance scale, null + scale * (text - null); 1 switches guidance off. `temperature` 0 is
    greedy. `top_k` 0 and `top_p` 1 keep everything. `interval` k >= 0 guides the first k + 2 tokens only and takes the
    scale 1 for the others (LlamaGen `generate.py`, cfg_interval). Raises UserError for values out of range.
    """

    scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    interval: int = -1

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise UserError(f"sampling.scale={self.scale}: guidance scales start at 1 (no guidance)")
        if self.temperature < 0:
            raise UserError(f"sampling.temperature={self.temperature}: must be 0 (greedy) or positive")
        if self.top_k < 0:
            raise UserError(f"sampling.top_k={self.top_k}: must be 0 (all tokens) or positive")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p={self.top_p}: must be in (0, 1]")
        if self.interval < -1:
            raise UserError(f"sampling.interval={self.interval}: must be -1 (guide always) or the last guided step")


def unguided(logits_RKTV: Tensor, _scale_R: Tensor) -> Tensor:
    """The only stream, as it is."""
    return logits_RKTV[:, 0]


def cfg(logits_RKTV: Tensor, scale_R: Tensor) -> Tensor:
    """Classifier-free guidance over the streams (null, text): null + scale * (text - null)."""
    null, text = logits_RKTV.unbind(1)
    return null + scale_R.to(null.dtype)[:, None, None] * (text - null)


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Law over the last axis: temperature, top-k (ties at the k-th survive), top-p, softmax, in this order.

    Top-p keeps the smallest prefix of the sorted law that exceeds p, the crossing token included
    (LlamaGen `generate.py`, top_k_top_p_filtering).
    """
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0.0
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > sampling.top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits.softmax(-1)


def _prefix(accepted_RG: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the leading run of acceptances, [R], and the chain's path of that length, [R, G]."""
    count_R = accepted_RG.long().cumprod(1).sum(1)
    node_G = torch.arange(accepted_RG.shape[1], device=accepted_RG.device)
    return count_R, torch.where(node_G < count_R[:, None], node_G, -1)


Residual = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(law_RV, draft_law_RV, token_R) -> the law, up to a factor, to draw from after `token` was rejected."""


def exact(law_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """Speculative sampling that keeps the target's law (Leviathan et al. 2023, Algorithm 1).

    With empty drafts it is ordinary sampling: there is one code path.
    """
    credit_RG = law_RTV[:, :-1].gather(-1, drafts.token_RG.unsqueeze(-1)).squeeze(-1)
    return verify_chain(law_RTV, drafts, noise, credit_RG, leftover)


def verify_chain(
    law_RTV: Tensor, drafts: Drafts, noise: Noise, credit_RG: Tensor, residual: Residual
) -> tuple[Tensor, Tensor]:
    """Walk down a chain: accept a token while u q < credit, where q is the chance it was drafted with.

    `credit_RG` is the target's probability of each draft token, or what a relaxed rule lends it. The first rejected
    position is drawn from `residual`; after a full acceptance the bonus token is drawn from the target's law.
    """
    columns = drafts.token_RG.shape[1]
    if columns == 0:
        return drafts.token_RG, noise.race(DRAW, law_RTV)[:, 0]
    drafted_RG = torch.arange(columns, device=law_RTV.device) < drafts.length_R[:, None]
    count_R, path_RG = _prefix((stakes(drafts, noise) < credit_RG) & drafted_RG)

    row, last_R = torch.arange(len(count_R), device=law_RTV.device), count_R.clamp(max=columns - 1)
    law_RV, here = law_RTV[row, count_R], noise.at(count_R)
    left_RV = residual(law_RV, drafts.law_RGV[row, last_R], drafts.token_RG[row, last_R])
    rejected_R = here.race(RESIDUAL, left_RV.unsqueeze(1))[:, 0]
    bonus_R = here.race(DRAW, law_RV.unsqueeze(1))[:, 0]
    return path_RG, torch.where(count_R < drafts.length_R, rejected_R, bonus_R)


def stakes(drafts: Drafts, noise: Noise) -> Tensor:
    """u q of every draft token, [R, G]: it is accepted where that is less than the credit it has with the target."""
    draft_RG = drafts.law_RGV.gather(-1, drafts.token_RG.unsqueeze(-1)).squeeze(-1)
    return noise.uniform(ACCEPT, 1)[:, : draft_RG.shape[1], 0] * draft_RG


def leftover(law_RV: Tensor, draft_law_RV: Tensor, _token_R: Tensor) -> Tensor:
    """max(p - q, 0): what the drafts left of the target's law.

    Where it is zero everywhere, p equals q up to rounding; then any law will do, and p is the natural one.
    """
    left_RV = (law_RV - draft_law_RV).clamp(min=0)
    return torch.where(left_RV.amax(1, keepdim=True) == 0, law_RV, left_RV)


def coupled(law_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """Draw at every position what plain sampling would draw; accept while the draft agrees.

    Lossless token for token, for any drafter: the oracle that tests speculation, slower than `exact`.
    """
    drawn_RT = noise.race(DRAW, law_RTV)
    columns = drafts.token_RG.shape[1]
    drafted_RG = torch.arange(columns, device=law_RTV.device) < drafts.length_R[:, None]
    count_R, path_RG = _prefix((drawn_RT[:, :columns] == drafts.token_RG) & drafted_RG)
    return path_RG, drawn_RT.gather(1, count_R[:, None])[:, 0]


def entropy(_logits_RKTV: Tensor, law_RTV: Tensor) -> dict[str, Tensor]:
    """Shannon entropy of the next token's law, in nats."""
    law_RV = law_RTV[:, 0]
    return {"entropy": torch.special.entr(law_RV).sum(-1)}
