"""Quality against budget: what a method reaches at a budget, what it needs, and how much lies under
its curve.

A curve is a list of budgets (in plain images, 1 = plain sampling, increasing) and a quality for
each; between them it is straight on log2 of the budget, beyond its ends it is not known (nan).
Qualities may be arrays [points, D] of draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BUDGETS = (1, 2, 4, 8, 16)
MOST = 16.0
"""Budget of the reference point of `hypervolume`, in plain images."""
SLACK = 0.01
"""Budgets that differ by this share are the same."""


def quality_at(budgets: Sequence[float], quality: np.ndarray, budget: float) -> np.ndarray:
    """Quality at a budget."""
    quality = np.asarray(quality, float)
    for known, value in zip(budgets, quality, strict=True):
        if abs(known / budget - 1) <= SLACK:
            return np.asarray(value)
    above = int(np.searchsorted(budgets, budget))
    if above in (0, len(budgets)):
        return np.full(quality.shape[1:], math.nan)
    share = math.log2(budget / budgets[above - 1]) / math.log2(budgets[above] / budgets[above - 1])
    return np.asarray((1 - share) * quality[above - 1] + share * quality[above])


def budget_for(budgets: Sequence[float], quality: Sequence[float], wanted: float) -> float:
    """Smallest budget at which the curve is at least `wanted`; inf where it never is."""
    if quality[0] >= wanted:
        return float(budgets[0])
    for i in range(1, len(budgets)):
        if quality[i] >= wanted:
            share = (wanted - quality[i - 1]) / (quality[i] - quality[i - 1])
            return float(budgets[i - 1] * (budgets[i] / budgets[i - 1]) ** share)
    return math.inf


def area_under(budgets: Sequence[float], quality: np.ndarray) -> np.ndarray:
    """Mean height of the curve over log2 of the budget (its area divided by its width); nan for a
    single point.
    """
    quality = np.asarray(quality, float)
    x = np.log2(np.asarray(budgets, float))
    if len(x) < 2 or x[-1] == x[0]:
        return np.full(quality.shape[1:], math.nan)
    return np.asarray(np.trapezoid(quality, x, axis=0) / (x[-1] - x[0]))


def hypervolume(
    budgets: Sequence[float], quality: Sequence[float], plain: float, most: float = MOST
) -> float:
    """Area that the points dominate, up to the reference point of plain's quality at `most` plain
    images.

    Unit: quality times doublings of the budget.
    """
    points = sorted(
        (math.log2(most / b), q - plain) for b, q in zip(budgets, quality, strict=True) if b < most
    )
    area = 0.0
    reached = 0.0
    for cheapness, gain in reversed(
        points
    ):  # the cheapest first: a dearer one adds only what it gains
        area += cheapness * max(0.0, gain - reached)
        reached = max(reached, gain)
    return area
