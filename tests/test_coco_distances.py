"""Laws of the distances between sets of pictures, and the conformance vectors of the COCO rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.coco.conformance import conformance
from harness.records import UserError
from harness.results.stats import distances
from harness.results.stats.set_metrics import check_plain

VECTORS = Path(__file__).parents[2] / "shared/data/coco/conformance.jsonl"


def features(count: int, seed: int, *, move: float = 0.0, dim: int = 5) -> np.ndarray:
    """Normal features of unlike spreads, moved along the first."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, dim)) * np.linspace(0.5, 1.5, dim)
    drawn[:, 0] += move
    return drawn


def test_the_conformance_vectors_pass() -> None:
    if not VECTORS.is_file():
        pytest.skip(f"needs the conformance vectors {VECTORS.name} beside the project")
    passed, failed, messages = conformance(VECTORS)
    assert messages == []
    assert (passed, failed) == (95, 0)


def test_order_and_exchange_of_sets_change_no_distance() -> None:
    x, y = features(60, 0), features(50, 1, move=0.5)
    again = x[np.random.default_rng(2).permutation(60)]
    for measure in (lambda a, b: distances.frechet(a, b).value, distances.kernel_distance):
        assert measure(x, y) == pytest.approx(measure(y, x), abs=1e-10)
        assert measure(x, y) == pytest.approx(measure(again, y), abs=1e-10)
    assert distances.frechet(x, x).value == pytest.approx(0, abs=1e-6)
    assert distances.paired_kernel_distance(x, x) == 0


def test_a_common_move_changes_nothing_and_a_single_one_only_the_mean_term() -> None:
    x, y = features(60, 0), features(50, 1)
    before = distances.frechet(x, y)
    both = distances.frechet(x + 3, y + 3)
    assert both.value == pytest.approx(before.value)
    one = distances.frechet(x + 3, y)
    assert one.covariance_term == pytest.approx(before.covariance_term)
    assert one.mean_term != pytest.approx(before.mean_term)


def test_moments_and_sets_give_one_frechet_distance() -> None:
    x, y = features(60, 0), features(50, 1, move=0.5)
    of_moments = distances.frechet_of_moments(
        distances.measure_moments(x), distances.measure_moments(y)
    )
    assert of_moments.value == pytest.approx(distances.frechet(x, y).value, rel=1e-9)


def test_pseudo_values_have_the_distance_as_their_mean() -> None:
    x, y = features(60, 0), features(50, 1, move=0.5)
    by_moments = distances.estimate_frechet(x, distances.measure_moments(y))
    by_kernel = distances.estimate_kernel_distance(x, y)
    assert by_moments.pseudo_N.mean() == pytest.approx(by_moments.value, abs=1e-9)
    assert by_kernel.value == pytest.approx(distances.kernel_distance(x, y), abs=1e-9)
    # The jackknife of an unbiased statistic has no bias to take away.
    assert by_kernel.pseudo_N.mean() == pytest.approx(by_kernel.value, abs=1e-9)


def draw_of_prompts(prompts: int, images: int, rng: np.random.Generator) -> np.ndarray:
    """Draw pictures of prompts whose own centres lie far apart, [prompts x images, 4]."""
    centre_P14 = np.random.default_rng(5).standard_normal((prompts, 1, 4)) * 2
    return (centre_P14 + 0.5 * rng.standard_normal((prompts, images, 4))).reshape(-1, 4)


@pytest.mark.parametrize("images", [1, 2])
def test_pictures_of_one_prompt_do_not_draw_equals_below_zero(images: int) -> None:
    rng = np.random.default_rng(7)
    group_N, group_M = np.arange(20).repeat(images), np.arange(20)
    apart, together = [], []
    for _ in range(60):
        x, reference = draw_of_prompts(20, images, rng), draw_of_prompts(20, 1, rng)
        found = distances.estimate_kernel_distance(x, reference, group_N=group_N, group_M=group_M)
        apart.append(found.value)
        together.append(distances.kernel_distance(x, reference))
    error = np.std(apart, ddof=1) / 60**0.5
    assert abs(np.mean(apart)) < 3 * error
    bias = np.mean(together) / error
    assert abs(bias) > 10, "the test would not see the bias"


def test_the_jackknife_of_groups_leaves_out_one_picture_at_a_time() -> None:
    rng = np.random.default_rng(8)
    x, reference = draw_of_prompts(6, 2, rng), draw_of_prompts(6, 1, rng)
    group_N, group_M = np.arange(6).repeat(2), np.arange(6)
    found = distances.estimate_kernel_distance(x, reference, group_N=group_N, group_M=group_M)
    for i in range(len(x)):
        rest = distances.estimate_kernel_distance(
            np.delete(x, i, 0), reference, group_N=np.delete(group_N, i), group_M=group_M
        )
        assert found.pseudo_N[i] == pytest.approx(12 * found.value - 11 * rest.value)
    own = distances.estimate_kernel_distance(x, reference, group_N=np.arange(12))
    assert own.value == pytest.approx(distances.kernel_distance(x, reference))


def test_a_distance_between_two_runs_does_not_depend_on_the_third() -> None:
    rng = np.random.default_rng(9)
    plain, other = rng.standard_normal((2, 40, 3))
    by, group_N = [plain, other], np.arange(40)
    of_plain = check_plain(other, plain, None, group_N, are_independent=True, scale_by=by)
    assert of_plain["p"] > 0.01
    for spread in (0.1, 1.0, 30.0):
        method = spread * rng.standard_normal((40, 3))
        found = check_plain(method, plain, other, group_N, are_independent=True, scale_by=by)
        alone = check_plain(method, plain, None, group_N, are_independent=True, scale_by=[plain])
        assert found["null"] == of_plain["value"]
        assert found["p"] == alone["p"]


@pytest.mark.parametrize("seed", range(3))
def test_influences_on_recall_are_what_leaving_a_picture_out_does(seed: int) -> None:
    reference, x = features(40, 50 + seed), features(25, 60 + seed, move=0.8)
    x[3] = x[4]  # pictures may be the same
    precision, recall = distances.estimate_precision_recall(reference, x)
    assert (precision.value, recall.value) == distances.precision_recall(reference, x)
    for estimate in (precision, recall):
        assert estimate.pseudo_N.mean() == pytest.approx(estimate.value, abs=1e-12)
    without = [distances.precision_recall(reference, np.delete(x, i, 0))[1] for i in range(25)]
    assert len(set(without)) > 3
    influence = -24 * (np.array(without) - np.mean(without))
    assert recall.pseudo_N == pytest.approx(recall.value + influence)


def test_the_errors_of_precision_and_recall_are_not_too_small() -> None:
    reference = features(200, 99, move=0.8)
    found = [
        distances.estimate_precision_recall(reference, features(100, seed)) for seed in range(100)
    ]
    for of_one in zip(*found, strict=True):
        spread = np.std([one.value for one in of_one], ddof=1)
        error = np.mean([one.error for one in of_one])
        assert 0.85 * spread < error < 2 * spread


def test_the_errors_are_those_of_repeated_runs() -> None:
    reference = features(4000, 99, move=0.3)
    moments = distances.measure_moments(reference)
    runs = [features(300, seed) for seed in range(200)]
    for estimate in (
        lambda x: distances.estimate_frechet(x, moments),
        lambda x: distances.estimate_kernel_distance(x, reference[:500]),
    ):
        found = [estimate(x) for x in runs]
        spread = np.std([one.value for one in found], ddof=1)
        assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.15)


def test_equals_have_the_distance_that_is_foretold() -> None:
    spread = np.linspace(0.5, 1.5, 5) ** 2
    found = [
        distances.frechet(features(300, 2 * seed), features(300, 2 * seed + 1)).value
        for seed in range(200)
    ]
    assert np.mean(found) == pytest.approx(distances.frechet_of_equals(spread, 300, 300), rel=0.1)


@pytest.mark.parametrize("images", [1, 2])
def test_equal_samplers_are_rejected_at_the_level_and_unlike_ones_are_found(images: int) -> None:
    prompts = 40
    group = np.repeat(np.arange(prompts), images)
    content = np.repeat(features(prompts, 1), images, 0)  # what a prompt's pictures share

    def drawn(seed: int, move: float = 0.0) -> np.ndarray:
        return content + features(len(group), seed, move=move)

    equal = [
        distances.swap_test(drawn(1000 + 2 * s), drawn(1001 + 2 * s), group_N=group, draws=400).p
        for s in range(200)
    ]
    # 200 tests at 5 %: 10 are expected, and 21 or more have probability .001.
    assert sum(p < 0.05 for p in equal) <= 20
    assert 0.4 < np.mean(equal) < 0.6
    unlike = distances.swap_test(drawn(7), drawn(8, move=1.2), group_N=group)
    assert unlike.p < 0.01
    by_frechet = distances.frechet_swap_test(drawn(7), drawn(8, move=1.2), group_N=group)
    assert by_frechet.p < 0.05


def test_the_same_pictures_are_not_told_apart() -> None:
    x = features(30, 0)
    found = distances.swap_test(x, x)
    assert (found.statistic, found.p) == (0.0, 1.0)


def test_what_has_no_distance_is_refused() -> None:
    x = features(30, 0)
    with pytest.raises(UserError, match=r"shape \[1, 5\]: a distance needs two pictures"):
        distances.frechet(x[:1], x)
    with pytest.raises(UserError, match=r"sets of \[4, 5\] features"):
        distances.kernel_distance(x, x[:, :4])
    with pytest.raises(UserError, match="not finite"):
        distances.frechet(np.where(x > 1, np.nan, x), x)
    with pytest.raises(UserError, match="5 pictures of 5 features"):
        distances.estimate_frechet(x[:5], distances.measure_moments(x))
    with pytest.raises(UserError, match="30 and 29 pictures are no pairs"):
        distances.swap_test(x, x[1:])
    with pytest.raises(UserError, match="k=30"):
        distances.precision_recall(x, x, 30)
