"""Runs a conformance file: cases whose answers the reference scripts gave, and counts of released
judge answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.jsonl import run_cases
from benchmarks.tiif.answers import read_fairly, read_strictly
from benchmarks.tiif.scores import LENGTHS, OFFICIAL, matches, weighted
from benchmarks.tiif.text import gned, read_words, recall

KEYS = {"basic_overall": "basic", "advanced_overall": "advanced", "real_world_overall": "designer"}
"""The reference's names of our levels."""
UNROUNDED = 1.5e-4
"""How far the reference's double rounding can lead it from the exact mean."""


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Passed, failed, and one message per failed case. Raises UserError naming the line of a case
    that is malformed.
    """
    return run_cases(Path(path), _run)


def _run(case: Mapping[str, Any]) -> Iterator[str]:
    kind = "released" if "counts" in case else case["kind"]
    if kind not in CASES:
        raise ValueError(f"unknown kind {kind!r}")
    return CASES[kind](case)


def _answers(case: Mapping[str, Any]) -> Iterator[str]:
    """Our own reading must be the reference's wherever the reference reads anything."""
    reply = case["reply"]
    questions = case["num_questions"]
    expected = case["expected"]["answers"]
    wanted = None if expected is None else tuple(expected)
    yield from _compare("the strict reading", read_strictly(reply, questions), wanted)
    if wanted is not None:
        yield from _compare("the fair reading", read_fairly(reply, questions), wanted)


def _aggregate(case: Mapping[str, Any]) -> Iterator[str]:
    counts: dict[str, dict[str, dict[str, list[int]]]] = {}
    for record in case["records"]:
        cell = counts.setdefault(record["model"], {}).setdefault(record["attribute"], {})
        correct, total = cell.get(record["length"], (0, 0))
        judged = list(zip(record["model_pred"], record["gt_answers"], strict=False))
        correct += sum(matches(answer, wanted) for answer, wanted in judged)
        cell[record["length"]] = [correct, total + len(judged)]
    expected = case["expected"]
    cells = {
        (model, attribute, length): cell
        for model, attributes in counts.items()
        for attribute, lengths in attributes.items()
        for length, cell in lengths.items()
    }
    wanted = {
        (row["model"], row["attribute"], row["length"]): row for row in expected["attributes"]
    }
    yield from _compare("the columns", sorted(cells), sorted(wanted))
    for key, row in wanted.items():
        correct, total = cells.get(key, (0, 0))
        yield from _compare(
            f"correct and total of {key}", (correct, total), (row["correct"], row["total"])
        )
        yield from _close(
            f"accuracy of {key}",
            round(correct / total, 4) if total else None,
            row["accuracy"],
            1e-9,
        )
    means = {model: _mean(model_counts) for model, model_counts in counts.items()}
    for model, mean in expected["mean_accuracy"].items():
        yield from _close(f"mean accuracy of {model}", means[model], mean, UNROUNDED)
    by_mean = sorted(means, key=lambda model: -(means[model] or 0.0))
    yield from _compare("the order of the models", by_mean, expected["model_order"])
    for model, groups in expected["groups"].items():
        yield from _groups(counts[model], groups)


def _released(case: Mapping[str, Any]) -> Iterator[str]:
    yield from _close("mean accuracy", _mean(case["counts"]), case["mean_accuracy"], UNROUNDED)
    yield from _groups(case["counts"], case["groups"])


def _groups(
    counts: Mapping[str, Mapping[str, Sequence[int]]], expected: Mapping[str, Any]
) -> Iterator[str]:
    for length in LENGTHS:
        accuracy = _accuracy(counts, length)
        means = {
            name: weighted(share, accuracy) for name, share in OFFICIAL.means(accuracy).items()
        }
        for key, by_length in expected.items():
            name = KEYS.get(key, key)
            got = means[name] if name in means else accuracy.get(name)
            yield from _close(f"{length} {key}", got, by_length[length], UNROUNDED)


def _accuracy(counts: Mapping[str, Mapping[str, Sequence[int]]], length: str) -> dict[str, float]:
    cells = {name: lengths[length] for name, lengths in counts.items() if length in lengths}
    return {name: cell[0] / cell[1] for name, cell in cells.items() if cell[1]}


def _mean(counts: Mapping[str, Mapping[str, Sequence[int]]]) -> float | None:
    """Mean over all columns, a dimension in a length each."""
    columns = [value for length in LENGTHS for value in _accuracy(counts, length).values()]
    return sum(columns) / len(columns) if columns else None


def _text_metrics(case: Mapping[str, Any]) -> Iterator[str]:
    words = read_words(case["ocr"])
    yield from _close("gned", gned(case["ground_truth"], words), case["expected"]["gned"], 1e-9)
    yield from _close(
        "recall", recall(case["ground_truth"], words), case["expected"]["recall"], 1e-9
    )


def _text_file(case: Mapping[str, Any]) -> Iterator[str]:
    got: dict[str, list[float]] = {}
    for item in case["items"]:
        wanted = [word.lower() for word in item["text"]]
        for length in LENGTHS:
            words = read_words([text for _, (text, _) in item[f"{length}_image_ocr_results"] or []])
            got.setdefault(f"GNED_score_{length}", []).append(gned(wanted, words))
            got.setdefault(f"Recall_score_{length}", []).append(recall(wanted, words) or 0.0)
    for name, values in got.items():
        yield from _close(name, sum(values) / len(values), case["expected"][name], 1e-9)


CASES = {
    "parse_answers": _answers,
    "aggregate": _aggregate,
    "released": _released,
    "text_metrics": _text_metrics,
    "text_file": _text_file,
}


def _compare(what: str, got: object, expected: object) -> Iterator[str]:
    if got != expected:
        yield f"{what} is {got!r}, expected {expected!r}"


def _close(what: str, got: float | None, expected: float | None, tolerance: float) -> Iterator[str]:
    same = got is None and expected is None
    if not same and (
        got is None
        or expected is None
        or not math.isclose(got, expected, rel_tol=0, abs_tol=tolerance)
    ):
        yield f"{what} is {got!r}, expected {expected!r}"
