"""Say how far a sweep is: "point 5 of 16, about 3 min left"."""

from __future__ import annotations

import time
from collections.abc import Callable

UNITS = (("d", 86400), ("h", 3600), ("min", 60))
"""Units of time that are used from twice their length on, in seconds."""


class SweepProgress:
    """Count the jobs of a sweep as they begin and end, and print how far it is.

    There are `total` jobs, points or shares of points, of which earlier commands have finished
    `finished`. The time left supposes that the others take as long as those that have ended since,
    one by one or side by side; it is said from the second on.
    """

    def __init__(
        self,
        total: int,
        finished: int = 0,
        *,
        unit: str = "point",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._finished = finished
        self._unit = unit
        self._clock = clock
        self._began = clock()
        self._begun = 0
        self._ended = 0

    def begin(self, name: str) -> None:
        """Print that a job begins."""
        self._begun += 1
        number = self._finished + self._begun
        print(f"{self._unit} {number} of {self._total}{self._describe_rest()}: {name}", flush=True)

    def end(self) -> None:
        """Count a job that has ended, well or not."""
        self._ended += 1

    def print_ended(self) -> None:
        """Print how many jobs have ended: for jobs that are carried out side by side."""
        done = self._finished + self._ended
        rest = self._describe_rest()
        print(f"{done} of {self._total} {self._unit}s have ended{rest}", flush=True)

    def _describe_rest(self) -> str:
        """Say how long the rest takes, if that can be known."""
        left = self._total - self._finished - self._ended
        if self._ended < 2 or not left:
            return ""
        seconds = (self._clock() - self._began) / self._ended * left
        return f", about {format_seconds(seconds)} left"


def format_seconds(seconds: float) -> str:
    """Write a duration in the unit that suits it: 90 s, 3.5 min, 7.2 h."""
    for unit, size in UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
