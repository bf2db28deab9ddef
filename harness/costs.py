"""`python -m harness.costs RESULTS`: what methods gain and cost, by passes and by seconds.

python -m harness.costs results                      every run: score against plain, passes, seconds
python -m harness.costs results --bench FILE.csv     with times over plain's at 1, 4, 16 images
python -m harness.costs results --markdown           the tables in Markdown, for a page

Passes are what papers count; `by passes` and `by seconds` are a run's places in either order, and
they differ where a pass over many positions takes longer. `seconds` are those of the run itself,
with whatever else its machine did. FILE, which `python -m harness.bench methods` writes, has times
of methods over that of plain sampling, timed beside each, and the places by them. A run is
beside a line of it if model, method and options are the same, "METHOD method.n=4" in the bench.

For methods that choose among candidates a further table puts their gain over plain sampling beside
what it took: by tokens, which papers count, by seconds of drawing, and by all seconds, with the
renders and rewards that choosing took. A gain that is not resolved stands in brackets and has no
place. Each table names the runs that it leaves out, and why.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.arguments import explain_mistakes
from harness.records import UserError, one_line, printable
from harness.results.labels import flatten_options
from harness.results.leaderboard import (
    Board,
    excluded_line,
    heading,
    problems_line,
    project_runs,
    protocols,
    resolved,
)
from harness.results.pages import MACHINE, keep_one_machine
from harness.results.remarks import (
    explain_reasons,
    explain_widths,
    list_reasons,
    mark_unresolved,
    name_choosers,
)
from harness.runs.read import Run, read_runs

BATCHES = (1, 4, 16)
"""Images in flight that the benches are read for."""
Times = dict[int, float]
"""Time an image by images in flight, plain sampling's beside it being 1."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of cells under their headings, and the order of the rows."""

    columns: Mapping[str, Sequence[str]]
    order: Sequence[int]


Parts = list[str | Table]
"""Tables, and sentences about them."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a bench of methods has measured on one device."""

    device: str
    times: Mapping[tuple[str, str], Times]  # by model and method, named with its options

    def by_run(self, lines: Mapping[str, tuple[str, str]]) -> dict[str, Times]:
        """Return the times of runs, by fingerprint, of which `join_bench` has found the lines."""
        return {fingerprint: self.times[line] for fingerprint, line in lines.items()}


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
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    chosen = parser.parse_args(arguments)
    found = read_runs(chosen.results)
    if not found.runs:
        raise UserError(f"{chosen.results}: no runs there; name the folder of `results=`")
    board = project_runs(found.runs, found.problems)
    bench = read_bench(chosen.bench) if chosen.bench else None
    print(render_tables(board, bench, markdown=chosen.markdown))
    return 0


# ------------------------------------------------------------------ benches


def read_bench(path: Path) -> Bench:
    """Read the newest times of each model and method at each number of images in flight.

    Only lines of the device and machine of the last one count: others are no comparison. Raises
    UserError for another file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `python -m harness.bench methods` writes one")
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(MACHINE, str))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    needed = {"batch", "method", "model", "speedup", "device"}
    if missing := needed - set(table.columns):
        raise UserError(f"{path}: has no column {min(missing)}: give the CSV of a methods' bench")
    if table.empty:
        raise UserError(f"{path}: has no line; `python -m harness.bench methods` appends some")

    # 1. Leave out other machines.
    same = keep_one_machine(table)

    # 2. Take the newest line of each.
    times: dict[tuple[str, str], Times] = {}
    for row in same.to_dict("records"):
        key = (str(row["model"]), str(row["method"]))
        times.setdefault(key, {})[int(row["batch"])] = 1 / float(row["speedup"])
    return Bench(str(same["device"].iloc[-1]), times)


def join_bench(board: Board, bench: Bench) -> dict[str, tuple[str, str]]:
    """Return which line of the bench each run has, by the run's fingerprint."""
    found = {run.fingerprint: find_line(run, bench) for run in board.runs}
    return {fingerprint: line for fingerprint, line in found.items() if line is not None}


def find_line(run: Run, bench: Bench) -> tuple[str, str] | None:
    """Return the bench's line of a run's model and method under the same options, if any."""
    options = _without_titles(flatten_options(run.options))
    for model, entry in bench.times:
        is_same = model == run.about["model"] and entry.split()[0] == run.about["method"]
        if is_same and compose_options(entry) == options:
            return model, entry
    return None


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


def render_tables(board: Board, bench: Bench | None, *, markdown: bool = False) -> str:
    """Render the tables of every protocol, and what stands in none of them."""
    lines = join_bench(board, bench) if bench else {}
    blocks: list[Parts] = []
    for rows in protocols(board.frame):
        blocks.append([heading(rows), *describe_costs(rows)])
        if bench:
            title = (
                "Time an image in the bench, by images in flight, plain sampling's being 1 "
                f"({bench.device}):"
            )
            blocks.append([printable(title), *describe_bench(rows, bench.by_run(lines))])
        blocks.append(describe_choices(rows))
    blocks.append([line for line in (excluded_line(board), problems_line(board)) if line])
    if bench and (unused := bench.times.keys() - set(lines.values())):
        names = "; ".join(printable(f"{entry} on {model}") for model, entry in sorted(unused))
        blocks.append([f"In the bench, and no run here: {names}."])
    return "\n\n".join("\n".join(lay_out(block, markdown=markdown)) for block in blocks if block)


def describe_costs(rows: pd.DataFrame) -> Parts:
    """Say what each run scores and costs, the fewest passes first."""
    spent = rows["device_s"] + rows["judge_s"]
    reasons = list_reasons(rows, ["vs_plain"])
    columns: dict[str, list[str]] = {
        "run": [printable(label) for label in rows["label"]],
        "score": [_score(row) for _, row in rows.iterrows()],
        "vs plain": [_difference(row, reasons) for _, row in rows.iterrows()],
        "passes": _format(rows["target_passes"], "{:.1f}"),
        "positions": _format(rows["target_positions"], "{:,.0f}"),
        "renders": _format(rows["renders"], "{:.1f}"),
        "judge calls": _format(rows["judge_calls"], "{:.1f}"),
        "seconds": _format(spent, "{:.3f}"),
        "by passes": _rank(rows["target_passes"]),
        "by seconds": _rank(spent),
    }
    table = Table(columns, _order(rows["target_passes"]))
    remarks = [*explain_reasons(reasons), *explain_widths(rows), *name_choosers(rows)]
    return [table, *map(printable, remarks)]


def describe_bench(rows: pd.DataFrame, times: Mapping[str, Times]) -> Parts:
    """Put the places of runs by the bench's times beside those by passes."""
    is_timed = rows["fingerprint"].isin(times.keys())
    timed = rows[is_timed]
    if timed.empty:
        return ["The bench has no line of any of these runs: model, method or options differ."]
    columns = {
        "run": [printable(label) for label in timed["label"]],
        "passes": _format(timed["target_passes"], "{:.1f}"),
    }
    places = {"by passes": _rank(timed["target_passes"])}
    for batch in BATCHES:
        of_batch = [times[name].get(batch, math.nan) for name in timed["fingerprint"]]
        if not all(map(math.isnan, of_batch)):
            columns[f"time at {batch}"] = _format(of_batch, "{:.3f}")
            places[f"by time at {batch}"] = _rank(pd.Series(of_batch))
    table = Table({**columns, **places}, _order(timed["target_passes"]))
    why = "the bench has no line with their model, method and options"
    return [table, *_name_left_out(rows[~is_timed], why)]


def describe_choices(rows: pd.DataFrame) -> Parts:
    """Say what the gain of each run that chooses among candidates took, fewest seconds first.

    The three places are by gain a token, a second of drawing, and a second with renders and judges:
    where they differ, what papers leave out decides. A gain that is not resolved has none.
    """
    is_choosing = (rows["judge_calls"] > 0) | (rows["candidates"].fillna(1) > 1)
    is_compared = rows["vs_plain"].notna()
    chosen = rows[is_choosing & is_compared]
    if not is_choosing.any():
        return []
    title = "Gain over plain sampling of methods that choose among candidates, and what it took:"
    parts: Parts = [title, *(_describe_gains(chosen) if len(chosen) else [])]
    parts += _name_left_out(
        rows[is_choosing & ~is_compared], "there is no scored plain run to compare with"
    )
    why = "one candidate, and no judge is asked"
    return [*parts, *_name_left_out(rows[~is_choosing], why)]


def _describe_gains(rows: pd.DataFrame) -> Parts:
    """Make the table of what gains took."""
    drawing = rows["device_s"] - rows["render_s"]
    spent = rows["device_s"] + rows["judge_s"]
    reasons = list_reasons(rows, ["vs_plain"])
    is_resolved = np.array([resolved(row, "vs_plain") for _, row in rows.iterrows()], dtype=bool)
    gain = rows["vs_plain"].where(is_resolved)
    columns = {
        "run": [printable(label) for label in rows["label"]],
        "gain": [_gain(row, reasons) for _, row in rows.iterrows()],
        "tokens": _format(rows["visual_tokens"], "{:,.0f}"),
        "renders": _format(rows["renders"], "{:.1f}"),
        "judge calls": _format(rows["judge_calls"], "{:.1f}"),
        "s drawing": _format(drawing, "{:.3f}"),
        "s rendering": _format(rows["render_s"], "{:.3f}"),
        "s judging": _format(rows["judge_s"], "{:.3f}"),
        "by tokens": _rank(-gain / rows["visual_tokens"]),
        "by drawing": _rank(-gain / drawing),
        "by all seconds": _rank(-gain / spent),
    }
    return [Table(columns, _order(spent)), *explain_reasons(reasons)]


def _name_left_out(rows: pd.DataFrame, why: str) -> list[str]:
    """Name the runs that a table leaves out, and why; [] where there are none."""
    if rows.empty:
        return []
    names = "; ".join(printable(label) for label in rows["label"])
    return [f"Left out, {why}: {names}."]


def _score(row: pd.Series) -> str:
    """Write a score; "not scored" for a run that nobody has judged."""
    return "not scored" if pd.isna(row["score"]) else f"{row['score']:.3f}"


def _difference(row: pd.Series, reasons: Mapping[str, str]) -> str:
    """Write a difference to plain sampling with its interval; in brackets if not resolved."""
    if pd.isna(row["vs_plain"]):
        return ""
    text = f"{row['vs_plain']:+.3f}"
    if not pd.isna(row["vs_plain_low"]):  # known where no category has a single prompt
        text += f" [{row['vs_plain_low']:+.3f}, {row['vs_plain_high']:+.3f}]"
    return mark_unresolved(text, row, "vs_plain", reasons)


def _gain(row: pd.Series, reasons: Mapping[str, str]) -> str:
    """Write a gain over plain sampling; in brackets if not resolved."""
    return mark_unresolved(f"{row['vs_plain']:+.3f}", row, "vs_plain", reasons)


def _format(values: Iterable[float], pattern: str) -> list[str]:
    """Write numbers; nothing where one is missing."""
    write: Callable[[Any], str] = pattern.format
    return ["" if pd.isna(value) else write(float(value)) for value in values]


def _rank(values: pd.Series) -> list[str]:
    """Write each value's place, the smallest first; equals share a place."""
    ranks = values.astype(float).round(9).rank(method="min")
    return ["" if pd.isna(rank) else f"{rank:.0f}" for rank in ranks]


def _order(values: pd.Series) -> list[int]:
    """Return the numbers of the rows, the smallest value first."""
    ordered = values.reset_index(drop=True).sort_values(kind="stable")
    return [int(row) for row in ordered.index]


# ------------------------------------------------------------------ layout


def lay_out(parts: Parts, *, markdown: bool = False) -> list[str]:
    """Return the lines of tables and sentences: aligned, or in Markdown, an empty line apart."""
    lines: list[str] = []
    for part in parts:
        if markdown and lines:
            lines.append("")
        if isinstance(part, str):
            lines.append(part)
        else:
            lines += _to_markdown(part) if markdown else _align(part)
    return lines


def _list_rows(table: Table) -> list[list[str]]:
    """List the cells row by row, the headings first."""
    rows = [list(table.columns)]
    rows += [[cells[i] for cells in table.columns.values()] for i in table.order]
    return rows


def _align(table: Table) -> list[str]:
    """Write a table as aligned lines, the first column to the left."""
    rows = _list_rows(table)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    written: list[str] = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        written.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return written


def _to_markdown(table: Table) -> list[str]:
    """Write a table in Markdown, numbers to the right."""
    head, *rows = _list_rows(table)
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return [_pipe_row(cells) for cells in (head, ruler, *rows)]


def _pipe_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    sys.exit(main())
