"""Sampling design of a benchmark, and the cluster bootstrap over its prompts.

A prompt's images are one observation: their mean. Prompts that belong to one cluster (such as the
short and the long form of one scene) are resampled together, inside the stratum of the clusters
that touch the same categories. Every function is pure: its result follows from its arguments, the
seed included.

Legend of suffixes: P prompts, G clusters, C categories, K aggregates, R runs (or other quantities
per prompt), D bootstrap draws, B draws of one block, S clusters of one stratum, X flattened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

DRAWS = 10_000
"""Bootstrap resamples, and random sign assignments of a permutation test."""
LEVEL = 0.95
"""Confidence level of two-sided intervals."""
BLOCK = 2_000
"""Bootstrap draws made at a time, which bounds memory."""
KEY = ["category", "prompt_id"]
"""Columns of a score table that identify a prompt."""


class Design:
    """Categories, weights and clusters of prompts, in the order of their (category, id).

    `prompts` is a DataFrame with `category` and `prompt_id`, and optionally `weight` (1 where
    absent) and `cluster` (the prompt's own where absent or empty). Rows that agree in category and
    id are one prompt.
    """

    def __init__(self, prompts: pd.DataFrame) -> None:
        unique = prompts.drop_duplicates(KEY).sort_values(KEY)
        category = unique["category"].astype(str)
        prompt_id = unique["prompt_id"].astype(str)
        weight = unique.get("weight", pd.Series(1.0, unique.index))
        cluster = unique.get("cluster", pd.Series("", unique.index))
        cluster = cluster.fillna("").astype(str)
        cluster_name = cluster.where(cluster != "", category + "\n" + prompt_id)

        names, self._category_P = np.unique(category.to_numpy(object), return_inverse=True)
        clusters, self._cluster_P = np.unique(cluster_name.to_numpy(object), return_inverse=True)
        self.categories = [str(name) for name in names]
        self.num_clusters = len(clusters)
        self.prompts = pd.MultiIndex.from_frame(unique[KEY].astype(str))
        self._weight_P = weight.to_numpy(float)
        ones_1P = np.ones((1, len(unique)))
        self._weight_GC = self._sum_by_cluster(ones_1P)[:, :, 0]

        touched_GC = self._weight_GC > 0
        patterns, stratum_G = np.unique(touched_GC, axis=0, return_inverse=True)
        stratum_G = stratum_G.reshape(-1)
        self._strata = [np.flatnonzero(stratum_G == s) for s in range(len(patterns))]

    @property
    def error_is_known(self) -> bool:
        """Tell whether every stratum has at least two clusters, so that a standard error exists."""
        return min(map(len, self._strata)) > 1

    @property
    def prompts_are_exchangeable(self) -> bool:
        """Tell whether every prompt is its own cluster and all prompts weigh the same."""
        unclustered = self.num_clusters == len(self.prompts)
        return unclustered and len(set(self._weight_P)) == 1

    def clusters_by_category(self) -> dict[str, int]:
        """Count the clusters that have prompts in each category."""
        count_C = (self._weight_GC > 0).sum(axis=0)
        return dict(zip(self.categories, count_C.tolist(), strict=True))

    def aggregate_weights(self, aggregates: Mapping[str, Mapping[str, float]]) -> np.ndarray:
        """Return the weight [K, C] that each named aggregate gives to each category's mean."""
        rows = []
        for weights in aggregates.values():
            rows.append([weights.get(category, 0.0) for category in self.categories])
        return np.array(rows)

    def macro_weights(self) -> np.ndarray:
        """Return the weights [C] of the macro mean: the unweighted mean over categories."""
        return np.full(len(self.categories), 1 / len(self.categories))

    def micro_weights(self) -> np.ndarray:
        """Return the weights [C] of the micro mean: prompts count by their weight alone."""
        return np.asarray(self._weight_GC.sum(axis=0) / self._weight_GC.sum())

    def category_means(self, value_RP: np.ndarray) -> np.ndarray:
        """Average prompts' values by category -> [R, C]: sum(w v) / sum(w) over its prompts."""
        sum_CR = self._sum_by_cluster(value_RP).sum(axis=0)
        weight_C = self._weight_GC.sum(axis=0)
        return (sum_CR / weight_C[:, None]).T

    def bootstrap(self, value_RP: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
        """Draw category means [D, R, C] of resampled clusters (stratified cluster bootstrap).

        Every row sees the same resamples, so differences between rows are paired. Of a stratum's n
        clusters n - 1 are drawn with replacement, which gives a mean the unbiased variance s^2 / n
        (Rao and Wu, JASA 83, 1988, with m = n - 1). A category's mean is a ratio: resampled sum of
        weighted values over resampled sum of weights.
        """
        rows = len(value_RP)
        width = len(self.categories)
        rng = np.random.default_rng(seed)

        # Numerators of all rows and the denominator side by side: one product resamples them all.
        sum_GCR = self._sum_by_cluster(value_RP)
        stacked_GCR = np.concatenate([sum_GCR, self._weight_GC[:, :, None]], axis=2)
        stacked_GX = stacked_GCR.reshape(self.num_clusters, -1)
        total_DX = np.zeros((draws, width * (rows + 1)))

        for members_S in self._strata:
            touched_C = self._weight_GC[members_S].any(axis=0)
            columns_X = np.repeat(touched_C, rows + 1)
            member_SX = stacked_GX[np.ix_(members_S, columns_X)]
            for first in range(0, draws, BLOCK):
                block = min(BLOCK, draws - first)
                count_BS = _resample_counts(rng, block, len(members_S))
                total_DX[first : first + block, columns_X] += count_BS @ member_SX

        total_DCR = total_DX.reshape(draws, width, rows + 1)
        mean_DCR = total_DCR[:, :, :rows] / total_DCR[:, :, rows:]
        return mean_DCR.transpose(0, 2, 1)

    def cluster_contributions(self, value_P: np.ndarray, weight_C: np.ndarray) -> np.ndarray:
        """Split the combination `weight_C` of category means into one summand per cluster [G]."""
        sum_GC = self._sum_by_cluster(value_P[None])[:, :, 0]
        return (sum_GC / self._weight_GC.sum(axis=0)) @ weight_C

    def _sum_by_cluster(self, value_RP: np.ndarray) -> np.ndarray:
        """Sum weighted prompt values by cluster and category -> [G, C, R]."""
        sum_GCR = np.zeros((self.num_clusters, len(self.categories), len(value_RP)))
        weighted_PR = (value_RP * self._weight_P).T
        np.add.at(sum_GCR, (self._cluster_P, self._category_P), weighted_PR)
        return sum_GCR


def _resample_counts(rng: np.random.Generator, block: int, size: int) -> np.ndarray:
    """Draw `size - 1` of `size` clusters with replacement, `block` times -> times drawn [B, S]."""
    drawn = rng.integers(0, size, (block, max(1, size - 1)))
    distinct = drawn + size * np.arange(block)[:, None]  # one range of numbers for each draw
    return np.bincount(distinct.ravel(), minlength=block * size).reshape(block, size)


def percentile_interval(draws_D: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the two-sided percentile interval of bootstrap draws (Efron and Tibshirani 1993)."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws_D, [tail, (1 + level) / 2])
    return float(low), float(high)


# --- score tables ---------------------------------------------------------------------------------


def prompt_means(table: pd.DataFrame) -> pd.Series:
    """Average the images of each prompt; indexed by (category, prompt_id) in sorted order.

    Raises ValueError for a value that is missing.
    """
    if table["value"].isna().any():
        missing = int(table["value"].isna().sum())
        raise ValueError(f"{missing} values are missing; a missing image counts as 0")
    return table.groupby(KEY, sort=True)["value"].mean()


def stack_prompt_means(tables: Sequence[pd.DataFrame]) -> np.ndarray:
    """Return the prompt means [R, P] of tables over the same prompts, in the order of a Design."""
    return np.stack([_prompt_values(table) for table in tables])


def category_means(table: pd.DataFrame) -> dict[str, float]:
    """Average the prompts of each category, by their weights where the table has any."""
    design = Design(table)
    mean_C = design.category_means(_prompt_values(table)[None])[0]
    return dict(zip(design.categories, mean_C.tolist(), strict=True))


def macro_mean(table: pd.DataFrame) -> float:
    """Average the category means, unweighted: GenEval's overall score."""
    return float(np.mean(list(category_means(table).values())))


def interval(
    table: pd.DataFrame, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap interval of the macro mean.

    It is (nan, nan) where a category's error cannot be known, as with a single prompt.
    """
    design = Design(table)
    value_P = _prompt_values(table)
    if not design.error_is_known:
        return math.nan, math.nan
    mean_DC = design.bootstrap(value_P[None], draws=draws, seed=seed)[:, 0]
    return percentile_interval(mean_DC @ design.macro_weights(), level)


def paired_difference(
    a: pd.DataFrame, b: pd.DataFrame, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float]:
    """Return the macro mean of `a` minus that of `b` and its interval, paired by prompt.

    Their numbers of images may differ. Raises ValueError if the tables do not cover the same
    prompts in the same categories.
    """
    means_a = prompt_means(a)
    means_b = prompt_means(b)
    if not means_a.index.equals(means_b.index):
        alone = len(means_a.index.symmetric_difference(means_b.index))
        raise ValueError(
            f"{alone} prompts are in one of the two tables only; compare runs of the same prompts"
        )
    keys = zip(a["category"], a["prompt_id"], strict=True)
    difference = [means_a[key] - means_b[key] for key in keys]
    table = a.assign(value=difference)
    low, high = interval(table, draws=draws, level=level, seed=seed)
    return macro_mean(table), low, high


def _prompt_values(table: pd.DataFrame) -> np.ndarray:
    return prompt_means(table).to_numpy(float)
