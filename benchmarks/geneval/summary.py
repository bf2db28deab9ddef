"""Summarise a GenEval result file: one verdict per image to the numbers that the reference prints.

Reference: evaluation/summary_scores.py. The published "GenEval overall" is the unweighted mean of
the task scores. The reference leaves missing tasks out of it without a word; here they are named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.geneval.prompts import TASKS
from benchmarks.jsonl import bad_line, read_objects
from harness.records import UserError

FIELDS = ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")
"""The keys of a result file's row, in the reference's order."""
CHECKED_TYPES = {"filename": str, "tag": str, "prompt": str, "correct": bool, "metadata": str}
"""The keys that a row must have."""


@dataclass(frozen=True, slots=True)
class Result:
    """Hold one image of a result file."""

    filename: str
    tag: str
    prompt: str
    correct: bool
    metadata: str  # the metadata row as JSON; images with equal texts belong to one prompt
    reason: str = ""
    details: str = "{}"  # JSON: class -> [x1, y1, x2, y2, score] of the kept objects


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Hold the numbers of correct and of all images of a task."""

    tag: str
    correct: int
    total: int

    @property
    def score(self) -> float:
        return self.correct / self.total


@dataclass(frozen=True, slots=True)
class Summary:
    """Hold the reference's numbers; `tasks` are in order of first appearance."""

    total_images: int
    total_prompts: int
    image_accuracy: float  # micro: share of correct images
    prompt_accuracy: float  # share of prompts with a correct image: pass@k, not an average
    tasks: tuple[TaskScore, ...]

    @property
    def overall(self) -> float:
        """Mean score of the tasks that have images.

        It is comparable with published numbers only if no task is missing.
        """
        return sum(task.score for task in self.tasks) / len(self.tasks)

    @property
    def missing(self) -> tuple[str, ...]:
        """List the tasks without an image."""
        present = {task.tag for task in self.tasks}
        return tuple(tag for tag in TASKS if tag not in present)

    def lines(self) -> list[str]:
        """Format the lines that the reference prints."""
        tasks = [
            f"{task.tag:<16} = {task.score:.2%} ({task.correct} / {task.total})"
            for task in self.tasks
        ]
        return [
            "Summary",
            "=======",
            f"Total images: {self.total_images}",
            f"Total prompts: {self.total_prompts}",
            f"% correct images: {self.image_accuracy:.2%}",
            f"% correct prompts: {self.prompt_accuracy:.2%}",
            "",
            "Task breakdown",
            "==============",
            *tasks,
            "",
            f"Overall score (avg. over tasks): {self.overall:.5f}",
        ]

    def __str__(self) -> str:
        partial = [f"PARTIAL: no image of {', '.join(self.missing)}"] if self.missing else []
        return "\n".join([*self.lines(), *partial])


def summarize(results: Iterable[Result]) -> Summary:
    """Add up the rows of a result file. Raises UserError if there are none."""
    results = list(results)
    if not results:
        raise UserError("no results to summarize: score at least one image first")

    solved: dict[str, bool] = {}  # by prompt: True if any of its images is correct
    tasks: dict[str, list[bool]] = {}
    for result in results:
        solved[result.metadata] = solved.get(result.metadata, False) or result.correct
        tasks.setdefault(result.tag, []).append(result.correct)

    return Summary(
        total_images=len(results),
        total_prompts=len(solved),
        image_accuracy=sum(result.correct for result in results) / len(results),
        prompt_accuracy=sum(solved.values()) / len(solved),
        tasks=tuple(TaskScore(tag, sum(correct), len(correct)) for tag, correct in tasks.items()),
    )


def read_results(path: Path | str) -> list[Result]:
    """Read the rows of a result file as the reference writes it.

    Raises UserError naming file, line and problem.
    """
    path = Path(path)
    results = []
    for number, row in read_objects(path):
        try:
            results.append(parse_result(row))
        except ValueError as error:
            raise bad_line(path, number, str(error)) from None
    return results


def format_result(result: Result) -> str:
    """Format a line of a result file, byte for byte as the reference writes it."""
    row = {key: getattr(result, key) for key in FIELDS}
    return json.dumps(row, separators=(",", ":")).replace("/", "\\/") + "\n"


def parse_result(row: object) -> Result:
    """Check one row of a result file; keys that the reference does not write are ignored.

    Raises ValueError naming the problem.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {row!r}")
    values: dict[str, Any] = {key: row[key] for key in Result.__slots__ if key in row}
    for key, kind in CHECKED_TYPES.items():
        if not isinstance(values.get(key), kind):
            raise ValueError(f"'{key}' must be a {kind.__name__}, found {values.get(key)!r}")
    if values["tag"] not in TASKS:
        raise ValueError(f"unknown tag {values['tag']!r}; the tags are {', '.join(TASKS)}")
    return Result(**values)
