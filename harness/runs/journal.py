"""Append-only journals, and files that a reader sees whole or not at all."""

from __future__ import annotations

import fcntl
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from harness.records import UserError, one_line

_Row = TypeVar("_Row")


# ------------------------------------------------------------------ writing


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, sees either nothing or all of it.

    Raises UserError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with explain_write_errors(path):
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


def append_line(file: IO[bytes], line: str) -> None:
    """Append a line to an open journal; when this returns, it is on disk."""
    with explain_write_errors(Path(file.name)):
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def append_shared_line(path: Path, line: str) -> None:
    """Append a line to a journal that several processes write: whole, and behind whole ones."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            cut_torn_line(path)
            append_line(file, line)


def cut_torn_line(path: Path) -> None:
    """Cut off the torn last line of a journal that is about to be appended to."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Raise UserError instead of OSError: a full or read-only disk is for the user to mend."""
    try:
        yield
    except OSError as error:
        reason = one_line(error.strerror or error)
        raise UserError(
            f"{path}: cannot be written ({reason}): make room or choose another results=, "
            "then run the same command again"
        ) from error


# ------------------------------------------------------------------ reading


def find_journals(folder: Path, name: str) -> list[Path]:
    """List a run folder's files of a name, packed ones too (.gz).

    A star stands for the number of a shard ("records-*.jsonl"), so that a backup beside them, such
    as "records-0 (copy).jsonl", is not read. Without any, it is the one that would be there,
    `folder / name`.
    """
    pattern = re.escape(name).replace(r"\*", r"(-?\d+)?")
    found = [path for path in folder.iterdir() if re.fullmatch(rf"{pattern}(\.gz)?", path.name)]
    return sorted(found) or [folder / name]


def read_journals(folder: Path, name: str, parse: Callable[[str], _Row]) -> Iterator[_Row]:
    """Parse the lines of a run folder's files of a name; without any, there are none."""
    for path in find_journals(folder, name):
        if path.exists():
            yield from read_lines(path, parse)


def read_lines(path: Path, parse: Callable[[str], _Row]) -> Iterator[_Row]:
    """Parse the lines of a journal, `.gz` or not; skip a torn last line, which a kill leaves.

    Raises UserError with the line number for any other line that cannot be read.
    """
    *lines, tail = _read_bytes(path).split(b"\n")
    for number, line in enumerate([*lines, tail] if tail else lines, start=1):
        try:
            yield parse(line.decode())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            is_torn = number > len(lines)
            if is_torn:
                return
            raise UserError(
                f"{path}, line {number}: cannot be read ({one_line(error)}); restore or delete it"
            ) from None


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        reason = one_line(getattr(error, "strerror", None) or error)
        raise UserError(f"{path}: cannot be read ({reason})") from None
