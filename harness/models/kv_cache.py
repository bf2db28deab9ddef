"""Static key and value cache of S slots, and the masks that attention over it may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import kernels
from harness.models.trunk import Attend, TrunkSpec


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first n positions of a branch, computed by its model at once instead of being fed one by
    one.

    `keys` and `values` are [layers, H, n, d]. `bias` [P] is added to the scores that later
    positions give to the P context positions; a position sees itself unbiased. `positions` says how
    many prompt positions were computed.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    positions: int

    def __len__(self) -> int:
        return self.keys.shape[2]


Mask = Callable[[Tensor, Tensor], Tensor]
"""(column_L, pos_BW1) -> whether queries at `pos` see the first L columns of the cache, [B, W, L],
of those before.
"""


@dataclass(frozen=True, slots=True)
class TreeMask:
    """Who sees whom among the nodes of draft trees, which lie in the cache from position `base_B`
    of their rows on.

    `sees_BWG`: whether the query in a column sees a node: itself and its ancestors. A row without a
    tree has its base behind the cache.
    """

    base_B: Tensor
    sees_BWG: Tensor

    def __call__(self, column_L: Tensor, pos_BW1: Tensor) -> Tensor:
        node_BL = column_L - self.base_B[:, None]
        node_BWL = (
            node_BL.clamp(0, self.sees_BWG.shape[2] - 1).unsqueeze(1).expand(*pos_BW1.shape[:2], -1)
        )
        return (node_BL < 0).unsqueeze(1) | self.sees_BWG.gather(2, node_BWL)


@dataclass(frozen=True, slots=True)
class GapMask:
    """Gaps among the image tokens of a branch, `gap_BL`: nothing but a query at its own place sees
    what lies there.
    """

    gap_BL: Tensor

    def __call__(self, column_L: Tensor, pos_BW1: Tensor) -> Tensor:
        return ~self.gap_BL[:, : len(column_L)].unsqueeze(1) | (column_L == pos_BW1)


BLOCK = 64
"""Cache positions that attention on a CPU reads at a time."""


class KVCache:
    """Static keys and values of S slots, each with L positions of its own.

    One more slot and one more position exist as scratch space: rows and columns that pad a
    constant-shape forward write there, so nothing has to branch. Scratch is never read by a live
    row. A `biased` cache also keeps what is added to the scores of each position; only such a cache
    can hold a `Prefix`.

    Attention reads the used part of the cache. On a CPU a row reads the blocks of BLOCK positions
    that its own queries reach, and rows beside each other that reach as far share a call: a row's
    result is that of a call of its own, so it cannot depend on how far others are. On CUDA a kernel
    reads no further than each query does; where there is none, the whole length is read under a
    mask, which is the same shape whoever is in flight.
    """

    def __init__(
        self,
        spec: TrunkSpec,
        slots: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        biased: bool = False,
    ) -> None:
        self.slots = slots
        self.length = length
        shape = (spec.layers, slots + 1, spec.heads, length + 1, spec.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.bias_SL = (
            torch.zeros((slots + 1, length + 1), dtype=dtype, device=device) if biased else None
        )
        self._column_L = torch.arange(length + 1, device=device)
        self._slot_S = torch.arange(slots, device=device)

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot."""
        return (self.keys.nbytes + self.values.nbytes) // (self.slots + 1)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy whole slots, `source` and `target` int64 [n]."""
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]
        if self.bias_SL is not None:
            self.bias_SL[target] = self.bias_SL[source]

    def put(self, slot: int, prefix: Prefix) -> None:
        """Begin a slot anew with a prefix at its first positions."""
        assert self.bias_SL is not None, "a prefix needs a biased cache"
        self.keys[:, slot, :, : len(prefix)] = prefix.keys
        self.values[:, slot, :, : len(prefix)] = prefix.values
        self.bias_SL[slot] = 0
        self.bias_SL[slot, : len(prefix.bias)] = prefix.bias

    def move(self, slot_Q: Tensor, source_QD: Tensor, target_QD: Tensor) -> None:
        """Copy positions within slots: an accepted path of a draft tree goes where a chain would
        lie.
        """
        for stored in (self.keys, self.values):
            stored[:, slot_Q[:, None], :, target_QD] = stored[:, slot_Q[:, None], :, source_QD]

    def attend_all(self, pos_BW: Tensor, mask: Mask | None = None) -> Attend:
        """Attention for a forward whose row s is slot s, of the first B slots: the cache is read in
        place.
        """
        slot_B = self._slot_S[: len(pos_BW)]
        kernel = kernels.attention(self.keys.device)
        if kernel is not None:
            return self._attend_used(kernel, slot_B, pos_BW, mask)
        if self.keys.device.type == "cpu":
            return self._attend_blocks(slot_B, pos_BW, mask)
        return self._attend_masked(slot_B, pos_BW, lambda stored: stored[: len(pos_BW)], mask)

    def attend_some(self, slot_B: Tensor, pos_BW: Tensor) -> Attend:
        """Attention for a forward over chosen slots (prefill): their part of the cache is gathered,
        or read in turn.
        """
        if self.keys.device.type == "cpu":
            return self._attend_blocks(slot_B, pos_BW)
        return self._attend_masked(slot_B, pos_BW, lambda stored: stored[slot_B])

    def _attend_blocks(self, slot_B: Tensor, pos_BW: Tensor, mask: Mask | None = None) -> Attend:
        runs = self._runs(slot_B, pos_BW)
        columns = max((run.columns for run in runs), default=0)
        score_B1WL = self._scores(slot_B, pos_BW.unsqueeze(-1), mask, columns).unsqueeze(1)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._write(layer, slot_B, pos_BW, k, v)
            out = None if len(runs) == 1 and runs[0].rows == len(q) else torch.zeros_like(q)
            for first, slot, rows, columns in runs:
                here = slice(first, first + rows)
                there = (slice(slot, slot + rows), slice(None), slice(columns))
                score_B1Wl = score_B1WL[here, ..., :columns]
                seen = F.scaled_dot_product_attention(
                    q[here],
                    self.keys[layer][there],
                    self.values[layer][there],
                    attn_mask=score_B1Wl,
                )
                if out is None:
                    return seen
                out[here] = seen
            assert out is not None
            return out

        return attend

    def _runs(self, slot_B: Tensor, pos_BW: Tensor) -> list[_Run]:
        """Neighbouring rows in neighbouring slots whose queries reach into the same block; idle
        rows are in none.
        """
        reach_B = torch.where(pos_BW < self.length, pos_BW, -1).amax(1)
        runs: list[_Run] = []
        for row, (slot, reach) in enumerate(zip(slot_B.tolist(), reach_B.tolist(), strict=True)):
            columns = min((reach // BLOCK + 1) * BLOCK, self.length + 1)
            last = runs[-1] if runs else _Run(-1, -1, 0, 0)
            if (last.first + last.rows, last.slot + last.rows, last.columns) == (
                row,
                slot,
                columns,
            ):
                runs[-1] = last._replace(rows=last.rows + 1)
            elif reach >= 0:
                runs.append(_Run(row, slot, 1, columns))
        return runs

    def _write(self, layer: int, slot_B: Tensor, pos_BW: Tensor, k: Tensor, v: Tensor) -> None:
        for stored, new in ((self.keys, k), (self.values, v)):
            stored[layer][slot_B.unsqueeze(1), :, pos_BW] = new.transpose(1, 2)

    def _attend_used(
        self,
        kernel: Callable[..., Tensor],
        slot_B: Tensor,
        pos_BW: Tensor,
        mask: Mask | None = None,
    ) -> Attend:
        rows = len(slot_B)
        end = self.length
        bias_BL = None if self.bias_SL is None else self.bias_SL[:rows, :end]
        seen_BWL = (
            None if mask is None else mask(self._column_L[:end], pos_BW.unsqueeze(-1)).contiguous()
        )

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._write(layer, slot_B, pos_BW, k, v)
            keys, values = (stored[layer, :rows, :, :end] for stored in (self.keys, self.values))
            return kernel(q, keys, values, pos_BW, bias_BL, seen_BWL)

        return attend

    def _attend_masked(
        self,
        slot_B: Tensor,
        pos_BW: Tensor,
        read: Callable[[Tensor], Tensor],
        mask: Mask | None = None,
    ) -> Attend:
        score_B1WL = self._scores(slot_B, pos_BW.unsqueeze(-1), mask, self.length + 1).unsqueeze(1)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._write(layer, slot_B, pos_BW, k, v)
            keys, values = (read(stored[layer]) for stored in (self.keys, self.values))
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=score_B1WL)

        return attend

    def _scores(self, slot_B: Tensor, pos_BW1: Tensor, mask: Mask | None, columns: int) -> Tensor:
        """What is added to the scores that queries give the first `columns` of the cache, [B, W,
        columns].

        A query sees its own position and those before it. One that pads the forward sees all, so as
        to stay finite.
        """
        column_L = self._column_L[:columns]
        seen_BWL = column_L <= pos_BW1
        if mask is not None:
            seen_BWL &= mask(column_L, pos_BW1) | (pos_BW1 == self.length)
        if self.bias_SL is None:
            nothing = torch.zeros((), dtype=self.keys.dtype, device=self.keys.device)
            return torch.where(seen_BWL, nothing, -torch.inf)
        bias_BWL = self.bias_SL[slot_B, :columns].unsqueeze(1).masked_fill(column_L == pos_BW1, 0.0)
        return bias_BWL.masked_fill(~seen_BWL, -torch.inf)


class _Run(NamedTuple):
    """Rows `first`, `first` + 1, ... of a forward, in slots `slot`, `slot` + 1, ..., that read as
    many columns.
    """

    first: int
    slot: int
    rows: int
    columns: int
