"""Compare any two runs of a panel, by the statistics of the leaderboard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from harness.results import stats
from harness.results.ranking import CategoryInterval, RankedGroup
from harness.results.report.collect import Panel, Shown
from harness.results.stats import Difference

MOST_RUNS = 24
"""Runs of a panel that are compared with each other: with R runs there are R (R - 1) / 2 pairs."""
DIGITS = 6
"""Decimals of a prompt's mean: means that agree in them are equal."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Prompts on which the first of two runs is better, as good, and worse than the second."""

    wins: int
    ties: int
    losses: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs, and the score of the first minus that of the second, paired by prompt."""

    a: Shown
    b: Shown
    difference: Difference
    categories: Sequence[CategoryInterval]
    outcomes: dict[str, Outcomes]  # by category


def compare_pairs(panel: Panel) -> Iterator[Pair]:
    """Yield every pair of the panel's scored runs, in the order of the panel.

    Of more than `MOST_RUNS` the best and plain sampling are compared.
    """
    compared = _choose_runs(panel)
    if len(compared) < 2:
        return
    group = RankedGroup([one.run for one in compared])
    means = {one.id: mean_by_prompt(one) for one in compared}
    for a, b in combinations(compared, 2):
        yield Pair(
            a=a,
            b=b,
            difference=group.difference(a.run, b.run),
            categories=group.category_intervals(a.run, b.run),
            outcomes=_count_outcomes(panel, means[a.id], means[b.id]),
        )


def mean_by_prompt(one: Shown) -> dict[str, float]:
    """Return the mean value of each prompt's images, by prompt id, as the leaderboard has it."""
    means = stats.prompt_means(one.run.table)
    return {str(key[1]): round(float(value), DIGITS) for key, value in means.items()}  # type: ignore[index]


def _choose_runs(panel: Panel) -> list[Shown]:
    scored = [one for one in panel.shown if one.run.is_scored]
    best = scored[:MOST_RUNS]
    baselines = {one.plain for one in scored}
    return best + [one for one in scored[MOST_RUNS:] if one.id in baselines]


def _count_outcomes(panel: Panel, a: dict[str, float], b: dict[str, float]) -> dict[str, Outcomes]:
    signs: dict[str, list[float]] = {}
    for prompt in panel.prompts:
        sign = float(np.sign(a[prompt.id] - b[prompt.id]))
        signs.setdefault(prompt.category, []).append(sign)
    return {
        category: Outcomes(found.count(1), found.count(0), found.count(-1))
        for category, found in signs.items()
    }
