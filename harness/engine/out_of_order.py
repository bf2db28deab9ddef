"""Drawing at chosen places of the image, out of raster order: what ZipAR's rows need.

Each token is drawn from the probs that the tokens before it in the raster give, as far as there are
any. Where the token right before it is missing, the nearest one before that stands in for it,
unseen by all others. A token is fed once, with what there was when it was drawn. What a forced
place holds is known from the start: it is committed as soon as the place behind it is drawn, and no
stand-in is needed for it.

Shapes: B rows of a forward, W positions, R canvases, K branches of a canvas, T places of a canvas,
N image tokens, L cache length,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.engine.canvas import Canvas, ledgers_of
from harness.engine.draw import TokenDraw
from harness.engine.forward import DecodeBatch, Forward
from harness.engine.meter import Clock
from harness.engine.slots import SlotTable
from harness.kernels.noise import DRAW, Noise
from harness.models.kv_cache import GapMask
from harness.models.raster import FORCED_TOKEN


class OutOfOrderDraw:
    """Draws the tokens of chosen places in one forward."""

    def __init__(
        self,
        slots: SlotTable,
        forward: Forward,
        draw: TokenDraw,
        clock: Clock,
        *,
        num_tokens: int,
        tokens_per_step: int,
    ) -> None:
        self._slots = slots
        self._forward = forward
        self._draw = draw
        self._clock = clock
        self._num_tokens = num_tokens
        self._tokens_per_step = tokens_per_step

    def draw_at(self, rows: Sequence[Canvas], places: Sequence[Sequence[int]]) -> None:
        """Draw the tokens of `places` of each row, whatever else is missing.

        Raises ValueError for places that have a token or lie beyond the image, and where more
        positions wait to be fed than fit into one forward.
        """
        # 1. Check the places; commit forced ones right before them, and write stand-ins before
        #    those that have nothing before them.
        for canvas, at in zip(rows, places, strict=True):
            self._expect_free(canvas, at)
            self._commit_forced(canvas, at)
        stand_ins = [
            self._write_stand_ins(canvas, at) for canvas, at in zip(rows, places, strict=True)
        ]

        # 2. Cache what must be there before. A row with tokens cached behind a gap is left out of
        #    the prefill: nothing is fed twice.
        self._forward.load_prefixes(rows)
        to_prefill: list[tuple[Canvas, int]] = []
        for canvas, extra in zip(rows, stand_ins, strict=True):
            if not any(branch.cached_behind_gap for branch in canvas.branches):
                # Stand-ins take columns of the forward, as a draft would.
                to_prefill.append((canvas, len(extra)))
        self._forward.prefill(to_prefill)

        # 3. Feed the rest, and draw.
        self._feed(rows, places, stand_ins)
        self._draw_places(rows, places)

    def _expect_free(self, canvas: Canvas, places: Sequence[int]) -> None:
        """Raise ValueError for places that cannot be drawn."""
        canvas.expect_open()
        bad = []
        for place in places:
            is_inside = canvas.length <= place < self._num_tokens
            if place in canvas.out_of_order or not is_inside:
                bad.append(place)
        if bad or not places:
            raise ValueError(
                f"places {bad} are drawn or beyond the image's {self._num_tokens} tokens"
            )

    def _commit_forced(self, canvas: Canvas, places: Sequence[int]) -> None:
        """Commit the forced places that lie right before some places and are missing."""
        missing = [place - 1 for place in places if self._is_forced_gap(canvas, place - 1)]
        if missing:
            tokens = [FORCED_TOKEN] * len(missing)
            self._commit(canvas, missing, tokens, [0.0] * len(missing))

    def _is_forced_gap(self, canvas: Canvas, place: int) -> bool:
        """Tell whether a place is forced and has no token yet."""
        is_missing = place >= canvas.length and place not in canvas.out_of_order
        return is_missing and self._slots.raster.is_forced(place)

    def _write_stand_ins(self, canvas: Canvas, places: Sequence[int]) -> list[int]:
        """Write a stand-in before each place that has no token there; return where."""
        drawn = canvas.out_of_order
        missing = [
            place - 1 for place in places if place > canvas.length and place - 1 not in drawn
        ]
        for gap in missing:
            before = [place for place in drawn if place < gap]
            token = drawn[max(before)][0] if before else canvas.last_token
            self._slots.write_tokens(canvas, gap, [token])
        return missing

    def _feed(
        self,
        rows: Sequence[Canvas],
        places: Sequence[Sequence[int]],
        stand_ins: Sequence[Sequence[int]],
    ) -> None:
        """Feed all uncached tokens and stand-ins, and bring the logits of `places` to hand."""
        most = self._tokens_per_step
        end = self._slots.cache.length
        live_rows, columns = self._forward.choose_shape(most)
        batch = DecodeBatch.idle(live_rows, columns, end)
        is_gap_BL = np.zeros((live_rows, end + 1), dtype=bool)
        for canvas, wanted, extra in zip(rows, places, stand_ins, strict=True):
            is_missing_N = np.ones(self._num_tokens, dtype=bool)
            is_missing_N[[*range(canvas.length), *canvas.out_of_order]] = False
            for branch in canvas.branches:
                # 1. Which places are fed: all that is committed and not cached, and stand-ins.
                in_order = range(branch.cached - branch.start, canvas.length)
                committed = {*in_order, *canvas.out_of_order, *extra}
                fed = sorted(committed - branch.cached_behind_gap)
                if len(fed) > most:
                    raise ValueError(f"{len(fed)} positions wait to be fed: at most {most} fit")
                # 2. The branch's row of the batch; a wanted place is answered by the one before it.
                row = branch.slot
                start = branch.start
                answers = [fed.index(place - 1) for place in wanted]
                batch.start_B[row] = start
                batch.stored_BW[row, : len(fed)] = start + np.asarray(fed)
                batch.answer_BW[row, : len(wanted)] = answers
                batch.is_fresh_BW[row, : len(wanted)] = 1
                is_gap_BL[row, start : start + self._num_tokens] = is_missing_N
                # 3. Charge it, and count what is cached now; stand-ins are not.
                in_text = sum(place < 0 for place in fed)
                canvas.ledger.text_positions += in_text
                canvas.ledger.target_positions += len(fed) - in_text
                in_image = fed[in_text:]
                branch.mark_cached([place for place in in_image if place not in extra])
        mask = GapMask(torch.from_numpy(is_gap_BL).to(self._slots.device))
        self._forward.run(rows, batch, mask=mask)
        for canvas in rows:
            # All columns count as ready, as the draw asks for it; `insert_drawn` ends that.
            canvas.logits_depth = most - 1

    def _draw_places(self, rows: Sequence[Canvas], places: Sequence[Sequence[int]]) -> None:
        """Draw a token for each place from the logits at the frontier, and commit them."""
        # 1. Pad the places of each row to the most that a row has.
        table = self._slots
        width = max(len(at) for at in places)
        padded: list[list[int]] = []
        for at in places:
            padding = [at[0]] * (width - len(at))
            padded.append([*at, *padding])
        place_RT = table.index(padded)
        length_R1 = table.index([canvas.length for canvas in rows]).unsqueeze(1)

        # 2. Draw, one guide after another, and copy to the host once.
        order: list[int] = []
        tables: list[Tensor] = []
        with self._clock.measure(ledgers_of(rows), "decode"):
            for group in self._draw.logits_by_group(rows, place_RT - length_R1):
                probs_RTV = group.make_probs()
                some = [rows[i] for i in group.indices]
                key_R2 = table.key_S2[table.first_slots(some)]
                noise = Noise(key_R2, place_RT[table.index(group.indices)])
                token_RT = noise.race(DRAW, probs_RTV)
                prob_RT = probs_RTV.gather(-1, token_RT.unsqueeze(-1)).squeeze(-1)
                log_prob_RT = prob_RT.double().log()
                tables.append(torch.cat((token_RT.double(), log_prob_RT), 1))
                order.extend(group.indices)
            drawn = torch.cat(tables).tolist()

        # 3. Commit.
        for i, values in zip(order, drawn, strict=True):
            tokens = values[:width]
            log_probs = values[width:]
            self._commit(rows[i], places[i], tokens, log_probs)

    def _commit(
        self,
        canvas: Canvas,
        places: Sequence[int],
        tokens: Sequence[float],
        log_probs: Sequence[float],
    ) -> None:
        """Store and commit the tokens of one row, without the padding."""
        count = len(places)
        drawn = [int(token) for token in tokens[:count]]
        slot_K1 = self._slots.slots_of(canvas).unsqueeze(1)
        place_T = self._slots.index(list(places))
        self._slots.token_SN[slot_K1, place_T] = self._slots.index(drawn)
        canvas.insert_drawn(places, drawn, log_probs[:count])
