"""VVS: some rounds of speculative decoding commit draft tokens without asking the target.

The paper is arXiv 2511.13587. A round drafts, and then either verifies the draft by a target
forward, or skips that and commits a part of the draft as it is.

The published method picks among the paths of an EAGLE tree. Where `gamma` is a number, the paths
are independent chains instead, and an independent draft model goes on drafting from its own cache
after a skip (our reading; the authors publish none). The schedules, the choice of a path and its
truncation are theirs (HyattDD/VVS, `skip_utils_llamagen.py`).

Shapes: P paths, L longest path, V codes, d code width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import (
    Canvas,
    Count,
    Draft,
    Drafter,
    Natural,
    NotNegative,
    Rule,
    Session,
    Tree,
    UserError,
    exact,
    paths,
)
from methods.speculative import Speculative, rule_facts, sum_signals

WARM = 6
"""Committed tokens that a canvas must exceed before its first skip."""


# ------------------------------------------------------------------ schedules


class Schedule(Protocol):
    """Decide which rounds skip the target; rounds are counted from 0.

    Without a tree, `paths` chains are drafted in a round that may skip.
    """

    paths: int

    def due(self, round_index: int) -> bool:
        """Tell whether a skip is possible in this round; asked before further paths are drafted."""
        ...

    def skip(
        self,
        round_index: int,
        paths: Sequence[Tensor],
        codebook_Vd: Tensor,
    ) -> bool:
        """Tell whether a canvas with these draft paths (tokens, int64 [length]) skips the round."""
        ...


class Uniform:
    """Skip one round in every `interval`: rounds `phase`, `phase` + `interval`, ... (VVS-U).

    Interval 1 never skips. `paths` chains are drafted in those rounds, one of which is committed.
    Raises UserError for an interval below 1.
    """

    def __init__(
        self,
        interval: Count,
        phase: Natural = 1,
        paths: Count = 1,
    ) -> None:
        if interval < 1:
            raise UserError(f"schedule.interval={interval}: must be at least 1, which never skips")
        self.interval = interval
        self.phase = phase
        self.paths = paths

    def due(self, round_index: int) -> bool:
        return self.interval > 1 and round_index % self.interval == self.phase % self.interval

    def skip(
        self,
        round_index: int,
        paths: Sequence[Tensor],
        codebook_Vd: Tensor,
    ) -> bool:
        return self.due(round_index)


class Dynamic:
    """Skip when the drafted paths look alike: mean similarity at least `threshold` (VVS-D).

    `decay` is the weight of a depth relative to the one before; every `stride`-th path is compared.
    Raises UserError if that leaves a single path, with nothing to compare it to.
    """

    def __init__(
        self,
        threshold: float,
        paths: Count = 4,
        decay: NotNegative = 0.9,
        stride: Count = 1,
    ) -> None:
        if paths < 1 + stride:
            raise UserError(
                f"schedule.paths={paths}: at least {1 + stride} are needed "
                f"to compare every {stride}. path"
            )
        self.threshold = threshold
        self.paths = paths
        self.decay = decay
        self.stride = stride

    def due(self, round_index: int) -> bool:
        return True

    def skip(
        self,
        round_index: int,
        paths: Sequence[Tensor],
        codebook_Vd: Tensor,
    ) -> bool:
        return mean_similarity(paths[:: self.stride], codebook_Vd, self.decay) >= self.threshold


# ------------------------------------------------------------------ the method


class VVS(Speculative):
    """Speculative decoding that skips the verification in some rounds, but never in two in a row.

    A skip commits the first tokens of one path: a random one (`select: random`) or the likeliest
    (`confidence`). `truncate` cuts it to the paths' mean length, `cap` to so many tokens: chains
    have equal lengths, so that truncation alone never cuts them. The target catches up in the next
    round. With `post: fill` it never takes skipped tokens back, as in the released code; with
    `post: reject` it verifies them together with the next draft, as the paper's "post verification"
    can be read.

    Notes `accepted` like speculative decoding, and `skips`, which counts the rounds that committed
    0, 1, 2, ... draft tokens unverified. Raises UserError for values out of range.
    """

    def __init__(
        self,
        drafter: Drafter,
        schedule: Schedule,
        gamma: Count | Tree = 4,
        rule: Rule = exact,
        select: str = "random",
        truncate: bool = True,
        post: str = "fill",
        cap: Count | None = None,
    ) -> None:
        super().__init__(drafter, gamma, rule)
        if select not in ("random", "confidence"):
            raise UserError(f"method.select={select}: choose random or confidence")
        if select == "confidence" and not isinstance(gamma, int) and gamma.chosen:
            raise UserError(
                "method.select=confidence: a dynamic tree keeps no distributions of its paths; "
                "choose random"
            )
        if post not in ("fill", "reject"):
            raise UserError(f"method.post={post}: choose fill or reject")
        if cap is not None and cap < 1:
            raise UserError(f"method.cap={cap}: let a skip commit at least one token, or leave it")
        self.schedule = schedule
        self.select = select
        self.truncate = truncate
        self.post = post
        self.cap = cap
        # What a round skipped is fed to the target together with the next draft.
        self.tokens_per_step += self.depth
        if self.tree_capacity:
            self.tree_capacity += self.depth

    async def finish(self, rows: Sequence[Canvas], s: Session) -> None:
        """Draw the canvases to their end; each of them skips or verifies by itself."""
        rng = s.rng("vvs")
        accepted = [0] * (1 + 2 * self.depth)
        skips = [0] * (1 + self.depth)
        skipped_before: dict[Canvas, Draft] = {}  # what the last round committed unverified
        round_index = 0
        while live := [canvas for canvas in rows if not canvas.done]:
            # 1. Draft for every canvas.
            proposals = await s.draft(self.drafter, live, self.gamma)
            drafts = dict(zip(live, proposals, strict=True))

            # 2. Skip: commit a part of some drafts without asking the target.
            skipped = await self._choose_skips(drafts, skipped_before, round_index, rng, s)
            for canvas, path in skipped.items():
                s.commit(canvas, path.tokens.tolist())
                skips[len(path)] += 1

            # 3. Verify the other drafts in one target forward, which also catches up on what was
            #    skipped in the last round.
            verified = {c: draft for c, draft in drafts.items() if c not in skipped}
            if self.post == "reject":
                _take_back(skipped_before, verified, s)
            if verified:
                counts = await s.step(list(verified), list(verified.values()), rule=self.rule)
                for count in counts:
                    accepted[count] += 1
            skipped_before = skipped
            round_index += 1
        s.note(accepted=accepted, skips=skips, **rule_facts(self.rule), **sum_signals(rows))

    async def _choose_skips(
        self,
        drafts: Mapping[Canvas, Draft | None],
        skipped_before: Mapping[Canvas, Draft],
        round_index: int,
        rng: np.random.Generator,
        s: Session,
    ) -> dict[Canvas, Draft]:
        """Return what to commit unverified, for the canvases that skip this round."""
        if not self.schedule.due(round_index):
            return {}

        # 1. Collect the paths of each canvas that may skip.
        candidates: dict[Canvas, list[Draft]] = {}
        for canvas, draft in drafts.items():
            if draft and canvas not in skipped_before and canvas.length > WARM:
                candidates[canvas] = split_paths(draft)
        if isinstance(self.gamma, int):
            await self._draft_chains(candidates, s)

        # 2. Choose one path of each that skips, and cut it.
        chosen = {}
        for canvas, some in candidates.items():
            path = self._choose_path(some, round_index, rng, s.codebook)
            if path is not None:
                chosen[canvas] = path
        return chosen

    async def _draft_chains(self, candidates: Mapping[Canvas, list[Draft]], s: Session) -> None:
        """Add further chains to the first one of each canvas, `schedule.paths` in all."""
        for sibling in range(1, self.schedule.paths):
            chains = await s.draft(self.drafter, list(candidates), self.gamma, sibling)
            for some, chain in zip(candidates.values(), chains, strict=True):
                if chain is not None:
                    some.append(chain)

    def _choose_path(
        self,
        paths: Sequence[Draft],
        round_index: int,
        rng: np.random.Generator,
        codebook_Vd: Tensor,
    ) -> Draft | None:
        """Return the head of a path that a skip commits; None if the round verifies instead."""
        if not self.schedule.skip(round_index, [path.tokens for path in paths], codebook_Vd):
            return None
        is_random = self.select == "random"
        chosen = int(rng.integers(len(paths))) if is_random else likeliest_path(paths)
        length = len(paths[chosen])
        if self.truncate:
            length = truncated_length([1 + len(path) for path in paths], chosen)
        if self.cap is not None:
            length = min(length, self.cap)
        return _head(paths[chosen], length) if length else None


def split_paths(draft: Draft) -> list[Draft]:
    """Split a draft into its paths from the root to a leaf, each of them a chain."""
    if draft.parents is None:
        return [draft]
    chains = []
    for nodes in paths(draft.parents):
        probs_GV = None if draft.probs is None else draft.probs[nodes]
        chains.append(Draft(draft.tokens[nodes], probs_GV))
    return chains


def truncated_length(lengths: Sequence[int], chosen: int) -> int:
    """Return how many tokens of the chosen path a skip commits.

    It is gamma - 1 for gamma = min(|P_s|, floor of the mean |P|): the paper's lengths count the
    root, which is committed already.
    """
    return min(lengths[chosen], sum(lengths) // len(lengths)) - 1


def mean_similarity(paths: Sequence[Tensor], codebook_Vd: Tensor, decay: float) -> float:
    """Average the depth-weighted cosine similarity of codes over all pairs of paths.

    The weights decay^l / sum decay^k over the longest path are not renormalised for shorter pairs:
    a depth that one of them lacks counts 0. Fewer than two paths give 0.
    """
    if len(paths) < 2:
        return 0.0
    # 1. Normalised codes along each path, zero behind its end.
    code_Vd = F.normalize(codebook_Vd.float(), dim=-1)
    depth = max(len(path) for path in paths)
    padded = [F.pad(code_Vd[path], (0, 0, 0, depth - len(path))) for path in paths]
    code_PLd = torch.stack(padded)

    # 2. Weighted similarity of each pair.
    weight_L = decay ** torch.arange(depth, dtype=torch.float32, device=code_Vd.device)
    weight_L = weight_L / weight_L.sum()
    pair_PP = torch.einsum("pld,qld,l->pq", code_PLd, code_PLd, weight_L)

    # 3. Mean over unordered pairs.
    first, second = torch.triu_indices(len(paths), len(paths), offset=1)
    return float(pair_PP[first, second].mean())


def likeliest_path(paths: Sequence[Draft]) -> int:
    """Find the path with the highest total log-probability under the drafter."""
    totals = [_log_probability(path) for path in paths]
    return totals.index(max(totals))


def _log_probability(path: Draft) -> float:
    """Return a path's log-probability under the drafter in nats; 0 if its tokens were chosen."""
    if path.probs is None:
        return 0.0
    prob_G = path.probs.gather(1, path.tokens[:, None])
    return float(prob_G.clamp(min=1e-30).log().sum())


def _head(draft: Draft, length: int) -> Draft:
    probs_GV = None if draft.probs is None else draft.probs[:length]
    return Draft(draft.tokens[:length], probs_GV)


def _take_back(
    skipped: Mapping[Canvas, Draft], drafts: dict[Canvas, Draft | None], s: Session
) -> None:
    """Withdraw skipped tokens from their canvases, and put them in front of the next drafts."""
    for canvas, path in skipped.items():
        if canvas in drafts:
            s.truncate(canvas, canvas.length - len(path))
            drafts[canvas] = _join(path, drafts[canvas])


def _join(first: Draft, second: Draft | None) -> Draft:
    """Append to a chain what was drafted after it, a chain or a tree."""
    if second is None:
        return first
    tokens_G = torch.cat((first.tokens, second.tokens))
    probs_GV = None
    if first.probs is not None and second.probs is not None:
        probs_GV = torch.cat((first.probs, second.probs))
    if second.parents is None:
        return Draft(tokens_G, probs_GV)
    # The root of the second draft is the last token of the first.
    last = len(first) - 1
    parents = (*range(-1, last), *(last + 1 + parent for parent in second.parents))
    return Draft(tokens_G, probs_GV, parents)
