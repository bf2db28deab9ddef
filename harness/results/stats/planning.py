"""How many prompts and images a comparison needs, and what one of a given size can see."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.results.stats.comparison import ALPHA, POWER, detectable


@dataclass(frozen=True, slots=True)
class Spread:
    """Variance of the paired difference of one image: between prompts, and between the images of a
    prompt.
    """

    prompts: float
    images: float

    def error(self, prompts: float, images: float) -> float:
        """Standard error of the mean difference over so many prompts with so many images each."""
        return math.sqrt((self.prompts + self.images / images) / prompts)

    def needed(
        self, difference: float, images: float, power: float = POWER, alpha: float = ALPHA
    ) -> int:
        """Prompts that resolve a true `difference` with that power."""
        per_unit = detectable(1.0, power, alpha)
        return math.ceil((self.prompts + self.images / images) * (per_unit / difference) ** 2)

    def power(self, difference: float, prompts: int, images: int, alpha: float = ALPHA) -> float:
        """Chance that the two-sided test finds a true `difference`."""
        from statistics import NormalDist

        normal = NormalDist()
        z = abs(difference) / self.error(prompts, images)
        edge = normal.inv_cdf(1 - alpha / 2)
        return normal.cdf(z - edge) + normal.cdf(-z - edge)


def measured_spread(a: pd.DataFrame, b: pd.DataFrame) -> Spread:
    """Spread of two runs' difference, from their score tables; images are paired by number, as
    their seeds are.

    Components inside categories, averaged over these: what a macro mean over equal numbers of
    prompts sees.
    """
    keys = ["category", "prompt_id", "image"]
    both = a.merge(b, on=keys, suffixes=("_a", "_b"))
    if both.empty:
        raise ValueError("the two runs share no image; compare runs of the same prompts")
    delta = (both["value_a"] - both["value_b"]).groupby([both["category"], both["prompt_id"]])
    within = delta.var(ddof=1).groupby(level="category").mean()
    between = (
        delta.mean().groupby(level="category").var(ddof=1)
        - within.fillna(0.0) / delta.size().mean()
    )
    return Spread(float(np.nanmean(np.maximum(between, 0.0))), float(within.fillna(0.0).mean()))


def assumed_spread(rate: float, correlation: float, pairing: float) -> Spread:
    """Spread of the difference of two methods that are both right at `rate`.

    `correlation` is that of two images of a prompt, `pairing` that of the two methods' answers to
    it (0: unpaired).
    """
    variance = 2 * rate * (1 - rate) * (1 - pairing)
    return Spread(variance * correlation, variance * (1 - correlation))
