"""Decide how much of a draft is kept: speculative sampling over chains and trees.

A drafter proposes a `Draft` for each canvas. The sampler stacks them into `Drafts`, computes the
target's distribution behind every draft token in one forward, and calls a `Rule`, which accepts a
path of draft tokens and draws one more token. Everything here is pure and batched: R canvases are
verified together, and no row depends on another.

To write a rule, pass an `AcceptanceProb` and a `Residual` to `verify`; to `verify_by_depth` where
they depend on how deep in the draft a token stands; or write a `Rule` from scratch. A rule that
reports numbers of its own implements `MeasuredRule`.

Shapes: R canvases, G draft tokens (nodes of a tree), T = 1 + G places (the root, which is the last
committed token, then one behind every draft token), D depths of a tree, C children of a place,
V vocabulary, n rows of any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.draft_trees import Forest, Parents, chain_parents, index_trees
from harness.kernels.noise import ACCEPT, DRAW, RESIDUAL, Noise

# ------------------------------------------------------------------ drafts


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposed continuation of one canvas, a chain or a tree of G tokens.

    `tokens` is int64 [G]; `probs` [G, V] holds the distributions that the tokens were drawn from,
    None if they were chosen deterministically. `parents` makes the draft a tree, None a chain.
    Siblings are drawn one after another without replacement: the distribution of each has no mass
    on those before it. `followed` asks the sampler to keep the target's view of this draft for the
    drafter (`Sampler.verdict`) until the canvas changes.
    """

    tokens: Tensor
    probs: Tensor | None = None
    parents: Parents | None = None
    followed: bool = False

    def __len__(self) -> int:
        return self.tokens.shape[0]


def length_of_draft(draft: Draft | None) -> int:
    """Count the tokens of a draft; 0 where there is none."""
    return 0 if draft is None else len(draft)


@dataclass(frozen=True, slots=True)
class Front:
    """Where a row of the image grows: its first place without a token, and a chain from there on.

    One more token is drawn behind what is accepted of the draft. It is committed, unless
    `commits_next` is False: then it is only kept for the drafter of a followed draft
    (`DraftVerdict.held`), and its place is drafted and tested again.
    """

    place: int
    draft: Draft | None = None
    commits_next: bool = True


@dataclass(frozen=True, slots=True)
class DraftVerdict:
    """The target's view of a followed draft: its distributions and which tokens were accepted.

    `probs_TV` [1 + G, V] begins with the distribution at the place of the first draft token. The
    tokens along `path`, indices from the root down, were committed, and one more token;
    distributions behind that one were computed from a rejected token. Where the one more token was
    not committed, it is `held`.
    """

    draft: Draft
    probs_TV: Tensor
    path: tuple[int, ...]
    held: int | None = None


@dataclass(frozen=True, slots=True)
class Drafts:
    """The drafts of R canvases, padded to the longest; `length_R` counts the real tokens of a row.

    `token_RG` is int64 and `probs_RGV` is what each token was drawn from. `forest` has the shapes
    of the trees; None means that all drafts are chains.
    """

    token_RG: Tensor
    probs_RGV: Tensor
    length_R: Tensor
    forest: Forest | None = None

    @classmethod
    def stack(cls, drafts: list[Draft | None], probs_RTV: Tensor) -> Drafts:
        """Pad drafts to T - 1 tokens, in the type and on the device of the target's `probs_RTV`.

        The distribution of a token that was chosen rather than drawn has all its mass on that
        token. A chosen sibling that repeats an earlier one gets no mass at all, which keeps
        `verify` from testing it twice.
        """
        lengths = [length_of_draft(draft) for draft in drafts]
        rows = len(drafts)
        columns = probs_RTV.shape[1] - 1
        vocab = probs_RTV.shape[2]
        token_RG = probs_RTV.new_zeros((rows, columns), dtype=torch.int64)
        probs_RGV = probs_RTV.new_zeros((rows, columns, vocab))

        for r, draft in enumerate(drafts):
            if draft is None or not len(draft):
                continue
            probs_GV = draft.probs
            if probs_GV is None:
                probs_GV = _one_hot_probs(draft, vocab)
            token_RG[r, : lengths[r]] = draft.tokens
            probs_RGV[r, : lengths[r]] = probs_GV.to(probs_RGV.dtype)

        length_R = torch.tensor(lengths, device=probs_RTV.device)
        return cls(token_RG, probs_RGV, length_R, build_forest(drafts, columns))


def _one_hot_probs(draft: Draft, vocab: int) -> Tensor:
    """Distributions [G, V] of chosen tokens: one-hot, and zero for a repeated sibling."""
    probs_GV = F.one_hot(draft.tokens, vocab)
    if draft.parents is None:
        return probs_GV
    parent_G = torch.tensor(draft.parents, device=probs_GV.device)
    same_parent_GG = parent_G[:, None] == parent_G
    same_token_GG = draft.tokens[:, None] == draft.tokens
    repeats_G1 = (same_parent_GG & same_token_GG).tril(-1).any(1, keepdim=True)
    return probs_GV * ~repeats_G1


def build_forest(drafts: Sequence[Draft | None], nodes: int) -> Forest | None:
    """Index the trees of some drafts, padded to `nodes` nodes each; None if all are chains."""
    if all(draft is None or draft.parents is None for draft in drafts):
        return None
    return index_trees(tuple(_parents_of(draft) for draft in drafts), nodes)


def _parents_of(draft: Draft | None) -> Parents:
    if draft is None:
        return ()
    if draft.parents is None:
        return chain_parents(len(draft))
    return draft.parents


# ------------------------------------------------------------------ what a rule is made of

AcceptanceProb = Callable[[Tensor, Tensor], Tensor]
"""(probs_RV, token_R) -> float [R]: the probability that a rule grants to draft tokens.

`verify` accepts a token that was drafted with probability q if u q is less than this, for a
uniform u. `probs_RV` is what the token is tested against: the target's distribution at its place,
normalised, less what earlier siblings of a tree took from it. `token_prob` gives the lossless test
u q < p; a relaxed rule returns more than p. Values above q accept always, so above 1 is allowed.
It is called for all rows at once, padding included, and must not depend on other rows.
"""


Residual = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(probs_RV, draft_probs_RV, token_R) -> weights [R, V]: what is left after `token` was rejected.

`probs_RV` is what the token was tested against, `draft_probs_RV` what it was drawn from. The
weights are non-negative and need not sum to one, but must not all be zero. In a chain the next
token is drawn from them; in a tree the next sibling is tested against them, normalised.
`residual_probs` is the lossless choice. It is called for all rows, also where nothing was
rejected; those results are not used.
"""


@dataclass(frozen=True, slots=True)
class DraftTest:
    """How a rule tests some draft tokens, and what a rejection leaves to draw from."""

    acceptance_prob: AcceptanceProb
    residual: Residual


TestAtDepth = Callable[[Tensor], DraftTest]
"""(depth_R) -> the test of draft tokens at these depths, int64 [R]; 1 is the first of a draft."""


Rule = Callable[[Tensor, Drafts, Noise], tuple[Tensor, Tensor]]
"""(probs_RTV, drafts, noise) -> (path_RG, next_R): accept a path of draft tokens, draw one more.

`probs_RTV` holds the target's distributions: column 0 at the root, column 1 + g behind draft token
g; columns behind a row's last draft token have no meaning. `noise` is that of the next T positions
of the image. The test of a token at depth d of the draft, counted from 0, uses position d and the
lane ACCEPT; the next token uses the position behind the path and the lane DRAW or RESIDUAL.

`path_RG` int64 holds the indices of the accepted draft tokens from the root downwards, each a child
of the one before it, then -1. `next_R` int64 is the token drawn behind the path. The sampler
commits both, so every call commits at least one token.

A rule must be deterministic given its arguments, compute each row without regard to the others
(batch invariance), and not wait for the device. With empty drafts (G = 0) it draws one token. A
rule that needs something of the model, such as its codebook, has `expect_target(model)`, which is
called once before drawing begins.
"""


@runtime_checkable
class MeasuredRule(Protocol):
    """A `Rule` that also reports numbers about what it accepted.

    The sampler calls `signals` after each call of the rule and adds the values up over the decode
    steps of a canvas, by name, in `Canvas.signals`.
    """

    def __call__(self, probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
        """Accept a path of draft tokens and draw one more token: see `Rule`."""
        ...

    def signals(
        self, probs_RTV: Tensor, drafts: Drafts, noise: Noise, path_RG: Tensor
    ) -> dict[str, Tensor]:
        """Measure one decode step, {name: [R]}; the arguments of the rule and the path it returned.

        The names must be the same at every call. `tested_against` gives what accepted tokens were
        tested against.
        """
        ...


def token_prob(probs_RV: Tensor, token_R: Tensor) -> Tensor:
    """Look up the probabilities of tokens, [R]: the lossless `AcceptanceProb`."""
    return probs_RV.gather(-1, token_R.unsqueeze(-1)).squeeze(-1)


def residual_probs(probs_RV: Tensor, draft_probs_RV: Tensor, _token_R: Tensor) -> Tensor:
    """Compute max(p - q, 0), what the draft leaves of the target: the lossless `Residual`.

    Where it is zero everywhere, p equals q up to rounding; then any weights will do, and p is the
    natural choice.
    """
    left_RV = (probs_RV - draft_probs_RV).clamp(min=0)
    return torch.where(left_RV.amax(1, keepdim=True) == 0, probs_RV, left_RV)


# ------------------------------------------------------------------ verification


def exact(probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """Verify chains or trees so that the output follows the target's distribution: a `Rule`.

    Speculative sampling (Leviathan et al. 2023, Algorithm 1). With empty drafts it is ordinary
    sampling: there is one code path.
    """
    return verify(probs_RTV, drafts, noise, token_prob, residual_probs)


def verify(
    probs_RTV: Tensor,
    drafts: Drafts,
    noise: Noise,
    acceptance_prob: AcceptanceProb,
    residual: Residual,
) -> tuple[Tensor, Tensor]:
    """Accept draft tokens while u q < `acceptance_prob`; return the path and the next token.

    q is the probability a token was drafted with and u a uniform. Arguments and results are those
    of a `Rule`; after a rejection the next token comes from `residual`.
    """
    test = DraftTest(acceptance_prob, residual)
    return verify_by_depth(probs_RTV, drafts, noise, lambda _depth_R: test)


def verify_by_depth(
    probs_RTV: Tensor, drafts: Drafts, noise: Noise, test_at: TestAtDepth
) -> tuple[Tensor, Tensor]:
    """Do as `verify`, with a test that depends on how deep in the draft a token stands."""
    if drafts.forest is not None:
        return _verify_trees(probs_RTV, drafts, drafts.forest, noise, test_at)

    rows, columns = drafts.token_RG.shape
    if columns == 0:
        return drafts.token_RG, _draw_one(noise, DRAW, probs_RTV[:, 0])

    depth_n = torch.arange(1, 1 + columns, device=probs_RTV.device).repeat(rows)
    probs_nV = probs_RTV[:, :columns].flatten(0, 1)
    acceptance_prob_n = test_at(depth_n).acceptance_prob(probs_nV, drafts.token_RG.flatten())
    acceptance_prob_RG = acceptance_prob_n.unflatten(0, (-1, columns))
    return _verify_chain(
        probs_RTV,
        drafts,
        noise,
        acceptance_prob_RG,
        lambda depth_R: test_at(depth_R).residual,
    )


def verify_chain(
    probs_RTV: Tensor, drafts: Drafts, noise: Noise, acceptance_prob_RG: Tensor, residual: Residual
) -> tuple[Tensor, Tensor]:
    """Accept the leading tokens of chains while u q < `acceptance_prob_RG`, then draw one more.

    `acceptance_prob_RG` is the target's probability of each draft token, or what a relaxed rule
    grants it; q is the probability it was drafted with. The first rejected position is drawn from
    `residual`; after a full acceptance the bonus token is drawn from the target's distribution.
    Needs G > 0; returns path and next token of a `Rule`.
    """
    return _verify_chain(probs_RTV, drafts, noise, acceptance_prob_RG, lambda _depth_R: residual)


def _verify_chain(
    probs_RTV: Tensor,
    drafts: Drafts,
    noise: Noise,
    acceptance_prob_RG: Tensor,
    residual_at: Callable[[Tensor], Residual],
) -> tuple[Tensor, Tensor]:
    """Do as `verify_chain`, with the residual of the depth at which each row stopped."""
    # 1. Accept the leading run of tokens that pass their test.
    passes_RG = acceptance_threshold(drafts, noise) < acceptance_prob_RG
    count_R, path_RG = _accept_leading_run(passes_RG & _is_drafted(drafts))

    # 2. Look up both distributions where each row stopped.
    row_R = torch.arange(len(count_R), device=probs_RTV.device)
    column_R = count_R.clamp(max=drafts.token_RG.shape[1] - 1)
    probs_RV = probs_RTV[row_R, count_R]
    draft_probs_RV = drafts.probs_RGV[row_R, column_R]
    token_R = drafts.token_RG[row_R, column_R]

    # 3. Draw the next token: from the residual after a rejection, else from the target.
    noise_here = noise.at(count_R)
    left_RV = residual_at(count_R + 1)(probs_RV, draft_probs_RV, token_R)
    replacement_R = _draw_one(noise_here, RESIDUAL, left_RV)
    bonus_R = _draw_one(noise_here, DRAW, probs_RV)
    return path_RG, torch.where(count_R < drafts.length_R, replacement_R, bonus_R)


def acceptance_threshold(drafts: Drafts, noise: Noise) -> Tensor:
    """Compute u q of every token of chains, [R, G]: the acceptance probability must exceed it."""
    draft_prob_RG = token_prob(drafts.probs_RGV, drafts.token_RG)
    uniform_RG = noise.uniform(ACCEPT, 1)[:, : draft_prob_RG.shape[1], 0]
    return uniform_RG * draft_prob_RG


def _is_drafted(drafts: Drafts) -> Tensor:
    """True for the real tokens of chains, False for padding, [R, G]."""
    column_G = torch.arange(drafts.token_RG.shape[1], device=drafts.token_RG.device)
    return column_G < drafts.length_R[:, None]


def _accept_leading_run(passes_RG: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the leading run of passed tests, [R], and the path of that length, [R, G]."""
    count_R = passes_RG.long().cumprod(1).sum(1)
    column_G = torch.arange(passes_RG.shape[1], device=passes_RG.device)
    return count_R, torch.where(column_G < count_R[:, None], column_G, -1)


def _draw_one(noise: Noise, lane: int, weights_RV: Tensor) -> Tensor:
    """Draw one token a row from weights of any sum; `noise` is that of one position a row."""
    return noise.race(lane, weights_RV.unsqueeze(1))[:, 0]


# ------------------------------------------------------------------ verification of trees


def _verify_trees(
    probs_RTV: Tensor,
    drafts: Drafts,
    trees: Forest,
    noise: Noise,
    test_at: TestAtDepth,
) -> tuple[Tensor, Tensor]:
    """Walk down trees from the root: test the children of a place, step to the first accepted one.

    Children are tested in drafting order, each against what its rejected siblings left. Where none
    is accepted, the walk ends and the next token is drawn from what they all left; at a leaf, from
    the target's distribution. With a lossless test and residual this keeps the target's
    distribution, for children drawn one after another and for chosen ones alike, since each test is
    that of a chain against the distribution that the child came from.
    """
    child_RTC = torch.from_numpy(trees.child_RTC).to(probs_RTV.device)
    siblings = child_RTC.shape[2]
    uniform_RTC = noise.uniform(ACCEPT, siblings)
    path_RG = torch.full_like(drafts.token_RG, -1)
    walk = _TreeWalk.from_root(probs_RTV)

    for depth in range(trees.depth):
        # 1. Test the children of each walk's place, in drafting order, until one is accepted.
        child_RC = child_RTC[walk.row_R, walk.place_R]
        accepted_R = torch.full_like(walk.place_R, -1)
        test = test_at(torch.full_like(walk.place_R, depth + 1))
        for rank in range(siblings):
            passes_R = walk.test_child(
                drafts,
                child_RC[:, rank],
                uniform_RTC[:, depth, rank],
                walk.active_R & (accepted_R < 0),
                test,
            )
            accepted_R = torch.where(passes_R, child_RC[:, rank], accepted_R)

        # 2. Step down to the accepted children; walks without one end.
        walk.step_down(accepted_R, probs_RTV)
        path_RG[:, depth] = accepted_R

    # 3. Draw the next token where each walk ended.
    noise_here = noise.at((path_RG >= 0).sum(1))
    replacement_R = _draw_one(noise_here, RESIDUAL, walk.left_RV)
    bonus_R = _draw_one(noise_here, DRAW, walk.left_RV)
    return path_RG, torch.where(walk.rejected_R, replacement_R, bonus_R)


@dataclass(slots=True)
class _TreeWalk:
    """Walks of R rows down their draft trees, one depth at a time."""

    row_R: Tensor  # 0 to R - 1
    place_R: Tensor  # int64: where each walk stands, 0 the root, 1 + g at draft node g
    left_RV: Tensor  # what the next child is tested against: the target, less rejected children
    active_R: Tensor  # bool: False once the walk has ended
    rejected_R: Tensor  # bool: a child of this place was tested and rejected

    @classmethod
    def from_root(cls, probs_RTV: Tensor) -> _TreeWalk:
        row_R = torch.arange(len(probs_RTV), device=probs_RTV.device)
        return cls(
            row_R=row_R,
            place_R=torch.zeros_like(row_R),
            left_RV=probs_RTV[:, 0],
            active_R=torch.ones_like(row_R, dtype=torch.bool),
            rejected_R=torch.zeros_like(row_R, dtype=torch.bool),
        )

    def test_child(
        self,
        drafts: Drafts,
        child_R: Tensor,
        uniform_R: Tensor,
        waiting_R: Tensor,
        test: DraftTest,
    ) -> Tensor:
        """Test one child of each place in the rows that are `waiting`; True where it is accepted.

        `child_R` is -1 where there is no such child. A child that could not have been drafted
        (q = 0) is neither accepted nor rejected.
        """
        node_R = child_R.clamp(min=0)
        token_R = drafts.token_RG[self.row_R, node_R]
        draft_probs_RV = drafts.probs_RGV[self.row_R, node_R]
        draft_prob_R = token_prob(draft_probs_RV, token_R)

        tested_R = waiting_R & (child_R >= 0) & (draft_prob_R > 0)
        passes_R = uniform_R * draft_prob_R < test.acceptance_prob(self.left_RV, token_R)
        rejected_R = tested_R & ~passes_R

        self.left_RV = _subtract_rejected(
            rejected_R, self.left_RV, draft_probs_RV, token_R, test.residual
        )
        self.rejected_R = self.rejected_R | rejected_R
        return tested_R & passes_R

    def step_down(self, accepted_R: Tensor, probs_RTV: Tensor) -> None:
        """Move to the accepted children, where nothing is rejected yet; -1 ends a walk."""
        moved_R = accepted_R >= 0
        self.place_R = torch.where(moved_R, accepted_R + 1, self.place_R)
        probs_RV = probs_RTV[self.row_R, self.place_R]
        self.left_RV = torch.where(moved_R[:, None], probs_RV, self.left_RV)
        self.rejected_R = self.rejected_R & ~moved_R
        self.active_R = moved_R


def _subtract_rejected(
    rejected_n: Tensor, left_nV: Tensor, draft_probs_nV: Tensor, token_n: Tensor, residual: Residual
) -> Tensor:
    """Replace `left_nV` by its normalised residual in the rows whose token was rejected."""
    residual_nV = residual(left_nV, draft_probs_nV, token_n)
    normalised_nV = residual_nV / residual_nV.sum(1, keepdim=True)
    return torch.where(rejected_n[:, None], normalised_nV, left_nV)


# ------------------------------------------------------------------ what was tested


@dataclass(frozen=True, slots=True)
class SlotTest:
    """One test of a draft token in each of R rows; where `tested_R` is False there was none."""

    tested_R: Tensor  # bool
    accepted_R: Tensor  # bool
    probs_RV: Tensor  # the target, less what earlier siblings took
    draft_probs_RV: Tensor  # what the token was drawn from
    token_R: Tensor
    threshold_R: Tensor  # u q, in float64
    node_R: Tensor  # the draft token's index; -1 where the place has no such child
    waiting_R: Tensor  # bool: the row had come to this test; a child of no chance is passed over
    depth: int  # of the token in its draft, from 1


def list_tests(
    probs_RTV: Tensor, drafts: Drafts, noise: Noise, path_RG: Tensor, test_at: TestAtDepth
) -> Iterator[SlotTest]:
    """Repeat the tests that ended in `path_RG`, rejected ones included, for `MeasuredRule.signals`.

    `tested_against` gives the accepted ones alone, at once.
    """
    # 1. Take chains as trees of one branch.
    columns = drafts.token_RG.shape[1]
    trees = drafts.forest
    if trees is None:
        depth = columns
        place_T = torch.arange(columns, device=path_RG.device)
        child_RG = torch.where(place_T < drafts.length_R[:, None], place_T, -1)
        child_RTC = F.pad(child_RG, (0, 1), value=-1).unsqueeze(2)
    else:
        depth = trees.depth
        child_RTC = torch.from_numpy(trees.child_RTC).to(path_RG.device)
    siblings = child_RTC.shape[2]
    uniform_RTC = noise.uniform(ACCEPT, siblings)
    row_R = torch.arange(len(path_RG), device=path_RG.device)
    place_R = torch.zeros_like(row_R)
    active_R = torch.ones_like(row_R, dtype=torch.bool)

    for d in range(depth):
        # 2. Test the children of each place until the one that the path takes.
        accepted_child_R = path_RG[:, d]
        waiting_R = active_R
        left_RV = probs_RTV[row_R, place_R]
        residual = test_at(torch.full_like(place_R, d + 1)).residual
        for rank in range(siblings):
            child_R = child_RTC[row_R, place_R, rank]
            node_R = child_R.clamp(min=0)
            token_R = drafts.token_RG[row_R, node_R]
            draft_probs_RV = drafts.probs_RGV[row_R, node_R]
            draft_prob_R = token_prob(draft_probs_RV, token_R)
            tested_R = waiting_R & (child_R >= 0) & (draft_prob_R > 0)
            accepted_R = tested_R & (child_R == accepted_child_R)
            threshold_R = uniform_RTC[:, d, rank] * draft_prob_R
            yield SlotTest(
                tested_R=tested_R,
                accepted_R=accepted_R,
                probs_RV=left_RV,
                draft_probs_RV=draft_probs_RV,
                token_R=token_R,
                threshold_R=threshold_R,
                node_R=child_R,
                waiting_R=waiting_R & (child_R >= 0),
                depth=d + 1,
            )
            left_RV = _subtract_rejected(
                tested_R & ~accepted_R, left_RV, draft_probs_RV, token_R, residual
            )
            waiting_R = waiting_R & ~accepted_R

        # 3. Step down to it.
        active_R = active_R & (accepted_child_R >= 0)
        place_R = torch.where(active_R, accepted_child_R + 1, place_R)


def tested_against(
    probs_RTV: Tensor, drafts: Drafts, noise: Noise, path_RG: Tensor, residual: Residual
) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruct the tests that the tokens of an accepted path passed, for `MeasuredRule.signals`.

    Returns, along the path, what each token was tested against [R, D, V], the tokens [R, D] and
    their thresholds u q [R, D]; D is G for chains. In a tree a token was tested against what its
    earlier siblings left by `residual`. Columns behind the path have no meaning.
    """
    if drafts.forest is not None:
        return _tested_in_trees(probs_RTV, drafts, drafts.forest, noise, path_RG, residual)
    columns = path_RG.shape[1]
    return probs_RTV[:, :columns], drafts.token_RG, acceptance_threshold(drafts, noise)


def _tested_in_trees(
    probs_RTV: Tensor,
    drafts: Drafts,
    trees: Forest,
    noise: Noise,
    path_RG: Tensor,
    residual: Residual,
) -> tuple[Tensor, Tensor, Tensor]:
    # 1. Find for each step of the path the place above it and its rank among that place's children.
    path_RD = path_RG[:, : trees.depth]
    row_R1 = torch.arange(len(path_RD), device=path_RD.device).unsqueeze(1)
    above_RD = F.pad(path_RD + 1, (1, 0))[:, : trees.depth]
    child_RTC = torch.from_numpy(trees.child_RTC).to(path_RD.device)
    child_RDC = child_RTC[row_R1, above_RD]
    rank_RD = (child_RDC == path_RD.unsqueeze(2)).int().argmax(2)

    # 2. Subtract the earlier siblings, which were all rejected, in drafting order.
    left_nV = probs_RTV[row_R1, above_RD].flatten(0, 1)
    siblings = child_RDC.shape[2]
    for rank in range(siblings - 1):
        sibling_RD = child_RDC[:, :, rank].clamp(min=0)
        token_n = drafts.token_RG[row_R1, sibling_RD].flatten()
        draft_probs_nV = drafts.probs_RGV[row_R1, sibling_RD].flatten(0, 1)
        could_be_drafted_n = token_prob(draft_probs_nV, token_n) > 0
        rejected_n = (rank < rank_RD).flatten() & could_be_drafted_n
        left_nV = _subtract_rejected(rejected_n, left_nV, draft_probs_nV, token_n, residual)
    left_RDV = left_nV.unflatten(0, path_RD.shape)

    # 3. Recompute u q of the accepted tokens.
    node_RD = path_RD.clamp(min=0)
    token_RD = drafts.token_RG.gather(1, node_RD)
    draft_prob_RD = token_prob(drafts.probs_RGV[row_R1, node_RD], token_RD)
    uniform_RDC = noise.uniform(ACCEPT, siblings)[:, : trees.depth]
    uniform_RD = uniform_RDC.gather(2, rank_RD.unsqueeze(2))[..., 0]
    return left_RDV, token_RD, uniform_RD * draft_prob_RD


# ------------------------------------------------------------------ coupled verification


def coupled(probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """Accept a draft token where plain sampling draws that very token: a `Rule`.

    Lossless token for token, for any drafter: the oracle that tests speculation. It accepts less
    than `exact`.
    """
    if drafts.forest is not None:
        return _coupled_trees(probs_RTV, drafts, drafts.forest, noise)
    columns = drafts.token_RG.shape[1]
    drawn_RT = noise.race(DRAW, probs_RTV)
    agrees_RG = drawn_RT[:, :columns] == drafts.token_RG
    count_R, path_RG = _accept_leading_run(agrees_RG & _is_drafted(drafts))
    return path_RG, drawn_RT.gather(1, count_R[:, None])[:, 0]


def _coupled_trees(
    probs_RTV: Tensor, drafts: Drafts, trees: Forest, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Walk down trees along the tokens that plain sampling draws, while a child has that token."""
    child_RTC = torch.from_numpy(trees.child_RTC).to(probs_RTV.device)
    row_R = torch.arange(len(probs_RTV), device=probs_RTV.device)
    place_R = torch.zeros_like(row_R)  # 0 the root, 1 + g at draft node g
    active_R = torch.ones_like(row_R, dtype=torch.bool)
    path_RG = torch.full_like(drafts.token_RG, -1)

    # 1. Draw at the root what plain sampling draws there.
    noise_here = noise.at(torch.zeros_like(row_R))
    drawn_R = _draw_one(noise_here, DRAW, probs_RTV[:, 0])

    for depth in range(trees.depth):
        # 2. Find the child that carries the drawn token; a walk without one ends.
        child_RC = child_RTC[row_R, place_R]
        token_RC = drafts.token_RG.gather(1, child_RC.clamp(min=0))
        agrees_RC = (child_RC >= 0) & (token_RC == drawn_R[:, None])
        active_R = active_R & agrees_RC.any(1)

        # 3. Step down to it.
        first_R1 = agrees_RC.int().argmax(1, keepdim=True)
        child_R = child_RC.gather(1, first_R1)[:, 0]
        place_R = torch.where(active_R, child_R + 1, place_R)
        path_RG[:, depth] = torch.where(active_R, child_R, -1)

        # 4. Draw at the new place; a walk that ended keeps its last token.
        noise_here = noise.at(torch.full_like(row_R, depth + 1))
        next_R = _draw_one(noise_here, DRAW, probs_RTV[row_R, place_R])
        drawn_R = torch.where(active_R, next_R, drawn_R)
    return path_RG, drawn_R
