"""Reading JSON Lines files that people wrote: every complaint names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.records import UserError


def bad_line(path: Path, number: int, problem: str) -> UserError:
    """The error for line `number` (counted from 1) of a file."""
    return UserError(f"{path}, line {number}: {problem}")


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and JSON objects of a file; it must hold at least one and no blank
    lines between them.
    """
    try:
        lines = path.read_bytes().rstrip().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if lines == [b""]:
        raise UserError(f"{path}: the file is empty; expected one JSON object a line")
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = "blank line" if not line.strip() else f"not valid JSON ({error})"
            raise bad_line(path, number, what) from None
        if not isinstance(value, dict):
            raise bad_line(path, number, f"expected a JSON object, found {type(value).__name__}")
        yield number, value


def run_cases(
    path: Path, differences: Callable[[dict[str, Any]], Iterable[str]]
) -> tuple[int, int, list[str]]:
    """Passed and failed conformance cases of a file, and one message per failed case.

    `differences` says where our answer to a case is not the expected one. Raises UserError naming
    the line of a case that is malformed.
    """
    failures = []
    total = 0
    for number, case in read_objects(path):
        try:
            found = list(differences(case))
        except KeyError as error:
            raise bad_line(path, number, f"{error} is missing") from None
        except (ValueError, TypeError, AttributeError, IndexError, UserError) as error:
            raise bad_line(path, number, f"not a conformance case: {error}") from None
        total += 1
        if found:
            failures.append(f"line {number}, {case.get('id', 'no id')}: {'; '.join(found)}")
    return total - len(failures), len(failures), failures
