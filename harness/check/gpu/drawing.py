"""Draw images for the check: with graphs and kernels or without, through the real scheduler."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.bench.sampler import TEXTS
from harness.check.gpu.finding import OURS, NotRunError
from harness.engine.cuda_graphs import without_graphs
from harness.engine.guidance import Sampling
from harness.engine.method_spec import MethodSpec
from harness.engine.rendering import Image
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Method
from harness.kernels import switched_off
from harness.records import TIMES, Job, Prompt

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The images of some jobs, and whether graphs were used for them."""

    deliveries: Mapping[Key, Delivery]
    graphs: str  # "on", or "off" with the reason

    def differing(self, other: Drawn) -> list[Key]:
        """List the jobs whose tokens, notes, costs or pixels are not the same."""
        return [key for key in self.deliveries if not self._agrees(other, key)]

    def _agrees(self, other: Drawn, key: Key) -> bool:
        mine = self.deliveries[key]
        theirs = other.deliveries[key]
        same_image = np.array_equal(_image_of(mine), _image_of(theirs))
        mine_facts = (mine.tokens, mine.notes, _count_costs(mine))
        theirs_facts = (theirs.tokens, theirs.notes, _count_costs(theirs))
        return same_image and mine_facts == theirs_facts

    def redrawn(self, other: Drawn) -> list[Key]:
        """List the jobs whose tokens are not the same; notes may hold what rounding changes."""
        return [key for key in self.deliveries if self.first_difference(other, key) is not None]

    def first_difference(self, other: Drawn, key: Key) -> int | None:
        """Return the first place at which the tokens of a job differ."""
        pairs = zip(self.deliveries[key].tokens, other.deliveries[key].tokens, strict=True)
        return next((n for n, (mine, theirs) in enumerate(pairs) if mine != theirs), None)


def _image_of(delivery: Delivery) -> Image:
    assert delivery.image is not None  # jobs without an image are errors: see `draw_with`
    return delivery.image


def _count_costs(delivery: Delivery) -> dict[str, int]:
    names = [name for name in type(delivery.usage).__slots__ if name not in TIMES]
    return {name: getattr(delivery.usage, name) for name in names}


def make_jobs(images: int = 1, texts: Sequence[str] = TEXTS) -> list[Job]:
    """Make jobs for so many images of each text."""
    prompts = [Prompt(f"check/{n}", text, "any") for n, text in enumerate(texts)]
    return [Job(prompt, image) for prompt in prompts for image in range(images)]


def make_sampler(
    model: Any, sampling: Sampling, method: Method, jobs: int, **sizes: Any
) -> Sampler:
    """Make a sampler in which so many jobs of a method fit at once."""
    spec = MethodSpec.of(method)
    slots = spec.slots * jobs
    return Sampler(
        model,
        sampling,
        slots=slots,
        **{"prefill": (min(16, slots), 32), "render_batch": 4, **spec.sampler_sizes(), **sizes},
    )


def draw(
    model: Any,
    sampling: Sampling,
    method: Method,
    jobs: Sequence[Job],
    *,
    graphs: bool = True,
    kernels: bool = True,
) -> Drawn:
    """Draw the images of jobs, all at once.

    Raises RuntimeError if a job fails, or NotRunError if it lacks an optional package.
    """
    with ExitStack() as switches:
        if not graphs:
            switches.enter_context(without_graphs())
        if not kernels:
            switches.enter_context(switched_off("compared with torch"))
        sampler = make_sampler(model, sampling, method, len(jobs))
        return draw_with(sampler, method, jobs)


def draw_with(sampler: Sampler, method: Method, jobs: Sequence[Job]) -> Drawn:
    """Draw the images of jobs with a sampler that is there; raises what `draw` raises."""
    done: dict[Key, Delivery] = {}
    scheduler = Scheduler(method, sampler, seed=0)
    scheduler.run(jobs, lambda delivery: done.update({delivery.job.key: delivery}))
    errors = [delivery.error for delivery in done.values() if delivery.error]
    if errors:
        raise _error_of(errors[0])
    if sampler.free != sampler.slots:
        raise RuntimeError(f"{sampler.slots - sampler.free} slots were not given back")
    return Drawn(done, sampler.graphs.state)


def _error_of(message: str) -> Exception:
    """Return the error that a job's message stands for."""
    missing = re.match(r"ModuleNotFoundError: No module named '([\w.]+)'", message)
    if missing and missing[1].partition(".")[0] not in OURS:
        return NotRunError(f"needs {missing[1]}, which is not installed")
    return RuntimeError(message)
