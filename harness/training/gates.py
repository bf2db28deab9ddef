"""Gates of a weight set, and what they are measured with.

Images are drawn by the harness's sampler, verdicts are tabulated for the statistics, and the best
of some samples is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.engine.guidance import Sampling
from harness.engine.method_spec import MethodSpec
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.models import ImageModel
from harness.records import Job

PLAIN = {"_target_": "methods.plain.Plain"}
"""The method that only draws, as the plug-in that it is."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A measured number, and the least or most that it should be; None asks nothing."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        """Tell whether the number is as it should be."""
        is_enough = self.least is None or self.value >= self.least
        is_little = self.most is None or self.value <= self.most
        return is_enough and is_little

    def __str__(self) -> str:
        bounds = ((">=", self.least), ("<=", self.most))
        asked = " ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        mark = "" if self.holds else "SHORT"
        return f"{self.name:<46} {self.value:>8.3f}  {asked or 'report':<18} {mark}"


def deliver(model: ImageModel, jobs: Sequence[Job], method: Any, scale: float) -> list[Delivery]:
    """Draw jobs by a method, under guidance of `scale`; returns what was drawn in their order."""
    done: dict[tuple[str, int], Delivery] = {}
    sampler = Sampler(
        model,
        Sampling(scale=scale),
        slots=64,
        **MethodSpec.of(method).sampler_sizes(),
        prefill=(16, 32),
        render_batch=16,
    )
    Scheduler(method, sampler, seed=0).run(
        jobs, lambda delivery: done.update({delivery.job.key: delivery})
    )
    ordered = [done[job.key] for job in jobs]
    errors = [delivery.error for delivery in ordered if delivery.error]
    assert not errors, errors[0]
    return ordered


def tabulate(categories: Sequence[str], right_PI: np.ndarray) -> pd.DataFrame:
    """Arrange verdicts [prompts, images] as the statistics want them: a row for each image."""
    verdicts = []
    for i, (category, values) in enumerate(zip(categories, right_PI, strict=True)):
        for image, value in enumerate(values):
            verdict = {"prompt_id": i, "category": category, "image": image}
            verdicts.append({**verdict, "value": float(value)})
    return pd.DataFrame(verdicts)


def pick_best(right_PI: np.ndarray, signal_PI: np.ndarray, n: int) -> np.ndarray:
    """Return the verdicts of the best of each group of `n` samples by a signal, [P, groups]."""
    prompts, images = signal_PI.shape
    count = images // n * n
    signal_PGn = signal_PI[:, :count].reshape(prompts, -1, n)
    right_PGn = right_PI[:, :count].reshape(prompts, -1, n)
    best_PG1 = signal_PGn.argmax(-1)[..., None]
    picked_PG1: np.ndarray = np.take_along_axis(right_PGn, best_PG1, -1)
    return picked_PG1[..., 0]
