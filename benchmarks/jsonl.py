"""Read JSON Lines files that people wrote: every complaint names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.records import UserError


def bad_line(path: Path, number: int, problem: str) -> UserError:
    """Make the error for line `number` (counted from 1) of a file."""
    return UserError(f"{path}, line {number}: {problem}")


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number (from 1) and the JSON object of each line.

    Raises UserError for a file that is empty or cannot be read, for a blank line between objects,
    and for a line that holds anything but a JSON object.
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
            problem = f"not valid JSON ({error})" if line.strip() else "blank line"
            raise bad_line(path, number, problem) from None
        if not isinstance(value, dict):
            raise bad_line(path, number, f"expected a JSON object, found {type(value).__name__}")
        yield number, value


def run_cases(
    path: Path, find_differences: Callable[[dict[str, Any]], Iterable[str]]
) -> tuple[int, int, list[str]]:
    """Run the conformance cases of a file; return passed, failed, and a message per failed case.

    `find_differences` describes each difference between our answer to a case and the expected one.
    Raises UserError naming the line of a malformed case.
    """
    messages = []
    total = 0
    for number, case in read_objects(path):
        try:
            differences = list(find_differences(case))
        except KeyError as error:
            raise bad_line(path, number, f"{error} is missing") from None
        except (ValueError, TypeError, AttributeError, IndexError, UserError) as error:
            raise bad_line(path, number, f"not a conformance case: {error}") from None

        total += 1
        if differences:
            case_id = case.get("id", "no id")
            messages.append(f"line {number}, {case_id}: {'; '.join(differences)}")
    failed = len(messages)
    return total - failed, failed, messages
