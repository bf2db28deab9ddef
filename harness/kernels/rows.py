"""Find out whether a matrix product treats all rows alike, wherever they stand.

Batch invariance rests on it: a job's rows stand at other indices of a forward, among other rows,
each time that it is drawn. A library promises nothing of the kind, so it is tried.

Shapes: R rows, N outer width, K inner width, P rows that are compared, O other rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_RK, weight_NK, bias_N) -> [R, N], as `F.linear`."""

PROBES = 2
"""Rows that are compared at every index of a product."""
OTHERS = 4
"""Different rows that stand between them, one after another: see `_other_rows`."""


def find_row_dependence(
    product: Product,
    rows: int,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
) -> str:
    """Say on what else a row's product depends than on the row; an empty string if on nothing.

    Of weight and bias only the shapes, the type and the device count. Some rows are put at every
    index of a batch: among copies of themselves, and among others that are ordinary, zero, large,
    and no numbers. All results of a row must have the same bits. Rows and weight are such that all
    sums are zero but for rounding: what is left is the order in which they were summed up.
    """
    outer, inner = weight_NK.shape
    generator = torch.Generator().manual_seed(inner)
    base_BK = _mirror(torch.randn(min(outer, 256), inner, generator=generator), -1.0).to(weight_NK)
    index_N = torch.arange(outer, device=weight_NK.device)
    mirrored_NK = base_BK[index_N % len(base_BK)]
    no_bias_N = None if bias_N is None else torch.zeros_like(bias_N)
    probe_PK = _mirror(torch.randn(PROBES, inner, generator=generator), 1.0).to(weight_NK)
    other_OK = _other_rows(inner, generator).to(weight_NK)
    index_R = torch.arange(rows, device=weight_NK.device)

    for probe_1K in probe_PK.split(1):
        alike_RN = product(probe_1K.expand(rows, -1).contiguous(), mirrored_NK, no_bias_N)
        expected_1N = alike_RN[:1].clone()
        if not _same_bits(alike_RN, expected_1N):
            return "the row's index"
        del alike_RN
        for turn in range(2 * OTHERS):
            first = turn % 2  # every index has the row in one of two turns
            x_RK = other_OK[(index_R + turn // 2) % OTHERS]
            x_RK[first::2] = probe_1K
            among_RN = product(x_RK, mirrored_NK, no_bias_N)[first::2]
            if not _same_bits(among_RN, expected_1N):
                return "the other rows"
    return ""


def _mirror(value_RK: Tensor, sign: float) -> Tensor:
    """Numbers of very different sizes, whose second half is the first backwards, with a sign.

    An odd one in the middle is zero.
    """
    inner = value_RK.shape[1]
    half = inner // 2
    exponent_H = torch.arange(half) * 5 % 11 - 5
    first_RH = value_RK[:, :half] * 2.0**exponent_H
    middle_R = torch.zeros(len(value_RK), inner % 2)
    return torch.cat((first_RH, middle_R, sign * first_RH.flip(1)), 1)


def _other_rows(inner: int, generator: torch.Generator) -> Tensor:
    """Rows [O, K] that must not matter to others: ordinary, zero, large, and no numbers."""
    other_OK = torch.randn(OTHERS, inner, generator=generator)
    other_OK[1] = 0.0
    other_OK[2] *= 1e3
    other_OK[3] = torch.nan
    return other_OK


def _same_bits(got_RN: Tensor, expected_1N: Tensor) -> bool:
    """Tell whether all rows are one row, bit by bit."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got_RN.element_size()]
    return bool((got_RN.view(whole) == expected_1N.view(whole)).all())
