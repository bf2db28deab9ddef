"""VVS: what it skips, when, and that never skipping is its rule."""

from __future__ import annotations

import random

import pytest
import torch
from scipy.stats import chisquare
from test_batch_invariance import costs
from test_lantern import own_cache as own_cache
from test_speculative import drafter
from toy import TEXTS, ToyModel, draw, jobs

from harness.engine.acceptance import Draft, coupled, exact
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.records import UserError
from methods.lantern import Lantern
from methods.plain import Plain
from methods.speculative import Speculative
from methods.vvs import VVS, Dynamic, Uniform, kept, likeliest, similarity


@pytest.mark.parametrize("schedule", [Uniform(1), Dynamic(1.01)])
@pytest.mark.parametrize("rule", [exact, Lantern(5, delta=0.3)])
def test_never_skipping_is_the_rule_token_for_token(schedule: object, rule: object) -> None:
    never = draw(VVS(drafter(), schedule, 3, rule), jobs(TEXTS, 2))  # type: ignore[arg-type]
    plain = draw(Speculative(drafter(), 3, rule), jobs(TEXTS, 2), tokens_per_step=7)  # type: ignore[arg-type]
    for key, delivery in never.items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens
        assert delivery.usage.skipped == 0


@pytest.mark.parametrize("schedule", [Uniform(2), Uniform(3, paths=2), Dynamic(-1.0, paths=2)])
def test_skips_are_counted_apart_and_save_passes(schedule: object) -> None:
    method = VVS(drafter(), schedule, 3, exact)  # type: ignore[arg-type]
    strict = draw(Speculative(drafter(), 3, exact), jobs(TEXTS, 2))
    for key, delivery in draw(method, jobs(TEXTS, 2)).items():
        usage = delivery.usage
        skips = delivery.notes["skips"]
        accepted = delivery.notes["accepted"]
        assert usage.skipped == sum(m * count for m, count in enumerate(skips)) > 0
        assert (
            usage.sampled
            == sum((a + 1) * count for a, count in enumerate(accepted))
            == 16 - usage.skipped
        )
        assert usage.discarded == 0
        assert sum(skips) <= sum(accepted)  # no two skips follow each other
        assert usage.target_passes < strict[key].usage.target_passes + 3


def test_rejecting_skipped_tokens_is_lossless_under_the_coupled_rule() -> None:
    """Verified with the next draft, a skip is only a longer draft: the tokens are those of plain
    sampling.
    """
    plain = draw(Plain(), jobs(TEXTS, 2))
    method = VVS(drafter(), Uniform(2), 3, coupled, post="reject")
    for key, delivery in draw(method, jobs(TEXTS, 2)).items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens
        assert delivery.usage.skipped > 0
        assert delivery.usage.sampled + delivery.usage.skipped - delivery.usage.discarded == 16


def test_company_changes_nothing() -> None:
    some = jobs(TEXTS, 2)

    def method() -> VVS:
        return VVS(drafter(), Dynamic(0.2, paths=3), 3, Lantern(5, delta=0.3))

    together = draw(method(), some)
    for other in (random.Random(1).sample(some, len(some)), some[4:5]):
        for key, delivery in draw(method(), other).items():
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


def test_no_skip_before_the_cache_is_warm_and_uniform_means_one_in_every_interval() -> None:
    seen: list[tuple[int, bool]] = []

    class Watching(Uniform):
        def skip(self, round_: int, paths: object, codebook_Vd: object) -> bool:
            seen.append((round_, super().skip(round_, paths, codebook_Vd)))  # type: ignore[arg-type]
            return seen[-1][1]

    draw(VVS(drafter(seed=0), Watching(2), 1, exact), jobs(TEXTS[:1]))
    # the target as its own drafter: two tokens a verified round; round 3 has 6 (too few), round 5
    # has 10
    assert seen == [(5, True), (7, True)]
    assert [round_ for round_ in range(12) if Uniform(3).due(round_)] == [1, 4, 7, 10]
    assert [round_ for round_ in range(6) if Uniform(3, phase=0).due(round_)] == [0, 3]


def test_truncation_counts_the_root() -> None:
    lengths = [3, 3, 5, 6]
    assert kept(lengths, 3) == 3
    assert kept(lengths, 0) == 2
    assert kept([1, 1], 0) == 0


def test_similarity_of_paths() -> None:
    codebook = torch.eye(4)
    same = torch.tensor([0, 1, 2])
    assert similarity([same, same], codebook, 0.9) == pytest.approx(1)
    assert similarity([same, torch.tensor([1, 2, 3])], codebook, 0.9) == pytest.approx(0)
    assert similarity([torch.tensor([0, 1]), torch.tensor([0])], codebook, 0.9) == pytest.approx(
        1 / 1.9
    )
    assert similarity([same], codebook, 0.9) == 0
    assert (
        similarity([same, same], torch.zeros(4, 2), 0.9) == 0
    )  # rows without direction are like nothing


def test_the_likeliest_path_and_the_random_one() -> None:
    probs = torch.tensor([[0.7, 0.3]])
    paths = [Draft(torch.tensor([1]), probs), Draft(torch.tensor([0]), probs)]
    assert likeliest(paths) == 1
    picks = torch.bincount(torch.tensor([first_choice(image) for image in range(600)]), minlength=3)
    assert chisquare(picks.numpy()).pvalue > 1e-3


def first_choice(image: int) -> int:
    """Which of three paths the method's own random branch picks first for an image."""
    from harness.engine.job_state import JobState
    from harness.engine.session import Session

    sampler = Sampler(ToyModel(), Sampling(), slots=2)
    (job,) = jobs(TEXTS[:1], images=image + 1)[-1:]
    state = JobState(job, seed=0, branches=2, reserved_slots=2)
    return int(Session(sampler, state).rng("vvs").integers(3))


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
