"""Statistics of scores: means, intervals, paired comparisons, scaling curves and power analysis.

A score table is a DataFrame with one row per planned image and the columns `category`, `prompt_id`
and `value` in [0, 1] (0 for an image that is missing), and optionally `image`, `weight` and
`cluster`. The prompt is the sampling unit: its images are averaged first, because they are not
independent, and prompts (or clusters of them) are resampled inside their category. Every function
is pure: its result follows from its arguments, the bootstrap's seed included.
"""

from harness.results.stats.comparison import (
    ALPHA,
    Difference,
    benjamini_hochberg,
    compare_paired,
    detectable_difference,
    holm,
    pareto,
    rank_ranges,
    resolve_pairs,
    sign_flip_test,
    tie_groups,
)
from harness.results.stats.design import (
    DRAWS,
    Design,
    category_means,
    interval,
    macro_mean,
    paired_difference,
    percentile_interval,
    prompt_means,
    stack_prompt_means,
)
from harness.results.stats.latency import latency_percentile, samples_for
from harness.results.stats.planning import (
    VarianceComponents,
    assume_components,
    estimate_components,
)
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
    "VarianceComponents",
    "area_under",
    "assume_components",
    "auc",
    "auc_within",
    "benjamini_hochberg",
    "budget_for",
    "category_means",
    "clustered_wilson",
    "compare_paired",
    "detectable_difference",
    "estimate_components",
    "holm",
    "hypervolume",
    "interval",
    "latency_percentile",
    "macro_mean",
    "oracle",
    "paired_difference",
    "pareto",
    "percentile_interval",
    "prompt_means",
    "quality_at",
    "rank_ranges",
    "resolve_pairs",
    "samples_for",
    "selection_efficiency",
    "sign_flip_test",
    "stack_prompt_means",
    "tie_groups",
    "wilson",
]
