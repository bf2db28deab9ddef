"""What a score is worth: means, intervals and paired comparisons whose unit of independence is the prompt.

A score table is a DataFrame with one row per planned image and the columns `category`, `prompt_id` and `value` in
[0, 1] (0 for an image that is missing). A prompt's images are not independent, so they are averaged first and prompts
are resampled, inside their category. Everything is a pure function of its arguments, the bootstrap's seed included.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd

DRAWS = 10_000
LEVEL = 0.95


def uniform(categories: Iterable[str]) -> dict[str, float]:
    """Weights of the unweighted mean over categories."""
    names = sorted(set(categories))
    return {name: 1 / len(names) for name in names}


def prompt_means(table: pd.DataFrame) -> pd.Series:
    """Mean value of each prompt's images, indexed by (category, prompt_id) in sorted order."""
    if table["value"].isna().any():
        raise ValueError(f"{int(table['value'].isna().sum())} values are missing; a missing image counts as 0")
    return table.groupby(["category", "prompt_id"], sort=True)["value"].mean()


def category_means(table: pd.DataFrame) -> dict[str, float]:
    """Mean over the prompts of each category."""
    return {str(name): float(mean) for name, mean in prompt_means(table).groupby(level="category").mean().items()}


def macro_mean(table: pd.DataFrame) -> float:
    """Unweighted mean of the category means: GenEval's overall score."""
    return float(np.mean(list(category_means(table).values())))


def interval(table: pd.DataFrame, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the macro mean: prompts resampled inside each category, percentiles of `draws` means.

    (nan, nan) where a category has a single prompt: its error cannot be known from itself.
    """
    return _bootstrap(prompt_means(table), draws, level, seed)


def paired_difference(
    a: pd.DataFrame, b: pd.DataFrame, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float]:
    """Macro mean of `a` minus that of `b`, and its bootstrap interval, paired by prompt.

    Both tables must cover the same prompts in the same categories; their numbers of images may differ.
    """
    means_a, means_b = prompt_means(a), prompt_means(b)
    if not means_a.index.equals(means_b.index):
        alone = len(means_a.index.symmetric_difference(means_b.index))
        raise ValueError(f"{alone} prompts are in one of the two tables only; compare runs of the same prompts")
    differences = means_a - means_b
    return (_macro(differences), *_bootstrap(differences, draws, level, seed))


def wilson(k: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson score interval of a rate of `k` in `n`; sensible at 0 and at `n` too."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"no rate of {k} in {n}: 0 <= k <= n and n > 0 are needed")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return 0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half


def auc(signal: Sequence[float] | np.ndarray, success: Sequence[bool] | np.ndarray) -> float:
    """Chance that a success has the higher signal than a failure, ties counting half; nan if either is absent."""
    from scipy.stats import rankdata  # a second of import that a run does not need

    won = np.asarray(success, bool)
    ranks = rankdata(np.asarray(signal, float))
    pairs = int(won.sum()) * int((~won).sum())
    if pairs == 0:
        return math.nan
    return float((ranks[won].sum() - won.sum() * (won.sum() + 1) / 2) / pairs)


def auc_within(
    signal: Sequence[float] | np.ndarray, success: Sequence[bool] | np.ndarray, groups: Sequence[Hashable]
) -> tuple[float, int]:
    """Mean of the AUCs inside the groups (prompts) that have successes and failures, and how many those are."""
    table = pd.DataFrame({"signal": np.asarray(signal), "success": np.asarray(success, bool), "group": list(groups)})
    each = [auc(group["signal"].to_numpy(), group["success"].to_numpy()) for _, group in table.groupby("group")]
    mixed = [value for value in each if not math.isnan(value)]
    return (float(np.mean(mixed)) if mixed else math.nan), len(mixed)


def _macro(per_prompt: pd.Series) -> float:
    return float(per_prompt.groupby(level="category").mean().mean())


def _bootstrap(per_prompt: pd.Series, draws: int, level: float, seed: int) -> tuple[float, float]:
    strata = [group.to_numpy(float) for _, group in per_prompt.groupby(level="category", sort=True)]
    if min(map(len, strata)) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), (draws, len(values)))].mean(axis=1) for values in strata]
    low, high = np.quantile(np.mean(means, axis=0), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
