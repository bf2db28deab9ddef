"""The key and value cache of a trunk: static memory of S slots, and attention over it.

`KVCache` holds one branch in each slot and makes the `Attend` functions of a forward: write the new
keys and values, then attend to what each query may see. By default that is its own position and
those before it; a `Mask` narrows it to a path of a draft tree (`TreeMask`) or skips tokens that are
not drawn yet (`GapMask`). A model that computes the head of a context at once hands it over as a
`Prefix`.

Grouped queries are folded into the width: the queries of the H/G heads that share a key-value head
lie beside each other as W H/G queries of that head. So keys and values are read once for all of
them, and neither kernels nor torch's attention know of groups.

Shapes: B rows of a forward, W positions per row, H query heads, G key-value heads, Q folded queries
W H/G, d head width, S slots, L cache length. Of a move: Q slots and D positions; of a draft tree: G
nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import kernels
from harness.models.trunk import Attend, TrunkSpec

BLOCK = 64
"""Cache positions that attention on a CPU reads at a time."""


class KVCache:
    """Static keys and values of S slots, each with L positions of its own.

    One more slot and one more position exist as scratch space: rows and columns that pad a
    constant-shape forward write there, so nothing has to branch. An active row never reads scratch
    space. A `biased` cache also keeps a number per position that is added to the scores which later
    positions give it; only such a cache can hold a `Prefix`.

    Attention reads the used part of the cache. On a CPU a row reads the blocks of BLOCK positions
    that its own queries reach; neighbouring rows that reach equally far share a call. A row's
    result is that of a call of its own, so it cannot depend on how far others are. On CUDA a kernel
    reads no further than each query does. Where there is none, the whole length is read under a
    mask, a shape that does not depend on what else is in the batch.
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
        shape = (spec.layers, slots + 1, spec.kv_heads, length + 1, spec.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)

        self.bias_SL: Tensor | None = None
        if biased:
            self.bias_SL = torch.zeros((slots + 1, length + 1), dtype=dtype, device=device)

        self._column_L = torch.arange(length + 1, device=device)
        self._slot_S = torch.arange(slots, device=device)
        self._head_G1 = torch.arange(spec.kv_heads, device=device).unsqueeze(1)
        self._share = spec.heads // spec.kv_heads  # query heads of a key-value head
        # What a layer stores, as rows of d numbers: a forward finds the places for all layers once.
        self._key_rows = self.keys.flatten(1, 3).unbind()
        self._value_rows = self.values.flatten(1, 3).unbind()

    @property
    def slot_bytes(self) -> int:
        """Count the bytes of one slot."""
        return (self.keys.nbytes + self.values.nbytes) // (self.slots + 1)

    # ------------------------------------------------------------------ contents of slots

    def load_prefix(self, slot: int, prefix: Prefix) -> None:
        """Start a slot anew with a prefix at its first positions."""
        assert self.bias_SL is not None, "a prefix needs a biased cache"
        self.keys[:, slot, :, : len(prefix)] = prefix.keys
        self.values[:, slot, :, : len(prefix)] = prefix.values
        self.bias_SL[slot] = 0
        self.bias_SL[slot, : len(prefix.bias)] = prefix.bias

    def copy_slots(self, source: Tensor, target: Tensor) -> None:
        """Copy whole slots, `source` and `target` int64 [n]; no slot is in both.

        Layer by layer, so that the copies need no more memory than a layer's for a moment.
        """
        for stored in (self.keys, self.values):
            for layer_SHLd in stored:
                layer_SHLd[target] = layer_SHLd[source]
        if self.bias_SL is not None:
            self.bias_SL[target] = self.bias_SL[source]

    def clear_slots(self, slot_n: Tensor) -> None:
        """Put zeros into whole slots, int64 [n].

        A masked value counts nothing in an attention, unless it is no number.
        """
        for stored in (self.keys, self.values):
            stored[:, slot_n] = 0
        if self.bias_SL is not None:
            self.bias_SL[slot_n] = 0

    def move_positions(self, slot_Q: Tensor, source_QD: Tensor, target_QD: Tensor) -> None:
        """Copy positions within slots, so that an accepted path of a draft tree lies as a chain."""
        slot_Q1 = slot_Q[:, None]
        for stored in (self.keys, self.values):
            stored[:, slot_Q1, :, target_QD] = stored[:, slot_Q1, :, source_QD]

    # ------------------------------------------------------------------ attention of a forward

    def attend_all(self, pos_BW: Tensor, mask: Mask | None = None) -> Attend:
        """Make attention for a forward whose row s is slot s, of the first B slots.

        The cache is read in place.
        """
        rows = len(pos_BW)
        slot_B = self._slot_S[:rows]
        kernel = kernels.attention(self.keys.device, self.keys.dtype, self.keys.shape[-1])
        if kernel is not None:
            attend = self._attend_by_kernel(kernel, slot_B, pos_BW, mask)
        elif self.keys.device.type == "cpu":
            attend = self._attend_blocks(slot_B, pos_BW, mask)
        else:
            attend = self._attend_whole_length(slot_B, pos_BW, lambda stored: stored[:rows], mask)
        return self._fold_groups(attend)

    def attend_some(self, slot_B: Tensor, pos_BW: Tensor) -> Attend:
        """Make attention for a forward over chosen slots (prefill).

        A CPU reads their parts of the cache in turn; elsewhere they are gathered.
        """
        if self.keys.device.type == "cpu":
            attend = self._attend_blocks(slot_B, pos_BW)
        else:
            attend = self._attend_whole_length(slot_B, pos_BW, lambda stored: stored[slot_B])
        return self._fold_groups(attend)

    def _fold_groups(self, attend: Attend) -> Attend:
        """Fold the query heads of each group into the width around an attention of G heads."""
        if self._share == 1:
            return attend

        def attend_folded(layer: int, q_BHWd: Tensor, k_BGWd: Tensor, v_BGWd: Tensor) -> Tensor:
            q_BGQd = q_BHWd.unflatten(1, (-1, self._share)).flatten(2, 3)
            out_BGQd = attend(layer, q_BGQd, k_BGWd, v_BGWd)
            return out_BGQd.unflatten(2, (self._share, -1)).flatten(1, 2)

        return attend_folded

    def _repeat_for_groups(self, of_query: Tensor) -> Tensor:
        """Repeat what belongs to the W queries of a head, [B, W, ...], for the folded [B, Q, ...].

        Without groups it is returned as it is.
        """
        if self._share == 1:
            return of_query
        return of_query.repeat(1, self._share, *[1] * (of_query.ndim - 2))

    def _attend_blocks(self, slot_B: Tensor, pos_BW: Tensor, mask: Mask | None = None) -> Attend:
        """Attend on a CPU: one call for each run of neighbouring rows that reach equally far."""
        # 1. Once for all layers: where to store, which rows share a call, and what they read.
        place_n = self._find_places(slot_B, pos_BW)
        runs = self._equal_runs(slot_B, pos_BW)
        most_columns = max((run.columns for run in runs), default=0)
        bias_BWL = self._score_bias(slot_B, pos_BW.unsqueeze(-1), mask, most_columns)
        bias_BQL = self._repeat_for_groups(bias_BWL)
        parts = [self._read_run(run, bias_BQL) for run in runs]
        one_call = len(runs) == 1 and runs[0].rows == len(pos_BW)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # 2. Store the new positions, which the queries see as well.
            self._write(layer, place_n, k, v)

            # 3. Attend run by run; rows in no run are idle and stay zero.
            if one_call:
                return parts[0].attend(layer, q)
            out = torch.zeros_like(q)
            for part in parts:
                out[part.rows] = part.attend(layer, q[part.rows])
            return out

        return attend

    def _read_run(self, run: _Run, bias_BQL: Tensor) -> _RunReading:
        """Find what the rows of a run read in all layers, none of which is copied."""
        rows = slice(run.first, run.first + run.rows)
        slots = slice(run.slot, run.slot + run.rows)
        return _RunReading(
            rows,
            self.keys[:, slots, :, : run.columns].unbind(),
            self.values[:, slots, :, : run.columns].unbind(),
            bias_BQL[rows, :, : run.columns].unsqueeze(1),
        )

    def _equal_runs(self, slot_B: Tensor, pos_BW: Tensor) -> list[_Run]:
        """Group neighbouring rows in neighbouring slots whose queries reach into the same block.

        Idle rows, whose queries all lie in scratch space, are in no group.
        """
        slots = slot_B.tolist()
        reaches = torch.where(pos_BW < self.length, pos_BW, -1).amax(1).tolist()
        runs: list[_Run] = []
        for row, (slot, reach) in enumerate(zip(slots, reaches, strict=True)):
            if reach < 0:
                continue
            columns = min((reach // BLOCK + 1) * BLOCK, self.length + 1)
            if runs and runs[-1].is_followed_by(row, slot, columns):
                runs[-1].rows += 1
            else:
                runs.append(_Run(row, slot, 1, columns))
        return runs

    def _attend_by_kernel(
        self,
        kernel: Callable[..., Tensor],
        slot_B: Tensor,
        pos_BW: Tensor,
        mask: Mask | None = None,
    ) -> Attend:
        """Attend by a kernel that reads each row's slot no further than its queries reach."""
        rows = len(slot_B)
        end = self.length
        place_n = self._find_places(slot_B, pos_BW)
        bias_BL = None if self.bias_SL is None else self.bias_SL[:rows, :end]
        pos_BQ = self._repeat_for_groups(pos_BW)
        seen_BQL = None
        if mask is not None:
            seen_BWL = mask(self._column_L[:end], pos_BW.unsqueeze(-1))
            seen_BQL = self._repeat_for_groups(seen_BWL).contiguous()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._write(layer, place_n, k, v)
            keys = self.keys[layer, :rows, :, :end]
            values = self.values[layer, :rows, :, :end]
            return kernel(q, keys, values, pos_BQ, bias_BL, seen_BQL)

        return attend

    def _attend_whole_length(
        self,
        slot_B: Tensor,
        pos_BW: Tensor,
        read_slots: Callable[[Tensor], Tensor],
        mask: Mask | None = None,
    ) -> Attend:
        """Attend to the whole length under a mask; `read_slots` picks the slots of the rows."""
        columns = self.length + 1
        place_n = self._find_places(slot_B, pos_BW)
        bias_BWL = self._score_bias(slot_B, pos_BW.unsqueeze(-1), mask, columns)
        bias_B1QL = self._repeat_for_groups(bias_BWL).unsqueeze(1)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._write(layer, place_n, k, v)
            keys = read_slots(self.keys[layer])
            values = read_slots(self.values[layer])
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias_B1QL)

        return attend

    def _find_places(self, slot_B: Tensor, pos_BW: Tensor) -> Tensor:
        """Find the rows of a layer's storage that belong to slots and positions, int64 [B G W]."""
        head_BG1 = slot_B[:, None, None] * len(self._head_G1) + self._head_G1
        place_BGW = head_BG1 * (self.length + 1) + pos_BW.unsqueeze(1)
        return place_BGW.flatten()

    def _write(self, layer: int, place_n: Tensor, k: Tensor, v: Tensor) -> None:
        """Store the keys and values [B, G, W, d] of a layer at their places."""
        self._key_rows[layer].index_copy_(0, place_n, k.flatten(0, 2))
        self._value_rows[layer].index_copy_(0, place_n, v.flatten(0, 2))

    def _score_bias(
        self, slot_B: Tensor, pos_BW1: Tensor, mask: Mask | None, columns: int
    ) -> Tensor:
        """Compute what is added to the scores of the first `columns` positions, [B, W, columns].

        A query sees its own position and those before it. One that pads the forward sees all, so as
        to stay finite.
        """
        column_L = self._column_L[:columns]
        seen_BWL = column_L <= pos_BW1
        if mask is not None:
            seen_BWL &= mask(column_L, pos_BW1) | (pos_BW1 == self.length)

        if self.bias_SL is None:
            zero = torch.zeros((), dtype=self.keys.dtype, device=self.keys.device)
            return torch.where(seen_BWL, zero, -torch.inf)

        bias_B1L = self.bias_SL[slot_B, :columns].unsqueeze(1)
        bias_BWL = bias_B1L.masked_fill(column_L == pos_BW1, 0.0)
        return bias_BWL.masked_fill(~seen_BWL, -torch.inf)


@dataclass(slots=True)
class _Run:
    """Neighbouring rows of a forward, in neighbouring slots, that read equally many columns."""

    first: int
    slot: int
    rows: int
    columns: int

    def is_followed_by(self, row: int, slot: int, columns: int) -> bool:
        """Tell whether a row may join at the end."""
        next_row = self.first + self.rows
        next_slot = self.slot + self.rows
        return (next_row, next_slot, self.columns) == (row, slot, columns)


@dataclass(frozen=True, slots=True)
class _RunReading:
    """What the rows of a run read: keys and values of each layer, and the bias of their scores."""

    rows: slice
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    bias: Tensor

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """Attend with the queries of the run's rows."""
        return F.scaled_dot_product_attention(
            q, self.keys[layer], self.values[layer], attn_mask=self.bias
        )


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first n positions of a branch, computed by its model instead of being fed one by one.

    `keys` and `values` are [layers, G, n, d]. `bias` [P] is added to the scores that later
    positions give to the P context positions; a position sees itself unbiased. `positions` is the
    number of prompt positions that were computed.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    positions: int

    def __len__(self) -> int:
        return self.keys.shape[2]


# ------------------------------------------------------------------ masks


Mask = Callable[[Tensor, Tensor], Tensor]
"""(column_L, pos_BW1) -> bool [B, W, L]: which of the first L columns queries at `pos` may see.

It narrows the usual rule, that a query sees its own position and those before it.
"""


@dataclass(frozen=True, slots=True)
class TreeMask:
    """A mask for draft trees: a node sees what was committed before, its ancestors and itself.

    The G nodes of a row's tree lie in the cache from position `base_B` on; a row without a tree has
    its base behind the cache. `sees_BWG` says which nodes each query sees.
    """

    base_B: Tensor
    sees_BWG: Tensor

    def __call__(self, column_L: Tensor, pos_BW1: Tensor) -> Tensor:
        rows, width = pos_BW1.shape[:2]
        node_BL = column_L - self.base_B[:, None]
        last_node = self.sees_BWG.shape[2] - 1
        node_B1L = node_BL.clamp(0, last_node).unsqueeze(1)
        sees_BWL = self.sees_BWG.gather(2, node_B1L.expand(rows, width, -1))
        return (node_BL < 0).unsqueeze(1) | sees_BWL


@dataclass(frozen=True, slots=True)
class GapMask:
    """A mask for image tokens that are not drawn yet, `gap_BL`.

    Nothing but a query at such a position itself sees what lies there, and with `own_from_BW` the
    queries behind it that count it as their own: each those from this position on.
    """

    gap_BL: Tensor
    own_from_BW: Tensor | None = None

    def __call__(self, column_L: Tensor, pos_BW1: Tensor) -> Tensor:
        is_drawn_B1L = ~self.gap_BL[:, : len(column_L)].unsqueeze(1)
        if self.own_from_BW is None:
            return is_drawn_B1L | (column_L == pos_BW1)
        is_own_BWL = (column_L >= self.own_from_BW.unsqueeze(-1)) & (column_L <= pos_BW1)
        return is_drawn_B1L | is_own_BWL
