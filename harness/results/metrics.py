"""The rows of metrics.csv (a run's numbers in long form) and of curves.csv (scaling curves)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from harness.results import stats
from harness.results.columns import COSTS, STAGE_SECONDS, THROUGHPUT
from harness.results.labels import Label
from harness.results.ranking import CURRENCIES, Currency, Curve, RankedGroup
from harness.results.rows import PERCENTILES, Row, number, wall_seconds
from harness.runs.read import Run

WITH_INTERVAL = ("speedup", "pass_saving", "vs_plain", "vs_bon", "vs_bon_s")
WITHOUT_INTERVAL = (
    "budget",
    "budget_s",
    "accepted",
    "worse_at_most",
    "worst_task_bound",
    "oracle",
)


class Metric(NamedTuple):
    """A number of a run; the fields are the last columns of metrics.csv."""

    metric: str
    value: float
    ci_low: float  # ends of the 95 % interval, nan where it has none
    ci_high: float
    n: int  # sample size


def run_identity(run: Run, label: Label) -> Row:
    """Return the columns that name a run in the long tables."""
    names = ("benchmark", "model", "method", "fingerprint")
    identity: Row = {name: str(run.about[name] or "") for name in names}
    identity["params"] = ", ".join(label.params)
    return identity | {"protocol": run.protocol.id, "seed": run.about["seed"]}


# --- metrics.csv ----------------------------------------------------------------------------------


def run_metrics(group: RankedGroup, run: Run, row: Row) -> list[Metric]:
    """Return a run's known numbers as quality/..., cost/..., latency/..., compare/...

    `row` is its row of the leaderboard. n counts independent units: clusters of prompts where the
    prompts are compared, images where costs are averaged.
    """
    metrics = [
        *_quality_metrics(group, run, row),
        *_cost_metrics(group, run, row),
        *_latency_metrics(run),
        *_throughput_metrics(run, row),
        *_comparison_metrics(group, row),
    ]
    return [metric for metric in metrics if not math.isnan(metric.value)]


def unscored_metrics(run: Run, row: Row) -> list[Metric]:
    """Return the costs of a run that no judge has valued; `row` is its row of the leaderboard."""
    images = len(run.done)
    costs = [_without_interval(f"cost/{name}", number(row[name]), images) for name in _costs(row)]
    metrics = [*costs, *_latency_metrics(run), *_throughput_metrics(run, row)]
    return [metric for metric in metrics if not math.isnan(metric.value)]


def _costs(row: Row) -> Sequence[str]:
    """Return the costs that a row has: older journals have no seconds by stage."""
    return (*COSTS, *STAGE_SECONDS) if "decode_s" in row else COSTS


def _quality_metrics(group: RankedGroup, run: Run, row: Row) -> list[Metric]:
    metrics = []
    for name in run.aggregates:
        value = number(row[name])
        low, high = group.aggregate_interval(run, name)
        metrics.append(Metric(f"quality/{name}", value, low, high, group.design.num_clusters))
    for name, clusters in group.design.clusters_by_category().items():
        value = number(row[name])
        low, high = group.category_interval(run, name)
        metrics.append(Metric(f"quality/{name}", value, low, high, clusters))
    return metrics


def _cost_metrics(group: RankedGroup, run: Run, row: Row) -> list[Metric]:
    costs = _costs(row)
    images = len(run.done)
    intervals = _cost_intervals(group, run, costs)
    metrics = []
    for name, (low, high) in zip(costs, intervals, strict=True):
        value = number(row[name])
        metrics.append(Metric(f"cost/{name}", value, low, high, images))
    return metrics


def _cost_intervals(
    group: RankedGroup, run: Run, costs: Sequence[str]
) -> list[tuple[float, float]]:
    """Return the 95 % bootstrap interval of each mean cost; nan where an image is missing."""
    design = group.design
    if not design.error_is_known or len(run.done) != len(run.planned):
        return [(math.nan, math.nan)] * len(costs)
    images = []
    for _, record in sorted(run.done.items()):
        spent = [getattr(record.usage, name) for name in costs]
        images.append((record.category, record.prompt_id, *spent))
    table = pd.DataFrame(images, columns=["category", "prompt_id", *costs])
    by_prompt = table.groupby(["category", "prompt_id"], sort=True)[list(costs)].mean()
    cost_XP = by_prompt.to_numpy(float).T
    draws_DX = design.bootstrap(cost_XP) @ design.micro_weights()
    return [stats.percentile_interval(draws_D) for draws_D in draws_DX.T]


def _latency_metrics(run: Run) -> list[Metric]:
    if run.concurrency != 1:
        return []
    seconds = wall_seconds(run)
    metrics = []
    for q in PERCENTILES:
        value = stats.latency_percentile(seconds, q)
        metrics.append(_without_interval(f"latency/p{100 * q:.0f}_s", value, len(seconds)))
    return metrics


def _throughput_metrics(run: Run, row: Row) -> list[Metric]:
    images = sum(timing.images for timing in run.timings)
    metrics = []
    for name in THROUGHPUT:
        value = number(row.get(name))
        metrics.append(_without_interval(f"throughput/{name}", value, images))
    return metrics


def _comparison_metrics(group: RankedGroup, row: Row) -> list[Metric]:
    clusters = group.design.num_clusters
    metrics = [_with_interval(row, name, name, clusters) for name in WITH_INTERVAL]
    metrics.append(_with_interval(row, "selection_efficiency", "selection", clusters))
    for name in WITHOUT_INTERVAL:
        value = number(row.get(name))
        metrics.append(_without_interval(f"compare/{name}", value, clusters))
    return metrics


def distance_metrics(row: Row, prompts: int) -> list[Metric]:
    """Return the known numbers of a run's distance to plain sampling's images as compare/..."""
    metrics = []
    for name in ("fd_plain", "fd_plain_null", "fd_plain_p"):
        metrics.append(_without_interval(f"compare/{name}", number(row.get(name)), prompts))
    return [metric for metric in metrics if not math.isnan(metric.value)]


def _with_interval(row: Row, name: str, interval: str, n: int) -> Metric:
    """Return a comparison whose interval is in the columns `interval`_low and `interval`_high."""
    value = number(row.get(name))
    low = number(row.get(f"{interval}_low"))
    high = number(row.get(f"{interval}_high"))
    return Metric(f"compare/{name}", value, low, high, n)


def _without_interval(metric: str, value: float, n: int) -> Metric:
    return Metric(metric, value, math.nan, math.nan, n)


# --- curves.csv -----------------------------------------------------------------------------------


def curve_rows(group: RankedGroup, labels: Mapping[Path, Label]) -> list[Row]:
    """Return a row for each scaling curve of a group, by visual tokens and by seconds.

    `labels` has what each run is called, by its folder.
    """
    rows = []
    for currency in CURRENCIES:
        for curve in group.curves(currency):
            rows.append(_curve_row(group, curve, currency, labels[curve.runs[-1].path]))
    return rows


def _curve_row(group: RankedGroup, curve: Curve, currency: Currency, label: Label) -> Row:
    budgets = curve.budgets
    quality = curve.quality.tolist()
    row = run_identity(curve.runs[-1], label)
    row["params"] = ", ".join(label.params_without_budget)
    row["currency"] = currency
    row["budgets"] = " ".join(f"{budget:.4g}" for budget in budgets)
    row["scores"] = " ".join(f"{round(score, 10):.4f}" for score in quality)
    for budget in stats.BUDGETS:
        row[f"quality_at_{budget}"] = float(stats.quality_at(budgets, curve.quality, budget))

    best_of_8 = group.best_of(8, like=curve.runs[0])
    row["budget_for_best_of_8"] = stats.budget_for(budgets, quality, best_of_8)
    row["ausc"] = float(stats.area_under(budgets, curve.quality))
    row["ausc_low"], row["ausc_high"] = _area_interval(curve)
    row["hypervolume"] = stats.hypervolume(budgets, quality, plain=quality[0])
    return row


def _area_interval(curve: Curve) -> tuple[float, float]:
    area_D = stats.area_under(curve.budgets, curve.quality_D)
    return stats.percentile_interval(area_D) if len(area_D) else (math.nan, math.nan)
