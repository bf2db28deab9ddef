"""Every way of drafting works on every model under both samplers, and keeps the law of its rule."""

from __future__ import annotations

from functools import lru_cache

import pytest
from combinations import (
    DRAFTED,
    GREEDY,
    SETTINGS,
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
from test_lantern import own_cache as own_cache

from harness.engine.guidance import Sampling
from harness.engine.method_spec import MethodSpec
from harness.engine.session import Method
from harness.models import ImageModel
from harness.records import UserError
from methods.best_of_n import BestOfN
from methods.plain import Plain
from toy import PixelSum

IMAGES = {"pictogram": 1}
"""Images of a case: one where an image is long, else two at a time."""


@lru_cache
def model_of(subject: Subject) -> ImageModel:
    """The model on the CPU; sharing it is safe, as it is never written to."""
    return subject.make("cpu")


def draw(subject: Subject, method: Method, sampling: Sampling, setting: Setting) -> Drawn:
    some = subject.jobs(IMAGES.get(subject.name, 2))
    sampler = make_sampler(method, model_of(subject), sampling, setting)
    return draw_on(sampler, method, some, setting)


@lru_cache
def plain_tokens(subject: Subject, sampling: Sampling) -> dict[tuple[str, int], tuple[int, ...]]:
    """The tokens of plain sampling."""
    return tokens_of(draw(subject, Plain(), sampling, THROUGHPUT))


@lru_cache
def best_tokens(subject: Subject, sampling: Sampling) -> dict[tuple[str, int], tuple[int, ...]]:
    """The tokens of plain Best-of-2."""
    return tokens_of(draw(subject, BestOfN(2, PixelSum()), sampling, THROUGHPUT))


CASES = [
    pytest.param(subject, family, setting, id=f"{subject.name}-{family.name}-{setting.name}")
    for subject in SUBJECTS.values()
    for family in DRAFTED
    if family.fits(subject)
    for setting in SETTINGS
]


def expect_whole_images(drawn: Drawn, subject: Subject, method: Method) -> None:
    """Each image has all its tokens, and the ledger counts what all its candidates were drawn of."""
    place_count = model_of(subject).num_tokens
    for delivery in drawn.values():
        usage = delivery.usage
        assert not delivery.error
        assert len(delivery.tokens) == place_count
        assert usage.sampled + usage.skipped - usage.discarded == place_count
        accepted = delivery.notes.get("accepted")
        if accepted is not None:
            assert sum((a + 1) * count for a, count in enumerate(accepted)) == usage.sampled


@pytest.mark.parametrize(("subject", "family", "setting"), CASES)
def test_a_way_of_drafting_finishes_images_by_its_law(
    subject: Subject, family: Family, setting: Setting
) -> None:
    method = family.build(subject)
    drawn = draw(subject, method, family.sampling, setting)
    expect_whole_images(drawn, subject, method)
    if family.law == "plain":
        assert tokens_of(drawn) == plain_tokens(subject, family.sampling)


@pytest.mark.parametrize(("subject", "family", "setting"), [c for c in CASES if c.values[1].law == "greedy"])
def test_an_exact_rule_is_plain_sampling_at_temperature_0(
    subject: Subject, family: Family, setting: Setting
) -> None:
    drawn = draw(subject, family.build(subject), GREEDY, setting)
    assert tokens_of(drawn) == plain_tokens(subject, GREEDY)


@pytest.mark.parametrize(("subject", "family", "setting"), CASES)
def test_candidates_of_best_of_n_may_be_drafted(
    subject: Subject, family: Family, setting: Setting
) -> None:
    both = best_of_two(family)
    drawn = draw(subject, both.build(subject), both.sampling, setting)
    expect_whole_images(drawn, subject, both.build(subject))
    if both.law == "plain":
        assert tokens_of(drawn) == best_tokens(subject, both.sampling)
