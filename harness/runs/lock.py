"""Who writes a run folder: shards of its jobs, and one lock per shard."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from harness.records import (
    UserError,
    dump,
)
from harness.runs.journal import _Row

PROBES = 4
"""Attempts at a lock: who asks for its holder takes it for a moment."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shares of a run's jobs: every count-th, from the index-th on. Results have no
    trace of it.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read "i/n". Raises UserError for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", str(text))
        if not found or int(found[1]) >= int(found[2]):
            raise UserError(
                f"shard={text}: write i/n, the i-th of n shares with i from 0 to n - 1, such as 0/2"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, jobs: Sequence[_Row]) -> Sequence[_Row]:
        """Its share."""
        return jobs[self.index :: self.count]

    @property
    def records(self) -> str:
        return f"records-{self.index}.jsonl"

    @property
    def scores(self) -> str:
        return f"scores-{self.index}.jsonl" if self.index else "scores.jsonl"

    @property
    def timings(self) -> str:
        return f"timings-{self.index}.jsonl"

    @property
    def lock(self) -> str:
        return f".lock-{self.index}"


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that writes a run folder now."""

    shard: str
    pid: int
    host: str
    since: float  # seconds since 1970, by its own clock
    done: int  # images of its share that were there when it began


def writers(folder: Path) -> list[Writer]:
    """Who holds a lock of a run folder."""
    return [writer for lock in sorted(folder.glob(".lock-*")) if (writer := _holder(lock))]


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is inside; for moments only."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _taken(folder: Path, shard: Shard) -> IO[str]:
    """The lock of a share. Raises UserError if somebody has it, or writes other shares than those
    of `shard.count`.
    """
    for writer in writers(folder):
        if Shard.parse(writer.shard).count != shard.count:
            raise UserError(
                f"{folder} is being written in shares {writer.shard}: wait for them, or take as many"
            )
    lock = (folder / shard.lock).open("a+")
    for attempt in range(PROBES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _introduce(lock, shard, done=0)
            return lock
        except OSError as error:
            if attempt + 1 == PROBES:
                lock.close()
                raise UserError(
                    f"{folder} is being written by another process: wait for it, or stop it"
                ) from error
            time.sleep(0.1)  # somebody may only be looking who writes
    raise AssertionError


def _introduce(lock: IO[str], shard: Shard, done: int) -> None:
    writer = Writer(str(shard), os.getpid(), socket.gethostname(), time.time(), done)
    lock.truncate(0)
    lock.write(dump(dataclasses.asdict(writer)))
    lock.flush()


def _holder(lock: Path) -> Writer | None:
    """Who holds a lock; a holder that has not said so yet counts as nobody."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            with suppress(ValueError, TypeError):
                return Writer(**json.loads(file.read()))
    return None
