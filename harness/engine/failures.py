"""Say why something failed in code that somebody wrote: the causes in a chain, and the place."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from harness.records import one_line

MOST_CAUSES = 4
"""Causes that are told, at most."""
_PACKAGE = Path(__file__).resolve().parent.parent
_LIBRARIES = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")
)


def describe_causes(error: BaseException) -> str:
    """Describe an error by its type and message, and what it was raised from, in one line."""
    told = [f"{type(one).__name__}: {one_line(one)}".strip(": ") for one in _list_causes(error)]
    return ", because of ".join(told)


def locate_failure(error: BaseException) -> str:
    """Name the innermost place of an error in code that is neither ours nor a library's.

    It reads "mine/method.py, line 12, in generate"; "" if no such code took part.
    """
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename).resolve()
        if path.is_file() and not any(path.is_relative_to(one) for one in (_PACKAGE, *_LIBRARIES)):
            place = f"{_shorten(path)}, line {frame.lineno}, in {frame.name}"
    return place


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    """List an error and what it was raised from, the outermost first."""
    following: BaseException | None = error
    for _ in range(MOST_CAUSES):
        if following is None:
            return
        yield following
        implied = None if following.__suppress_context__ else following.__context__
        following = following.__cause__ or implied


def _shorten(path: Path) -> Path:
    """Return a path as it reads from the working directory, if it lies below that."""
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path
