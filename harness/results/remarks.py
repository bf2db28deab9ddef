"""Say in words what a reader must know of the runs of one protocol, below their table.

Terminal, page and cost tables take their sentences from here, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from harness.results.leaderboard import resolved
from harness.results.rows import NOT_RESOLVED
from harness.runs.metrics import MetricAbout

P_TOO_LARGE = "p is 0.05 or more"
TOO_SMALL = "so small that it is found in less than 80 % of repeats"
JUDGES = {
    "same": "the judge itself, so that part of the gain may be the judge's own error",
    "family": (
        "a model of the same kind as the judge, which may make the same mistakes, so that part of "
        "the gain may be such mistakes"
    ),
}
"""What `reward_is_judge` says of a run: who chose its images."""
TIES = "tie: runs of one number cannot be told apart; no run is shown to be better than those of 1."
CROSSED = (
    "Each pair is tested by itself, so that a run with a wide error can have a lower score and the "
    "smaller number."
)
SHOWN_WIDTH = 0.0005
"""An interval of scores that is narrower shows no width in three digits."""


# --- differences that are not resolved ------------------------------------------------------------


def list_reasons(runs: pd.DataFrame, differences: Iterable[str]) -> dict[str, str]:
    """Return why differences are not resolved, each with the letter that stands for it."""
    found: dict[str, str] = {}
    for name in differences:
        for _, row in runs.iterrows():
            if pd.notna(row[name]) and not resolved(row, name):
                found.setdefault(why_unresolved(row, name), chr(ord("a") + len(found)))
    return found


def why_unresolved(row: pd.Series, name: str) -> str:
    """Return why a difference is not resolved, without the numbers of the row."""
    reason = str(row[f"{name}_verdict"]).removeprefix(NOT_RESOLVED)
    if reason.startswith("p "):
        return P_TOO_LARGE
    return TOO_SMALL if reason.startswith("found in less") else reason


def mark_unresolved(text: str, row: pd.Series, name: str, reasons: Mapping[str, str]) -> str:
    """Put a difference in brackets, with the letter of its reason, unless it is resolved."""
    if resolved(row, name):
        return text
    return f"({text} {reasons[why_unresolved(row, name)]})"


def explain_reasons(reasons: Mapping[str, str]) -> list[str]:
    """Return the line that says what brackets and letters mean; [] where nothing has any."""
    if not reasons:
        return []
    explained = "; ".join(f"{letter} {reason}" for reason, letter in reasons.items())
    return [f"In brackets: not resolved. {explained}."]


# --- what holds of scores and ranks ---------------------------------------------------------------


def name_choosers(runs: pd.DataFrame, metrics: Iterable[str] = ()) -> list[str]:
    """Name the runs whose images were chosen by what measured them, a line for each overlap."""
    lines = []
    for overlap, judge in JUDGES.items():
        lines += _name_chosen(runs, "reward_is_judge", overlap, judge)
    for name in metrics:
        if f"{name}_is_reward" in runs and runs[name].notna().any():
            who = f"{name} itself, whose gain is partly its own error"
            lines += _name_chosen(runs, f"{name}_is_reward", "same", who)
    return lines


def _name_chosen(runs: pd.DataFrame, column: str, overlap: str, judge: str) -> list[str]:
    chosen = runs["label"][runs[column] == overlap]
    return [f"Chosen by {judge}: {'; '.join(map(str, chosen))}."] if len(chosen) else []


def explain_ties(runs: pd.DataFrame) -> list[str]:
    """Say what tie groups mean, also where their numbers do not rise as the scores fall."""
    known = runs.dropna(subset=["score", "tie_group"])
    if known.empty:
        return []
    falling = known.sort_values("score", ascending=False, kind="stable")
    rises = falling["tie_group"].astype(int).is_monotonic_increasing
    return [TIES if rises else f"{TIES} {CROSSED}"]


def explain_widths(runs: pd.DataFrame) -> list[str]:
    """Say what an interval without width means: no certainty, but prompts that scored alike."""
    flat = runs["label"][(runs["ci_high"] - runs["ci_low"]).abs() < SHOWN_WIDTH]
    if not len(flat):
        return []
    prompts = runs["prompts"].iloc[0]
    return [
        f"No width: the prompts of each task scored alike, and {prompts} prompts are too few to "
        f"show how far the true score may be off: {'; '.join(map(str, flat))}."
    ]


def list_remarks(runs: pd.DataFrame, metrics: Mapping[str, MetricAbout]) -> list[str]:
    """List all that holds of the scores and ranks of runs of one protocol."""
    return [*explain_ties(runs), *explain_widths(runs), *name_choosers(runs, metrics)]
