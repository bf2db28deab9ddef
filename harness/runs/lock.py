"""Share out a run folder among processes: shares of its jobs, and one lock per share."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar, Self, TypeVar

from harness.records import STRICT, UserError, dump, parse_row

ATTEMPTS = 4
"""Attempts at a lock: a process that asks who holds it takes it for a moment."""
PAUSE_S = 0.1
"""Between two attempts."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shares of a run's jobs: every count-th, from the index-th on.

    It is a matter of who computes what: results have no trace of it.
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

    def of(self, jobs: Sequence[_Item]) -> Sequence[_Item]:
        """Return this share of jobs."""
        return jobs[self.index :: self.count]

    @property
    def records(self) -> str:
        return f"records-{self.index}.jsonl"

    @property
    def scores(self) -> str:
        return f"scores-{self.index}.jsonl" if self.index else "scores.jsonl"

    @property
    def metrics(self) -> str:
        return f"metrics-{self.index}.jsonl" if self.index else "metrics.jsonl"

    @property
    def timings(self) -> str:
        return f"timings-{self.index}.jsonl"

    @property
    def lock(self) -> str:
        return f".lock-{self.index}"


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that writes a run folder now."""

    __pydantic_config__: ClassVar = STRICT

    shard: str
    pid: int
    host: str
    since: float  # seconds since 1970, by its own clock
    done: int  # images of its share that were there when it began


def find_writers(folder: Path) -> list[Writer]:
    """List the processes that hold a lock of a run folder."""
    holders = (_read_holder(lock) for lock in sorted(folder.glob(".lock-*")))
    return [holder for holder in holders if holder is not None]


@contextmanager
def hold_lock(lock: Path) -> Iterator[None]:
    """Hold a lock file, after waiting until no other process does; for moments only."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def take_share(folder: Path, shard: Shard) -> IO[str]:
    """Take the lock of a share, and return its open file: the lock is held until that is closed.

    Raises UserError if another process has it, or writes shares of another number of them.
    """
    for writer in find_writers(folder):
        if Shard.parse(writer.shard).count != shard.count:
            raise UserError(
                f"{folder} is being written in shares {writer.shard}: "
                "wait for them, or take as many"
            )
    lock = (folder / shard.lock).open("a+")
    for attempt in range(ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_holder(lock, shard, done=0)
            return lock
        except OSError as error:
            if attempt + 1 == ATTEMPTS:
                lock.close()
                raise UserError(
                    f"{folder} is being written by another process: wait for it, or stop it"
                ) from error
            time.sleep(PAUSE_S)  # somebody may only be looking who writes
    raise AssertionError


def write_holder(lock: IO[str], shard: Shard, done: int) -> None:
    """Write into a lock that this process holds it, and how many images were there before."""
    writer = Writer(str(shard), os.getpid(), socket.gethostname(), time.time(), done)
    lock.truncate(0)
    lock.write(dump(dataclasses.asdict(writer)))
    lock.flush()


def _read_holder(lock: Path) -> Writer | None:
    """Return who holds a lock; None also for a holder that has not written so yet."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            with suppress(ValueError):
                return parse_row(Writer, file.read())
    return None
