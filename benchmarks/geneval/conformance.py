"""Run a conformance file: cases with the answers that the reference evaluator gave.

Two kinds of case are told apart by their fields: `detections` in, a verdict out; or result `rows`
in, a summary out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.geneval.prompts import row_problem
from benchmarks.geneval.summary import parse_result, summarize
from benchmarks.geneval.verdict import Options, verdict
from benchmarks.jsonl import run_cases


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Run the cases of a file; return passed, failed, and a message per failed case.

    Raises UserError naming the line of a malformed case.
    """
    return run_cases(Path(path), _run_case)


@dataclass(frozen=True, slots=True)
class _CaseDetection:
    """Hold a detection of a case; `color` is what the color classifier would answer for it."""

    name: str
    box: tuple[float, ...]
    score: float
    color: str | None


def _run_case(case: Mapping[str, Any]) -> Iterator[str]:
    if "detections" in case:
        return _run_verdict(case)
    if "rows" in case:
        return _run_summary(case)
    raise ValueError("expected 'detections' (a verdict case) or 'rows' (a summary case)")


def _run_verdict(case: Mapping[str, Any]) -> Iterator[str]:
    if problem := row_problem(case["metadata"]):
        raise ValueError(f"metadata: {problem}")
    detections = [_read_detection(detection) for detection in case["detections"]]

    def color_of(_: str, indices: Sequence[int]) -> list[str]:
        return [detections[i].color or "no color" for i in indices]

    options = Options(**case.get("options", {}))
    decision = verdict(detections, case["metadata"], color_of, options)
    got = {
        "correct": decision.correct,
        "reason": "\n".join(decision.reasons),
        "kept": decision.kept,
        "color_checked": [[name, list(indices)] for name, indices in decision.color_checked],
    }
    for name, value in got.items():
        yield from _compare(name, value, case["expected"][name])


def _read_detection(detection: Mapping[str, Any]) -> _CaseDetection:
    box = tuple(float(corner) for corner in detection["box"])
    if len(box) != 4:
        raise ValueError(f"a box has four corners, found {detection['box']!r}")
    score = float(detection["score"])
    return _CaseDetection(detection["class"], box, score, detection.get("color"))


def _run_summary(case: Mapping[str, Any]) -> Iterator[str]:
    got = summarize(parse_result(row) for row in case["rows"])
    expected = case["expected"]
    for name in ("total_images", "total_prompts"):
        yield from _compare(name, getattr(got, name), expected[name])
    for name in ("image_accuracy", "prompt_accuracy", "overall"):
        yield from _compare_close(name, getattr(got, name), expected[name])

    tasks = [[task.tag, task.correct, task.total] for task in got.tasks]
    wanted_tasks = [[task["tag"], task["correct"], task["total"]] for task in expected["tasks"]]
    yield from _compare("tasks", tasks, wanted_tasks)
    for task, wanted in zip(got.tasks, expected["tasks"], strict=False):
        yield from _compare_close(f"score of {task.tag}", task.score, wanted["score"])
    yield from _compare("printed lines", got.lines(), expected["printed"])


def _compare(what: str, got: object, expected: object) -> Iterator[str]:
    if got != expected:
        yield f"{what} is {got!r}, expected {expected!r}"


def _compare_close(what: str, got: float, expected: float) -> Iterator[str]:
    if not math.isclose(got, expected, rel_tol=0, abs_tol=1e-9):
        yield f"{what} is {got!r}, expected {expected!r}"
