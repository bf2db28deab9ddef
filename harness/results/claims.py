"""Published numbers (claimed.yaml) beside measured ones: reproduced, not resolved or refuted.

Only a run of the same model, method, candidates, benchmark and protocol is put beside a claim. A
paper's number has an error of its own that is seldom stated: it is taken to be as large as the
run's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple

import pandas as pd
import yaml

from harness.results.columns import CLAIMED
from harness.results.leaderboard import Board
from harness.runs.read import Run

FINE = 0.03
"""A half width above this one cannot confirm a claimed score."""
FINE_SHARE = 0.1
"""The same for ratios and counts, as a share of the claimed number."""
ROUNDING = 0.005
"""Papers print two digits."""
FINE_OF = {"fid": 0.75, "imagereward": 0.02}
"""The same for metrics in units of their own: what 5,000 images can tell apart."""
FINE_CLIP = 0.005
"""The same for CLIP, as a share: its unit is that of the paper."""
RATIOS_AND_COUNTS = ("speedup", "pass_saving", "visual_tokens")
DESCRIPTIONS = ("model", "method", "n", "options")
"""Columns of a claim's table that say what was measured; the others are numbers."""
FAMILIES = {
    "vs_plain": "compare",
    "speedup": "compare",
    "pass_saving": "compare",
    "visual_tokens": "cost",
}
"""Families of metrics in metrics.csv; `quality` for those that are not there."""


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
    protocol: str = ""  # of benchmarks of sets of images: how they measure

    def describes(self, run: Run) -> bool:
        """Tell whether the run measured the same thing."""
        options = _flatten(run.options)
        return (
            self.model == run.about["model"]
            and self.method == run.about["method"]
            and self.benchmark in ("", run.about["benchmark"])
            and self.judge.lower() in run.judge.lower()
            and self._has_protocol_of(run)
            and (self.n is None or run.candidates == self.n)
            and all(options.get(name) == value for name, value in self.options.items())
        )

    def _has_protocol_of(self, run: Run) -> bool:
        """Tell whether the run's judge measures as the claim's; a run without a judge says none."""
        if not self.protocol or not run.judge:
            return True
        return run.judge.split("-")[1:2] == [self.protocol]


class Measurement(NamedTuple):
    """A run's value of a metric and its 95 % interval; nan where it has none."""

    value: float
    low: float
    high: float


UNMEASURED = Measurement(math.nan, math.nan, math.nan)


def read_claims() -> list[Claim]:
    """Read the published numbers.

    Where a table states both a method's score and plain sampling's, their difference is a claim of
    its own (`vs_plain`).
    """
    text = (resources.files("harness.results") / "claimed.yaml").read_text(encoding="utf-8")
    claims: list[Claim] = []
    for table in yaml.safe_load(text):
        claims += _claims_of_table(table)
    return claims


def _claims_of_table(table: Mapping[str, Any]) -> Iterator[Claim]:
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    plain = {row["model"]: row for row in rows if row["method"] == "plain"}
    for row in rows:
        for metric in row:
            if metric not in DESCRIPTIONS:
                yield _claim(table, row, metric, float(row[metric]))
        if row["method"] != "plain" and "score" in row and row["model"] in plain:
            gain = round(row["score"] - plain[row["model"]]["score"], 6)
            yield _claim(table, row, "vs_plain", gain)


def _claim(table: Mapping[str, Any], row: Mapping[str, Any], metric: str, value: float) -> Claim:
    return Claim(
        source=table["source"],
        benchmark=table.get("benchmark", ""),
        judge=table.get("judge", ""),
        model=row["model"],
        method=row["method"],
        n=row["n"],
        metric=metric,
        value=value,
        options=row.get("options") or {},
        protocol=table.get("protocol", ""),
    )


def compare_with_claims(board: Board) -> pd.DataFrame:
    """Put every claim beside the runs that measured it, or beside none (export/claimed.csv)."""
    rows: list[tuple[object, ...]] = []
    for claim in read_claims():
        measured = []
        for run in board.runs:
            found = _measure(board, run, claim.metric) if claim.describes(run) else UNMEASURED
            if not math.isnan(found.value):
                verdict = decide_verdict(claim.metric, claim.value, *found)
                measured.append(_row(claim, found, verdict, run.fingerprint))
        rows += measured or [_row(claim, UNMEASURED, "not measured", "")]
    return pd.DataFrame(rows, columns=CLAIMED.names, dtype=object)


def _row(claim: Claim, found: Measurement, verdict: str, fingerprint: str) -> tuple[object, ...]:
    """Return the cells of a row in the order of the columns."""
    return (
        claim.source,
        claim.benchmark,
        claim.model,
        claim.method,
        claim.n,
        claim.metric,
        claim.value,
        *found,
        verdict,
        fingerprint,
    )


def decide_verdict(metric: str, claimed: float, measured: float, low: float, high: float) -> str:
    """Say what a measurement and its 95 % interval make of a claim.

    The claim's own error is taken to be as large as the measurement's, so the half width of their
    difference is sqrt(2) times that of the interval.
    """
    half_width = math.sqrt(2) * (high - low) / 2
    if math.isnan(half_width):
        return "not resolved"
    if abs(measured - claimed) > half_width + ROUNDING:
        return "refuted"
    return "reproduced" if half_width <= _fine_enough(metric, claimed) else "not resolved"


def _fine_enough(metric: str, claimed: float) -> float:
    """Return the largest half width that can confirm a claim."""
    if metric in RATIOS_AND_COUNTS:
        return FINE_SHARE * claimed
    if metric == "clip":
        return FINE_CLIP * claimed
    return FINE_OF.get(metric, FINE)


def _measure(board: Board, run: Run, metric: str) -> Measurement:
    """Look up a run's value of a claim's metric."""
    of_run = board.metrics[board.metrics["fingerprint"] == run.fingerprint]
    family = FAMILIES.get(metric, "quality")
    rows = of_run[of_run["metric"] == f"{family}/{metric}"]
    if rows.empty:
        return UNMEASURED
    first = rows[["value", "ci_low", "ci_high"]].to_numpy(float)[0]
    return Measurement(*first.tolist())


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
