"""Step 3: every configured method on the embedded model, which has real weights.

Captured graphs must change nothing at all. Kernels round differently from torch's own operations,
so a token may differ where two come in at once; behind it the image is another one. Such images are
counted, and of plain sampling it is measured how near the two tokens were.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.check.gpu.configured import EMBEDDED, build_method, build_model, read_configured
from harness.check.gpu.drawing import Drawn, Key, draw, make_jobs
from harness.check.gpu.finding import Finding, Part, Setting
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling
from harness.engine.probes import Probe
from harness.engine.session import Session
from harness.kernels import why_unused
from harness.kernels.noise import DRAW, Noise, words
from harness.records import Job

IMAGES = 2
"""Images of each of four prompts."""
MOST_DIFFERING = 1 / 8
"""Share of a method's images that may differ where kernels are off: near-ties are rarer."""
NEAR = 1e-3
"""Two tokens whose speeds in the race differ by less, relatively, are a near-tie."""


def list_parts(_setting: Setting) -> Sequence[Part]:
    """List a part for each configured method."""
    return [Part(name, partial(compare_method, name), 60) for name in read_configured()["method"]]


def compare_method(name: str, setting: Setting) -> Finding:
    """Draw with a method as it is, without graphs, and without kernels; compare the images."""
    model, sampling = build_model(EMBEDDED, setting.device)
    jobs = make_jobs(IMAGES) if setting.is_full else make_jobs(1)[:2]
    drawn = draw(model, sampling, build_method(name), jobs)
    eager = draw(model, sampling, build_method(name), jobs, graphs=False)
    failures = _judge_graphs(setting, drawn, eager)
    figures: dict[str, Any] = {"images": len(jobs), "graphs": drawn.graphs}
    headline = f"{len(jobs)} images, graphs {drawn.graphs}"

    if not why_unused(setting.torch_device):
        plain = draw(model, sampling, build_method(name), jobs, kernels=False)
        differing = drawn.redrawn(plain)
        figures["differing_without_kernels"] = len(differing)
        headline += f", {len(differing)} differ without kernels"
        if len(differing) > max(1, MOST_DIFFERING * len(jobs)):
            failures.append(f"without kernels {len(differing)} of {len(jobs)} images differ")
        if name == "plain" and differing:
            gap = _widest_gap(model, sampling, drawn, plain, jobs)
            figures["widest_gap"] = gap
            if not gap < NEAR:
                failures.append(f"tokens that differ without kernels are {gap:.2g} apart: no tie")
    return Finding(headline, figures, failures)


def _judge_graphs(setting: Setting, drawn: Drawn, eager: Drawn) -> list[str]:
    """Say what captured graphs change, and where a GPU captured none."""
    failures = []
    differing = drawn.differing(eager)
    if differing:
        where = [_name_difference(drawn, eager, key) for key in differing[:3]]
        failures.append(f"graphs change {len(differing)} images: {', '.join(where)}")
    if setting.torch_device.type == "cuda" and drawn.graphs != "on":
        failures.append(f"graphs are {drawn.graphs}")
    return failures


def _name_difference(one: Drawn, other: Drawn, key: Key) -> str:
    place = one.first_difference(other, key)
    what = "costs, notes or pixels" if place is None else f"token {place}"
    return f"{key[0]} image {key[1]} ({what})"


# ------------------------------------------------------------------ near-ties of plain sampling


def _widest_gap(
    model: Any, sampling: Sampling, one: Drawn, other: Drawn, jobs: Sequence[Job]
) -> float:
    """Measure how far apart the two first tokens were, where the images of a job part."""
    widest = 0.0
    for job in jobs:
        place = one.first_difference(other, job.key)
        if place is not None:
            method = GapMethod(one.deliveries[job.key].tokens[:place])
            draw(model, sampling, method, [job], graphs=False, kernels=False)
            widest = max(widest, method.gap)
    return widest


class GapMethod:
    """A method that commits given tokens, and measures the race for the next one.

    `gap` is the share by which the first token is faster than the second.
    """

    rows = 1
    branches = 2
    tokens_per_step = 1

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self.gap = 1.0

    async def generate(self, _prompt: str, s: Session) -> Canvas:
        """Draw one image behind the given tokens."""
        (canvas,) = s.open()
        s.commit(canvas, self._tokens)
        (signals,) = await s.look([canvas], _probe_gap(canvas))
        self.gap = signals["gap"]
        await s.run([canvas])
        return canvas


def _probe_gap(canvas: Canvas) -> Probe:
    def measure(logits_RKTV: Tensor, make_probs: Any) -> dict[str, Tensor]:
        probs_R1V = make_probs()
        device = logits_RKTV.device
        key_R2 = torch.tensor([words(canvas.key)], device=device)
        noise = Noise(key_R2, torch.tensor([[canvas.length]], device=device))
        uniform_R1V = noise.uniform(DRAW, probs_R1V.shape[-1])
        speed_RV = (probs_R1V.double() / -uniform_R1V.log())[:, 0]
        fastest_R2 = speed_RV.topk(2).values
        return {"gap": 1 - fastest_R2[:, 1] / fastest_R2[:, 0]}

    return measure
