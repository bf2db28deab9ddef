"""ZipAR: rows side by side, each token once, from the tokens that were there and no others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from test_batch_invariance import costs
from torch import Tensor
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.engine.acceptance import exact
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling, warp
from harness.engine.sampler import Sampler
from harness.engine.session import Session
from harness.models.trunk import Attend
from harness.records import Usage, UserError
from methods.best_of_n import BestOfN
from methods.plain import Plain
from methods.zipar import ZipAR

GRID = (3, 5)


class Noted(ZipAR):
    """Keeps which places were drawn together, and the log-probabilities."""

    def __init__(self, window: int, parallel: int = 9) -> None:
        super().__init__(window, parallel)
        self.forwards: list[list[int]] = []
        self.log_probs: tuple[float, ...] = ()

    def _next(self, drawn: Sequence[int], wide: int) -> list[int]:
        rows = super()._next(drawn, wide)
        self.forwards.append([i * wide + drawn[i] for i in rows])
        return rows

    async def generate(self, prompt: str, s: Session) -> Canvas:
        canvas = await super().generate(prompt, s)
        self.log_probs = canvas.log_probs
        return canvas


def masked(seen_LL: Tensor) -> Attend:
    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen_LL)

    return attend


def reference(
    model: ToyModel, sampling: Sampling, text: str, tokens: list[int], forwards: list[list[int]]
) -> list[float]:
    """Log-probabilities by whole-sequence forwards: a place saw what was drawn no later than its
    own token.
    """
    drawn_in = {place: number for number, places in enumerate(forwards) for place in places}
    count = len(tokens)
    log_probs = []
    for place in range(count):
        now = drawn_in[place]
        fed = list(tokens)
        when = [drawn_in[t] for t in range(count)]
        if place and when[place - 1] >= now:  # nothing right before it: the nearest token stands in
            nearest = max(t for t in range(place - 1) if when[t] < now)
            fed[place - 1] = tokens[nearest]
        logits = []
        for context in (model.context(None, text), model.context(text, text)):
            start = len(context)
            x = torch.cat((context, model.tokens(torch.tensor(fed))))[None]
            seen = torch.eye(start + count, dtype=torch.bool)
            seen[:, :start] = torch.ones(start + count, start).bool().tril()
            for query in range(count):
                for key in range(query):
                    then = now - 1 if query == place - 1 else when[query]
                    seen[start + query, start + key] = when[key] <= then
            hidden = model.forward(
                x, torch.arange(start + count)[None], torch.tensor([start]), masked(seen)
            )
            logits.append(model.head(hidden)[0, start + place - 1])
        probs = warp(logits[0] + sampling.scale * (logits[1] - logits[0]), sampling)
        log_probs.append(probs[tokens[place]].log().item())
    return log_probs


@pytest.mark.parametrize(("window", "parallel"), [(1, 9), (2, 9), (3, 2), (4, 9), (1, 2)])
def test_a_token_is_drawn_from_what_was_there_and_nothing_else(window: int, parallel: int) -> None:
    model = ToyModel(grid=GRID)
    sampling = Sampling(scale=2.0)
    method = Noted(window, parallel)
    ((_, delivery),) = draw(method, jobs(TEXTS[1:2]), model=model, sampling=sampling).items()
    assert not delivery.error
    expected = reference(model, sampling, TEXTS[1], list(delivery.tokens), method.forwards)
    assert method.log_probs == pytest.approx(expected, abs=1e-9)


def test_rows_open_one_window_behind_each_other() -> None:
    method = Noted(2)
    draw(method, jobs(TEXTS[:1]), model=ToyModel(grid=GRID))
    assert method.forwards == [[0], [1], [2, 5], [3, 6], [4, 7, 10], [8, 11], [9, 12], [13], [14]]


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("parallel", [1, 2, 9])
def test_each_token_once_in_as_few_forwards_as_said(window: int, parallel: int) -> None:
    height, wide = GRID
    plain = draw(Plain(), jobs(TEXTS), model=ToyModel(grid=GRID))
    for key, delivery in draw(
        ZipAR(window, parallel), jobs(TEXTS), model=ToyModel(grid=GRID)
    ).items():
        usage = delivery.usage
        alone = plain[key].usage
        assert usage.sampled == 15
        assert usage.skipped == usage.discarded == 0
        assert usage.text_positions == alone.text_positions
        together = window < wide and parallel > 1
        assert (
            usage.target_positions == alone.target_positions + 2 * (height - 1) * together
        )  # and each stand-in
        if parallel == 9:
            prompt = (
                alone.target_passes - 15
            )  # forwards that only read the prompt; a wider one needs fewer
            assert usage.target_passes - (wide + (height - 1) * min(window, wide)) in range(
                prompt + 1
            )


@pytest.mark.parametrize(("window", "parallel"), [(5, 4), (9, 2), (2, 1)])
def test_a_window_as_wide_as_the_image_is_plain(window: int, parallel: int) -> None:
    plain = draw(Plain(), jobs(TEXTS, 2), model=ToyModel(grid=GRID))
    for key, delivery in draw(
        ZipAR(window, parallel), jobs(TEXTS, 2), model=ToyModel(grid=GRID)
    ).items():
        assert delivery.tokens == plain[key].tokens
    best = draw(BestOfN(2, PixelSum()), jobs(TEXTS))
    for key, delivery in draw(BestOfN(2, PixelSum(), decoding=ZipAR(4)), jobs(TEXTS)).items():
        assert delivery.tokens == best[key].tokens


@pytest.mark.parametrize("device", DEVICES)
def test_company_changes_nothing(device: str) -> None:
    some = jobs(TEXTS, images=2)
    model = ToyModel(grid=GRID, dtype=torch.float32, device=device)
    together = draw(ZipAR(2), some, model=model)
    for other in (some[::-1], some[3:4]):
        for key, delivery in draw(ZipAR(2), other, model=model).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert costs(delivery.usage) == costs(together[key].usage)


def test_gaps_are_filled_or_thrown_away_before_anything_else() -> None:
    sampler = Sampler(ToyModel(), Sampling(scale=2.0), slots=8, tokens_per_step=4, prefill=(2, 4))
    canvas, other = (
        sampler.open(*sampler.contexts(TEXTS[1]), key=key, usage=Usage()) for key in (1, 2)
    )
    sampler.draw_at([canvas], [[0]])
    sampler.draw_at([canvas], [[1, 4]])
    assert canvas.length == 2
    assert canvas.ledger.sampled == 3
    for misuse in (
        lambda: sampler.forward([canvas], [None]),
        lambda: sampler.commit(canvas, [3]),
        lambda: sampler.fork(canvas, over=other),
        lambda: sampler.condition(canvas, sampler.contexts("one")[0], canvas.guide),
    ):
        with pytest.raises(ValueError, match="drawn out of order"):
            misuse()
    for places in ([1], [4], [16], []):
        with pytest.raises(ValueError, match="drawn or beyond the image's 16 tokens"):
            sampler.draw_at([canvas], [places])
    with pytest.raises(ValueError, match="positions wait to be fed: at most 4 fit"):
        sampler.draw_at([canvas], [[2, 7, 9, 11]])
    sampler.truncate(canvas, 2)
    assert canvas.ledger.discarded == 1
    while not canvas.done:
        sampler.forward([canvas], [None])
        sampler.draw([canvas], [None], exact)
    plain = sampler.open(*sampler.contexts(TEXTS[1]), key=1, usage=Usage())
    while not plain.done:
        sampler.forward([plain], [None])
        sampler.draw([plain], [None], exact)
    assert canvas.tokens == plain.tokens
    sampler.draw_at([other], [[0]])
    sampler.draw_at([other], [[1, 4]])
    sampler.close(other)
    assert other.ledger.discarded == 3


def test_values_out_of_range_are_refused() -> None:
    for options in ({"window": 0}, {"parallel": 0}):
        with pytest.raises(UserError, match=f"method.{next(iter(options))}=0: must be at least 1"):
            ZipAR(**options)
