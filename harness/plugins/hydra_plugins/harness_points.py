"""A Hydra sweeper for uneven sweeps: a list of points, resumable and shared out.

Hydra's own sweeper knows only full grids, and forgets. `hydra.sweeper.points` lists points, each a
list of overrides. Whatever sweeps on the command line is multiplied with them, and an override of
the command line wins over a point's. Points that a ledger knows as finished are left out; the
others are shared out (`shards`) and handed to the launcher. Without points it sweeps as Hydra's
basic sweeper does.

It lives in this namespace folder because Hydra looks for plugins nowhere else (hydra-core,
`core/plugins.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from harness import cli
from harness.records import UserError
from harness.runs.instantiate import COMMAND_OPTIONS
from harness.runs.unknown_names import explain_compose_error, is_unknown_option
from harness.sweeps.finished import KnownPoints, key_point
from harness.sweeps.ledger import WHOLE, Ledger, is_command_option

Point = list[str]
"""The overrides of one run."""


class PointSweeper(BasicSweeper):
    """Run every point of `points`, in order, as one multirun.

    `claims` names tables of harness/claimed.yaml that the sweep is to be compared with. `always`
    and `instead` make a rehearsal of a sweep: overrides for all points, and replacements of
    overrides that a point has (null: dropped).
    """

    def __init__(
        self,
        points: Sequence[Sequence[str]] = (),
        claims: Sequence[str] = (),
        always: Sequence[str] = (),
        instead: Mapping[str, str | None] | None = None,
        part_of: str | None = None,  # given to jobs, never by people
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, params=params)
        self.points = [list(point) for point in points] or [[]]
        self.claims = list(claims)
        self.always = list(always)
        self.instead = dict(instead or {})

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[Point]]:
        """Return batches of jobs, each a list of overrides."""
        jobs = self._list_points(overrides)
        if self.config is not None and {"generate", "score"} & set(self.config.stages):
            jobs = self._plan_jobs(jobs, overrides)
        size = max_batch_size or max(1, len(jobs))
        return [jobs[first : first + size] for first in range(0, len(jobs), size)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check nothing: that is done before anything is planned."""

    def _list_points(self, overrides: list[Override]) -> list[Point]:
        """Multiply the points with what sweeps on the command line; each one is listed once."""
        typed = OverridesParser.create().parse_overrides(self.always)
        typed += overrides
        typed_keys = {override.get_key_element() for override in typed}
        grid: list[Point] = []
        for batch in BasicSweeper.split_arguments(typed, None):
            grid += batch

        points: list[Point] = []
        for point in self.points:
            own = self._keep_overrides(point, typed_keys)
            for job in grid:
                if job + own not in points:
                    points.append(job + own)
        return points

    def _keep_overrides(self, point: Point, typed_keys: set[str]) -> Point:
        """Return a point's overrides, without those that were typed, after replacements."""
        kept = []
        for override in point:
            key = override.partition("=")[0]
            if key in typed_keys:
                continue
            if key not in self.instead:
                kept.append(override)  # as it stands: "~x" deletes, "~x=" does not
            elif self.instead[key] is not None:
                kept.append(f"{key}={self.instead[key]}")
        return kept

    def _plan_jobs(self, points: list[Point], overrides: list[Override]) -> list[Point]:
        """Return the jobs of the points that are not finished; the ledger tells of all."""
        config = self.config
        assert config is not None
        _expect_one_value(config.shards, overrides)
        if config.shards > 1 and config.shard != WHOLE:
            raise UserError(
                f"shard={config.shard} and shards={config.shards}: give one of them; a share of a "
                "sweep is not shared out again"
            )

        # 1. Leave out the points that are finished.
        known = KnownPoints(Path(config.results))
        searched = self._searched_folders()
        waiting: list[Point] = []
        plan: list[tuple[Point, str, str | None]] = []
        for point in points:
            key = key_point(point, searched)
            folder = known.find_finished(key, config.stages)
            plan.append((point, key, folder))
            if folder is None:
                waiting.append(point)

        # 2. Leave out those with an option that their choices do not have; refuse all else that
        #    does not compose, and a sweep of which nothing is left.
        impossible = self._find_impossible(waiting)
        waiting = [point for point in waiting if point not in impossible]
        plan = [planned for planned in plan if planned[0] not in impossible]

        # 3. Write the plan into the ledger.
        ledger = self._open_ledger(overrides)
        shard = "" if config.shards > 1 else str(config.shard)
        jobs: list[Point] = []
        for point, key, folder in plan:
            shown = [override for override in point if not is_command_option(override)]
            if folder is not None:
                ledger.write("skipped", point=key, folder=folder, overrides=shown)
                continue
            ledger.write("planned", point=key, overrides=shown, shards=config.shards, shard=shard)
            jobs += _share_out(point, config.shards, ledger.name_point(key))

        if finished := len(plan) - len(waiting):
            print(f"{finished} of {len(points)} points are finished and left out")
        cli.lead_sweep(ledger, config, is_fresh=bool(waiting))
        return jobs

    def _find_impossible(self, points: list[Point]) -> list[Point]:
        """Find the points with an option that does not exist there, and name them.

        Raises what Hydra raises for any other mistake, and if no point is possible.
        """
        errors: list[HydraException] = []
        impossible: list[Point] = []
        for point in points:
            try:
                super().validate_batch_is_legal([point])
            except HydraException as error:
                if not is_unknown_option(error) or len(impossible) + 1 == len(points):
                    raise
                impossible.append(point)
                errors.append(error)
        for point, reason in zip(impossible, errors, strict=True):
            shown = ",".join(one for one in point if not is_command_option(one))
            print(f"left out: {shown}: {explain_compose_error(reason, point)}", file=sys.stderr)
        return impossible

    def _searched_folders(self) -> list[str]:
        """List the folders of configuration that the command line added."""
        assert self.config is not None
        sources = self.config.hydra.runtime.config_sources
        return [source.path for source in sources if source.provider == "command-line"]

    def _open_ledger(self, overrides: list[Override]) -> Ledger:
        assert self.config is not None
        choices = self.config.hydra.runtime.choices
        experiment = str(choices.get("experiment") or "sweep")
        typed = [override.input_line or "" for override in overrides]
        return Ledger.open_sweep(Path(self.config.results), experiment, typed, self.claims)


def _expect_one_value(shards: object, overrides: list[Override]) -> None:
    """Raise UserError for a bad number of shares, and for a swept option of the command."""
    if not isinstance(shards, int) or shards < 1:
        raise UserError(f"shards={shards}: give the number of shares of each run, 1 or more")
    for override in overrides:
        name = override.key_or_group
        if name in COMMAND_OPTIONS and override.is_sweep_override():
            raise UserError(f"{name} is of the whole sweep: give it one value")


def _share_out(point: Point, shards: int, part_of: str) -> Iterator[Point]:
    """Make a job for each share of a point."""
    for index in range(shards):
        shard = [f"shard={index}/{shards}"] if shards > 1 else []
        yield [*point, *shard, f"hydra.sweeper.part_of={part_of}"]
