"""Append-only journals, and files that a reader sees whole or not at all."""

from __future__ import annotations

import fcntl
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from harness.records import (
    UserError,
    one_line,
)

_Row = TypeVar("_Row")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, sees either nothing or all of it. Raises UserError
    where it cannot.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def append(path: Path, line: str) -> None:
    """Append a line to a journal that several processes write: whole, and behind whole ones."""
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _mend(path)
            _append(file, line)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """A full or read-only disk is for the user to mend: raises UserError instead of OSError."""
    try:
        yield
    except OSError as error:
        why = one_line(error.strerror or error)
        raise UserError(
            f"{path}: cannot be written ({why}): make room or choose another results=, then run the same command again"
        ) from error


def read_lines(path: Path, parse: Callable[[str], _Row]) -> Iterator[_Row]:
    """Parsed lines of a journal, `.gz` or not; a torn last line, left by a kill, is passed over.

    Raises UserError with the line number for any other line that cannot be read.
    """
    try:
        data = path.read_bytes()
        *lines, tail = (gzip.decompress(data) if path.suffix == ".gz" else data).split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(getattr(error, 'strerror', None) or error)})"
        ) from None
    for number, line in enumerate([*lines, tail] if tail else lines, start=1):
        try:
            yield parse(line.decode())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number > len(lines):
                return
            raise UserError(
                f"{path}, line {number}: cannot be read ({one_line(error)}); restore or delete it"
            ) from None


def journals(folder: Path, name: str) -> list[Path]:
    """A run folder's files of that name ("records-*.jsonl": every shard), packed ones (`.gz`) among
    them.
    """
    found = sorted([*folder.glob(name), *folder.glob(f"{name}.gz")])
    return found or [folder / name]


def _append(file: IO[bytes], line: str) -> None:
    with _writable(Path(file.name)):
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _mend(path: Path) -> None:
    """Cut off the torn last line of a journal that is about to be appended to."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
