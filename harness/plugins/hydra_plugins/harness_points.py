"""A Hydra sweeper for uneven sweeps: an explicit list of points, each a list of overrides.

Hydra's own sweeper knows only full grids. `hydra.sweeper.points` lists points; whatever sweeps on the command line
are multiplied with them. Without points it is Hydra's basic sweeper. It lives in this namespace folder because Hydra
looks for plugins nowhere else (hydra-core, `core/plugins.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override


class PointSweeper(BasicSweeper):
    """Runs every point of `points`, in order, as one multirun."""

    def __init__(
        self,
        points: Sequence[Sequence[str]] = (),
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, params=params)
        self.points = [list(point) for point in points] or [[]]

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Batches of jobs, each a list of overrides."""
        given = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
        jobs = [job + point for point in self.points for job in given]
        size = max_batch_size or len(jobs)
        return [jobs[first : first + size] for first in range(0, len(jobs), size)]
