"""Drawing at chosen places of the image, out of raster order: rows that grow side by side.

Each token is drawn from the probs that the tokens before it in the raster give, as far as there are
any. Where the token right before it is missing, the nearest one before that stands in for it,
unseen by all others. A row may have a draft, a chain from its first place without a token on, that
is verified in the same forward as the drafts of other rows (`Front`); the draft of one row is
unseen by all others. ZipAR draws so without drafts, PJD with them. What a
forced place holds is known from the start: it is committed as soon as a front is right behind it,
and needs no stand-in.

A token is fed with what there was then, and once more where it is the last of a row whose next
place is tested again.

Shapes: B rows of a forward, W positions, F fronts of some canvases, K branches of a canvas, T = 1 +
draft length, N image tokens, L cache length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from harness.engine.acceptance import DraftVerdict, Front, Rule, length_of_draft
from harness.engine.canvas import Branch, Canvas, ledgers_of
from harness.engine.draw import TokenDraw, Verified, VerifiedRow
from harness.engine.forward import DecodeBatch, Forward
from harness.engine.meter import Clock
from harness.engine.slots import SlotTable
from harness.kernels.noise import Noise
from harness.models.kv_cache import GapMask
from harness.models.raster import FORCED_TOKEN


@dataclass(frozen=True, slots=True)
class _Step:
    """The fronts of one canvas, the places where it has stand-ins, and what is fed for them.

    The logits of front f are in the columns of the frontier from `columns[f]` on.
    """

    canvas: Canvas
    fronts: Sequence[Front]
    stand_ins: list[int] = field(default_factory=list)

    @property
    def fed(self) -> set[int]:
        """Return the places that are fed whatever is cached: before each front, and its draft."""
        places: set[int] = set()
        for front in self.fronts:
            places.update(range(front.place - 1, front.place + length_of_draft(front.draft)))
        return places

    @property
    def columns(self) -> list[int]:
        """Return the column of the frontier where the logits of each front begin."""
        lengths = [1 + length_of_draft(front.draft) for front in self.fronts]
        return [sum(lengths[:f]) for f in range(len(lengths))]


class OutOfOrderDraw:
    """Verifies drafts and draws tokens at chosen places in one forward."""

    def __init__(
        self,
        slots: SlotTable,
        forward: Forward,
        draw: TokenDraw,
        clock: Clock,
        *,
        num_tokens: int,
        stride: int,
        tokens_per_step: int,
    ) -> None:
        self._slots = slots
        self._forward = forward
        self._draw = draw
        self._clock = clock
        self._num_tokens = num_tokens
        self._stride = stride
        self._tokens_per_step = tokens_per_step

    def step_at(
        self, rows: Sequence[Canvas], fronts: Sequence[Sequence[Front]], rule: Rule
    ) -> list[list[int]]:
        """Verify the drafts at the fronts of each row and draw a token behind each, in one forward.

        Returns how many tokens of each draft were accepted. Raises ValueError for places that have
        a token or lie beyond the image, for fronts that get in each other's way, and where more
        positions wait to be fed than fit into one forward.
        """
        # 1. Check the fronts, commit forced places right before them, and write the other tokens
        #    that are fed: stand-ins and drafts.
        steps = [_Step(canvas, some) for canvas, some in zip(rows, fronts, strict=True)]
        for step in steps:
            self._expect_fronts(step)
        for step in steps:
            self._commit_forced(step)
            self._write_tokens(step)

        # 2. Cache what must be there before. A row with tokens cached behind a gap is left out of
        #    the prefill: nothing of it is fed twice.
        self._forward.load_prefixes(rows)
        to_prefill: list[tuple[Canvas, int]] = []
        for step in steps:
            if not any(branch.cached_behind_gap for branch in step.canvas.branches):
                # Stand-ins and drafts take columns of the forward, as one draft would.
                drafted = sum(length_of_draft(front.draft) for front in step.fronts)
                to_prefill.append((step.canvas, len(step.stand_ins) + drafted))
        self._forward.prefill(to_prefill)

        # 3. Feed the rest, and verify.
        self._feed(steps)
        return self._verify(steps, rule)

    def noise(self, rows: Sequence[Canvas], places: Sequence[int], width: int) -> Noise:
        """Return the noise of `width` places from a front of each row on, [R, width].

        Tests at a row of the image that committed no next token before have noise of their own
        every time: those places are tested again.
        """
        table = self._slots
        key_R2 = table.key_S2[table.first_slots(rows)]
        place_R1 = table.index(list(places)).unsqueeze(1)
        noise = Noise(key_R2, place_R1 + torch.arange(width, device=table.device))
        retests = [
            canvas.front_retests.get(place // self._stride, 0)
            for canvas, place in zip(rows, places, strict=True)
        ]
        return noise.retested(table.index(retests)) if any(retests) else noise

    # ------------------------------------------------------------------ before the forward

    def _expect_fronts(self, step: _Step) -> None:
        """Raise ValueError for fronts that cannot be stepped at."""
        canvas = step.canvas
        canvas.expect_open()
        wanted: list[int] = []
        for front in step.fronts:
            last = front.place + length_of_draft(front.draft)
            wanted += range(front.place, last + 1)
        bad = [
            place
            for place in wanted
            if place in canvas.out_of_order or not canvas.length <= place < self._num_tokens
        ]
        if bad or not wanted:
            raise ValueError(
                f"places {bad} are drawn or beyond the image's {self._num_tokens} tokens"
            )
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"places {sorted(wanted)}: the fronts of a canvas must lie apart")
        self._expect_drafts(step.fronts)

    def _expect_drafts(self, fronts: Sequence[Front]) -> None:
        """Raise ValueError for drafts that no front can have."""
        image_rows: list[int] = []
        before = {front.place - 1 for front in fronts}
        for front in fronts:
            if front.draft is None or not len(front.draft):
                if not front.commits_next:
                    raise ValueError(f"the front at {front.place} has no draft and commits nothing")
                continue
            if front.draft.parents is not None:
                raise ValueError("the draft at a front is a chain, not a tree")
            places = range(front.place, front.place + len(front.draft))
            image_rows += {place // self._stride for place in places}
            if hidden := before.intersection(places):
                raise ValueError(f"place {min(hidden)} is in a draft, and before another front")
        if len(set(image_rows)) < len(image_rows):
            raise ValueError("a row of the image has one draft at most: step at them in turn")
        drafted = sum(length_of_draft(front.draft) > 0 for front in fronts)
        if len(image_rows) > drafted:
            raise ValueError("a draft goes beyond its row of the image: cut it there")

    def _commit_forced(self, step: _Step) -> None:
        """Commit the forced places that lie right before the fronts of a canvas and are missing."""
        canvas = step.canvas
        for front in step.fronts:
            gap = front.place - 1
            is_missing = gap >= canvas.length and gap not in canvas.out_of_order
            if is_missing and self._slots.raster.is_forced(gap):
                self._slots.write_tokens(canvas, gap, [FORCED_TOKEN])
                canvas.insert_drawn([gap], [FORCED_TOKEN], [0.0])

    def _write_tokens(self, step: _Step) -> None:
        """Write drafts, and a stand-in before each front that has no token there."""
        canvas = step.canvas
        drawn = canvas.out_of_order
        for front in step.fronts:
            if front.draft is not None:
                self._slots.write_tokens(canvas, front.place, front.draft.tokens)
            gap = front.place - 1
            if gap < canvas.length or gap in drawn:
                continue
            before = [place for place in drawn if place < gap]
            token = drawn[max(before)][0] if before else canvas.last_token
            self._slots.write_tokens(canvas, gap, [token])
            step.stand_ins.append(gap)

    # ------------------------------------------------------------------ the forward

    def _feed(self, steps: Sequence[_Step]) -> None:
        """Feed what is not cached, and what the fronts need; bring their logits to hand."""
        most = self._tokens_per_step
        end = self._slots.cache.length
        live_rows, columns = self._forward.choose_shape(most)
        batch = DecodeBatch.idle(live_rows, columns, end)
        own_from_BW = batch.stored_BW.copy()
        is_gap_BL = np.zeros((live_rows, end + 1), dtype=bool)
        for step in steps:
            is_missing_N = np.ones(self._num_tokens, dtype=bool)
            is_missing_N[[*range(step.canvas.length), *step.canvas.out_of_order]] = False
            for branch in step.canvas.branches:
                # 1. Which places are fed.
                fed = self._list_fed(step, branch)
                if len(fed) > most:
                    raise ValueError(f"{len(fed)} positions wait to be fed: at most {most} fit")
                # 2. The branch's row of the batch.
                self._lay_out(step, branch, fed, batch, own_from_BW)
                first = branch.start
                is_gap_BL[branch.slot, first : first + self._num_tokens] = is_missing_N
                # 3. Charge it, and count what is cached now. Drafts count once they are accepted.
                in_text = sum(place < 0 for place in fed)
                step.canvas.ledger.text_positions += in_text
                step.canvas.ledger.target_positions += len(fed) - in_text
                branch.mark_cached([place for place in fed[in_text:] if not is_missing_N[place]])
        device = self._slots.device
        own_from = torch.from_numpy(own_from_BW).to(device)
        mask = GapMask(torch.from_numpy(is_gap_BL).to(device), own_from)
        self._forward.run([step.canvas for step in steps], batch, mask=mask)
        for step in steps:
            # All columns count as ready, as the draw asks for it; `insert_drawn` ends that.
            step.canvas.logits_depth = most - 1

    def _list_fed(self, step: _Step, branch: Branch) -> list[int]:
        """List the places of a branch to feed: all that is committed and not cached, and more."""
        in_order = range(branch.cached - branch.start, step.canvas.length)
        committed = {*in_order, *step.canvas.out_of_order}
        return sorted((committed - branch.cached_behind_gap) | step.fed)

    def _lay_out(
        self,
        step: _Step,
        branch: Branch,
        fed: Sequence[int],
        batch: DecodeBatch[np.ndarray],
        own_from_BW: np.ndarray,
    ) -> None:
        """Fill a branch's row of the batch, and where what each column counts as its own begins.

        A front is answered by the column before it and those of its draft.
        """
        row = branch.slot
        batch.start_B[row] = branch.start
        batch.stored_BW[row, : len(fed)] = branch.start + np.asarray(fed)
        own_from_BW[row] = batch.stored_BW[row]
        for front, first in zip(step.fronts, step.columns, strict=True):
            width = 1 + length_of_draft(front.draft)
            column = fed.index(front.place - 1)
            batch.answer_BW[row, first : first + width] = column + np.arange(width)
            batch.is_fresh_BW[row, first : first + width] = 1
            own_from_BW[row, column : column + width] = branch.start + front.place - 1

    # ------------------------------------------------------------------ behind the forward

    def _verify(self, steps: Sequence[_Step], rule: Rule) -> list[list[int]]:
        """Verify all fronts by a rule, and commit; return the accepted tokens of each."""
        # 1. List the fronts of all canvases side by side, padded to the longest.
        flat = [(step.canvas, front) for step in steps for front in step.fronts]
        first = [column for step in steps for column in step.columns]
        rows = [canvas for canvas, _ in flat]
        width = 1 + max(length_of_draft(front.draft) for _, front in flat)
        table = self._slots
        ahead_T = torch.arange(width, device=table.device)
        column_FT = (table.index(first).unsqueeze(1) + ahead_T).clamp(max=self._tokens_per_step - 1)
        behind = [front.place - canvas.length for canvas, front in flat]
        depth_FT = table.index(behind).unsqueeze(1) + ahead_T

        # 2. Verify, one guide after another, and copy to the host once.
        order: list[tuple[int, Verified, Tensor]] = []
        tables: list[Tensor] = []
        with self._clock.measure(ledgers_of([step.canvas for step in steps]), "decode"):
            for group in self._draw.logits_by_group(rows, depth_FT, column_RT=column_FT):
                probs_FTV = group.make_probs()
                some = [rows[i] for i in group.indices]
                drafts = [flat[i][1].draft for i in group.indices]
                noise = self.noise(some, [flat[i][1].place for i in group.indices], width)
                verified = self._draw.apply(rule, some, drafts, probs_FTV, noise)
                tables.append(verified.pack())
                order += [(i, verified, probs_FTV[f]) for f, i in enumerate(group.indices)]
            packed = torch.cat(tables).tolist()

        # 3. Commit.
        counts = [0] * len(flat)
        for (i, verified, probs_TV), values in zip(order, packed, strict=True):
            canvas, front = flat[i]
            decided = verified.unpack(values)
            self._commit(canvas, front, decided, probs_TV)
            counts[i] = len(decided.path)
        accepted = iter(counts)
        return [[next(accepted) for _ in step.fronts] for step in steps]

    def _commit(self, canvas: Canvas, front: Front, decided: VerifiedRow, probs_TV: Tensor) -> None:
        """Commit what was decided at one front, and keep what its drafter asks for."""
        # 1. Accepted draft tokens are cached as they stand.
        accepted = len(decided.path)
        count = accepted + front.commits_next
        places = range(front.place, front.place + count)
        canvas.insert_drawn(places, decided.tokens[:count], decided.log_probs[:count])
        for branch in canvas.branches:
            branch.mark_cached(places[:accepted])
        canvas.add_signals(decided.signals)

        # 2. Keep the verdict, and count that the row is tested again.
        row = front.place // self._stride
        canvas.front_verdicts.pop(row, None)
        held: int | None = None
        if not front.commits_next:
            held = decided.tokens[accepted]
            canvas.front_retests[row] = 1 + canvas.front_retests.get(row, 0)
        if front.draft is not None and front.draft.followed:
            kept_TV = probs_TV[: 1 + len(front.draft)]
            canvas.front_verdicts[row] = DraftVerdict(front.draft, kept_TV, decided.path, held)
