"""Say in words what a reader must know of distances between sets of images, beside their numbers.

A Fréchet distance is never shown without its bias and the difference that it can detect.
"""

from __future__ import annotations

import pandas as pd

from harness.results.ranking import PLAIN
from harness.results.windows import NO_MARGIN

DISTANCES = {"fd_plain": "fd plain", "fd_plain_null": "fd null", "fd_plain_p": "fd p"}
"""Columns of the distance to plain sampling, and their titles."""
MEANINGS = {
    "fd_plain": "Fréchet distance to plain sampling's own images, lower is better",
    "fd_plain_null": "that of another plain run",
    "fd_plain_p": "how often exchanging the images of each prompt gives as large a kernel distance",
}


def list_distances(runs: pd.DataFrame) -> list[str]:
    """List the columns of the distance to plain sampling that some of the runs have."""
    return [name for name in DISTANCES if name in runs and bool(runs[name].notna().any())]


def explain_sets(runs: pd.DataFrame) -> list[str]:
    """Return a line for each thing that must be known of the distances of runs of one protocol."""
    lines = []
    if "fid" in runs and runs["fid"].notna().any():
        lines.append(_explain_frechet(runs))
    if "set_note" in runs:
        for _, row in runs.iterrows():
            if isinstance(row["set_note"], str) and row["set_note"]:
                lines.append(f"{row['label']}: {row['set_note']}.")
    if list_distances(runs):
        lines += _explain_plain(runs)
    if "inside_window" in runs and runs["inside_window"].notna().any():
        lines += _explain_windows(runs)
    return lines


def _explain_plain(runs: pd.DataFrame) -> list[str]:
    """Say what the distance to plain sampling is, what was found, and what is missing."""
    shown = list_distances(runs)
    lines = ["; ".join(f"{DISTANCES[name]}: {MEANINGS[name]}" for name in shown) + "."]
    equal = []
    for _, row in runs.iterrows():
        verdict = str(row["fd_plain_verdict"])
        if verdict.startswith("differs"):
            lines.append(f"{row['label']}: {verdict} from plain's images.")
        elif pd.notna(row["fd_plain_p"]):
            equal.append(f"{row['label']}: {verdict}")
    if equal:
        lines.append(f"{'; '.join(equal)}.")
    if missing := _list_missing(runs):
        lines.append(missing)
    return lines


def _list_missing(runs: pd.DataFrame) -> str:
    """Name the plain run without which distances have no test, or nothing to be read beside."""
    others = runs[runs["fd_plain"].notna() & (runs["method"] != PLAIN)]
    untested = others[others["fd_plain_p"].isna()]
    purposes = []
    if len(untested):
        labels = ", ".join(str(label) for label in untested["label"])
        purposes.append(f"to test {labels}, whose noise is that of the plain run")
    if others["fd_plain_null"].isna().any():
        purposes.append("to tell how far apart equals are (fd null)")
    if not purposes:
        return ""
    taken = set(runs["seed"][runs["method"] == PLAIN])
    seed = next(seed for seed in range(len(taken) + 1) if seed not in taken)
    return f"A second plain run is needed {' and '.join(purposes)}: method=plain seed={seed}."


def _explain_windows(runs: pd.DataFrame) -> list[str]:
    """Say which runs lie in the window about plain sampling, and what keeps others from it."""
    by_answer: dict[str, list[str]] = {}
    for _, row in runs.iterrows():
        answer = row["inside_window"]
        if pd.notna(answer) and answer and not answer.startswith(NO_MARGIN):
            by_answer.setdefault(answer, []).append(str(row["label"]))
    if not by_answer:
        return []
    said = [f"{answer}: {', '.join(labels)}" for answer, labels in by_answer.items()]
    return [f"Within the window about plain sampling, of two ends: {'; '.join(said)}."]


def _explain_frechet(runs: pd.DataFrame) -> str:
    """Say what bias a Fréchet distance has, and which differences it can show."""
    bias = runs["fid_bias"].dropna().astype(float)
    known = "by an unknown amount, as nobody says how many the reference images are"
    if len(bias):
        known = f"by about {bias.mean():.3g}, as two sets of one distribution are so far apart"
    line = f"fid: lower is better; of so few images it is too large {known}"
    detectable = pd.Series(dtype=float)
    if "fid_vs_plain_detectable" in runs:
        detectable = runs["fid_vs_plain_detectable"].dropna().astype(float)
    if len(detectable):
        line += (
            f"; differences from plain are found in 80 % of repeats from {detectable.min():.2g} on"
        )
    return f"{line}. Read it beside the other columns, never alone."
