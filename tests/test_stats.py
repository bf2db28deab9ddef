"""Statistics against closed forms and simulation."""

from __future__ import annotations

import math
from itertools import combinations
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.results.stats import (
    Design,
    VarianceComponents,
    area_under,
    assume_components,
    auc,
    auc_within,
    benjamini_hochberg,
    budget_for,
    category_means,
    clustered_wilson,
    compare_paired,
    estimate_components,
    holm,
    hypervolume,
    interval,
    macro_mean,
    oracle,
    paired_difference,
    pareto,
    prompt_means,
    quality_at,
    rank_ranges,
    resolve_pairs,
    selection_efficiency,
    sign_flip_test,
    tie_groups,
    wilson,
)


def table(**categories: np.ndarray) -> pd.DataFrame:
    """Make a score table of arrays [prompts, images], one for each category."""
    rows = []
    for category, value_PI in categories.items():
        for i, images in enumerate(value_PI):
            rows += [(category, f"{category}/{i}", float(value)) for value in images]
    return pd.DataFrame(rows, columns=["category", "prompt_id", "value"])


def simulate_runs(rng: np.random.Generator, gain: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate two runs of the same prompts, two images each; the second is better by `gain`."""
    chance = {name: rng.beta(2, 2, size) * 0.8 for name, size in (("a", 40), ("b", 60))}
    draws = {name: rng.random((len(chance_P), 2)) for name, chance_P in chance.items()}
    plain = {name: draws[name] < chance[name][:, None] for name in chance}
    better = {name: draws[name] < chance[name][:, None] + gain for name in chance}
    return table(**plain), table(**better)


def width_of(scores: pd.DataFrame) -> float:
    """Return the width of a table's interval."""
    low, high = interval(scores)
    return high - low


def test_means_go_by_prompt_then_by_category() -> None:
    scores = table(a=np.array([[1, 1, 0, 0], [1, 1, 1, 1]]), b=np.array([[0, 0]]))
    means = {("a", "a/0"): 0.5, ("a", "a/1"): 1.0, ("b", "b/0"): 0.0}
    assert prompt_means(scores).to_dict() == means
    assert category_means(scores) == {"a": 0.75, "b": 0.0}
    assert macro_mean(scores) == 0.375


def test_missing_values_are_refused() -> None:
    with pytest.raises(ValueError, match="1 values are missing"):
        macro_mean(table(a=np.array([[1.0, np.nan]])))


def test_the_interval_has_the_standard_error_of_the_formula() -> None:
    rng = np.random.default_rng(1)
    values = {name: rng.random((size, 1)) for name, size in (("a", 80), ("b", 120), ("c", 100))}
    low, high = interval(table(**values))
    variances = [value.var(ddof=1) / len(value) for value in values.values()]
    error = math.sqrt(sum(variances) / 9)  # of a mean of three independent means
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.04)
    assert (high + low) / 2 == pytest.approx(macro_mean(table(**values)), abs=0.002)


def test_images_of_a_prompt_are_one_observation() -> None:
    once = np.random.default_rng(2).integers(0, 2, (50, 1)).astype(float)
    assert interval(table(a=once)) == interval(table(a=np.repeat(once, 16, axis=1)))


def test_intervals_are_a_pure_function_of_the_table() -> None:
    scores, _ = simulate_runs(np.random.default_rng(3))
    shuffled = scores.sample(frac=1, random_state=0)
    assert interval(scores) == interval(shuffled)
    assert interval(scores) != interval(scores, seed=1)


def test_a_single_prompt_has_no_interval() -> None:
    assert all(map(math.isnan, interval(table(a=np.ones((1, 4)), b=np.ones((9, 4))))))


def off_nominal(rate: float, runs: int, nominal: float = 0.95) -> float:
    """Return how many Monte-Carlo standard errors a simulated rate is from its nominal value."""
    return abs(rate - nominal) / math.sqrt(nominal * (1 - nominal) / runs)


def coverage(draws_DRC: np.ndarray, truth: float) -> float:
    """Return the share of runs whose 95 % interval of the macro mean holds the truth."""
    low_R, high_R = np.quantile(draws_DRC.mean(axis=2), [0.025, 0.975], axis=0)
    return float(np.mean((low_R <= truth) & (truth <= high_R)))


def test_intervals_cover() -> None:
    """95 % intervals hold the truth in 95 % of simulations; with images as units they would not."""
    rng = np.random.default_rng(4)
    runs = 2000
    category_P = np.repeat(["a", "b"], [50, 70])
    chance_RP = rng.random((runs, 120)) * np.where(category_P == "a", 0.8, 0.6)  # means 0.4 and 0.3
    draws_IRP = rng.random((4, runs, 120))
    plain_RP = (draws_IRP < chance_RP).mean(axis=0)
    better_RP = (draws_IRP < chance_RP + 0.1).mean(axis=0)
    design = Design(pd.DataFrame({"category": category_P, "prompt_id": np.arange(120)}))
    of_mean = coverage(design.bootstrap(plain_RP, draws=1000), 0.35)
    of_difference = coverage(design.bootstrap(better_RP - plain_RP, draws=1000), 0.1)
    assert off_nominal(of_mean, runs) < 3
    assert off_nominal(of_difference, runs) < 3

    category_X = np.repeat(category_P, 4)
    by_image = Design(pd.DataFrame({"category": category_X, "prompt_id": np.arange(480)}))
    images_RX = (draws_IRP < chance_RP).transpose(1, 2, 0).reshape(runs, 480).astype(float)
    assert coverage(by_image.bootstrap(images_RX[:400], draws=400), 0.35) < 0.90


def test_prompts_of_a_cluster_are_one_observation() -> None:
    rng = np.random.default_rng(10)
    scenes = rng.random((60, 1))
    scene_names = [f"scene {i % 60}" for i in range(120)]
    once = table(a=scenes)
    both = table(a=np.concatenate([scenes, scenes]))
    clustered = both.assign(cluster=scene_names)
    assert width_of(clustered) == pytest.approx(width_of(once), rel=0.03)
    assert width_of(both) < 0.75 * width_of(once)

    across = table(short=scenes, long=scenes).assign(cluster=scene_names)
    unclustered = across.drop(columns="cluster")
    assert Design(across).num_clusters == 60
    assert width_of(across) == pytest.approx(width_of(once), rel=0.03)
    assert width_of(unclustered) == pytest.approx(width_of(once) / math.sqrt(2), rel=0.05)


def test_prompts_weigh_inside_their_category() -> None:
    scores = table(a=np.array([[1.0], [0.0], [0.0]]), b=np.array([[1.0], [1.0]]))
    scores = scores.assign(weight=[3, 1, 2, 5, 1])
    assert category_means(scores) == {"a": 0.5, "b": 1.0}
    design = Design(scores)
    value_P = prompt_means(scores).to_numpy()
    contribution_G = design.cluster_contributions(value_P, design.macro_weights())
    assert contribution_G.sum() == pytest.approx(macro_mean(scores))
    assert design.micro_weights() == pytest.approx([0.5, 0.5])


def test_pairing_narrows_the_interval() -> None:
    plain, better = simulate_runs(np.random.default_rng(5), gain=0.1)
    difference, low, high = paired_difference(better, plain)
    assert difference == pytest.approx(macro_mean(better) - macro_mean(plain))
    assert low < difference < high
    assert high - low < 0.8 * width_of(plain)
    assert paired_difference(plain, plain) == (0, 0, 0)


def test_only_runs_of_the_same_prompts_are_paired() -> None:
    with pytest.raises(ValueError, match="1 prompts are in one of the two tables only"):
        paired_difference(table(a=np.ones((3, 2))), table(a=np.ones((4, 2))))


def test_wilson_intervals_are_those_of_the_formula() -> None:
    assert wilson(0, 80) == (0.0, pytest.approx(0.04582, abs=1e-5))
    assert wilson(80, 80)[0] == pytest.approx(1 - 0.04582, abs=1e-5)
    assert wilson(10, 50) == (pytest.approx(0.11244, abs=1e-5), pytest.approx(0.33037, abs=1e-5))
    for k, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no rate"):
            wilson(k, n)


def test_a_clustered_rate_is_as_wide_as_its_error() -> None:
    assert clustered_wilson(0.0, 0.0, 80) == wilson(0, 80)
    independent = math.sqrt(0.3 * 0.7 / 200)
    assert clustered_wilson(0.3, independent, 50) == pytest.approx(wilson(60, 200))
    low, high = clustered_wilson(0.3, 2 * independent, 50)
    independent_low, independent_high = wilson(60, 200)
    assert high - low == pytest.approx(2 * (independent_high - independent_low), rel=0.05)
    assert all(map(math.isnan, clustered_wilson(0.3, math.nan, 1)))


def test_the_permutation_test_errs_as_often_as_it_says() -> None:
    """At the nominal rate under the null; with a gain it finds what a z test finds."""
    rng = np.random.default_rng(7)
    runs = 1500
    null = []
    for seed in range(runs):
        difference_P = rng.choice([-0.5, 0.0, 0.0, 0.5], 60)
        null.append(sign_flip_test(difference_P, draws=999, seed=seed))
    assert off_nominal(float(np.mean(np.array(null) <= 0.05)), runs, 0.05) < 3

    gains = []
    for seed in range(300):
        difference_P = rng.normal(0.36, 1, 60)  # z = 0.36 sqrt(60) = 2.79
        gains.append(sign_flip_test(difference_P, draws=999, seed=seed))
    assert np.mean(np.array(gains) <= 0.05) == pytest.approx(0.79, abs=0.08)


def test_few_signs_are_all_tried() -> None:
    assert sign_flip_test(np.array([0.2, 0.1, 0.3])) == 2 / 8
    assert sign_flip_test(np.array([0.2, -0.2, 0.0])) == 1.0
    assert sign_flip_test(np.zeros(5)) == 1.0
    assert sign_flip_test(np.ones(20)) == 1 / 10_001


def test_holm_is_the_librarys() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(8)
    for size in (1, 2, 7):
        p = rng.random(size) ** 3
        assert holm(list(p)) == pytest.approx(multipletests(p, method="holm")[1])
    corrected = holm([0.01, math.nan, 0.02])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.02)
    assert all(map(math.isnan, holm([math.nan])))
    assert benjamini_hochberg([0.01, 0.02, 0.9]) == pytest.approx([0.03, 0.03, 0.9])


def test_holm_keeps_a_family_of_true_nulls_quiet() -> None:
    families = np.random.default_rng(3).random((2000, 6))
    found = np.mean([min(holm(list(p))) < 0.05 for p in families])
    expected = 1 - (1 - 0.05 / 6) ** 6
    assert off_nominal(float(found), 2000, 1 - 0.95**6) > 10  # without adjustment: 26 %
    assert abs(found - expected) < 3 * math.sqrt(0.05 * 0.95 / 2000)


def design_of(*arrays: np.ndarray) -> tuple[Design, list[np.ndarray]]:
    """Return the design of one category, and the prompt means of runs of it."""
    tables = [table(a=values) for values in arrays]
    return Design(tables[0]), [prompt_means(t).to_numpy() for t in tables]


def test_one_binary_image_a_prompt_is_mcnemars() -> None:
    from scipy.stats import binomtest

    rng = np.random.default_rng(11)
    a, b = (rng.integers(0, 2, (40, 1)).astype(float) for _ in range(2))
    design, (a_P, b_P) = design_of(a, b)
    found = compare_paired(design, a_P, b_P, design.macro_weights(), binary=True)
    won = int(np.sum(a_P > b_P))
    lost = int(np.sum(a_P < b_P))
    assert won + lost < 25
    assert found.test == "McNemar"
    assert found.p == pytest.approx(binomtest(won, won + lost).pvalue)
    heavy = Design(table(a=a).assign(weight=range(1, 41)))
    assert compare_paired(heavy, a_P, b_P, heavy.macro_weights(), binary=True).test == "sign-flip"


def test_a_difference_knows_what_it_can_see() -> None:
    rng = np.random.default_rng(12)
    plain = rng.random((200, 1))
    small = plain + rng.normal(0.004, 0.05, (200, 1))
    large = plain + rng.normal(0.05, 0.05, (200, 1))
    design, (plain_P, small_P, large_P) = design_of(plain, small, large)
    weight_C = design.macro_weights()
    little = compare_paired(design, small_P, plain_P, weight_C)
    much = compare_paired(design, large_P, plain_P, weight_C)
    assert little.error == pytest.approx(0.05 / math.sqrt(200), rel=0.15)
    assert little.detectable == pytest.approx((1.959964 + 0.841621) * little.error)
    assert little.value - little.bound == pytest.approx(1.645 * little.error, rel=0.05)
    assert not little.resolved
    assert much.resolved
    assert not compare_paired(design, plain_P, plain_P, weight_C).resolved
    assert little.low < little.bound < little.value < little.high


def resolve(value_RP: np.ndarray) -> np.ndarray:
    """Compare all pairs of runs over the same prompts of one category."""
    design, means = design_of(*(value_P[:, None] for value_P in value_RP))
    mean_RP = np.stack(means)
    weight_C = design.macro_weights()
    score_DR = design.bootstrap(mean_RP, draws=1000) @ weight_C
    return resolve_pairs(design, mean_RP, weight_C, score_DR)


def test_ties_and_ranks_order_what_is_resolved() -> None:
    rng = np.random.default_rng(13)
    base_P = rng.random(150) * 0.5
    gain_R1 = np.array([0.0, 0.2, 0.201, 0.1])[:, None]
    better_RR = resolve(base_P + gain_R1 + rng.normal(0, 0.03, (4, 150)))
    assert tie_groups(better_RR) == [3, 1, 1, 2]
    assert rank_ranges(better_RR) == [(4, 4), (1, 2), (1, 2), (3, 3)]
    same_RR = resolve(np.repeat(base_P[None], 3, axis=0))
    assert tie_groups(same_RR) == [1, 1, 1]
    assert rank_ranges(same_RR) == [(1, 3)] * 3


@given(st.integers(1, 8), st.randoms(use_true_random=False))
def test_ties_and_ranks_are_one_notion(runs: int, random: Random) -> None:
    """Whatever is resolved: group 1 are the ranks that begin at 1, and no group has a winner."""
    better_RR = np.zeros((runs, runs), dtype=bool)
    for a, b in combinations(range(runs), 2):
        outcome = random.choice([(a, b), (b, a), None])
        if outcome is not None:
            better_RR[outcome] = True
    groups = tie_groups(better_RR)
    ranges = rank_ranges(better_RR)
    has_leader = any(low == 1 for low, _ in ranges)
    for a in range(runs):
        low, high = ranges[a]
        assert 1 <= low <= high <= runs
        if has_leader:
            assert (groups[a] == 1) == (low == 1)
    assert set(groups) == set(range(1, max(groups) + 1))


def test_rank_ranges_cover() -> None:
    """Of five runs that differ by half an error the best one's ranks begin at 1 in 95 %."""
    rng = np.random.default_rng(14)
    hits = 0
    for _ in range(100):
        value_RP = rng.normal(0, 1, (5, 80)) + np.arange(5)[:, None] * 0.06
        low, _ = rank_ranges(resolve(value_RP))[4]
        hits += low == 1
    assert hits >= 90


def test_the_pareto_front_holds_what_nothing_dominates() -> None:
    assert pareto([1, 2, 2, 4, 1], [0.5, 0.7, 0.6, 0.7, 0.5]) == [True, True, False, False, True]
    assert pareto([1, math.nan], [0.5, 0.9]) == [True, False]


def test_the_oracle_is_the_mean_over_all_choices() -> None:
    values = [0.0, 0.25, 1.0, 0.5, 0.25, 0.0]
    for k in (1, 2, 4, 6):
        best = [max(chosen) for chosen in combinations(values, k)]
        assert oracle(values, k) == pytest.approx(np.mean(best))
    assert oracle([1, 0, 0, 1], 2) == pytest.approx(1 - math.comb(2, 2) / math.comb(4, 2))
    assert math.isnan(oracle([1, 0], 3))
    assert selection_efficiency(0.7, 0.5, 0.9) == pytest.approx(0.5)
    assert math.isnan(selection_efficiency(0.5, 0.5, 0.5))


def test_curves_are_linear_in_the_doublings_of_the_budget() -> None:
    budgets = [1.0, 2.0, 8.0]
    quality = np.array([0.5, 0.6, 0.8])
    assert quality_at(budgets, quality, 2) == 0.6
    assert quality_at(budgets, quality, 4) == pytest.approx(0.7)
    assert quality_at(budgets, quality, 8.05) == 0.8  # within the tolerance
    assert math.isnan(quality_at(budgets, quality, 16))
    assert budget_for(budgets, list(quality), 0.7) == pytest.approx(4)
    assert budget_for(budgets, list(quality), 0.5) == 1
    assert budget_for(budgets, list(quality), 0.9) == math.inf
    assert area_under(budgets, quality) == pytest.approx((0.55 * 1 + 0.7 * 2) / 3)
    draws = np.stack([quality, quality + 0.1], axis=1)
    assert area_under(budgets, draws) == pytest.approx([0.65, 0.75])
    assert math.isnan(area_under([1.0], quality[:1]))


def test_hypervolume_is_the_area_that_is_dominated() -> None:
    assert hypervolume([1, 2], [0.5, 0.7], plain=0.5) == pytest.approx(3 * 0.2)
    assert hypervolume([1, 2, 4], [0.5, 0.7, 0.8], plain=0.5) == pytest.approx(3 * 0.2 + 2 * 0.1)
    dominated = hypervolume([1, 2, 4], [0.5, 0.7, 0.6], plain=0.5)
    assert dominated == pytest.approx(3 * 0.2)  # dominated points add nothing
    assert hypervolume([1, 32], [0.5, 0.9], plain=0.5) == 0


def test_power_is_what_simulation_finds() -> None:
    rng = np.random.default_rng(15)
    components = VarianceComponents(between_prompts=0.02, within_prompts=0.1)
    repeats = 3000
    prompts = components.prompts_needed(0.05, images=4, power=0.8)
    assert components.power(0.05, prompts, 4) == pytest.approx(0.8, abs=0.005)
    shape = (repeats, prompts)
    between = rng.normal(0, math.sqrt(0.02), shape)
    within = rng.normal(0, math.sqrt(0.1 / 4), shape)
    means = 0.05 + between + within
    error = means.std(axis=1, ddof=1) / math.sqrt(prompts)
    z = means.mean(axis=1) / error
    assert off_nominal(float(np.mean(np.abs(z) > 1.959964)), repeats, 0.8) < 3
    assert components.prompts_needed(0.05, 16) < prompts < components.prompts_needed(0.05, 1)


def test_variance_components_are_found_in_runs() -> None:
    rng = np.random.default_rng(16)
    between = rng.normal(0, math.sqrt(0.02), (2000, 1))
    within = rng.normal(0, math.sqrt(0.1), (2000, 4))
    a = table(a=between[:1000] + within[:1000], b=between[1000:] + within[1000:])
    a["image"] = a.groupby("prompt_id").cumcount()
    found = estimate_components(a, a.assign(value=0.0))
    assert found.between_prompts == pytest.approx(0.02, rel=0.25)
    assert found.within_prompts == pytest.approx(0.1, rel=0.05)
    assumed = assume_components(0.8, correlation=0.5, pairing=0.0)
    total = assumed.between_prompts + assumed.within_prompts
    assert total == pytest.approx(2 * 0.8 * 0.2)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(6)
    signal = rng.integers(0, 10, 200)
    success = rng.random(200) < 0.4
    wins = signal[success][:, None]
    losses = signal[~success][None, :]
    in_order = (wins > losses) + 0.5 * (wins == losses)
    assert auc(signal, success) == pytest.approx(np.mean(in_order))
    assert auc([1, 2], [False, True]) == 1
    assert math.isnan(auc([1, 2], [True, True]))


def test_auc_within_groups_ignores_what_tells_groups_apart() -> None:
    signal = [1, 2, 11, 12, 5]
    success = [False, False, True, False, True]
    assert auc(signal, success) > 0.5
    assert auc_within(signal, success, ["easy", "easy", "hard", "hard", "lone"]) == (0, 1)
    assert math.isnan(auc_within([1.0], [True], ["x"])[0])
