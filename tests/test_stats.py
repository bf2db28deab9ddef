"""Statistics against closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from harness.stats import (
    auc,
    auc_within,
    category_means,
    interval,
    macro_mean,
    paired_difference,
    prompt_means,
    wilson,
)


def table(**categories: np.ndarray) -> pd.DataFrame:
    """A score table of the given [prompts, images] arrays."""
    rows = [
        (category, f"{category}/{i}", float(value))
        for category, values in categories.items()
        for i, images in enumerate(values)
        for value in images
    ]
    return pd.DataFrame(rows, columns=["category", "prompt_id", "value"])


def simulated(rng: np.random.Generator, gain: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two runs of the same prompts, two images each; the second is better by `gain` on average."""
    chance = {name: rng.beta(2, 2, size) * 0.8 for name, size in (("a", 40), ("b", 60))}
    draws = {name: rng.random((len(p), 2)) for name, p in chance.items()}
    runs = [table(**{n: draws[n] < chance[n][:, None] + g for n in chance}) for g in (0.0, gain)]
    return runs[0], runs[1]


def test_means_go_by_prompt_then_by_category() -> None:
    scores = table(a=np.array([[1, 1, 0, 0], [1, 1, 1, 1]]), b=np.array([[0, 0]]))
    assert prompt_means(scores).to_dict() == {("a", "a/0"): 0.5, ("a", "a/1"): 1.0, ("b", "b/0"): 0.0}
    assert category_means(scores) == {"a": 0.75, "b": 0.0}
    assert macro_mean(scores) == 0.375


def test_missing_values_are_refused() -> None:
    with pytest.raises(ValueError, match="1 values are missing"):
        macro_mean(table(a=np.array([[1.0, np.nan]])))


def test_the_interval_has_the_standard_error_of_the_formula() -> None:
    rng = np.random.default_rng(1)
    values = {name: rng.random((size, 1)) for name, size in (("a", 80), ("b", 120), ("c", 100))}
    low, high = interval(table(**values))
    variance = sum(v.var() / len(v) for v in values.values()) / 9  # S = mean of three independent means
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.04)
    assert (high + low) / 2 == pytest.approx(macro_mean(table(**values)), abs=0.002)


def test_images_of_a_prompt_are_one_observation() -> None:
    once = np.random.default_rng(2).integers(0, 2, (50, 1)).astype(float)
    assert interval(table(a=once)) == interval(table(a=np.repeat(once, 16, axis=1)))


def test_intervals_are_a_pure_function_of_the_table() -> None:
    scores, _ = simulated(np.random.default_rng(3))
    shuffled = scores.sample(frac=1, random_state=0)
    assert interval(scores) == interval(shuffled)
    assert interval(scores) != interval(scores, seed=1)


def test_a_single_prompt_has_no_interval() -> None:
    assert all(map(math.isnan, interval(table(a=np.ones((1, 4)), b=np.ones((9, 4))))))


def test_intervals_cover() -> None:
    """Nominal 95 %; percentile intervals fall a little short with 40 prompts a category."""
    rng = np.random.default_rng(4)
    hits = paired_hits = 0
    for _ in range(200):
        plain, better = simulated(rng, gain=0.1)
        low, high = interval(plain, draws=400)
        hits += low <= 0.4 <= high
        _, low, high = paired_difference(better, plain, draws=400)
        paired_hits += low <= 0.1 <= high
    assert 0.90 <= hits / 200 <= 0.99
    assert 0.90 <= paired_hits / 200 <= 0.99


def test_pairing_narrows_the_interval() -> None:
    plain, better = simulated(np.random.default_rng(5), gain=0.1)
    difference, low, high = paired_difference(better, plain)
    assert difference == pytest.approx(macro_mean(better) - macro_mean(plain))
    assert low < difference < high
    alone = interval(plain)
    assert high - low < 0.8 * (alone[1] - alone[0])
    assert paired_difference(plain, plain) == (0, 0, 0)


def test_only_runs_of_the_same_prompts_are_paired() -> None:
    with pytest.raises(ValueError, match="1 prompts are in one of the two tables only"):
        paired_difference(table(a=np.ones((3, 2))), table(a=np.ones((4, 2))))


def test_wilson() -> None:
    assert wilson(0, 80) == (0.0, pytest.approx(0.04582, abs=1e-5))
    assert wilson(80, 80)[0] == pytest.approx(1 - 0.04582, abs=1e-5)
    assert wilson(10, 50) == (pytest.approx(0.11244, abs=1e-5), pytest.approx(0.33037, abs=1e-5))
    for k, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no rate"):
            wilson(k, n)


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(6)
    signal, success = rng.integers(0, 10, 200), rng.random(200) < 0.4
    wins, losses = signal[success][:, None], signal[~success][None, :]
    assert auc(signal, success) == pytest.approx(np.mean((wins > losses) + 0.5 * (wins == losses)))
    assert auc([1, 2], [False, True]) == 1
    assert math.isnan(auc([1, 2], [True, True]))


def test_auc_within_groups_ignores_what_tells_groups_apart() -> None:
    signal, success = [1, 2, 11, 12, 5], [False, False, True, False, True]
    assert auc(signal, success) > 0.5
    assert auc_within(signal, success, ["easy", "easy", "hard", "hard", "lone"]) == (0, 1)
    assert math.isnan(auc_within([1.0], [True], ["x"])[0])
