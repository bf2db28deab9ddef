"""Rates and selection: Wilson intervals, ROC areas, and the score that choosing could reach."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd

from harness.results.stats.design import LEVEL

EPSILON = 1e-9
"""Gains below it are rounding errors: there was nothing to choose."""


def wilson(k: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a rate of `k` in `n` (Wilson 1927).

    (k + z^2/2 -+ z sqrt(k (n - k) / n + z^2/4)) / (n + z^2); it is sensible at 0 and at n too.
    Raises ValueError unless 0 <= k <= n and n > 0.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"no rate of {k} in {n}: 0 <= k <= n and n > 0 are needed")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (k + z * z / 2) / (n + z * z)
    root = math.sqrt(k * (n - k) / n + z * z / 4)
    half_width = z / (n + z * z) * root
    low = 0.0 if k == 0 else centre - half_width
    high = 1.0 if k == n else centre + half_width
    return low, high


def clustered_wilson(
    rate: float, error: float, clusters: int, level: float = LEVEL
) -> tuple[float, float]:
    """Return Wilson's interval of a rate of dependent images, from its cluster standard error.

    The sample size is the effective one, rate (1 - rate) / error^2: as many independent images as
    have the same error (Korn and Graubard, Survey Methodology 24, 1998). Where the error is 0, as
    for 0 of 80, it is the number of clusters. (nan, nan) without a cluster or an error.
    """
    if not clusters or math.isnan(error):
        return math.nan, math.nan
    effective: float = clusters
    if error > 0 and 0 < rate < 1:
        effective = rate * (1 - rate) / error**2
    return wilson(rate * effective, effective, level)


def oracle(values: Sequence[float] | np.ndarray, best_of: int) -> float:
    """Return the expected maximum of `best_of` of a prompt's N image values, chosen at random.

    sum over i of v_(i) C(i - 1, K - 1) / C(N, K) for sorted values v_(1) <= ... <= v_(N); for c
    right ones among wrong ones it is 1 - C(N - c, K) / C(N, K), the unbiased pass@k (Chen et al.,
    arXiv 2107.03374, eq. 1). nan where there are fewer images than K.
    """
    ordered = np.sort(np.asarray(values, float))
    count = len(values)
    if best_of < 1 or count < best_of:
        return math.nan
    # In how many choices an image is the best: the others come from those sorted below it.
    times_best = [math.comb(below, best_of - 1) for below in range(count)]
    return float(np.dot(ordered, times_best) / math.comb(count, best_of))


def selection_efficiency(selected: float, single: float, best: float) -> float:
    """Return the share of the possible gain that selection made.

    (selected - single) / (best - single): 0 is as good as any image, 1 always the best one; nan if
    there was nothing to gain.
    """
    possible = best - single
    return (selected - single) / possible if possible > EPSILON else math.nan


def auc(signal: Sequence[float] | np.ndarray, success: Sequence[bool] | np.ndarray) -> float:
    """Return the area under the ROC curve: how often a success has the higher signal.

    The Mann-Whitney statistic over the number of pairs of a success and a failure, ties counting
    half (Hanley and McNeil 1982); nan if either is absent.
    """
    from scipy.stats import rankdata  # a second of import that a run does not need

    succeeded = np.asarray(success, bool)
    ranks = rankdata(np.asarray(signal, float))
    successes = int(succeeded.sum())
    pairs = successes * int((~succeeded).sum())
    if pairs == 0:
        return math.nan
    least = successes * (successes + 1) / 2  # rank sum of successes that are all below failures
    return float((ranks[succeeded].sum() - least) / pairs)


def auc_within(
    signal: Sequence[float] | np.ndarray,
    success: Sequence[bool] | np.ndarray,
    groups: Sequence[Hashable],
) -> tuple[float, int]:
    """Average the AUC inside each group (prompt) that has both successes and failures.

    Returns the mean and the number of such groups; the mean is nan where there is none.
    """
    table = pd.DataFrame(
        {"signal": np.asarray(signal), "success": np.asarray(success, bool), "group": list(groups)}
    )
    mixed = []
    for _, group in table.groupby("group"):
        area = auc(group["signal"].to_numpy(), group["success"].to_numpy())
        if not math.isnan(area):
            mixed.append(area)
    mean = float(np.mean(mixed)) if mixed else math.nan
    return mean, len(mixed)
