"""The leaderboard for a terminal of 140 columns."""

from __future__ import annotations

import math
from collections import Counter

import pandas as pd

from harness.records import printable
from harness.results.leaderboard import COLUMNS, TASKS, heading, protocols, signed
from harness.runs.read import format_options

WIDTH = 140
"""Characters that the printed table may fill."""
SHORT = {
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
DIGITS = {
    **dict.fromkeys(("visual_tokens", "failed", "missing", "unjudged", "tie_group"), 0),
    "target_passes": 1,
    "device_s": 3,
    "judge_s": 3,
}


def render_table(frame: pd.DataFrame) -> str:
    """The board as text for a terminal of 140 columns: a block for each protocol, a line for each
    run.

    Differences in brackets are not resolved: this comparison cannot tell them from none.
    """
    if frame.empty:
        return "The leaderboard is empty: there is no run to rank."
    blocks = [[heading(runs), *_printed(runs)] for runs in protocols(frame)]
    twice = Counter(block[0] for block in blocks)
    for block, runs in zip(blocks, protocols(frame), strict=True):
        if twice[block[0]] > 1:  # they differ in judge, numerics, version or prompts
            block[0] += (
                f" (protocol {runs['protocol'].iloc[0]}, judge {runs['judge'].iloc[0] or 'none'})"
            )
    return "\n\n".join("\n".join(map(printable, block)) for block in blocks)


def _printed(runs: pd.DataFrame) -> list[str]:
    """Header and lines; parameters cut and categories dropped only where they do not fit."""
    categories = [*TASKS, *(str(name) for name in runs.columns if name not in COLUMNS)]
    categories = [name for name in categories if runs[name].notna().any()]
    compared = [name for name in ("tie_group",) if runs[name].notna().any()]
    numbers = ["visual_tokens", "target_passes", "device_s", "judge_s"]
    numbers += [name for name in ("failed", "missing", "unjudged") if runs[name].any()]
    for width, shown in ((28, categories), (20, categories), (12, categories), (28, [])):
        left = [*_names(runs, width), *(_column(runs, name) for name in compared), _scores_of(runs)]
        lines = _align(
            [*left, *_differences(runs), *(_column(runs, name) for name in [*shown, *numbers])]
        )
        if max(map(len, lines)) <= WIDTH:
            break
    return lines


def _names(runs: pd.DataFrame, width: int) -> list[list[str]]:
    columns = [
        ["method", *map(str, runs["method"])],
        ["params", *map(format_options, runs["params"], runs["candidates"])],
    ]
    for name in ("seed", "concurrency"):
        if runs[name].nunique(dropna=False) > 1:
            columns.append(
                [name, *("-" if pd.isna(value) else f"{value:.0f}" for value in runs[name])]
            )
    return [
        [text if len(text) <= width else text[: width - 2] + ".." for text in column]
        for column in columns
    ]


def _scores_of(runs: pd.DataFrame) -> list[str]:
    column = ["score [95% interval]"]
    for score, low, high in zip(runs["score"], runs["ci_low"], runs["ci_high"], strict=True):
        column.append(
            f"{score:.3f} [{'    -,     -' if math.isnan(low) else f'{low:.3f}, {high:.3f}'}]"
        )
    return column


def _differences(runs: pd.DataFrame) -> list[list[str]]:
    """Differences against plain and against Best-of-N at equal budget, those that are not resolved
    in brackets.
    """
    columns = []
    for name, title in (("vs_plain", "vs plain"), ("vs_bon", "vs BoN")):
        if runs[name].notna().any():
            columns.append([title, *(signed(row, name) for _, row in runs.iterrows())])
    return columns


def _column(runs: pd.DataFrame, name: str) -> list[str]:
    digits = DIGITS.get(name, 2)
    return [
        SHORT.get(name, name),
        *("-" if math.isnan(value) else f"{value:.{digits}f}" for value in runs[name]),
    ]


def _align(columns: list[list[str]]) -> list[str]:
    texts = ("method", "params")
    padded = [
        [cell.ljust(width) if column[0] in texts else cell.rjust(width) for cell in column]
        for column in columns
        for width in [max(map(len, column))]
    ]
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
