"""The one decoder trunk: pre-norm attention and gated feed-forward blocks over embeddings.

It serves the embedded model, LlamaGen and Janus-Pro's language model. What differs between them (word and
position embeddings, rotary tables, heads) lives in their adapters; how keys and values are stored lives in the
`Attend` that is passed in, so training (no cache), decoding and prefill share every line here.

Shapes: B rows, W positions per row, D model width, H heads, d head width, L cache length, S slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import kernels

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BHWd, k_BHWd, v_BHWd) -> attended values, same shape as q."""


@dataclass(frozen=True, slots=True)
class TrunkSpec:
    """Dimensions of a trunk. LlamaGen-XL is `TrunkSpec(36, 1280, 20, 3584)`."""

    layers: int
    dim: int
    heads: int
    hidden: int
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast back before the weight (LlamaGen `gpt.py`, RMSNorm)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype != torch.float64 else x
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def rotate(x_BHWd: Tensor, rotary_BW2: Tensor) -> Tensor:
    """Rotate adjacent pairs by `rotary_BW2` = (cos, sin) of shape [B, W, d/2, 2] (LlamaGen `apply_rotary_emb`).

    At least in float32, as the original does. There may be more axes in front, of queries and keys, say.
    """
    cos, sin = rotary_BW2.unsqueeze(1).unbind(-1)
    even, odd = x_BHWd.unflatten(-1, (-1, 2)).to(torch.promote_types(x_BHWd.dtype, torch.float32)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x_BHWd.dtype)


def axial_rotary(coords: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Rotation table of integer (row, column) coordinates [..., 2]: returns (cos, sin), [..., head_dim/2, 2], float32.

    The first head_dim/4 pairs turn with the row, the others with the column (LlamaGen `precompute_freqs_cis_2d`).
    """
    quarter = head_dim // 4
    frequency = base ** (-2.0 * torch.arange(quarter, dtype=torch.float32) / (head_dim // 2))
    angle = (coords.float().unsqueeze(-1) * frequency).flatten(-2)
    return torch.stack((angle.cos(), angle.sin()), -1)


def running_rotary(pos: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Rotation table of ordinary positions [...]: returns (cos, sin), [..., head_dim/2, 2], float32 (Llama)."""
    frequency = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = pos.float().unsqueeze(-1) * frequency
    return torch.stack((angle.cos(), angle.sin()), -1)


def adjacent_pairs(weight: Tensor, heads: int) -> Tensor:
    """Query or key rows [D, D] trained for half-split rotary pairs (i with i + d/2), put in the order of `rotate`.

    A permutation within each head, the same for queries and keys: scores do not change.
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


class Attention(nn.Module):
    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.wqkv = nn.Linear(spec.dim, 3 * spec.dim, bias=False)
        self.wo = nn.Linear(spec.dim, spec.dim, bias=False)

    def forward(self, x_BWD: Tensor, rotary_BW2: Tensor, layer: int, attend: Attend) -> Tensor:
        qkv = self.wqkv(x_BWD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], rotary_BW2)
        return self.wo(attend(layer, q, k, qkv[2]).transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x). Training keeps the matrices apart, as checkpoints do; inference may `fuse` w1 and w3."""

    both: Tensor | None

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.w1 = nn.Linear(spec.dim, spec.hidden, bias=False)
        self.w3 = nn.Linear(spec.dim, spec.hidden, bias=False)
        self.w2 = nn.Linear(spec.hidden, spec.dim, bias=False)
        self.register_buffer("both", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.both is None:
            return self.w2(F.silu(self.w1(x)) * self.w3(x))
        wide, hidden = F.linear(x, self.both), self.w2.in_features
        return self.w2(F.silu(wide[..., :hidden], inplace=True).mul_(wide[..., hidden:]))

    def fuse(self) -> None:
        """Let one product make gate and up, without a copy of either; w1 and w3 become its halves.

        For weights that are loaded, where they stay, and are not trained.
        """
        self.both = torch.cat((self.w1.weight.detach(), self.w3.weight.detach()))
        self.w1.weight.data, self.w3.weight.data = self.both.chunk(2)


class Block(nn.Module):
    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.attention = Attention(spec)
        self.feed_forward = FeedForward(spec)
        self.attention_norm = RMSNorm(spec.dim, spec.norm_eps)
        self.ffn_norm = RMSNorm(spec.dim, spec.norm_eps)

    def forward(self, x_BWD: Tensor, rotary_BW2: Tensor, layer: int, attend: Attend) -> Tensor:
        x_BWD = x_BWD + self.attention(self.attention_norm(x_BWD), rotary_BW2, layer, attend)
        return x_BWD + self.feed_forward(self.ffn_norm(x_BWD))


class Trunk(nn.Module):
    """Blocks and final norm; names follow LlamaGen's checkpoints (`layers.{i}.attention.wqkv`, ..., `norm`)."""

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = RMSNorm(spec.dim, spec.norm_eps)

    def fuse(self) -> None:
        """Fuse what can be, for inference: see `FeedForward.fuse`."""
        for module in self.modules():
            if isinstance(module, FeedForward):
                module.fuse()

    def forward(self, x_BWD: Tensor, rotary_BW2: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the final norm, [B, W, D]."""
        for layer, block in enumerate(self.layers):
            x_BWD = block(x_BWD, rotary_BW2, layer, attend)
        return self.norm(x_BWD)


def causal(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of a whole sequence without a cache: training and teacher-forced evaluation."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first n positions of a stream, computed by its model at once instead of being fed one by one.

    `keys` and `values` are [layers, H, n, d]. `bias` [P] is added to the scores that later positions give to the P
    context positions; a position sees itself unbiased. `positions` says how many prompt positions were computed.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    positions: int

    def __len__(self) -> int:
        return self.keys.shape[2]


Mask = Callable[[Tensor, Tensor], Tensor]
"""(column_L, pos_BW1) -> whether queries at `pos` see the first L columns of the cache, [B, W, L], of those before."""


@dataclass(frozen=True, slots=True)
class TreeMask:
    """Who sees whom among the nodes of draft trees, which lie in the cache from position `base_B` of their rows on.

    `sees_BWG`: whether the query in a column sees a node: itself and its ancestors. A row without a tree has its base
    behind the cache.
    """

    base_B: Tensor
    sees_BWG: Tensor

    def __call__(self, column_L: Tensor, pos_BW1: Tensor) -> Tensor:
        node_BL = column_L - self.base_B[:, None]
        node_BWL = node_BL.clamp(0, self.sees_BWG.shape[2] - 1).unsqueeze(1).expand(*pos_BW1.shape[:2], -1)
        return (node_BL < 0).unsqueeze(1) | self.sees_BWG.gather(2, node_BWL)


@dataclass(frozen=True, slots=True)
class GapMask:
    """Gaps among the image tokens of a stream, `gap_BL`: nothing but a query at its own place sees what lies there."""

    gap_BL: Tensor

    def __call__(self, column_L: Tensor, pos_BW1: Tensor) -> Tensor:
        return ~self.gap_BL[:, : len(column_L)].unsqueeze(1) | (column_L == pos_BW1)


BLOCK = 64
"""Cache positions that attention on a CPU reads at a time."""


class KVCache:
    """Static keys and values of S slots, each with L positions of its own.

    One more slot and one more position exist as scratch space: rows and columns that pad a constant-shape forward
    write there, so nothing has to branch. Scratch is never read by a live row. A `biased` cache also keeps what is
    added to the scores of each position; only such a cache can hold a `Prefix`.

    Attention reads the used part of the cache. On a CPU a row reads the blocks of BLOCK positions that its own queries
    reach, and rows beside each other that reach as far share a call: a row's result is that of a call of its own, so
    it cannot depend on how far others are. On CUDA a kernel reads no further than each query does; where there is none,
    the whole length is read under a mask, which is the same shape whoever is in flight.
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
        self.slots, self.length = slots, length
        shape = (spec.layers, slots + 1, spec.heads, length + 1, spec.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.bias_SL = torch.zeros((slots + 1, length + 1), dtype=dtype, device=device) if biased else None
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
        """Copy positions within slots: an accepted path of a draft tree goes where a chain would lie."""
        for stored in (self.keys, self.values):
            stored[:, slot_Q[:, None], :, target_QD] = stored[:, slot_Q[:, None], :, source_QD]

    def attend_all(self, pos_BW: Tensor, mask: Mask | None = None) -> Attend:
        """Attention for a forward whose row s is slot s, of the first B slots: the cache is read in place."""
        slot_B = self._slot_S[: len(pos_BW)]
        kernel = kernels.attention(self.keys.device)
        if kernel is not None:
            return self._attend_used(kernel, slot_B, pos_BW, mask)
        if self.keys.device.type == "cpu":
            return self._attend_blocks(slot_B, pos_BW, mask)
        return self._attend_masked(slot_B, pos_BW, lambda stored: stored[: len(pos_BW)], mask)

    def attend_some(self, slot_B: Tensor, pos_BW: Tensor) -> Attend:
        """Attention for a forward over chosen slots (prefill): their part of the cache is gathered, or read in turn."""
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
                here, there = slice(first, first + rows), (slice(slot, slot + rows), slice(None), slice(columns))
                score_B1Wl = score_B1WL[here, ..., :columns]
                seen = F.scaled_dot_product_attention(
                    q[here], self.keys[layer][there], self.values[layer][there], attn_mask=score_B1Wl
                )
                if out is None:
                    return seen
                out[here] = seen
            assert out is not None
            return out

        return attend

    def _runs(self, slot_B: Tensor, pos_BW: Tensor) -> list[_Run]:
        """Neighbouring rows in neighbouring slots whose queries reach into the same block; idle rows are in none."""
        reach_B = torch.where(pos_BW < self.length, pos_BW, -1).amax(1)
        runs: list[_Run] = []
        for row, (slot, reach) in enumerate(zip(slot_B.tolist(), reach_B.tolist(), strict=True)):
            columns = min((reach // BLOCK + 1) * BLOCK, self.length + 1)
            last = runs[-1] if runs else _Run(-1, -1, 0, 0)
            if (last.first + last.rows, last.slot + last.rows, last.columns) == (row, slot, columns):
                runs[-1] = last._replace(rows=last.rows + 1)
            elif reach >= 0:
                runs.append(_Run(row, slot, 1, columns))
        return runs

    def _write(self, layer: int, slot_B: Tensor, pos_BW: Tensor, k: Tensor, v: Tensor) -> None:
        for stored, new in ((self.keys, k), (self.values, v)):
            stored[layer][slot_B.unsqueeze(1), :, pos_BW] = new.transpose(1, 2)

    def _attend_used(
        self, kernel: Callable[..., Tensor], slot_B: Tensor, pos_BW: Tensor, mask: Mask | None = None
    ) -> Attend:
        rows, end = len(slot_B), self.length
        bias_BL = None if self.bias_SL is None else self.bias_SL[:rows, :end]
        seen_BWL = None if mask is None else mask(self._column_L[:end], pos_BW.unsqueeze(-1)).contiguous()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._write(layer, slot_B, pos_BW, k, v)
            keys, values = (stored[layer, :rows, :, :end] for stored in (self.keys, self.values))
            return kernel(q, keys, values, pos_BW, bias_BL, seen_BWL)

        return attend

    def _attend_masked(
        self, slot_B: Tensor, pos_BW: Tensor, read: Callable[[Tensor], Tensor], mask: Mask | None = None
    ) -> Attend:
        score_B1WL = self._scores(slot_B, pos_BW.unsqueeze(-1), mask, self.length + 1).unsqueeze(1)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._write(layer, slot_B, pos_BW, k, v)
            keys, values = (read(stored[layer]) for stored in (self.keys, self.values))
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=score_B1WL)

        return attend

    def _scores(self, slot_B: Tensor, pos_BW1: Tensor, mask: Mask | None, columns: int) -> Tensor:
        """What is added to the scores that queries give the first `columns` of the cache, [B, W, columns].

        A query sees its own position and those before it. One that pads the forward sees all, so as to stay finite.
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
    """Rows `first`, `first` + 1, ... of a forward, in slots `slot`, `slot` + 1, ..., that read as many columns."""

    first: int
    slot: int
    rows: int
    columns: int
