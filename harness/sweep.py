"""`python -m harness.sweep status FOLDER`: how far the sweeps of a results folder are; read only,
while they run.

Exit code 0 once everything planned is done, 1 before, 2 for a mistake in the command.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.cli import say
from harness.records import UserError
from harness.runs.lock import Shard, Writer, writers
from harness.runs.read import Run, find_runs, read_run
from harness.sweeps.ledger import Event, ledgers, names, read_events

COLUMNS = ("planned", "done", "failed", "running")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.sweep", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    status = kinds.add_parser("status", help="planned, done, failed, running, time left")
    status.add_argument("folder", type=Path, nargs="?", default=Path("results"))
    chosen = parser.parse_args(arguments)
    try:
        return show(chosen.folder)
    except UserError as error:
        return say(error)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, or a point that has no folder yet."""

    name: str
    planned: int | None = None  # images
    done: int = 0
    failed: int = 0
    writers: Sequence[Writer] = ()
    images_per_s: float = 0.0  # of those who write it
    error: str = ""  # how the sweep last left it

    @property
    def complete(self) -> bool:
        return self.done == self.planned


def show(results: Path) -> int:
    """Print how far each sweep is, and each run that no sweep asked for."""
    runs = {str(folder.relative_to(results)): folder for folder in find_runs(results)}
    sweeps = {path.stem: _points(path) for path in sorted(ledgers(results).glob("*.jsonl"))}
    known = {folder for points in sweeps.values() for _, folder, _ in points}
    rows = {
        sweep: [
            _progress(name, runs.get(folder), error)
            for name, (_, folder, error) in zip(
                names([event for event, _, _ in points]), points, strict=True
            )
        ]
        for sweep, points in sweeps.items()
    }
    if others := [name for name in runs if name not in known]:
        rows["runs of no sweep"] = [_progress(name, runs[name], "") for name in others]
    if not rows:
        raise UserError(f"{results}: no sweep and no run")
    for name, points in rows.items():
        print(_table(name, points), end="\n\n")
    return 0 if all(point.complete for points in rows.values() for point in points) else 1


def _points(path: Path) -> list[tuple[Event, str, str]]:
    """The points of a sweep's last start: each with its folder, "" before there is one, and what
    went wrong there.
    """
    events = read_events(path)
    last = [event.call for event in events if event.event == "begun"][-1:]
    folders = {event.point: event.folder for event in events if event.folder}
    errors = {(event.point, event.shard): event.error for event in events if event.call in last}
    wrong = {point: error for (point, _), error in errors.items() if error}
    return [
        (event, folders.get(event.point, ""), wrong.get(event.point, ""))
        for event in events
        if event.call in last and event.event in ("planned", "skipped")
    ]


def _progress(name: str, folder: Path | None, error: str) -> Progress:
    if folder is None:
        return Progress(name, error=error)
    run = read_run(folder)
    now = writers(folder)
    speed = sum(_images_per_s(run, writer) for writer in now)
    return Progress(
        name,
        len(run.planned),
        len(run.done),
        len(run.failed),
        now,
        speed,
        "" if run.complete else error,
    )


def _images_per_s(run: Run, writer: Writer) -> float:
    """What a writer has delivered since it began; 0 where clocks disagree."""
    share = Shard.parse(writer.shard).of(list(run.planned))
    made = sum(key in run.done for key in share) - writer.done
    passed_s = time.time() - writer.since
    return max(0.0, made / passed_s) if passed_s > 0 else 0.0


def _table(name: str, points: Sequence[Progress]) -> str:
    """A sweep as text: a line for each point, one for all, and what failed."""
    wide = max(len(point.name) for point in points)
    lines = [f"{name}: {len(points)} points, {sum(point.complete for point in points)} done"]
    lines.append("  ".join([" " * wide, *(f"{column:>8}" for column in COLUMNS)]).rstrip())
    for point in points:
        shares = " ".join(writer.shard for writer in point.writers) or "-"
        cells = [_count(point.planned), str(point.done), str(point.failed), shares]
        lines.append("  ".join([f"{point.name:{wide}}", *(f"{cell:>8}" for cell in cells)]))
    lines += [*_sum(points), *(f"  {point.name}: {point.error}" for point in points if point.error)]
    return "\n".join(lines)


def _sum(points: Sequence[Progress]) -> Iterator[str]:
    known = [point.planned for point in points if point.planned is not None]
    unknown = len(points) - len(known)
    each = sum(known) / len(known) if known else 0.0
    done = sum(point.done for point in points)
    failed = sum(point.failed for point in points)
    left = sum(known) + unknown * each - done
    busy = sum(len(point.writers) for point in points)
    speed = sum(point.images_per_s for point in points)
    plan = f"{sum(known)}{f' + about {unknown * each:.0f}' if unknown else ''} images planned"
    when = (
        "none left"
        if not left
        else f"about {_span(left / speed)} left"
        if speed
        else "time left unknown"
    )
    yield f"{plan}, {done} done, {failed} failed, {busy} workers running, {when}"


def _count(planned: int | None) -> str:
    return "?" if planned is None else str(planned)


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
