"""Render the leaderboard for a terminal of 140 columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from harness.records import printable
from harness.results.columns import LEADERBOARD, TASKS
from harness.results.leaderboard import heading, protocols, signed
from harness.runs.read import format_options

WIDTH = 140
"""Characters that a line may fill."""
LAYOUTS = ((28, True), (20, True), (12, True), (28, False))
"""Characters of the text columns, and whether categories are shown; the first that fits is used."""
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
DIGITS = {
    "visual_tokens": 0,
    "failed": 0,
    "missing": 0,
    "unjudged": 0,
    "unanswered": 0,
    "cut_prompts": 0,
    "tie_group": 0,
    "target_passes": 1,
    "device_s": 3,
    "judge_s": 3,
}
"""Digits after the decimal point; 2 for columns that are not there."""
LEFT_ALIGNED = ("method", "params")


def render_table(frame: pd.DataFrame) -> str:
    """Render the board as text: a block for each protocol, a line for each run.

    Differences in brackets are not resolved: this comparison cannot tell them from none.
    """
    if frame.empty:
        return "The leaderboard is empty: there is no run to rank."
    groups = protocols(frame)
    headings = Counter(heading(runs) for runs in groups)
    blocks = []
    for runs in groups:
        title = heading(runs)
        if headings[title] > 1:  # they differ in judge, numerics, version or prompts
            first = runs.iloc[0]
            title += f" (protocol {first['protocol']}, judge {first['judge'] or 'none'})"
        lines = [title, *_render_runs(runs)]
        blocks.append("\n".join(map(printable, lines)))
    return "\n\n".join(blocks)


def _render_runs(runs: pd.DataFrame) -> list[str]:
    """Return header and lines; params are cut and categories left out only where they don't fit."""
    own_categories = [str(name) for name in runs.columns if name not in LEADERBOARD.names]
    categories = [name for name in (*TASKS, *own_categories) if _has_values(runs, name)]
    numbers = ["visual_tokens", "target_passes", "device_s", "judge_s"]
    gaps = ("failed", "missing", "unjudged", "unanswered", "cut_prompts")
    numbers += [name for name in gaps if name in runs and runs[name].any()]

    for text_width, with_categories in LAYOUTS:
        columns = _name_columns(runs, text_width)
        if runs["tie_group"].notna().any():
            columns.append(_number_column(runs, "tie_group"))
        columns.append(_score_column(runs))
        columns += _difference_columns(runs)
        for name in [*(categories if with_categories else []), *numbers]:
            columns.append(_number_column(runs, name))
        lines = _align(columns)
        if max(map(len, lines)) <= WIDTH:
            break
    return lines


def _has_values(runs: pd.DataFrame, name: str) -> bool:
    return name in runs and bool(runs[name].notna().any())


def _name_columns(runs: pd.DataFrame, width: int) -> list[list[str]]:
    """Return method and options, and what else tells the runs apart, cut to a width."""
    methods = map(str, runs["method"])
    params = map(format_options, runs["params"], runs["candidates"])
    columns = [["method", *methods], ["params", *params]]
    for name in ("seed", "concurrency"):
        if runs[name].nunique(dropna=False) > 1:
            columns.append([name, *_format_all(runs[name], digits=0)])
    return [_cut_all(column, width) for column in columns]


def _cut_all(column: Sequence[str], width: int) -> list[str]:
    return [_cut(text, width) for text in column]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."


def _score_column(runs: pd.DataFrame) -> list[str]:
    column = ["score [95% interval]"]
    for score, low, high in zip(runs["score"], runs["ci_low"], runs["ci_high"], strict=True):
        if pd.isna(score):
            column.append("not scored")
            continue
        interval = "    -,     -" if math.isnan(low) else f"{low:.3f}, {high:.3f}"
        column.append(f"{score:.3f} [{interval}]")
    return column


def _difference_columns(runs: pd.DataFrame) -> list[list[str]]:
    """Return the differences from plain sampling, and from Best-of-N at equal budget, if any."""
    columns = []
    for name, title in DIFFERENCES.items():
        if runs[name].notna().any():
            differences = [signed(row, name) for _, row in runs.iterrows()]
            columns.append([title, *differences])
    return columns


def _number_column(runs: pd.DataFrame, name: str) -> list[str]:
    title = TITLES.get(name, name)
    return [title, *_format_all(runs[name], digits=DIGITS.get(name, 2))]


def _format_all(values: Iterable[float | None], digits: int) -> list[str]:
    """Format numbers; a dash for those that are unknown."""
    return ["-" if pd.isna(value) else f"{value:.{digits}f}" for value in values]


def _align(columns: list[list[str]]) -> list[str]:
    """Pad the columns, each with its title first, and join them to lines."""
    padded = []
    for column in columns:
        width = max(map(len, column))
        pad = str.ljust if column[0] in LEFT_ALIGNED else str.rjust
        padded.append([pad(cell, width) for cell in column])
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
