"""The mathematics a method may plug into the sampler: guides, rules and probes, all pure and
batched.

Shapes: R canvases, K branches (contexts over the same image tokens), T places (1 + draft length G),
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.engine.draft_trees import Forest, Parents, chain, forest
from harness.kernels.noise import ACCEPT, DRAW, RESIDUAL, Noise


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposed continuation of one canvas: `tokens` int64 [G]; `law` [G, V] that they were drawn
    from.

    `law` None says that the tokens were chosen deterministically. `parents` makes it a tree; None
    is a chain. The law of a sibling is what it was drawn from after those before it: without
    replacement, it has no mass on them. `followed` asks the sampler to keep what the target says of
    it (`Sampler.verdict`) until the canvas changes.
    """

    tokens: Tensor
    probs: Tensor | None = None
    parents: Parents | None = None
    followed: bool = False

    def __len__(self) -> int:
        return self.tokens.shape[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target said of a followed draft: its laws [1 + G, V], the first at the place of the
    first draft token.

    `accepted` tokens of the draft were committed, and one more; the laws behind that one saw a
    rejected token.
    """

    draft: Draft
    probs_TV: Tensor
    accepted: int


@dataclass(frozen=True, slots=True)
class Drafts:
    """The drafts of R canvases, padded to the longest: `length_R` says how much of each row counts.

    `forest` tells the trees; where it is None, all drafts are chains.
    """

    token_RG: Tensor
    probs_RGV: Tensor
    length_R: Tensor
    forest: Forest | None = None

    @classmethod
    def stack(cls, drafts: list[Draft | None], probs_RTV: Tensor) -> Drafts:
        """Pad; a deterministic draft gets the law that has all its mass on the token, a repeated
        sibling none.
        """
        rows = len(drafts)
        columns = probs_RTV.shape[1] - 1
        vocab = probs_RTV.shape[2]
        token_RG = probs_RTV.new_zeros((rows, columns), dtype=torch.int64)
        probs_RGV = probs_RTV.new_zeros((rows, columns, vocab))
        for r, draft in enumerate(drafts):
            if draft is not None and len(draft):
                probs = _point_probs(draft, vocab) if draft.probs is None else draft.probs
                token_RG[r, : len(draft)] = draft.tokens
                probs_RGV[r, : len(draft)] = probs.to(probs_RGV.dtype)
        lengths = [0 if draft is None else len(draft) for draft in drafts]
        return cls(
            token_RG,
            probs_RGV,
            torch.tensor(lengths, device=probs_RTV.device),
            build_forest(drafts, columns),
        )


def _point_probs(draft: Draft, vocab: int) -> Tensor:
    probs_GV = torch.nn.functional.one_hot(draft.tokens, vocab)
    if draft.parents is None:
        return probs_GV
    parent_G = torch.tensor(draft.parents, device=probs_GV.device)
    same_GG = (parent_G[:, None] == parent_G) & (draft.tokens[:, None] == draft.tokens)
    return probs_GV * ~same_GG.tril(-1).any(1, keepdim=True)


def build_forest(drafts: Sequence[Draft | None], nodes: int) -> Forest | None:
    """The trees of some drafts, padded to so many nodes; None where all of them are chains."""
    if all(draft is None or draft.parents is None for draft in drafts):
        return None
    grown = [() if d is None else chain(len(d)) if d.parents is None else d.parents for d in drafts]
    return forest(tuple(grown), nodes)


Rule = Callable[[Tensor, Drafts, Noise], tuple[Tensor, Tensor]]
"""(probs_RTV, drafts, noise) -> accepted path (draft indices [R, G], -1 padded), next token [R].

`probs_RTV` are the laws at the root and behind every draft token; `noise` is that of the next T
places, by depth. A rule may also have `signals(probs_RTV, drafts, noise, path_RG) -> {name: [R]}`:
what it has to say of the round; the sampler adds these up over a canvas's rounds in
`Canvas.signals`.
"""


def _prefix(accepted_RG: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the leading run of acceptances, [R], and the chain's path of that length, [R,
    G].
    """
    count_R = accepted_RG.long().cumprod(1).sum(1)
    node_G = torch.arange(accepted_RG.shape[1], device=accepted_RG.device)
    return count_R, torch.where(node_G < count_R[:, None], node_G, -1)


AcceptanceProb = Callable[[Tensor, Tensor], Tensor]
"""(probs_RV, token_R) -> the probability, [R], with which a rule tests a draft token: its own, or
what is lent to it.
"""


Residual = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(probs_RV, draft_probs_RV, token_R) -> the law, up to a factor, to draw from after `token` was
rejected.
"""


def exact(probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """Speculative sampling that keeps the target's law (Leviathan et al. 2023, Algorithm 1), for
    chains and trees.

    With empty drafts it is ordinary sampling: there is one code path.
    """
    return verify(probs_RTV, drafts, noise, token_prob, residual_probs)


def token_prob(probs_RV: Tensor, token_R: Tensor) -> Tensor:
    """The tokens' probabilities, [R]."""
    return probs_RV.gather(-1, token_R.unsqueeze(-1)).squeeze(-1)


def verify(
    probs_RTV: Tensor,
    drafts: Drafts,
    noise: Noise,
    acceptance_prob: AcceptanceProb,
    residual: Residual,
) -> tuple[Tensor, Tensor]:
    """Accept draft tokens while u q < credit, where q is the chance they were drafted with."""
    if drafts.forest is not None:
        return _verify_trees(probs_RTV, drafts, drafts.forest, noise, acceptance_prob, residual)
    columns = drafts.token_RG.shape[1]
    if columns == 0:
        return drafts.token_RG, noise.race(DRAW, probs_RTV)[:, 0]
    acceptance_prob_n = acceptance_prob(
        probs_RTV[:, :columns].flatten(0, 1), drafts.token_RG.flatten()
    )
    return verify_chain(
        probs_RTV, drafts, noise, acceptance_prob_n.unflatten(0, (-1, columns)), residual
    )


def verify_chain(
    probs_RTV: Tensor, drafts: Drafts, noise: Noise, acceptance_prob_RG: Tensor, residual: Residual
) -> tuple[Tensor, Tensor]:
    """Walk down a chain: accept a token while u q < credit, where q is the chance it was drafted
    with.

    `acceptance_prob_RG` is the target's probability of each draft token, or what a relaxed rule
    lends it. The first rejected position is drawn from `residual`; after a full acceptance the
    bonus token is drawn from the target's law.
    """
    columns = drafts.token_RG.shape[1]
    drafted_RG = torch.arange(columns, device=probs_RTV.device) < drafts.length_R[:, None]
    count_R, path_RG = _prefix(
        (acceptance_threshold(drafts, noise) < acceptance_prob_RG) & drafted_RG
    )

    row = torch.arange(len(count_R), device=probs_RTV.device)
    last_R = count_R.clamp(max=columns - 1)
    probs_RV = probs_RTV[row, count_R]
    here = noise.at(count_R)
    left_RV = residual(probs_RV, drafts.probs_RGV[row, last_R], drafts.token_RG[row, last_R])
    rejected_R = here.race(RESIDUAL, left_RV.unsqueeze(1))[:, 0]
    bonus_R = here.race(DRAW, probs_RV.unsqueeze(1))[:, 0]
    return path_RG, torch.where(count_R < drafts.length_R, rejected_R, bonus_R)


def _verify_trees(
    probs_RTV: Tensor,
    drafts: Drafts,
    trees: Forest,
    noise: Noise,
    acceptance_prob: AcceptanceProb,
    residual: Residual,
) -> tuple[Tensor, Tensor]:
    """Walk down trees: at each place test the children in order, each against what its elder
    siblings left.

    The first that is accepted is the next place. Where none is, the walk ends and draws from what
    they all left; at a leaf, from the target's law. It keeps the target's law for children drawn
    one after another and for chosen ones alike, since each test is that of a chain against the law
    its child came from. A child that could not have been drafted is passed over.
    """
    nodes = drafts.token_RG.shape[1]
    child_RTC = torch.from_numpy(trees.child_RTC).to(probs_RTV.device)
    row_R = torch.arange(len(probs_RTV), device=probs_RTV.device)
    chance_RDC = noise.uniform(ACCEPT, child_RTC.shape[2])
    node_R = torch.full_like(row_R, -1)
    left_RV = probs_RTV[:, 0]
    alive_R = node_R < 0
    spoilt_R = node_R > 0  # spoilt: a child of this place was rejected
    path_RG = torch.full_like(drafts.token_RG, -1)
    for depth in range(trees.depth):
        moved_R = torch.zeros_like(alive_R)
        next_R = node_R
        for rank in range(child_RTC.shape[2]):
            child_R = child_RTC[row_R, node_R + 1, rank]
            at_R = child_R.clamp(min=0)
            token_R = drafts.token_RG[row_R, at_R]
            draft_probs_RV = drafts.probs_RGV[row_R, at_R]
            draft_R = token_prob(draft_probs_RV, token_R)
            tested_R = alive_R & ~moved_R & (child_R >= 0) & (draft_R > 0)
            taken_R = tested_R & (
                chance_RDC[:, depth, rank] * draft_R < acceptance_prob(left_RV, token_R)
            )
            rejected_R = tested_R & ~taken_R
            after_RV = residual(left_RV, draft_probs_RV, token_R)
            left_RV = torch.where(
                rejected_R[:, None], after_RV / after_RV.sum(1, keepdim=True), left_RV
            )
            next_R = torch.where(taken_R, child_R, next_R)
            moved_R = moved_R | taken_R
            spoilt_R = spoilt_R | rejected_R
        node_R = next_R
        alive_R = moved_R
        spoilt_R = spoilt_R & ~moved_R
        left_RV = torch.where(moved_R[:, None], probs_RTV[row_R, node_R + 1], left_RV)
        path_RG[:, depth] = torch.where(moved_R, node_R, -1)
    here = noise.at((path_RG >= 0).sum(1).clamp(max=nodes))
    residual_R, draw_R = (here.race(lane, left_RV.unsqueeze(1))[:, 0] for lane in (RESIDUAL, DRAW))
    return path_RG, torch.where(spoilt_R, residual_R, draw_R)


def acceptance_threshold(drafts: Drafts, noise: Noise) -> Tensor:
    """u q of every draft token, [R, G]: it is accepted where that is less than the credit it has
    with the target.
    """
    draft_RG = drafts.probs_RGV.gather(-1, drafts.token_RG.unsqueeze(-1)).squeeze(-1)
    return noise.uniform(ACCEPT, 1)[:, : draft_RG.shape[1], 0] * draft_RG


def tested_against(
    probs_RTV: Tensor, drafts: Drafts, noise: Noise, path_RG: Tensor, residual: Residual
) -> tuple[Tensor, Tensor, Tensor]:
    """What accepted tokens were tested against: laws [R, D, V], tokens [R, D] and u q [R, D] along
    the path.

    In a tree the law is what the token's elder siblings left by `residual`. Columns behind the path
    mean nothing.
    """
    if drafts.forest is None:
        return (
            probs_RTV[:, : path_RG.shape[1]],
            drafts.token_RG,
            acceptance_threshold(drafts, noise),
        )
    columns = drafts.forest.depth
    path_RG = path_RG[:, :columns]
    row_R1 = torch.arange(len(path_RG), device=path_RG.device).unsqueeze(1)
    above_RG = torch.nn.functional.pad(path_RG[:, :-1] + 1, (1, 0))
    children_RGC = torch.from_numpy(drafts.forest.child_RTC).to(path_RG.device)[row_R1, above_RG]
    rank_RG = (children_RGC == path_RG.unsqueeze(2)).int().argmax(2)
    left_nV = probs_RTV[row_R1, above_RG].flatten(0, 1)
    for rank in range(children_RGC.shape[2] - 1):
        elder_RG = children_RGC[:, :, rank].clamp(min=0)
        token_n, draft_probs_nV = (
            table[row_R1, elder_RG].flatten(0, 1) for table in (drafts.token_RG, drafts.probs_RGV)
        )
        after_nV = residual(left_nV, draft_probs_nV, token_n)
        before_n = (rank < rank_RG).flatten() & (token_prob(draft_probs_nV, token_n) > 0)
        left_nV = torch.where(before_n[:, None], after_nV / after_nV.sum(1, keepdim=True), left_nV)
    at_RG = path_RG.clamp(min=0)
    token_RG = drafts.token_RG.gather(1, at_RG)
    chance_RGC = noise.uniform(ACCEPT, children_RGC.shape[2])[:, :columns]
    threshold_RG = chance_RGC.gather(2, rank_RG.unsqueeze(2))[..., 0] * token_prob(
        drafts.probs_RGV[row_R1, at_RG], token_RG
    )
    return left_nV.unflatten(0, path_RG.shape), token_RG, threshold_RG


def residual_probs(probs_RV: Tensor, draft_probs_RV: Tensor, _token_R: Tensor) -> Tensor:
    """max(p - q, 0): what the drafts left of the target's law.

    Where it is zero everywhere, p equals q up to rounding; then any law will do, and p is the
    natural one.
    """
    left_RV = (probs_RV - draft_probs_RV).clamp(min=0)
    return torch.where(left_RV.amax(1, keepdim=True) == 0, probs_RV, left_RV)


def coupled(probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """Draw at every position what plain sampling would draw; accept while the draft agrees.

    Lossless token for token, for any drafter: the oracle that tests speculation, slower than
    `exact`.
    """
    if drafts.forest is not None:
        return _coupled_trees(probs_RTV, drafts, drafts.forest, noise)
    drawn_RT = noise.race(DRAW, probs_RTV)
    columns = drafts.token_RG.shape[1]
    drafted_RG = torch.arange(columns, device=probs_RTV.device) < drafts.length_R[:, None]
    count_R, path_RG = _prefix((drawn_RT[:, :columns] == drafts.token_RG) & drafted_RG)
    return path_RG, drawn_RT.gather(1, count_R[:, None])[:, 0]


def _coupled_trees(
    probs_RTV: Tensor, drafts: Drafts, trees: Forest, noise: Noise
) -> tuple[Tensor, Tensor]:
    child_RTC = torch.from_numpy(trees.child_RTC).to(probs_RTV.device)
    row_R = torch.arange(len(probs_RTV), device=probs_RTV.device)
    node_R = torch.full_like(row_R, -1)
    alive_R = torch.ones_like(row_R, dtype=torch.bool)
    path_RG = torch.full_like(drafts.token_RG, -1)
    drawn_R = noise.at(torch.zeros_like(row_R)).race(DRAW, probs_RTV[:, :1])[:, 0]
    for depth in range(trees.depth):
        child_RC = child_RTC[row_R, node_R + 1]
        fits_RC = (child_RC >= 0) & (
            drafts.token_RG.gather(1, child_RC.clamp(min=0)) == drawn_R[:, None]
        )
        alive_R = alive_R & fits_RC.any(1)
        child_R = child_RC.gather(1, fits_RC.int().argmax(1, keepdim=True))[:, 0]
        node_R = torch.where(alive_R, child_R, node_R)
        path_RG[:, depth] = torch.where(alive_R, child_R, -1)
        here = noise.at(torch.full_like(row_R, depth + 1))
        probs_RV = probs_RTV[row_R, node_R + 1]
        drawn_R = torch.where(alive_R, here.race(DRAW, probs_RV.unsqueeze(1))[:, 0], drawn_R)
    return path_RG, drawn_R
