"""Attention of a few queries per slot over the used part of a cache, in Triton.

Flash-decoding (Dao et al. 2023): a program takes up to 16 queries of one head over a part of the
cache, four blocks of 64 keys; a second kernel then joins what the programs of a query found, in the
order of the keys. No result depends on other rows, and keys that a query does not see add exactly
nothing to it, so each query's result is bitwise the same whatever else is in the batch. Products
are summed up in float32.

Shapes: S slots, H heads, W queries per slot, L cache length, d head width, P parts of 256
positions.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

KEYS = 64
"""Keys per block."""
BLOCKS = 4
"""Blocks per program."""
QUERIES = 16
"""Queries per program, the fewest that matrix units take."""
WIDEST_HEAD = 256
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(dtype: torch.dtype, head_width: int) -> str:
    """Say why heads cannot be attended to; an empty string if they can."""
    if dtype in TYPES and head_width <= WIDEST_HEAD:
        return ""
    return f"heads of {head_width} numbers in {dtype}: {WIDEST_HEAD} fit, of 16 or 32 bits"


def precision_of(dtype: torch.dtype) -> str:
    """Return how products are multiplied: in true float32 where that is the type."""
    return "ieee" if dtype == torch.float32 else "tf32"


def warps_of(dtype: torch.dtype, padded_dim: int) -> int:
    """Return the warps of a program: more for wide heads of 32 bits, which would spill."""
    return 8 if dtype == torch.float32 and padded_dim >= 128 else 4


def padded_width(head_width: int) -> int:
    """Return the width that heads are computed with."""
    return max(16, triton.next_power_of_2(head_width))


def attend(
    q_SHWd: Tensor,
    keys_SHLd: Tensor,
    values_SHLd: Tensor,
    pos_SW: Tensor,
    bias_SL: Tensor | None = None,
    seen_SWL: Tensor | None = None,
) -> Tensor:
    """Compute attended values [S, H, W, d] of queries at cache positions `pos_SW`, int64.

    A query sees the columns of its own slot up to its own position, and of these only what
    `seen_SWL` (bool) marks if it is given; `bias_SL` is added to the scores of all but its own
    position. A query at position L or behind is padding: it reads nothing and gets zeros. Any
    strides will do except for the last axis, which must be dense. Does not wait for the device.
    Raises ValueError for types and head widths that the kernel does not take.
    """
    slots, heads, width, dim = q_SHWd.shape
    length = keys_SHLd.shape[2]
    if reason := why_not(q_SHWd.dtype, dim):
        raise ValueError(reason)

    parts = triton.cdiv(length, KEYS * BLOCKS)
    padded_dim = padded_width(dim)
    partial_SHPWd = q_SHWd.new_empty((slots, heads, parts, width, dim), dtype=torch.float32)
    scale_SHP2W = q_SHWd.new_empty((slots, heads, parts, 2, width), dtype=torch.float32)
    out_SHWd = torch.empty((slots, heads, width, dim), dtype=q_SHWd.dtype, device=q_SHWd.device)

    # A kernel takes no None: where there is no bias or mask, q stands in and is not read.
    bias = q_SHWd if bias_SL is None else bias_SL
    seen = q_SHWd if seen_SWL is None else seen_SWL.view(torch.uint8)

    # 1. Each part of the cache on its own.
    attend_part_kernel[(slots * heads, parts, triton.cdiv(width, QUERIES))](
        q_ptr=q_SHWd,
        key_ptr=keys_SHLd,
        value_ptr=values_SHLd,
        pos_ptr=pos_SW,
        bias_ptr=bias,
        seen_ptr=seen,
        partial_ptr=partial_SHPWd,
        scale_ptr=scale_SHP2W,
        q_strides=q_SHWd.stride()[:3],
        key_strides=keys_SHLd.stride()[:3],
        value_strides=values_SHLd.stride()[:3],
        pos_strides=pos_SW.stride(),
        bias_strides=bias.stride()[:2],
        seen_strides=seen.stride()[:3],
        heads=heads,
        width=width,
        length=length,
        dim=dim,
        parts=parts,
        score_scale=1 / math.sqrt(dim),
        BIASED=bias_SL is not None,
        MASKED=seen_SWL is not None,
        PRECISION=precision_of(q_SHWd.dtype),
        WIDEN=_interpreter_needs_float32(q_SHWd),
        W=QUERIES,
        D=padded_dim,
        KEYS=KEYS,
        BLOCKS=BLOCKS,
        num_warps=warps_of(q_SHWd.dtype, padded_dim),
        num_stages=2,
        enable_fp_fusion=True,
    )

    # 2. The parts joined.
    join_parts_kernel[(slots * heads, width)](
        partial_ptr=partial_SHPWd,
        scale_ptr=scale_SHP2W,
        pos_ptr=pos_SW,
        out_ptr=out_SHWd,
        pos_strides=pos_SW.stride(),
        heads=heads,
        width=width,
        length=length,
        dim=dim,
        parts=parts,
        D=padded_dim,
        PART=KEYS * BLOCKS,
        num_warps=1,
        enable_fp_fusion=True,
    )
    return out_SHWd


def _interpreter_needs_float32(q_SHWd: Tensor) -> bool:
    """True on the CPU for bfloat16, which the interpreter's dot does not know."""
    return q_SHWd.dtype == torch.bfloat16 and not q_SHWd.is_cuda


@triton.jit
def attend_part_kernel(
    q_ptr,
    key_ptr,
    value_ptr,
    pos_ptr,
    bias_ptr,
    seen_ptr,
    partial_ptr,
    scale_ptr,
    q_strides,
    key_strides,
    value_strides,
    pos_strides,
    bias_strides,
    seen_strides,
    heads,
    width,
    length,
    dim,
    parts,
    score_scale,
    BIASED: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    W: tl.constexpr,
    D: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Attend with some queries of one head to one part of the cache.

    Stores for each query the largest score, the sum of weights and the weighted sum of values.
    Strides are those of all axes but a dense last one: slot, head, query or column.
    """
    q_slot, q_head, q_row = q_strides
    key_slot, key_head, key_row = key_strides
    value_slot, value_head, value_row = value_strides
    pos_slot, pos_row = pos_strides
    bias_slot, bias_row = bias_strides
    seen_slot, seen_row, seen_column = seen_strides

    # 1. Find out which slot, head, part and queries these are, and how far the queries reach.
    slot = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    part = tl.program_id(1)
    w = tl.program_id(2) * W + tl.arange(0, W)
    d = tl.arange(0, D)
    real_w = w < width
    real_d = d < dim
    pos_at = pos_ptr + slot * pos_slot + w * pos_row
    pos = tl.load(pos_at, mask=real_w, other=-1).to(tl.int32)
    pos = tl.where(pos < length, pos, -1)
    begin = part * KEYS * BLOCKS
    end = tl.minimum(tl.max(pos, 0) + 1, (part + 1) * KEYS * BLOCKS)

    if begin < end:
        # 2. Load the queries.
        q_at = q_ptr + slot * q_slot + head * q_head + w[:, None] * q_row + d[None, :]
        q = tl.load(q_at, mask=real_w[:, None] & real_d[None, :], other=0.0)
        keys_at = key_ptr + slot * key_slot + head * key_head + d[None, :]
        values_at = value_ptr + slot * value_slot + head * value_head + d[None, :]

        top = tl.full((W,), float("-inf"), tl.float32)
        total = tl.zeros((W,), tl.float32)
        mixed = tl.zeros((W, D), tl.float32)
        for first in range(begin, end, KEYS):
            column = first + tl.arange(0, KEYS)
            column_1 = column[:, None].to(tl.int64)
            real = (column < end)[:, None] & real_d[None, :]

            # 3. Score a block of keys.
            key = tl.load(keys_at + column_1 * key_row, mask=real, other=0.0)
            score = _product(q, tl.trans(key), PRECISION, WIDEN) * score_scale
            if BIASED:
                bias_at = bias_ptr + slot * bias_slot + column * bias_row
                bias = tl.load(bias_at, mask=column < end, other=0.0).to(tl.float32)
                score += tl.where(column[None, :] == pos[:, None], 0.0, bias[None, :])
            sees = column[None, :] <= pos[:, None]
            if MASKED:
                seen_at = seen_ptr + slot * seen_slot + w[:, None] * seen_row
                seen_at += column[None, :] * seen_column
                sees = sees & (tl.load(seen_at, mask=sees, other=0) != 0)
            score = tl.where(sees, score, float("-inf"))

            # 4. Weigh the block's values, and shrink what came before to the new largest score.
            higher = tl.maximum(top, tl.max(score, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp(score - base[:, None])
            shrink = tl.exp(top - base)
            value = tl.load(values_at + column_1 * value_row, mask=real, other=0.0)
            total = total * shrink + tl.sum(weight, 1)
            weight = weight.to(value.dtype)
            mixed = mixed * shrink[:, None] + _product(weight, value, PRECISION, WIDEN)
            top = higher

        # 5. Store.
        place = (slot * heads + head) * parts + part
        partial_at = partial_ptr + place * width * dim + w[:, None] * dim + d[None, :]
        tl.store(partial_at, mixed, mask=real_w[:, None] & real_d[None, :])
        tl.store(scale_ptr + place * 2 * width + w, top, mask=real_w)
        tl.store(scale_ptr + place * 2 * width + width + w, total, mask=real_w)


@triton.jit
def _product(left, right, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def join_parts_kernel(
    partial_ptr,
    scale_ptr,
    pos_ptr,
    out_ptr,
    pos_strides,
    heads,
    width,
    length,
    dim,
    parts,
    D: tl.constexpr,
    PART: tl.constexpr,
):
    """Join, for one query of one head, the parts up to the query's own position, in order."""
    pos_slot, pos_row = pos_strides

    # 1. Find out how many parts the query reaches; padding reaches none.
    place = tl.program_id(0).to(tl.int64)
    slot = place // heads
    w = tl.program_id(1)
    d = tl.arange(0, D)
    pos = tl.load(pos_ptr + slot * pos_slot + w * pos_row).to(tl.int32)
    used = tl.where(pos < length, pos // PART + 1, 0)

    # 2. Add part after part, shrinking both sides to the larger score.
    top = float("-inf")
    total = 0.0
    mixed = tl.zeros((D,), tl.float32)
    for part in range(used):
        at = place * parts + part
        part_top = tl.load(scale_ptr + at * 2 * width + w)
        part_total = tl.load(scale_ptr + at * 2 * width + width + w)
        part_at = partial_ptr + (at * width + w) * dim + d
        part_mixed = tl.load(part_at, mask=d < dim, other=0.0)
        higher = tl.maximum(top, part_top)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp(top - base)
        share = tl.exp(part_top - base)
        total = total * shrink + part_total * share
        mixed = mixed * shrink + part_mixed * share
        top = higher

    # 3. Normalise and store.
    out = mixed / tl.where(total > 0, total, 1.0)
    out_at = out_ptr + (place * width + w) * dim + d
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=d < dim)
