"""A temperature, and an acceptance, that follow the entropy of each place."""

from __future__ import annotations

import math

import pytest
import torch
from test_exactness import expect_draws_from, joint_probs
from test_speculative import drafter
from toy import TEXTS, ToyModel, draw, draw_pairs, jobs

from harness.drafters.jacobi import Jacobi
from harness.engine.acceptance import exact
from harness.engine.guidance import Sampling, temperature_of_entropy, warp
from harness.records import UserError
from methods.cool_sd import EntropyAcceptance, measure_defects
from methods.plain import Plain
from methods.sjd import SJD
from methods.speculative import Speculative

LLAMAGEN = Sampling(entropy_gain=2.5, entropy_alpha=3.0, entropy_theta=0.6)
LUMINA = Sampling(
    entropy_gain=1.5,
    entropy_alpha=2.5,
    entropy_theta=0.7,
    entropy_low=0.7,
    entropy_high=2.0,
    entropy_full=True,
)


def test_published_temperatures() -> None:
    entropy = torch.tensor([0.0, 1.0, 2.0, 4.0, 5.498, 6.0, 8.0, math.log(16384)]).double()
    expected = torch.tensor([3.10, 2.391, 1.884, 1.259, 1.0, 0.938, 0.774, 0.698]).double()
    torch.testing.assert_close(
        temperature_of_entropy(entropy, LLAMAGEN), expected, atol=6e-4, rtol=0
    )
    lumina = temperature_of_entropy(torch.tensor([0.0, 2.5 * math.log(5)]).double(), LUMINA)
    torch.testing.assert_close(lumina, torch.tensor([2.0, 1.0]).double())


def test_worked_distributions() -> None:
    two = warp(torch.tensor([0.9, 0.1]).double().log(), LLAMAGEN)
    expected = torch.tensor([0.684123, 0.315877]).double()
    torch.testing.assert_close(two, expected, atol=1e-6, rtol=0)
    five = torch.zeros(5).double()
    torch.testing.assert_close(warp(five, LLAMAGEN), five + 0.2)
    masked = torch.tensor([0.0, -torch.inf, 0.0]).double()
    assert warp(masked, LLAMAGEN).tolist() == [0.5, 0.0, 0.5]


def test_the_entropy_is_measured_behind_top_k_or_before() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(1)).double()
    behind = warp(logits, Sampling(top_k=4, entropy_gain=2.5, entropy_theta=0.6))
    before = warp(logits, Sampling(top_k=4, entropy_gain=2.5, entropy_theta=0.6, entropy_full=True))
    assert torch.equal(behind > 0, before > 0)
    assert not torch.allclose(behind, before)
    kept = logits.masked_fill(behind == 0, -torch.inf)
    torch.testing.assert_close(warp(kept, LLAMAGEN), behind)


def test_what_is_no_number_stays_so() -> None:
    logits = torch.tensor([[0.0, torch.nan], [0.0, torch.inf]]).double()
    assert warp(logits, LLAMAGEN).isnan().all()


def test_a_factor_of_one_is_ordinary_sampling() -> None:
    bounded = Sampling(scale=2.0, entropy_gain=2.5, entropy_low=1.0, entropy_high=1.0 + 1e-15)
    plain = draw(Plain(), jobs(TEXTS))
    for key, delivery in draw(Plain(), jobs(TEXTS), sampling=bounded).items():
        assert delivery.tokens == plain[key].tokens


def test_exact_speculation_keeps_the_options_own_law() -> None:
    tiny = ToyModel(grid=(1, 2), vocab=5, seed=4)
    sampling = Sampling(scale=2.0, top_k=4, entropy_gain=2.5, entropy_theta=0.6)
    method = Speculative(drafter(like=tiny), 1)
    pairs = draw_pairs(method, 2_000, tiny, sampling)
    expect_draws_from(pairs, joint_probs(tiny, sampling))
    cold = joint_probs(tiny, Sampling(scale=2.0, top_k=4))
    with pytest.raises(AssertionError):
        expect_draws_from(pairs, cold)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"entropy_gain": -1.0}, r"sampling\.entropy_gain=-1\.0"),
        ({"entropy_gain": 1.0, "entropy_alpha": 0.0}, r"sampling\.entropy_alpha=0\.0"),
        ({"entropy_theta": 0.0}, r"sampling\.entropy_theta=0\.0"),
        ({"entropy_low": 2.0, "entropy_high": 1.0}, r"sampling\.entropy_low=2\.0"),
        ({"entropy_gain": 1.0, "temperature": 0.0}, r"needs one above 0 and top_p=1"),
        ({"entropy_gain": 1.0, "top_p": 0.9}, r"top_p=0\.9"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Sampling(**options)  # type: ignore[arg-type]


# --- acceptance -----------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    sure = torch.tensor([[1.0, 0.0]]).double()
    even = torch.full((1, 16384), 1 / 16384).double()
    depth = torch.tensor([1])
    rule = EntropyAcceptance()
    assert rule.weights(sure, depth).item() == pytest.approx(20)
    assert rule.weights(even, depth).item() == 1.0
    uncapped = EntropyAcceptance(1 / 8, 0, None)
    assert uncapped.weights(even, depth).item() == pytest.approx(8 / math.log(16384))
    assert math.isfinite(uncapped.weights(sure, depth).item())
    assert EntropyAcceptance(constant=2.0).weights(even, depth).item() == 2.0


def test_a_weight_of_one_everywhere_is_exact() -> None:
    one = EntropyAcceptance(constant=1.0)
    expected = draw(SJD(Jacobi(), 5, exact), jobs(TEXTS, 2))
    for key, delivery in draw(SJD(Jacobi(), 5, one), jobs(TEXTS, 2)).items():
        assert delivery.tokens == expected[key].tokens
        assert delivery.notes["defect"] == 0


def test_where_every_draft_passes_the_defect_is_the_distance() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1]]).double()
    q = torch.tensor([[0.2, 0.3, 0.5]]).double()
    weight = EntropyAcceptance(0.0, 1e-9).weights(p, torch.tensor([1]))
    assert measure_defects(p, q, weight).item() == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slope": -1.0}, r"rule\.slope=-1\.0"),
        ({"cap": 0.0}, r"rule\.cap=0\.0"),
        ({"constant": 0.0}, r"rule\.constant=0\.0"),
        ({"slope": 0.0, "offset": 0.0}, r"would accept every draft token"),
    ],
)
def test_rules_that_cannot_be_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        EntropyAcceptance(**options)
