"""Load runs into pandas frames: `harness.load("results")`.

    results = harness.load("results")    # or one run folder
    results.runs                         # a row for each run, as in leaderboard.csv
    results.runs["method.n"]             # options of methods and sampling, a column each
    results.images                       # a row for each planned image: cost, score and notes
    results.prompts                      # a row for each prompt of a benchmark

Only journals are read: nothing is written, and no image is opened. What the columns mean is in
docs/columns.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.results.columns import (
    COSTS,
    IMAGES,
    LEADERBOARD,
    PROMPTS,
    STAGE_SECONDS,
    TEXT,
    YES,
    Column,
)
from harness.results.image_metrics import list_metric_columns
from harness.results.labels import TARGET, Label, flatten_options
from harness.results.leaderboard import Board, problems_line, project_runs
from harness.results.reasons import explain_value
from harness.runs.read import FoundRuns, Run, read_run, read_runs

TEXTS = frozenset({TEXT, "8 hex digits", "16 hex digits", "same, family or empty"})
"""Units of columns whose values are texts."""
WHOLE = frozenset({"images", "prompts", "questions", "candidates", "integer", "number", "rank"})
"""Units of columns whose values are whole numbers, or unknown."""
MEASURED = (*COSTS, *STAGE_SECONDS)
"""Columns of images that are costs: fields of `records.Usage`."""


@dataclass(frozen=True, slots=True, repr=False)
class Results:
    """The runs of a folder as frames; unknown values are missing (NaN or NA)."""

    runs: pd.DataFrame
    """A row for each run, in the order of leaderboard.csv, with its columns."""
    images: pd.DataFrame
    """A row for each planned image of each run, `fingerprint` and `label` of which it has."""
    prompts: pd.DataFrame
    """A row for each prompt of each set of prompts (`prompts_sha`)."""
    problems: tuple[str, ...] = ()
    """Why each run that is left out cannot be used."""
    excluded: tuple[str, ...] = ()
    """Runs that name a reason not to be ranked, and the reason; they are left out too."""

    def __repr__(self) -> str:
        """Return how much there is, and what is left out."""
        sizes = f"{len(self.runs)} runs, {len(self.images)} images, {len(self.prompts)} prompts"
        left_out = len(self.problems) + len(self.excluded)
        return f"<Results: {sizes}{f', {left_out} runs left out' if left_out else ''}>"


def load(folder: str | Path) -> Results:
    """Load a results folder, or a single run folder.

    The tables are made from the journals, as `stages=[report]` makes them, and take as long. A run
    that cannot be used is left out, named in `problems` and in a warning. Raises UserError if there
    is no such folder, and for a run folder that cannot be read.
    """
    path = Path(folder)
    is_run = (path / "config.yaml").exists()
    found = FoundRuns([read_run(path)], []) if is_run else read_runs(path)
    board = project_runs(found.runs, found.problems)
    if board.problems:
        warnings.warn(problems_line(board), stacklevel=2)
    return Results(
        runs=_tabulate_runs(board),
        images=_tabulate_images(list(zip(board.runs, board.labels, strict=True))),
        prompts=_tabulate_prompts(board.runs),
        problems=board.problems,
        excluded=tuple(f"{run.path}: {run.excluded}" for run in board.excluded),
    )


# --- runs -----------------------------------------------------------------------------------------


def _tabulate_runs(board: Board) -> pd.DataFrame:
    """Return the leaderboard in its columns' types, with each run's folder and options."""
    frame = board.frame
    runs = board.runs
    columns = {
        column.name: column
        for column in (*LEADERBOARD.columns, *list_metric_columns(board.image_metrics))
    }
    typed = {}
    for name in map(str, frame):
        typed[name] = _typed(frame[name], columns.get(name))
    typed["folder"] = pd.Series([str(run.path) for run in runs], dtype="string")
    options = pd.DataFrame([_list_options(run) for run in runs], dtype=object)
    for name in sorted(map(str, options)):
        typed[name] = _infer_type(options[name])
    return pd.DataFrame(typed)


def _list_options(run: Run) -> dict[str, Any]:
    """Return the options of a run's method and sampling under dotted names: method.n."""
    model = run.config.get("model")
    sampling = model.get("sampling") if isinstance(model, Mapping) else None
    groups = {"method": run.options, "model.sampling": sampling or {}}
    options = {}
    for group, values in groups.items():
        for name, value in flatten_options(values, group).items():
            if name not in (group, f"{group}.{TARGET}"):
                options[name] = value
    return options


def _typed(values: pd.Series, column: Column | None) -> pd.Series:
    """Return a column in the type of its unit: text, truth, whole number or number."""
    if column is None:
        return values.astype("float64")
    if column.unit in YES:
        return values.map({"yes": True, "no": False, "": False}).astype("boolean")
    if column.unit in TEXTS:
        return values.astype("string")
    is_whole = column.unit in WHOLE and column.group != "cost"  # costs of runs are means
    return values.astype("Int64" if is_whole else "float64")


def _infer_type(values: pd.Series) -> pd.Series:
    """Return a column of options or notes in the type that all known values share."""
    inferred = values.astype(object).convert_dtypes()
    return inferred.astype("float64") if inferred.dtype == "Float64" else inferred


# --- images and prompts ---------------------------------------------------------------------------


def _tabulate_images(runs: list[tuple[Run, Label]]) -> pd.DataFrame:
    """Return a row for each planned image of each run, sorted by prompt and image within it."""
    rows = []
    for run, label in runs:
        for prompt_id, image in sorted(run.planned):
            rows.append(_describe_image(run, str(label), (prompt_id, image)))
    notes = sorted({name for row in rows for name in row} - set(IMAGES.names))
    frame = pd.DataFrame(rows, columns=[*IMAGES.names, *notes])
    for column in IMAGES.columns:
        if column.name in MEASURED:
            is_seconds = column.unit == "s"
            values = frame[column.name]
            frame[column.name] = values.astype("float64" if is_seconds else "Int64")
        elif column.name != "detail":
            frame[column.name] = _typed(frame[column.name], column)
    for name in notes:
        frame[name] = _infer_type(frame[name])
    return frame


def _describe_image(run: Run, label: str, key: tuple[str, int]) -> dict[str, Any]:
    """Return the row of an image; what was not delivered or not judged lacks cost or score."""
    prompt_id, image = key
    about = run.about
    row: dict[str, Any] = {
        "benchmark": about["benchmark"],
        "model": about["model"],
        "method": about["method"],
        "label": label,
        "seed": about["seed"],
        "fingerprint": run.fingerprint,
        "prompt_id": prompt_id,
        "image": image,
        "category": run.planned[key],
        "prompt": run.prompts[prompt_id].text,
        "status": "failed" if key in run.failed else "missing",
        "reason": explain_value(run, key),
        "detail": {},
        "file": "",
    }
    record = run.done.get(key)
    if record is None:
        return row
    row["status"] = "done"
    for name in MEASURED:
        row[name] = getattr(record.usage, name)
    file = run.image(record)
    row["file"] = "" if file is None else str(file)
    if key in run.scores:
        row["score"] = run.scores[key].value
        row["detail"] = dict(run.scores[key].detail)
    for name, measured in run.metrics.items():
        row[f"metrics.{name}"] = measured.values.get(key)
    return row | {f"notes.{name}": value for name, value in record.notes.items()}


def _tabulate_prompts(runs: tuple[Run, ...]) -> pd.DataFrame:
    """Return a row for each prompt of each set of prompts."""
    rows: dict[tuple[str, str, str], tuple[Any, ...]] = {}
    for run in runs:
        benchmark = run.protocol.benchmark
        sha = run.protocol.prompts_sha
        for prompt in run.prompts.values():
            about = (prompt.category, prompt.text, prompt.weight, prompt.cluster)
            rows.setdefault((benchmark, sha, prompt.id), (benchmark, sha, prompt.id, *about))
    frame = pd.DataFrame(list(rows.values()), columns=list(PROMPTS.names))
    for column in PROMPTS.columns:
        frame[column.name] = _typed(frame[column.name], column)
    return frame
