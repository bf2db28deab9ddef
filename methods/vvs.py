"""VVS: some rounds of speculative decoding commit draft tokens without asking the target (arXiv
2511.13587).

The published method picks among the paths of an EAGLE tree. Where `gamma` is a number, the paths
are independent chains instead, and an independent draft model keeps drafting from its own cache
after a skip (our reading; the authors publish none). The schedules, the choice of a path and its
truncation are theirs (HyattDD/VVS, `skip_utils_llamagen.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import Canvas, Draft, Drafter, Rule, Session, Tree, UserError, exact, paths
from methods.speculative import Speculative, signals

WARM = 6
"""Tokens in the cache before the first skip."""


class Schedule(Protocol):
    """Decides which rounds skip the target; without a tree, `paths` chains are drafted in a round
    that may.
    """

    paths: int

    def skip(self, round_: int, paths: Sequence[Tensor], codebook_Vd: Tensor) -> bool: ...

    def due(self, round_: int) -> bool:
        """Whether a skip is possible at all, before any further path is drafted."""
        ...


class Uniform:
    """Skip one round in every `interval`: rounds `phase`, `phase` + `interval`, ... (VVS-U);
    interval 1 never skips.

    `paths` chains are drafted in those rounds, one of which is committed. Raises UserError for an
    interval below 1.
    """

    def __init__(self, interval: int, phase: int = 1, paths: int = 1) -> None:
        if interval < 1:
            raise UserError(f"schedule.interval={interval}: must be at least 1, which never skips")
        self.interval = interval
        self.phase = phase
        self.paths = paths

    def due(self, round_: int) -> bool:
        return self.interval > 1 and round_ % self.interval == self.phase % self.interval

    def skip(self, round_: int, paths: Sequence[Tensor], codebook_Vd: Tensor) -> bool:
        return self.due(round_)


class Dynamic:
    """Skip when the drafted paths look alike: mean similarity at least `threshold` (VVS-D).

    `decay` weighs depths, every `stride`-th path is compared. Raises UserError for a single path:
    nothing to compare.
    """

    def __init__(
        self, threshold: float, paths: int = 4, decay: float = 0.9, stride: int = 1
    ) -> None:
        if paths < 1 + stride:
            raise UserError(
                f"schedule.paths={paths}: at least {1 + stride} are needed to compare every {stride}. path"
            )
        self.threshold = threshold
        self.paths = paths
        self.decay = decay
        self.stride = stride

    def due(self, round_: int) -> bool:
        return True

    def skip(self, round_: int, paths: Sequence[Tensor], codebook_Vd: Tensor) -> bool:
        return similarity(paths[:: self.stride], codebook_Vd, self.decay) >= self.threshold


class VVS(Speculative):
    """Speculative decoding that skips verification in some rounds, never in two that follow each
    other.

    A skip commits the first tokens of a path drawn at random (`select: random`) or of the likeliest
    (`confidence`); `truncate` cuts it to the paths' mean length. The target catches up in the next
    round. With `post: fill` it never takes skipped tokens back, as in the released code; with
    `post: reject` it verifies them together with the next draft, as the paper's "post verification"
    can be read. Notes `accepted` like speculative decoding, and `skips`: how many rounds committed
    1, 2, ... tokens unseen. Raises UserError for values out of range.
    """

    def __init__(
        self,
        drafter: Drafter,
        schedule: Schedule,
        gamma: int | Tree = 4,
        rule: Rule = exact,
        select: str = "random",
        truncate: bool = True,
        post: str = "fill",
    ) -> None:
        super().__init__(drafter, gamma, rule)
        if select not in ("random", "confidence"):
            raise UserError(f"method.select={select}: choose random or confidence")
        if select == "confidence" and not isinstance(gamma, int) and gamma.chosen:
            raise UserError(
                "method.select=confidence: a dynamic tree keeps no laws of its paths; choose random"
            )
        if post not in ("fill", "reject"):
            raise UserError(f"method.post={post}: choose fill or reject")
        self.schedule = schedule
        self.select = select
        self.truncate = truncate
        self.post = post
        self.tokens_per_step += self.depth  # what was skipped is fed with the next draft
        self.tree_capacity += self.depth if self.tree_capacity else 0

    async def finish(self, rows: Sequence[Canvas], s: Session) -> None:
        """Draw the rows to their end; each skips on its own account."""
        rng = s.rng("vvs")
        accepted = [0] * (1 + 2 * self.depth)
        skips = [0] * (1 + self.depth)
        unseen: dict[Canvas, Draft] = {}  # what a row's last round committed without the target
        round_ = 0
        while live := [canvas for canvas in rows if not canvas.done]:
            drafts = dict(zip(live, await s.draft(self.drafter, live, self.gamma), strict=True))
            skipped = await self._skips(drafts, unseen, round_, rng, s)
            for canvas, path in skipped.items():
                s.commit(canvas, path.tokens.tolist())
                skips[len(path)] += 1
            verified = [canvas for canvas in live if canvas not in skipped]
            for canvas in verified:
                if canvas in unseen and self.post == "reject":
                    s.truncate(canvas, canvas.length - len(unseen[canvas]))
                    drafts[canvas] = _joined(unseen[canvas], drafts[canvas])
            if verified:
                for count in await s.step(
                    verified, [drafts[canvas] for canvas in verified], rule=self.rule
                ):
                    accepted[count] += 1
            unseen = skipped
            round_ += 1
        s.note(accepted=accepted, skips=skips, **signals(rows))

    async def _skips(
        self,
        drafts: Mapping[Canvas, Draft | None],
        unseen: Mapping[Canvas, Draft],
        round_: int,
        rng: np.random.Generator,
        s: Session,
    ) -> dict[Canvas, Draft]:
        """What to commit unseen, for the rows that skip this round."""
        if not self.schedule.due(round_):
            return {}
        found = {
            c: branches(draft)
            for c, draft in drafts.items()
            if draft and c not in unseen and c.length > WARM
        }
        for sibling in range(1, self.schedule.paths if isinstance(self.gamma, int) else 1):
            for canvas, other in zip(
                found, await s.draft(self.drafter, list(found), self.gamma, sibling), strict=True
            ):
                if other is not None:
                    found[canvas].append(other)
        chosen = {
            canvas: self._choose(some, round_, rng, s.codebook) for canvas, some in found.items()
        }
        return {canvas: path for canvas, path in chosen.items() if path is not None}

    def _choose(
        self, paths: Sequence[Draft], round_: int, rng: np.random.Generator, codebook_Vd: Tensor
    ) -> Draft | None:
        if not self.schedule.skip(round_, [path.tokens for path in paths], codebook_Vd):
            return None
        chosen = int(rng.integers(len(paths))) if self.select == "random" else likeliest(paths)
        length = (
            kept([1 + len(path) for path in paths], chosen) if self.truncate else len(paths[chosen])
        )
        return _head(paths[chosen], length) if length else None


def branches(draft: Draft) -> list[Draft]:
    """The root-to-leaf paths of a draft."""
    if draft.parents is None:
        return [draft]
    return [
        Draft(draft.tokens[p], None if draft.probs is None else draft.probs[p])
        for p in paths(draft.parents)
    ]


def kept(lengths: Sequence[int], chosen: int) -> int:
    """Tokens of the chosen path that a skip commits: gamma - 1 for gamma = min(|P_s|, floor of the
    mean |P|).

    Lengths count the root, which is committed already.
    """
    return min(lengths[chosen], sum(lengths) // len(lengths)) - 1


def similarity(paths: Sequence[Tensor], codebook_Vd: Tensor, decay: float) -> float:
    """Mean over pairs of paths of the depth-weighted cosine similarity of their codes.

    Weights decay^l / sum decay^k over the longest path are not renormalised for shorter pairs: a
    depth that one of them lacks counts 0. Fewer than two paths give 0.
    """
    if len(paths) < 2:
        return 0.0
    depth = max(len(path) for path in paths)
    rows = F.normalize(codebook_Vd.float(), dim=-1)
    code_PLd = torch.stack([F.pad(rows[path], (0, 0, 0, depth - len(path))) for path in paths])
    weight_L = decay ** torch.arange(depth, dtype=torch.float32, device=rows.device)
    pair_PP = torch.einsum("pld,qld,l->pq", code_PLd, code_PLd, weight_L / weight_L.sum())
    first, second = torch.triu_indices(len(paths), len(paths), offset=1)
    return float(pair_PP[first, second].mean())


def likeliest(paths: Sequence[Draft]) -> int:
    """The path with the highest cumulative log-probability under the drafter."""

    def log_probability(path: Draft) -> float:
        if path.probs is None:
            return 0.0
        return float(path.probs.gather(1, path.tokens[:, None]).clamp(min=1e-30).log().sum())

    return max(range(len(paths)), key=lambda i: log_probability(paths[i]))


def _head(draft: Draft, length: int) -> Draft:
    return Draft(draft.tokens[:length], None if draft.probs is None else draft.probs[:length])


def _joined(first: Draft, second: Draft | None) -> Draft:
    """A chain and what was drafted behind it."""
    if second is None:
        return first
    probs = (
        None
        if first.probs is None or second.probs is None
        else torch.cat((first.probs, second.probs))
    )
    end = len(first) - 1
    parents = second.parents and (*range(-1, end), *(end + 1 + parent for parent in second.parents))
    return Draft(torch.cat((first.tokens, second.tokens)), probs, parents)
