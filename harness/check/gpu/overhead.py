"""Step 9: what methods cost besides decoding, on the embedded model.

Bookkeeping is how much longer a decode step of a method takes than one of plain sampling in a
sampler of the same shape, as a share of that. Early termination pays if time shrinks as the
row-steps do: the ratio of times over the ratio of row-steps is near 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from harness.bench.methods import Work
from harness.bench.timing import Times, interleave
from harness.check.gpu.configured import EMBEDDED, build_method, build_model, read_configured
from harness.check.gpu.finding import Finding, Part, Setting

LIGHT = ("scalingar", "gridar")
"""Methods whose bookkeeping has a bar."""
IMAGES = (1, 4, 16)
"""Images in flight."""
BLOCKS = 5
WARM_UP = 6
SLOTS_FOR = 4
"""Prompts that there are slots for where candidates end early, and how many wait for them."""
QUEUE = 16


def list_parts(setting: Setting) -> Sequence[Part]:
    """List the parts of the step."""
    sizes = IMAGES if setting.is_full else IMAGES[:1]
    parts = [
        Part(f"bookkeeping of {name}, {images} in flight", partial(time_steps, name, images), 60)
        for name in LIGHT
        for images in sizes
    ]
    return [*parts, Part("early termination of scalingar", time_termination, 120)]


def time_steps(name: str, images: int, setting: Setting) -> Finding:
    """Time decode steps of a method and of plain sampling in a sampler of its shape."""
    model, sampling = build_model(EMBEDDED, setting.device)
    work = Work(build_method(name), model, sampling, images)
    plain = Work(build_method("plain"), model, sampling, images, like=work)
    blocks = BLOCKS if setting.is_full else 2
    warm_up = WARM_UP if setting.is_full else 0
    interleave({"method": work, "plain": plain}, blocks, model.device, warm_up=warm_up)
    return judge_steps(work, plain, read_configured()["bench"]["most_bookkeeping"])


def judge_steps(work: Work, plain: Work, most: float) -> Finding:
    """Compare the seconds of decode steps, paired by the blocks that both have run."""
    blocks = sorted(work.decode_s.keys() & plain.decode_s.keys())
    times = Times(
        {
            "method": np.array([work.decode_s[block] for block in blocks]),
            "plain": np.array([plain.decode_s[block] for block in blocks]),
        }
    )
    ratio, low, high = times.ratio("method", "plain")
    share = ratio - 1
    figures = {
        "bookkeeping": share,
        "low": _number(low - 1),
        "high": _number(high - 1),
        "ms_per_decode": 1000 * times.median("method"),
        "plain_ms_per_decode": 1000 * times.median("plain"),
    }
    failures = []
    if not share <= most and work.model.device.type == "cuda":
        failures.append(f"{share:.1%} of a decode step, the bar is {most:.0%}")
    headline = f"{share:+.1%} of a decode step"
    if len(blocks) >= 3:
        headline += f" [{low - 1:+.1%}, {high - 1:+.1%}]"
    return Finding(headline, figures, failures)


def time_termination(setting: Setting) -> Finding:
    """Time ScalingAR and Best-of-N with as many candidates, refilled from a queue of prompts."""
    model, sampling = build_model(EMBEDDED, setting.device)
    queue = QUEUE if setting.is_full else 2
    slots_for = SLOTS_FOR if setting.is_full else 1
    method = build_method("scalingar")
    best = build_method("best_of_n_likelihood", n=method.rows)
    work = Work(method, model, sampling, slots_for, queue=queue)
    whole = Work(best, model, sampling, slots_for, queue=queue)
    blocks = BLOCKS if setting.is_full else 2
    warm_up = WARM_UP if setting.is_full else 0
    times = interleave({"method": work, "best": whole}, blocks, model.device, warm_up=warm_up)
    time_ratio, low, high = times.ratio("method", "best")
    step_ratio = work.branch_steps / whole.branch_steps
    most = read_configured()["bench"]["most_excess"]
    excess = time_ratio / step_ratio
    figures = {
        "time_ratio": time_ratio,
        "low": _number(low),
        "high": _number(high),
        "row_step_ratio": step_ratio,
        "excess": excess,
    }
    failures = []
    if not excess <= most and model.device.type == "cuda":
        failures.append(f"the ratio of times is {excess:.2f} times that of row-steps, not {most}")
    headline = f"{time_ratio:.2f} of the time for {step_ratio:.2f} of the row-steps"
    return Finding(headline, figures, failures)


def _number(value: float) -> float | None:
    """Return a number as JSON may hold it; None for the ends of too few blocks."""
    return None if np.isnan(value) else value
