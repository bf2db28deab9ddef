"""Run a conformance file: cases with the answers that the reference evaluator gave.

Two kinds of case are told apart by their fields: `detections` in, a verdict out; or result `rows`
in, a summary out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.boxes import read_detection
from benchmarks.cases import compare, run_cases
from benchmarks.geneval.prompts import row_problem
from benchmarks.geneval.summary import parse_result, summarize
from benchmarks.geneval.verdict import Options, verdict

TOLERANCE = 1e-9
"""Of scores."""


def _run_case(case: Mapping[str, Any]) -> Iterator[str]:
    if "detections" in case:
        return _run_verdict(case)
    if "rows" in case:
        return _run_summary(case)
    raise ValueError("expected 'detections' (a verdict case) or 'rows' (a summary case)")


conformance = partial(run_cases, find_differences=_run_case)
"""Run the cases of a file; return passed, failed, and a message per failed case."""


def _run_verdict(case: Mapping[str, Any]) -> Iterator[str]:
    if problem := row_problem(case["metadata"]):
        raise ValueError(f"metadata: {problem}")
    detections = list(map(read_detection, case["detections"]))
    colors = [row.get("color") or "no color" for row in case["detections"]]

    def color_of(_: str, indices: Sequence[int]) -> list[str]:
        """Answer as the color classifier would: a detection of a case has its color."""
        return [colors[i] for i in indices]

    options = Options(**case.get("options", {}))
    decision = verdict(detections, case["metadata"], color_of, options)
    got = {
        "correct": decision.correct,
        "reason": "\n".join(decision.reasons),
        "kept": decision.kept,
        "color_checked": [[name, list(indices)] for name, indices in decision.color_checked],
    }
    for name, value in got.items():
        yield from compare(name, value, case["expected"][name])


def _run_summary(case: Mapping[str, Any]) -> Iterator[str]:
    got = summarize(parse_result(row) for row in case["rows"])
    expected = case["expected"]
    for name in ("total_images", "total_prompts"):
        yield from compare(name, getattr(got, name), expected[name])
    for name in ("image_accuracy", "prompt_accuracy", "overall"):
        yield from compare(name, getattr(got, name), expected[name], TOLERANCE)

    tasks = [[task.tag, task.correct, task.total] for task in got.tasks]
    wanted_tasks = [[task["tag"], task["correct"], task["total"]] for task in expected["tasks"]]
    yield from compare("tasks", tasks, wanted_tasks)
    for task, wanted in zip(got.tasks, expected["tasks"], strict=False):
        yield from compare(f"score of {task.tag}", task.score, wanted["score"], TOLERANCE)
    yield from compare("printed lines", got.lines(), expected["printed"])
