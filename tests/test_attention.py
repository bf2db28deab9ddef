"""Attention over the used cache: a row is the same in every bit, however far other rows are.

Shapes: B rows, H heads, W queries a row, G draft nodes, L cache length, d head width.
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
IDLE = -1
KINDS = ("causal", "biased", "tree", "gaps")


def make_cache(dtype: torch.dtype, kind: str) -> KVCache:
    """A cache of random keys and values; every slot of a biased one begins with a prefix."""
    generator = torch.Generator().manual_seed(0)
    cache = KVCache(SPEC, SLOTS, LENGTH, dtype, torch.device("cpu"), biased=kind == "biased")
    for stored in (cache.keys, cache.values):
        stored.copy_(torch.randn(stored.shape, generator=generator))
    if kind == "biased":
        nothing = torch.zeros((1, 3, 1, 16), dtype=dtype)
        for slot in range(SLOTS):
            cache.load_prefix(slot, Prefix(nothing, nothing, torch.tensor([2.0, -0.5]), 1))
    return cache


def make_queries() -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values of WIDTH positions a slot."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn((3, SLOTS, 3, WIDTH, 16), generator=generator)
    return q, k, v


def make_mask(kind: str, begin: list[int]) -> Mask | None:
    if kind == "tree":  # two branches behind the last committed token
        sees_WG = torch.tensor([[False, False], [True, False], [False, True]])
        base_B = torch.tensor([LENGTH + 1 if at == IDLE else at + 1 for at in begin])
        return TreeMask(base_B, sees_WG.expand(len(begin), -1, -1))
    if kind == "gaps":
        gap_L = torch.arange(LENGTH + 1) % 7 == 3
        return GapMask(gap_L.expand(len(begin), -1))
    return None


def make_positions(begin: list[int]) -> Tensor:
    """WIDTH positions a row from `begin` on, [B, W]; idle rows are behind the cache."""
    rows = []
    for at in begin:
        rows.append([LENGTH] * WIDTH if at == IDLE else list(range(at, at + WIDTH)))
    return torch.tensor(rows)


def attend(
    dtype: torch.dtype, kind: str, begin: list[int], slots: list[int] | None = None
) -> Tensor:
    """Attended values [B, H, W, d] of rows in the first slots, or in the slots given."""
    q, k, v = (values[: len(begin)].to(dtype) for values in make_queries())
    cache = make_cache(dtype, kind)
    pos_BW = make_positions(begin)
    if slots is not None:
        return cache.attend_some(torch.tensor(slots), pos_BW)(0, q, k, v)
    return cache.attend_all(pos_BW, make_mask(kind, begin))(0, q, k, v)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_row_does_not_depend_on_how_far_the_others_are(dtype: torch.dtype, kind: str) -> None:
    for at in (2, BLOCK - WIDTH, BLOCK - 1, 200):
        alone = attend(dtype, kind, [at, IDLE, IDLE, IDLE])[0]
        for others in ([at, at, at], [3, 150, 290], [290, IDLE, 3], [LENGTH - WIDTH, 64, 127]):
            assert torch.equal(attend(dtype, kind, [at, *others])[0], alone)
        assert torch.equal(attend(dtype, kind, [at])[0], alone)  # nor on how many there are


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nor_do_chosen_rows(dtype: torch.dtype) -> None:
    alone = attend(dtype, "biased", [100], [0])[0]
    scratch = SLOTS
    for begin, slots in (
        ([100, 2, 290], [0, 1, 2]),
        ([100, 100, IDLE], [0, 2, scratch]),
        ([100, 40], [0, 3]),
    ):
        assert torch.equal(attend(dtype, "biased", begin, slots)[0], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_attention(kind: str) -> None:
    """Held to one softmax over the whole length, written out."""
    begin = [5, 70, 180, 297]
    got = attend(torch.float64, kind, begin)
    q, k, v = (values.double() for values in make_queries())
    cache = make_cache(torch.float64, kind)
    for row, at in enumerate(begin):
        cache.keys[0, row, :, at : at + WIDTH] = k[row]
        cache.values[0, row, :, at : at + WIDTH] = v[row]

    # 1. What each query sees.
    pos_BW1 = make_positions(begin).unsqueeze(-1)
    column_L = torch.arange(LENGTH + 1)
    sees_BWL = column_L <= pos_BW1
    if (mask := make_mask(kind, begin)) is not None:
        sees_BWL &= mask(column_L, pos_BW1)

    # 2. Scores; a query's own position has no bias.
    scores = torch.einsum("bhwd,bhld->bhwl", q, cache.keys[0, :SLOTS]) / 4
    if cache.bias_SL is not None:
        bias_BWL = torch.where(column_L == pos_BW1, 0, cache.bias_SL[:SLOTS].unsqueeze(1))
        scores += bias_BWL.unsqueeze(1)

    # 3. Softmax.
    probs = scores.masked_fill(~sees_BWL.unsqueeze(1), -torch.inf).softmax(-1)
    torch.testing.assert_close(got, probs @ cache.values[0, :SLOTS])


def test_what_lies_behind_a_row_is_not_read() -> None:
    """Neither by the row that ends before it, nor by idle rows: NaN there changes nothing."""
    cache = make_cache(torch.float32, "causal")
    cache.keys[:, :, :, 2 * BLOCK :] = torch.nan
    cache.values[:, :, :, 2 * BLOCK :] = torch.nan
    pos_BW = torch.tensor([[100], [LENGTH], [30], [LENGTH]])
    nothing = torch.zeros((SLOTS, 3, 1, 16))
    attended = cache.attend_all(pos_BW)(0, nothing, nothing, nothing)
    assert torch.isfinite(attended).all()
