"""What the device does by itself: work that is captured once and replayed, and bursts of rounds without the host.

A round of rows that only draw token after token needs nothing that the host knows: its inputs are the round's before.
`Burst` keeps them in static tensors, so that many rounds follow one another and the host reads all their tokens at
once. On CUDA one round is captured as a graph and replayed; elsewhere the same function is called.

Shapes: B rows of a forward, W positions, R canvases, K streams of a canvas, Q streams of some canvases, C rounds of a
burst, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from harness import kernels
from harness.hooks import Guide, Sampling, cfg, unguided, warp
from harness.noise import DRAW, Noise

log = logging.getLogger("harness")

BURST = 64
"""Rounds of a burst at most: what an interruption on a GPU waits for."""
WARM_UPS = 3
"""Calls before a capture, in which libraries choose their kernels and allocate their workspaces."""


class Replay(Protocol):
    """Captured work."""

    def replay(self) -> None: ...


class Graphs:
    """Work that is replayed: by name, captured on CUDA at its first use, called elsewhere.

    `state` says "on", or "off" and why: on a CPU, or after a capture failed. Then everything is called.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._captured: dict[Hashable, Replay] = {}
        self._pool: Any = None  # a handle, whose type torch keeps to itself
        self.state = "on" if device.type == "cuda" else f"off ({device.type})"

    def run(self, name: Hashable, work: Callable[[], None]) -> None:
        """Do work that was prepared."""
        if self.state == "on":
            self._captured[name].replay()
        else:
            work()

    def prepare(self, name: Hashable, work: Callable[[], None], idle: Callable[[], None]) -> None:
        """Capture work whose inputs and outputs are tensors that stay where they are, once for each name.

        For that it is called a few times, after `idle` has put inputs there that say that no row is live. Where
        capturing fails, all work is called from then on.
        """
        if self.state != "on" or name in self._captured:
            return
        try:
            idle()
            self._captured[name] = self._capture(work)
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)
            reason = str(error).strip().partition("\n")[0][:120]
            self.state = f"off ({reason})"
            log.warning("CUDA graphs are off, every round is launched by the host: %s", reason)

    def _capture(self, work: Callable[[], None]) -> Replay:
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        self._pool = self._pool or graph.pool()
        return graph


class Staging:
    """Tables on their way to static tensors of the device: pinned there, so that a copy waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._static: dict[Hashable, Tensor] = {}
        self._pinned: dict[Hashable, tuple[Tensor, torch.cuda.Event]] = {}

    def put(self, name: Hashable, table: Tensor) -> Tensor:
        """The table on the device, always at the same place for the same name."""
        static = self._static.setdefault(name, torch.empty_like(table, device=self._device))
        if self._device.type != "cuda":
            return static.copy_(table)
        if name not in self._pinned:
            self._pinned[name] = torch.empty_like(table).pin_memory(), torch.cuda.Event()
        pinned, sent = self._pinned[name]
        sent.synchronize()  # the copy before has left the pinned memory
        pinned.copy_(table)
        static.copy_(pinned, non_blocking=True)
        sent.record()
        return static


# ------------------------------------------------------------------ laws and draws


def law_of(
    guide: Guide, sampling: Sampling, logits_RKTV: Tensor, scale_R: Tensor, place_RT: Tensor | None = None
) -> Tensor:
    """The laws [R, T, V] that the streams' logits make at places of the image, which guidance may depend on."""
    law_RTV = guide(logits_RKTV, scale_R)
    if sampling.interval >= 0:
        assert place_RT is not None
        late_RT1 = (place_RT >= sampling.interval + 2).unsqueeze(-1)
        law_RTV = torch.where(late_RT1, guide(logits_RKTV, torch.ones_like(scale_R)), law_RTV)
    return warp(law_RTV, sampling)


def draw_one(
    guide: Guide,
    sampling: Sampling,
    logits_SV: Tensor,
    slot_RK: Tensor,
    scale_R: Tensor,
    key_R2: Tensor,
    place_R: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token per canvas, int64 [R], and its log-probability, float64 [R]: by a kernel where there is one."""
    kernel = None
    if sampling.interval < 0 and guide in (cfg, unguided):
        kernel = kernels.guided_draw(logits_SV.device, logits_SV.shape[-1], sampling.top_p)
    if kernel is not None:
        row_RK = slot_RK if guide is cfg else slot_RK[:, :1]
        drawn = kernel(
            logits_SV, row_RK, scale_R, key_R2, place_R, temperature=sampling.temperature, top_k=sampling.top_k
        )
        return drawn[0], drawn[1]
    place_R1 = place_R.unsqueeze(1)
    law_R1V = law_of(guide, sampling, logits_SV[slot_RK].unsqueeze(2), scale_R, place_R1)
    token_R1 = Noise(key_R2, place_R1).race(DRAW, law_R1V)
    return token_R1[:, 0], law_R1V[:, 0].gather(1, token_R1)[:, 0].double().log()


# ------------------------------------------------------------------ bursts


@dataclass(frozen=True, slots=True)
class Group:
    """Canvases of a burst that share a guide and a number of streams: their slots, scales, and lengths so far."""

    guide: Guide
    slots: Sequence[Sequence[int]]
    scales: Sequence[float]
    places: Sequence[int]


class _Drawing:
    """Static tensors of a group: where its logits are, and where its tokens go. Rows behind the live ones pad it."""

    def __init__(self, rows: int, streams: int, device: torch.device) -> None:
        self.from_RK = torch.zeros((rows, streams), dtype=torch.int64, device=device)
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
        self.from_RK[:live], self.to_RK[:live] = slot_RK.to(self.from_RK.device), slot_RK.to(self.to_RK.device)
        self.place_R[:live] = torch.tensor(group.places, device=self.place_R.device)
        self.scale_R[:live] = torch.tensor(group.scales, dtype=torch.float64, device=self.scale_R.device)


class Burst:
    """Rounds of rows that draw token after token, [B, W] each, over static tensors.

    `forward(at_BW, start_B)` gives the logits [B, W, V] of the tokens fed at cache positions `at`; `end` is the
    position that means no row. Every group has room for as many canvases as `rows` says.
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
        self._forward, self._sampling, self._end = forward, sampling, end
        self._token_SN, self._key_S2 = token_SN, key_S2
        self.at_BW = torch.full(shape, end, dtype=torch.int64, device=device)
        self.start_B = torch.zeros(shape[0], dtype=torch.int64, device=device)
        self._count_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self._guides = [guide for guide, _, _ in groups]
        self._drawings = [_Drawing(rows, streams, device) for _, streams, rows in groups]

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
                guide, self._sampling, logits_BV, drawing.from_RK, drawing.scale_R, key_R2, drawing.place_R
            )
            self._token_SN[drawing.to_RK, drawing.place_R.unsqueeze(1)] = token_R.unsqueeze(1)
            drawing.token_CR.index_copy_(0, self._count_1, token_R.unsqueeze(0))
            drawing.log_prob_CR.index_copy_(0, self._count_1, log_prob_R.unsqueeze(0))
            drawing.place_R += 1
        self.at_BW[:, 0] += self.at_BW[:, 0] < self._end
        self._count_1 += 1

    def read(self, rounds: int, groups: Sequence[Group]) -> list[list[tuple[list[int], list[float]]]]:
        """Tokens and log-probabilities of every canvas, by group: the burst's one copy to the host."""
        drawn = []
        for drawing, group in zip(self._drawings, groups, strict=True):
            live = len(group.slots)
            both = torch.stack((drawing.token_CR[:rounds, :live].double(), drawing.log_prob_CR[:rounds, :live]))
            tokens, log_probs = both.transpose(1, 2).tolist()
            drawn.append([([int(t) for t in row], p) for row, p in zip(tokens, log_probs, strict=True)])
        return drawn
