"""Keep the ledger of a sweep: what became of its points, in `results/sweeps/<name>.jsonl`.

The ledger is an append-only journal, written by all processes that take part. The truth about
results stays in the run folders. The ledger says which folder belongs to a point, so that a
finished point is known without loading its model; which points were planned; and what went wrong,
on whatever machine.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from harness.records import UserError, digest, dump
from harness.runs.folder import is_intact
from harness.runs.instantiate import COMMAND_OPTIONS
from harness.runs.journal import append_shared_line, read_lines
from harness.runs.read import find_runs, read_run

ENDPOINT_VARIABLES = ("VLM_BASE_URL", "VLM_MODEL")
"""Environment variables from which a judge without an address of its own takes one."""

PROJECT_FOLDERS = [
    Path(__file__).resolve().parents[2] / name
    for name in ("harness", "methods", "benchmarks", "conf")
]
"""Folders of the project's own code and configuration."""

Status = Literal[
    "begun", "planned", "skipped", "started", "finished", "failed", "preempted", "not run"
]
ENDS = ("finished", "failed", "preempted", "not run")
"""Statuses with which a share ends."""
LOST = "its worker ended without a word (killed, or out of memory); run again to go on"
"""Error of a share that has no end."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a ledger.

    The sweep has begun; its points are planned or skipped; the shares of a point have all other
    statuses.
    """

    event: Status
    call: str  # names one start of the sweep
    point: str = ""  # its key
    shard: str = ""
    folder: str = ""  # the point's, below results
    overrides: Sequence[str] = ()
    shards: int = 1
    claims: Sequence[str] = ()  # published tables that the sweep is to be compared with
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)  # see `find_outside_files`
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
        """Return what a job is told about its sweep, as `hydra.sweeper.part_of`."""
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
        line = {
            name: value
            for name, value in dataclasses.asdict(event).items()
            if value or name in ("event", "call")
        }
        append_shared_line(self.path, dump(line))

    def events(self) -> list[Event]:
        """Read what happened since this start of the sweep."""
        return [event for event in read_events(self.path) if event.call == self.call]

    def has_failure(self) -> bool:
        """Whether a point has failed since."""
        return any(event.event == "failed" for event in self.events())


@dataclass(frozen=True, slots=True)
class SweepPart:
    """A share of a sweep's point: what one job computes."""

    ledger: Ledger
    point: str
    shard: str

    @classmethod
    def parse(cls, results: Path, part_of: str, shard: str) -> Self:
        """Read what a job was told as `hydra.sweeper.part_of` (see `Ledger.name_point`)."""
        name, call, point = part_of.split("/")
        return cls(Ledger(ledger_folder(results) / f"{name}.jsonl", call), point, shard)

    def write(self, status: Status, **about: Any) -> None:
        """Append what became of it to the ledger."""
        self.ledger.write(status, point=self.point, shard=self.shard, **about)

    @property
    def status(self) -> Status | None:
        """The last status in the ledger; None before the first."""
        events = [
            event
            for event in self.ledger.events()
            if (event.point, event.shard) == (self.point, self.shard)
        ]
        return events[-1].event if events else None


def ledger_folder(results: Path) -> Path:
    """Return where a results folder's ledgers lie."""
    return results / "sweeps"


def read_events(path: Path) -> list[Event]:
    """Read a ledger; a torn last line is skipped. Raises UserError for any other bad line."""
    if not path.exists():
        return []
    return list(read_lines(path, lambda line: Event(**json.loads(line))))


def list_outcomes(events: Sequence[Event]) -> list[Event]:
    """List how each planned share of a start of a sweep ended, in the order of the plan.

    A share that has no end, because its worker died, has failed.
    """
    ends = {(event.point, event.shard): event for event in events if event.event in ENDS}
    outcomes = []
    for plan in events:
        if plan.event != "planned":
            continue
        for index in range(plan.shards):
            shard = f"{index}/{plan.shards}"
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


# ------------------------------------------------------------------ which points are finished


class KnownPoints:
    """The points that the ledgers of a results folder know."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._started: dict[str, Event] = {}
        for path in sorted(ledger_folder(results).glob("*.jsonl")):
            started = [event for event in read_events(path) if event.event == "started"]
            self._started |= {event.point: event for event in started}

    def find_finished(self, point: str, stages: Iterable[str]) -> str | None:
        """Return the folder, below results, of a point that has nothing left to do; else None."""
        event = self._started.get(point)
        if event is None:
            return None
        if any(_has_changed(path, state) for path, state in event.files.items()):
            return None
        return event.folder if is_complete(self._results / event.folder, stages) else None


def is_complete(folder: Path, stages: Iterable[str]) -> bool:
    """Whether every planned image of a run folder is there, byte for byte.

    If `stages` ask for scores, all images must be scored, too.
    """
    try:
        run = read_run(folder)
    except UserError:
        return False
    is_scored = "score" not in stages or run.scores.keys() >= run.planned.keys()
    return run.complete and is_scored and all(is_intact(folder, r) for r in run.done.values())


def key_point(overrides: Iterable[str], searched: Iterable[str]) -> str:
    """Name a point without composing its configuration.

    The key is made of what was asked for, and of all of the project that could change it;
    `searched` are further folders of configuration. A key that differs without need costs little:
    the point is built then, and found complete by its fingerprint.
    """
    named = sorted(override for override in overrides if not is_command_option(override))
    endpoint = [os.environ.get(name, "") for name in ENDPOINT_VARIABLES]
    return digest(dump([named, endpoint, _hash_project(tuple(searched))]).encode(), 16)


def hash_results(results: Path, about: Sequence[str]) -> str:
    """Hash all that a report of a results folder follows from.

    That is the run folders' journals, the project, and `about`: what was asked for.
    """
    journals = []
    for run in find_runs(results):
        files = [path for path in sorted(run.glob("[!.]*.*")) if path.is_file()]
        journals += [(str(file.relative_to(results)), *_stat(file)) for file in files]
    return digest(dump([journals, list(about), _hash_project(())]).encode())


def is_command_option(override: str) -> bool:
    """Whether an override says how a sweep is carried out, and not what it computes."""
    key = override.lstrip("+~").partition("=")[0]
    group = key.split("/")[0]
    return key.split(".")[0] in COMMAND_OPTIONS or group.split(".")[0] == "hydra"


# ------------------------------------------------------------------ states of files


class FileStat(NamedTuple):
    """Size and time of change of a file."""

    size: int
    changed_ns: int


@lru_cache(maxsize=4)
def _hash_project(searched: tuple[str, ...]) -> str:
    """Hash code, configuration and shipped weights, by name, size and time of change."""
    folders = [*PROJECT_FOLDERS, *map(Path, searched)]
    states = [state for folder in folders for state in _list_states(folder)]
    return digest(dump(states).encode(), 16)


def find_outside_files(config: Any) -> dict[str, list[int]]:
    """Find the files and folders outside the project that a plain configuration names.

    The files of classes are among them. Returns the state of each: see `_state`.
    """
    found: dict[str, list[int]] = {}
    for key, value in _list_strings(config):
        path = _module_file(value) if key == "_target_" else Path(value).expanduser()
        with suppress(OSError, ValueError):
            if path and path.exists() and not _is_of_project(path):
                found[str(path)] = _state(path)
    return found


def _is_of_project(path: Path) -> bool:
    return any(path.resolve().is_relative_to(folder) for folder in PROJECT_FOLDERS)


def _list_strings(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """List the texts of a nested configuration, each with its option's name."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _list_strings(value, str(key))
    elif isinstance(config, list):
        for value in config:
            yield from _list_strings(value, name)
    elif isinstance(config, str) and config:
        yield name, config


def _module_file(target: str) -> Path | None:
    """Find the file of the module that a `_target_` lies in."""
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(target.rpartition(".")[0])
        return Path(spec.origin) if spec and spec.origin else None
    return None


def _has_changed(path: str, state: Sequence[int]) -> bool:
    """Whether a file or folder is no longer in that state."""
    try:
        return _state(Path(path)) != list(state)
    except OSError:
        return True


def _state(path: Path) -> list[int]:
    """Return bytes in all, last time of change and number of files; of a file or of a folder."""
    stats = [state[1] for state in _walk(path)] if path.is_dir() else [_stat(path)]
    last = max((stat.changed_ns for stat in stats), default=0)
    return [sum(stat.size for stat in stats), last, len(stats)]


def _list_states(folder: Path) -> list[tuple[str, int, int]]:
    return [(name, *stat) for name, stat in _walk(folder)]


def _walk(folder: Path) -> Iterator[tuple[str, FileStat]]:
    """List all files below a folder, by name, without compiled Python."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(folder)), _stat(path)


def _stat(path: Path) -> FileStat:
    stat = path.stat()
    return FileStat(stat.st_size, stat.st_mtime_ns)
