"""Run conformance files: JSON Lines of cases, each with what a reference's own functions gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.jsonl import bad_line, is_number, read_objects
from harness.records import UserError


def run_cases(
    path: Path | str, find_differences: Callable[[dict[str, Any]], Iterable[str]]
) -> tuple[int, int, list[str]]:
    """Run the cases of a file; return passed, failed, and a message per failed case.

    `find_differences` describes each difference between our answer to a case and the expected one.
    Raises UserError naming the line of a malformed case.
    """
    file = Path(path)
    messages = []
    total = 0
    for number, case in read_objects(file):
        try:
            differences = list(find_differences(case))
        except KeyError as error:
            raise bad_line(file, number, f"{error} is missing") from None
        except (ValueError, TypeError, AttributeError, IndexError, UserError) as error:
            raise bad_line(file, number, f"not a conformance case: {error}") from None

        total += 1
        if differences:
            case_id = case.get("id", "no id")
            messages.append(f"line {number}, {case_id}: {'; '.join(differences)}")
    failed = len(messages)
    return total - failed, failed, messages


def compare(what: str, got: Any, expected: Any, tolerance: float = 0.0) -> Iterator[str]:
    """Describe the difference of an answer from the expected one; nothing if they agree."""
    if not agree(got, expected, tolerance):
        yield f"{what} is {got!r}, expected {expected!r}"


def agree(got: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Compare numbers within a tolerance, also in lists, and all else exactly."""
    if isinstance(expected, list) and isinstance(got, list):
        if len(got) != len(expected):
            return False
        return all(agree(a, b, tolerance) for a, b in zip(got, expected, strict=True))
    if is_number(expected) and is_number(got):
        return math.isclose(got, expected, rel_tol=0, abs_tol=tolerance)
    return type(got) is type(expected) and bool(got == expected)
