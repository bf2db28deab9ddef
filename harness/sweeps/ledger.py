"""What became of a sweep's points: an append-only ledger, `results/sweeps/<name>.jsonl`, written by
all who take part.

The truth about results stays in the run folders. The ledger says which folder is a point's, so that
a finished point is known without loading its model; which points were planned; and what went wrong,
wherever it was computed.
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
from typing import Any, Literal, Self

from harness.records import UserError, digest, dump
from harness.runs.folder import intact
from harness.runs.instantiate import OF_THE_COMMAND
from harness.runs.journal import append, read_lines
from harness.runs.read import find_runs, read_run

ASKED_OF = ("VLM_BASE_URL", "VLM_MODEL")
"""Environment that a judge without an address of its own takes one from."""

OURS = [
    Path(__file__).resolve().parent.parent / name
    for name in ("harness", "methods", "benchmarks", "conf")
]

Happening = Literal[
    "begun", "planned", "skipped", "started", "finished", "failed", "preempted", "not run"
]
Files = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Event:
    """One line. Of a sweep: begun. Of its points: planned, or skipped. Of a point's shares: all
    others.
    """

    event: Happening
    call: str  # names one start of the sweep
    point: str = ""  # its key
    shard: str = ""
    folder: str = ""  # the point's, below results
    overrides: Sequence[str] = ()
    shards: int = 1
    claims: Sequence[str] = ()  # published tables that the sweep is to be compared with
    files: Files = field(default_factory=dict)  # that the point reads besides the project's own
    error: str = ""
    code: int = 0
    time_s: float = 0.0  # since 1970
    host: str = ""
    pid: int = 0


class Ledger:
    """A sweep's ledger, open for one start of it."""

    def __init__(self, path: Path, call: str) -> None:
        self.path = path
        self.call = call

    @classmethod
    def begin(
        cls, results: Path, experiment: str, arguments: Iterable[str], claims: Sequence[str]
    ) -> Self:
        """The ledger of the sweep that `arguments` ask for: the same one each time that they are
        the same.
        """
        said = sorted(argument for argument in arguments if not of_the_command(argument))
        ledger = cls(
            ledgers(results) / f"{experiment}-{digest(dump(said).encode(), 8)}.jsonl",
            os.urandom(4).hex(),
        )
        ledger.write("begun", overrides=said, claims=claims)
        return ledger

    @classmethod
    def of(cls, results: Path, part_of: str) -> tuple[Self, str]:
        """The ledger and the point's key that a job was given as `hydra.sweeper.part_of`."""
        name, call, point = part_of.split("/")
        return cls(ledgers(results) / f"{name}.jsonl", call), point

    def part(self, point: str) -> str:
        """What a job is told about its sweep."""
        return f"{self.path.stem}/{self.call}/{point}"

    def write(self, event: Happening, **about: Any) -> None:
        """Append a line; whole, whoever else is writing."""
        line = Event(
            event,
            self.call,
            time_s=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            **about,
        )
        kept = {
            name: value
            for name, value in dataclasses.asdict(line).items()
            if value or name in ("event", "call")
        }
        append(self.path, dump(kept))

    def events(self) -> list[Event]:
        """What happened since this start of the sweep."""
        return [event for event in read_events(self.path) if event.call == self.call]

    def failed(self) -> bool:
        """Whether a point has failed since."""
        return any(event.event == "failed" for event in self.events())


def ledgers(results: Path) -> Path:
    """Where a results folder's ledgers lie."""
    return results / "sweeps"


def read_events(path: Path) -> list[Event]:
    """A ledger's lines. Raises UserError for one that cannot be read; a torn last line is passed
    over.
    """
    return list(read_lines(path, lambda line: Event(**json.loads(line)))) if path.exists() else []


def outcomes(events: Sequence[Event]) -> list[Event]:
    """How each planned share of a start of a sweep ended, in the order of the plan.

    One that has no end, because its worker died, has failed.
    """
    ends = {
        (e.point, e.shard): e
        for e in events
        if e.event in ("finished", "failed", "preempted", "not run")
    }
    lost = "its worker ended without a word (killed, or out of memory); run again to go on"
    return [
        dataclasses.replace(
            ends.get(
                (plan.point, shard),
                dataclasses.replace(plan, event="failed", shard=shard, error=lost, code=1),
            ),
            overrides=plan.overrides,
        )
        for plan in events
        if plan.event == "planned"
        for shard in (f"{index}/{plan.shards}" for index in range(plan.shards))
    ]


def names(points: Sequence[Event]) -> list[str]:
    """Points by what they do not share."""
    shared = (
        set.intersection(*(set(point.overrides) for point in points)) if len(points) > 1 else set()
    )
    return [
        " ".join(said for said in point.overrides if said not in shared) or "the defaults"
        for point in points
    ]


# ------------------------------------------------------------------ which points are finished


class Known:
    """The points that ledgers of a results folder know, and which of their folders are complete."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._started: dict[str, Event] = {}
        for path in sorted(ledgers(results).glob("*.jsonl")):
            self._started |= {
                event.point: event for event in read_events(path) if event.event == "started"
            }

    def finished(self, point: str, stages: Iterable[str]) -> str | None:
        """The folder of a point that has nothing left to do, below results; None for all others."""
        event = self._started.get(point)
        if event is None or any(_changed(path, was) for path, was in event.files.items()):
            return None
        return event.folder if complete(self._results / event.folder, stages) else None


def complete(folder: Path, stages: Iterable[str]) -> bool:
    """Whether every planned image of a run folder is there, byte for byte, and scored if `stages`
    ask for scores.
    """
    try:
        run = read_run(folder)
    except UserError:
        return False
    scored = "score" not in stages or run.scores.keys() >= run.planned.keys()
    return run.complete and scored and all(intact(folder, record) for record in run.done.values())


def point_key(overrides: Iterable[str], searched: Iterable[str]) -> str:
    """Names a point without composing it: by what was asked for, and by all of the project that
    could change it.

    `searched` are further folders of configuration. Another key is only less luck: the point is
    then built, and found complete by its fingerprint.
    """
    said = sorted(override for override in overrides if not of_the_command(override))
    asked_of = [os.environ.get(name, "") for name in ASKED_OF]
    return digest(dump([said, asked_of, _sources(tuple(searched))]).encode(), 16)


def state_of(results: Path, about: Sequence[str]) -> str:
    """What a report of a results folder follows from: the run folders' journals, the project, and
    what was asked.
    """
    files = [
        file for run in find_runs(results) for file in sorted(run.glob("[!.]*.*")) if file.is_file()
    ]
    journals = [(str(file.relative_to(results)), *_stat(file)) for file in files]
    return digest(dump([journals, list(about), _sources(())]).encode())


def of_the_command(override: str) -> bool:
    """Whether an override says how a sweep is carried out, and not what it is."""
    key = override.lstrip("+~").partition("=")[0]
    return key.split(".")[0] in OF_THE_COMMAND or key.split("/")[0].split(".")[0] == "hydra"


@lru_cache(maxsize=4)
def _sources(searched: tuple[str, ...]) -> str:
    """Code, configuration and shipped weights, by name, size and time of change."""
    folders = [*OURS, *map(Path, searched)]
    return digest(dump([state for folder in folders for state in _states(folder)]).encode(), 16)


def files_of(config: Any) -> dict[str, list[int]]:
    """Files and folders outside the project that a plain configuration names, classes' files among
    them.
    """
    found: dict[str, list[int]] = {}
    for key, value in _leaves(config):
        path = _module_file(value) if key == "_target_" else Path(value).expanduser()
        with suppress(OSError, ValueError):
            if (
                path
                and path.exists()
                and not any(path.resolve().is_relative_to(folder) for folder in OURS)
            ):
                found[str(path)] = _state(path)
    return found


def _leaves(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _leaves(value, str(key))
    elif isinstance(config, list):
        for value in config:
            yield from _leaves(value, name)
    elif isinstance(config, str) and config:
        yield name, config


def _module_file(target: str) -> Path | None:
    """The file of the module that a `_target_` lies in."""
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(target.rpartition(".")[0])
        return Path(spec.origin) if spec and spec.origin else None
    return None


def _changed(path: str, was: Sequence[int]) -> bool:
    try:
        return _state(Path(path)) != list(was)
    except OSError:
        return True


def _state(path: Path) -> list[int]:
    """Size and time of change of a file; of all files below a folder, their sum and the last."""
    sizes = [(state[1], state[2]) for state in _states(path)] if path.is_dir() else [_stat(path)]
    return [
        sum(size for size, _ in sizes),
        max((changed for _, changed in sizes), default=0),
        len(sizes),
    ]


def _states(folder: Path) -> list[tuple[str, int, int]]:
    return [
        (str(path.relative_to(folder)), *_stat(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]


def _stat(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
