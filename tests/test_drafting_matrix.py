"""Every way of drawing works on every model under both samplers, and keeps the law of its rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from combinations import (
    CFG,
    DRAFTED,
    GREEDY,
    LANGUAGE_KINDS,
    LATENCY,
    SEARCHES,
    SUBJECTS,
    THROUGHPUT,
    Drawn,
    Family,
    Setting,
    Subject,
    best_of_two,
    draw_on,
    make_sampler,
    tokens_of,
)
from test_batch_invariance import costs
from test_lantern import own_cache as own_cache
from toy import PixelSum

from harness.engine.guidance import Sampling
from harness.engine.session import Method
from harness.models import ImageModel
from harness.models.raster import raster_of
from harness.records import Job, UserError
from methods.best_of_n import BestOfN
from methods.plain import Plain

pytestmark = pytest.mark.usefixtures("own_cache")  # neighbour tables


@lru_cache
def model_of(subject: Subject) -> ImageModel:
    """The model on the CPU; no draw changes it."""
    return subject.make("cpu")


def draw(subject: Subject, method: Method, sampling: Sampling, setting: Setting) -> Drawn:
    """Images of two prompts on the toy, of one on the other models, which take longer."""
    sampler = make_sampler(method, model_of(subject), sampling, setting)
    return draw_on(sampler, method, subject.jobs(1 + (subject.name == "toy")), setting)


@lru_cache
def plain_tokens(subject: Subject, sampling: Sampling) -> dict[tuple[str, int], tuple[int, ...]]:
    """The tokens of plain sampling."""
    return tokens_of(draw(subject, Plain(), sampling, THROUGHPUT))


@lru_cache
def best_tokens(subject: Subject) -> dict[tuple[str, int], tuple[int, ...]]:
    """The tokens of the better of two plain candidates."""
    return tokens_of(draw(subject, BestOfN(2, PixelSum()), CFG, THROUGHPUT))


def is_central(subject: Subject, family: Family) -> bool:
    """Tell whether a case stands for others: all ways on the toy, the central ones elsewhere.

    Of the language models, which share their adapter, each stands for every third way.
    """
    if subject.name in LANGUAGE_KINDS:
        turn = DRAFTED.index(family) + LANGUAGE_KINDS.index(subject.name)
        return family.central and turn % len(LANGUAGE_KINDS) == 0
    return family.central or subject.name == "toy"


def is_central_on_toy(subject: Subject, family: Family) -> bool:
    """Tell whether a case is a central way on the toy."""
    return family.central and subject.name == "toy"


def chooses_on_toy(subject: Subject, family: Family) -> bool:
    """Tell whether a case chooses among candidates, on the toy."""
    return family.law == "finished" and subject.name == "toy"


LAWS = ("plain", "greedy", "finished")


def list_cases(
    is_quick: Callable[[Subject, Family], bool],
    *laws: str,
    families: Sequence[Family] = DRAFTED,
) -> list[Any]:
    """All models with all ways of drawing of some laws that they allow; long, if not quick."""
    cases = []
    for subject in SUBJECTS.values():
        for family in families:
            if family.fits(subject) and family.law in laws:
                marks = [] if is_quick(subject, family) else [pytest.mark.long]
                name = f"{subject.name}: {family.name}"
                cases.append(pytest.param(subject, family, id=name, marks=marks))
    return cases


def expect_whole_images(drawn: Drawn, subject: Subject, candidates: int) -> None:
    """Each image has all its tokens, and the ledger counts how all candidates got their codes."""
    raster = raster_of(model_of(subject))
    forced_count = raster.places - raster.codes
    for delivery in drawn.values():
        usage = delivery.usage
        assert not delivery.error
        assert len(delivery.tokens) == raster.places
        assert not any(delivery.tokens[place] for place in raster.forced_places())
        assert usage.sampled + usage.skipped - usage.discarded == raster.codes
        assert usage.sampled + usage.skipped >= candidates * raster.codes
        accepted = delivery.notes.get("accepted")
        if isinstance(accepted, list):
            stepped = sum((a + 1) * count for a, count in enumerate(accepted))
            assert 0 <= stepped - usage.sampled <= candidates * forced_count


@pytest.mark.parametrize(
    ("subject", "family"),
    [
        *list_cases(is_central, *LAWS),
        *list_cases(chooses_on_toy, *LAWS, families=SEARCHES),
    ],
)
def test_both_samplers_finish_the_same_images_by_the_rules_law(
    subject: Subject, family: Family
) -> None:
    """A compact forward differs in its shape alone: drafts, acceptance and costs are the same."""
    drawn = draw(subject, family.build(subject), family.sampling, THROUGHPUT)
    if family in DRAFTED:  # what a copy inherits counts where it came from
        expect_whole_images(drawn, subject, 1)
    if family.law == "plain":
        assert tokens_of(drawn) == plain_tokens(subject, family.sampling)

    compact = draw(subject, family.build(subject), family.sampling, LATENCY)
    assert tokens_of(compact) == tokens_of(drawn)
    for key, delivery in compact.items():
        for counted in ("accepted", "skips"):  # the rules' sums differ by rounding
            assert delivery.notes.get(counted) == drawn[key].notes.get(counted)
        assert costs(delivery.usage) == costs(drawn[key].usage)


@pytest.mark.parametrize(
    ("subject", "family"),
    [
        *list_cases(is_central_on_toy, *LAWS),
        *list_cases(chooses_on_toy, *LAWS, families=SEARCHES),
    ],
)
def test_what_a_kill_left_undone_is_drawn_as_beside_the_others(
    subject: Subject, family: Family
) -> None:
    """By another process, in another order and number: the same bytes and costs."""
    some = subject.jobs(2)
    some = [replace(job, image=image) for job in some for image in range(2)]
    model = model_of(subject)

    def draw_some(jobs: Sequence[Job]) -> Drawn:
        method = family.build(subject)
        sampler = make_sampler(method, model, family.sampling, THROUGHPUT)
        return draw_on(sampler, method, jobs, THROUGHPUT)

    whole = draw_some(some)
    for left in (some[:0:-1], some[1:2]):
        for key, delivery in draw_some(left).items():
            assert not delivery.error
            assert delivery.tokens == whole[key].tokens
            assert np.array_equal(delivery.image, whole[key].image)
            assert delivery.notes == whole[key].notes
            assert costs(delivery.usage) == costs(whole[key].usage)


@pytest.mark.parametrize(("subject", "family"), list_cases(is_central_on_toy, "greedy"))
def test_an_exact_rule_is_plain_sampling_at_temperature_0(subject: Subject, family: Family) -> None:
    for setting in (THROUGHPUT, LATENCY):
        drawn = draw(subject, family.build(subject), GREEDY, setting)
        assert tokens_of(drawn) == plain_tokens(subject, GREEDY)


@pytest.mark.parametrize(
    ("subject", "family"), list_cases(is_central_on_toy, "plain", "greedy", "finished")
)
def test_candidates_of_best_of_n_may_be_drafted(subject: Subject, family: Family) -> None:
    both = best_of_two(family)
    drawn = draw(subject, both.build(subject), both.sampling, LATENCY)
    expect_whole_images(drawn, subject, 2)
    if both.law == "plain":
        assert tokens_of(drawn) == best_tokens(subject)


@pytest.mark.parametrize(
    "subject", [subject for subject in SUBJECTS.values() if subject.eagle is None]
)
def test_a_model_without_features_refuses_a_feature_drafter(subject: Subject) -> None:
    """Before anything is drawn, with the remedy: these are the pairs that the matrix leaves out."""
    drafter = SUBJECTS["toy"].feature_drafter()
    with pytest.raises(UserError, match=r"choose drafter@|set \+model\.collapse=false"):
        drafter.expect_target(model_of(subject))
