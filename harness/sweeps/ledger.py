"""Keep the ledger of a sweep: what became of its points, in `results/sweeps/<name>.jsonl`.

The ledger is an append-only journal, written by all processes that take part. The truth about
results stays in the run folders. The ledger says which folder belongs to a point, so that a
finished point is known without loading its model; which points were planned; and what went wrong,
on whatever machine.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from harness.records import STRICT, digest, dump, parse_row
from harness.runs.instantiate import COMMAND_OPTIONS
from harness.runs.journal import append_shared_line, read_lines

Status = Literal[
    "begun", "planned", "skipped", "started", "finished", "failed", "preempted", "not run"
]
ENDS = ("finished", "failed", "preempted", "not run")
"""Statuses with which a share ends."""
WHOLE = "0/1"
"""The share that is all of a run's jobs."""
LOST = "its worker ended without a word (killed, or out of memory); run again to go on"
"""Error of a share that has no end."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a ledger.

    The sweep has begun; its points are planned or skipped; the shares of a point have all other
    statuses. A point that is planned with a `shard` has that share alone: the sweep was started
    with `shard=`.
    """

    __pydantic_config__: ClassVar = STRICT

    event: Status
    call: str  # names one start of the sweep
    point: str = ""  # its key
    shard: str = ""
    folder: str = ""  # the point's, below results
    overrides: Sequence[str] = ()
    shards: int = 1
    claims: Sequence[str] = ()  # published tables that the sweep is to be compared with
    # Files outside the project that the run reads; see finished.find_outside_files.
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)
    error: str = ""
    code: int = 0
    time_s: float = 0.0  # since 1970
    host: str = ""
    pid: int = 0


class Ledger:
    """A sweep's ledger, open for one start of it, which `call` names."""

    def __init__(self, path: Path, call: str) -> None:
        self.path = path
        self.call = call

    @classmethod
    def open_sweep(
        cls, results: Path, experiment: str, arguments: Iterable[str], claims: Sequence[str]
    ) -> Self:
        """Begin a sweep. The same `arguments` have the same ledger each time."""
        named = sorted(argument for argument in arguments if not is_command_option(argument))
        name = f"{experiment}-{digest(dump(named).encode(), 8)}"
        call = os.urandom(4).hex()
        ledger = cls(ledger_folder(results) / f"{name}.jsonl", call)
        ledger.write("begun", overrides=named, claims=claims)
        return ledger

    def name_point(self, point: str) -> str:
        """Return a point's full name, which its jobs get as `hydra.sweeper.part_of`."""
        return f"{self.path.stem}/{self.call}/{point}"

    def write(self, status: Status, **about: Any) -> None:
        """Append a line; it is whole, whoever else is writing."""
        event = Event(
            status,
            self.call,
            time_s=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            **about,
        )
        fields = dataclasses.asdict(event)
        for name, value in list(fields.items()):
            if not value and name not in ("event", "call"):
                del fields[name]
        append_shared_line(self.path, dump(fields))

    def events(self) -> list[Event]:
        """Read what happened since this start of the sweep."""
        return [event for event in read_events(self.path) if event.call == self.call]

    def has_failure(self) -> bool:
        """Return whether a point has failed since."""
        return any(event.event == "failed" for event in self.events())


@dataclass(frozen=True, slots=True)
class SweepPart:
    """A share of a sweep's point: what one job computes."""

    ledger: Ledger
    point: str
    shard: str

    @classmethod
    def parse(cls, results: Path, part_of: str, shard: str) -> Self:
        """Read the `hydra.sweeper.part_of` of a job (see `Ledger.name_point`)."""
        name, call, point = part_of.split("/")
        return cls(Ledger(ledger_folder(results) / f"{name}.jsonl", call), point, shard)

    def write(self, status: Status, **about: Any) -> None:
        """Append what became of it to the ledger."""
        self.ledger.write(status, point=self.point, shard=self.shard, **about)

    @property
    def status(self) -> Status | None:
        """Return the last status in the ledger; None before the first."""
        status = None
        for event in self.ledger.events():
            if event.point == self.point and event.shard == self.shard:
                status = event.event
        return status


def is_command_option(override: str) -> bool:
    """Return whether an override says how a sweep is carried out, and not what it computes."""
    key = override.lstrip("+~").partition("=")[0]
    group = key.split("/")[0]
    return key.split(".")[0] in COMMAND_OPTIONS or group.split(".")[0] == "hydra"


def ledger_folder(results: Path) -> Path:
    """Return where a results folder's ledgers lie."""
    return results / "sweeps"


def read_events(path: Path) -> list[Event]:
    """Read a ledger; a torn last line is skipped. Raises UserError for any other bad line."""
    if not path.exists():
        return []
    return list(read_lines(path, partial(parse_row, Event)))


def list_outcomes(events: Sequence[Event]) -> list[Event]:
    """List how each planned share of a start of a sweep ended, in the order of the plan.

    A share that has no end, because its worker died, has failed.
    """
    ends = {(event.point, event.shard): event for event in events if event.event in ENDS}
    outcomes = []
    for plan in events:
        if plan.event != "planned":
            continue
        every = [f"{index}/{plan.shards}" for index in range(plan.shards)]
        for shard in [plan.shard] if plan.shard else every:
            lost = dataclasses.replace(plan, event="failed", shard=shard, error=LOST, code=1)
            end = ends.get((plan.point, shard), lost)
            outcomes.append(dataclasses.replace(end, overrides=plan.overrides))
    return outcomes


def name_points(points: Sequence[Event]) -> list[str]:
    """Name points by the overrides that they do not share."""
    shared: set[str] = set()
    if len(points) > 1:
        shared = set.intersection(*(set(point.overrides) for point in points))
    names = []
    for point in points:
        own = [override for override in point.overrides if override not in shared]
        names.append(" ".join(own) or "the defaults")
    return names
