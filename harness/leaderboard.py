"""From run folders to results/leaderboard.csv: a pure projection of what the journals say, one row per run.

A run folder holds `config.yaml` (with what the run is, under `run`), `jobs.jsonl` (the planned images),
`records-*.jsonl` (what was delivered or failed) and `scores.jsonl`. Nothing else is read, and equal journals give an
equal file, byte for byte.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from harness import stats
from harness.records import SampleRecord, Score, UserError, one_line
from harness.store import read_lines, write_atomic

Key = tuple[str, int]
Summary = Callable[[pd.DataFrame], Mapping[str, float]]
"""A benchmark's own aggregation: score table (see stats.py) -> column -> number; `score` is among the columns."""
Cell = str | int | float

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COSTS = (
    *("visual_tokens", "target_passes", "target_positions", "drafted_positions", "renders", "judge_calls"),
    *("judge_s", "device_s", "wall_s"),
)
COLUMNS = (
    *("benchmark", "model", "method", "params", "images", "score", "ci_low", "ci_high", *TASKS, *COSTS),
    *("failed", "unjudged", "seed", "fingerprint", "device", "commit", "missing", "judge", "numerics"),
)
WIDTH = 140
"""Characters that the printed table may fill."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, read."""

    about: Mapping[str, Any]  # the `run` mapping of config.yaml
    planned: Mapping[Key, str]  # (prompt_id, image) -> category
    done: Mapping[Key, SampleRecord]
    failed: frozenset[Key]  # not done, and the last attempt failed
    scores: Mapping[Key, Score]
    judge: str  # "" before the first score

    def table(self) -> pd.DataFrame:
        """One row per planned image, in sorted order; what was not delivered or not judged has the value 0."""
        judged = {key: score.value for key, score in self.scores.items() if key in self.done}
        rows = [(p, i, self.planned[p, i], judged.get((p, i)) or 0.0) for p, i in sorted(self.planned)]
        return pd.DataFrame(rows, columns=["prompt_id", "image", "category", "value"])


def build(results: Path) -> pd.DataFrame:
    """Rebuild `results`/leaderboard.csv from the run folders below (benchmark/model/method-fingerprint) and return it.

    Raises UserError naming the folder that cannot be read; the file is then left as it was.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such results folder")
    folders = sorted(path.parent for path in results.glob("[!.]*/*/*/config.yaml"))
    rows = [row(folder) for folder in folders]
    rows.sort(key=_order)
    extra = sorted({name for one in rows for name in one} - set(COLUMNS))
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *extra])
    text = pd.DataFrame({name: [_cell(name, value) for value in frame[name]] for name in map(str, frame)}, dtype=object)
    write_atomic(results / "leaderboard.csv", text.to_csv(index=False, lineterminator="\n").encode())
    return frame


def by_category(table: pd.DataFrame) -> dict[str, float]:
    """The summary of benchmarks that have none of their own: each category's mean, and their macro mean."""
    return {"score": stats.macro_mean(table), **stats.category_means(table)}


def row(folder: Path, summary: Summary = by_category) -> dict[str, Cell]:
    """A run's leaderboard row; the interval is that of the macro mean over categories.

    Planned images that were not delivered or not judged are wrong. `images` counts the delivered ones; costs are means
    over these. Raises UserError naming a folder that cannot be read.
    """
    run = read_run(folder)
    table = run.table()
    numbers = dict(summary(table))
    if clash := [name for name in numbers if name in COLUMNS and name not in ("score", *TASKS)]:
        raise UserError(f"{folder}: category {clash[0]!r} has the name of a leaderboard column; rename the category")
    low, high = stats.interval(table)
    done = [record for _, record in sorted(run.done.items())]
    unjudged = [key for key in run.done if key not in run.scores or run.scores[key].value is None]
    return {
        **{name: str(run.about[name] or "") for name in ("benchmark", "model", "method", "params", "fingerprint")},
        **numbers,
        **{name: _mean(getattr(record.usage, name) for record in done) for name in COSTS},
        "images": len(done),
        "ci_low": low,
        "ci_high": high,
        "failed": len(run.failed),
        "missing": len(run.planned) - len(done) - len(run.failed),
        "unjudged": len(unjudged),
        "seed": run.about["seed"],
        "numerics": str(run.about.get("numerics") or ""),
        "judge": run.judge,
        **{name: "+".join(sorted({r.stamp[name] for r in done if r.stamp.get(name)})) for name in ("device", "commit")},
    }


# --- reading a run folder --------------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError naming it, and the line where there is one."""
    about = _about(folder)
    planned = {
        (prompt_id, image): category
        for prompt_id, category, images in read_lines(folder / "jobs.jsonl", _job)
        for image in range(images)
    }
    if not planned:
        raise UserError(f"{folder / 'jobs.jsonl'}: no image is planned")
    if len(planned) != about["planned"]:
        raise UserError(f"{folder}: config.yaml plans {about['planned']} images, jobs.jsonl lists {len(planned)}")
    done: dict[Key, SampleRecord] = {}
    failed: set[Key] = set()
    for journal in sorted(folder.glob("records-*.jsonl")):
        for record in read_lines(journal, SampleRecord.from_json):
            if record.key not in planned:
                raise UserError(f"{journal}: image {record.image} of {record.prompt_id} is not among the planned ones")
            if record.status == "done":
                done[record.key] = record
            else:
                failed.add(record.key)
    judge, scores = _scores(folder, str(about.get("judge") or ""))
    return Run(about, planned, done, frozenset(failed - done.keys()), scores, judge)


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        about = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("run")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(about, dict):
        raise UserError(f"{path}: no 'run' mapping, so {folder} is no run folder")
    needed = ("benchmark", "model", "method", "params", "fingerprint", "seed", "planned")
    if absent := [name for name in needed if name not in about]:
        raise UserError(f"{path}: run.{absent[0]} is missing")
    return about


def _scores(folder: Path, judge: str) -> tuple[str, dict[Key, Score]]:
    path = folder / "scores.jsonl"
    lines = list(read_lines(path, Score.from_json)) if path.exists() else []
    judges = {judge} if judge else {score.judge for score in lines}
    if len(judges) > 1:
        names = ", ".join(sorted(judges))
        raise UserError(f"{path}: scores of several judges ({names}); one row needs one judge, named as run.judge")
    return "".join(judges), {(s.prompt_id, s.image): s for s in lines if s.judge in judges}


def _job(line: str) -> tuple[str, str, int]:
    value = json.loads(line)
    return value["prompt_id"], value["category"], int(value["images"])


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


# --- writing ---------------------------------------------------------------------------------------------------------


def _order(one: Mapping[str, Cell]) -> list[list[tuple[int, str]]]:
    """Sorts texts by the numbers in them: n=2, n=4, n=16."""
    names = ("benchmark", "model", "method", "params", "seed", "fingerprint")
    parts = [re.findall(r"\d+|\D+", str(one[name])) for name in names]
    return [[(int(part) if part.isdecimal() else -1, part) for part in split] for split in parts]


def _cell(name: str, value: object) -> str:
    """A CSV cell: whole numbers as they are, others with four digits; two for costs that are counts."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if name in COSTS and not name.endswith("_s") else f"{value:.4f}"


def render_table(frame: pd.DataFrame) -> str:
    """The board as text for a terminal of 140 columns: a block for each benchmark and model, a line for each run."""
    if frame.empty:
        return "The leaderboard is empty: no run folder was found."
    blocks = []
    for (benchmark, model), runs in frame.groupby(["benchmark", "model"], sort=False):
        planned = sorted(set(runs["images"] + runs["failed"] + runs["missing"]))
        heading = f"{benchmark} on {model}, {' or '.join(map(str, planned))} images a run"
        blocks.append("\n".join([heading, *_printed(runs)]))
    return "\n\n".join(blocks)


SHORT = {
    "single_object": "single",
    "two_object": "two",
    "counting": "count",
    "position": "posit.",
    "color_attr": "attr",
    "visual_tokens": "tokens",
    "target_passes": "passes",
}
DIGITS = {"visual_tokens": 0, "target_passes": 1, "device_s": 3, "judge_s": 3, "failed": 0, "missing": 0, "unjudged": 0}


def _printed(runs: pd.DataFrame) -> list[str]:
    """Header and lines; parameters cut and categories dropped only where they do not fit."""
    categories = [*TASKS, *(str(name) for name in runs.columns if name not in COLUMNS)]
    categories = [name for name in categories if runs[name].notna().any()]
    numbers = ["visual_tokens", "target_passes", "device_s", "judge_s"]
    numbers += [name for name in ("failed", "missing", "unjudged") if runs[name].any()]
    for width, shown in ((28, categories), (20, categories), (12, categories), (28, [])):
        lines = _align([*_names(runs, width), _scores_of(runs), *(_column(runs, name) for name in [*shown, *numbers])])
        if max(map(len, lines)) <= WIDTH:
            break
    return lines


def _names(runs: pd.DataFrame, width: int) -> list[list[str]]:
    columns = [["method", *map(str, runs["method"])], ["params", *map(str, runs["params"])]]
    columns += [["seed", *map(str, runs["seed"])]] if runs["seed"].nunique() > 1 else []
    return [[text if len(text) <= width else text[: width - 2] + ".." for text in column] for column in columns]


def _scores_of(runs: pd.DataFrame) -> list[str]:
    column = ["score [95% interval]"]
    for score, low, high in zip(runs["score"], runs["ci_low"], runs["ci_high"], strict=True):
        column.append(f"{score:.3f} [{'    -,     -' if math.isnan(low) else f'{low:.3f}, {high:.3f}'}]")
    return column


def _column(runs: pd.DataFrame, name: str) -> list[str]:
    digits = DIGITS.get(name, 2)
    return [SHORT.get(name, name), *("-" if math.isnan(value) else f"{value:.{digits}f}" for value in runs[name])]


def _align(columns: list[list[str]]) -> list[str]:
    texts = ("method", "params")
    padded = [
        [cell.ljust(width) if column[0] in texts else cell.rjust(width) for cell in column]
        for column in columns
        for width in [max(map(len, column))]
    ]
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
