"""Build the tables of a results folder: a pure projection of what the journals say.

    results/leaderboard.csv  one row per run: score, costs, interval, tie group, differences
    results/metrics.csv      long form: one row per run and metric, with interval and sample size
    results/curves.csv       one row per method and currency: quality at equal budget, areas

Nothing but run folders is read (see runs/read.py), and equal journals give equal files, byte for
byte. Distances to plain sampling's images are measured first where features are kept, and stay in
the run folders. Rows whose protocols differ (benchmark, version, prompts, judge, images per prompt,
numerics, model) are never ranked together. `columns` says what each column means.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pandas as pd

from harness.results.columns import (
    CURVES,
    LEADERBOARD,
    METRICS,
    OCCASIONAL,
    TASKS,
    Column,
    benchmark_column,
)
from harness.results.image_metrics import (
    compare_metrics,
    describe_metrics,
    list_metric_columns,
    metric_values,
)
from harness.results.labels import Label, label_runs
from harness.results.metrics import (
    Metric,
    curve_rows,
    distance_metrics,
    run_identity,
    run_metrics,
    unscored_metrics,
)
from harness.results.plain_distance import read_distances, update_distances
from harness.results.ranking import PLAIN, RankedGroup, find_misfits
from harness.results.rows import (
    RESOLVED,
    Row,
    describe_distance,
    leaderboard_rows,
    name_run,
    unscored_row,
)
from harness.runs.journal import write_atomic
from harness.runs.metrics import MetricAbout
from harness.runs.read import RankingProtocol, Run, read_runs

DIGITS = {column.name: column.digits for column in LEADERBOARD.columns}
"""Digits after the decimal point of a column; 4 for those that are not there."""


@dataclass(frozen=True, slots=True)
class Board:
    """The tables of a results folder."""

    runs: tuple[Run, ...]  # in the order of the frame's rows
    labels: tuple[Label, ...]  # what each is called
    frame: pd.DataFrame  # leaderboard.csv
    metrics: pd.DataFrame  # metrics.csv
    curves: pd.DataFrame  # curves.csv
    excluded: tuple[Run, ...]  # runs that name a reason not to be ranked
    problems: tuple[str, ...] = ()  # why each run that is left out cannot be used
    image_metrics: Mapping[str, MetricAbout] = field(default_factory=dict)  # by name


def build(results: Path) -> Board:
    """Build the tables from the run folders below `results`, and write them there.

    Run folders are benchmark/model/method-fingerprint. A run that cannot be read, or that does not
    fit its neighbours, is left out and named in `problems`.
    """
    found = read_runs(results)
    update_distances(found.runs)
    board = project_runs(found.runs, found.problems)
    write_atomic(
        results / LEADERBOARD.file, to_csv(board.frame, list_metric_columns(board.image_metrics))
    )
    write_atomic(results / METRICS.file, to_csv(board.metrics))
    write_atomic(results / CURVES.file, to_csv(board.curves))
    return board


def project_runs(runs: Iterable[Run], problems: Iterable[str] = ()) -> Board:
    """Build the tables of some runs; their order does not matter.

    Runs without a score have a row of costs, and are compared with none. `problems` are those of
    runs that could not be read.
    """
    # 1. Leave out what nothing can be said about.
    ordered = sorted(runs, key=_natural_order)
    candidates = [run for run in ordered if not run.excluded]
    misfits = find_misfits(candidates)
    ranked = [run for run in candidates if run.path not in misfits]

    # 2. Compare the runs of each protocol.
    labels = label_runs(ranked)
    rows: dict[Path, Row] = {}
    metrics: dict[Path, list[Metric]] = {}
    curves: list[Row] = []
    for run in ranked:
        if not run.is_scored:
            rows[run.path] = unscored_row(run)
            metrics[run.path] = unscored_metrics(run, rows[run.path])
    for group in _group_by_protocol([run for run in ranked if run.is_scored]):
        for run, row in zip(group.runs, leaderboard_rows(group), strict=True):
            rows[run.path] = row
            metrics[run.path] = run_metrics(group, run, row)
        curves += curve_rows(group, labels)
    for members in group_runs(ranked):
        for path, found in compare_metrics(members).items():
            rows[path] |= found.row
            metrics[path] += metric_values(found)
    for path, distance in read_distances(ranked).items():
        row = describe_distance(distance)
        rows[path] |= row
        metrics[path] += distance_metrics(row, distance.prompts)
    for run in ranked:
        rows[run.path] |= name_run(labels[run.path])

    # 3. Lay them out.
    image_metrics = describe_metrics(ranked)
    metric_rows: list[Row] = []
    for run in ranked:
        for metric in metrics[run.path]:
            metric_rows.append(run_identity(run, labels[run.path]) | metric._asdict())
    return Board(
        runs=tuple(ranked),
        labels=tuple(labels[run.path] for run in ranked),
        frame=_leaderboard_frame(
            [rows[run.path] for run in ranked],
            _asked_tasks(ranked),
            list_metric_columns(image_metrics),
        ),
        metrics=pd.DataFrame(metric_rows, columns=METRICS.names),
        curves=pd.DataFrame(curves, columns=CURVES.names),
        excluded=tuple(run for run in ordered if run.excluded),
        problems=(*problems, *misfits.values()),
        image_metrics=image_metrics,
    )


def problems_line(board: Board) -> str:
    """Return which runs are left out because they cannot be used, and why; "" if none is."""
    if not board.problems:
        return ""
    return f"{len(board.problems)} runs are left out: {'; '.join(board.problems)}"


def group_runs(runs: Iterable[Run]) -> list[list[Run]]:
    """Return the runs of each protocol, in their order."""
    by_protocol = groupby(sorted(runs, key=_protocol), key=_protocol)
    return [list(members) for _, members in by_protocol]


def _group_by_protocol(runs: list[Run]) -> Iterable[RankedGroup]:
    for members in group_runs(runs):
        pool = [run for run in runs if _is_in_pool(run, members[0].protocol)]
        yield RankedGroup(members, pool)


def _protocol(run: Run) -> RankingProtocol:
    return run.protocol


def _is_in_pool(run: Run, protocol: RankingProtocol) -> bool:
    """True for complete plain runs of the protocol, whatever their number of images per prompt."""
    any_number = run.protocol._replace(images_per_prompt=protocol.images_per_prompt)
    return any_number == protocol and run.about["method"] == PLAIN and run.complete


def _asked_tasks(runs: Iterable[Run]) -> set[str]:
    """Return the tasks of GenEval that are among the categories of a run."""
    asked: set[str] = set()
    for run in runs:
        asked |= set(TASKS).intersection(run.planned.values())
    return asked


def _leaderboard_frame(
    rows: list[Row], tasks: Collection[str], metrics: Sequence[Column]
) -> pd.DataFrame:
    """Return leaderboard.csv: its fixed columns, the benchmarks' own ones by name, and `metrics`.

    Of the fixed columns with GenEval's tasks it has those in `tasks`, and of other occasional ones
    those that a row has.
    """
    names = {name for row in rows for name in row}
    known = {*LEADERBOARD.names, *(column.name for column in metrics)}
    further = [benchmark_column(name) for name in sorted(names - known)]
    shown = {*tasks, *(names - set(TASKS))}
    header = []
    for column in (*LEADERBOARD.columns, *further, *metrics):
        if column.name in shown or column.name not in OCCASIONAL:
            header.append(column.name)
    return pd.DataFrame(rows, columns=header)


def _natural_order(run: Run) -> list[list[tuple[int, str]]]:
    """Return a sort key that orders texts by the numbers in them: n=2, n=4, n=16."""
    about = run.about
    texts = (
        about["benchmark"],
        about["model"],
        about["method"],
        run.candidates or 0,
        about["params"],
        about["seed"],
        about["fingerprint"],
    )
    return [_split_numbers(str(text)) for text in texts]


def _split_numbers(text: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", text)
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


# --- writing a table ------------------------------------------------------------------------------


def to_csv(frame: pd.DataFrame, further: Iterable[Column] = ()) -> bytes:
    """Return a table as its file's bytes; `further` columns have digits of their own."""
    digits = DIGITS | {column.name: column.digits for column in further}
    text = {}
    for name in map(str, frame):
        text[name] = [format_cell(name, value, digits) for value in frame[name]]
    table = pd.DataFrame(text, dtype=object)
    return table.to_csv(index=False, lineterminator="\n").encode()


def format_cell(name: str, value: object, digits: Mapping[str, int] = DIGITS) -> str:
    """Format a cell of the column `name`: floats with the digits of their column, 4 by default.

    Sums may differ in their last bit between machines; rounding twice keeps that out of the file.
    """
    if value is None or value is pd.NA:
        return ""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    places = digits.get(name, 4)
    if places == 0 or math.isinf(value):
        return f"{value:.0f}"
    return f"{round(value, 10):.{places}f}"


# --- words for tables -----------------------------------------------------------------------------


def excluded_line(board: Board) -> str:
    """Return how many runs stay out, and why; "" if none does."""
    reasons = Counter(run.excluded for run in board.excluded)
    counts = [f"{count} excluded: {reason}" for reason, count in sorted(reasons.items())]
    return "; ".join(counts)


def protocols(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Split the leaderboard into the rows of each protocol, in the order of their first ones."""
    return [runs for _, runs in frame.groupby("protocol", sort=False)]


def rows_beside(board: Board, folders: Collection[Path]) -> pd.DataFrame:
    """Return the rows of each protocol that a run in `folders` has; all rows if none of them has.

    A command prints what it changed, and not the other boards of its results folder.
    """
    own = [run.path in folders for run in board.runs]
    if not any(own):
        return board.frame
    protocol = board.frame["protocol"]
    return board.frame[protocol.isin(protocol[own])]


def heading(runs: pd.DataFrame) -> str:
    """Return the heading of the rows of one protocol."""
    first = runs.iloc[0]
    return (
        f"{first['benchmark']} on {first['model']}, "
        f"{first['prompts']} prompts x {first['images_per_prompt']} images"
    )


def resolved(row: pd.Series, name: str) -> bool:
    """Tell whether a row's difference is of detectable size and its adjusted p below 5 %."""
    return bool(row[f"{name}_verdict"] == RESOLVED)
