"""Read JSON Lines files that people wrote: every complaint names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


def is_number(value: object) -> bool:
    """Tell whether a JSON value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
