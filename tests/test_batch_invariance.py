"""Company law: the tokens and the cost of a job do not depend on which other jobs run, nor on their
order.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling
from harness.engine.probes import entropy
from harness.engine.session import Method, Session
from harness.records import TIMES, Usage
from methods.best_of_n import BestOfN
from methods.plain import Plain


class Wanderer:
    """Uses every seam: looks, forks, closes, truncates, re-conditions, commits, renders and
    asks.
    """

    rows = 3
    branches = 2
    tokens_per_step = 2

    async def generate(self, prompt: str, s: Session) -> Canvas:
        a, b, c = s.open(3)
        await s.run([a, b], until=3)
        for signal, canvas in zip(await s.look([a, b], entropy), (a, b), strict=True):
            canvas.scale = 1.0 + signal["entropy"]
        await s.step([a, b])
        s.fork(a, over=c)
        s.close(b)
        s.commit(c, [1, 2])
        await s.run([a, c], until=9)
        s.truncate(a, 5)
        s.condition(c, (None, prompt + " again"), c._guide)
        scores = await s.ask(PixelSum(), prompt, await s.render([a, c]))
        await s.run([a, c])
        s.note(scores=scores)
        return c


def costs(usage: Usage) -> Usage:
    return replace(usage, **dict.fromkeys(TIMES, 0.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [Plain(), BestOfN(2, PixelSum()), BestOfN(3), Wanderer()])
def test_tokens_and_costs_do_not_depend_on_company(
    method: Method, dtype: torch.dtype, device: str
) -> None:
    model = ToyModel(dtype=dtype, device=device)
    some = jobs(TEXTS, images=2)
    together = draw(method, some, model=model, slots=14)
    shuffled = random.Random(3).sample(some, len(some))
    for other in (
        draw(method, shuffled, model=model, slots=14),
        draw(method, shuffled[:1], model=model, slots=14),
    ):
        for key, delivery in other.items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


def test_logits_are_bitwise_equal_whoever_else_is_drawn() -> None:
    """Stronger than equal tokens: the log-probabilities of float32 runs agree in every bit."""

    class Keep(Plain):
        def __init__(self) -> None:
            self.seen: dict[str, tuple[float, ...]] = {}

        async def generate(self, prompt: str, s: Session) -> Canvas:
            canvas = await super().generate(prompt, s)
            self.seen[prompt] = canvas.log_probs
            return canvas

    model = ToyModel(dtype=torch.float32)
    together = Keep()
    alone = Keep()
    draw(together, jobs(TEXTS), model=model)
    for job in jobs(TEXTS):
        draw(alone, [job], model=model)
    assert together.seen == alone.seen


def test_seeds_prompts_and_images_give_different_pictures() -> None:
    """The law above would hold for a sampler that always draws the same: it does not."""
    first = draw(Plain(), jobs(TEXTS, images=3))
    second = draw(Plain(), jobs(TEXTS, images=3), seed=1)
    drawn = [delivery.tokens for delivery in (*first.values(), *second.values())]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(
    "sampling", [Sampling(scale=1.0), Sampling(scale=3.0, temperature=0.0), Sampling(top_k=3)]
)
def test_latency_concurrency_changes_nothing(sampling: Sampling) -> None:
    many = draw(Plain(), jobs(TEXTS), sampling=sampling)
    single = draw(Plain(), jobs(TEXTS), sampling=sampling, concurrency=1)
    assert {k: d.tokens for k, d in many.items()} == {k: d.tokens for k, d in single.items()}
