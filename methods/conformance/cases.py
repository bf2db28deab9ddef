"""Runs a conformance file of JSON lines: one case a line, with `kind`, `input` and `expected`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import UserError

Rule = Callable[[Mapping[str, Any]], dict[str, Any]]
"""From a case's input to our results, by the names of the expected ones."""

Differences = Callable[[Mapping[str, Any], Mapping[str, Any]], Iterator[str]]
"""(our results, expected results) -> what differs, in words."""


def check_cases(
    path: Path | str, rules: Mapping[str, Rule], differences: Differences
) -> tuple[int, int, list[str]]:
    """Run every case by the rule of its kind; return passed, failed, a message per failed case.

    Raises UserError that names the line of a malformed case.
    """
    failures = []
    lines = _read_lines(path)
    for number, line in enumerate(lines, start=1):
        try:
            case = json.loads(line)
            results = rules[case["kind"]](case["input"])
            found = list(differences(results, case["expected"]))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}, line {number}: not a conformance case ({what})") from None
        if found:
            case_id = case.get("id", f"line {number}")
            failures.append(f"{case_id} ({case.get('name', '')}): {found[0]}")
    return len(lines) - len(failures), len(failures), failures


def _read_lines(path: Path | str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
