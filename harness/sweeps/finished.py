"""Know which points of a sweep are finished, without loading a model or composing anything.

A point is finished if a ledger says which run folder is its own, if that folder is complete, and if
nothing that the point reads has changed since. Files are compared by size and time of change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.records import PLAIN_DISTANCE, UserError, digest, dump
from harness.runs.folder import has_features, is_intact
from harness.runs.plugins import OWN_PACKAGES, find_plugin_files, is_own
from harness.runs.read import find_runs, read_run
from harness.sweeps.ledger import Event, is_command_option, ledger_folder, read_events

ENDPOINT_VARIABLES = ("VLM_BASE_URL", "VLM_MODEL")
"""Environment variables from which a judge without an address of its own takes one."""


class KnownPoints:
    """The points that the ledgers of a results folder know."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._started: dict[str, Event] = {}
        for path in sorted(ledger_folder(results).glob("*.jsonl")):
            for event in read_events(path):
                if event.event == "started":
                    self._started[event.point] = event

    def find_finished(self, point: str, stages: Iterable[str]) -> str | None:
        """Return the folder, below results, of a point that has nothing left to do; else None."""
        event = self._started.get(point)
        if event is None:
            return None
        for path, state in event.files.items():
            if has_changed(path, state):
                return None
        return event.folder if is_complete(self._results / event.folder, stages) else None


def is_complete(folder: Path, stages: Iterable[str]) -> bool:
    """Return whether every planned image of a run folder is there, byte for byte.

    If `stages` ask for scores and the run has a judge, all images must be scored, too, the features
    that scores speak of be there, and images be measured by the run's metrics.
    """
    try:
        run = read_run(folder)
    except UserError:
        return False
    needs_scores = "score" in stages and run.is_judged
    unscored = run.planned.keys() - run.scores.keys()
    if not run.complete or (needs_scores and unscored):
        return False
    if needs_scores and not all(has_features(folder, score) for score in run.scores.values()):
        return False
    if "score" in stages and not all(run.is_measured(name) for name in run.metrics):
        return False
    return all(is_intact(folder, record) for record in run.done.values())


def key_point(overrides: Iterable[str], searched: Iterable[str]) -> str:
    """Name a point without composing its configuration.

    The key is made of what was asked for, and of all of the project that could change it;
    `searched` are further folders of configuration. A key that differs without need costs little:
    the point is built then, and found complete by its fingerprint.
    """
    named = sorted(override for override in overrides if not is_command_option(override))
    endpoint = [os.environ.get(name, "") for name in ENDPOINT_VARIABLES]
    project = _hash_project(tuple(searched))
    return digest(dump([named, endpoint, project]).encode(), 16)


def hash_results(results: Path, about: Sequence[str]) -> str:
    """Hash all that a report of a results folder follows from.

    That is the run folders' journals, the project, and `about`: what was asked for.
    """
    journals: list[tuple[str, int, int]] = []
    for run in find_runs(results):
        for path in sorted(run.glob("[!.]*.*")):
            if path.is_file() and not path.name.startswith(PLAIN_DISTANCE):
                name = str(path.relative_to(results))
                journals.append((name, *stat_file(path)))
    project = _hash_project(())
    return digest(dump([journals, list(about), project]).encode())


@lru_cache(maxsize=4)
def _hash_project(searched: tuple[str, ...]) -> str:
    """Hash code, configuration and shipped weights, by name, size and time of change."""
    states: list[tuple[str, int, int]] = []
    for folder in (*OWN_PACKAGES, *map(Path, searched)):
        states += [(name, *stat) for name, stat in walk_files(folder)]
    return digest(dump(states).encode(), 16)


# ------------------------------------------------------------------ files that a point reads


def find_outside_files(config: Any) -> dict[str, list[int]]:
    """Find the files and folders outside the project that a plain configuration names.

    The source of plug-ins is among them. Returns the state of each (see `state_of`).
    """
    named = [Path(text).expanduser() for text in _list_texts(config)]
    found: dict[str, list[int]] = {}
    for path in [*named, *find_plugin_files(config).values()]:
        with suppress(OSError, ValueError):
            if path.exists() and not is_own(path):
                found[str(path)] = state_of(path)
    return found


def _list_texts(config: Any) -> Iterator[str]:
    """List the texts of a nested configuration."""
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _list_texts(value)
    elif isinstance(config, list):
        for value in config:
            yield from _list_texts(value)
    elif isinstance(config, str) and config:
        yield config


# ------------------------------------------------------------------ states of files


class FileStat(NamedTuple):
    """Size and time of change of a file."""

    size: int
    changed_ns: int


def has_changed(path: str, state: Sequence[int]) -> bool:
    """Return whether a file or folder is no longer in that state."""
    try:
        return state_of(Path(path)) != list(state)
    except OSError:
        return True


def state_of(path: Path) -> list[int]:
    """Return size, last time of change and number of files, of a file or of all below a folder."""
    if not path.is_dir():
        return [*stat_file(path), 1]
    stats = [stat for _, stat in walk_files(path)]
    size = sum(stat.size for stat in stats)
    last = max((stat.changed_ns for stat in stats), default=0)
    return [size, last, len(stats)]


def walk_files(folder: Path) -> Iterator[tuple[str, FileStat]]:
    """List all files below a folder, by name, without compiled Python."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(folder)), stat_file(path)


def stat_file(path: Path) -> FileStat:
    """Read size and time of change of a file."""
    stat = path.stat()
    return FileStat(stat.st_size, stat.st_mtime_ns)
