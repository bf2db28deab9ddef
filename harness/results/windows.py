"""Tell whether metrics of a run lie in a window about plain sampling's own, as MLPerf demands.

That a method is as good takes a bound, not a p value. The window has two ends: better is different,
too. It is about plain sampling of the same runs, never about a published number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from harness.results.rows import Row, number

SHARES: Mapping[str, float] = {"clip": 0.002, "fid": 0.02}
"""Margins as shares of plain sampling's value: MLPerf's, by the name of the metric."""
WITHOUT_WINDOW = ("precision", "recall")
"""Metrics of sets for which nobody has named a margin."""
SPREAD = 0.1
"""Margin of other metrics of images, in deviations among plain's images of one prompt."""
INSIDE = "yes"
OUTSIDE = "no"
OPEN = "not shown"
TOO_FEW = "cannot be shown with this n"
NO_MARGIN = "no margin without several images a prompt, or a second plain run"
WORDS = (OUTSIDE, OPEN, TOO_FEW, NO_MARGIN)
"""What may be said of a metric that is not inside, in the order of a cell."""


def judge_window(row: Row, name: str, margin: float) -> str:
    """Tell whether the 95 % interval of a metric's difference from plain is within the margin.

    `row` has the columns `name`_vs_plain. "no" if the interval has no part in the window. A margin
    below the difference that the images can show is no window that they could lie in.
    """
    low = number(row[f"{name}_vs_plain_low"])
    high = number(row[f"{name}_vs_plain_high"])
    if math.isnan(margin) or math.isnan(low):
        return NO_MARGIN if math.isnan(margin) else TOO_FEW
    if low > margin or high < -margin:
        return OUTSIDE
    if margin < number(row[f"{name}_vs_plain_detectable"]):
        return TOO_FEW
    return INSIDE if -margin <= low and high <= margin else OPEN


def find_margin(
    name: str, detectable: float, plain_value: float, plain_tables: Sequence[pd.DataFrame]
) -> float:
    """Return how far a metric may be from plain sampling's value; nan where it is not known.

    `plain_tables` have the metric's values of images of the plain run, and of another plain run
    where there is one; none for a metric of the whole set. Such a one, as KID, has the difference
    that the images can show.
    """
    if name in SHARES:
        return SHARES[name] * abs(plain_value)
    return SPREAD * measure_spread(plain_tables) if plain_tables else detectable


def sum_up_windows(words: Mapping[str, str]) -> str:
    """Return the cell of a run whose metrics, by name, are inside or not: "yes", or what is not."""
    parts = []
    for word in WORDS:
        if names := [name for name, said in words.items() if said == word]:
            parts.append(f"{word} ({', '.join(names)})")
    return "; ".join(parts) or INSIDE


def measure_spread(plain_tables: Sequence[pd.DataFrame]) -> float:
    """Return the deviation of a metric among plain's images of one prompt; nan if nothing shows it.

    With one image a prompt, it is that between two plain runs.
    """
    own, *others = plain_tables
    if own["image"].nunique() > 1:
        return float(np.sqrt(own.groupby("prompt_id")["value"].var(ddof=1).mean()))
    if not others:
        return math.nan
    apart = own["value"].to_numpy(float) - others[0]["value"].to_numpy(float)
    return float(np.sqrt(np.square(apart).mean() / 2))
