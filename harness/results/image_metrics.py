"""Compare runs by metrics of their images: means, and paired differences from plain sampling.

Each metric has a unit of its own, so none is averaged with another, and each is a family of tests
of its own. A mean is over all planned images, so a run that lacks one has no mean: of fewer images
it would be another measurement. Runs are compared where the same scorer has measured both.

Legend of suffixes: P prompts, C categories, R runs, D bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from harness.results import stats
from harness.results.columns import Column, metric_columns
from harness.results.metrics import Metric
from harness.results.ranking import find_plain, is_plain
from harness.results.rows import (
    Row,
    add_verdicts,
    adjust_p_values,
    describe_tested_difference,
    find_overlap,
    number,
)
from harness.results.windows import (
    WITHOUT_WINDOW,
    find_margin,
    judge_window,
    sum_up_windows,
)
from harness.runs.metrics import Key, MetricAbout
from harness.runs.read import Run


@dataclass(frozen=True, slots=True)
class MetricRows:
    """What metrics say of one run: its columns of the leaderboard, and means with intervals."""

    row: Row
    names: tuple[str, ...]  # of its metrics
    clusters: int  # independent units that each mean is of


def describe_metrics(runs: Sequence[Run]) -> dict[str, MetricAbout]:
    """Describe the metrics of some runs that may enter tables, by name in their order.

    Of runs that call other metrics by one name the first one tells.
    """
    found: dict[str, MetricAbout] = {}
    for run in runs:
        for name in list_shown(run):
            found.setdefault(name, run.metrics[name].about)
    return found


def list_shown(run: Run) -> list[str]:
    """List the metrics of a run that may enter tables: not those of random weights."""
    return [name for name, measured in run.metrics.items() if not measured.about.excluded]


def list_metric_columns(metrics: Mapping[str, MetricAbout]) -> list[Column]:
    """List the leaderboard's columns of metrics, by name, one metric after the other."""
    columns: list[Column] = []
    for name, about in metrics.items():
        columns += metric_columns(name, about.unit, about.better, about.digits)
    return columns


def find_metrics(frame: pd.DataFrame) -> dict[str, MetricAbout]:
    """Find the metrics that a leaderboard has columns of; unit and direction are not in them."""
    names = [str(column).removesuffix("_by") for column in frame if str(column).endswith("_by")]
    return {name: MetricAbout(id="") for name in names if name in frame}


def compare_metrics(runs: Sequence[Run]) -> dict[Path, MetricRows]:
    """Return what metrics say of the runs of one protocol, by their folders; {} without any."""
    names = describe_metrics(runs)
    if not names:
        return {}
    design = stats.Design(runs[0].table)
    rows: dict[Path, Row] = {run.path: {} for run in runs}
    windows: dict[Path, dict[str, str]] = {run.path: {} for run in runs}
    for name in names:
        members = [run for run in runs if name in list_shown(run)]
        for run in members:
            rows[run.path] |= _describe(run, name)
        for scorer in dict.fromkeys(run.metrics[name].about.id for run in members):
            same = [run for run in members if run.metrics[name].about.id == scorer]
            whole = [run for run in same if has_all_values(run, name)]
            for run, row in zip(whole, _compare(design, whole, name), strict=True):
                rows[run.path] |= row
            if name not in WITHOUT_WINDOW:
                for path, word in _judge_windows(whole, name, rows).items():
                    windows[path][name] = word
        measured = [rows[run.path] for run in members]
        adjust_p_values(measured, f"{name}_vs_plain")
        add_verdicts(measured, f"{name}_vs_plain", digits=names[name].digits)
    for path, words in windows.items():
        if words:
            rows[path]["inside_window"] = sum_up_windows(words)
    return {
        run.path: MetricRows(rows[run.path], tuple(list_shown(run)), design.num_clusters)
        for run in runs
    }


def has_all_values(run: Run, metric: str) -> bool:
    """Tell whether a metric has a number for every planned image of a run."""
    return len(run.metrics[metric].values) == len(run.planned)


def tabulate_metric(run: Run, metric: str) -> pd.DataFrame:
    """Tabulate a metric that has all values, as `Run.table` does the scores."""
    values: Mapping[Key, float] = run.metrics[metric].values
    table = run.table
    keys = zip(table["prompt_id"], table["image"], strict=True)
    return table.assign(value=[values[str(prompt_id), int(image)] for prompt_id, image in keys])


def _describe(run: Run, name: str) -> Row:
    """Return the columns of a metric that need no comparison, and no complete run."""
    measured = run.metrics[name]
    return {
        f"{name}_images": len(measured.values),
        f"{name}_by": measured.about.id,
        f"{name}_is_reward": find_overlap(run, measured.about.id),
    }


def _compare(design: stats.Design, runs: Sequence[Run], name: str) -> list[Row]:
    """Return the mean of each run, and its difference from plain sampling."""
    if not runs:
        return []
    value_RP = stats.stack_prompt_means([tabulate_metric(run, name) for run in runs])
    weight_C = design.micro_weights()
    mean_R = design.category_means(value_RP) @ weight_C
    draws_DR = np.zeros((0, len(runs)))
    if design.error_is_known:
        draws_DR = design.bootstrap(value_RP) @ weight_C

    rows: list[Row] = []
    for r, run in enumerate(runs):
        low, high = math.nan, math.nan
        if len(draws_DR):
            low, high = stats.percentile_interval(draws_DR[:, r])
        row: Row = {name: float(mean_R[r]), f"{name}_low": low, f"{name}_high": high}
        plain = find_plain(run, runs, scored=False)
        if plain is not None and plain is not run:
            p = runs.index(plain)
            difference = stats.compare_paired(
                design,
                value_RP[r],
                value_RP[p],
                weight_C,
                draws_D=draws_DR[:, r] - draws_DR[:, p] if len(draws_DR) else None,
            )
            row |= describe_tested_difference(f"{name}_vs_plain", difference)
        rows.append(row)
    return rows


def _judge_windows(runs: Sequence[Run], name: str, rows: Mapping[Path, Row]) -> dict[Path, str]:
    """Tell of each run that is compared with plain whether a metric is in the window about it."""
    words = {}
    for run in runs:
        plain = find_plain(run, runs, scored=False)
        if plain is None or f"{name}_vs_plain" not in rows[run.path]:
            continue
        detectable = number(rows[run.path][f"{name}_vs_plain_detectable"])
        plain_value = number(rows[plain.path][name])
        tables = _tabulate_plain(plain, runs, name)
        margin = find_margin(name, detectable, plain_value, tables)
        words[run.path] = judge_window(rows[run.path], name, margin)
    return words


def _tabulate_plain(plain: Run, runs: Sequence[Run], name: str) -> list[pd.DataFrame]:
    """Tabulate a metric of a plain run, and of plain runs of other seeds; [] for one of sets."""
    if plain.sets is not None and name in plain.sets.metrics:
        return []
    others = [run for run in runs if is_plain(run) and run.about["seed"] != plain.about["seed"]]
    return [tabulate_metric(run, name) for run in (plain, *others[:1])]


def metric_values(found: MetricRows) -> list[Metric]:
    """Return the numbers of a run's metrics for metrics.csv, those that are known."""
    values = []
    for name in found.names:
        for family, column in (("quality", name), ("compare", f"{name}_vs_plain")):
            value = number(found.row.get(column))
            low = number(found.row.get(f"{column}_low"))
            high = number(found.row.get(f"{column}_high"))
            values.append(Metric(f"{family}/{column}", value, low, high, found.clusters))
    return [metric for metric in values if not math.isnan(metric.value)]
