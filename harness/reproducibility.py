"""Draw a run again in other ways, and see whether it comes out the same.

The other ways are another order, one image at a time, in shares, with interruptions, and with other
sizes of the sampler. Numerics `constant` promise that all but the last agree in every bit (batch
invariance). The sampler's sizes are part of a run's fingerprint: what other sizes change is
measured here, and promised by nobody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import hydra
import numpy as np
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict

from harness.cli import enable_plugins
from harness.engine.scheduler import Delivery
from harness.records import TIMES, Job, UserError
from harness.runs.execute import Executor
from harness.runs.lock import Shard
from harness.runs.spec import RunSpec, build_run_spec

Drawn = dict[tuple[str, int], Delivery]
"""The delivery of every job, by prompt id and number."""

SHARES = 3
"""Shares of the variation "3 shards"."""
DEFAULT = "experiment=determinism"
"""The sweep that is drawn unless others are asked for."""
SELECTIONS = ("method=", "experiment=", "+experiment=")
"""Beginnings of options that ask for others."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of the images that were drawn twice agree.

    `bits` of them agree in tokens, pixels, notes and costs, `tokens` in tokens at least.
    """

    images: int
    bits: int
    tokens: int

    @property
    def exact(self) -> bool:
        return self.bits == self.images

    def __str__(self) -> str:
        if self.exact:
            return "bits"
        if self.tokens == self.images:
            return "tokens"
        return f"differs ({self.tokens / self.images:.0%} same tokens)"


@dataclass(frozen=True, slots=True)
class Variation:
    """Another way to draw a run.

    `promised`: numerics `constant` promise that it agrees in every bit.
    """

    name: str
    promised: bool
    draw: Callable[[RunSpec], Drawn]


def compose_runs(overrides: Sequence[str]) -> Iterator[tuple[str, RunSpec]]:
    """Build the runs of a sweep that is given as on the command line, named by their method.

    Raises UserError, or Hydra's own errors, for what cannot be composed.
    """
    if not any(override.startswith(SELECTIONS) for override in overrides):
        overrides = [DEFAULT, *overrides]
    enable_plugins()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        for job in jobs:
            sweep = hydra.compose("config", list(job), return_hydra_config=True)
            for point in sweep.hydra.sweeper.points or [[]]:
                yield _compose_run([*job, *point])


def audit(spec: RunSpec) -> dict[str, Agreement]:
    """Compare each variation with the run as configured.

    Raises UserError if an image cannot be drawn.
    """
    first = _draw(spec, spec.plan.jobs)
    return {variation.name: _compare(first, variation.draw(spec)) for variation in VARIATIONS}


def find_broken_promises(found: Mapping[str, Agreement]) -> list[str]:
    """List the variations that differ though their agreement is promised."""
    return [
        variation.name
        for variation in VARIATIONS
        if variation.promised and not found[variation.name].exact
    ]


def format_table(rows: Sequence[tuple[str, Mapping[str, Agreement]]]) -> str:
    """Write a table of methods and variations in Markdown."""
    names = [variation.name for variation in VARIATIONS]
    lines = [["method", *names], ["---"] * (1 + len(names))]
    for method, found in rows:
        agreements = [str(found[name]) for name in names]
        lines.append([f"`{method}`", *agreements])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _compose_run(overrides: Sequence[str]) -> tuple[str, RunSpec]:
    config = hydra.compose("config", list(overrides), return_hydra_config=True)
    choices = {group: str(chosen) for group, chosen in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    return choices["method"], build_run_spec(config, choices)


# ------------------------------------------------------------------ variations


def _draw(spec: RunSpec, jobs: Sequence[Job]) -> Drawn:
    """Draw jobs to their end. Raises UserError for one that fails."""
    drawn: Drawn = {}

    def collect(delivery: Delivery) -> None:
        if delivery.image is None:
            job = delivery.job
            raise UserError(f"{job.prompt.id} image {job.image} cannot be drawn: {delivery.error}")
        drawn[delivery.job.key] = delivery

    Executor(spec).draw(jobs, collect)
    return drawn


def _draw_again(spec: RunSpec) -> Drawn:
    return _draw(spec, spec.plan.jobs)


def _draw_backwards(spec: RunSpec) -> Drawn:
    return _draw(spec, spec.plan.jobs[::-1])


def _draw_one_by_one(spec: RunSpec) -> Drawn:
    return _draw_with_sizes(spec, concurrency=1)


def _draw_shares(spec: RunSpec) -> Drawn:
    drawn: Drawn = {}
    for index in range(SHARES):
        drawn |= _draw(spec, Shard(index, SHARES).of(spec.plan.jobs))
    return drawn


def _draw_interrupted(spec: RunSpec) -> Drawn:
    """Stop twice with other jobs in flight, and begin again with what is left."""
    drawn: Drawn = {}
    jobs = spec.plan.jobs
    stops = (len(jobs) // 3, 2 * len(jobs) // 3, len(jobs))
    for stop in stops:
        left = [job for job in jobs if job.key not in drawn]
        with suppress(_InterruptionError):
            Executor(spec).draw(left, _Interruption(drawn, stop))
    return drawn


class _InterruptionError(Exception):
    """An interruption."""


@dataclass(frozen=True, slots=True)
class _Interruption:
    """Keep deliveries, and interrupt the run once there are `stop` of them."""

    drawn: Drawn
    stop: int

    def __call__(self, delivery: Delivery) -> None:
        self.drawn[delivery.job.key] = delivery
        if len(self.drawn) == self.stop:
            raise _InterruptionError


def _draw_with_other_slots(spec: RunSpec) -> Drawn:
    """Draw with half the slots, or what one image needs; with twice as many if that is all."""
    least = spec.method_spec.slots
    slots = int(spec.sampler_sizes["slots"])
    other = max(least, slots // 2) if slots > least else 2 * slots
    return _draw_with_sizes(spec, slots=other)


def _draw_with_other_prefill(spec: RunSpec) -> Drawn:
    rows, columns = spec.sampler_sizes["prefill"]
    return _draw_with_sizes(spec, prefill=[_other_size(rows), columns])


def _draw_with_other_render_batch(spec: RunSpec) -> Drawn:
    return _draw_with_sizes(spec, render_batch=_other_size(spec.sampler_sizes["render_batch"]))


def _other_size(size: int) -> int:
    return size // 2 if size > 1 else 2


def _draw_with_sizes(spec: RunSpec, **sizes: object) -> Drawn:
    """Draw by a sampler of other sizes."""
    other = dataclasses.replace(spec, sampler_sizes={**spec.sampler_sizes, **sizes})
    return _draw(other, spec.plan.jobs)


VARIATIONS = (
    Variation("again", True, _draw_again),
    Variation("backwards", True, _draw_backwards),
    Variation("one by one", True, _draw_one_by_one),
    Variation("3 shards", True, _draw_shares),
    Variation("interrupted", True, _draw_interrupted),
    Variation("other slots", False, _draw_with_other_slots),
    Variation("other prefill", False, _draw_with_other_prefill),
    Variation("other render batch", False, _draw_with_other_render_batch),
)


# ------------------------------------------------------------------ agreement


def _compare(first: Drawn, second: Drawn) -> Agreement:
    tokens = 0
    bits = 0
    for key, delivery in first.items():
        tokens += delivery.tokens == second[key].tokens
        bits += _is_same(delivery, second[key])
    return Agreement(len(first), bits, tokens)


def _is_same(one: Delivery, other: Delivery) -> bool:
    """Whether two drawings of a job agree in every bit, apart from what they took."""
    assert one.image is not None and other.image is not None
    return _list_facts(one) == _list_facts(other) and np.array_equal(one.image, other.image)


def _list_facts(delivery: Delivery) -> list[Any]:
    usage = dataclasses.asdict(delivery.usage)
    costs = {name: value for name, value in usage.items() if name not in TIMES}
    return [delivery.tokens, delivery.notes, costs]
