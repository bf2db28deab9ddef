"""Run a conformance file: cases with the answers of the reference scripts.

Some cases are counts of the judge answers that the reference's authors released.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.cases import compare, run_cases
from benchmarks.tiif.answers import read_fairly, read_strictly
from benchmarks.tiif.scores import LENGTHS, OFFICIAL, matches, weighted_mean
from benchmarks.tiif.text import gned, read_words, recall

LEVELS = {
    "basic_overall": "basic",
    "advanced_overall": "advanced",
    "real_world_overall": "designer",
}
"""Our names of the levels, by the reference's."""
UNROUNDED = 1.5e-4
"""How far the reference's double rounding can lead it from the exact mean."""

Counts = Mapping[str, Mapping[str, Sequence[int]]]
"""Numbers of right and of all answers, by dimension and length; released ones count images, too."""
Column = tuple[str, str, str]
"""A model, a dimension and a length."""


def _run_case(case: Mapping[str, Any]) -> Iterator[str]:
    kind = "released" if "counts" in case else case["kind"]
    if kind not in CASES:
        raise ValueError(f"unknown kind {kind!r}")
    return CASES[kind](case)


conformance = partial(run_cases, find_differences=_run_case)
"""Run the cases of a file; return passed, failed, and a message per failed case."""


# --- replies --------------------------------------------------------------------------------------


def _run_answers(case: Mapping[str, Any]) -> Iterator[str]:
    """Our own reading must be the reference's wherever the reference reads anything."""
    reply = case["reply"]
    questions = case["num_questions"]
    expected = case["expected"]["answers"]
    wanted = None if expected is None else tuple(expected)
    yield from compare("the strict reading", read_strictly(reply, questions), wanted)
    if wanted is not None:
        yield from compare("the fair reading", read_fairly(reply, questions), wanted)


# --- scores ---------------------------------------------------------------------------------------


def _run_aggregate(case: Mapping[str, Any]) -> Iterator[str]:
    counts = _count_answers(case["records"])
    expected = case["expected"]
    yield from _compare_columns(counts, expected["attributes"])

    means = {model: _mean_accuracy(of_model) for model, of_model in counts.items()}
    for model, mean in expected["mean_accuracy"].items():
        yield from compare(f"mean accuracy of {model}", means[model], mean, UNROUNDED)
    by_mean = sorted(means, key=lambda model: -(means[model] or 0.0))
    yield from compare("the order of the models", by_mean, expected["model_order"])
    for model, groups in expected["groups"].items():
        yield from _compare_groups(counts[model], groups)


def _run_released(case: Mapping[str, Any]) -> Iterator[str]:
    mean = _mean_accuracy(case["counts"])
    yield from compare("mean accuracy", mean, case["mean_accuracy"], UNROUNDED)
    yield from _compare_groups(case["counts"], case["groups"])


def _count_answers(
    records: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, dict[str, list[int]]]]:
    """Count right and all answers by model, dimension and length."""
    counts: dict[str, dict[str, dict[str, list[int]]]] = {}
    for record in records:
        of_model = counts.setdefault(record["model"], {})
        of_dimension = of_model.setdefault(record["attribute"], {})
        cell = of_dimension.setdefault(record["length"], [0, 0])
        for answer, wanted in zip(record["model_pred"], record["gt_answers"], strict=False):
            cell[0] += matches(answer, wanted)
            cell[1] += 1
    return counts


def _compare_columns(
    counts: Mapping[str, Counts], expected: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    cells: dict[Column, Sequence[int]] = {}
    for model, of_model in counts.items():
        for dimension, of_dimension in of_model.items():
            for length, cell in of_dimension.items():
                cells[model, dimension, length] = cell
    rows = {(row["model"], row["attribute"], row["length"]): row for row in expected}

    yield from compare("the columns", sorted(cells), sorted(rows))
    for column, row in rows.items():
        correct, total = cells.get(column, (0, 0))
        wanted = (row["correct"], row["total"])
        yield from compare(f"correct and total of {column}", (correct, total), wanted)
        accuracy = round(correct / total, 4) if total else None
        yield from compare(f"accuracy of {column}", accuracy, row["accuracy"], 1e-9)


def _compare_groups(counts: Counts, expected: Mapping[str, Any]) -> Iterator[str]:
    for length in LENGTHS:
        accuracy = _accuracy_by_dimension(counts, length)
        values = dict(accuracy)
        for name, weights in OFFICIAL.means(accuracy).items():
            values[name] = weighted_mean(weights, accuracy)
        for key, by_length in expected.items():
            value = values.get(LEVELS.get(key, key))
            yield from compare(f"{length} {key}", value, by_length[length], UNROUNDED)


def _accuracy_by_dimension(counts: Counts, length: str) -> dict[str, float]:
    accuracy = {}
    for dimension, by_length in counts.items():
        correct, total, *_ = by_length.get(length, (0, 0))
        if total:
            accuracy[dimension] = correct / total
    return accuracy


def _mean_accuracy(counts: Counts) -> float | None:
    """Average over all columns of a model, that is over its dimensions in each length."""
    columns = [
        value for length in LENGTHS for value in _accuracy_by_dimension(counts, length).values()
    ]
    return sum(columns) / len(columns) if columns else None


# --- rendered text --------------------------------------------------------------------------------


def _run_text_metrics(case: Mapping[str, Any]) -> Iterator[str]:
    wanted = case["ground_truth"]
    words = read_words(case["ocr"])
    expected = case["expected"]
    yield from compare("gned", gned(wanted, words), expected["gned"], 1e-9)
    yield from compare("recall", recall(wanted, words), expected["recall"], 1e-9)


def _run_text_file(case: Mapping[str, Any]) -> Iterator[str]:
    got: dict[str, list[float]] = {}
    for item in case["items"]:
        wanted = [word.lower() for word in item["text"]]
        for length in LENGTHS:
            regions = item[f"{length}_image_ocr_results"] or []
            words = read_words([text for _, (text, _) in regions])
            distances = got.setdefault(f"GNED_score_{length}", [])
            distances.append(gned(wanted, words))
            recalls = got.setdefault(f"Recall_score_{length}", [])
            recalls.append(recall(wanted, words) or 0.0)
    for name, values in got.items():
        mean = sum(values) / len(values)
        yield from compare(name, mean, case["expected"][name], 1e-9)


CASES = {
    "parse_answers": _run_answers,
    "aggregate": _run_aggregate,
    "released": _run_released,
    "text_metrics": _run_text_metrics,
    "text_file": _run_text_file,
}
