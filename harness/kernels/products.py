"""Matrix products that treat all rows alike, in Triton.

A library chooses how a product is cut by its shape, and may sum rows at one place in another order
than rows at another. Here every result is the sum over the inner axis in one fixed order: tiles and
the parts that the inner axis is cut into follow from the sizes of the weight and from the class
that the number of rows is in, never from where a row stands. So a row's result is bitwise the same
at every index, whatever the other rows are, and for all numbers of rows of a class. Products are
summed up in float32 and rounded once.

Shapes: R rows, N outer width (results), K inner width (what is summed up), P parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.kernels.flash import precision_of

TYPES = (torch.float32, torch.bfloat16, torch.float16)
JOIN_BLOCK = 512
"""Results that a program joins."""
WANTED_PROGRAMS = 128
"""Programs among which the weight of a few rows is divided, about one a multiprocessor."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut: a program computes `rows` x `outer` results, `inner` terms a time."""

    rows: int
    outer: int
    inner: int
    warps: int
    stages: int
    is_split: bool  # whether the inner axis is cut into parts


FEW = 16
"""The most rows of the class whose weight is read once, by as many programs as possible."""
SOME = 128
"""The most rows of the class that still is cut into parts."""

TILINGS_16_BIT = (
    Tiling(rows=16, outer=64, inner=128, warps=4, stages=3, is_split=True),
    Tiling(rows=64, outer=64, inner=64, warps=4, stages=3, is_split=True),
    Tiling(rows=128, outer=128, inner=64, warps=8, stages=3, is_split=False),
)
TILINGS_32_BIT = (
    Tiling(rows=16, outer=64, inner=64, warps=4, stages=3, is_split=True),
    Tiling(rows=64, outer=64, inner=32, warps=8, stages=3, is_split=True),
    Tiling(rows=64, outer=64, inner=32, warps=8, stages=3, is_split=False),
)
"""By class of rows: up to FEW, up to SOME, and more."""


def why_not(dtype: torch.dtype) -> str:
    """Say why numbers cannot be multiplied; an empty string if they can."""
    return "" if dtype in TYPES else f"products in {dtype}: only 16 or 32 bits are multiplied"


def tiling_of(rows: int, dtype: torch.dtype) -> Tiling:
    """Return the tiling for the class that a number of rows is in."""
    tilings = TILINGS_32_BIT if dtype == torch.float32 else TILINGS_16_BIT
    return tilings[(rows > FEW) + (rows > SOME)]


def parts_of(tiling: Tiling, outer: int, inner: int) -> int:
    """Return how many parts the inner axis is cut into: a few where tiles alone are too few."""
    if not tiling.is_split:
        return 1
    wanted = WANTED_PROGRAMS // triton.cdiv(outer, tiling.outer)
    most = triton.cdiv(inner, 2 * tiling.inner)
    return max(1, min(wanted, most, 16))


def multiply(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Compute x [..., K] times the transposed weight, plus a bias: [..., N], as `F.linear`.

    The weight's inner axis must be dense. Does not wait for the device. Raises ValueError for types
    that the kernel does not take.
    """
    if reason := why_not(x.dtype):
        raise ValueError(reason)
    outer, inner = weight_NK.shape
    x_RK = x.reshape(-1, inner)
    rows = len(x_RK)
    out_RN = torch.empty((rows, outer), dtype=x.dtype, device=x.device)
    if rows == 0:
        return out_RN.view(*x.shape[:-1], outer)

    tiling = tiling_of(rows, x.dtype)
    parts = parts_of(tiling, outer, inner)
    part_steps = triton.cdiv(triton.cdiv(inner, tiling.inner), parts)
    target = out_RN
    if parts > 1:
        target = torch.empty((parts, rows, outer), dtype=torch.float32, device=x.device)

    # A kernel takes no None: where there is no bias, x stands in and is not read.
    bias = x_RK if bias_N is None else bias_N

    # 1. Each part of the inner axis on its own.
    grid = (triton.cdiv(rows, tiling.rows), triton.cdiv(outer, tiling.outer), parts)
    multiply_kernel[grid](
        x_ptr=x_RK,
        weight_ptr=weight_NK,
        bias_ptr=bias,
        out_ptr=target,
        x_stride=x_RK.stride(0),
        weight_stride=weight_NK.stride(0),
        rows=rows,
        outer=outer,
        inner=inner,
        part_steps=part_steps,
        BIASED=bias_N is not None and parts == 1,
        PRECISION=precision_of(x.dtype),
        WIDEN=x.dtype == torch.bfloat16 and not x.is_cuda,  # the interpreter's dot needs float32
        R=tiling.rows,
        N=tiling.outer,
        K=tiling.inner,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        enable_fp_fusion=True,
    )

    # 2. The parts joined, in their order.
    if parts > 1:
        join_kernel[(rows, triton.cdiv(outer, JOIN_BLOCK))](
            part_ptr=target,
            bias_ptr=bias,
            out_ptr=out_RN,
            rows=rows,
            outer=outer,
            parts=parts,
            BIASED=bias_N is not None,
            N=JOIN_BLOCK,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out_RN.view(*x.shape[:-1], outer)


@triton.jit
def multiply_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    weight_stride,
    rows,
    outer,
    inner,
    part_steps,
    BIASED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Compute one tile of results, summed over one part of the inner axis."""
    # 1. Find out which rows, results and part these are. Programs of neighbouring rows follow one
    #    another, so that they share what they read of the weight.
    r = tl.program_id(0) * R + tl.arange(0, R)
    n = tl.program_id(1) * N + tl.arange(0, N)
    part = tl.program_id(2)
    k = tl.arange(0, K)
    x_at = x_ptr + r[:, None].to(tl.int64) * x_stride + k[None, :]
    weight_at = weight_ptr + n[None, :].to(tl.int64) * weight_stride + k[:, None]
    real_r = (r < rows)[:, None]
    real_n = (n < outer)[None, :]

    # 2. Sum up, step by step.
    total = tl.zeros((R, N), tl.float32)
    first = part * part_steps * K
    last = tl.minimum(first + part_steps * K, inner)
    for at in range(first, last, K):
        left = last - at
        x = tl.load(x_at + at, mask=real_r & (k < left)[None, :], other=0.0)
        weight = tl.load(weight_at + at, mask=real_n & (k < left)[:, None], other=0.0)
        if WIDEN:
            x = x.to(tl.float32)
            weight = weight.to(tl.float32)
        total = tl.dot(x, weight, total, input_precision=PRECISION)

    # 3. Add the bias and store.
    if BIASED:
        bias = tl.load(bias_ptr + n, mask=n < outer, other=0.0)
        total += bias[None, :].to(tl.float32)
    row = part * rows + r
    out_at = out_ptr + row[:, None].to(tl.int64) * outer + n[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=real_r & real_n)


@triton.jit
def join_kernel(
    part_ptr, bias_ptr, out_ptr, rows, outer, parts, BIASED: tl.constexpr, N: tl.constexpr
):
    """Add up the parts of some results of one row, the first part first."""
    r = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * N + tl.arange(0, N)
    real = n < outer
    total = tl.zeros((N,), tl.float32)
    for part in range(parts):
        total += tl.load(part_ptr + (part * rows + r) * outer + n, mask=real, other=0.0)
    if BIASED:
        total += tl.load(bias_ptr + n, mask=real, other=0.0).to(tl.float32)
    tl.store(out_ptr + r * outer + n, total.to(out_ptr.dtype.element_ty), mask=real)
