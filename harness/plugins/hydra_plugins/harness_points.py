"""A Hydra sweeper for uneven sweeps, resumable and shared out: an explicit list of points, each a
list of overrides.

Hydra's own sweeper knows only full grids, and forgets. `hydra.sweeper.points` lists points;
whatever sweeps on the command line is multiplied with them, and what is said there of one thing
wins over the points. Points that a ledger knows as finished are left out, the others are shared out
(`shards`) and handed to the launcher. Without points it sweeps as Hydra's basic sweeper does. It
lives in this namespace folder because Hydra looks for plugins nowhere else (hydra-core,
`core/plugins.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from harness import cli
from harness.records import UserError
from harness.runs.instantiate import OF_THE_COMMAND
from harness.sweeps.ledger import Known, Ledger, of_the_command, point_key

Point = list[str]


class PointSweeper(BasicSweeper):
    """Runs every point of `points`, in order, as one multirun.

    `claims` names tables of harness/claimed.yaml that the sweep is to be compared with. `always`
    and `instead` make a rehearsal of a sweep: overrides for all points, and what those that a point
    has are replaced with (null: dropped).
    """

    def __init__(
        self,
        points: Sequence[Sequence[str]] = (),
        claims: Sequence[str] = (),
        always: Sequence[str] = (),
        instead: Mapping[str, str | None] | None = None,
        part_of: str | None = None,  # told to jobs, never by people
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
        """Batches of jobs, each a list of overrides."""
        jobs = self._points(overrides)
        if self.config is not None and {"generate", "score"} & set(self.config.stages):
            jobs = self._plan(jobs, overrides)
        size = max_batch_size or max(1, len(jobs))
        return [jobs[first : first + size] for first in range(0, len(jobs), size)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Done before anything was planned."""

    def _points(self, overrides: list[Override]) -> list[Point]:
        """All points, each once."""
        typed = [*OverridesParser.create().parse_overrides(self.always), *overrides]
        given = [job for batch in BasicSweeper.split_arguments(typed, None) for job in batch]
        said = {override.get_key_element() for override in typed}
        jobs = [job + self._of_its_own(point, said) for point in self.points for job in given]
        return [list(job) for job in dict.fromkeys(tuple(job) for job in jobs)]

    def _of_its_own(self, point: Point, said: set[str]) -> Point:
        """A point's overrides that are not said otherwise, with what is to stand instead of
        them.
        """
        own = []
        for override in point:
            key, _, value = override.partition("=")
            stands = self.instead.get(key, value)
            if key not in said and stands is not None:
                own.append(f"{key}={stands}")
        return own

    def _plan(self, points: list[Point], overrides: list[Override]) -> list[Point]:
        """The jobs of the points that are not finished, all noted in the sweep's ledger."""
        assert self.config is not None and self.hydra_context is not None
        shards = self.config.shards
        if not isinstance(shards, int) or shards < 1:
            raise UserError(f"shards={shards}: give the number of shares of each run, 1 or more")
        if swept := [
            one.key_or_group
            for one in overrides
            if one.key_or_group in OF_THE_COMMAND and one.is_sweep_override()
        ]:
            raise UserError(f"{swept[0]} is of the whole sweep: give it one value")
        results = Path(self.config.results)
        known = Known(results)
        sources = self.config.hydra.runtime.config_sources
        searched = [source.path for source in sources if source.provider == "command-line"]
        keys = [point_key(point, searched) for point in points]
        folders = [known.finished(key, self.config.stages) for key in keys]
        waiting = [point for point, folder in zip(points, folders, strict=True) if folder is None]
        if waiting:
            super().validate_batch_is_legal(waiting)
        choices = self.config.hydra.runtime.choices
        said = [override.input_line or "" for override in overrides]
        ledger = Ledger.begin(results, str(choices.get("experiment") or "sweep"), said, self.claims)
        jobs = []
        for point, key, folder in zip(points, keys, folders, strict=True):
            shown = [override for override in point if not of_the_command(override)]
            if folder is not None:
                ledger.write("skipped", point=key, folder=folder, overrides=shown)
                continue
            ledger.write("planned", point=key, overrides=shown, shards=shards)
            for index in range(shards):
                shard = [f"shard={index}/{shards}"] if shards > 1 else []
                jobs.append([*point, *shard, f"hydra.sweeper.part_of={ledger.part(key)}"])
        if done := len(points) - len(waiting):
            print(f"{done} of {len(points)} points are finished and left out")
        cli.lead(ledger, self.config, fresh=bool(waiting))
        return jobs
