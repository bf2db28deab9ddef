"""`python -m harness.sweep status FOLDER`: how far the sweeps of a results folder are.

It only reads, also while they run. Exit code 0 once everything planned is done, 1 before, 2 for a
mistake in the command.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.arguments import print_error
from harness.records import UserError
from harness.runs.lock import Shard, Writer, find_writers
from harness.runs.read import Run, find_runs, read_run
from harness.sweeps.ledger import Event, ledger_folder, name_points, read_events
from harness.sweeps.progress import format_seconds

COLUMNS = ("planned", "done", "failed", "running")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    status = kinds.add_parser("status", help="planned, done, failed, running, time left")
    status.add_argument("folder", type=Path, nargs="?", default=Path("results"))
    chosen = parser.parse_args(arguments)
    try:
        return print_status(chosen.folder)
    except UserError as error:
        return print_error(error)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, or a point that has no folder yet."""

    name: str
    planned: int | None = None  # images; None: nobody has begun it
    done: int = 0
    failed: int = 0
    writers: Sequence[Writer] = ()
    images_per_s: float = 0.0  # of those who write it
    error: str = ""  # of the last attempt, if that left something undone

    @property
    def complete(self) -> bool:
        return self.done == self.planned


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """A point of a sweep's last start."""

    event: Event  # that planned it, or left it out because it was finished
    folder: str  # below results; "" before there is one
    error: str  # what went wrong with a share of it


def print_status(results: Path) -> int:
    """Print how far each sweep is, and each run that belongs to none; returns the exit code."""
    runs = {str(folder.relative_to(results)): folder for folder in find_runs(results)}
    tables: dict[str, list[Progress]] = {}
    in_sweeps: set[str] = set()
    for path in sorted(ledger_folder(results).glob("*.jsonl")):
        points = _read_points(path)
        names = name_points([point.event for point in points])
        in_sweeps |= {point.folder for point in points}
        tables[path.stem] = [
            _measure_progress(name, runs.get(point.folder), point.error)
            for name, point in zip(names, points, strict=True)
        ]
    if others := [name for name in runs if name not in in_sweeps]:
        tables["runs of no sweep"] = [_measure_progress(name, runs[name], "") for name in others]
    if not tables:
        raise UserError(f"{results}: no sweep and no run")

    is_done = True
    for name, rows in tables.items():
        print(_format_table(name, rows), end="\n\n")
        is_done = is_done and all(row.complete for row in rows)
    return 0 if is_done else 1


def _read_points(ledger: Path) -> list[PlannedPoint]:
    """Read the points of a sweep's last start."""
    events = read_events(ledger)
    calls = [event.call for event in events if event.event == "begun"]
    last = [event for event in events if event.call in calls[-1:]]

    folders = {event.point: event.folder for event in events if event.folder}
    shares = {(event.point, event.shard): event.error for event in last}
    errors = {point: error for (point, _), error in shares.items() if error}
    return [
        PlannedPoint(event, folders.get(event.point, ""), errors.get(event.point, ""))
        for event in last
        if event.event in ("planned", "skipped")
    ]


def _measure_progress(name: str, folder: Path | None, error: str) -> Progress:
    if folder is None:
        return Progress(name, error=error)
    run = read_run(folder)
    writers = find_writers(folder)
    return Progress(
        name,
        planned=len(run.planned),
        done=len(run.done),
        failed=len(run.failed),
        writers=writers,
        images_per_s=sum(_images_per_s(run, writer) for writer in writers),
        error="" if run.complete else error,
    )


def _images_per_s(run: Run, writer: Writer) -> float:
    """Return how fast a writer has delivered since it began; 0 where clocks disagree."""
    share = Shard.parse(writer.shard).of(list(run.planned))
    delivered = sum(key in run.done for key in share) - writer.done
    elapsed_s = time.time() - writer.since
    return max(0.0, delivered / elapsed_s) if elapsed_s > 0 else 0.0


# ------------------------------------------------------------------ text


def _format_table(name: str, rows: Sequence[Progress]) -> str:
    """Write a sweep as text: a line for each point, one for all, and what failed."""
    width = max(len(row.name) for row in rows)
    done = sum(row.complete for row in rows)
    lines = [
        f"{name}: {len(rows)} points, {done} done",
        _format_row("", COLUMNS, width).rstrip(),
    ]
    for row in rows:
        planned = "?" if row.planned is None else str(row.planned)
        shares = " ".join(writer.shard for writer in row.writers) or "-"
        cells = (planned, str(row.done), str(row.failed), shares)
        lines.append(_format_row(row.name, cells, width))
    lines.append(_format_sum(rows))
    for row in rows:
        if row.error:
            lines.append(f"  {row.name}: {row.error}")
    return "\n".join(lines)


def _format_row(name: str, cells: Sequence[str], width: int) -> str:
    padded = [f"{cell:>8}" for cell in cells]
    return "  ".join([name.ljust(width), *padded])


def _format_sum(rows: Sequence[Progress]) -> str:
    """Sum up the rows; points that nobody has begun count as large as the others on average."""
    known = [row.planned for row in rows if row.planned is not None]
    unknown = len(rows) - len(known)
    planned = sum(known)
    estimate = unknown * (planned / len(known)) if known else 0.0
    done = sum(row.done for row in rows)
    failed = sum(row.failed for row in rows)
    workers = sum(len(row.writers) for row in rows)
    images_per_s = sum(row.images_per_s for row in rows)

    about = f" + about {estimate:.0f}" if unknown else ""
    left = _format_left(planned + estimate - done, images_per_s)
    return (
        f"{planned}{about} images planned, {done} done, {failed} failed, "
        f"{workers} workers running, {left}"
    )


def _format_left(images: float, images_per_s: float) -> str:
    if not images:
        return "none left"
    if not images_per_s:
        return "time left unknown"
    return f"about {format_seconds(images / images_per_s)} left"


if __name__ == "__main__":
    sys.exit(main())
