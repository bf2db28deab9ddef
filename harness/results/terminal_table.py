"""Render the leaderboard for a terminal: the best run first, within the width that there is.

A run's label is never cut: where the line is too narrow, columns are left out and labels wrapped.
"""

from __future__ import annotations

import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from harness.records import printable
from harness.results.columns import LEADERBOARD, TASKS
from harness.results.image_metrics import list_metric_columns
from harness.results.leaderboard import heading, protocols, resolved
from harness.results.remarks import (
    explain_reasons,
    explain_ties,
    explain_widths,
    list_reasons,
    mark_unresolved,
    name_choosers,
)
from harness.results.set_words import DISTANCES, explain_sets, list_distances
from harness.runs.metrics import MetricAbout

WIDTH = 140
"""Characters that a line may fill where the output is no terminal."""
LABEL_WIDTH = 28
"""Characters that a label has at least, before columns are left out for it."""
GAP = "  "
TITLES = {
    "single_object": "one",
    "two_object": "two",
    "counting": "count",
    "colors": "color",
    "position": "pos",
    "color_attr": "attr",
    "visual_tokens": "tokens",
    "target_passes": "passes",
    "tie_group": "tie",
}
DIFFERENCES = {"vs_plain": "vs plain", "vs_bon": "vs BoN"}
NO_METRICS: Mapping[str, MetricAbout] = {}
COUNTS_OF_GAPS = ("failed", "missing", "unjudged", "unanswered", "cut_prompts")
DIGITS = {
    "visual_tokens": 0,
    **dict.fromkeys(COUNTS_OF_GAPS, 0),
    "tie_group": 0,
    "target_passes": 1,
    "device_s": 3,
    "judge_s": 3,
}
"""Digits after the decimal point; 2 for columns that are not there."""
LEFT_OUT = (
    (),
    ("categories",),
    ("categories", "judge_s"),
    ("categories", "judge_s", "device_s"),
    ("categories", "judge_s", "device_s", "target_passes"),
    ("categories", "judge_s", "device_s", "target_passes", "tie_group", "vs_bon"),
    ("categories", "judge_s", "device_s", "target_passes", "tie_group", "vs_bon", "metrics"),
    (
        *("categories", "judge_s", "device_s", "target_passes", "tie_group", "vs_bon"),
        *("metrics", "interval"),
    ),
)
"""What is left out, the first that fits; the last is taken even where it does not fit."""
Column = list[str]
"""A title, and a cell for each run."""


def render_table(
    frame: pd.DataFrame,
    width: int | None = None,
    metrics: Mapping[str, MetricAbout] = NO_METRICS,
) -> str:
    """Render the board as text: a block for each protocol, a line for each run, best score first.

    A line has at most `width` characters; by default as many as the terminal. `metrics` are those
    of images, by name. Differences in brackets are not resolved, and a letter beside them says why.
    """
    if frame.empty:
        return "The leaderboard is empty: there is no run to rank."
    if width is None:
        width = shutil.get_terminal_size((WIDTH, 0)).columns
    groups = protocols(frame)
    headings = Counter(heading(runs) for runs in groups)
    blocks = []
    for runs in groups:
        title = heading(runs)
        if headings[title] > 1:  # they differ in judge, numerics, version or prompts
            first = runs.iloc[0]
            title += f" (protocol {first['protocol']}, judge {first['judge'] or 'none'})"
        lines = [*_wrap(printable(title), width), *_render_runs(runs, width, metrics)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _render_runs(runs: pd.DataFrame, width: int, metrics: Mapping[str, MetricAbout]) -> list[str]:
    """Return header, lines and legend of the runs of one protocol."""
    ordered = runs.sort_values(
        ["score", "label"], ascending=[False, True], na_position="last", kind="stable"
    )
    labels = [printable(str(label)) for label in ordered["label"]]
    longest = max(map(len, ["method", *labels]))
    reasons = list_reasons(ordered, DIFFERENCES)
    for left_out in LEFT_OUT:
        lines = _align(_number_columns(ordered, reasons, metrics, left_out))
        label_width = width - len(GAP) - max(map(len, lines))
        if label_width >= min(longest, LABEL_WIDTH):
            break
    label_width = min(longest, max(label_width, LABEL_WIDTH // 2))

    table = []
    for label, line in zip(["method", *labels], lines, strict=True):
        first, *rest = _wrap(label, label_width)
        table.append(f"{first:<{label_width}}{GAP}{line}".rstrip())
        table += rest
    for line in _explain(ordered, reasons, metrics, left_out):
        table += _wrap(printable(line), width)
    return table


def _explain(
    runs: pd.DataFrame,
    reasons: Mapping[str, str],
    metrics: Mapping[str, MetricAbout],
    left_out: Sequence[str],
) -> list[str]:
    """List what must be known of the columns that are shown."""
    lines = explain_reasons(reasons)
    if "tie_group" not in left_out:
        lines += explain_ties(runs)
    if "interval" not in left_out:
        lines += explain_widths(runs)
    if "metrics" in left_out:
        return [*lines, *name_choosers(runs)]
    return [*lines, *explain_sets(runs), *name_choosers(runs, metrics)]


def _number_columns(
    runs: pd.DataFrame,
    reasons: dict[str, str],
    metrics: Mapping[str, MetricAbout],
    left_out: Sequence[str],
) -> list[Column]:
    """Return all columns but that of the labels, without those that are left out."""
    columns = []
    if "tie_group" not in left_out and _has_values(runs, "tie_group"):
        columns.append(_number_column(runs, "tie_group"))
    columns.append(_score_column(runs, with_interval="interval" not in left_out))
    for name, title in DIFFERENCES.items():
        if name not in left_out and _has_values(runs, name):
            differences = [_difference(row, name, reasons) for _, row in runs.iterrows()]
            columns.append([title, *differences])

    for name, about in metrics.items():
        if "metrics" not in left_out and _has_values(runs, name):
            columns.append([name, *_format_all(runs[name], about.digits)])
    if "metrics" not in left_out:
        for name in list_distances(runs):
            columns.append([DISTANCES[name], *_format_all(runs[name], digits=3)])

    known = {*LEADERBOARD.names, *(column.name for column in list_metric_columns(metrics))}
    own_categories = [str(name) for name in runs.columns if name not in known]
    categories = [name for name in (*TASKS, *own_categories) if _has_values(runs, name)]
    numbers = [] if "categories" in left_out else categories
    numbers += ["visual_tokens", "target_passes", "device_s", "judge_s"]
    numbers += [name for name in COUNTS_OF_GAPS if name in runs and runs[name].any()]
    columns += [_number_column(runs, name) for name in numbers if name not in left_out]
    return columns


def _has_values(runs: pd.DataFrame, name: str) -> bool:
    return name in runs and bool(runs[name].notna().any())


def _wrap(text: str, width: int) -> list[str]:
    """Break a text into lines; those after the first are indented."""
    return textwrap.wrap(text, width, subsequent_indent="  ") or [""]


# --- cells ----------------------------------------------------------------------------------------


def _score_column(runs: pd.DataFrame, *, with_interval: bool) -> Column:
    column = ["score [95% interval]" if with_interval else "score"]
    for score, low, high in zip(runs["score"], runs["ci_low"], runs["ci_high"], strict=True):
        if pd.isna(score):
            column.append("not scored")
            continue
        interval = "    -,     -" if math.isnan(low) else f"{low:.3f}, {high:.3f}"
        column.append(f"{score:.3f} [{interval}]" if with_interval else f"{score:.3f}")
    return column


def _difference(row: pd.Series, name: str, reasons: dict[str, str]) -> str:
    """Format a difference with its sign, in brackets with a letter if it is not resolved."""
    if pd.isna(row[name]):
        return "-"
    text = f"{row[name]:+.3f}"
    return f"{text}   " if resolved(row, name) else mark_unresolved(text, row, name, reasons)


def _number_column(runs: pd.DataFrame, name: str) -> Column:
    title = TITLES.get(name, name)
    return [title, *_format_all(runs[name], digits=DIGITS.get(name, 2))]


def _format_all(values: Iterable[float | None], digits: int) -> Column:
    """Format numbers; a dash for those that are unknown."""
    return ["-" if pd.isna(value) else f"{value:.{digits}f}" for value in values]


def _align(columns: list[Column]) -> list[str]:
    """Pad the columns on the left, each with its title first, and join them to lines."""
    padded = []
    for column in columns:
        width = max(map(len, column))
        padded.append([cell.rjust(width) for cell in column])
    return [GAP.join(line).rstrip() for line in zip(*padded, strict=True)]
