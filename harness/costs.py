"""`python -m harness.costs RESULTS`: what methods gain and cost, by passes and by seconds.

python -m harness.costs results                      every run: score against plain, passes, seconds
python -m harness.costs results --bench FILE.csv     with seconds at 1, 4 and 16 images in flight

Passes are what papers count; `by passes` and `by seconds` are a run's places in either order, and
they differ where a pass over many positions takes longer. For methods that choose among candidates
a second table puts their gain over plain sampling beside what it took: by tokens, which papers
count, by seconds of drawing, and by all seconds, with the renders and rewards that choosing took.

FILE is what `python -m harness.bench methods` writes. A run is beside a line of it if method and
options are the same, "METHOD method.n=4" in the bench.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness.arguments import explain_mistakes
from harness.records import UserError, printable
from harness.results.labels import flatten_options
from harness.results.leaderboard import Board, heading, project_runs, protocols
from harness.runs.read import Run, read_runs

BATCHES = (1, 4, 16)
"""Images in flight that the benches are read for."""
Seconds = dict[int, float]
"""Seconds an image by images in flight."""


@explain_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.costs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="results folder, or a board")
    parser.add_argument("--bench", type=Path, help="CSV of `python -m harness.bench methods`")
    chosen = parser.parse_args(arguments)
    found = read_runs(chosen.results)
    if not found.runs:
        raise UserError(f"{chosen.results}: no runs there; name the folder of `results=`")
    board = project_runs(found.runs, found.problems)
    bench = read_bench(chosen.bench) if chosen.bench else {}
    print("\n".join(list_tables(board, bench)))
    return 0


# ------------------------------------------------------------------ benches


def read_bench(path: Path) -> dict[str, Seconds]:
    """Read the newest seconds of each method at each number of images in flight.

    Raises UserError for another file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `python -m harness.bench methods` writes one")
    table = pd.read_csv(path)
    if missing := {"batch", "method", "seconds_per_image"} - set(table.columns):
        raise UserError(f"{path}: has no column {min(missing)}: give the CSV of a methods' bench")
    seconds: dict[str, Seconds] = {}
    for row in table.to_dict("records"):
        seconds.setdefault(str(row["method"]), {})[int(row["batch"])] = row["seconds_per_image"]
    return seconds


def find_seconds(run: Run, bench: Mapping[str, Seconds]) -> Seconds:
    """Return the bench's seconds of a run's method under the same options; empty without any."""
    options = _without_titles(flatten_options(run.options))
    for entry, seconds in bench.items():
        name = entry.split()[0]
        if name == run.about["method"] and compose_options(entry) == options:
            return seconds
    return {}


@cache
def compose_options(entry: str) -> dict[str, Any]:
    """Return the options of a method as a bench names it: "METHOD OPTION=VALUE ..."."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from harness.cli import enable_plugins

    enable_plugins()
    name, *options = entry.split()
    try:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            config = hydra.compose("config", overrides=[f"method={name}", *options])
    except hydra.errors.HydraException:
        return {}  # the bench had a method that is not here
    finally:
        GlobalHydra.instance().clear()
    return _without_titles(flatten_options(OmegaConf.to_container(config.method, resolve=True)))


def _without_titles(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a method is called: older runs lack it."""
    return {name: value for name, value in options.items() if name.split(".")[-1] != "title"}


# ------------------------------------------------------------------ tables


def list_tables(board: Board, bench: Mapping[str, Seconds]) -> list[str]:
    """List the lines of the tables of every protocol."""
    seconds = {run.fingerprint: find_seconds(run, bench) for run in board.runs}
    lines: list[str] = []
    for rows in protocols(board.frame):
        lines += [heading(rows), *describe_costs(rows, seconds), ""]
        choosing = rows[(rows["judge_calls"] > 0) | (rows["candidates"].fillna(1) > 1)]
        if len(choosing) > 1 and choosing["vs_plain"].notna().any():
            lines += ["Gain over plain sampling, and what it took:", *describe_choices(choosing)]
            lines.append("")
    return lines[:-1]


def describe_costs(rows: pd.DataFrame, seconds: Mapping[str, Seconds]) -> list[str]:
    """Say what each run scores and costs, the fewest passes first."""
    spent = rows["device_s"] + rows["judge_s"]
    columns: dict[str, list[str]] = {
        "run": [printable(label) for label in rows["label"]],
        "score": _format(rows["score"], "{:.3f}"),
        "vs plain": [_difference(row) for row in rows.to_dict("records")],
        "passes": _format(rows["target_passes"], "{:.1f}"),
        "positions": _format(rows["target_positions"], "{:,.0f}"),
        "renders": _format(rows["renders"], "{:.1f}"),
        "judge calls": _format(rows["judge_calls"], "{:.1f}"),
        "seconds": _format(spent, "{:.3f}"),
    }
    for batch in BATCHES:
        of_batch = [seconds.get(name, {}).get(batch, math.nan) for name in rows["fingerprint"]]
        if not all(math.isnan(value) for value in of_batch):
            columns[f"s at {batch}"] = _format(pd.Series(of_batch), "{:.3f}")
    columns["by passes"] = _rank(rows["target_passes"])
    columns["by seconds"] = _rank(spent)
    order = rows["target_passes"].reset_index(drop=True).sort_values(kind="stable").index
    return _align(columns, list(order))


def describe_choices(rows: pd.DataFrame) -> list[str]:
    """Say what the gain of each run took, the fewest seconds first.

    The three places are by gain a token, a second of drawing, and a second with renders and judges:
    where they differ, what papers leave out decides.
    """
    drawing = rows["device_s"] - rows["render_s"]
    spent = rows["device_s"] + rows["judge_s"]
    columns = {
        "run": [printable(label) for label in rows["label"]],
        "gain": _format(rows["vs_plain"], "{:+.3f}"),
        "tokens": _format(rows["visual_tokens"], "{:,.0f}"),
        "renders": _format(rows["renders"], "{:.1f}"),
        "judge calls": _format(rows["judge_calls"], "{:.1f}"),
        "s drawing": _format(drawing, "{:.3f}"),
        "s rendering": _format(rows["render_s"], "{:.3f}"),
        "s judging": _format(rows["judge_s"], "{:.3f}"),
        "by tokens": _rank(-rows["vs_plain"] / rows["visual_tokens"]),
        "by drawing": _rank(-rows["vs_plain"] / drawing),
        "by all seconds": _rank(-rows["vs_plain"] / spent),
    }
    order = spent.reset_index(drop=True).sort_values(kind="stable").index
    return _align(columns, list(order))


def _difference(row: Mapping[Any, Any]) -> str:
    """Write a difference to plain sampling with its interval."""
    if pd.isna(row["vs_plain"]):
        return ""
    low = row["vs_plain_low"]
    high = row["vs_plain_high"]
    return f"{row['vs_plain']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _format(values: pd.Series, pattern: str) -> list[str]:
    """Write numbers; nothing where one is missing."""
    write: Callable[[Any], str] = pattern.format
    return ["" if pd.isna(value) else write(float(value)) for value in values]


def _rank(values: pd.Series) -> list[str]:
    """Write each value's place, the smallest first; equals share a place."""
    ranks = values.astype(float).round(9).rank(method="min")
    return ["" if pd.isna(rank) else f"{rank:.0f}" for rank in ranks]


def _align(columns: Mapping[str, Sequence[str]], order: Sequence[int]) -> list[str]:
    """Write columns as aligned lines, the first one to the left."""
    lines = [list(columns)]
    lines += [[cells[i] for cells in columns.values()] for i in order]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    written: list[str] = []
    for first, *rest in lines:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        written.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return written


if __name__ == "__main__":
    sys.exit(main())
