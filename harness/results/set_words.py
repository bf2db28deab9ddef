"""Say in words what a reader must know of distances between sets of images, beside their numbers.

A Fréchet distance is never shown without its bias and the difference that it can detect.
"""

from __future__ import annotations

import pandas as pd

DISTANCES = {"fd_plain": "fd plain", "fd_plain_null": "fd null", "fd_plain_p": "fd p"}
"""Columns of the distance to plain sampling, and their titles."""


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
        lines.append(
            "fd plain: Fréchet distance to plain sampling's own images, lower is better; fd null: "
            "that of another plain run; fd p: how often exchanging the images of each prompt gives "
            "as large a kernel distance."
        )
        for _, row in runs.iterrows():
            if str(row["fd_plain_verdict"]).startswith("differs"):
                lines.append(f"{row['label']}: {row['fd_plain_verdict']} from plain's images.")
    return lines


def _explain_frechet(runs: pd.DataFrame) -> str:
    """Say what bias a Fréchet distance has, and which differences it can show."""
    bias = runs["fid_bias"].dropna().astype(float)
    known = "by an unknown amount, as nobody says how many the reference images are"
    if len(bias):
        known = f"by about {bias.mean():.3g}, as two sets of one law are so far apart"
    line = f"fid: lower is better; of so few images it is too large {known}"
    detectable = pd.Series(dtype=float)
    if "fid_vs_plain_detectable" in runs:
        detectable = runs["fid_vs_plain_detectable"].dropna().astype(float)
    if len(detectable):
        line += (
            f"; differences from plain are found in 80 % of repeats from {detectable.min():.2g} on"
        )
    return f"{line}. Read it beside the other columns, never alone."
