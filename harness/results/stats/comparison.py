"""Is one run better than another: paired differences, tests, multiplicity, ranks and ties.

Legend of suffixes: see `design`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Literal

import numpy as np

from harness.results.stats.design import DRAWS, Design, percentile_interval

Test = Literal["sign-flip", "McNemar"]

ALPHA = 0.05
"""Significance level of every test."""
POWER = 0.8
"""Power at which a difference counts as detectable."""
MARGIN = 0.01
"""Non-inferiority margin of the overall score: an acceleration method may lose this much."""
TASK_MARGIN = 0.02
"""Non-inferiority margin of every single category."""
EXACT_CLUSTERS = 13
"""Up to this many clusters that differ, a sign-flip test tries all sign assignments."""
EXACT_DISCORDANT = 25
"""Below this many prompts on which two runs disagree, McNemar's test is the exact one."""
EPSILON = 1e-9
"""Differences below it are rounding errors of sums."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference between the scores of two runs, in units of the score."""

    value: float
    low: float  # 95 % interval
    high: float
    error: float  # bootstrap standard error
    bound: float  # one-sided: with 95 % confidence the true difference is above it
    p: float
    test: Test
    detectable: float  # true difference that this comparison finds with 80 % power

    @property
    def resolved(self) -> bool:
        """Tell whether p is below 5 % and the difference is of detectable size."""
        magnitude = abs(self.value)
        return magnitude > EPSILON and magnitude >= self.detectable and self.p < ALPHA


def compare_paired(
    design: Design,
    a_P: np.ndarray,
    b_P: np.ndarray,
    weight_C: np.ndarray,
    *,
    binary: bool = False,
    draws_D: np.ndarray | None = None,
    seed: int = 0,
) -> Difference:
    """Compare two runs' prompt values in the combination `weight_C` of category means, a minus b.

    `binary` states that each value is one image judged 0 or 1; the test is then McNemar's, provided
    that prompts are exchangeable, else a sign-flip test over clusters. `draws_D` are bootstrap
    draws of the same difference, where they exist already. Interval, error and bound are nan where
    the design cannot tell its error.
    """
    delta_P = a_P - b_P
    contribution_G = design.cluster_contributions(delta_P, weight_C)
    value = float(contribution_G.sum())

    test: Test
    if binary and design.prompts_are_exchangeable:
        test = "McNemar"
        p = mcnemar_test(a_P, b_P)
    else:
        test = "sign-flip"
        p = sign_flip_test(contribution_G, seed=seed)

    if not design.error_is_known:
        nan = math.nan
        return Difference(value, nan, nan, nan, nan, p, test, detectable_difference(nan))
    if draws_D is None:
        draws_D = design.bootstrap(delta_P[None], seed=seed)[:, 0] @ weight_C
    low, high = percentile_interval(draws_D)
    error = float(draws_D.std())
    bound = float(np.quantile(draws_D, ALPHA))
    return Difference(value, low, high, error, bound, p, test, detectable_difference(error))


def sign_flip_test(contribution_G: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Return the two-sided p of Fisher's paired randomization test, with clusters as pairs.

    Null hypothesis: each cluster's contribution to the difference is as likely as its opposite.
    Exact where few clusters differ; else from m random sign assignments, of which b are as extreme
    as what was observed: p = (b + 1) / (m + 1) (Phipson and Smyth 2010).
    """
    negligible = EPSILON / max(1, len(contribution_G))
    nonzero_G = contribution_G[np.abs(contribution_G) > negligible]
    observed = abs(nonzero_G.sum()) - EPSILON
    if len(nonzero_G) == 0:
        return 1.0
    if len(nonzero_G) <= EXACT_CLUSTERS:
        sign_DG = np.array(list(product((-1.0, 1.0), repeat=len(nonzero_G))))
        return float(np.mean(np.abs(sign_DG @ nonzero_G) >= observed))
    rng = np.random.default_rng(seed)
    bit_DG = rng.integers(0, 2, (draws, len(nonzero_G)), dtype=np.int8)
    sign_DG = 2.0 * bit_DG - 1
    as_extreme = np.sum(np.abs(sign_DG @ nonzero_G) >= observed)
    return float((1 + as_extreme) / (draws + 1))


def mcnemar_test(a_P: np.ndarray, b_P: np.ndarray) -> float:
    """Return the two-sided p of McNemar's test for one binary image per prompt (McNemar 1947).

    `statsmodels.stats.contingency_tables.mcnemar`: the exact binomial test when fewer than 25
    prompts are discordant, else chi-squared with continuity correction.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    right_a = a_P > 0.5
    right_b = b_P > 0.5
    table = [
        [np.sum(right_a & right_b), np.sum(right_a & ~right_b)],
        [np.sum(~right_a & right_b), 0],
    ]
    discordant = np.sum(right_a != right_b)
    return float(mcnemar(table, exact=bool(discordant < EXACT_DISCORDANT)).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust the p values of a declared family by Holm's method (Holm 1979).

    Controls the family-wise error rate. With sorted p_(1) <= ... <= p_(m) the adjusted value is
    max over j <= i of min(1, (m - j + 1) p_(j)). A nan (no test) stays and does not count. Equal to
    statsmodels' `multipletests(method="holm")`, which takes seconds to import after every run.
    """
    adjusted = np.asarray(p, float)
    tested = int((~np.isnan(adjusted)).sum())
    order = np.argsort(adjusted)[:tested]  # nan sorts last
    factors = np.arange(tested, 0, -1)
    monotone = np.maximum.accumulate(adjusted[order] * factors)
    adjusted[order] = np.minimum(1.0, monotone)
    return [float(value) for value in adjusted]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjust the p values of an exploration by Benjamini and Hochberg's method (1995).

    Controls the false discovery rate; statsmodels' `multipletests(method="fdr_bh")`.
    """
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p, method="fdr_bh")[1]]


def detectable_difference(error: float, power: float = POWER, alpha: float = ALPHA) -> float:
    """Return the minimum detectable effect of a two-sided z test with this standard error.

    (z_(1 - alpha/2) + z_power) error: the true difference that is found with that power (Bloom,
    Evaluation Review 19, 1995).
    """
    quantile = NormalDist().inv_cdf
    return (quantile(1 - alpha / 2) + quantile(power)) * error


def resolve_pairs(
    design: Design,
    value_RP: np.ndarray,
    weight_C: np.ndarray,
    score_DR: np.ndarray,
    *,
    binary: bool = False,
) -> np.ndarray:
    """Tell for each pair of runs whether the first is resolved to be better -> bool [R, R].

    Every pair is compared by `compare_paired`, the p values as they are: a ranking explores, and a
    declared family of tests has its own correction (`holm`).
    """
    runs = len(value_RP)
    better_RR = np.zeros((runs, runs), dtype=bool)
    for a in range(runs):
        for b in range(a):
            found = compare_paired(
                design,
                value_RP[a],
                value_RP[b],
                weight_C,
                binary=binary,
                draws_D=score_DR[:, a] - score_DR[:, b],
            )
            better_RR[a, b] = found.resolved and found.value > 0
            better_RR[b, a] = found.resolved and found.value < 0
    return better_RR


def rank_ranges(better_RR: np.ndarray) -> list[tuple[int, int]]:
    """Return the ranks that each run may have, by the pairs that are resolved; 1 is the best.

    The better end counts the runs that are resolved to be better, the worse end leaves out those
    that are resolved to be worse (Mogstad, Romano, Shaikh and Wilhelm, Review of Economic Studies
    91, 2024, with `resolve_pairs` in place of their simultaneous intervals).
    """
    better = better_RR.sum(axis=0)
    worse = better_RR.sum(axis=1)
    return [
        (1 + int(low), len(better_RR) - int(high)) for low, high in zip(better, worse, strict=True)
    ]


def tie_groups(better_RR: np.ndarray) -> list[int]:
    """Number the groups of runs that cannot be told apart; 1 leads.

    A group holds the runs than which no other one without a group is resolved to be better, so no
    two runs of a group are resolved from each other, and group 1 are those whose ranks begin at 1.
    """
    group_R = np.zeros(len(better_RR), dtype=int)
    number = 0
    while (ungrouped_R := group_R == 0).any():
        number += 1
        is_beaten_R = better_RR[ungrouped_R].any(axis=0)
        leading_R = ungrouped_R & ~is_beaten_R
        group_R[leading_R if leading_R.any() else ungrouped_R] = number
    return [int(group) for group in group_R]


def pareto(cost: Sequence[float], quality: Sequence[float]) -> list[bool]:
    """Tell which points are on the Pareto front of low cost and high quality.

    A point is dominated if another one costs no more and is at least as good, one of the two
    strictly. A point with a nan is never on the front.
    """
    points = list(zip(cost, quality, strict=True))
    on_front = []
    for point in points:
        known = not any(map(math.isnan, point))
        dominated = any(_dominates(other, point) for other in points)
        on_front.append(known and not dominated)
    return on_front


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    cost, quality = one
    other_cost, other_quality = other
    no_worse = cost <= other_cost and quality >= other_quality
    return no_worse and (cost < other_cost or quality > other_quality)
