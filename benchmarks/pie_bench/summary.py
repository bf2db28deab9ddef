"""Sum up a run: each metric's mean with an interval, per edit type, and against another run.

Published numbers are plain means over all images that have a value. Structure distance, PSNR and
CLIP are in scales of their own, so nothing sums them up.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.pie_bench.metrics import METRICS, NO_VALUE, SOURCE_SIMILARITY, Metric, average
from harness.records import Score, UserError
from harness.runs.read import Run

INFINITE = "infinite"
"""Entry of a score's detail: metrics that are infinite, which JSON has no number for."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean in the printed scale, its 95 % interval, and the images that it is of."""

    value: float
    low: float
    high: float
    images: int


def read_value(score: Score, name: str) -> float | None:
    """Return a metric of a score, infinite where it was; None without a value."""
    if name in score.detail.get(INFINITE, ()):
        return math.inf
    value: float | None = score.detail.get("metrics", {}).get(name)
    return value


def average_metric(scores: Sequence[Score], categories: Mapping[str, str], metric: Metric) -> Mean:
    """Average a metric over the images that have it; `categories` are those of the prompts."""
    values = [read_value(score, metric.name) for score in scores]
    mean, number = average(values)
    low, high = _find_interval(_tabulate(scores, categories, metric))
    factor = metric.factor
    return Mean(factor * mean, factor * low, factor * high, number)


def _tabulate(
    scores: Sequence[Score], categories: Mapping[str, str], metric: Metric
) -> pd.DataFrame:
    """Tabulate the finite values of a metric, as statistics read them."""
    rows = []
    for score in scores:
        value = read_value(score, metric.name)
        if value is not None and math.isfinite(value):
            rows.append((categories[score.prompt_id], score.prompt_id, score.image, value))
    return pd.DataFrame(rows, columns=["category", "prompt_id", "image", "value"])


def _find_interval(table: pd.DataFrame) -> tuple[float, float]:
    """Return the bootstrap interval of the plain mean; nan where an edit type has one image."""
    from harness.results import stats

    if table.empty:
        return math.nan, math.nan
    design = stats.Design(table)
    if not design.error_is_known:
        return math.nan, math.nan
    value_1P = stats.stack_prompt_means([table])
    draws_DC = design.bootstrap(value_1P)[:, 0]
    return stats.percentile_interval(draws_DC @ design.micro_weights())


# --- one run --------------------------------------------------------------------------------------


def summarise_metrics(scores: Sequence[Score], categories: Mapping[str, str]) -> Iterator[str]:
    """Format a line for each metric, then a table of the edit types."""
    if not scores:
        yield "no image was scored"
        return
    for metric in METRICS:
        mean = average_metric(scores, categories, metric)
        better = "larger" if metric.larger_is_better else "smaller"
        yield (
            f"{metric.title:<26} {mean.value:8.2f} {_format_interval(mean)}, "
            f"{mean.images} images, {better} is better"
        )
    untouched = sum("psnr_unedit_part" in score.detail.get(INFINITE, ()) for score in scores)
    if untouched:
        yield (
            f"{untouched} outputs equal their source outside the mask: their infinite PSNR is in "
            "no mean"
        )
    yield from _format_types(scores, categories)


def _format_interval(mean: Mean) -> str:
    if math.isnan(mean.low):
        return "(no interval: an edit type has a single image)"
    return f"[{mean.low:.2f}, {mean.high:.2f}]"


def _format_types(scores: Sequence[Score], categories: Mapping[str, str]) -> Iterator[str]:
    heads = ("structure", "PSNR", "LPIPS", "MSE", "SSIM", "CLIP", "CLIP ed.")
    yield f"{'by edit type':<18} {'images':>6} " + " ".join(f"{head:>9}" for head in heads)
    for category in dict.fromkeys(categories.values()):
        own = [score for score in scores if categories[score.prompt_id] == category]
        if not own:
            continue
        shown = []
        for metric in METRICS:
            mean, _ = average([read_value(score, metric.name) for score in own])
            shown.append(f"{metric.factor * mean:9.2f}")
        yield f"{category:<18} {len(own):>6} " + " ".join(shown)


def write_results(scores: Sequence[Score], method: str) -> str:
    """Write a row for each image as the reference does: `file_id`, then `method|metric`."""
    names = [metric.name for metric in METRICS]
    if any(SOURCE_SIMILARITY in score.detail.get("metrics", {}) for score in scores):
        names.append(SOURCE_SIMILARITY)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_id", *(f"{method}|{name}" for name in names)])
    for score in sorted(scores, key=lambda score: (score.prompt_id, score.image)):
        values = [read_value(score, name) for name in names]
        shown = [NO_VALUE if value is None else value for value in values]
        file_id = score.prompt_id.rpartition("/")[2]
        writer.writerow([file_id if score.image == 0 else f"{file_id}-{score.image}", *shown])
    return text.getvalue()


# --- two runs -------------------------------------------------------------------------------------


def compare_runs(run: Run, other: Run) -> Iterator[str]:
    """Compare two runs in all metrics, paired by prompt; values that one lacks are left out.

    Raises UserError for runs of another benchmark, or under other protocols.
    """
    for one in (run, other):
        if one.protocol.benchmark != "pie_bench":
            raise UserError(f"{one.path}: a run of {one.protocol.benchmark}, not of pie_bench")
    if run.about["version"] != other.about["version"] or run.judge != other.judge:
        raise UserError(
            f"{run.path} and {other.path} were scored under different protocols: "
            f"{run.about['version']} by {run.judge}, and {other.about['version']} by {other.judge}"
        )
    yield f"A = {run.path.name}    B = {other.path.name}    paired by prompt, A - B"
    for metric in METRICS:
        yield _compare_metric(run, other, metric)


def _compare_metric(run: Run, other: Run, metric: Metric) -> str:
    from harness.results import stats

    tables = []
    for one in (run, other):
        categories = {prompt.id: prompt.category for prompt in one.prompts.values()}
        tables.append(_tabulate(list(one.scores.values()), categories, metric))
    both = set(tables[0]["prompt_id"]) & set(tables[1]["prompt_id"])
    if not both:
        return f"{metric.title:<26} no image has a value in both"
    of_both = [table[table["prompt_id"].isin(both)] for table in tables]
    design = stats.Design(of_both[0])
    value_RP: np.ndarray = stats.stack_prompt_means(of_both)
    found = stats.compare_paired(design, value_RP[0], value_RP[1], design.micro_weights())
    factor = metric.factor
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    means = value_RP.mean(axis=1) * factor
    return (
        f"{metric.title:<26} {means[0]:8.2f} {means[1]:8.2f}  {factor * found.value:+.2f} "
        f"[{factor * found.low:+.2f}, {factor * found.high:+.2f}], {p}, {len(both)} prompts"
    )
