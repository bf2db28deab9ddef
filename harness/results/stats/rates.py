"""Rates and rankings: Wilson intervals, areas under ROC curves, what the best of K images would
have scored.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd

LEVEL = 0.95


def wilson(k: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson score interval of a rate of `k` in `n`; sensible at 0 and at `n` too."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"no rate of {k} in {n}: 0 <= k <= n and n > 0 are needed")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return 0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half


def clustered_wilson(
    rate: float, error: float, clusters: int, level: float = LEVEL
) -> tuple[float, float]:
    """Wilson interval of a rate whose images are not independent, from its standard error over
    clusters.

    It is that of as many independent images as would have the same error (Korn and Graubard 1998);
    where the error is 0, as in 0 of 80, the clusters count.
    """
    if not clusters or math.isnan(error):
        return math.nan, math.nan
    independent = rate * (1 - rate) / error**2 if error > 0 and 0 < rate < 1 else clusters
    return wilson(rate * independent, independent, level)


def oracle(values: Sequence[float] | np.ndarray, best_of: int) -> float:
    """Expected best of `best_of` of these images of a prompt; for right and wrong ones 1 - C(N-c,K)
    / C(N,K).

    nan where there are fewer images than that.
    """
    ordered = np.sort(np.asarray(values, float))
    count = len(values)
    if best_of < 1 or count < best_of:
        return math.nan
    chosen = [
        math.comb(smaller, best_of - 1) for smaller in range(count)
    ]  # sets whose best is the one above `smaller`
    return float(np.dot(ordered, chosen) / math.comb(count, best_of))


def selection_efficiency(selected: float, single: float, best: float) -> float:
    """Share of what choosing could gain that was gained: 0 as good as any image, 1 always the best;
    nan if nothing.
    """
    return (selected - single) / (best - single) if best - single > 1e-9 else math.nan


def auc(signal: Sequence[float] | np.ndarray, success: Sequence[bool] | np.ndarray) -> float:
    """Chance that a success has the higher signal than a failure, ties counting half; nan if either
    is absent.
    """
    from scipy.stats import rankdata  # a second of import that a run does not need

    won = np.asarray(success, bool)
    ranks = rankdata(np.asarray(signal, float))
    pairs = int(won.sum()) * int((~won).sum())
    if pairs == 0:
        return math.nan
    return float((ranks[won].sum() - won.sum() * (won.sum() + 1) / 2) / pairs)


def auc_within(
    signal: Sequence[float] | np.ndarray,
    success: Sequence[bool] | np.ndarray,
    groups: Sequence[Hashable],
) -> tuple[float, int]:
    """Mean of the AUCs inside the groups (prompts) that have successes and failures, and how many
    those are.
    """
    table = pd.DataFrame(
        {"signal": np.asarray(signal), "success": np.asarray(success, bool), "group": list(groups)}
    )
    each = [
        auc(group["signal"].to_numpy(), group["success"].to_numpy())
        for _, group in table.groupby("group")
    ]
    mixed = [value for value in each if not math.isnan(value)]
    return (float(np.mean(mixed)) if mixed else math.nan), len(mixed)
