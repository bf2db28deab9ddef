"""Truncating, forking, re-prompting and committing keep what they must keep."""

from __future__ import annotations

import math

import pytest
import torch
from toy import ToyModel

from harness.engine.acceptance import exact
from harness.engine.canvas import Canvas, Context
from harness.engine.guidance import Sampling, cfg
from harness.engine.sampler import Sampler
from harness.records import Usage

TEXT = "two dogs left of a car"
NULL_AND_TEXT = [Context(None, TEXT), Context(TEXT, TEXT)]


@pytest.fixture
def sampler() -> Sampler:
    return toy_sampler()


def toy_sampler() -> Sampler:
    return Sampler(ToyModel(), Sampling(scale=2.0), slots=8, tokens_per_step=3, prefill=(2, 4))


def opened(sampler: Sampler, key: int = 5, usage: Usage | None = None) -> Canvas:
    """A fresh canvas, with a ledger that the test reads if it likes."""
    ledger = Usage() if usage is None else usage
    return sampler.open(*sampler.contexts(TEXT), key=key, usage=ledger)


def advance(sampler: Sampler, canvas: Canvas, until: int = 16) -> tuple[int, ...]:
    """Draw token after token; all tokens."""
    while canvas.length < until:
        sampler.forward([canvas], [None])
        sampler.draw([canvas], [None], exact)
    return canvas.tokens


@pytest.mark.parametrize("length", [0, 1, 7, 15, 16])
def test_truncate_and_replay_gives_the_same_tokens(sampler: Sampler, length: int) -> None:
    usage = Usage()
    canvas = opened(sampler, usage=usage)
    drawn = advance(sampler, canvas)
    sampler.truncate(canvas, length)
    assert canvas.tokens == drawn[:length]
    assert advance(sampler, canvas) == drawn
    assert usage.sampled == 16 + 16 - length
    assert usage.discarded == 16 - length


@pytest.mark.parametrize("length", [0, 5, 11])
def test_condition_to_another_text_and_back_gives_the_same_tokens(
    sampler: Sampler, length: int
) -> None:
    drawn = advance(sampler, opened(sampler))
    canvas = opened(sampler)
    advance(sampler, canvas, length)
    sampler.condition(canvas, [Context(None, TEXT), Context("one", "one")], cfg)
    sampler.forward([canvas], [None])
    sampler.condition(canvas, NULL_AND_TEXT, cfg)
    assert advance(sampler, canvas) == drawn


def test_condition_keeps_the_cache_of_unchanged_branches(sampler: Sampler) -> None:
    usage = Usage()
    canvas = opened(sampler, usage=usage)
    advance(sampler, canvas, 8)
    before = usage.text_positions
    sampler.condition(canvas, [*NULL_AND_TEXT, Context("one", "one")], mean_of_three)
    advance(sampler, canvas, 9)
    assert usage.text_positions - before == len(sampler.model.context("one", "one"))


def mean_of_three(logits_RKTV: torch.Tensor, scale_R: torch.Tensor) -> torch.Tensor:
    return logits_RKTV.mean(1)


def test_a_fork_has_the_same_tokens_and_goes_its_own_way(sampler: Sampler) -> None:
    usage = Usage()
    source = opened(sampler, 1)
    copy = opened(sampler, 2, usage)
    advance(sampler, source, 6)
    advance(sampler, copy, 3)
    sampler.fork(source, over=copy)
    assert copy.tokens == source.tokens
    assert usage.discarded == 3

    alone = toy_sampler()
    assert advance(sampler, source) == advance(alone, opened(alone, 1))
    assert advance(sampler, copy) != source.tokens
    assert copy.tokens[:6] == source.tokens[:6]


def test_committed_tokens_are_seen_by_the_next_draw(sampler: Sampler) -> None:
    """Committing what plain would have drawn, unverified, leaves the rest as plain draws it."""
    drawn = advance(sampler, opened(sampler))
    usage = Usage()
    canvas = opened(sampler, usage=usage)
    advance(sampler, canvas, 4)
    sampler.commit(canvas, drawn[4:6])
    advance(sampler, canvas, 9)
    sampler.commit(canvas, drawn[9:10])
    assert advance(sampler, canvas) == drawn
    assert usage.skipped == 3
    assert usage.sampled == 13
    assert math.isnan(canvas.log_probs[4])
    assert not math.isnan(canvas.log_probs[6])


def test_a_cache_built_in_pieces_equals_a_fresh_one(sampler: Sampler) -> None:
    canvas = opened(sampler)
    advance(sampler, canvas, 10)
    fresh = opened(sampler)
    sampler.commit(fresh, canvas.tokens)
    for each in (canvas, fresh):
        sampler.forward([each], [None])
    for mine, theirs in zip(canvas.branches, fresh.branches, strict=True):
        assert mine.cached == theirs.cached
        keys = sampler.table.cache.keys[:, :, :, : mine.cached]
        torch.testing.assert_close(keys[:, mine.slot], keys[:, theirs.slot])


def test_misuse_is_refused_and_changes_nothing(sampler: Sampler) -> None:
    canvas = opened(sampler)
    advance(sampler, canvas, 4)
    with pytest.raises(ValueError, match="truncate to 5"):
        sampler.truncate(canvas, 5)
    with pytest.raises(ValueError, match=r"outside 0\.\.31"):
        sampler.commit(canvas, [32])
    with pytest.raises(ValueError, match="13 tokens at 4"):
        sampler.commit(canvas, [0] * 13)
    assert canvas.length == 4
    sampler.close(canvas)
    with pytest.raises(ValueError, match="closed"):
        sampler.truncate(canvas, 0)
    assert sampler.free == 8
