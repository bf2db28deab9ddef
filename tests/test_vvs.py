"""VVS: what it skips, when, and that without skips it is its rule."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from scipy.stats import chisquare
from test_batch_invariance import costs
from test_lantern import own_cache as own_cache
from test_speculative import drafter
from torch import Tensor
from toy import TEXTS, ToyModel, draw, jobs

from harness.engine.acceptance import Draft, Rule, coupled, exact
from harness.engine.canvas import Canvas
from harness.engine.session import Session
from harness.records import UserError
from methods.lantern import Lantern
from methods.plain import Plain
from methods.speculative import Speculative
from methods.vvs import (
    VVS,
    Dynamic,
    Schedule,
    Uniform,
    likeliest_path,
    mean_similarity,
    truncated_length,
)


@pytest.mark.parametrize("schedule", [Uniform(1), Dynamic(1.01)])
@pytest.mark.parametrize("rule", [exact, Lantern(5, delta=0.3)])
def test_without_skips_it_is_the_rule_token_for_token(schedule: Schedule, rule: Rule) -> None:
    plain = draw(Speculative(drafter(), 3, rule), jobs(TEXTS, 2), tokens_per_step=7)
    for key, delivery in draw(VVS(drafter(), schedule, 3, rule), jobs(TEXTS, 2)).items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens
        assert delivery.usage.skipped == 0


@pytest.mark.parametrize("post", ["fill", "reject"])
@pytest.mark.parametrize("cap", [1, 2])
def test_a_cap_bounds_the_tokens_of_a_skip(cap: int, post: str) -> None:
    """Without it a chain of three is skipped whole."""
    whole = draw(VVS(drafter(), Uniform(2), 3, exact, post=post), jobs(TEXTS, 2))
    capped = draw(VVS(drafter(), Uniform(2), 3, exact, post=post, cap=cap), jobs(TEXTS, 2))
    for key, delivery in capped.items():
        assert not delivery.error
        assert sum(delivery.notes["skips"][1 : cap + 1]) > 0
        assert sum(delivery.notes["skips"][cap + 1 :]) == 0
        assert whole[key].notes["skips"][3] > 0


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.cap=0"):
        VVS(drafter(), Uniform(2), 3, exact, cap=0)


@pytest.mark.parametrize("schedule", [Uniform(2), Uniform(3, paths=2), Dynamic(-1.0, paths=2)])
def test_skips_are_counted_apart_and_save_passes(schedule: Schedule) -> None:
    method = VVS(drafter(), schedule, 3, exact)
    strict = draw(Speculative(drafter(), 3, exact), jobs(TEXTS, 2))
    for key, delivery in draw(method, jobs(TEXTS, 2)).items():
        usage = delivery.usage
        skips = delivery.notes["skips"]
        accepted = delivery.notes["accepted"]
        assert usage.skipped == sum(m * count for m, count in enumerate(skips)) > 0
        assert usage.sampled == sum((a + 1) * count for a, count in enumerate(accepted))
        assert usage.sampled == 16 - usage.skipped
        assert usage.discarded == 0
        assert sum(skips) <= sum(accepted)  # no two skips follow each other
        assert usage.target_passes < strict[key].usage.target_passes + 3


def test_rejecting_skipped_tokens_is_lossless_under_the_coupled_rule() -> None:
    """Verified with the next draft, a skip is only a longer draft: the tokens are plain's."""
    plain = draw(Plain(), jobs(TEXTS, 2))
    method = VVS(drafter(), Uniform(2), 3, coupled, post="reject")
    for key, delivery in draw(method, jobs(TEXTS, 2)).items():
        usage = delivery.usage
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens
        assert usage.skipped > 0
        assert usage.sampled + usage.skipped - usage.discarded == 16


def test_what_else_is_in_the_batch_changes_nothing() -> None:
    some = jobs(TEXTS, 2)

    def method() -> VVS:
        return VVS(drafter(), Dynamic(0.2, paths=3), 3, Lantern(5, delta=0.3))

    together = draw(method(), some)
    for others in (random.Random(1).sample(some, len(some)), some[4:5]):
        for key, delivery in draw(method(), others).items():
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


class Watched(Uniform):
    """A uniform schedule that keeps its answers by round."""

    def __init__(self, interval: int) -> None:
        super().__init__(interval)
        self.answers: list[tuple[int, bool]] = []

    def skip(self, round_index: int, paths: Sequence[Tensor], codebook_Vd: Tensor) -> bool:
        answer = super().skip(round_index, paths, codebook_Vd)
        self.answers.append((round_index, answer))
        return answer


def test_nothing_is_skipped_before_the_cache_is_warm() -> None:
    """The target drafts for itself, so that each verified round draws two tokens.

    Round 3 begins with 6 tokens, which is too few; round 5 begins with 10.
    """
    schedule = Watched(2)
    draw(VVS(drafter(seed=0), schedule, 1, exact), jobs(TEXTS[:1]))
    assert schedule.answers == [(5, True), (7, True)]


def test_a_uniform_schedule_skips_one_round_in_every_interval() -> None:
    assert [i for i in range(12) if Uniform(3).due(i)] == [1, 4, 7, 10]
    assert [i for i in range(6) if Uniform(3, phase=0).due(i)] == [0, 3]


def test_truncation_counts_the_root() -> None:
    lengths = [3, 3, 5, 6]
    assert truncated_length(lengths, 3) == 3
    assert truncated_length(lengths, 0) == 2
    assert truncated_length([1, 1], 0) == 0


def test_similarity_of_paths() -> None:
    codebook = torch.eye(4)
    same = torch.tensor([0, 1, 2])
    other = torch.tensor([1, 2, 3])
    assert mean_similarity([same, same], codebook, 0.9) == pytest.approx(1)
    assert mean_similarity([same, other], codebook, 0.9) == pytest.approx(0)
    assert mean_similarity([same[:2], same[:1]], codebook, 0.9) == pytest.approx(1 / 1.9)
    assert mean_similarity([same], codebook, 0.9) == 0
    # Codes without direction are like nothing.
    assert mean_similarity([same, same], torch.zeros(4, 2), 0.9) == 0


def test_the_likeliest_path() -> None:
    probs = torch.tensor([[0.7, 0.3]])
    paths = [Draft(torch.tensor([1]), probs), Draft(torch.tensor([0]), probs)]
    assert likeliest_path(paths) == 1


class FirstChoice(Plain):
    """Plain sampling that keeps which of three paths VVS would pick first for each image."""

    def __init__(self) -> None:
        self.picks: list[int] = []

    async def generate(self, prompt: str, s: Session) -> Canvas:
        self.picks.append(int(s.rng("vvs").integers(3)))
        return await super().generate(prompt, s)


def test_random_paths_are_picked_alike() -> None:
    method = FirstChoice()
    draw(method, jobs(TEXTS[:1], images=600), model=ToyModel(grid=(1, 2)), slots=256)
    picks = torch.bincount(torch.tensor(method.picks), minlength=3)
    assert len(method.picks) == 600
    assert chisquare(picks.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Uniform(0), "schedule.interval=0"),
        (lambda: Dynamic(0.7, paths=1), "schedule.paths=1"),
        (lambda: VVS(drafter(), Uniform(2), select="best"), "method.select=best"),
        (lambda: VVS(drafter(), Uniform(2), post="drop"), "method.post=drop"),
    ],
)
def test_values_out_of_range_are_refused(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()  # type: ignore[operator]
