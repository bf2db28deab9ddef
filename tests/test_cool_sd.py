"""Cool-SD: exact where w is 1, never further from the target than its bound where it is not."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from test_batch_invariance import costs
from test_exactness import Joint, p_value, p_value_of_possible
from test_sjd import decoded
from test_speculative import drafter
from test_trees import BUSHY, draw_triples, make_trees
from torch import Tensor
from toy import TEXTS, ToyModel, draw, jobs

from harness.drafters.jacobi import Jacobi
from harness.engine.acceptance import (
    Drafts,
    DraftTest,
    MeasuredRule,
    Rule,
    exact,
    list_tests,
    residual_probs,
    token_prob,
    verify_by_depth,
)
from harness.engine.draft_trees import chain_parents, index_trees
from harness.engine.guidance import Sampling
from harness.kernels.noise import Noise
from harness.records import UserError
from methods.conformance.cool_sd import GivenWeights, conformance
from methods.cool_sd import CoolSD, measure_defects
from methods.sjd import SJD
from methods.speculative import Speculative

VECTORS = Path("../shared/data/methods/cool_sd.jsonl")
UNEVEN = ToyModel(grid=(3, 5))
ONE = CoolSD(delta=1.0, nu=0.0)
ONE.expect_depth(4)


@pytest.mark.skipif(
    not VECTORS.exists(), reason="the conformance vectors are not beside this checkout"
)
def test_conformance_vectors() -> None:
    passed, failed, messages = conformance(VECTORS)
    assert (failed, messages) == (0, [])
    assert passed == 90


def distance(drawn: Tensor, joint: Tensor) -> float:
    """Total-variation distance of draws from a joint distribution."""
    share = torch.bincount(drawn, minlength=len(joint)).double() / len(drawn)
    return float((share - joint).abs().sum() / 2)


# --- w = 1 is exact -------------------------------------------------------------------------------


def test_a_weight_of_one_is_exact_bit_for_bit_in_chains_and_trees() -> None:
    for probs_RTV, drafts, rows in trees_and_chains():
        for dtype in (torch.float32, torch.float64):
            probs = probs_RTV.to(dtype)
            some = replace(drafts, probs_RGV=drafts.probs_RGV.to(dtype))
            for ours, exacts in zip(ONE(probs, some, rows), exact(probs, some, rows), strict=True):
                assert torch.equal(ours, exacts)


@lru_cache
def trees_and_chains() -> list[tuple[Tensor, Drafts, Noise]]:
    """Many drafts of `Joint(2)`, trees and chains: the target's distributions, drafts, noise."""
    probs_RTV, drafts, rows = make_trees(Joint(1), Joint(2), chosen=False)
    chains = Drafts(*chain_of(drafts))
    return [(probs_RTV, drafts, rows), (probs_RTV[:, [0, 1, 4]], chains, rows)]


def chain_of(drafts: Drafts) -> tuple[Tensor, Tensor, Tensor]:
    """The first node of each tree and that node's first child, as a chain."""
    nodes = [0, 3]
    return (
        drafts.token_RG[:, nodes],
        drafts.probs_RGV[:, nodes],
        torch.full_like(drafts.length_R, 2),
    )


@pytest.mark.parametrize("gamma", [3, BUSHY], ids=["chain", "tree"])
def test_a_weight_of_one_draws_the_images_of_exact(gamma: object) -> None:
    one = CoolSD(delta=1.0, nu=0.0)
    expected = draw(Speculative(drafter(), gamma, exact), jobs(TEXTS, 2))  # type: ignore[arg-type]
    ours = draw(Speculative(drafter(), gamma, one), jobs(TEXTS, 2))  # type: ignore[arg-type]
    for key, delivery in ours.items():
        assert not delivery.error
        assert delivery.tokens == expected[key].tokens
        assert delivery.notes["accepted"] == expected[key].notes["accepted"]
        assert delivery.notes["defect"] == delivery.notes["relaxed"] == 0


def test_a_tree_of_one_branch_is_the_chain() -> None:
    count = 5_000
    behind_RTV, many, noise = trees_and_chains()[1]
    behind_RTV = behind_RTV[:count]
    rows = Noise(noise.key_R2[:count], noise.position_RT[:count])
    chain = Drafts(many.token_RG[:count], many.probs_RGV[:count], many.length_R[:count])
    tree = replace(chain, forest=index_trees((chain_parents(2),) * count, 2))
    rule = CoolSD(delta=2.0)
    rule.expect_depth(2)
    for as_chain, as_tree in zip(
        rule(behind_RTV, chain, rows), rule(behind_RTV, tree, rows), strict=True
    ):
        assert torch.equal(as_chain, as_tree)
    path_RG, _ = rule(behind_RTV, chain, rows)
    for name, value_R in rule.signals(behind_RTV, chain, rows, path_RG).items():
        in_tree_R = rule.signals(behind_RTV, tree, rows, path_RG)[name]
        torch.testing.assert_close(value_R, in_tree_R)


# --- the joint law --------------------------------------------------------------------------------


LOSSLESS = GivenWeights([0.7, 0.4])


def too_generous(probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """Weights of 0.7 and 0.4 with a bug: two percentage points too much for every token."""

    def test_at(depth_R: Tensor) -> DraftTest:
        test = LOSSLESS.test_at(depth_R)
        return DraftTest(lambda p, token: test.acceptance_prob(p, token) + 0.02, test.residual)

    return verify_by_depth(probs_RTV, drafts, noise, test_at)


def wrong_residual(probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """Weights of 0.7 and 0.4 with the ordinary residual, which forgets what they refuse."""

    def test_at(depth_R: Tensor) -> DraftTest:
        return DraftTest(LOSSLESS.test_at(depth_R).acceptance_prob, residual_probs)

    return verify_by_depth(probs_RTV, drafts, noise, test_at)


def test_weights_up_to_one_keep_the_joint_law_and_a_bug_of_two_percent_shows() -> None:
    target = Joint(1)
    joint = target.whole()
    for given in trees_and_chains():
        for rule, keeps in ((LOSSLESS, True), (too_generous, False), (wrong_residual, False)):
            p = p_value_of_possible(draw_triples(rule, target, *given), joint)
            assert p > 1e-3 if keeps else p < 1e-6


def test_jacobi_drafts_under_weights_up_to_one_keep_the_joint_law() -> None:
    target = Joint(3, 4)
    joint = target.whole()
    rule = GivenWeights([0.9, 0.6, 0.8])
    drawn = decoded(Jacobi("uniform", "maximal"), rule, target)
    frequent = joint * len(drawn) > 5
    number = torch.where(frequent, frequent.cumsum(0) - 1, -1)
    inside = number[drawn] >= 0
    assert p_value(number[drawn][inside], joint[frequent]) > 1e-3


@pytest.mark.parametrize("delta", [1.2, 3.0])
def test_the_distance_stays_within_the_noted_bound(delta: float) -> None:
    """And comes near it: the bound is not vacuous."""
    target = Joint(1)
    noise_of_draws = 0.006
    rule = CoolSD(delta)
    rule.expect_depth(2)
    for probs_RTV, drafts, rows in trees_and_chains():
        drawn = draw_triples(rule, target, probs_RTV, drafts, rows)
        path_RG, _ = rule(probs_RTV, drafts, rows)
        bound = float(rule.signals(probs_RTV, drafts, rows, path_RG)["defect"].mean())
        far = distance(drawn, target.whole())
        assert 0.3 * bound < far <= bound + noise_of_draws


def test_one_slot_attains_its_defect() -> None:
    """Worked by hand; and draft mass outside of the target's support cannot be bought."""
    p = torch.tensor([[0.5, 0.3, 0.2]]).double()
    q = torch.tensor([[0.2, 0.2, 0.6]]).double()
    test = GivenWeights([2.0]).test_at(torch.tensor([1]))
    chances = torch.stack([test.acceptance_prob(p, torch.tensor([x])) for x in range(3)], 1) / q
    passed = torch.minimum(q, chances * q)
    left = test.residual(p, q, torch.tensor([2]))
    output = passed + (1 - passed.sum()) * left / left.sum()
    torch.testing.assert_close(output[0], torch.tensor([0.35, 0.25, 0.40]).double())
    defect = measure_defects(p, q, torch.tensor([2.0]).double())
    torch.testing.assert_close(defect, torch.tensor([0.2]).double())

    p4 = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).double()
    q4 = torch.tensor([[0.2, 0.2, 0.1, 0.5]]).double()
    assert measure_defects(p4, q4, torch.tensor([2.0]).double()).item() == 0


def test_the_listed_tests_are_those_that_decided() -> None:
    """A path is found again from its tests alone, in chains and in trees."""
    rule = GivenWeights([1.3, 0.8])
    for probs_RTV, drafts, rows in trees_and_chains():
        path_RG, _ = rule(probs_RTV, drafts, rows)
        passes = torch.zeros(len(path_RG), dtype=torch.int64)
        for test in list_tests(probs_RTV, drafts, rows, path_RG, rule.test_at):
            weight_R = rule.weights(test.probs_RV, torch.full_like(test.token_R, test.depth))
            granted_R = weight_R * token_prob(test.probs_RV, test.token_R)
            decided_R = test.tested_R & (test.threshold_R < granted_R)
            assert torch.equal(decided_R, test.accepted_R)
            passes += decided_R
        assert torch.equal(passes, (path_RG >= 0).sum(1))


# --- methods --------------------------------------------------------------------------------------


def jacobi(rule: Rule) -> SJD:
    return SJD(Jacobi("uniform", "maximal"), 5, rule)


def chain(rule: Rule) -> Speculative:
    return Speculative(drafter(like=UNEVEN), 3, rule)


def tree(rule: Rule) -> Speculative:
    return Speculative(drafter(like=UNEVEN), BUSHY, rule)


@pytest.mark.parametrize("build", [chain, tree, jacobi])
def test_more_is_accepted_and_what_else_is_in_the_batch_changes_nothing(build: object) -> None:
    make = partial(build, CoolSD(4.0))  # type: ignore[arg-type, call-overload]
    some = jobs(TEXTS, images=2)
    together = draw(make(), some, model=UNEVEN)
    exacts = draw(build(exact), some, model=UNEVEN)  # type: ignore[operator]
    passes = sum(d.usage.target_passes for d in together.values())
    assert passes < sum(d.usage.target_passes for d in exacts.values())
    for others in (some[::-1], some[3:4]):
        for key, delivery in draw(make(), others, model=UNEVEN).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


def test_the_journal_has_the_weights_and_the_bound() -> None:
    rule = CoolSD(2.0)
    assert isinstance(rule, MeasuredRule)
    for delivery in draw(Speculative(drafter(), 3, rule), jobs(TEXTS, 2)).values():
        weights = delivery.notes["weights"]
        assert sum(weights) / len(weights) == pytest.approx(2.0, abs=1e-5)  # type: ignore[arg-type]
        assert weights == sorted(weights, reverse=True)  # type: ignore[type-var, arg-type]
        assert delivery.notes["defect"] > 0


def test_greedy_is_exact_for_weights_from_one_up() -> None:
    greedy = Sampling(scale=2.0, temperature=0.0)
    expected = draw(Speculative(drafter(), 3), jobs(TEXTS), sampling=greedy)
    relaxed = Speculative(drafter(), 3, CoolSD(3.0, floor=1.0))
    for key, delivery in draw(relaxed, jobs(TEXTS), sampling=greedy).items():
        assert delivery.tokens == expected[key].tokens
        assert delivery.notes["defect"] == 0


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delta": 0.0}, r"rule\.delta=0\.0: must be positive"),
        ({"delta": float("nan")}, r"rule\.delta=nan"),
        ({"nu": -0.1}, r"rule\.nu=-0\.1"),
        ({"mu": "median"}, r"rule\.mu=median: give mean, first or a number"),
        ({"mu": float("inf")}, r"rule\.mu=inf"),
        ({"mu": True}, r"rule\.mu=True"),
        ({"floor": -1.0}, r"rule\.floor=-1\.0"),
        ({"length": 0}, r"rule\.length=0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CoolSD(**options)  # type: ignore[arg-type]


def test_schedules_that_do_not_suit_the_drafts_are_refused_before_any_compute() -> None:
    with pytest.raises(UserError, match=r"rule\.mu=mean over drafts 17 tokens deep"):
        SJD(Jacobi(), 18, CoolSD())
    with pytest.raises(UserError, match=r"rule\.length=5: drafts are 17 tokens deep"):
        SJD(Jacobi(), 18, CoolSD(length=5))
    SJD(Jacobi(), 18, CoolSD(length=5, floor=1.0))
    with pytest.raises(RuntimeError, match="expect_depth"):
        CoolSD().weights(torch.ones(1, 2), torch.tensor([1]))
