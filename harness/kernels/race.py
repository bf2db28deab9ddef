"""One program per draw, in Triton: guidance, temperature, top-k, softmax, exponential race; or the
signals of branches.

It draws what `hooks.cfg`, `hooks.warp` and `hooks.exact` draw, with the noise of
`harness.kernels.noise`, bit for bit. Only the exponentials may differ in their last place from
torch's, so a token may differ where two come in at the same time to six digits. The k-th largest
logit is found without a sort, two bits of it at a time. A draw's result depends on nothing but its
own logits and noise.

Shapes: M rows of logits, N draws, K branches (the null branch first), V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_TOKENS = 32768


class Drawn(NamedTuple):
    """Tokens, int64 [N], and their log-probabilities under the laws they were drawn from, float64
    [N], in nats.
    """

    token: Tensor
    log_prob: Tensor


class Signals(NamedTuple):
    """What the logits say before a draw, float64 [N] each, of the text branch's distribution at
    temperature 1.

    `entropy` in nats; `margin`, by which the likeliest token leads; `kl`, the divergence from the
    null branch's distribution, in nats; `known` tokens are not masked with -inf.
    """

    entropy: Tensor
    margin: Tensor
    kl: Tensor
    known: Tensor


def draw(
    logits_MV: Tensor,
    row_NK: Tensor,
    scale_N: Tensor,
    key_N2: Tensor,
    place_N: Tensor,
    *,
    temperature: float,
    top_k: int,
) -> Drawn:
    """Draw from laws of one branch (K = 1) or two under guidance; `row_NK` says in which rows of
    the logits they are.

    `key_N2` and `place_N` are what `Noise` is made of. Logits are float32, dense in the last axis.
    Nothing waits for the device; temperature 0 takes the likeliest token.
    """
    count = len(row_NK)
    drawn = Drawn(
        *(
            torch.empty(count, dtype=kind, device=logits_MV.device)
            for kind in (torch.int64, torch.float64)
        )
    )
    shape = _launch(logits_MV, row_NK, temperature, top_k)
    _draw[(count,)](
        *_guided_probs(logits_MV, row_NK, scale_N, temperature, top_k),
        key_N2.contiguous(),
        place_N,
        *drawn,
        **shape,
    )
    return drawn


def signals(null_NV: Tensor, text_NV: Tensor) -> Signals:
    """What probes read of two branches, in one pass; sums are in float64. The same branch twice has
    no divergence.
    """
    out_4N = torch.empty((4, len(text_NV)), dtype=torch.float64, device=text_NV.device)
    rows = (
        null_NV,
        null_NV.stride(0),
        text_NV,
        text_NV.stride(0),
        text_NV.shape[1],
        out_4N,
        len(text_NV),
    )
    for logits_NV in (null_NV, text_NV):
        _expect_rows(logits_NV)
    _signals[(len(text_NV),)](*rows, **_padded(text_NV.shape[1]))
    return Signals(*out_4N)


def _guided_probs(
    logits_MV: Tensor, row_NK: Tensor, scale_N: Tensor, temperature: float, top_k: int
) -> tuple[object, ...]:
    return (
        *(logits_MV, row_NK.contiguous(), scale_N.float()),
        *(logits_MV.stride(0), logits_MV.shape[1], top_k, float(temperature or 1.0)),
    )


def _launch(logits_MV: Tensor, row_NK: Tensor, temperature: float, top_k: int) -> dict[str, object]:
    _expect_rows(logits_MV)
    if row_NK.shape[1] not in (1, 2):
        raise ValueError(f"{row_NK.shape[1]} branches: 1, or 2 under guidance")
    return {
        "BRANCHES": row_NK.shape[1],
        "GREEDY": temperature == 0,
        "TOP": 0 < top_k < logits_MV.shape[1] and temperature != 0,
        **_padded(logits_MV.shape[1]),
        "enable_fp_fusion": False,  # torch rounds the product before it adds, and so must this
    }


def _expect_rows(logits_MV: Tensor) -> None:
    if (
        logits_MV.dtype != torch.float32
        or logits_MV.stride(1) != 1
        or logits_MV.shape[1] > MOST_TOKENS
    ):
        raise ValueError(
            f"logits {tuple(logits_MV.shape)} of {logits_MV.dtype}: dense float32 of {MOST_TOKENS} fit"
        )


def _padded(vocab: int) -> dict[str, object]:
    padded = triton.next_power_of_2(vocab)
    return {"V": padded, "num_warps": min(16, max(4, padded // 512))}


@triton.jit
def _draw(
    logits_ptr,
    row_ptr,
    scale_ptr,
    stride,
    vocab,
    top_k,
    temperature,
    key_ptr,
    place_ptr,
    token_ptr,
    log_prob_ptr,
    BRANCHES: tl.constexpr,
    GREEDY: tl.constexpr,
    TOP: tl.constexpr,
    V: tl.constexpr,
):
    n = tl.program_id(0)
    v = tl.arange(0, V)
    guided = _guided(logits_ptr, row_ptr, scale_ptr, stride, vocab, BRANCHES, V)
    if GREEDY:
        token = tl.argmax(guided, 0)
        log_prob = tl.full((), 0.0, tl.float64)
    else:
        weight, total = _weights(guided, vocab, top_k, temperature, TOP, V)
        time = weight.to(tl.float64) / -tl.log(_uniform(key_ptr, place_ptr, v))
        token = tl.argmax(time, 0)
        won = tl.sum(tl.where(v == token, weight, 0.0), 0)
        log_prob = tl.log(tl.div_rn(won, total).to(tl.float64))
    tl.store(
        token_ptr + n, tl.minimum(token, vocab - 1).to(tl.int64)
    )  # logits that are no numbers stay in bounds
    tl.store(log_prob_ptr + n, log_prob)


@triton.jit
def _signals(null_ptr, null_stride, text_ptr, text_stride, vocab, out_ptr, count, V: tl.constexpr):
    n = tl.program_id(0)
    v = tl.arange(0, V)
    inside = v < vocab
    least = float("-inf")
    null = tl.load(null_ptr + n * null_stride + v, mask=inside, other=least).to(tl.float64)
    text = tl.load(text_ptr + n * text_stride + v, mask=inside, other=least).to(tl.float64)
    known = text > least
    log_text = text - _log_sum(text)
    log_null = null - _log_sum(null)
    chance = tl.exp(log_text)
    first = tl.argmax(chance, 0)
    tl.store(out_ptr + n, -tl.sum(tl.where(chance > 0, chance * log_text, 0.0), 0))
    tl.store(out_ptr + count + n, tl.max(chance, 0) - tl.max(tl.where(v == first, 0.0, chance), 0))
    tl.store(
        out_ptr + 2 * count + n, tl.sum(tl.where(known, chance * (log_text - log_null), 0.0), 0)
    )
    tl.store(out_ptr + 3 * count + n, tl.sum(known.to(tl.int32), 0).to(tl.float64))


@triton.jit
def _load(logits_ptr, row_ptr, stride, vocab, BRANCHES: tl.constexpr, V: tl.constexpr):
    v = tl.arange(0, V)
    row = tl.load(row_ptr + tl.program_id(0) * BRANCHES)
    return tl.load(logits_ptr + row * stride + v, mask=v < vocab, other=float("-inf"))


@triton.jit
def _guided(logits_ptr, row_ptr, scale_ptr, stride, vocab, BRANCHES: tl.constexpr, V: tl.constexpr):
    """`hooks.cfg`, or the only branch as it is; -inf behind the vocabulary."""
    guided = _load(logits_ptr, row_ptr, stride, vocab, BRANCHES, V)
    if BRANCHES == 2:
        text = _load(logits_ptr, row_ptr + 1, stride, vocab, BRANCHES, V)
        scale = tl.load(scale_ptr + tl.program_id(0))
        guided = tl.where(tl.arange(0, V) < vocab, guided + scale * (text - guided), float("-inf"))
    return guided


@triton.jit
def _weights(logits, vocab, top_k, temperature, TOP: tl.constexpr, V: tl.constexpr):
    """`hooks.warp`: the law up to a factor, and that factor."""
    logits = tl.div_rn(logits, temperature)
    if TOP:
        logits = tl.where(logits < _kth_largest(logits, top_k, V), float("-inf"), logits)
    weight = tl.exp(logits - tl.max(logits, 0))
    return weight, tl.sum(weight, 0)


@triton.jit
def _kth_largest(x, k, V: tl.constexpr):
    """The k-th largest number, by the order of its bits as an integer.

    It is the largest key that at least k keys reach. Two bits at a time: how many reach each of the
    three candidates is counted in one sum of 20 bits apiece.
    """
    bits = x.to(tl.uint32, bitcast=True)
    key = tl.where(bits >> 31 != 0, ~bits, bits | 0x80000000).to(tl.int64)
    found = tl.full((), 0, tl.int64)
    shift = 30
    for _ in range(16):
        one = found + (tl.full((), 1, tl.int64) << shift)
        two = found + (tl.full((), 2, tl.int64) << shift)
        three = found + (tl.full((), 3, tl.int64) << shift)
        reach = (key >= one).to(tl.int64)
        reach += (key >= two).to(tl.int64) << 20
        reach += (key >= three).to(tl.int64) << 40
        reach = tl.sum(reach, 0)
        digit = ((reach & 0xFFFFF) >= k).to(tl.int64) + (((reach >> 20) & 0xFFFFF) >= k).to(
            tl.int64
        )
        found += (digit + ((reach >> 40) >= k).to(tl.int64)) << shift
        shift -= 2
    found = found.to(tl.uint32)
    return tl.where(found >> 31 != 0, found ^ 0x80000000, ~found).to(tl.float32, bitcast=True)


@triton.jit
def _log_sum(x):
    top = tl.max(x, 0)
    return top + tl.log(tl.sum(tl.exp(x - top), 0))


@triton.jit
def _mix(x):
    """`noise._mix`, in 32-bit words."""
    x = x ^ (x >> 16)
    x = x * tl.full((), 0x7FEB352D, tl.uint32)
    x = x ^ (x >> 15)
    x = x * tl.full((), 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _uniform(key_ptr, place_ptr, v):
    """`noise.Noise.uniform` in the lane DRAW, which is 0: its product with the lane's constant is
    left out.
    """
    n = tl.program_id(0)
    spot = _mix(_mix(tl.load(place_ptr + n).to(tl.uint32)))
    first = _mix(tl.load(key_ptr + 2 * n).to(tl.uint32) ^ spot)
    second = _mix(
        tl.load(key_ptr + 2 * n + 1).to(tl.uint32) ^ _mix(spot ^ tl.full((), 0x85EBCA6B, tl.uint32))
    )
    index = v.to(tl.uint32)
    high = _mix(_mix(index ^ first) ^ second).to(tl.int64)
    low = _mix(_mix(index ^ second) ^ _mix(first ^ tl.full((), 0xC2B2AE35, tl.uint32))).to(tl.int64)
    return (((high << 20) | (low >> 12)).to(tl.float64) + 0.5) * 2.220446049250313e-16
