"""Step 2: the kernels against torch, at the shapes of real models.

On the CPU the same parts run under Triton's interpreter (TRITON_INTERPRET=1) at small shapes.

Shapes: S slots, H heads, W queries per slot, L cache length, d head width, M rows of logits,
N draws, K branches, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from harness.check.gpu.finding import Finding, NotRunError, Part, Setting
from harness.engine.acceptance import Drafts, exact
from harness.engine.guidance import Sampling, cfg, unguided, warp
from harness.engine.probes import measure_confidence
from harness.kernels import why_unused
from harness.kernels.noise import Noise
from harness.models.kv_cache import GapMask, Mask, TreeMask

CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Largest error of an attended value, by type: values are about 1."""
TIES = 1 / 2000
"""Share of draws that may differ from torch's: two tokens may come in at once to six digits."""


class Shape(NamedTuple):
    """The shape of one call of attention."""

    slots: int
    heads: int
    width: int
    dim: int
    length: int

    def __str__(self) -> str:
        return f"{self.slots}x{self.heads} heads of {self.dim}, W {self.width}, L {self.length}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the inputs are: shapes of attention by head width, and draws."""

    attention: dict[int, tuple[Shape, ...]]
    masked: Shape
    vocab: int
    top_ks: tuple[int, ...]
    draws: int


FULL = Sizes(
    attention={
        64: (Shape(128, 20, 1, 64, 1026), Shape(16, 20, 5, 64, 1026), Shape(16, 20, 61, 64, 1086)),
        128: (Shape(32, 16, 1, 128, 768), Shape(16, 32, 5, 128, 768), Shape(8, 32, 61, 128, 828)),
    },
    masked=Shape(16, 20, 61, 64, 1086),
    vocab=16384,
    top_ks=(0, 1000, 2000),
    draws=4096,
)
TINY = Sizes(
    attention={32: (Shape(3, 1, 1, 32, 300), Shape(2, 1, 18, 32, 270))},
    masked=Shape(2, 1, 18, 32, 270),
    vocab=300,
    top_ks=(0, 50),
    draws=4,
)


def list_parts(setting: Setting) -> Sequence[Part]:
    """List the parts of the step."""
    sizes = FULL if setting.is_full else TINY
    parts = [
        Part(f"attention, head width {dim}", _on(compare_attention, shapes=shapes), 60)
        for dim, shapes in sizes.attention.items()
    ]
    parts.append(Part("attention, masked", _on(compare_masks, shape=sizes.masked), 60))
    shapes = tuple(shape for shapes in sizes.attention.values() for shape in shapes)
    parts.append(Part("attention, rows alone", _on(compare_rows_alone, shapes=shapes), 60))
    for top_k in sizes.top_ks:
        draws = _on(compare_draws, vocab=sizes.vocab, top_k=top_k, count=sizes.draws)
        parts.append(Part(f"draws, top-k {top_k}", draws, 60))
    some = {"vocab": sizes.vocab, "count": sizes.draws}
    parts.append(Part("signals", _on(compare_signals, **some), 60))
    parts.append(Part("draws and signals, rows alone", _on(compare_draws_alone, **some), 60))
    parts.append(Part("rows of NaN and infinity", _on(compare_beside_bad_rows, **some), 60))
    parts.append(Part("captured", _on(compare_captured, shape=shapes[0], **some), 60))
    return parts


def _on(compare: Callable[..., Finding], **sizes: object) -> Callable[[Setting], Finding]:
    """Return a part that compares on the device of a setting, where that uses kernels."""
    return partial(_compare_on, compare, sizes)


def _compare_on(
    compare: Callable[..., Finding], sizes: dict[str, object], setting: Setting
) -> Finding:
    device = setting.torch_device
    if reason := why_unused(device):
        raise NotRunError(f"kernels are not used: {reason}")
    torch.manual_seed(0)
    return compare(device, **sizes)


# ------------------------------------------------------------------ attention


def make_attention_inputs(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Make random arguments of `attend`.

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
    """Compute the same attention in float64, without any trick."""
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


def compare_attention(device: torch.device, shapes: Sequence[Shape]) -> Finding:
    """Compare attention in every type; padding must give zeros."""
    from harness.kernels.flash import attend

    errors: dict[str, float] = {}
    failures = []
    for shape in shapes:
        for dtype, close in CLOSE.items():
            given = make_attention_inputs(shape, dtype, device)
            got = attend(**given)
            error = _largest_error(got, attend_plainly(**given), given["pos_SW"], shape.length)
            name = str(dtype).removeprefix("torch.")
            errors[name] = max(errors.get(name, 0.0), error)
            if not error < close:
                failures.append(f"{shape}, {name}: {error:.2g} away, {close:g} is allowed")
    headline = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return Finding(f"largest errors {headline}", {"largest_errors": errors}, failures)


def compare_masks(device: torch.device, shape: Shape) -> Finding:
    """Compare attention under the masks of draft trees and of gaps."""
    from harness.kernels.flash import attend

    slots, _, width, _, length = shape
    given = make_attention_inputs(shape, torch.float32, device)
    column_L = torch.arange(length, device=device)
    pos_SW1 = given["pos_SW"].unsqueeze(-1)
    base_S = given["pos_SW"][:, 0] + 1
    masks: dict[str, Mask] = {
        "tree": TreeMask(base_S, torch.rand(slots, width, width, device=device) < 0.5),
        "gaps": GapMask(torch.rand(slots, length, device=device) < 0.5),
    }
    errors: dict[str, float] = {}
    failures = []
    for name, mask in masks.items():
        seen_SWL = mask(column_L, pos_SW1) | (column_L == pos_SW1)
        got = attend(**given, seen_SWL=seen_SWL)
        expected = attend_plainly(**given, seen_SWL=seen_SWL)
        errors[name] = _largest_error(got, expected, given["pos_SW"], length)
        if not errors[name] < CLOSE[torch.float32]:
            failures.append(f"{name}: {errors[name]:.2g} away")
    headline = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return Finding(f"largest errors {headline}", {"largest_errors": errors}, failures)


def compare_rows_alone(device: torch.device, shapes: Sequence[Shape]) -> Finding:
    """Compare, in every bit, a row among others with that row alone, and a query likewise.

    What lies behind a row's last query is NaN in a second call, and must not be read.
    """
    from harness.kernels.flash import attend

    failures = []
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            given = make_attention_inputs(shape, dtype, device)
            together = attend(**given)
            for s in (0, shape.slots - 1):
                alone = {name: values[s : s + 1] for name, values in given.items()}
                first = dict(alone)
                first["q_SHWd"] = alone["q_SHWd"][:, :, :1]
                first["pos_SW"] = alone["pos_SW"][:, :1]
                if not torch.equal(attend(**alone)[0], together[s]):
                    failures.append(f"{shape}, {dtype}: slot {s} alone differs")
                if not torch.equal(attend(**first)[0, :, 0], together[s, :, 0]):
                    failures.append(f"{shape}, {dtype}: the first query of slot {s} alone differs")
            if not torch.equal(attend(**_hide_unseen(given, shape.length)), together):
                failures.append(f"{shape}, {dtype}: what no query sees was read")
    return Finding(f"{len(shapes)} shapes, equal in every bit", {}, failures)


def _largest_error(got: Tensor, expected: Tensor, pos_SW: Tensor, length: int) -> float:
    """Return the largest error of queries that are no padding; infinity if padding is not zero."""
    real = (pos_SW < length)[:, None, :, None].expand_as(got)
    if not bool((got[~real] == 0).all()):
        return math.inf
    return float((got.double() - expected)[real].abs().max())


def _hide_unseen(given: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """Return the same arguments with NaN behind the last query of each row."""
    pos_SW = given["pos_SW"]
    last_S1 = pos_SW.masked_fill(pos_SW >= length, -1).amax(1, keepdim=True)
    behind_SL = torch.arange(length, device=pos_SW.device) > last_S1
    hidden = dict(given)
    for name in ("keys_SHLd", "values_SHLd"):
        hidden[name] = given[name].masked_fill(behind_SL[:, None, :, None], torch.nan)
    return hidden


# ------------------------------------------------------------------ draws and signals


class DrawInputs(NamedTuple):
    """The tensors that `draw` takes, in its order."""

    logits_MV: Tensor
    row_NK: Tensor
    scale_N: Tensor
    key_N2: Tensor
    place_N: Tensor

    def only(self, rows: slice) -> DrawInputs:
        """Return some of the draws, over the same logits."""
        return DrawInputs(self.logits_MV, *(values[rows] for values in self[1:]))


def make_draw_inputs(vocab: int, count: int, branches: int, device: torch.device) -> DrawInputs:
    """Make random arguments of `draw`: logits of a table's rows, scales, keys and places."""
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


def compare_draws(device: torch.device, vocab: int, top_k: int, count: int) -> Finding:
    """Compare tokens and log-probabilities with those of `cfg`, `warp` and `exact`."""
    from harness.kernels.race import draw

    drawn = 0
    different = 0
    largest = 0.0
    for branches, temperature in ((1, 1.0), (2, 1.0), (2, 0.7), (2, 0.0)):
        given = make_draw_inputs(vocab, count, branches, device)
        got = draw(*given, temperature=temperature, top_k=top_k)
        token_N, log_prob_N = draw_plainly(given, Sampling(temperature=temperature, top_k=top_k))
        agreed = got.token == token_N
        drawn += count
        different += int((~agreed).sum())
        errors = (got.log_prob - log_prob_N)[agreed].abs()
        largest = max([largest, *errors.tolist()])

    figures = {"drawn": drawn, "different": different, "log_prob_error": largest}
    failures = []
    if different > TIES * drawn:
        failures.append(f"{different} of {drawn} tokens differ: more than near-ties")
    if not largest < 1e-5:
        failures.append(f"log-probabilities are {largest:.2g} away, 1e-5 is allowed")
    return Finding(f"{different} of {drawn} tokens differ (near-ties)", figures, failures)


def draw_plainly(given: DrawInputs, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw as torch does: tokens [N], and their log-probabilities [N]."""
    count, branches = given.row_NK.shape
    guide = cfg if branches == 2 else unguided
    logits_NKTV = given.logits_MV[given.row_NK].unsqueeze(2)
    probs_NTV = warp(guide(logits_NKTV, given.scale_N), sampling)
    noise = Noise(given.key_N2, given.place_N.unsqueeze(1))
    _, token_N = exact(probs_NTV, Drafts.stack([None] * count, probs_NTV), noise)
    prob_N = probs_NTV[:, 0].gather(1, token_N.unsqueeze(1))[:, 0]
    return token_N, prob_N.double().log()


def compare_signals(device: torch.device, vocab: int, count: int) -> Finding:
    """Compare entropy, margin and divergence, masked ids and a single branch included."""
    from harness.kernels.race import measure_signals

    given = make_draw_inputs(vocab, count, 2, device)
    given.logits_MV[:, 3:5] = -torch.inf
    null_NV, text_NV = given.logits_MV[given.row_NK].unbind(1)
    failures = []
    largest = 0.0
    for name, null in (("two branches", null_NV), ("one branch", text_NV)):
        got = measure_signals(null, text_NV)
        for signal, values, expected in zip(
            got._fields, got, measure_confidence(null, text_NV), strict=True
        ):
            error = float((values - expected).abs().max())
            largest = max(largest, error)
            if not error < 1e-10:
                failures.append(f"{name}, {signal}: {error:.2g} away, 1e-10 is allowed")
    return Finding(f"largest error {largest:.1e}", {"largest_error": largest}, failures)


def compare_draws_alone(device: torch.device, vocab: int, count: int) -> Finding:
    """Compare, in every bit, draws and signals among others with those alone."""
    from harness.kernels.race import draw, measure_signals

    given = make_draw_inputs(vocab, count, 2, device)
    top_k = vocab // 16
    null_NV, text_NV = given.logits_MV[given.row_NK].unbind(1)
    together = (*draw(*given, temperature=1.0, top_k=top_k), *measure_signals(null_NV, text_NV))
    failures = []
    for n in (0, count // 2, count - 1):
        here = slice(n, n + 1)
        drawn = draw(*given.only(here), temperature=1.0, top_k=top_k)
        alone = (*drawn, *measure_signals(null_NV[here], text_NV[here]))
        for values, among_others in zip(alone, together, strict=True):
            if not torch.equal(values, among_others[here]):
                failures.append(f"row {n} of {count} alone differs")
    return Finding("equal in every bit", {}, failures)


def compare_beside_bad_rows(device: torch.device, vocab: int, count: int) -> Finding:
    """Put rows of NaN and infinity beside good ones: tokens stay in bounds, good rows unchanged."""
    from harness.kernels.race import draw, measure_signals

    if device.type == "cpu":
        raise NotRunError("Triton's interpreter has no largest number where all are NaN")

    given = make_draw_inputs(vocab, count, 1, device)
    good = draw(*given, temperature=1.0, top_k=vocab // 16)
    good_signals = measure_signals(given.logits_MV, given.logits_MV)
    bad_rows = {"minus infinity": -torch.inf, "infinity": torch.inf, "NaN": torch.nan}
    failures = []
    for name, value in bad_rows.items():
        logits_MV = given.logits_MV.clone()
        bad_row = int(given.row_NK[0, 0])
        logits_MV[bad_row] = value
        got = draw(logits_MV, *given[1:], temperature=1.0, top_k=vocab // 16)
        signals = measure_signals(logits_MV, logits_MV)
        if not 0 <= int(got.token[0]) < vocab:
            failures.append(f"a row of {name} draws token {int(got.token[0])} of {vocab}")
        same = torch.arange(len(logits_MV), device=device) != bad_row
        if not torch.equal(got.token[1:], good.token[1:]):
            failures.append(f"beside a row of {name} other tokens are drawn")
        if not torch.equal(signals.entropy[same], good_signals.entropy[same]):
            failures.append(f"beside a row of {name} other signals are measured")
    return Finding(f"{', '.join(bad_rows)}: others unchanged", {}, failures)


# ------------------------------------------------------------------ captured


def compare_captured(device: torch.device, shape: Shape, vocab: int, count: int) -> Finding:
    """Capture all kernels, change their inputs in place, and compare a replay with a call."""
    from harness.kernels.flash import attend
    from harness.kernels.race import draw, measure_signals

    if device.type != "cuda":
        raise NotRunError(f"{device.type} captures no graphs")
    given = make_attention_inputs(shape, torch.bfloat16, device)
    rows = make_draw_inputs(vocab, min(count, 64), 2, device)
    signalled_NV = rows.logits_MV[:8]

    def work() -> tuple[Tensor, ...]:
        drawn = draw(*rows, temperature=1.0, top_k=vocab // 16)
        return (attend(**given), *drawn, *measure_signals(signalled_NV, signalled_NV))

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    given["pos_SW"].clamp_(max=5)
    rows.place_N.add_(1)
    rows.logits_MV.mul_(0.5)
    graph.replay()
    called = work()
    pairs = zip(captured, called, strict=True)
    differing = [n for n, (replayed, fresh) in enumerate(pairs) if not torch.equal(replayed, fresh)]
    failures = [f"outputs {differing} of a replay differ from a call's"] if differing else []
    return Finding(f"{len(called)} outputs, equal in every bit", {}, failures)
