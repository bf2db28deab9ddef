"""The prompts that runs share, as the bootstrap resamples them.

Legend of suffixes: P prompts, G clusters, C categories, K aggregates, R runs (or other quantities),
D draws. A prompt's images are one observation, their mean; the prompts of a cluster are resampled
together, inside the stratum of the clusters that touch the same categories. Everything is a pure
function of its arguments, seeds included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

DRAWS = 10_000
LEVEL = 0.95
BLOCK = 2_000
"""Draws made at a time, which bounds memory."""


class Design:
    """Categories, weights and clusters of prompts, in the order of their (category, id).

    `prompts` is a DataFrame with `category` and `prompt_id`, and optionally `weight` (1 where
    absent) and `cluster` (the prompt's own where absent or empty); equal rows are one prompt.
    """

    def __init__(self, prompts: pd.DataFrame) -> None:
        once = prompts.drop_duplicates(["category", "prompt_id"]).sort_values(
            ["category", "prompt_id"]
        )
        self.index = pd.MultiIndex.from_frame(once[["category", "prompt_id"]].astype(str))
        names, self._category_P = np.unique(
            once["category"].astype(str).to_numpy(object), return_inverse=True
        )
        self.categories = [str(name) for name in names]
        self._weight_P = once.get("weight", pd.Series(1.0, once.index)).to_numpy(float)
        own = once["category"].astype(str) + "\n" + once["prompt_id"].astype(str)
        cluster = once.get("cluster", pd.Series("", once.index)).fillna("").astype(str)
        clusters, self._cluster_P = np.unique(
            cluster.where(cluster != "", own).to_numpy(object), return_inverse=True
        )
        self.clusters = len(clusters)
        self._weight_GC = self._by_cluster(np.ones((1, len(once))))[:, :, 0]
        patterns, member_G = np.unique(self._weight_GC > 0, axis=0, return_inverse=True)
        self._strata = [np.flatnonzero(member_G.reshape(-1) == s) for s in range(len(patterns))]

    @property
    def uncertain(self) -> bool:
        """Whether every stratum has two clusters at least: the error of a lone one cannot be known
        from itself.
        """
        return min(map(len, self._strata)) > 1

    @property
    def simple(self) -> bool:
        """Whether every prompt is its own cluster and weighs the same."""
        return self.clusters == len(self.index) and len(set(self._weight_P)) == 1

    def counts(self) -> dict[str, int]:
        """Clusters in each category."""
        return dict(zip(self.categories, (self._weight_GC > 0).sum(axis=0).tolist(), strict=True))

    def matrix(self, aggregates: Mapping[str, Mapping[str, float]]) -> np.ndarray:
        """Aggregates as weights [K, C] of category means."""
        return np.array(
            [[parts.get(name, 0.0) for name in self.categories] for parts in aggregates.values()]
        )

    def uniform(self) -> np.ndarray:
        """Weights [C] of the unweighted mean over categories."""
        return np.full(len(self.categories), 1 / len(self.categories))

    def per_prompt(self) -> np.ndarray:
        """Weights [C] under which every prompt counts by its own weight, whatever its category."""
        return np.asarray(self._weight_GC.sum(axis=0) / self._weight_GC.sum())

    def means(self, value_RP: np.ndarray) -> np.ndarray:
        """Category means [R, C]: weighted means of the prompts' values."""
        return (self._by_cluster(value_RP).sum(axis=0) / self._weight_GC.sum(axis=0)[:, None]).T

    def bootstrap(self, value_RP: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
        """Category means [D, R, C] of resampled clusters; every row sees the same resamples, so
        differences are paired.

        Of n clusters in a stratum n - 1 are drawn with replacement, which makes the variance of a
        mean unbiased (Rao and Wu, JASA 1988).
        """
        rows = len(value_RP)
        width = len(self.categories)
        sum_GCR = self._by_cluster(value_RP)
        rng = np.random.default_rng(seed)
        stacked_GX = np.concatenate([sum_GCR, self._weight_GC[:, :, None]], axis=2).reshape(
            self.clusters, -1
        )
        total_DX = np.zeros((draws, width * (rows + 1)))
        for members in self._strata:
            size = len(members)
            columns = np.repeat(self._weight_GC[members].any(axis=0), rows + 1)
            for first in range(0, draws, BLOCK):
                block = min(BLOCK, draws - first)
                drawn = (
                    rng.integers(0, size, (block, max(1, size - 1)))
                    + size * np.arange(block)[:, None]
                )
                count_DG = np.bincount(drawn.ravel(), minlength=block * size).reshape(block, size)
                total_DX[first : first + block, columns] += (
                    count_DG @ stacked_GX[np.ix_(members, columns)]
                )
        total_DCR = total_DX.reshape(draws, width, rows + 1)
        return (total_DCR[:, :, :rows] / total_DCR[:, :, rows:]).transpose(0, 2, 1)

    def shares(self, value_P: np.ndarray, weight_C: np.ndarray) -> np.ndarray:
        """What each cluster contributes [G] to the combination `weight_C` of category means; they
        add up to it.
        """
        return (self._by_cluster(value_P[None])[:, :, 0] / self._weight_GC.sum(axis=0)) @ weight_C

    def _by_cluster(self, value_RP: np.ndarray) -> np.ndarray:
        """Weighted sums of prompts' values [G, C, R]."""
        sums = np.zeros((self.clusters, len(self.categories), len(value_RP)))
        np.add.at(sums, (self._cluster_P, self._category_P), (value_RP * self._weight_P).T)
        return sums


def prompt_means(table: pd.DataFrame) -> pd.Series:
    """Mean value of each prompt's images, indexed by (category, prompt_id) in sorted order.

    Raises ValueError for a value that is missing.
    """
    if table["value"].isna().any():
        raise ValueError(
            f"{int(table['value'].isna().sum())} values are missing; a missing image counts as 0"
        )
    return table.groupby(["category", "prompt_id"], sort=True)["value"].mean()


def percentiles(draws_D: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Two-sided percentile interval."""
    low, high = np.quantile(draws_D, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def category_means(table: pd.DataFrame) -> dict[str, float]:
    """(Weighted) mean over the prompts of each category."""
    design = Design(table)
    return dict(zip(design.categories, design.means(_values(table)[None])[0].tolist(), strict=True))


def macro_mean(table: pd.DataFrame) -> float:
    """Unweighted mean of the category means: GenEval's overall score."""
    return float(np.mean(list(category_means(table).values())))


def interval(
    table: pd.DataFrame, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the macro mean; (nan, nan) where a category's error cannot be known: a
    single prompt.
    """
    design = Design(table)
    value_P = _values(table)
    if not design.uncertain:
        return math.nan, math.nan
    return percentiles(
        design.bootstrap(value_P[None], draws=draws, seed=seed)[:, 0] @ design.uniform(), level
    )


def paired_difference(
    a: pd.DataFrame, b: pd.DataFrame, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float]:
    """Macro mean of `a` minus that of `b`, and its bootstrap interval, paired by prompt.

    Both tables must cover the same prompts in the same categories; their numbers of images may
    differ.
    """
    means_a = prompt_means(a)
    means_b = prompt_means(b)
    if not means_a.index.equals(means_b.index):
        alone = len(means_a.index.symmetric_difference(means_b.index))
        raise ValueError(
            f"{alone} prompts are in one of the two tables only; compare runs of the same prompts"
        )
    table = a.assign(
        value=[
            means_a[key] - means_b[key] for key in zip(a["category"], a["prompt_id"], strict=True)
        ]
    )
    return (macro_mean(table), *interval(table, draws=draws, level=level, seed=seed))


def _values(table: pd.DataFrame) -> np.ndarray:
    return prompt_means(table).to_numpy(float)


def stack(tables: Sequence[pd.DataFrame]) -> np.ndarray:
    """Prompt means [R, P] of tables that cover the same prompts, in a Design's order."""
    return np.stack([_values(table) for table in tables])
