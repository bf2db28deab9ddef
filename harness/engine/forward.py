"""One forward of constant shape: prefixes, prefill, decode, and the ledger of positions.

A decode forward always has the shape [S, W], a prefill forward [B, C], however many branches are
alive; positions that pad it are written to scratch and never read. The tokens of a job therefore do
not depend on what else is in the batch. A *compact* forward feeds the first B slots only and takes
one of a few shapes [B, W] by the number of live branches: faster, but results depend on that
number.

Shapes: S slots, B of them in a forward, W positions per branch, T = 1 + draft length, V vocabulary,
D model width, X = 1 + 3 W columns of a packed batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.engine.acceptance import Draft, build_forest, length_of_draft
from harness.engine.canvas import Branch, Canvas, Context
from harness.engine.cuda_graphs import Graphs, Staging
from harness.engine.draft_trees import Forest
from harness.engine.meter import Clock
from harness.engine.slots import SlotTable
from harness.models import HasPrefix, ImageModel
from harness.models.kv_cache import Mask, Prefix, TreeMask
from harness.models.trunk import Attend
from harness.records import Usage

Table = TypeVar("Table", np.ndarray, Tensor)


@dataclass(frozen=True, slots=True)
class DecodeBatch(Generic[Table]):
    """The inputs of a decode forward: columns of one table [B, 1 + 3 W], which one copy moves.

    The host fills the views of an array; the device reads the same views of a tensor.
    """

    table_BX: Table

    @staticmethod
    def idle(rows: int, columns: int, end: int) -> DecodeBatch[np.ndarray]:
        """Make a batch in which no row is live: all positions are `end`, the scratch position."""
        batch = DecodeBatch(np.zeros((rows, 1 + 3 * columns), dtype=np.int64))
        batch.stored_BW[:] = end
        return batch

    @property
    def columns(self) -> int:
        """Return the positions per branch, W."""
        return (self.table_BX.shape[1] - 1) // 3

    @property
    def start_B(self) -> Table:
        """Context length of the branch in each row."""
        return self.table_BX[:, 0]

    @property
    def stored_BW(self) -> Table:
        """Cache position where each fed column is stored."""
        return self.table_BX[:, 1 : 1 + self.columns]

    @property
    def answer_BW(self) -> Table:
        """Fed column whose logits belong at each place of the frontier."""
        return self.table_BX[:, 1 + self.columns : 1 + 2 * self.columns]

    @property
    def is_fresh_BW(self) -> Table:
        """1 at each place of the frontier that this forward answers, 0 where it stays as it is."""
        return self.table_BX[:, 1 + 2 * self.columns :]


class Forward:
    """The forwards of one sampler: they bring the logits that a draw needs to the frontier.

    `frontier_SWV` of the slot table holds, for each slot, the logits behind its last committed
    token and behind each of its draft tokens.
    """

    def __init__(
        self,
        model: ImageModel,
        slots: SlotTable,
        clock: Clock,
        *,
        tokens_per_step: int,
        tree_capacity: int,
        prefill: tuple[int, int],
        compact: bool,
    ) -> None:
        self._model = model
        self.slots = slots
        self._clock = clock
        self._tokens_per_step = tokens_per_step
        self._tree_capacity = tree_capacity
        self._prefill_shape = prefill
        self._is_compact = compact
        self._end = slots.cache.length  # the scratch position
        self._device = slots.device
        self._staging = Staging(slots.device)
        self._prefix_of = _cached_prefixes(model, 4 * slots.count)
        self.graphs = Graphs(slots.device)
        self.decode_steps = 0  # decode forwards so far
        self.active_branch_steps = 0  # live branches, summed over them

    # ------------------------------------------------------------------ the whole forward

    def bring_logits(self, rows: Sequence[Canvas], drafts: Sequence[Draft | None]) -> None:
        """Compute the logits at each frontier and behind each draft token, where they are missing.

        Raises ValueError for a finished canvas, and for a draft that does not fit into one forward
        or reaches beyond the last token but one.
        """
        # 1. Leave out the rows whose logits are at hand already.
        waiting: list[Canvas] = []
        their_drafts: list[Draft | None] = []
        lengths: list[int] = []
        for canvas, draft in zip(rows, drafts, strict=True):
            length = length_of_draft(draft)
            if canvas.is_ready(length):
                continue
            waiting.append(canvas)
            their_drafts.append(draft)
            lengths.append(length)
        if not waiting:
            return
        trees = build_forest(their_drafts, max(lengths))

        # 2. Check each draft, and write its tokens behind the committed ones.
        for i, canvas in enumerate(waiting):
            depth = lengths[i] if trees is None else int(trees.depth_RT[i].max())
            self._expect_fit(canvas, lengths[i], depth)
            draft = their_drafts[i]
            if draft:
                self.slots.write_tokens(canvas, canvas.length, draft.tokens)

        # 3. Cache what must be there before: prefixes, and all pending positions that do not fit.
        self.load_prefixes(waiting)
        self.prefill(list(zip(waiting, lengths, strict=True)))

        # 4. Feed the rest and the drafts in one forward.
        self._decode(waiting, lengths, trees)

    def _expect_fit(self, canvas: Canvas, length: int, depth: int) -> None:
        """Raise ValueError if a draft of so many tokens cannot be verified at the frontier."""
        canvas.expect_open()
        canvas.expect_no_gap()
        if canvas.done:
            raise ValueError("the canvas is finished: nothing is left to draw")
        is_too_long = length > self._tokens_per_step - 1
        is_too_deep = depth > canvas.left - 1
        if is_too_long or is_too_deep:
            fit = min(self._tokens_per_step, canvas.left) - 1
            raise ValueError(
                f"draft of {length} tokens, {depth} deep, at {canvas.length}: at most {fit} fit"
            )
        places = canvas.left + self._tree_capacity
        if length > places:
            raise ValueError(
                f"draft tree of {length} nodes at {canvas.length}: the slot has {places} places"
            )

    # ------------------------------------------------------------------ before decoding

    def load_prefixes(self, rows: Sequence[Canvas]) -> None:
        """Put prefixes that a model computes at once into the slots where nothing is cached.

        Branches of one prompt share the computation. Each is charged with its positions, and its
        job with one pass, as if it had been alone: what a job costs must not depend on what else is
        in the batch.
        """
        if self._prefix_of is None:
            return
        computed: dict[int, Usage] = {}
        for canvas in rows:
            for branch in canvas.branches:
                if branch.cached:
                    continue
                with self._clock.measure([canvas.ledger], "prefill"):
                    prefix = self._prefix_of(branch.context)
                    self.slots.cache.load_prefix(branch.slot, prefix)
                branch.cached = len(prefix)
                canvas.ledger.text_positions += prefix.positions
                if prefix.positions:
                    computed[id(canvas.ledger)] = canvas.ledger
        for ledger in computed.values():
            ledger.target_passes += 1

    def prefill(self, waiting: Sequence[tuple[Canvas, int]]) -> None:
        """Cache the pending positions that one decode forward cannot take, all but the last.

        `waiting` are canvases with their draft lengths.
        """
        todo: list[tuple[Canvas, Branch]] = []
        for canvas, draft_length in waiting:
            for branch in canvas.branches:
                if canvas.pending(branch) + draft_length > self._tokens_per_step:
                    todo.append((canvas, branch))
        if not todo:
            return
        self._charge_prefill_passes(todo)
        batch_size, _ = self._prefill_shape
        while todo:
            batch = todo[:batch_size]
            todo = todo[batch_size:]
            self._prefill_chunk(batch)
            todo += [(canvas, branch) for canvas, branch in batch if canvas.pending(branch) > 1]

    def _charge_prefill_passes(self, todo: Sequence[tuple[Canvas, Branch]]) -> None:
        """Charge each job the passes that its longest branch would need alone."""
        _, chunk = self._prefill_shape
        ledgers: dict[int, Usage] = {}
        passes: dict[int, int] = {}
        for canvas, branch in todo:
            job = id(canvas.ledger)
            needed = math.ceil((canvas.pending(branch) - 1) / chunk)
            ledgers[job] = canvas.ledger
            passes[job] = max(passes.get(job, 0), needed)
        for job, ledger in ledgers.items():
            ledger.target_passes += passes[job]

    def _prefill_chunk(self, batch: Sequence[tuple[Canvas, Branch]]) -> None:
        """Feed the next positions of some branches in one forward [B, C]."""
        table = self.slots
        batch_size, chunk = self._prefill_shape
        # 1. Lay the branches out; rows behind them are padding in the scratch slot.
        slots = [table.scratch] * batch_size
        starts = [0] * batch_size
        begins = [0] * batch_size
        counts = [0] * batch_size
        for row, (canvas, branch) in enumerate(batch):
            slots[row] = branch.slot
            starts[row] = branch.start
            begins[row] = branch.cached
            counts[row] = min(chunk, canvas.pending(branch) - 1)
        slot_B = table.index(slots)
        start_B = table.index(starts)
        pos_BC = table.index(self._positions(begins, counts, chunk))
        # 2. Feed them.
        ledgers = [canvas.ledger for canvas, _ in batch]
        with self._clock.measure(ledgers, "prefill"):
            attend = table.cache.attend_some(slot_B, pos_BC)
            self._feed(slot_B, start_B, pos_BC, pos_BC, attend)
        # 3. Count what is cached now.
        for row, (canvas, branch) in enumerate(batch):
            canvas.charge_fed(branch, counts[row])

    # ------------------------------------------------------------------ decoding

    def _decode(self, rows: Sequence[Canvas], lengths: Sequence[int], trees: Forest | None) -> None:
        """Feed all pending positions and drafts of the rows in one forward [B, W]."""
        # 1. Count what each branch is fed, and choose the shape, which may move slots. A row has a
        #    column for each answer, too: after a look, more of them may be wanted than are fed.
        fed: list[tuple[Canvas, Branch, int, int]] = []
        most_columns = 1
        for canvas, draft_length in zip(rows, lengths, strict=True):
            for branch in canvas.branches:
                count = canvas.pending(branch) + draft_length
                fed.append((canvas, branch, count, draft_length))
                most_columns = max(most_columns, count, 1 + draft_length)
        live_rows, columns = self.choose_shape(most_columns)

        # 2. Lay the branches out as one row a slot. After a look nothing is pending: the logits at
        #    the frontier are there, and only those behind draft tokens are fresh.
        layout = []
        for canvas, branch, count, draft_length in fed:
            layout.append(
                (
                    branch.slot,
                    branch.start,
                    branch.cached,
                    count,
                    draft_length,
                    canvas.logits_depth,
                )
            )
        slot_n, start_n, cached_n, count_n, draft_n, depth_n = np.array(layout, dtype=np.int64).T
        batch = DecodeBatch.idle(live_rows, columns, self._end)
        batch.start_B[slot_n] = start_n
        batch.stored_BW[slot_n] = self._positions(cached_n, count_n, columns)
        column_W = np.arange(columns)
        is_behind_nW = column_W > depth_n[:, None]
        is_fresh_nW = is_behind_nW & (column_W <= draft_n[:, None])
        frontier_n1 = (count_n - draft_n - 1)[:, None]
        batch.answer_BW[slot_n] = np.where(is_fresh_nW, frontier_n1 + column_W, 0)
        batch.is_fresh_BW[slot_n] = is_fresh_nW

        # 3. Run it; the nodes of trees are stored one behind the other, wherever they belong.
        if trees is None:
            self.run(rows, batch)
        else:
            pos_BW, mask = self._place_nodes(rows, trees, self.slots.index(batch.stored_BW))
            self.run(rows, batch, pos_BW, mask)

        # 4. Count what is cached now, and which logits are at hand.
        for canvas, branch, count, _ in fed:
            canvas.charge_fed(branch, count)
        for canvas, draft_length in zip(rows, lengths, strict=True):
            canvas.logits_depth = draft_length

    def run(
        self,
        rows: Sequence[Canvas],
        batch: DecodeBatch[np.ndarray],
        pos_BW: Tensor | None = None,
        mask: Mask | None = None,
    ) -> None:
        """Run a decode forward and bring its logits to the frontier; charge the rows one pass.

        Where trees or gaps are stored, `pos_BW` are the positions in the branch and `mask` says
        which of the cached positions are seen. Such a forward is not captured.
        """
        table_BX = torch.from_numpy(batch.table_BX)
        shares = [canvas.ledger for canvas in rows for _ in canvas.branches]
        with self._clock.measure(shares, "decode"):
            self.slots.make_frontier()
            if mask is None and self.graphs.state == "on":
                self._replay((len(batch.table_BX), batch.columns), table_BX)
            else:
                device_batch = DecodeBatch(table_BX.to(self._device))
                self._compute_frontier(device_batch, pos_BW, mask)
        self.charge_steps(rows, 1)

    def _replay(self, shape: tuple[int, int], table_BX: Tensor) -> None:
        """Replay the captured forward of a shape over a new table; capture it at its first use."""
        static = DecodeBatch(self._staging.put(shape, table_BX))
        work = partial(self._compute_frontier, static)
        self.graphs.prepare(shape, work, partial(self._stage_idle, shape))
        self._staging.put(shape, table_BX)
        self.graphs.run(shape, work)

    def _stage_idle(self, shape: tuple[int, int]) -> None:
        """Put a batch without live rows into the static inputs of a shape."""
        idle = DecodeBatch.idle(*shape, self._end)
        self._staging.put(shape, torch.from_numpy(idle.table_BX))

    def _compute_frontier(
        self,
        batch: DecodeBatch[Tensor],
        pos_BW: Tensor | None = None,
        mask: Mask | None = None,
    ) -> None:
        """Embed, run the blocks and the head, and write the fresh logits to the frontier."""
        stored_BW = batch.stored_BW
        logits_BWV = self.logits_of(stored_BW, batch.start_B, pos_BW, mask)
        frontier_BWV = self.slots.make_frontier()[: len(stored_BW), : batch.columns]
        column_BWV = batch.answer_BW.unsqueeze(-1).expand_as(logits_BWV)
        answer_BWV = logits_BWV.gather(1, column_BWV)
        is_fresh_BW1 = batch.is_fresh_BW.bool().unsqueeze(-1)
        frontier_BWV.copy_(torch.where(is_fresh_BW1, answer_BWV, frontier_BWV))

    def logits_of(
        self,
        stored_BW: Tensor,
        start_B: Tensor,
        pos_BW: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        """Compute the logits [B, W, V] of positions of the first B slots, and cache them."""
        slot_B = self.slots.slot_S[: len(stored_BW)]
        if pos_BW is None:
            pos_BW = stored_BW
        attend = self.slots.cache.attend_all(stored_BW, mask)
        return self._model.head(self._feed(slot_B, start_B, pos_BW, stored_BW, attend))

    def _feed(
        self, slot_B: Tensor, start_B: Tensor, pos_BW: Tensor, stored_BW: Tensor, attend: Attend
    ) -> Tensor:
        """Compute hidden states [B, W, D] of positions `pos_BW`, stored at `stored_BW`.

        Padding lies in scratch space, behind all that a model has tables for: the model is given
        the image's last position instead.
        """
        last_B1 = (start_B + (self._model.num_tokens - 1)).unsqueeze(1)
        pos_BW = pos_BW.minimum(last_B1)
        x_BWD = self.slots.embed(slot_B, start_B, pos_BW, stored_BW)
        hidden_BWD = self._model.forward(x_BWD, pos_BW, start_B, attend)
        if self.slots.hidden_SLD is not None:
            self.slots.hidden_SLD[slot_B.unsqueeze(1), stored_BW] = hidden_BWD
        return hidden_BWD

    # ------------------------------------------------------------------ shapes and counts

    def choose_shape(self, columns: int) -> tuple[int, int]:
        """Return rows and columns of a decode forward whose longest row needs `columns` of them."""
        if not self._is_compact:
            return self.slots.count, self._tokens_per_step
        rows = self.slots.compact()
        return rows, 1 if columns == 1 else self._tokens_per_step

    def charge_steps(self, rows: Sequence[Canvas], count: int) -> None:
        """Charge decode forwards that some canvases took part in: a job once, whatever it holds."""
        ledgers = {id(canvas.ledger): canvas.ledger for canvas in rows}
        for ledger in ledgers.values():
            ledger.target_passes += count
        self.decode_steps += count
        self.active_branch_steps += count * sum(len(canvas.branches) for canvas in rows)

    def _positions(
        self,
        begin: Sequence[int] | np.ndarray,
        count: Sequence[int] | np.ndarray,
        columns: int,
    ) -> np.ndarray:
        """Return `count` positions from `begin` on, [B, columns]; scratch behind them."""
        begin_B1 = np.asarray(begin)[:, None]
        count_B1 = np.asarray(count)[:, None]
        column_W = np.arange(columns)
        is_fed_BW = column_W < count_B1
        return np.where(is_fed_BW, begin_B1 + column_W, self._end)

    def _place_nodes(
        self, rows: Sequence[Canvas], trees: Forest, stored_BW: Tensor
    ) -> tuple[Tensor, TreeMask]:
        """Find where in its branch each column of a forward over draft trees is, and what it sees.

        A column is known by its place in the cache. A node is as many positions behind the root as
        it is deep.
        """
        # 1. Where the tree of each row begins in the cache, and which tree it is.
        table = self.slots
        base_B = np.full(len(stored_BW), self._end + 1)
        tree_B = np.zeros(len(stored_BW), dtype=np.int64)
        for r, canvas in enumerate(rows):
            for branch in canvas.branches:
                base_B[branch.slot] = branch.start + canvas.length
                tree_B[branch.slot] = r
        base_B1 = table.index(base_B).unsqueeze(1)
        tree_B1 = table.index(tree_B).unsqueeze(1)
        depth_RT = table.index(trees.depth_RT)
        sees_RTG = torch.from_numpy(trees.sees_RTG).to(self._device)

        # 2. Which node a column is; 0 is the root, which stands for all that is no node.
        last_node = depth_RT.shape[1] - 1
        node_BW = (stored_BW - base_B1 + 1).clamp(0, last_node)
        is_node_BW = (node_BW > 0) & (stored_BW < self._end)

        # 3. A node's position follows from its depth.
        node_pos_BW = base_B1 - 1 + depth_RT[tree_B1, node_BW]
        pos_BW = torch.where(is_node_BW, node_pos_BW, stored_BW)
        return pos_BW, TreeMask(base_B1[:, 0], sees_RTG[tree_B1, node_BW])


def _cached_prefixes(model: ImageModel, most: int) -> Callable[[Context], Prefix] | None:
    """Compute prefixes once for each context, if the model computes prefixes at all."""
    if not isinstance(model, HasPrefix):
        return None

    @lru_cache(maxsize=most)
    def prefix_of(context: Context) -> Prefix:
        return model.prefix(context.text, context.like)

    return prefix_of
