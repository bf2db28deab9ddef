"""Quality against budget: interpolated curves, the budget for a quality, areas and hypervolume.

A curve is a list of increasing budgets, in plain images (1 = the cost of plain sampling), and a
quality for each. Between them it is linear in log2 of the budget; outside of them it is unknown
(nan). Qualities may also be arrays [points, D] of bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BUDGETS = (1, 2, 4, 8, 16)
"""Budgets in plain images at which curves.csv states a quality."""
REFERENCE_BUDGET = 16.0
"""Budget of the hypervolume's reference point, in plain images."""
BUDGET_TOLERANCE = 0.01
"""Budgets whose ratio is this near to 1 are the same."""


def quality_at(budgets: Sequence[float], quality: np.ndarray, budget: float) -> np.ndarray:
    """Interpolate the quality at a budget; nan outside of the curve."""
    quality = np.asarray(quality, float)
    for known, value in zip(budgets, quality, strict=True):
        if abs(known / budget - 1) <= BUDGET_TOLERANCE:
            return np.asarray(value)
    above = int(np.searchsorted(budgets, budget))
    if above in (0, len(budgets)):
        return np.full(quality.shape[1:], math.nan)
    below = above - 1
    doublings = math.log2(budgets[above] / budgets[below])
    share = math.log2(budget / budgets[below]) / doublings
    return np.asarray((1 - share) * quality[below] + share * quality[above])


def budget_for(budgets: Sequence[float], quality: Sequence[float], wanted: float) -> float:
    """Return the smallest budget at which the curve reaches `wanted`; inf where it never does."""
    if quality[0] >= wanted:
        return float(budgets[0])
    for above in range(1, len(budgets)):
        if quality[above] >= wanted:
            below = above - 1
            share = (wanted - quality[below]) / (quality[above] - quality[below])
            return float(budgets[below] * (budgets[above] / budgets[below]) ** share)
    return math.inf


def area_under(budgets: Sequence[float], quality: np.ndarray) -> np.ndarray:
    """Return the mean height of the curve over log2 of the budget: its area over its width.

    By the trapezoidal rule; nan for a single point.
    """
    quality = np.asarray(quality, float)
    doublings = np.log2(np.asarray(budgets, float))
    if len(doublings) < 2 or doublings[-1] == doublings[0]:
        return np.full(quality.shape[1:], math.nan)
    area = np.trapezoid(quality, doublings, axis=0)
    return np.asarray(area / (doublings[-1] - doublings[0]))


def hypervolume(
    budgets: Sequence[float],
    quality: Sequence[float],
    plain: float,
    reference_budget: float = REFERENCE_BUDGET,
) -> float:
    """Return the area that the points dominate (Zitzler and Thiele 1999).

    The reference point has plain sampling's quality at `reference_budget` plain images. Unit:
    quality times doublings of the budget.
    """
    points = []  # (doublings below the reference budget, gain over plain)
    for budget, reached in zip(budgets, quality, strict=True):
        if budget < reference_budget:
            points.append((math.log2(reference_budget / budget), reached - plain))

    area = 0.0
    best_gain = 0.0
    for saved_doublings, gain in sorted(points, reverse=True):  # the cheapest point comes first
        area += saved_doublings * max(0.0, gain - best_gain)
        best_gain = max(best_gain, gain)
    return area
