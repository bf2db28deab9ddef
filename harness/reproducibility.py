"""Does a run come out the same in other company, in another order, in pieces, in other shapes?
Drawn again to see.

The numerics `constant` promise the first five variations in every bit. The sizes of the sampler are
part of a run's fingerprint: what other sizes change is measured here, and promised by nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass

import hydra
import numpy as np
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict

from harness.cli import enable_plugins
from harness.engine.scheduler import Delivery
from harness.records import TIMES, Job, UserError
from harness.runs.lock import Shard
from harness.runs.spec import Point

Drawn = dict[tuple[str, int], Delivery]
"""What became of every job."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of so many images drawn twice: how many agree in tokens, pixels, notes and costs, how many in
    tokens at least.
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
        return (
            "tokens"
            if self.tokens == self.images
            else f"differs ({self.tokens / self.images:.0%} same tokens)"
        )


@dataclass(frozen=True, slots=True)
class Variation:
    """Another way to draw a run. `promised`: the numerics `constant` say that it agrees in every
    bit.
    """

    name: str
    promised: bool
    draw: Callable[[Point], Drawn]


def points(overrides: Sequence[str]) -> Iterator[tuple[str, Point]]:
    """The points of a sweep given as on the command line, named by their method;
    experiment=determinism unless told.

    Raises UserError, or Hydra's own errors, for what cannot be composed.
    """
    parser = OverridesParser.create()
    if not any(
        override.startswith(("method=", "experiment=", "+experiment=")) for override in overrides
    ):
        overrides = ["experiment=determinism", *overrides]
    enable_plugins()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(list(overrides)), None)
        for job in jobs:
            listed = hydra.compose(
                "config", list(job), return_hydra_config=True
            ).hydra.sweeper.points or [[]]
            for more in listed:
                config = hydra.compose("config", [*job, *more], return_hydra_config=True)
                choices = {
                    group: str(choice) for group, choice in config.hydra.runtime.choices.items()
                }
                with open_dict(config):
                    del config["hydra"]
                yield choices["method"], Point(config, choices)


def audit(point: Point) -> dict[str, Agreement]:
    """How far each variation agrees with the run as configured. Raises UserError if an image cannot
    be drawn.
    """
    first = _draw(point, point.jobs)
    return {variation.name: _agreement(first, variation.draw(point)) for variation in VARIATIONS}


def broken(found: dict[str, Agreement]) -> list[str]:
    """Variations that differ though their agreement is promised."""
    return [one.name for one in VARIATIONS if one.promised and not found[one.name].exact]


def table(rows: Sequence[tuple[str, dict[str, Agreement]]]) -> str:
    """Methods against variations, in Markdown."""
    lines = [["method", *(one.name for one in VARIATIONS)], ["---"] * (1 + len(VARIATIONS))]
    lines += [[f"`{name}`", *(str(found[one.name]) for one in VARIATIONS)] for name, found in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ------------------------------------------------------------------ variations


def _draw(point: Point, jobs: Sequence[Job]) -> Drawn:
    drawn: Drawn = {}

    def deliver(delivery: Delivery) -> None:
        if delivery.image is None:
            raise UserError(
                f"{delivery.job.prompt.id} image {delivery.job.image} cannot be drawn: {delivery.error}"
            )
        drawn[delivery.job.key] = delivery

    point.draw(jobs, deliver)
    return drawn


def _shards(point: Point) -> Drawn:
    return {
        key: one for i in range(3) for key, one in _draw(point, Shard(i, 3).of(point.jobs)).items()
    }


def _interrupted(point: Point) -> Drawn:
    """Stopped twice with others in flight, and begun again with what is left."""
    drawn: Drawn = {}
    for stop in (len(point.jobs) // 3, 2 * len(point.jobs) // 3, len(point.jobs)):
        left = [job for job in point.jobs if job.key not in drawn]

        def deliver(delivery: Delivery, stop: int = stop) -> None:
            drawn[delivery.job.key] = delivery
            if len(drawn) == stop:
                raise _StopError

        with suppress(_StopError):
            point.draw(left, deliver)
    return drawn


class _StopError(Exception):
    """An interruption."""


def _shaped(point: Point, **sizes: object) -> Drawn:
    """Drawn by a sampler of other sizes."""
    other = copy(point)
    other.sampler = {**point.sampler, **sizes}
    return _draw(other, point.jobs)


def _fewer(point: Point) -> int:
    """Half the slots, or what one image needs; or twice as many if there are no more than that."""
    least = point.method.rows * point.method.branches
    slots = int(point.sampler["slots"])
    return max(least, slots // 2) if slots > least else 2 * slots


def _other(size: int) -> int:
    return size // 2 if size > 1 else 2


VARIATIONS = (
    Variation("again", True, lambda point: _draw(point, point.jobs)),
    Variation("backwards", True, lambda point: _draw(point, point.jobs[::-1])),
    Variation("one by one", True, lambda point: _shaped(point, concurrency=1)),
    Variation("3 shards", True, _shards),
    Variation("interrupted", True, _interrupted),
    Variation("other slots", False, lambda point: _shaped(point, slots=_fewer(point))),
    Variation(
        *("other prefill", False),
        lambda point: _shaped(
            point, prefill=[_other(point.sampler["prefill"][0]), point.sampler["prefill"][1]]
        ),
    ),
    Variation(
        *("other render batch", False),
        lambda point: _shaped(point, render_batch=_other(point.sampler["render_batch"])),
    ),
)


# ------------------------------------------------------------------ agreement


def _agreement(first: Drawn, second: Drawn) -> Agreement:
    tokens = [one.tokens == second[key].tokens for key, one in first.items()]
    return Agreement(
        len(first), sum(_same(one, second[key]) for key, one in first.items()), sum(tokens)
    )


def _same(one: Delivery, other: Delivery) -> bool:
    assert one.image is not None and other.image is not None
    facts = [
        (d.tokens, d.notes, {k: v for k, v in asdict(d.usage).items() if k not in TIMES})
        for d in (one, other)
    ]
    return facts[0] == facts[1] and np.array_equal(one.image, other.image)
