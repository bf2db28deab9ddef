"""Batch invariance: what a job draws and costs depends on no other job, and not on their order."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling, cfg
from harness.engine.probes import entropy
from harness.engine.session import Method, Session
from harness.records import TIMES, Usage
from methods.best_of_n import BestOfN
from methods.plain import Plain


class Wanderer:
    """Uses all of a session: looks, forks, closes, truncates, re-conditions, commits, asks, ..."""

    rows = 3
    branches = 2
    tokens_per_step = 2

    async def generate(self, prompt: str, s: Session) -> Canvas:
        a, b, c = s.open(3)
        await s.run([a, b], until=3)
        looks = await s.look([a, b], entropy)
        for canvas, signals in zip((a, b), looks, strict=True):
            canvas.scale = 1.0 + signals["entropy"]
        await s.step([a, b])

        s.fork(a, over=c)
        s.close(b)
        s.commit(c, s.raster.lay_out([1, 2], c.length))
        await s.run([a, c], until=9)
        s.truncate(a, 5)
        s.condition(c, (None, prompt + " again"), cfg)

        images = await s.render([a, c])
        scores = await s.ask(PixelSum(), prompt, images)
        await s.run([a, c])
        s.note(scores=scores)
        return c


def costs(usage: Usage) -> Usage:
    """A ledger without its seconds, which differ from run to run."""
    return replace(usage, **dict.fromkeys(TIMES, 0.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [Plain(), BestOfN(2, PixelSum()), BestOfN(3), Wanderer()])
def test_tokens_and_costs_do_not_depend_on_the_batch(
    method: Method, dtype: torch.dtype, device: str
) -> None:
    model = ToyModel(dtype=dtype, device=device)
    some = jobs(TEXTS, images=2)
    shuffled = random.Random(3).sample(some, len(some))
    together = draw(method, some, model=model, slots=14)
    in_another_order = draw(method, shuffled, model=model, slots=14)
    alone = draw(method, shuffled[:1], model=model, slots=14)
    for key, delivery in (*in_another_order.items(), *alone.items()):
        assert not delivery.error
        assert delivery.tokens == together[key].tokens
        assert delivery.notes == together[key].notes
        assert costs(delivery.usage) == costs(together[key].usage)


class Keep(Plain):
    """Plain sampling that keeps the log-probabilities of every prompt."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, ...]] = {}

    async def generate(self, prompt: str, s: Session) -> Canvas:
        canvas = await super().generate(prompt, s)
        self.seen[prompt] = canvas.log_probs
        return canvas


def test_logits_are_bitwise_equal_whoever_else_is_drawn() -> None:
    """Stronger than equal tokens: the log-probabilities of float32 runs agree in every bit."""
    model = ToyModel(dtype=torch.float32)
    together = Keep()
    alone = Keep()
    draw(together, jobs(TEXTS), model=model)
    for job in jobs(TEXTS):
        draw(alone, [job], model=model)
    assert together.seen == alone.seen


def test_seeds_prompts_and_images_give_different_pictures() -> None:
    """The laws above would hold for a sampler that always draws the same: it does not."""
    first = draw(Plain(), jobs(TEXTS, images=3))
    second = draw(Plain(), jobs(TEXTS, images=3), seed=1)
    drawn = [delivery.tokens for delivery in (*first.values(), *second.values())]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(
    "sampling", [Sampling(scale=1.0), Sampling(scale=3.0, temperature=0.0), Sampling(top_k=3)]
)
def test_one_image_at_a_time_gives_the_same_tokens(sampling: Sampling) -> None:
    many = draw(Plain(), jobs(TEXTS), sampling=sampling)
    single = draw(Plain(), jobs(TEXTS), sampling=sampling, concurrency=1)
    assert many.keys() == single.keys()
    for key, delivery in many.items():
        assert single[key].tokens == delivery.tokens
