"""Multi-step decoding without the host: tokens are drawn one after another, and read at the end.

A decode step of rows that only draw token after token needs nothing that the host knows: its inputs
are the outputs of the step before. `Burst` keeps them in static tensors, so that many steps follow
one another and the host reads all their tokens at once. On CUDA one step is captured as a graph and
replayed; elsewhere the same function is called.

Shapes: B rows of a forward, W positions, S slots, N image tokens, R canvases, K branches of a
canvas, C steps of a burst, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.engine.canvas import Branch, Canvas
from harness.engine.draw import GuideGroup, draw_one, group_by_guide
from harness.engine.forward import DecodeBatch, Forward
from harness.engine.guidance import Guide, Sampling
from harness.engine.meter import Clock
from harness.engine.slots import SlotTable

BURST = 64
"""Most steps of a burst: what an interruption on a GPU waits for."""


@dataclass(frozen=True, slots=True)
class BurstGroup:
    """Canvases of a burst that share a guide: their slots, guidance scales and lengths so far."""

    guide: Guide
    slots: Sequence[Sequence[int]]
    scales: Sequence[float]
    lengths: Sequence[int]

    @classmethod
    def of(cls, group: GuideGroup, rows: Sequence[Canvas]) -> BurstGroup:
        """Describe some of the rows of a burst."""
        some = [rows[i] for i in group.indices]
        return cls(
            group.guide,
            [canvas.slots for canvas in some],
            [canvas.scale for canvas in some],
            [canvas.length for canvas in some],
        )


class _GroupTensors:
    """Static tensors of one group: where its logits are, and where its tokens go.

    Rows behind the live ones are padding: they draw from slot 0 and write to scratch.
    """

    def __init__(self, guide: Guide, rows: int, branches: int, device: torch.device) -> None:
        self.guide = guide
        self.from_RK = torch.zeros((rows, branches), dtype=torch.int64, device=device)
        self.to_RK = torch.zeros_like(self.from_RK)
        self.place_R = torch.zeros(rows, dtype=torch.int64, device=device)
        self.scale_R = torch.zeros(rows, dtype=torch.float64, device=device)
        self.token_CR = torch.zeros((BURST, rows), dtype=torch.int64, device=device)
        self.log_prob_CR = torch.zeros((BURST, rows), dtype=torch.float64, device=device)

    def clear(self, scratch: int) -> None:
        """Make all rows padding."""
        self.from_RK.zero_()
        self.to_RK.fill_(scratch)
        self.place_R.zero_()

    def load(self, group: BurstGroup) -> None:
        """Make the first rows those of a group."""
        live = len(group.slots)
        device = self.from_RK.device
        slot_RK = torch.tensor(group.slots).to(device)
        self.from_RK[:live] = slot_RK
        self.to_RK[:live] = slot_RK
        self.place_R[:live] = torch.tensor(group.lengths, device=device)
        self.scale_R[:live] = torch.tensor(group.scales, dtype=torch.float64, device=device)

    def read(self, steps: int, live: int) -> list[tuple[list[int], list[float]]]:
        """Copy tokens and log-probabilities of each live row to the host."""
        token_CR = self.token_CR[:steps, :live].double()
        log_prob_CR = self.log_prob_CR[:steps, :live]
        both_2RC = torch.stack((token_CR, log_prob_CR)).transpose(1, 2)
        tokens, log_probs = both_2RC.tolist()
        drawn = []
        for row in range(live):
            whole = [int(token) for token in tokens[row]]
            drawn.append((whole, log_probs[row]))
        return drawn


class Burst:
    """Decode steps over static tensors, for rows that draw token after token.

    `forward(stored_BW, start_B)` returns the logits [B, W, V] of the tokens fed at those cache
    positions; `end` is the position that means no row. `kinds` are the guide, the number of
    branches and the most canvases of each group.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor], Tensor],
        sampling: Sampling,
        shape: tuple[int, int],
        kinds: Sequence[tuple[Guide, int, int]],
        slots: SlotTable,
    ) -> None:
        device = slots.device
        self._forward = forward
        self._sampling = sampling
        self._slots = slots
        self._end = slots.cache.length
        self._stored_BW = torch.full(shape, self._end, dtype=torch.int64, device=device)
        self._start_B = torch.zeros(shape[0], dtype=torch.int64, device=device)
        self._step_1 = torch.zeros(1, dtype=torch.int64, device=device)  # steps done
        self._groups = [
            _GroupTensors(guide, rows, branches, device) for guide, branches, rows in kinds
        ]

    def load(self, stored_BW: Tensor, start_B: Tensor, groups: Sequence[BurstGroup] | None) -> None:
        """Set which rows are live, and where they are; with `groups` None no row is live."""
        self._stored_BW.copy_(stored_BW)
        self._start_B.copy_(start_B)
        self._step_1.zero_()
        for i, tensors in enumerate(self._groups):
            tensors.clear(self._slots.scratch)
            if groups is not None:
                tensors.load(groups[i])

    def clear(self) -> None:
        """Set that no row is live."""
        nowhere_BW = torch.full_like(self._stored_BW, self._end)
        self.load(nowhere_BW, torch.zeros_like(self._start_B), None)

    def step(self) -> None:
        """Feed the last tokens, draw the next ones, and store them for the next step."""
        # 1. One forward over the last token of each row.
        logits_BV = self._forward(self._stored_BW, self._start_B)[:, 0]
        # 2. One draw for each group.
        for group in self._groups:
            token_R, log_prob_R = draw_one(
                group.guide,
                self._sampling,
                logits_BV,
                group.from_RK,
                group.scale_R,
                self._slots.key_S2[group.to_RK[:, 0]],
                group.place_R,
                self._slots.forced_N,
            )
            # 3. Store the tokens in their slots, and keep them for the host.
            self._slots.token_SN[group.to_RK, group.place_R.unsqueeze(1)] = token_R.unsqueeze(1)
            group.token_CR.index_copy_(0, self._step_1, token_R.unsqueeze(0))
            group.log_prob_CR.index_copy_(0, self._step_1, log_prob_R.unsqueeze(0))
            group.place_R += 1
        # 4. Move each live row one position on.
        self._stored_BW[:, 0] += self._stored_BW[:, 0] < self._end
        self._step_1 += 1

    def read(
        self, steps: int, groups: Sequence[BurstGroup]
    ) -> list[list[tuple[list[int], list[float]]]]:
        """Copy tokens and log-probabilities of each canvas to the host, by group."""
        return [
            tensors.read(steps, len(group.slots))
            for tensors, group in zip(self._groups, groups, strict=True)
        ]


class BurstDecode:
    """Runs bursts over the slots of a sampler."""

    def __init__(
        self, sampling: Sampling, slots: SlotTable, forward: Forward, clock: Clock
    ) -> None:
        self._sampling = sampling
        self._slots = slots
        self._forward = forward
        self._clock = clock
        self._captured: dict[Hashable, Burst] = {}
        self._rank_of_kind: dict[Hashable, int] = {}

    def run(self, rows: Sequence[Canvas], most: int) -> int:
        """Draw up to `most` tokens of each row; return how many.

        Tokens, log-probabilities and ledger are those of as many single steps. It is 0 if a row
        has something else to feed first, and no more than the shortest rest of an image.
        """
        # 1. Find out how many steps there can be.
        if not rows or not all(canvas.is_steady() for canvas in rows):
            return 0
        steps = min(most, BURST, *(canvas.left for canvas in rows))
        if steps < 1:
            return 0

        # 2. Lay the rows out.
        live_rows, columns = self._forward.choose_shape(1)
        batch = DecodeBatch.idle(live_rows, columns, self._slots.cache.length)
        branches: list[tuple[Canvas, Branch]] = []
        for canvas in rows:
            for branch in canvas.branches:
                batch.stored_BW[branch.slot, 0] = branch.cached
                batch.start_B[branch.slot] = branch.start
                branches.append((canvas, branch))
        guide_groups = self._sort_groups(group_by_guide(rows))
        groups = [BurstGroup.of(group, rows) for group in guide_groups]

        # 3. Take all steps, then read what they drew.
        with self._clock.measure([canvas.ledger for canvas, _ in branches], "decode"):
            name, burst = self._burst_for((live_rows, columns), groups)
            burst.load(torch.from_numpy(batch.stored_BW), torch.from_numpy(batch.start_B), groups)
            for _ in range(steps):
                self._forward.graphs.run(name, burst.step)
            drawn = burst.read(steps, groups)

        # 4. Charge and commit.
        for canvas, branch in branches:
            canvas.charge_fed(branch, steps)
        self._forward.charge_steps(rows, steps)
        for group, drawn_by_row in zip(guide_groups, drawn, strict=True):
            for i, (tokens, log_probs) in zip(group.indices, drawn_by_row, strict=True):
                rows[i].append_drawn(tokens, log_probs)
        return steps

    def _sort_groups(self, groups: list[GuideGroup]) -> list[GuideGroup]:
        """Sort groups by when their kind came first, so that no order of kinds is captured anew."""
        ranks = self._rank_of_kind
        for group in groups:
            ranks.setdefault((group.guide, group.branches), len(ranks))
        return sorted(groups, key=lambda group: ranks[group.guide, group.branches])

    def _burst_for(
        self, shape: tuple[int, int], groups: Sequence[BurstGroup]
    ) -> tuple[Hashable, Burst]:
        """Return the static tensors for bursts of a shape, and their name.

        Where graphs are used, groups are padded to the most canvases that fit, so that there are
        few graphs, and each is captured once.
        """
        graphs = self._forward.graphs
        is_captured = graphs.state == "on"
        kinds = tuple((group.guide, len(group.slots[0])) for group in groups)
        name = (shape, kinds)
        if is_captured and name in self._captured:
            return name, self._captured[name]
        sizes = []
        for group in groups:
            fit = shape[0] // len(group.slots[0])
            sizes.append(fit if is_captured else len(group.slots))
        burst = Burst(
            self._forward.logits_of,
            self._sampling,
            shape,
            [(guide, count, size) for (guide, count), size in zip(kinds, sizes, strict=True)],
            self._slots,
        )
        if is_captured:
            graphs.prepare(name, burst.step, burst.clear)
            self._captured[name] = burst
        return name, burst
