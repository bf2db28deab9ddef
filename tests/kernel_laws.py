"""The laws that the kernels must obey, as functions of a device; run by `test_kernels.py`.

On the CPU they run in a process of their own, since Triton's interpreter must be chosen before
Triton is imported: `TRITON_INTERPRET=1 python tests/kernel_laws.py`. On a GPU the same laws are
tested at the sizes of real models.

Shapes: S slots, H heads, W queries per slot, L cache length, d head width, M rows of logits,
N draws, K branches, V vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harness import kernels
from harness.engine import probes
from harness.engine.acceptance import Drafts, exact
from harness.engine.guidance import Sampling, cfg, unguided, warp
from harness.kernels import products
from harness.kernels.flash import attend
from harness.kernels.noise import Noise
from harness.kernels.race import Signals, draw, measure_signals
from harness.kernels.rows import find_row_dependence
from harness.models.kv_cache import GapMask, KVCache, TreeMask
from harness.models.trunk import TrunkSpec

CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Shape(NamedTuple):
    """The shape of one call of attention."""

    slots: int
    heads: int
    width: int
    dim: int
    length: int


class Race(NamedTuple):
    """The size of some draws."""

    vocab: int
    top_k: int
    draws: int


@dataclass(frozen=True)
class Size:
    """How large the tests' inputs are: `products` are (outer, inner) sizes of weights."""

    shapes: tuple[Shape, ...]
    races: tuple[Race, ...]
    products: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]


SMALL = Size(
    shapes=(Shape(3, 1, 1, 32, 300), Shape(2, 1, 5, 48, 70), Shape(2, 1, 18, 80, 270)),
    races=(Race(512, 100, 12), Race(300, 50, 4), Race(16384, 1000, 4)),
    products=((96, 200), (72, 520)),
    rows=(1, 5, 17, 130),
)
REAL = Size(
    shapes=(
        Shape(128, 20, 1, 64, 1026),
        Shape(16, 20, 61, 64, 1090),
        Shape(32, 16, 1, 128, 608),
        Shape(8, 12, 5, 48, 258),
    ),
    races=(Race(512, 100, 4096), Race(16384, 1000, 4096), Race(16384, 2000, 4096)),
    products=((3840, 1280), (1280, 3584), (16384, 1280), (2048, 2048), (4096, 11008)),
    rows=(1, 2, 16, 32, 128, 1952, 7808),
)


# ------------------------------------------------------------------ attention


def make_attention_inputs(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Random arguments of `attend`.

    Rows of very different lengths, some padding, biased prefixes, strided queries and caches.
    """
    slots, heads, width, dim, length = shape
    q_SHWd = torch.randn(slots, heads, width, 2 * dim)[..., :dim]
    keys_SHLd = torch.randn(slots, heads, length + 1, dim)
    values_SHLd = torch.randn(slots, heads, length + 1, dim)

    pos_SW = torch.randint(1, length - width + 1, (slots, 1)) + torch.arange(width)
    pos_SW[0] = torch.arange(width)
    pos_SW[-1, -1] = length

    bias_SL = torch.zeros(slots, length + 1)
    bias_SL[:, 0] = math.log(20)
    bias_SL[1, 1] = -math.inf

    return {
        "q_SHWd": q_SHWd.to(device, dtype),
        "keys_SHLd": keys_SHLd.to(device, dtype)[:, :, :length],
        "values_SHLd": values_SHLd.to(device, dtype)[:, :, :length],
        "bias_SL": bias_SL.to(device, dtype)[:, :length],
        "pos_SW": pos_SW.to(device),
    }


def attend_plainly(
    q_SHWd: Tensor,
    keys_SHLd: Tensor,
    values_SHLd: Tensor,
    pos_SW: Tensor,
    bias_SL: Tensor | None = None,
    seen_SWL: Tensor | None = None,
) -> Tensor:
    """The same attention in float64, without any trick."""
    column_L = torch.arange(keys_SHLd.shape[2], device=pos_SW.device)
    pos_SW1 = pos_SW.unsqueeze(-1)
    sees_SWL = column_L <= pos_SW1
    if seen_SWL is not None:
        sees_SWL = sees_SWL & seen_SWL

    score_SHWL = q_SHWd.double() @ keys_SHLd.double().transpose(2, 3) / math.sqrt(q_SHWd.shape[-1])
    if bias_SL is not None:
        bias_SWL = bias_SL.double().unsqueeze(1).expand(sees_SWL.shape)
        bias_SWL = bias_SWL.masked_fill(column_L == pos_SW1, 0.0)
        score_SHWL = score_SHWL + bias_SWL.unsqueeze(1)

    masked_SHWL = score_SHWL.masked_fill(~sees_SWL.unsqueeze(1), -torch.inf)
    return masked_SHWL.softmax(-1) @ values_SHLd.double()


def mark_real_queries(got: Tensor, pos_SW: Tensor, length: int) -> Tensor:
    """True for the outputs [S, H, W, d] of queries that are no padding."""
    return (pos_SW < length)[:, None, :, None].expand_as(got)


def check_attention(size: Size, device: torch.device) -> None:
    """Equal to plain attention, with bias or without, in every type; padding gives zeros."""
    for shape in size.shapes:
        for dtype, close in CLOSE.items():
            given = make_attention_inputs(shape, dtype, device)
            prefix_SL = given.pop("bias_SL")
            for bias_SL in (prefix_SL, None) if dtype == torch.float32 else (prefix_SL,):
                got = attend(**given, bias_SL=bias_SL)
                expected = attend_plainly(**given, bias_SL=bias_SL)
                real = mark_real_queries(got, given["pos_SW"], shape.length)
                assert got.dtype == dtype
                assert (got.double() - expected)[real].abs().max() < close, (shape, dtype)
                assert (got[~real] == 0).all()


def check_masks(size: Size, device: torch.device) -> None:
    """Draft trees and gaps: what a mask of the trunk hides is not seen."""
    shape = size.shapes[1]
    slots, _, width, _, length = shape
    given = make_attention_inputs(shape, torch.float32, device)
    column_L = torch.arange(length, device=device)
    pos_SW1 = given["pos_SW"].unsqueeze(-1)

    base_S = given["pos_SW"][:, 0] + 1
    tree = TreeMask(base_S, torch.rand(slots, width, width, device=device) < 0.5)
    gap = GapMask(torch.rand(slots, length, device=device) < 0.5)
    for mask in (tree, gap):
        seen_SWL = mask(column_L, pos_SW1) | (column_L == pos_SW1)
        got = attend(**given, seen_SWL=seen_SWL)
        expected = attend_plainly(**given, seen_SWL=seen_SWL)
        real = mark_real_queries(got, given["pos_SW"], length)
        assert (got.double() - expected)[real].abs().max() < CLOSE[torch.float32]


def check_attention_is_batch_invariant(size: Size, device: torch.device) -> None:
    """Bitwise: a row among others is that row alone, and so is a query.

    What lies behind a row's last query is not read.
    """
    for shape in size.shapes[:2]:
        for dtype in (torch.float32, torch.bfloat16):
            given = make_attention_inputs(shape, dtype, device)
            together = attend(**given)
            for s in (0, shape.slots - 1):
                alone = {name: values[s : s + 1] for name, values in given.items()}
                assert torch.equal(attend(**alone)[0], together[s])
                first = dict(alone)
                first["q_SHWd"] = alone["q_SHWd"][:, :, :1]
                first["pos_SW"] = alone["pos_SW"][:, :1]
                assert torch.equal(attend(**first)[0, :, 0], together[s, :, 0])

            hidden = hide_unseen(given, shape.length)
            assert torch.equal(attend(**hidden), together), "what no query sees was read"


def hide_unseen(given: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """The same arguments with NaN behind the last query of each row."""
    pos_SW = given["pos_SW"]
    last_S1 = pos_SW.masked_fill(pos_SW >= length, -1).amax(1, keepdim=True)
    behind_SL = torch.arange(length, device=pos_SW.device) > last_S1
    hidden = dict(given)
    for name in ("keys_SHLd", "values_SHLd"):
        hidden[name] = given[name].masked_fill(behind_SL[:, None, :, None], torch.nan)
    return hidden


def check_trunk(size: Size, device: torch.device) -> None:
    """The kernel and the cache's own attention agree on a cache that was filled through it."""
    slots, heads, width, dim, length = size.shapes[0]
    spec = TrunkSpec(layers=1, dim=heads * dim, heads=heads, hidden=1)
    cache = KVCache(spec, slots, length, torch.float32, device, biased=True)
    cache.keys.normal_()
    cache.values.normal_()
    assert cache.bias_SL is not None
    cache.bias_SL[:, 0] = 2.0

    pos_SW = torch.randint(2, length, (slots, width), device=device)
    q = torch.randn(slots, heads, width, dim, device=device)
    k = torch.randn(slots, heads, width, dim, device=device)
    v = torch.randn(slots, heads, width, dim, device=device)
    expected = cache.attend_all(pos_SW)(0, q, k, v)

    keys = cache.keys[0, :slots, :, :length]
    values = cache.values[0, :slots, :, :length]
    got = attend(q, keys, values, pos_SW, cache.bias_SL[:slots, :length])
    assert (got - expected).abs().max() < CLOSE[torch.float32]


# ------------------------------------------------------------------ draws and signals


class DrawInputs(NamedTuple):
    """The tensors that `draw` takes, in its order."""

    logits_MV: Tensor
    row_NK: Tensor
    scale_N: Tensor
    key_N2: Tensor
    place_N: Tensor


def make_draw_inputs(vocab: int, count: int, branches: int, device: torch.device) -> DrawInputs:
    """Random arguments of `draw`: logits of a table's rows, scales, keys and places."""
    logits_MV = 3 * torch.randn(2 * count + 1, vocab, device=device)
    # Many that are equal, zeros of both signs too.
    logits_MV[:, 7 : vocab // 3] = logits_MV[:, 7 : vocab // 3].round()
    row_N = torch.randperm(2 * count, device=device)[: branches * count]
    return DrawInputs(
        logits_MV=logits_MV,
        row_NK=row_N.view(count, branches),
        scale_N=1 + 6 * torch.rand(count, device=device, dtype=torch.float64),
        key_N2=torch.randint(0, 2**32, (count, 2), device=device),
        place_N=torch.randint(0, 4096, (count,), device=device),
    )


def check_draws(size: Size, device: torch.device) -> None:
    """Token for token what `cfg`, `warp` and `exact` draw, with the same log-probabilities."""
    for race in size.races:
        check_draw(race, 1, 1.0, race.top_k, race.draws, device)
        check_draw(race, 2, 1.0, race.top_k, race.draws, device)
        for temperature, top_k in ((0.7, race.top_k), (1.0, 0), (0.0, race.top_k)):
            check_draw(race, 2, temperature, top_k, 2, device)


def check_draw(
    race: Race, branches: int, temperature: float, top_k: int, count: int, device: torch.device
) -> None:
    given = make_draw_inputs(race.vocab, count, branches, device)
    got = draw(*given, temperature=temperature, top_k=top_k)

    guide = cfg if branches == 2 else unguided
    logits_NKTV = given.logits_MV[given.row_NK].unsqueeze(2)
    sampling = Sampling(temperature=temperature, top_k=top_k)
    probs_NTV = warp(guide(logits_NKTV, given.scale_N), sampling)
    noise = Noise(given.key_N2, given.place_N.unsqueeze(1))
    _, token_N = exact(probs_NTV, Drafts.stack([None] * count, probs_NTV), noise)
    log_prob_N = probs_NTV[:, 0].gather(1, token_N.unsqueeze(1))[:, 0].double().log()

    agreed = got.token == token_N
    allowed = 0 if count < 1000 else 1  # one in thousands may be a tie to six digits
    assert (~agreed).sum() <= allowed, (race, branches, temperature, top_k)
    assert (got.log_prob - log_prob_N)[agreed].abs().max() < 1e-5


def check_draws_are_batch_invariant(size: Size, device: torch.device) -> None:
    """Bitwise: a draw among others is that draw alone, and so are signals."""
    race = size.races[0]
    logits_MV, *rows = make_draw_inputs(race.vocab, 3, 2, device)
    null_NV, text_NV = logits_MV[rows[0]].unbind(1)
    together = draw(logits_MV, *rows, temperature=1.0, top_k=race.top_k)
    signals = measure_signals(null_NV, text_NV)
    for n in range(3):
        here = slice(n, n + 1)
        one = [values[here] for values in rows]
        drawn_alone = draw(logits_MV, *one, temperature=1.0, top_k=race.top_k)
        for alone, among_others in zip(drawn_alone, together, strict=True):
            assert torch.equal(alone, among_others[here])
        signals_alone = measure_signals(null_NV[here], text_NV[here])
        for alone, among_others in zip(signals_alone, signals, strict=True):
            assert torch.equal(alone, among_others[here])


def check_signals(size: Size, device: torch.device) -> None:
    """What ScalingAR's probe reads is torch's answer, masked ids and a single branch included."""
    for race in size.races:
        logits_MV, row_NK, *_ = make_draw_inputs(race.vocab, race.draws, 2, device)
        logits_MV[:, 3:5] = -torch.inf
        unlikely = torch.rand(9, device=device) >= 0.5
        logits_MV[:, -9:] = logits_MV[:, -9:].masked_fill(unlikely, -1e30)
        branches_NKV = logits_MV[row_NK]
        null_NV, text_NV = branches_NKV.unbind(1)

        check_signals_of(null_NV, text_NV)
        alone = check_signals_of(text_NV, text_NV)
        assert (alone.kl == 0).all()

        named = probes.confidence(branches_NKV.unsqueeze(2))
        kl_N = measure_signals(null_NV, text_NV).kl
        assert torch.equal(named["kl"], kl_N), "the probe does not take the kernel"


def check_signals_of(null_NV: Tensor, text_NV: Tensor) -> Signals:
    signals = measure_signals(null_NV, text_NV)
    entropy_N, margin_N, kl_N, known_N = probes.measure_confidence(null_NV, text_NV)
    assert torch.equal(signals.known, known_N)
    assert (signals.known == text_NV.shape[1] - 2).all()
    assert ((signals.entropy - entropy_N) / signals.known.log()).abs().max() < 1e-12
    assert (signals.margin - margin_N).abs().max() < 1e-12
    assert (signals.kl - kl_N).abs().max() < 1e-10
    return signals


# ------------------------------------------------------------------ products


def make_product(
    outer: int, inner: int, rows: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, a weight and a bias, of the sizes that layers have."""
    x_RK = torch.randn(rows, inner, device=device).to(dtype)
    weight_NK = (torch.randn(outer, inner, device=device) / math.sqrt(inner)).to(dtype)
    return x_RK, weight_NK, torch.randn(outer, device=device).to(dtype)


def check_products(size: Size, device: torch.device) -> None:
    """Equal to the product in float64 but for one rounding, with bias and without."""
    for outer, inner in size.products:
        for rows in size.rows:
            for dtype, close in CLOSE.items():
                x_RK, weight_NK, bias_N = make_product(outer, inner, rows, dtype, device)
                plain_RN = x_RK.double() @ weight_NK.double().T
                for bias, expected_RN in ((None, plain_RN), (bias_N, plain_RN + bias_N.double())):
                    got_RN = products.multiply(x_RK, weight_NK, bias)
                    assert got_RN.dtype == dtype
                    off_RN = (got_RN.double() - expected_RN).abs()
                    assert (off_RN <= close * (1 + expected_RN.abs())).all(), (outer, rows, dtype)


def check_products_treat_rows_alike(size: Size, device: torch.device) -> None:
    """Bitwise: a row at any index, whatever the others are, and for all numbers of rows of a class.

    So a row of a forward of few rows is that row alone.
    """
    for outer, inner in size.products[-1:]:
        for dtype in (torch.float32, torch.bfloat16):
            x_RK, weight_NK, bias_N = make_product(outer, inner, size.rows[-1], dtype, device)
            for rows in size.rows:
                assert find_row_dependence(products.multiply, rows, weight_NK, bias_N) == ""
            alone_1N = products.multiply(x_RK[:1], weight_NK, bias_N)
            for rows in (2, 5, products.FEW):
                among_RN = products.multiply(x_RK[:rows], weight_NK, bias_N)
                assert torch.equal(among_RN[:1], alone_1N)


def check_products_of_many_axes(_size: Size, device: torch.device) -> None:
    """Axes in front are rows; a row stride and a weight that is part of a larger one are served."""
    x_RK, weight_NK, bias_N = make_product(48, 64, 12, torch.float32, device)
    expected_RN = products.multiply(x_RK, weight_NK, bias_N)
    several = products.multiply(x_RK.view(2, 3, 2, 64), weight_NK, bias_N)
    assert torch.equal(several.view(12, 48), expected_RN)

    wide_RK = torch.cat((x_RK, x_RK + 1), 1)[:, :64]
    fused_NK = torch.cat((weight_NK, weight_NK + 1), 1)[:, :64]
    assert torch.equal(products.multiply(wide_RK, fused_NK, bias_N), expected_RN)
    assert products.multiply(x_RK[:0], weight_NK, bias_N).shape == (0, 48)


# ------------------------------------------------------------------ whether they are used


def check_uses(_size: Size, device: torch.device) -> None:
    """Where kernels work they are offered, except for what they cannot compute."""
    assert kernels.why_unused(device) == ""
    assert kernels.attention(device, torch.float32, 64) is attend
    assert kernels.attention(device, torch.bfloat16, 64) is attend
    assert kernels.even_product(device, torch.bfloat16, 96) is products.multiply
    assert kernels.confidence(device, torch.float32, 16384) is measure_signals
    for draws in (
        kernels.Use("draws", torch.float32, 16384),
        kernels.Use("draws", torch.float32, 16384, top_k=1000),
        kernels.Use("draws", torch.float32, 16384, greedy=True),
    ):
        assert kernels.guided_draw(device, draws) is draw

    refused = {
        kernels.Use("attention", torch.float64, 64): "heads of 64 numbers in torch.float64",
        kernels.Use("attention", torch.float32, 512): "heads of 512 numbers in torch.float32",
        kernels.Use("products", torch.float64, 96): "products in torch.float64",
        kernels.Use("signals", torch.float64, 512): "logits of 512 tokens in torch.float64",
        kernels.Use("draws", torch.float64, 512): "logits of 512 tokens in torch.float64",
        kernels.Use("draws", torch.float32, 2**17): "logits of 131072 tokens",
        kernels.Use("draws", torch.float32, 512, top_p=0.9): "top-p 0.9 needs a sort",
    }
    for use, reason in refused.items():
        assert kernels.why_unused(device, use).startswith(reason)
        assert reason in kernels.describe(device, [use])
    assert kernels.attention(device, torch.float64, 64) is None
    assert kernels.even_product(device, torch.float64, 96) is None
    assert kernels.confidence(device, torch.float64, 512) is None
    assert kernels.guided_draw(device, kernels.Use("draws", torch.float64, 512)) is None
    assert kernels.describe(device, []) == "Triton"

    with kernels.switched_off("for a comparison"):
        assert kernels.attention(device, torch.float32, 64) is None
        assert kernels.describe(device, []) == "for a comparison"
    assert kernels.attention(device, torch.float32, 64) is attend


LAWS: tuple[Callable[[Size, torch.device], None], ...] = (
    check_uses,
    check_attention,
    check_masks,
    check_attention_is_batch_invariant,
    check_trunk,
    check_draws,
    check_draws_are_batch_invariant,
    check_signals,
    check_products,
    check_products_treat_rows_alike,
    check_products_of_many_axes,
)

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for law in LAWS:
        law(SMALL, torch.device("cpu"))
        print(law.__name__, flush=True)
    sys.exit(0)
