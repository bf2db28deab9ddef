"""ZipAR: rows side by side, each token once, from the tokens that were there and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_batch_invariance import costs
from torch import Tensor
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.engine.acceptance import Front, exact
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling, cfg, warp
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

    def _take_places(self, counts: list[int], width: int) -> list[int]:
        places = super()._take_places(counts, width)
        self.forwards.append(places)
        return places

    async def generate(self, prompt: str, s: Session) -> Canvas:
        canvas = await super().generate(prompt, s)
        self.log_probs = canvas.log_probs
        return canvas


# --- what a token is drawn from -------------------------------------------------------------------


def masked(seen_LL: Tensor) -> Attend:
    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen_LL)

    return attend


class Reference:
    """Log-probabilities of a finished image, by one whole-sequence forward for each place.

    A token has seen what was drawn in earlier forwards. `forwards` are the places drawn together.
    """

    def __init__(
        self,
        model: ToyModel,
        sampling: Sampling,
        text: str,
        tokens: list[int],
        forwards: list[list[int]],
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.text = text
        self.tokens = tokens
        self.drawn_in = [0] * len(tokens)
        for number, places in enumerate(forwards):
            for place in places:
                self.drawn_in[place] = number

    def log_prob(self, place: int) -> float:
        """The log-probability of one token, from all that was drawn before it."""
        null = self.logits(None, place)
        text = self.logits(self.text, place)
        probs = warp(null + self.sampling.scale * (text - null), self.sampling)
        return probs[self.tokens[place]].log().item()

    def logits(self, text: str | None, place: int) -> Tensor:
        """Logits of a branch at a place: those behind the token right before it."""
        context = self.model.context(text, self.text)
        start = len(context)
        fed = self.model.tokens(torch.tensor(self.fed_tokens(place)))
        x = torch.cat((context, fed))[None]
        position = torch.arange(len(x[0]))[None]
        seen = self.seen(place, start)
        hidden = self.model.forward(x, position, torch.tensor([start]), masked(seen))
        return self.model.head(hidden)[0, start + place - 1]

    def fed_tokens(self, place: int) -> list[int]:
        """The image's tokens, but if the one right before `place` is missing, the nearest one."""
        now = self.drawn_in[place]
        fed = list(self.tokens)
        if place and self.drawn_in[place - 1] >= now:
            nearest = max(t for t in range(place - 1) if self.drawn_in[t] < now)
            fed[place - 1] = self.tokens[nearest]
        return fed

    def seen(self, place: int, start: int) -> Tensor:
        """What each token sees: the context, itself, and what was drawn by the time it was fed."""
        count = len(self.tokens)
        seen = torch.eye(start + count, dtype=torch.bool)
        seen[:, :start] = torch.ones(start + count, start).bool().tril()
        for query in range(count):
            then = self.drawn_in[query]
            if query == place - 1:
                then = self.drawn_in[place] - 1
            for key in range(query):
                seen[start + query, start + key] = self.drawn_in[key] <= then
        return seen


@pytest.mark.parametrize(("window", "parallel"), [(1, 9), (2, 9), (3, 2), (4, 9), (1, 2)])
def test_a_token_is_drawn_from_what_was_there_and_nothing_else(window: int, parallel: int) -> None:
    model = ToyModel(grid=GRID)
    sampling = Sampling(scale=2.0)
    method = Noted(window, parallel)
    (delivery,) = draw(method, jobs(TEXTS[1:2]), model=model, sampling=sampling).values()
    assert not delivery.error
    reference = Reference(model, sampling, TEXTS[1], list(delivery.tokens), method.forwards)
    expected = [reference.log_prob(place) for place in range(len(delivery.tokens))]
    assert method.log_probs == pytest.approx(expected, abs=1e-9)


# --- what is drawn when ---------------------------------------------------------------------------


def test_rows_open_one_window_behind_each_other() -> None:
    method = Noted(2)
    draw(method, jobs(TEXTS[:1]), model=ToyModel(grid=GRID))
    assert method.forwards == [[0], [1], [2, 5], [3, 6], [4, 7, 10], [8, 11], [9, 12], [13], [14]]


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("parallel", [1, 2, 9])
def test_each_token_is_drawn_and_fed_once(window: int, parallel: int) -> None:
    height, width = GRID
    plain = draw(Plain(), jobs(TEXTS), model=ToyModel(grid=GRID))
    method = ZipAR(window, parallel)
    rows_overlap = window < width and parallel > 1
    stand_ins = 2 * (height - 1) if rows_overlap else 0  # one a row and branch, but for the first
    for key, delivery in draw(method, jobs(TEXTS), model=ToyModel(grid=GRID)).items():
        usage = delivery.usage
        alone = plain[key].usage
        assert usage.sampled == 15
        assert usage.skipped == usage.discarded == 0
        assert usage.text_positions == alone.text_positions
        assert usage.target_positions == alone.target_positions + stand_ins


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
def test_an_image_takes_as_few_forwards_as_the_window_allows(window: int) -> None:
    """Besides those that only read the prompt: a wider forward reads more of it at once."""
    height, width = GRID
    plain = draw(Plain(), jobs(TEXTS), model=ToyModel(grid=GRID))
    drawing = width + (height - 1) * min(window, width)
    for key, delivery in draw(ZipAR(window, 9), jobs(TEXTS), model=ToyModel(grid=GRID)).items():
        reading = plain[key].usage.target_passes - 15
        assert 0 <= delivery.usage.target_passes - drawing <= reading


@pytest.mark.parametrize(("window", "parallel"), [(5, 4), (9, 2), (2, 1)])
def test_a_window_as_wide_as_the_image_is_plain(window: int, parallel: int) -> None:
    plain = draw(Plain(), jobs(TEXTS, 2), model=ToyModel(grid=GRID))
    method = ZipAR(window, parallel)
    for key, delivery in draw(method, jobs(TEXTS, 2), model=ToyModel(grid=GRID)).items():
        assert delivery.tokens == plain[key].tokens


def test_it_draws_the_candidates_of_other_methods() -> None:
    best = draw(BestOfN(2, PixelSum()), jobs(TEXTS))
    for key, delivery in draw(BestOfN(2, PixelSum(), decoding=ZipAR(4)), jobs(TEXTS)).items():
        assert delivery.tokens == best[key].tokens


@pytest.mark.parametrize("device", DEVICES)
def test_what_else_is_in_the_batch_changes_nothing(device: str) -> None:
    some = jobs(TEXTS, images=2)
    model = ToyModel(grid=GRID, dtype=torch.float32, device=device)
    together = draw(ZipAR(2), some, model=model)
    for others in (some[::-1], some[3:4]):
        for key, delivery in draw(ZipAR(2), others, model=model).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert costs(delivery.usage) == costs(together[key].usage)


# --- gaps -----------------------------------------------------------------------------------------


def make_sampler() -> Sampler:
    return Sampler(ToyModel(), Sampling(scale=2.0), slots=8, tokens_per_step=4, prefill=(2, 4))


def draw_at(sampler: Sampler, canvas: Canvas, places: list[int]) -> None:
    sampler.step_at([canvas], [[Front(place) for place in places]], exact)


def with_gaps(sampler: Sampler, key: int) -> tuple[Canvas, Usage]:
    """A canvas whose first two tokens and fifth one are drawn, and what it costs."""
    usage = Usage()
    canvas = sampler.open(*sampler.contexts(TEXTS[1]), key=key, usage=usage)
    draw_at(sampler, canvas, [0])
    draw_at(sampler, canvas, [1, 4])
    return canvas, usage


def finish(sampler: Sampler, canvas: Canvas) -> tuple[int, ...]:
    while not canvas.done:
        sampler.forward([canvas], [None])
        sampler.draw([canvas], [None], exact)
    return canvas.tokens


def test_tokens_end_before_the_first_gap() -> None:
    canvas, usage = with_gaps(make_sampler(), key=1)
    assert canvas.length == 2
    assert usage.sampled == 3


def misuses(sampler: Sampler, canvas: Canvas) -> list[Callable[[], object]]:
    """What may not be done with a canvas that has gaps."""
    other = sampler.open(*sampler.contexts(TEXTS[1]), key=2, usage=Usage())
    return [
        lambda: sampler.forward([canvas], [None]),
        lambda: sampler.commit(canvas, [3]),
        lambda: sampler.fork(canvas, over=other),
        lambda: sampler.condition(canvas, sampler.contexts("one")[0], cfg),
    ]


def test_gaps_are_filled_or_thrown_away_before_anything_else() -> None:
    sampler = make_sampler()
    canvas, _ = with_gaps(sampler, key=1)
    for misuse in misuses(sampler, canvas):
        with pytest.raises(ValueError, match="drawn out of order"):
            misuse()


def test_places_that_cannot_be_drawn_are_refused() -> None:
    sampler = make_sampler()
    canvas, _ = with_gaps(sampler, key=1)
    for places in ([1], [4], [16], []):
        with pytest.raises(ValueError, match="drawn or beyond the image's 16 tokens"):
            draw_at(sampler, canvas, places)
    with pytest.raises(ValueError, match="positions wait to be fed: at most 4 fit"):
        draw_at(sampler, canvas, [2, 7, 9, 11])


def test_after_truncating_to_the_first_gap_drawing_goes_on_as_plain() -> None:
    sampler = make_sampler()
    canvas, usage = with_gaps(sampler, key=1)
    # What is refused leaves the canvas as it was.
    for misuse in (
        *misuses(sampler, canvas),
        lambda: draw_at(sampler, canvas, [1]),
        lambda: draw_at(sampler, canvas, [2, 7, 9, 11]),
    ):
        with pytest.raises(ValueError):
            misuse()
    sampler.truncate(canvas, 2)
    assert usage.discarded == 1
    plain = sampler.open(*sampler.contexts(TEXTS[1]), key=1, usage=Usage())
    assert finish(sampler, canvas) == finish(sampler, plain)


def test_closing_a_canvas_discards_what_lies_behind_its_gaps_too() -> None:
    sampler = make_sampler()
    canvas, usage = with_gaps(sampler, key=2)
    sampler.close(canvas)
    assert usage.discarded == 3


@pytest.mark.parametrize("options", [{"window": 0}, {"parallel": 0}])
def test_values_out_of_range_are_refused(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=f"method.{name}=0: must be at least 1"):
        ZipAR(**options)
