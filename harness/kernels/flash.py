"""Attention of a few queries per slot over the used part of a cache (flash-decoding, Dao et al.
2023), in Triton.

A program takes up to 16 queries of one head over four blocks of 64 keys; what the programs of a
query found is then joined in the order of the keys. Nothing of that depends on other rows, and what
a query does not see adds exactly nothing to it, so its result is bitwise the same in every company.
Products are summed up in float32.

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


def attend(
    q_SHWd: Tensor,
    keys_SHLd: Tensor,
    values_SHLd: Tensor,
    pos_SW: Tensor,
    bias_SL: Tensor | None = None,
    seen_SWL: Tensor | None = None,
) -> Tensor:
    """Attended values [S, H, W, d] of queries at cache positions `pos_SW`, int64, of their own
    slots.

    A query sees the columns up to its own, of these only what `seen_SWL` (bool) marks where that is
    given; `bias_SL` is added to the scores of all but its own. At a position of L or behind it, a
    query is padding: it reads nothing and gets zeros. Any strides will do but for the last axis,
    which must be dense. Nothing waits for the device.
    """
    slots, heads, width, dim = q_SHWd.shape
    length = keys_SHLd.shape[2]
    if dim > WIDEST_HEAD or q_SHWd.dtype not in TYPES:
        raise ValueError(
            f"heads of {dim} numbers in {q_SHWd.dtype}: {WIDEST_HEAD} fit, of 16 or 32 bits"
        )
    parts = triton.cdiv(length, KEYS * BLOCKS)
    partial_SHPWd = q_SHWd.new_empty((slots, heads, parts, width, dim), dtype=torch.float32)
    scale_SHP2W = q_SHWd.new_empty((slots, heads, parts, 2, width), dtype=torch.float32)
    out_SHWd = torch.empty((slots, heads, width, dim), dtype=q_SHWd.dtype, device=q_SHWd.device)
    bias = q_SHWd if bias_SL is None else bias_SL
    seen = q_SHWd if seen_SWL is None else seen_SWL.view(torch.uint8)
    padded = max(16, triton.next_power_of_2(dim))
    _part[(slots * heads, parts, triton.cdiv(width, QUERIES))](
        *(q_SHWd, keys_SHLd, values_SHLd, pos_SW, bias, seen, partial_SHPWd, scale_SHP2W),
        *(heads, width, length, dim, parts),
        *(*q_SHWd.stride()[:3], *keys_SHLd.stride()[:3], *values_SHLd.stride()[:3]),
        *(*pos_SW.stride(), *bias.stride()[:2], *seen.stride()[:3]),
        score_scale=1 / math.sqrt(dim),
        BIASED=bias_SL is not None,
        MASKED=seen_SWL is not None,
        PRECISION="ieee" if q_SHWd.dtype == torch.float32 else "tf32",
        WIDEN=q_SHWd.dtype == torch.bfloat16
        and not q_SHWd.is_cuda,  # the interpreter's dot knows no bfloat16
        W=QUERIES,
        D=padded,
        KEYS=KEYS,
        BLOCKS=BLOCKS,
        num_warps=4,
        num_stages=2,
        enable_fp_fusion=True,
    )
    _join[(slots * heads, width)](
        *(partial_SHPWd, scale_SHP2W, pos_SW, out_SHWd),
        *(heads, width, length, dim, parts, *pos_SW.stride()),
        D=padded,
        PART=KEYS * BLOCKS,
        num_warps=1,
        enable_fp_fusion=True,
    )
    return out_SHWd


@triton.jit
def _part(
    q_ptr,
    key_ptr,
    value_ptr,
    pos_ptr,
    bias_ptr,
    seen_ptr,
    partial_ptr,
    scale_ptr,
    heads,
    width,
    length,
    dim,
    parts,
    q_slot,
    q_head,
    q_row,
    key_slot,
    key_head,
    key_row,
    value_slot,
    value_head,
    value_row,
    pos_slot,
    pos_row,
    bias_slot,
    bias_row,
    seen_slot,
    seen_row,
    seen_column,
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
    """Some queries of one head over one part of the length: largest score, sum of weights, weighted
    sum of values.
    """
    slot = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    part = tl.program_id(1)
    w = tl.program_id(2) * W + tl.arange(0, W)
    d = tl.arange(0, D)
    k = tl.arange(0, KEYS)
    real_w = w < width
    real_d = d < dim
    pos = tl.load(pos_ptr + slot * pos_slot + w * pos_row, mask=real_w, other=-1).to(tl.int32)
    pos = tl.where(pos < length, pos, -1)
    end = tl.minimum(tl.max(pos, 0) + 1, (part + 1) * KEYS * BLOCKS)
    begin = part * KEYS * BLOCKS
    if begin < end:
        q_at = q_ptr + slot * q_slot + head * q_head + w[:, None] * q_row + d[None, :]
        q = tl.load(q_at, mask=real_w[:, None] & real_d[None, :], other=0.0)
        top = tl.full((W,), float("-inf"), tl.float32)
        total = tl.zeros((W,), tl.float32)
        mixed = tl.zeros((W, D), tl.float32)
        for first in range(begin, end, KEYS):
            column = first + k
            read = (column < end)[:, None] & real_d[None, :]
            key_at = (
                key_ptr + slot * key_slot + head * key_head + column[:, None].to(tl.int64) * key_row
            )
            key = tl.load(key_at + d[None, :], mask=read, other=0.0)
            score = _product(q, tl.trans(key), PRECISION, WIDEN) * score_scale
            if BIASED:
                bias = tl.load(
                    bias_ptr + slot * bias_slot + column * bias_row, mask=column < end, other=0.0
                )
                score += tl.where(
                    column[None, :] == pos[:, None], 0.0, bias.to(tl.float32)[None, :]
                )
            sees = column[None, :] <= pos[:, None]
            if MASKED:
                seen_at = (
                    seen_ptr
                    + slot * seen_slot
                    + w[:, None] * seen_row
                    + column[None, :] * seen_column
                )
                sees = sees & (tl.load(seen_at, mask=sees, other=0) != 0)
            score = tl.where(sees, score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp(score - base[:, None])
            shrink = tl.exp(top - base)
            value_at = (
                value_ptr
                + slot * value_slot
                + head * value_head
                + column[:, None].to(tl.int64) * value_row
            )
            value = tl.load(value_at + d[None, :], mask=read, other=0.0)
            total = total * shrink + tl.sum(weight, 1)
            mixed = mixed * shrink[:, None] + _product(
                weight.to(value.dtype), value, PRECISION, WIDEN
            )
            top = higher
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
def _join(
    partial_ptr,
    scale_ptr,
    pos_ptr,
    out_ptr,
    heads,
    width,
    length,
    dim,
    parts,
    pos_slot,
    pos_row,
    D: tl.constexpr,
    PART: tl.constexpr,
):
    """One query of one head: the parts up to its own position, in order."""
    place = tl.program_id(0).to(tl.int64)
    w = tl.program_id(1)
    d = tl.arange(0, D)
    pos = tl.load(pos_ptr + place // heads * pos_slot + w * pos_row).to(tl.int32)
    used = tl.where(pos < length, pos // PART + 1, 0)
    top = float("-inf")
    total = 0.0
    mixed = tl.zeros((D,), tl.float32)
    for part in range(used):
        at = place * parts + part
        part_top = tl.load(scale_ptr + at * 2 * width + w)
        part_total = tl.load(scale_ptr + at * 2 * width + width + w)
        part_mixed = tl.load(partial_ptr + (at * width + w) * dim + d, mask=d < dim, other=0.0)
        higher = tl.maximum(top, part_top)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp(top - base)
        share = tl.exp(part_top - base)
        total = total * shrink + part_total * share
        mixed = mixed * shrink + part_mixed * share
        top = higher
    out = mixed / tl.where(total > 0, total, 1.0)
    tl.store(
        out_ptr + (place * width + w) * dim + d, out.to(out_ptr.dtype.element_ty), mask=d < dim
    )
