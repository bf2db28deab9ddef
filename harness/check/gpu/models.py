"""Step 5: full-size models of random weights.

What is captured must draw the same tokens as what is launched by the host, in every bit; and the
logits in bfloat16 must be near those of the same weights in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.check.gpu.configured import MODELS
from harness.check.gpu.finding import Finding, Part, Setting
from harness.check.gpu.subjects import (
    build_subject,
    count_equal,
    draw_tokens,
    open_canvases,
    probe_logits,
    widen,
)
from harness.engine.cuda_graphs import without_graphs
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler

TOKENS = 64
"""Tokens that are drawn of each image."""
IMAGES = 4
FAR = 3e-2
"""Largest distance of bfloat16's logits from float32's, over the length of the latter."""


def list_parts(_setting: Setting) -> Sequence[Part]:
    """List a part for each model."""
    return [Part(name, partial(compare_model, name), 90) for name in MODELS]


def compare_model(name: str, setting: Setting) -> Finding:
    """Compare captured with eager drawing, and the logits after it with float32's."""
    model, sampling = build_subject(name, setting)
    count = min(TOKENS, model.num_tokens - 1)
    captured = _Drawn(model, sampling, count)
    with without_graphs():
        eager = _Drawn(model, sampling, count)
    failures = []
    equal = count_equal(captured.tokens, eager.tokens)
    if equal < IMAGES:
        failures.append(f"graphs change the tokens of {IMAGES - equal} of {IMAGES} images")
    if captured.log_probs != eager.log_probs:
        failures.append("graphs change log-probabilities")
    if not torch.equal(captured.logits_RKV, eager.logits_RKV):
        failures.append("graphs change the last logits")
    if setting.torch_device.type == "cuda" and captured.graphs != "on":
        failures.append(f"graphs are {captured.graphs}")

    wide_RKV = _logits_behind(widen(model), sampling, captured.tokens)
    distance = float((captured.logits_RKV - wide_RKV).norm() / wide_RKV.norm())
    if not distance < FAR:
        failures.append(f"logits are {distance:.2g} away from float32's, {FAR:g} is allowed")
    figures = {"tokens": count, "images": IMAGES, "graphs": captured.graphs, "distance": distance}
    headline = f"{count} tokens, graphs {captured.graphs}, {distance:.1e} from float32"
    return Finding(headline, figures, failures)


class _Drawn:
    """The first tokens of some images, and the logits behind them."""

    def __init__(self, model: Any, sampling: Sampling, count: int) -> None:
        sampler = _make_sampler(model, sampling)
        canvases = open_canvases(sampler, range(IMAGES))
        draw_tokens(sampler, canvases, count)
        self.tokens = [tuple(canvas.tokens) for canvas in canvases]
        self.log_probs = [tuple(canvas.log_probs) for canvas in canvases]
        self.logits_RKV = probe_logits(sampler, canvases)
        self.graphs = sampler.graphs.state


def _logits_behind(model: Any, sampling: Sampling, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Compute the logits [R, K, V] that follow given tokens."""
    sampler = _make_sampler(model, sampling)
    canvases = open_canvases(sampler, range(IMAGES))
    for canvas, known in zip(canvases, tokens, strict=True):
        sampler.commit(canvas, known)
    return probe_logits(sampler, canvases)


def _make_sampler(model: Any, sampling: Sampling) -> Sampler:
    branches = 1 if sampling.scale == 1 else 2
    return Sampler(model, sampling, slots=branches * IMAGES, prefill=(branches * IMAGES, 32))
