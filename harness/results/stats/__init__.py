"""What a score is worth: means, intervals, paired comparisons, curves and plans, with the prompt as
the unit.

A score table is a DataFrame with one row per planned image and the columns `category`, `prompt_id`
and `value` in [0, 1] (0 for an image that is missing), and optionally `image`, `weight` and
`cluster`. A prompt's images are not independent, so they are averaged first and prompts (or
clusters of them) are resampled, inside their category. Everything is a pure function of its
arguments, the bootstrap's seed included.
"""

from harness.results.stats.comparison import (
    ALPHA,
    Difference,
    benjamini_hochberg,
    detectable,
    difference,
    holm,
    pareto,
    rank_intervals,
    sign_flip,
    tie_groups,
)
from harness.results.stats.design import (
    DRAWS,
    Design,
    category_means,
    interval,
    macro_mean,
    paired_difference,
    percentiles,
    prompt_means,
    stack,
)
from harness.results.stats.planning import Spread, assumed_spread, measured_spread
from harness.results.stats.rates import (
    auc,
    auc_within,
    clustered_wilson,
    oracle,
    selection_efficiency,
    wilson,
)
from harness.results.stats.scaling import BUDGETS, area_under, budget_for, hypervolume, quality_at

__all__ = [
    "ALPHA",
    "BUDGETS",
    "DRAWS",
    "Design",
    "Difference",
    "Spread",
    "area_under",
    "assumed_spread",
    "auc",
    "auc_within",
    "benjamini_hochberg",
    "budget_for",
    "category_means",
    "clustered_wilson",
    "detectable",
    "difference",
    "holm",
    "hypervolume",
    "interval",
    "macro_mean",
    "measured_spread",
    "oracle",
    "paired_difference",
    "pareto",
    "percentiles",
    "prompt_means",
    "quality_at",
    "rank_intervals",
    "selection_efficiency",
    "sign_flip",
    "stack",
    "tie_groups",
    "wilson",
]
