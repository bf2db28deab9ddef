"""One program per draw, in Triton: guidance, temperature, top-k, softmax and an exponential race.

A second kernel computes the signals that probes read of branches.

It draws what `guidance.cfg`, `guidance.warp` and `acceptance.exact` draw, with the noise of
`kernels.noise`, bit for bit. Only the exponentials may differ in their last place from torch's, so
a token may differ where two come in at the same time to six digits. The k-th largest logit is found
without a sort, two bits of it at a time. A draw's result depends on nothing but its own logits and
noise.

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
    """Tokens, int64 [N], and their log-probabilities, float64 [N], in nats.

    A log-probability is that under the distribution which the token was drawn from.
    """

    token: Tensor
    log_prob: Tensor


class Signals(NamedTuple):
    """Signals of the text branch before a draw, at temperature 1; float64 [N] each.

    `entropy` in nats; `margin`, the probability by which the likeliest token leads the second;
    `kl`, the divergence from the null branch's distribution, in nats; `known`, the number of tokens
    that are not masked with -inf.
    """

    entropy: Tensor
    margin: Tensor
    kl: Tensor
    known: Tensor


def why_not(dtype: torch.dtype, vocab: int, top_p: float = 1.0) -> str:
    """Say why rows of logits cannot be drawn from or measured; an empty string if they can."""
    if dtype != torch.float32 or vocab > MOST_TOKENS:
        return f"logits of {vocab} tokens in {dtype}: {MOST_TOKENS} fit, in float32"
    if top_p < 1:
        return f"top-p {top_p} needs a sort, which the kernel does not do"
    return ""


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
    """Draw N tokens, each from the logits of one branch (K = 1) or of two under guidance.

    `row_NK` names the rows of the logits that a draw's branches are in. `key_N2` and `place_N` are
    what `Noise` is made of. Temperature 0 takes the likeliest token. Does not wait for the device.
    Raises ValueError for logits that are not float32, dense in the last axis, of at most
    MOST_TOKENS, and for other numbers of branches.
    """
    _expect_rows(logits_MV)
    branches = row_NK.shape[1]
    if branches not in (1, 2):
        raise ValueError(f"{branches} branches: 1, or 2 under guidance")

    count = len(row_NK)
    vocab = logits_MV.shape[1]
    greedy = temperature == 0
    drawn = Drawn(
        token=torch.empty(count, dtype=torch.int64, device=logits_MV.device),
        log_prob=torch.empty(count, dtype=torch.float64, device=logits_MV.device),
    )
    draw_kernel[(count,)](
        logits_ptr=logits_MV,
        row_ptr=row_NK.contiguous(),
        scale_ptr=scale_N.float(),
        stride=logits_MV.stride(0),
        vocab=vocab,
        top_k=top_k,
        temperature=float(temperature or 1.0),
        key_ptr=key_N2.contiguous(),
        place_ptr=place_N,
        token_ptr=drawn.token,
        log_prob_ptr=drawn.log_prob,
        BRANCHES=branches,
        GREEDY=greedy,
        TOP=0 < top_k < vocab and not greedy,
        **launch_options(vocab),
        enable_fp_fusion=False,  # torch rounds the product before it adds, and so must this
    )
    return drawn


def measure_signals(null_NV: Tensor, text_NV: Tensor) -> Signals:
    """Compute what probes read of two branches, in one pass; sums are in float64.

    The same branch twice has no divergence. Raises ValueError for logits as `draw` does.
    """
    _expect_rows(null_NV)
    _expect_rows(text_NV)
    count, vocab = text_NV.shape
    out_4N = torch.empty((4, count), dtype=torch.float64, device=text_NV.device)
    measure_signals_kernel[(count,)](
        null_ptr=null_NV,
        null_stride=null_NV.stride(0),
        text_ptr=text_NV,
        text_stride=text_NV.stride(0),
        vocab=vocab,
        out_ptr=out_4N,
        count=count,
        **launch_options(vocab),
        enable_fp_fusion=True,
    )
    return Signals(*out_4N)


def _expect_rows(logits_MV: Tensor) -> None:
    if reason := why_not(logits_MV.dtype, logits_MV.shape[1]):
        raise ValueError(reason)
    if logits_MV.stride(1) != 1:
        raise ValueError(f"logits {tuple(logits_MV.shape)}: the rows must be dense")


def launch_options(vocab: int) -> dict[str, int]:
    """Return the padded vocabulary V, and how many warps share it."""
    padded = triton.next_power_of_2(vocab)
    most = 16 if padded <= 16384 else 32  # fewer would spill
    return {"V": padded, "num_warps": min(most, max(4, padded // 512))}


# ------------------------------------------------------------------ kernels


@triton.jit
def draw_kernel(
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
    """Draw one token: guide, warp, and let the tokens race."""
    n = tl.program_id(0)
    v = tl.arange(0, V)

    # 1. Combine the branches.
    guided = _load_guided(logits_ptr, row_ptr, scale_ptr, stride, vocab, BRANCHES, V)

    # 2. Draw.
    if GREEDY:
        token = tl.argmax(guided, 0)
        is_bad = (guided != guided) | (guided == float("inf"))
        count = tl.sum(is_bad.to(tl.int32), 0)
        log_prob = tl.where(count > 0, float("nan"), 0.0).to(tl.float64)
    else:
        weight, total = _warp(guided, top_k, temperature, TOP, V)
        uniform = _uniform(key_ptr, place_ptr, v)
        speed = weight.to(tl.float64) / -tl.log(uniform)
        token = tl.argmax(speed, 0)
        token_weight = tl.sum(tl.where(v == token, weight, 0.0), 0)
        log_prob = tl.log(tl.div_rn(token_weight, total).to(tl.float64))

    # 3. Store; logits that are no numbers stay in bounds.
    tl.store(token_ptr + n, tl.minimum(token, vocab - 1).to(tl.int64))
    tl.store(log_prob_ptr + n, log_prob)


@triton.jit
def measure_signals_kernel(
    null_ptr, null_stride, text_ptr, text_stride, vocab, out_ptr, count, V: tl.constexpr
):
    """Measure one row: entropy, margin, divergence, number of tokens that are not masked."""
    n = tl.program_id(0)
    v = tl.arange(0, V)

    # 1. Load both branches, -inf behind the vocabulary.
    inside = v < vocab
    least = float("-inf")
    null = tl.load(null_ptr + n * null_stride + v, mask=inside, other=least).to(tl.float64)
    text = tl.load(text_ptr + n * text_stride + v, mask=inside, other=least).to(tl.float64)
    known = text > least

    # 2. Normalise.
    log_text = text - _log_sum(text)
    log_null = null - _log_sum(null)
    prob = tl.exp(log_text)

    # 3. Measure.
    first = tl.argmax(prob, 0)
    entropy = -tl.sum(tl.where(prob > 0, prob * log_text, 0.0), 0)
    first_prob = tl.max(prob, 0)
    second_prob = tl.max(tl.where(v == first, 0.0, prob), 0)
    margin = first_prob - second_prob
    kl = tl.sum(tl.where(known, prob * (log_text - log_null), 0.0), 0)
    known_count = tl.sum(known.to(tl.int32), 0).to(tl.float64)

    # 4. Store.
    tl.store(out_ptr + n, entropy)
    tl.store(out_ptr + count + n, margin)
    tl.store(out_ptr + 2 * count + n, kl)
    tl.store(out_ptr + 3 * count + n, known_count)


@triton.jit
def _load_guided(
    logits_ptr, row_ptr, scale_ptr, stride, vocab, BRANCHES: tl.constexpr, V: tl.constexpr
):
    """`guidance.cfg`, or the only branch as it is; -inf behind the vocabulary."""
    guided = _load_row(logits_ptr, row_ptr, stride, vocab, BRANCHES, V)
    if BRANCHES == 2:
        text = _load_row(logits_ptr, row_ptr + 1, stride, vocab, BRANCHES, V)
        scale = tl.load(scale_ptr + tl.program_id(0))
        inside = tl.arange(0, V) < vocab
        guided = tl.where(inside, guided + scale * (text - guided), float("-inf"))
    return guided


@triton.jit
def _load_row(logits_ptr, row_ptr, stride, vocab, BRANCHES: tl.constexpr, V: tl.constexpr):
    v = tl.arange(0, V)
    row = tl.load(row_ptr + tl.program_id(0) * BRANCHES)
    return tl.load(logits_ptr + row * stride + v, mask=v < vocab, other=float("-inf"))


@triton.jit
def _warp(logits, top_k, temperature, TOP: tl.constexpr, V: tl.constexpr):
    """`guidance.warp`: weights and their sum, which makes probabilities of them."""
    logits = tl.div_rn(logits, temperature)
    if TOP:
        logits = tl.where(logits < _kth_largest(logits, top_k, V), float("-inf"), logits)
    weight = tl.exp(logits - tl.max(logits, 0))
    return weight, tl.sum(weight, 0)


@triton.jit
def _kth_largest(x, k, V: tl.constexpr):
    """Find the k-th largest number, by the order of its bits as an integer.

    It is the largest key that at least k keys reach. Two bits at a time: how many reach each of the
    three candidates is counted in one sum of 20 bits apiece.
    """
    # 1. Map floats to integers of the same order.
    bits = x.to(tl.uint32, bitcast=True)
    key = tl.where(bits >> 31 != 0, ~bits, bits | 0x80000000).to(tl.int64)

    # 2. Settle two bits at a time, from the highest.
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

        digit = ((reach & 0xFFFFF) >= k).to(tl.int64)
        digit += (((reach >> 20) & 0xFFFFF) >= k).to(tl.int64)
        digit += ((reach >> 40) >= k).to(tl.int64)
        found += digit << shift
        shift -= 2

    # 3. Map the integer back.
    found = found.to(tl.uint32)
    return tl.where(found >> 31 != 0, found ^ 0x80000000, ~found).to(tl.float32, bitcast=True)


@triton.jit
def _log_sum(x):
    """The logarithm of the sum of exponentials."""
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
    """`noise.Noise.uniform` in the lane DRAW.

    The lane is 0, so its product with the lane's constant is left out.
    """
    # 1. The two words of the position.
    n = tl.program_id(0)
    spot = _mix(_mix(tl.load(place_ptr + n).to(tl.uint32)))
    other_spot = _mix(spot ^ tl.full((), 0x85EBCA6B, tl.uint32))
    first_key = tl.load(key_ptr + 2 * n).to(tl.uint32)
    second_key = tl.load(key_ptr + 2 * n + 1).to(tl.uint32)
    first = _mix(first_key ^ spot)
    second = _mix(second_key ^ other_spot)

    # 2. 52 bits per token.
    index = v.to(tl.uint32)
    other_first = _mix(first ^ tl.full((), 0xC2B2AE35, tl.uint32))
    high = _mix(_mix(index ^ first) ^ second).to(tl.int64)
    low = _mix(_mix(index ^ second) ^ other_first).to(tl.int64)
    return (((high << 20) | (low >> 12)).to(tl.float64) + 0.5) * 2.220446049250313e-16
