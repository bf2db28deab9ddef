"""From logits to committed tokens: guidance, acceptance, commit.

    logits of the branches -> guide -> temperature, top-k, top-p -> probs -> rule -> tokens

`TokenDraw.draw` is the general path. Rows without a draft under the `exact` rule take a shorter
one, `draw_one`, which a kernel serves where the device has one; `bursts` uses the same function.
Each step of either path copies to the host once.

Shapes: S slots, R canvases, K branches of a canvas, T = 1 + draft length, G draft tokens,
V vocabulary, D depths of a tree, X numbers of one verified row, Q branches of some canvases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from harness import kernels
from harness.engine.acceptance import (
    Draft,
    Drafts,
    DraftVerdict,
    MeasuredRule,
    Rule,
    build_forest,
    exact,
    length_of_draft,
)
from harness.engine.canvas import Canvas, ledgers_of
from harness.engine.draft_trees import Forest
from harness.engine.guidance import Guide, ImageGuide, Sampling, cfg, unguided, warp
from harness.engine.meter import Clock
from harness.engine.probes import Probe
from harness.engine.slots import SlotTable
from harness.kernels.noise import DRAW, Noise
from harness.models.raster import FORCED_TOKEN, hold_forced_probs, is_forced_at


def guided_probs(
    guide: Guide,
    sampling: Sampling,
    logits_RKTV: Tensor,
    scale_R: Tensor,
    place_RT: Tensor | None = None,
    forced_N: Tensor | None = None,
) -> Tensor:
    """Turn the branches' logits into probs [R, T, V] at places of the image.

    Guidance depends on the place only under `sampling.interval` (LlamaGen `generate.py`). Where
    `forced_N` says so, the place has but one token.
    """
    logits_RTV = guide(logits_RKTV, scale_R)
    if sampling.interval >= 0:
        assert place_RT is not None
        is_late_RT1 = (place_RT >= sampling.interval + 2).unsqueeze(-1)
        unscaled_RTV = guide(logits_RKTV, torch.ones_like(scale_R))
        logits_RTV = torch.where(is_late_RT1, unscaled_RTV, logits_RTV)
    probs_RTV = warp(logits_RTV, sampling)
    if forced_N is None:
        return probs_RTV
    assert place_RT is not None
    return hold_forced_probs(probs_RTV, is_forced_at(place_RT, forced_N))


def kernel_use(sampling: Sampling, dtype: torch.dtype, vocab: int) -> kernels.Use:
    """Describe what `draw_one` asks a kernel for."""
    is_greedy = sampling.temperature == 0
    return kernels.Use("draws", dtype, vocab, is_greedy, sampling.top_k, sampling.top_p)


def draw_one(
    guide: Guide,
    sampling: Sampling,
    logits_SV: Tensor,
    slot_RK: Tensor,
    scale_R: Tensor,
    key_R2: Tensor,
    place_R: Tensor,
    forced_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token a canvas: tokens int64 [R], log-probabilities float64 [R] in nats.

    Where `forced_N` says so, the token is `FORCED_TOKEN` for sure, whatever the logits.
    """
    token_R, log_prob_R = _draw_free(guide, sampling, logits_SV, slot_RK, scale_R, key_R2, place_R)
    if forced_N is None:
        return token_R, log_prob_R
    is_forced_R = is_forced_at(place_R, forced_N)
    return (
        token_R.masked_fill(is_forced_R, FORCED_TOKEN),
        log_prob_R.masked_fill(is_forced_R, 0.0),
    )


def _draw_free(
    guide: Guide,
    sampling: Sampling,
    logits_SV: Tensor,
    slot_RK: Tensor,
    scale_R: Tensor,
    key_R2: Tensor,
    place_R: Tensor,
) -> tuple[Tensor, Tensor]:
    """Do as `draw_one` where no place is forced."""
    kernel = None
    if sampling.interval < 0 and not sampling.follows_entropy and guide in (cfg, unguided):
        use = kernel_use(sampling, logits_SV.dtype, logits_SV.shape[-1])
        kernel = kernels.guided_draw(logits_SV.device, use)
    if kernel is not None:
        row_RK = slot_RK if guide is cfg else slot_RK[:, :1]
        token_R, log_prob_R = kernel(
            logits_SV,
            row_RK,
            scale_R,
            key_R2,
            place_R,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
        )[:2]
        return token_R, log_prob_R
    place_R1 = place_R.unsqueeze(1)
    logits_RK1V = logits_SV[slot_RK].unsqueeze(2)
    probs_R1V = guided_probs(guide, sampling, logits_RK1V, scale_R, place_R1)
    token_R1 = Noise(key_R2, place_R1).race(DRAW, probs_R1V)
    prob_R = probs_R1V[:, 0].gather(1, token_R1)[:, 0]
    return token_R1[:, 0], prob_R.double().log()


@dataclass(frozen=True, slots=True)
class GuideGroup:
    """Canvases that share a guide and a number of branches, by their indices in a list of rows."""

    guide: Guide
    branches: int
    indices: list[int]


def group_by_guide(rows: Sequence[Canvas]) -> list[GuideGroup]:
    """Group canvases that can go through one guide together, in order of appearance."""
    groups: dict[tuple[Guide, int], GuideGroup] = {}
    for i, canvas in enumerate(rows):
        kind = (canvas.guide, len(canvas.branches))
        if kind not in groups:
            groups[kind] = GuideGroup(*kind, [])
        groups[kind].indices.append(i)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class GroupLogits:
    """Logits of one group of rows, and what makes probs [R, T, V] of them when it is called."""

    guide: Guide
    indices: list[int]
    logits_RKTV: Tensor
    make_probs: Callable[[], Tensor]

    def make_flat_probs(self) -> Tensor:
        """Make probs [R T, 1, V], one place a row."""
        return self.make_probs().flatten(0, 1).unsqueeze(1)


def read_text_branches(group: GroupLogits) -> Tensor:
    """Return the logits of the branches that probes compare: the null prompt's first.

    The empty image of an edit is none of them.
    """
    skipped = int(isinstance(group.guide, ImageGuide))
    return group.logits_RKTV[:, skipped:]


@dataclass(frozen=True, slots=True)
class Verified:
    """What a rule decided for R canvases: accepted draft tokens, and what is committed.

    Of `token_RT` and `log_prob_RT` the first `accepted + 1` columns of each row count. `path_RG`
    holds the accepted nodes of trees, and no columns for chains. `signals` are what the rule
    measured, [R] each.
    """

    accepted_R: Tensor
    path_RG: Tensor
    token_RT: Tensor
    log_prob_RT: Tensor
    signals: dict[str, Tensor]

    def pack(self) -> Tensor:
        """Pack all into one float64 table [R, X], so that one copy takes it to the host."""
        parts = [self.accepted_R.double().unsqueeze(1), self.token_RT.double(), self.log_prob_RT]
        parts.append(self.path_RG.double())
        parts += [value_R.double().unsqueeze(1) for value_R in self.signals.values()]
        return torch.cat(parts, 1)

    def unpack(self, row: Sequence[float]) -> VerifiedRow:
        """Read one row of a packed table."""
        width = self.token_RT.shape[1]
        accepted = int(row[0])
        committed = accepted + 1
        tokens = row[1 : 1 + width]
        log_probs = row[1 + width : 1 + 2 * width]
        nodes = self.path_RG.shape[1]
        path = row[1 + 2 * width :][:nodes] if nodes else range(accepted)
        return VerifiedRow(
            path=tuple(int(node) for node in path[:accepted]),
            tokens=[int(token) for token in tokens[:committed]],
            log_probs=list(log_probs[:committed]),
            signals=dict(zip(self.signals, row[1 + 2 * width + nodes :], strict=True)),
        )


@dataclass(frozen=True, slots=True)
class VerifiedRow:
    """What a rule decided for one canvas, on the host."""

    path: tuple[int, ...]  # accepted draft tokens, indices from the root down
    tokens: list[int]
    log_probs: list[float]
    signals: dict[str, float]


class TokenDraw:
    """Draws from the logits at the frontiers, which must be at hand, and commits."""

    def __init__(self, sampling: Sampling, slots: SlotTable, clock: Clock) -> None:
        self._sampling = sampling
        self._slots = slots
        self._clock = clock

    # ------------------------------------------------------------------ draws

    def draw(self, rows: Sequence[Canvas], drafts: Sequence[Draft | None], rule: Rule) -> list[int]:
        """Verify drafts by a rule and draw one more token each; return accepted tokens per row."""
        accepted = [0] * len(rows)
        plain: list[int] = []
        drafted: list[int] = []
        for i, draft in enumerate(drafts):
            is_plain = rule is exact and not draft
            (plain if is_plain else drafted).append(i)
        if plain:
            self._draw_plain([rows[i] for i in plain])
        if drafted:
            counts = self._verify([rows[i] for i in drafted], [drafts[i] for i in drafted], rule)
            for i, count in zip(drafted, counts, strict=True):
                accepted[i] = count
        return accepted

    def _draw_plain(self, rows: Sequence[Canvas]) -> None:
        """Draw one token for each row, as `exact` does without a draft."""
        logits_SV = self._expect_frontier(rows)[:, 0]
        order: list[int] = []
        tables: list[Tensor] = []
        with self._clock.measure(ledgers_of(rows), "decode"):
            for group in group_by_guide(rows):
                some = [rows[i] for i in group.indices]
                # 1. Draw, on the device.
                slot_RK = self._slots.index([canvas.slots for canvas in some])
                place_R = self._slots.index([canvas.length for canvas in some])
                key_R2 = self._slots.key_S2[slot_RK[:, 0]]
                token_R, log_prob_R = draw_one(
                    group.guide,
                    self._sampling,
                    logits_SV,
                    slot_RK,
                    self._scales(some),
                    key_R2,
                    place_R,
                    self._slots.forced_N,
                )
                # 2. Put the tokens where the next forward reads them.
                self._slots.token_SN[slot_RK, place_R.unsqueeze(1)] = token_R.unsqueeze(1)
                tables.append(torch.stack((token_R.double(), log_prob_R), 1))
                order.extend(group.indices)
            # 3. Copy to the host, once.
            table = torch.cat(tables).tolist()
        for i, (token, log_prob) in zip(order, table, strict=True):
            rows[i].append_drawn([int(token)], [log_prob])

    def _verify(
        self, rows: Sequence[Canvas], drafts: Sequence[Draft | None], rule: Rule
    ) -> list[int]:
        """Verify drafts by a rule and commit; return accepted tokens per row."""
        accepted = [0] * len(rows)
        width = 1 + _longest(drafts)
        order: list[tuple[int, Verified]] = []
        tables: list[Tensor] = []
        followed_probs: dict[int, Tensor] = {}
        with self._clock.measure(ledgers_of(rows), "decode"):
            for group in self.logits_by_group(rows, self._depths(drafts, width)):
                # 1. Apply the rule, on the device.
                probs_RTV = group.make_probs()
                some = [rows[i] for i in group.indices]
                their_drafts = [drafts[i] for i in group.indices]
                noise = self.noise(some, probs_RTV.shape[1])
                verified = self.apply(rule, some, their_drafts, probs_RTV, noise)
                tables.append(verified.pack())
                # 2. Keep what drafters ask for.
                for r, i in enumerate(group.indices):
                    order.append((i, verified))
                    if _is_followed(drafts[i]):
                        followed_probs[i] = probs_RTV[r]
            # 3. Copy to the host, once.
            table = torch.cat(tables).tolist()
        # 4. Commit.
        for (i, verified), values in zip(order, table, strict=True):
            row = verified.unpack(values)
            canvas = rows[i]
            accepted[i] = len(row.path)
            canvas.append_drawn(row.tokens, row.log_probs)
            canvas.add_signals(row.signals)
            draft = drafts[i]
            if draft is not None and i in followed_probs:
                probs_TV = followed_probs[i][: 1 + len(draft)]
                canvas.verdict = DraftVerdict(draft, probs_TV, row.path)
        return accepted

    def apply(
        self,
        rule: Rule,
        rows: Sequence[Canvas],
        drafts: Sequence[Draft | None],
        probs_RTV: Tensor,
        noise: Noise,
    ) -> Verified:
        """Apply a rule to one group, and store what it accepted where the next forward reads it.

        `noise` is that of the places that the T columns stand for. A canvas may be in several rows,
        with chains at places of their own.
        """
        # 1. Ask the rule for the accepted path and the next token.
        stacked = Drafts.stack(list(drafts), probs_RTV)
        path_RG, next_R = rule(probs_RTV, stacked, noise)
        signals: dict[str, Tensor] = {}
        if isinstance(rule, MeasuredRule):
            signals = rule.signals(probs_RTV, stacked, noise, path_RG)

        # 2. Line up the accepted tokens and the next one.
        accepted_R1 = (path_RG >= 0).sum(1, keepdim=True)
        next_R1 = next_R.unsqueeze(1)
        path_token_RG = stacked.token_RG.gather(1, path_RG.clamp(min=0))
        token_RT = torch.cat((path_token_RG, next_R1), 1).scatter(1, accepted_R1, next_R1)
        if self._slots.forced_N is not None:  # whatever node was accepted there, it is the same one
            is_forced_RT = is_forced_at(noise.position_RT, self._slots.forced_N)
            token_RT = token_RT.masked_fill(is_forced_RT, FORCED_TOKEN)

        # 3. Look up the log-probability of each at the place that the path gives it.
        row_R1 = torch.arange(len(rows), device=probs_RTV.device).unsqueeze(1)
        column_RT = torch.nn.functional.pad(path_RG + 1, (1, 0))
        log_prob_RT = probs_RTV[row_R1, column_RT, token_RT].double().log()

        self._store_accepted(rows, stacked.forest, path_RG, token_RT, noise.position_RT)
        tree_path_RG = path_RG[:, :0] if stacked.forest is None else path_RG
        return Verified(accepted_R1[:, 0], tree_path_RG, token_RT, log_prob_RT, signals)

    def _store_accepted(
        self,
        rows: Sequence[Canvas],
        trees: Forest | None,
        path_RG: Tensor,
        token_RT: Tensor,
        place_RT: Tensor,
    ) -> None:
        """Store the new tokens, and the keys and values of a tree's path, as a chain has them."""
        layout = []
        for r, canvas in enumerate(rows):
            layout += [(r, branch.slot, branch.start) for branch in canvas.branches]
        row_Q, slot_Q, start_Q = self._slots.index(layout).unbind(1)

        if trees is None:  # accepted tokens of a chain are in place: only the last one is new
            last_R1 = (path_RG >= 0).sum(1, keepdim=True)
            place_Q = place_RT.gather(1, last_R1)[row_Q, 0]
            self._slots.token_SN[slot_Q, place_Q] = token_RT.gather(1, last_R1)[row_Q, 0]
            return

        # 1. Tokens of the accepted path, and the next one.
        depth = trees.depth
        place_QD = place_RT[row_Q, : depth + 1]
        self._slots.token_SN[slot_Q[:, None], place_QD] = token_RT[row_Q, : depth + 1]

        # 2. Keys and values: from where the nodes lie to where a chain of them would.
        end = self._slots.cache.length
        path_QD = path_RG[row_Q, :depth]
        is_accepted_QD = path_QD >= 0
        base_Q1 = (start_Q + place_QD[:, 0]).unsqueeze(1)
        source_QD = torch.where(is_accepted_QD, base_Q1 + path_QD, end)
        chain_QD = base_Q1 + torch.arange(depth, device=base_Q1.device)
        target_QD = torch.where(is_accepted_QD, chain_QD, end)
        self._slots.move_accepted_kv(slot_Q, source_QD, target_QD)

    # ------------------------------------------------------------------ looks

    def probe(
        self, rows: Sequence[Canvas], drafts: Sequence[Draft | None], probe: Probe
    ) -> list[list[dict[str, float]]]:
        """Measure signals at the frontiers and behind each draft token; draw nothing."""
        signals: list[list[dict[str, float]]] = [[] for _ in rows]
        width = 1 + _longest(drafts)
        with self._clock.measure(ledgers_of(rows), "decode"):
            for group in self.logits_by_group(rows, self._depths(drafts, width)):
                # A probe is given one place a row: each place stands for a row.
                logits_RTKV = read_text_branches(group).transpose(1, 2)
                measured = probe(logits_RTKV.flatten(0, 1).unsqueeze(2), group.make_flat_probs)
                columns = [value_n.double() for value_n in measured.values()]
                table = torch.stack(columns, 1).unflatten(0, (-1, width)).tolist()
                for i, places in zip(group.indices, table, strict=True):
                    wanted = places[: 1 + length_of_draft(drafts[i])]
                    signals[i] = [dict(zip(measured, values, strict=True)) for values in wanted]
        return signals

    def target_probs(
        self,
        rows: Sequence[Canvas],
        drafts: Sequence[Draft | None],
        sampling: Sampling | None,
    ) -> Tensor:
        """Return the target's probs [R, T, V] at the frontiers and behind each draft token."""
        lengths = map(length_of_draft, drafts)
        if not all(map(Canvas.is_ready, rows, lengths)):
            raise RuntimeError("probs were asked for before their forward")
        width = 1 + _longest(drafts)
        with self._clock.measure(ledgers_of(rows), "draft"):
            logits_STV = self._slots.frontier_SWV
            assert logits_STV is not None
            return self.gather_probs(rows, self._depths(drafts, width), sampling, logits_STV)

    def gather_probs(
        self,
        rows: Sequence[Canvas],
        depth_RT: Tensor,
        sampling: Sampling | None,
        logits_STV: Tensor,
    ) -> Tensor:
        """Make probs [R, T, V] of logits of all slots, in the order of the rows."""
        shape = (len(rows), depth_RT.shape[1], logits_STV.shape[2])
        table_RTV = torch.zeros(shape, device=logits_STV.device)
        for group in self.logits_by_group(rows, depth_RT, sampling, logits_STV):
            probs_RTV = group.make_probs()
            table_RTV = table_RTV.to(probs_RTV.dtype)
            table_RTV[self._slots.index(group.indices)] = probs_RTV
        return table_RTV

    def noise(self, rows: Sequence[Canvas], width: int) -> Noise:
        """Return the noise of the next `width` places of each row."""
        table = self._slots
        key_R2 = table.key_S2[table.first_slots(rows)]
        length_R = table.index([canvas.length for canvas in rows])
        column_T = torch.arange(width, device=table.device)
        return Noise(key_R2, length_R.unsqueeze(1) + column_T)

    # ------------------------------------------------------------------ logits and guides

    def logits_by_group(
        self,
        rows: Sequence[Canvas],
        depth_RT: Tensor,
        sampling: Sampling | None = None,
        logits_STV: Tensor | None = None,
        column_RT: Tensor | None = None,
    ) -> Iterator[GroupLogits]:
        """Yield the logits of the rows, one guide after another.

        `depth_RT` says how far behind the frontier each of the T columns is. The logits are those
        at the frontiers unless others are given; `sampling` replaces the sampler's own. `column_RT`
        says in which columns of the logits they are, if not in the first T.
        """
        sampling = sampling or self._sampling
        if logits_STV is None:
            logits_STV = self._expect_frontier(rows)
        width = depth_RT.shape[1]
        for group in group_by_guide(rows):
            some = [rows[i] for i in group.indices]
            slot_RK = self._slots.index([canvas.slots for canvas in some])
            scale_R = self._scales(some)
            if column_RT is None:
                logits_RKTV = logits_STV[slot_RK, :width]
            else:
                column_R1T = column_RT[self._slots.index(group.indices)].unsqueeze(1)
                logits_RKTV = logits_STV[slot_RK.unsqueeze(2), column_R1T]
            place_RT = None
            if sampling.interval >= 0 or self._slots.forced_N is not None:
                length_R1 = self._slots.index([canvas.length for canvas in some])[:, None]
                place_RT = length_R1 + depth_RT[self._slots.index(group.indices)]
            make_probs = partial(
                guided_probs,
                group.guide,
                sampling,
                logits_RKTV,
                scale_R,
                place_RT,
                self._slots.forced_N,
            )
            yield GroupLogits(group.guide, group.indices, logits_RKTV, make_probs)

    def _depths(self, drafts: Sequence[Draft | None], width: int) -> Tensor:
        """Return how far behind the frontier each column of some drafts is, [R, T]."""
        trees = build_forest(drafts, width - 1)
        if trees is None:
            return torch.arange(width, device=self._slots.device).expand(len(drafts), -1)
        return self._slots.index(trees.depth_RT)

    def _expect_frontier(self, rows: Sequence[Canvas]) -> Tensor:
        """Return the logits at the frontiers. Raises RuntimeError if some are not at hand."""
        logits_SWV = self._slots.frontier_SWV
        if logits_SWV is None or not all(canvas.is_ready() for canvas in rows):
            raise RuntimeError("a token was to be drawn before its forward")
        return logits_SWV

    def _scales(self, rows: Sequence[Canvas]) -> Tensor:
        """Return the guidance scale of each row, float64 [R]."""
        scales = [canvas.scale for canvas in rows]
        return torch.tensor(scales, dtype=torch.float64, device=self._slots.device)


def _longest(drafts: Sequence[Draft | None]) -> int:
    """Return the length of the longest draft."""
    return max(map(length_of_draft, drafts), default=0)


def _is_followed(draft: Draft | None) -> bool:
    """Tell whether a drafter wants to know what the target said of the draft."""
    return draft is not None and draft.followed
