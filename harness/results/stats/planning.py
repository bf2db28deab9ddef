"""Power analysis: how many prompts and images a comparison needs, and what a given size detects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from harness.results.stats.comparison import ALPHA, POWER, detectable_difference


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """Variance of the paired difference of two runs' images, in two components.

    Model of the difference of image i of prompt p (one-way random effects):
    d_pi = mean + u_p + e_pi with Var(u) = `between_prompts` and Var(e) = `within_prompts`.
    """

    between_prompts: float
    within_prompts: float

    def standard_error(self, prompts: float, images: float) -> float:
        """Return the standard error of the mean difference for so many prompts and images of each.

        sqrt((Var(u) + Var(e) / images) / prompts)
        """
        return math.sqrt((self.between_prompts + self.within_prompts / images) / prompts)

    def prompts_needed(
        self, difference: float, images: float, power: float = POWER, alpha: float = ALPHA
    ) -> int:
        """Return the number of prompts at which a true `difference` is found with that power."""
        per_error = detectable_difference(1.0, power, alpha)
        variance = self.between_prompts + self.within_prompts / images
        return math.ceil(variance * (per_error / difference) ** 2)

    def power(self, difference: float, prompts: int, images: int, alpha: float = ALPHA) -> float:
        """Return the probability that a two-sided z test finds a true `difference`."""
        normal = NormalDist()
        z = abs(difference) / self.standard_error(prompts, images)
        critical = normal.inv_cdf(1 - alpha / 2)
        return normal.cdf(z - critical) + normal.cdf(-z - critical)


def estimate_components(a: pd.DataFrame, b: pd.DataFrame) -> VarianceComponents:
    """Estimate the variance components of two runs' difference from their score tables.

    Images are paired by number, as their seeds are. The method of moments of the one-way analysis
    of variance: within = mean of the prompts' variances, between = variance of the prompts' means
    minus within / images, not below 0. Both are estimated inside each category and averaged over
    categories, as a macro mean over equal numbers of prompts sees them. Raises ValueError if the
    tables share no image.
    """
    both = a.merge(b, on=["category", "prompt_id", "image"], suffixes=("_a", "_b"))
    if both.empty:
        raise ValueError("the two runs share no image; compare runs of the same prompts")
    difference = both["value_a"] - both["value_b"]
    by_prompt = difference.groupby([both["category"], both["prompt_id"]])
    images = by_prompt.size().mean()

    within_C = by_prompt.var(ddof=1).groupby(level="category").mean().fillna(0.0)
    variance_of_means_C = by_prompt.mean().groupby(level="category").var(ddof=1)
    between_C = variance_of_means_C - within_C / images
    is_known = bool(between_C.notna().any())  # not if each category has a single prompt
    between = float(np.nanmean(np.maximum(between_C, 0.0))) if is_known else math.nan
    return VarianceComponents(between_prompts=between, within_prompts=float(within_C.mean()))


def assume_components(rate: float, correlation: float, pairing: float) -> VarianceComponents:
    """Derive the variance components of two methods whose images are both right at `rate`.

    `correlation` is that of two images of a prompt, `pairing` that of the two methods' answers to
    it (0: unpaired). Total variance: 2 rate (1 - rate) (1 - pairing).
    """
    variance = 2 * rate * (1 - rate) * (1 - pairing)
    return VarianceComponents(
        between_prompts=variance * correlation,
        within_prompts=variance * (1 - correlation),
    )
