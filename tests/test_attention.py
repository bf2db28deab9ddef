"""Attention over the used cache: a row's result is the same in every bit, however far other rows
are.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.models.kv_cache import BLOCK, GapMask, KVCache, Mask, Prefix, TreeMask
from harness.models.trunk import TrunkSpec

SPEC = TrunkSpec(layers=1, dim=48, heads=3, hidden=8)
SLOTS = 4
LENGTH = 300
WIDTH = 3
KINDS = ("causal", "biased", "tree", "gaps")


def filled(dtype: torch.dtype, kind: str) -> KVCache:
    generator = torch.Generator().manual_seed(0)
    cache = KVCache(SPEC, SLOTS, LENGTH, dtype, torch.device("cpu"), biased=kind == "biased")
    for stored in (cache.keys, cache.values):
        stored.copy_(torch.randn(stored.shape, generator=generator))
    for slot in range(SLOTS if kind == "biased" else 0):
        nothing = torch.zeros((1, 3, 1, 16), dtype=dtype)
        cache.load_prefix(slot, Prefix(nothing, nothing, torch.tensor([2.0, -0.5]), 1))
    return cache


def mask_of(kind: str, begin: list[int]) -> Mask | None:
    if kind == "tree":  # two branches behind the last committed token
        sees_WG = torch.tensor([[False, False], [True, False], [False, True]])
        base_B = torch.tensor([at + 1 if at >= 0 else LENGTH + 1 for at in begin])
        return TreeMask(base_B, sees_WG.expand(len(begin), -1, -1))
    if kind == "gaps":
        gap_BL = (torch.arange(LENGTH + 1) % 7 == 3).expand(len(begin), -1)
        return GapMask(gap_BL)
    return None


def attended(
    dtype: torch.dtype, kind: str, begin: list[int], slots: list[int] | None = None
) -> Tensor:
    """Rows fed WIDTH positions each from `begin` on, [B, H, W, d]; -1 is an idle row."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn((3, SLOTS, 3, WIDTH, 16), generator=generator).to(dtype)[:, : len(begin)]
    cache = filled(dtype, kind)
    pos_BW = torch.tensor([[at + w if at >= 0 else LENGTH for w in range(WIDTH)] for at in begin])
    if slots is not None:
        return cache.attend_some(torch.tensor(slots), pos_BW)(0, q, k, v)
    return cache.attend_all(pos_BW, mask_of(kind, begin))(0, q, k, v)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_row_does_not_depend_on_how_far_the_others_are(dtype: torch.dtype, kind: str) -> None:
    for at in (2, BLOCK - WIDTH, BLOCK - 1, 200):
        alone = attended(dtype, kind, [at, -1, -1, -1])[0]
        for others in ([at, at, at], [3, 150, 290], [290, -1, 3], [LENGTH - WIDTH, 64, 127]):
            assert torch.equal(attended(dtype, kind, [at, *others])[0], alone)
        assert torch.equal(attended(dtype, kind, [at])[0], alone)  # nor on how many there are


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nor_do_chosen_rows(dtype: torch.dtype) -> None:
    alone = attended(dtype, "biased", [100], [0])[0]
    scratch = SLOTS
    for begin, slots in (
        ([100, 2, 290], [0, 1, 2]),
        ([100, 100, -1], [0, 2, scratch]),
        ([100, 40], [0, 3]),
    ):
        assert torch.equal(attended(dtype, "biased", begin, slots)[0], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_attention(kind: str) -> None:
    """Held to one softmax over the whole length, written out."""
    begin = [5, 70, 180, 297]
    mine = attended(torch.float64, kind, begin)
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn((3, SLOTS, 3, WIDTH, 16), generator=generator).double()
    cache = filled(torch.float64, kind)
    for row, at in enumerate(begin):
        cache.keys[0, row, :, at : at + WIDTH] = k[row]
        cache.values[0, row, :, at : at + WIDTH] = v[row]
    pos_BW1 = (torch.tensor(begin)[:, None] + torch.arange(WIDTH)).unsqueeze(-1)
    column_L = torch.arange(LENGTH + 1)
    seen_BWL = column_L <= pos_BW1
    if (mask := mask_of(kind, begin)) is not None:
        seen_BWL &= mask(column_L, pos_BW1)
    scores = torch.einsum("bhwd,bhld->bhwl", q, cache.keys[0, :SLOTS]) / 4
    if cache.bias_SL is not None:
        own_BWL = column_L == pos_BW1
        scores += torch.where(own_BWL, 0, cache.bias_SL[:SLOTS].unsqueeze(1)).unsqueeze(1)
    probs = scores.masked_fill(~seen_BWL.unsqueeze(1), -torch.inf).softmax(-1)
    torch.testing.assert_close(mine, probs @ cache.values[0, :SLOTS])


def test_what_lies_behind_a_row_is_not_read() -> None:
    """Neither by the row whose cache ends before it, nor by rows that idle: it would turn them into
    NaN.
    """
    cache = filled(torch.float32, "causal")
    cache.keys[:, :, :, 2 * BLOCK :] = torch.nan
    cache.values[:, :, :, 2 * BLOCK :] = torch.nan
    pos_BW = torch.tensor([[100], [LENGTH], [30], [LENGTH]])
    k = torch.zeros((SLOTS, 3, 1, 16))
    assert torch.isfinite(cache.attend_all(pos_BW)(0, k, k, k)).all()
