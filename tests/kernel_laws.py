"""What the kernels must do, as functions of a device: run by `test_kernels.py`, on the CPU in a
process of their own.

Triton's interpreter must be chosen before Triton is imported: `TRITON_INTERPRET=1 python
tests/kernel_laws.py`. On a GPU the same laws are tested at the sizes of real models.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness import kernels
from harness.engine import probes
from harness.engine.acceptance import Drafts, exact
from harness.engine.guidance import Sampling, cfg, unguided, warp
from harness.kernels.flash import attend
from harness.kernels.noise import Noise
from harness.kernels.race import draw, signals
from harness.models.kv_cache import GapMask, KVCache, TreeMask
from harness.models.trunk import TrunkSpec

CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Size:
    """How large the tests' inputs are."""

    shapes: tuple[
        tuple[int, int, int, int, int], ...
    ]  # slots, heads, queries, head width, cache length
    vocab: tuple[tuple[int, int, int], ...]  # tokens, kept by top-k, draws


SMALL = Size(
    shapes=((3, 1, 1, 32, 300), (2, 1, 5, 48, 70), (2, 1, 18, 80, 270)),
    vocab=((512, 100, 12), (300, 50, 4), (16384, 1000, 4)),
)
REAL = Size(
    shapes=(
        (128, 20, 1, 64, 1026),
        (16, 20, 61, 64, 1090),
        (32, 16, 1, 128, 608),
        (8, 12, 5, 48, 258),
    ),
    vocab=((512, 100, 4096), (16384, 1000, 4096), (16384, 2000, 4096)),
)


def attended(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Random arguments of attention: rows of very different lengths, some padding, biased prefixes,
    strided caches.
    """
    slots, heads, width, dim, length = shape
    q_SHWd = torch.randn(slots, heads, width, 2 * dim)[..., :dim]
    keys_SHLd, values_SHLd = (torch.randn(slots, heads, length + 1, dim) for _ in range(2))
    pos_SW = torch.randint(1, length - width + 1, (slots, 1)) + torch.arange(width)
    pos_SW[0] = torch.arange(width)
    pos_SW[-1, -1] = length
    bias_SL = torch.zeros(slots, length + 1)
    bias_SL[:, 0] = math.log(20)
    bias_SL[1, 1] = -math.inf
    named = {
        "q_SHWd": q_SHWd,
        "keys_SHLd": keys_SHLd,
        "values_SHLd": values_SHLd,
        "bias_SL": bias_SL,
    }
    made = {name: values.to(device, dtype) for name, values in named.items()}
    for name in ("keys_SHLd", "values_SHLd"):
        made[name] = made[name][:, :, :length]
    return {**made, "bias_SL": made["bias_SL"][:, :length], "pos_SW": pos_SW.to(device)}


def plainly(
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
    seen = column_L <= pos_SW1
    if seen_SWL is not None:
        seen = seen & seen_SWL
    score_SHWL = q_SHWd.double() @ keys_SHLd.double().transpose(2, 3) / math.sqrt(q_SHWd.shape[-1])
    if bias_SL is not None:
        bias_SWL = bias_SL.double().unsqueeze(1).expand(seen.shape)
        score_SHWL = score_SHWL + bias_SWL.masked_fill(column_L == pos_SW1, 0.0).unsqueeze(1)
    return score_SHWL.masked_fill(~seen.unsqueeze(1), -torch.inf).softmax(-1) @ values_SHLd.double()


def check_attention(size: Size, device: torch.device) -> None:
    """Equal to plain attention, with bias or without, in every type; padding gives zeros."""
    for shape in size.shapes:
        for dtype, close in CLOSE.items():
            given = attended(shape, dtype, device)
            prefix_SL = given.pop("bias_SL")
            for bias_SL in (prefix_SL, None) if dtype == torch.float32 else (prefix_SL,):
                got = attend(**given, bias_SL=bias_SL)
                expected = plainly(**given, bias_SL=bias_SL)
                real = (given["pos_SW"] < shape[4])[:, None, :, None].expand_as(got)
                assert got.dtype == dtype
                assert (got.double() - expected)[real].abs().max() < close, (shape, dtype)
                assert (got[~real] == 0).all()


def check_masks(size: Size, device: torch.device) -> None:
    """Draft trees and gaps: what a mask of the trunk hides is not seen."""
    slots, heads, width, dim, length = size.shapes[1]
    given = attended((slots, heads, width, dim, length), torch.float32, device)
    column_L = torch.arange(length, device=device)
    pos_SW1 = given["pos_SW"].unsqueeze(-1)
    base_S = given["pos_SW"][:, 0] + 1
    tree = TreeMask(base_S, torch.rand(slots, width, width, device=device) < 0.5)
    gap = GapMask(torch.rand(slots, length, device=device) < 0.5)
    for mask in (tree, gap):
        seen_SWL = mask(column_L, pos_SW1) | (column_L == pos_SW1)
        got = attend(**given, seen_SWL=seen_SWL)
        expected = plainly(**given, seen_SWL=seen_SWL)
        real = (given["pos_SW"] < length)[:, None, :, None].expand_as(got)
        assert (got.double() - expected)[real].abs().max() < CLOSE[torch.float32]


def check_attention_company(size: Size, device: torch.device) -> None:
    """Bitwise: a row among others is that row alone, and so is a query; what lies behind its
    position is nothing.
    """
    for shape in size.shapes[:2]:
        for dtype in (torch.float32, torch.bfloat16):
            given = attended(shape, dtype, device)
            together = attend(**given)
            for s in (0, shape[0] - 1):
                alone = {name: values[s : s + 1] for name, values in given.items()}
                assert torch.equal(attend(**alone)[0], together[s])
                first = {
                    **alone,
                    "q_SHWd": alone["q_SHWd"][:, :, :1],
                    "pos_SW": alone["pos_SW"][:, :1],
                }
                assert torch.equal(attend(**first)[0, :, 0], together[s, :, 0])
            behind = torch.arange(shape[4], device=device) > given["pos_SW"].masked_fill(
                given["pos_SW"] >= shape[4], -1
            ).amax(1, keepdim=True)
            hidden = {**given}
            for name in ("keys_SHLd", "values_SHLd"):
                hidden[name] = given[name].masked_fill(behind[:, None, :, None], torch.nan)
            assert torch.equal(attend(**hidden), together), "what no query sees was read"


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
    q, k, v = (torch.randn(slots, heads, width, dim, device=device) for _ in range(3))
    expected = cache.attend_all(pos_SW)(0, q, k, v)
    keys, values = (stored[0, :slots, :, :length] for stored in (cache.keys, cache.values))
    got = attend(q, keys, values, pos_SW, cache.bias_SL[:slots, :length])
    assert (got - expected).abs().max() < CLOSE[torch.float32]


def drawn(vocab: int, count: int, branches: int, device: torch.device) -> tuple[Tensor, ...]:
    """Random arguments of draws: logits of a table's rows, scales, keys and places."""
    logits_MV = 3 * torch.randn(2 * count + 1, vocab, device=device)
    logits_MV[:, 7 : vocab // 3] = logits_MV[
        :, 7 : vocab // 3
    ].round()  # many that are equal, zeros of both signs too
    row_NK = torch.randperm(2 * count, device=device)[: branches * count].view(count, branches)
    scale_N = 1 + 6 * torch.rand(count, device=device, dtype=torch.float64)
    key_N2 = torch.randint(0, 2**32, (count, 2), device=device)
    return logits_MV, row_NK, scale_N, key_N2, torch.randint(0, 4096, (count,), device=device)


def check_draws(size: Size, device: torch.device) -> None:
    """Token for token what `probes.cfg`, `warp` and `exact` draw, with the same
    log-probabilities.
    """
    for vocab, top_k, count in size.vocab:
        for branches in (1, 2):
            others = ((0.7, top_k), (1.0, 0), (0.0, top_k)) if branches == 2 else ()
            for temperature, kept in ((1.0, top_k), *others):
                few = 2 if (temperature, kept) in others else count
                logits_MV, row_NK, scale_N, key_N2, place_N = drawn(vocab, few, branches, device)
                got = draw(
                    logits_MV, row_NK, scale_N, key_N2, place_N, temperature=temperature, top_k=kept
                )
                probs_NTV = _probs(logits_MV[row_NK], scale_N, temperature, kept)
                noise = Noise(key_N2, place_N.unsqueeze(1))
                _, token_N = exact(probs_NTV, Drafts.stack([None] * few, probs_NTV), noise)
                log_prob_N = probs_NTV[:, 0].gather(1, token_N.unsqueeze(1))[:, 0].double().log()
                agreed = got.token == token_N
                allowed = 0 if few < 1000 else 1  # one in thousands may be a tie to six digits
                assert (~agreed).sum() <= allowed, (vocab, branches, temperature, kept)
                assert (got.log_prob - log_prob_N)[agreed].abs().max() < 1e-5


def _probs(logits_NKV: Tensor, scale_N: Tensor, temperature: float, top_k: int) -> Tensor:
    guide = cfg if logits_NKV.shape[1] == 2 else unguided
    return warp(
        guide(logits_NKV.unsqueeze(2), scale_N), Sampling(temperature=temperature, top_k=top_k)
    )


def check_draw_company(size: Size, device: torch.device) -> None:
    """Bitwise: a draw among others is that draw alone."""
    vocab, top_k, _ = size.vocab[0]
    logits_MV, *rows = drawn(vocab, 3, 2, device)
    warped = {"temperature": 1.0, "top_k": top_k}
    together = draw(logits_MV, *rows, **warped)
    branches = logits_MV[rows[0]]
    told = signals(branches[:, 0], branches[:, 1])
    for n in range(3):
        one = [values[n : n + 1] for values in rows]
        assert all(
            map(
                torch.equal,
                draw(logits_MV, *one, **warped),
                (values[n : n + 1] for values in together),
            )
        )
        alone = signals(branches[n : n + 1, 0], branches[n : n + 1, 1])
        assert all(map(torch.equal, alone, (values[n : n + 1] for values in told)))


def check_signals(size: Size, device: torch.device) -> None:
    """What ScalingAR's probe reads: torch's answer, masked ids and a single branch included."""
    for vocab, _, count in size.vocab:
        logits_MV, row_NK, *_ = drawn(vocab, count, 2, device)
        logits_MV[:, 3:5] = -torch.inf
        logits_MV[:, -9:] = torch.where(
            torch.rand(9, device=device) < 0.5, logits_MV[:, -9:], -1e30
        )
        branches = logits_MV[row_NK]
        for null_NV, text_NV in (
            (branches[:, 0], branches[:, 1]),
            (branches[:, 1], branches[:, 1]),
        ):
            told = signals(null_NV, text_NV)
            expected = probes._confidence(null_NV, text_NV)
            assert torch.equal(told.known, expected[3])
            assert (told.known == vocab - 2).all()
            assert ((told.entropy - expected[0]) / told.known.log()).abs().max() < 1e-12
            assert (told.margin - expected[1]).abs().max() < 1e-12
            assert (told.kl - expected[2]).abs().max() < 1e-10
        assert (told.kl == 0).all()
        named = probes.confidence(branches.unsqueeze(2))
        assert torch.equal(named["kl"], signals(branches[:, 0], branches[:, 1]).kl), (
            "the hook takes the kernel"
        )


def check_facade(_size: Size, device: torch.device) -> None:
    """Where kernels work they are offered, and laws that they do not make are refused."""
    assert kernels.missing(device) == ""
    assert kernels.attention(device) is kernels.attention(device, torch.bfloat16) is attend
    assert kernels.attention(device, torch.float64) is None
    assert kernels.guided_draw(device, 16384) is draw
    assert kernels.confidence(device, 16384) is signals
    assert kernels.guided_draw(device, 16384, top_p=0.9) is None
    assert kernels.guided_draw(device, 2**17) is None


LAWS: tuple[Callable[[Size, torch.device], None], ...] = (
    *(check_facade, check_attention, check_masks, check_attention_company, check_trunk),
    *(check_draws, check_draw_company, check_signals),
)

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for probs in LAWS:
        probs(SMALL, torch.device("cpu"))
        print(probs.__name__, flush=True)
    sys.exit(0)
