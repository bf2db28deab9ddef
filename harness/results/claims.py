"""What papers claim (claimed.yaml) beside what was measured: reproduced, not resolved or refuted.

Only a run of the same model, method, candidates and benchmark is put beside a claim. A paper's
number has an error of its own that is seldom stated: it is taken to be as large as ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from harness.results.leaderboard import Board
from harness.runs.read import Run

FINE = 0.03
SHARE = 0.1
"""An interval of more than this half width cannot confirm a claim: of a score, and of a ratio or
count as its share.
"""
ROUNDING = 0.005
"""Papers print two digits."""
COUNTS = ("speedup", "pass_saving", "visual_tokens")
COLUMNS = (
    *(
        "source",
        "benchmark",
        "model",
        "method",
        "n",
        "metric",
        "claimed",
        "measured",
        "ci_low",
        "ci_high",
    ),
    *("verdict", "fingerprint"),
)
DESCRIBES = ("model", "method", "n", "options")
"""Columns of a claim's table that say what was measured; the others are numbers."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A published number."""

    source: str
    benchmark: str  # "" for claims about speed, which hold for any prompts
    judge: str
    model: str
    method: str
    n: int | None
    metric: str
    value: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def about(self, run: Run) -> bool:
        """Whether a run measured the same thing."""
        options = _flat(run.options)
        return (
            self.model == run.about["model"]
            and self.method == run.about["method"]
            and self.benchmark in ("", run.about["benchmark"])
            and self.judge.lower() in run.judge.lower()
            and (self.n is None or run.candidates == self.n)
            and all(options.get(name) == value for name, value in self.options.items())
        )


def read_claims() -> list[Claim]:
    """The published numbers, and what a method gained over plain sampling where a table states
    both.
    """
    text = (resources.files("harness.results") / "claimed.yaml").read_text(encoding="utf-8")
    return [claim for table in yaml.safe_load(text) for claim in _claims(table)]


def _claims(table: Mapping[str, Any]) -> Iterator[Claim]:
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    plain = {row["model"]: row for row in rows if row["method"] == "plain"}
    for row in rows:
        about = (table["source"], table.get("benchmark", ""), table.get("judge", ""))
        what = (row["model"], row["method"], row["n"])
        for metric in (name for name in row if name not in DESCRIBES):
            yield Claim(*about, *what, metric, float(row[metric]), row.get("options") or {})
        if row["method"] != "plain" and "score" in row and row["model"] in plain:
            gain = round(row["score"] - plain[row["model"]]["score"], 6)
            yield Claim(*about, *what, "vs_plain", gain, row.get("options") or {})


def beside(board: Board) -> pd.DataFrame:
    """Every claim with the runs that measured it, or with none."""
    rows: list[list[object]] = []
    for claim in read_claims():
        about = [
            claim.source,
            claim.benchmark,
            claim.model,
            claim.method,
            claim.n,
            claim.metric,
            claim.value,
        ]
        measured = [
            (run, *_measured(board, run, claim.metric)) for run in board.runs if claim.about(run)
        ]
        known = [one for one in measured if not math.isnan(one[1])]
        rows += [
            [*about, *m, verdict(claim.metric, claim.value, *m), run.fingerprint]
            for run, *m in known
        ]
        if not known:
            rows.append([*about, math.nan, math.nan, math.nan, "not measured", ""])
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def verdict(metric: str, claimed: float, measured: float, low: float, high: float) -> str:
    """What a measurement and its interval say of a claim, whose own error is taken to be as
    large.
    """
    half = math.sqrt(2) * (high - low) / 2
    if math.isnan(half):
        return "not resolved"
    if abs(measured - claimed) > half + ROUNDING:
        return "refuted"
    return (
        "reproduced"
        if half <= (FINE if metric not in COUNTS else SHARE * claimed)
        else "not resolved"
    )


def _measured(board: Board, run: Run, metric: str) -> tuple[float, float, float]:
    """A run's value of a claim's metric and its interval; nan where it has none."""
    mine = board.metrics[board.metrics["fingerprint"] == run.fingerprint]
    kind = {
        **dict.fromkeys(("vs_plain", "speedup", "pass_saving"), "compare"),
        "visual_tokens": "cost",
    }
    row = mine[mine["metric"] == f"{kind.get(metric, 'quality')}/{metric}"]
    if row.empty:
        return math.nan, math.nan, math.nan
    value, low, high = row[["value", "ci_low", "ci_high"]].to_numpy(float)[0].tolist()
    return value, low, high


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= (
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{name}": value}
        )
    return flat
