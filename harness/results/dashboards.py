"""Describe the dashboards of a board as plain values, before any service shows them.

Each run has a page, and so has each protocol, with its leaderboard and scaling curves. The pages
of runs that may be compared share a group. Everything is a pure function of journals and
leaderboard, so that equal journals give equal pages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pandas as pd

from harness.records import Score, Usage, digest
from harness.results.contact_sheet import render_contact_sheet
from harness.results.labels import Label, label_runs
from harness.results.leaderboard import Board, heading, protocols
from harness.results.ranking import CURRENCIES, Currency, Curve, RankedGroup
from harness.results.reasons import explain_value
from harness.runs.read import Run

PROGRESS_LINES = 50
"""Lines that a run's progress has, about."""
STEPS = {"progress/*": "progress/images", "scaling/*": "budget", "scaling_seconds/*": "budget_s"}
"""Metrics -> what they are plotted over."""
BUDGETS: Mapping[Currency, tuple[str, str]] = {
    "visual_tokens": ("scaling", "budget"),
    "seconds": ("scaling_seconds", "budget_s"),
}
"""Currency -> the prefix of its curves, and what they are plotted over."""

Line = Mapping[str, float]
"""Metric -> value, logged together."""
Step = tuple[int, Line]
"""When a line is logged, and the line."""
Table = tuple[list[str], list[list[Any]]]
"""Column names and rows."""


@dataclass(frozen=True, slots=True)
class Page:
    """A dashboard: its name, and all that it shows."""

    id: str
    name: str
    group: str
    kind: str
    tags: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    progress: Sequence[Step] = ()
    points: Sequence[Line] = ()  # of curves, each with its budget
    summary: Mapping[str, float | str] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    picture: bytes | None = None  # PNG

    @property
    def content(self) -> dict[str, Any]:
        """Return all of it as JSON values; the picture by its hash."""
        config = json.loads(json.dumps(self.config))
        return {
            "about": [self.id, self.name, self.group, self.kind, list(self.tags), config],
            "progress": [list(step) for step in self.progress],
            "points": list(self.points),
            "summary": dict(self.summary),
            "tables": {name: list(table) for name, table in self.tables.items()},
            "picture": None if self.picture is None else digest(self.picture),
        }


def describe_board(board: Board, pictures: int) -> Iterator[Page]:
    """Yield the page of each run, with at most `pictures` of its images, then of each protocol."""
    rows = [row for _, row in board.frame.iterrows()]
    fingerprints = board.metrics["fingerprint"]
    for run, label, row in zip(board.runs, board.labels, rows, strict=True):
        metrics = board.metrics[fingerprints == run.fingerprint]
        page = _describe_run(run, row, metrics, pictures)
        yield replace(page, name=_name_page(run, label))
    for frame in protocols(board.frame):
        protocol_id = frame["protocol"].iloc[0]
        runs = [run for run in board.runs if run.protocol.id == protocol_id]
        yield _describe_protocol(runs, frame)


# --- a run ----------------------------------------------------------------------------------------


def describe_planned(run: Run) -> Page:
    """Return a run's page as far as it is known before anything is drawn."""
    tags = [str(run.about["method"]), run.protocol.benchmark, run.protocol.model]
    if run.concurrency == 1:
        tags.append("latency")
    return Page(
        id=run.fingerprint,
        name=_name_page(run, label_runs([run])[run.path]),
        group=_group(run),
        kind="run",
        tags=tags,
        config=run.config,
    )


def _name_page(run: Run, label: Label) -> str:
    """Return a run's label with its seed, which tells runs of several boards apart."""
    seed = f"seed {run.about['seed']}"
    return str(label) if seed in label.options else f"{label}, {seed}"


def _group(run: Run) -> str:
    protocol = run.protocol
    return f"{protocol.benchmark}-{protocol.model}-{protocol.id}"


def _describe_run(run: Run, row: pd.Series, metrics: pd.DataFrame, pictures: int) -> Page:
    """Return the page of a run from its leaderboard row and its rows of metrics.csv."""
    scored = []
    for key, score in run.scores.items():
        if key in run.done:
            scored.append((run.done[key].usage, score))
    return replace(
        describe_planned(run),
        progress=Progress(len(run.planned)).add(scored),
        points=_run_points(row),
        summary=_run_summary(row, metrics),
        tables={"prompts": _prompt_table(run)},
        picture=render_contact_sheet(run, pictures),
    )


def _run_points(row: pd.Series) -> list[Line]:
    """Return a run's score over each known budget."""
    points: list[Line] = []
    score = float(row["score"])
    for prefix, budget_name in BUDGETS.values():
        budget = float(row[budget_name])
        if budget > 0 and not math.isnan(score):
            points.append({budget_name: budget, f"{prefix}/score": score})
    return points


def _run_summary(row: pd.Series, metrics: pd.DataFrame) -> dict[str, float | str]:
    """Return every metric of a run with the ends of its interval, and its counts of images."""
    summary: dict[str, float | str] = {}
    for metric in metrics.itertuples():
        name = str(metric.metric)
        low = float(cast(float, metric.ci_low))
        high = float(cast(float, metric.ci_high))
        summary[name] = float(cast(float, metric.value))
        if not math.isnan(low):
            summary[f"{name}_low"] = low
        if not math.isnan(high):
            summary[f"{name}_high"] = high

    for name in ("images", "failed", "missing", "unjudged", "unanswered"):
        summary[f"images/{name}"] = int(row[name])
    tie_group = row["tie_group"]
    if isinstance(tie_group, int | float) and not math.isnan(tie_group):
        summary["quality/tie_group"] = int(tie_group)
    return summary


def _prompt_table(run: Run) -> Table:
    """Return each prompt with the mean value of its images, and why the first wrong one is."""
    rows = []
    for prompt in run.prompts.values():
        values = []
        reason = ""
        for image in range(run.protocol.images_per_prompt):
            score = run.scores.get((prompt.id, image))
            if score is None:
                values.append(0.0)
                continue
            values.append(score.value or 0.0)
            if values[-1] < 1:
                reason = reason or explain_value(run, (prompt.id, image))

        mean = sum(values) / len(values)
        rows.append([prompt.id, prompt.category, prompt.text, mean, reason])
    return ["prompt_id", "category", "prompt", "value", "reason"], rows


# --- the runs of a protocol -----------------------------------------------------------------------


def _describe_protocol(runs: Sequence[Run], frame: pd.DataFrame) -> Page:
    """Return the page of runs that may be compared, from their rows of the leaderboard."""
    points: list[Line] = []
    summary: dict[str, float | str] = {"runs": len(runs)}
    scored = [run for run in runs if run.is_scored]
    if scored:
        group = RankedGroup(scored)
        summary["best/score"] = float(frame["score"].max())
        labels = label_runs(runs)
        for currency in CURRENCIES:
            for curve in group.curves(currency):
                family = labels[curve.runs[-1].path].family
                points += _curve_points(curve, family, currency)

    known = frame.dropna(axis=1, how="all")
    rows = []
    for row in known.itertuples(index=False):
        rows.append([_json_value(value) for value in row])

    protocol = runs[0].protocol
    return Page(
        id=protocol.id,
        name=heading(frame),
        group=_group(runs[0]),
        kind="leaderboard",
        tags=[protocol.benchmark, protocol.model],
        config={"protocol": protocol._asdict()},
        points=points,
        summary=summary,
        tables={"leaderboard": ([str(name) for name in known], rows)},
    )


def _curve_points(curve: Curve, family: str, currency: Currency) -> list[Line]:
    """Return a scaling curve's points, each with its 95 % interval if there is one."""
    prefix, budget_name = BUDGETS[currency]
    name = f"{prefix}/{family}, seed {curve.seed}"
    ends = None
    if curve.quality_D.size:
        ends = np.quantile(curve.quality_D, [0.025, 0.975], axis=1)

    points: list[Line] = []
    for i, budget in enumerate(curve.budgets):
        point = {budget_name: float(budget), name: float(curve.quality[i])}
        if ends is not None:
            point[f"{name} low"] = float(ends[0][i])
            point[f"{name} high"] = float(ends[1][i])
        points.append(point)
    return points


def _json_value(value: Any) -> Any:
    """Return a cell as JSON knows it; None for what is not known or not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


# --- progress -------------------------------------------------------------------------------------


class Progress:
    """Means over the images scored so far, a line at about PROGRESS_LINES numbers of images.

    Images are counted in the order of the journal of scores.
    """

    def __init__(self, planned: int) -> None:
        self.images = 0
        self._every = max(1, planned // PROGRESS_LINES)
        self._sums = {
            "value": 0.0,
            "visual_tokens": 0.0,
            "target_passes": 0.0,
            "device_s": 0.0,
            "judge_s": 0.0,
        }

    def add(self, scored: Iterable[tuple[Usage, Score]]) -> list[Step]:
        """Count images; returns the lines that are due, each at the number of images so far."""
        due: list[Step] = []
        for usage, score in scored:
            self.images += 1
            for name in self._sums:
                value = (score.value or 0.0) if name == "value" else getattr(usage, name)
                self._sums[name] += value
            if self.images % self._every == 0:
                due.append((self.images, self._line()))
        return due

    def _line(self) -> Line:
        line: dict[str, float] = {"progress/images": self.images}
        for name, total in self._sums.items():
            line[f"progress/{name}"] = total / self.images
        return line
