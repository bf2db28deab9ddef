"""What the device does by itself: work that is captured once and replayed, and bursts of rounds
without the host.

A round of rows that only draw token after token needs nothing that the host knows: its inputs are
the round's before. `Burst` keeps them in static tensors, so that many rounds follow one another and
the host reads all their tokens at once. On CUDA one round is captured as a graph and replayed;
elsewhere the same function is called.

Shapes: B rows of a forward, W positions, R canvases, K branches of a canvas, Q branches of some
canvases, C rounds of a burst, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.engine.draw import draw_one
from harness.engine.guidance import Guide, Sampling

log = logging.getLogger("harness")


BURST = 64
"""Rounds of a burst at most: what an interruption on a GPU waits for."""


# ------------------------------------------------------------------ bursts


@dataclass(frozen=True, slots=True)
class Group:
    """Canvases of a burst that share a guide and a number of branches: their slots, scales, and
    lengths so far.
    """

    guide: Guide
    slots: Sequence[Sequence[int]]
    scales: Sequence[float]
    places: Sequence[int]


class _Drawing:
    """Static tensors of a group: where its logits are, and where its tokens go. Rows behind the
    live ones pad it.
    """

    def __init__(self, rows: int, branches: int, device: torch.device) -> None:
        self.from_RK = torch.zeros((rows, branches), dtype=torch.int64, device=device)
        self.to_RK = torch.zeros_like(self.from_RK)
        self.place_R = torch.zeros(rows, dtype=torch.int64, device=device)
        self.scale_R = torch.zeros(rows, dtype=torch.float64, device=device)
        self.token_CR = torch.zeros((BURST, rows), dtype=torch.int64, device=device)
        self.log_prob_CR = torch.zeros((BURST, rows), dtype=torch.float64, device=device)

    def clear(self, scratch: int) -> None:
        self.from_RK.zero_()
        self.to_RK.fill_(scratch)
        self.place_R.zero_()

    def load(self, group: Group) -> None:
        live = len(group.slots)
        slot_RK = torch.tensor(group.slots)
        self.from_RK[:live], self.to_RK[:live] = (
            slot_RK.to(self.from_RK.device),
            slot_RK.to(self.to_RK.device),
        )
        self.place_R[:live] = torch.tensor(group.places, device=self.place_R.device)
        self.scale_R[:live] = torch.tensor(
            group.scales, dtype=torch.float64, device=self.scale_R.device
        )


class Burst:
    """Rounds of rows that draw token after token, [B, W] each, over static tensors.

    `forward(at_BW, start_B)` gives the logits [B, W, V] of the tokens fed at cache positions `at`;
    `end` is the position that means no row. Every group has room for as many canvases as `rows`
    says.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor], Tensor],
        sampling: Sampling,
        shape: tuple[int, int],
        groups: Sequence[tuple[Guide, int, int]],
        *,
        token_SN: Tensor,
        key_S2: Tensor,
        end: int,
    ) -> None:
        device = token_SN.device
        self._forward = forward
        self._sampling = sampling
        self._end = end
        self._token_SN = token_SN
        self._key_S2 = key_S2
        self.at_BW = torch.full(shape, end, dtype=torch.int64, device=device)
        self.start_B = torch.zeros(shape[0], dtype=torch.int64, device=device)
        self._count_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self._guides = [guide for guide, _, _ in groups]
        self._drawings = [_Drawing(rows, branches, device) for _, branches, rows in groups]

    def load(self, at_BW: Tensor, start_B: Tensor, groups: Sequence[Group] | None) -> None:
        """Say which rows are live, and where they are."""
        self.at_BW.copy_(at_BW)
        self.start_B.copy_(start_B)
        self._count_1.zero_()
        for i, drawing in enumerate(self._drawings):
            drawing.clear(len(self._token_SN) - 1)
            if groups is not None:
                drawing.load(groups[i])

    def idle(self) -> None:
        """No row is live."""
        self.load(torch.full_like(self.at_BW, self._end), torch.zeros_like(self.start_B), None)

    def round(self) -> None:
        """Feed the last tokens, draw the next ones, put them where the next round finds them."""
        logits_BV = self._forward(self.at_BW, self.start_B)[:, 0]
        for guide, drawing in zip(self._guides, self._drawings, strict=True):
            key_R2 = self._key_S2[drawing.to_RK[:, 0]]
            token_R, log_prob_R = draw_one(
                guide,
                self._sampling,
                logits_BV,
                drawing.from_RK,
                drawing.scale_R,
                key_R2,
                drawing.place_R,
            )
            self._token_SN[drawing.to_RK, drawing.place_R.unsqueeze(1)] = token_R.unsqueeze(1)
            drawing.token_CR.index_copy_(0, self._count_1, token_R.unsqueeze(0))
            drawing.log_prob_CR.index_copy_(0, self._count_1, log_prob_R.unsqueeze(0))
            drawing.place_R += 1
        self.at_BW[:, 0] += self.at_BW[:, 0] < self._end
        self._count_1 += 1

    def read(
        self, rounds: int, groups: Sequence[Group]
    ) -> list[list[tuple[list[int], list[float]]]]:
        """Tokens and log-probabilities of every canvas, by group: the burst's one copy to the
        host.
        """
        drawn = []
        for drawing, group in zip(self._drawings, groups, strict=True):
            live = len(group.slots)
            both = torch.stack(
                (drawing.token_CR[:rounds, :live].double(), drawing.log_prob_CR[:rounds, :live])
            )
            tokens, log_probs = both.transpose(1, 2).tolist()
            drawn.append(
                [([int(t) for t in row], p) for row, p in zip(tokens, log_probs, strict=True)]
            )
        return drawn
