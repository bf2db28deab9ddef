"""Is one run better than another: paired differences, tests, families of tests, ranks, bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Literal

import numpy as np

from harness.results.stats.design import DRAWS, Design, percentiles

ALPHA = 0.05
POWER = 0.8
MARGIN = 0.01
TASK_MARGIN = 0.02
"""Losses that an acceleration method may have and still be called not inferior: overall, and in a
category.
"""
EXACT = 13
"""Up to this many clusters that differ, every assignment of signs is tried."""
EPSILON = 1e-9
"""Differences below it are the rounding of sums."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of two runs, in units of the score."""

    value: float
    low: float
    high: float
    error: float  # bootstrap standard error
    bound: float  # with 95 % confidence the true difference is above this: the first is at most so much worse
    p: float
    test: Literal["sign-flip", "McNemar"]
    detectable: float  # the true difference that this comparison would find in 80 % of repeats

    @property
    def resolved(self) -> bool:
        """Whether the difference is one that this comparison can tell from none: else it is "not
        resolved".
        """
        return abs(self.value) > EPSILON and abs(self.value) >= self.detectable and self.p < ALPHA


def difference(
    design: Design,
    a_P: np.ndarray,
    b_P: np.ndarray,
    weight_C: np.ndarray,
    *,
    binary: bool = False,
    draws_D: np.ndarray | None = None,
    seed: int = 0,
) -> Difference:
    """`a` minus `b` in the combination `weight_C` of category means, paired by prompt.

    `binary` says that the values are single images judged 0 or 1: then the test is McNemar's, as
    long as every prompt counts the same. `draws_D` are bootstrap draws of the same difference,
    where they are known already.
    """
    delta_P = a_P - b_P
    share_G = design.shares(delta_P, weight_C)
    value = float(share_G.sum())
    if draws_D is None and design.uncertain:
        draws_D = design.bootstrap(delta_P[None], seed=seed)[:, 0] @ weight_C
    mcnemar = binary and design.simple
    p = mcnemar_p(a_P, b_P) if mcnemar else sign_flip(share_G, seed=seed)
    test: Literal["sign-flip", "McNemar"] = "McNemar" if mcnemar else "sign-flip"
    if draws_D is None or not design.uncertain:
        low = high = error = bound = math.nan
    else:
        low, high = percentiles(draws_D)
        error = float(draws_D.std())
        bound = float(np.quantile(draws_D, ALPHA))
    return Difference(value, low, high, error, bound, p, test, detectable(error))


def sign_flip(share_G: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of the hypothesis that each cluster's difference is as likely as its opposite.

    `share_G`: what each cluster contributes to the difference. Exact where few clusters differ,
    else by random signs.
    """
    some = share_G[np.abs(share_G) > EPSILON / max(1, len(share_G))]
    observed = abs(some.sum()) - EPSILON
    if len(some) <= EXACT:
        every = np.array(list(product((-1.0, 1.0), repeat=len(some))))
        return float(np.mean(np.abs(every @ some) >= observed)) if len(some) else 1.0
    sign_DG = (
        2.0 * np.random.default_rng(seed).integers(0, 2, (draws, len(some)), dtype=np.int8) - 1
    )
    return float((1 + np.sum(np.abs(sign_DG @ some) >= observed)) / (draws + 1))


def mcnemar_p(a_P: np.ndarray, b_P: np.ndarray) -> float:
    """McNemar's test of two runs with one binary image a prompt; exact when fewer than 25 prompts
    differ.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    right_a = a_P > 0.5
    right_b = b_P > 0.5
    table = [
        [np.sum(right_a & right_b), np.sum(right_a & ~right_b)],
        [np.sum(~right_a & right_b), 0],
    ]
    return float(mcnemar(table, exact=bool(np.sum(right_a != right_b) < 25)).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """P values of a declared family, corrected so that one false finding among them is as rare as
    in one test.

    NaN (no test) stays and does not count.
    """
    values = np.asarray(
        p, float
    )  # four lines of our own: the library's take seconds to import, after every run
    order = np.argsort(values)[: int((~np.isnan(values)).sum())]
    factors = np.arange(len(order), 0, -1)
    values[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return [float(value) for value in values]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """P values of an exploration, corrected for the share of false findings among the findings."""
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p, method="fdr_bh")[1]]


def detectable(error: float, power: float = POWER, alpha: float = ALPHA) -> float:
    """The true difference that a two-sided test with this standard error finds with that power."""
    quantile = NormalDist().inv_cdf
    return (quantile(1 - alpha / 2) + quantile(power)) * error


def rank_intervals(score_DR: np.ndarray, level: float = 0.95) -> list[tuple[int, int]]:
    """Interval of each run's rank (1 = best) over bootstrap draws of all runs; equals share the
    better rank.
    """
    rounded = np.round(score_DR, 12)
    rank_DR = 1 + (rounded[:, None, :] > rounded[:, :, None]).sum(axis=2)
    ends = np.quantile(rank_DR, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf")
    return [(int(low), int(high)) for low, high in ends.T]


def tie_groups(
    design: Design, value_RP: np.ndarray, weight_C: np.ndarray, score_DR: np.ndarray
) -> list[int]:
    """Groups of runs that the comparison cannot tell from the best one among them: 1 holds the best
    run of all.
    """
    score_R = np.round(design.means(value_RP) @ weight_C, 12)
    left = list(np.argsort(-score_R, kind="stable"))
    group = [0] * len(left)
    number = 0
    while left:
        number = number + 1
        best = left[0]
        tied = [
            r
            for r in left
            if r == best
            or not difference(
                design,
                value_RP[best],
                value_RP[r],
                weight_C,
                draws_D=score_DR[:, best] - score_DR[:, r],
            ).resolved
        ]
        for run in tied:
            group[run] = number
        left = [run for run in left if run not in tied]
    return group


def pareto(cost: Sequence[float], quality: Sequence[float]) -> list[bool]:
    """Whether no other point costs as little and is as good, one of the two strictly; False where a
    value is NaN.
    """
    points = list(zip(cost, quality, strict=True))
    return [
        not (math.isnan(c) or math.isnan(q))
        and not any(oc <= c and oq >= q and (oc < c or oq > q) for oc, oq in points)
        for c, q in points
    ]
