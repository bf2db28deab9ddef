"""Reduction laws: a method with its options switched off is the simpler method, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from toy import TEXTS, PixelSum, ToyModel, draw, jobs

from harness.engine.acceptance import Draft, Rule, coupled, exact
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling
from harness.engine.probes import entropy
from harness.engine.rendering import Image
from harness.engine.sampler import Sampler
from harness.engine.session import Method, Session
from harness.records import Usage, UserError
from methods.best_of_n import BestOfN, index_of_best
from methods.plain import Plain


def tokens(method: Method, **options: Any) -> dict[tuple[str, int], tuple[int, ...]]:
    """The tokens that a method draws, by job."""
    deliveries = draw(method, jobs(TEXTS, images=2), **options)
    assert not any(delivery.error for delivery in deliveries.values())
    return {key: delivery.tokens for key, delivery in deliveries.items()}


def first_tokens(drawn: dict[tuple[str, int], tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The tokens of each prompt's first image, by the text."""
    return {text: drawn[f"toy/{i:05d}", 0] for i, text in enumerate(TEXTS)}


# ------------------------------------------------------------------ plain sampling by other names


def test_best_of_one_is_plain() -> None:
    assert tokens(BestOfN(1, PixelSum())) == tokens(BestOfN(1)) == tokens(Plain())


class Stepper(Plain):
    """Plain sampling by hand: look at every token first, or just step."""

    def __init__(self, look: bool) -> None:
        self.look = look

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        while not canvas.done:
            if self.look:
                await s.look([canvas], entropy)
            assert await s.step([canvas]) == [0]
        return canvas


def test_look_then_step_is_step_and_step_by_hand_is_run() -> None:
    plain = draw(Plain(), jobs(TEXTS))
    for by_hand in (Stepper(look=True), Stepper(look=False)):
        drawn = draw(by_hand, jobs(TEXTS))
        for key, delivery in plain.items():
            assert drawn[key].tokens == delivery.tokens
            assert drawn[key].usage.target_passes == delivery.usage.target_passes
            assert drawn[key].usage.target_positions == delivery.usage.target_positions


# ------------------------------------------------------------------ Best-of-N


class Spy:
    """A reward that keeps the images it is shown, and likes all of them alike."""

    id = "spy"

    def __init__(self) -> None:
        self.images: dict[str, list[bytes]] = {}

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[float]:
        for text, image in zip(texts, images, strict=True):
            self.images.setdefault(text, []).append(image.tobytes())
        return [0.0] * len(texts)


def test_candidates_of_best_of_4_are_the_first_of_best_of_8() -> None:
    four = Spy()
    eight = Spy()
    draw(BestOfN(4, four), jobs(TEXTS), slots=32)
    draw(BestOfN(8, eight), jobs(TEXTS), slots=32)
    plain = draw(Plain(), jobs(TEXTS))
    for i, text in enumerate(TEXTS):
        image = plain[f"toy/{i:05d}", 0].image
        assert image is not None
        assert four.images[text] == eight.images[text][:4]
        assert four.images[text][0] == image.tobytes()
        assert len(set(eight.images[text])) == 8


def test_the_largest_score_wins_ties_go_first_and_the_unscorable_lose() -> None:
    assert index_of_best([0.1, 0.7, 0.7, -1.0]) == 1
    assert index_of_best([None, float("nan"), -5.0]) == 2
    assert index_of_best([None, None]) == 0
    with pytest.raises(UserError, match=r"method\.n=0"):
        BestOfN(0)


# ------------------------------------------------------------------ speculation


class Guessing(Plain):
    """Speculation with a drafter that guesses: what plain draws, with some tokens wrong.

    `wrong` 0 is always right; otherwise the tokens from place `wrong` of a draft on are wrong.
    """

    def __init__(
        self, truth: dict[str, tuple[int, ...]], rule: Rule, tokens_per_step: int, wrong: int
    ) -> None:
        self.truth = truth
        self.rule = rule
        self.tokens_per_step = tokens_per_step
        self.wrong = wrong
        self.accepted = 0

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        while not canvas.done:
            n = min(self.tokens_per_step - 1, s.num_tokens - canvas.length - 1)
            draft = self.guess(prompt, canvas.length, n) if n else None
            (count,) = await s.step([canvas], [draft], self.rule)
            self.accepted += count
        return canvas

    def guess(self, prompt: str, place: int, n: int) -> Draft:
        guess = torch.tensor(self.truth[prompt][place : place + n], dtype=torch.int64)
        if self.wrong:
            guess[self.wrong % n :] += 1
        return Draft(guess % 32)


@pytest.mark.parametrize("tokens_per_step", [2, 3, 4, 6])
@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_coupled_speculation_is_plain_for_any_drafter(tokens_per_step: int, wrong: int) -> None:
    plain = tokens(Plain())
    method = Guessing(first_tokens(plain), coupled, tokens_per_step, wrong)
    assert tokens(method) == plain
    assert method.accepted > 0


def test_greedy_speculation_is_greedy_plain() -> None:
    greedy = Sampling(scale=2.0, temperature=0.0)
    plain = tokens(Plain(), sampling=greedy)
    for wrong in (0, 2):
        method = Guessing(first_tokens(plain), exact, 4, wrong)
        assert tokens(method, sampling=greedy) == plain


def test_a_right_draft_saves_passes_and_every_token_is_counted() -> None:
    plain = draw(Plain(), jobs(TEXTS))
    truth = first_tokens({key: delivery.tokens for key, delivery in plain.items()})
    for key, delivery in draw(Guessing(truth, coupled, 4, 0), jobs(TEXTS)).items():
        usage = delivery.usage
        assert usage.sampled == 16
        # the last token is never fed; every guess was right
        assert usage.target_positions == 2 * 15
        assert plain[key].usage.target_passes - usage.target_passes >= 16 - 4 - 1


def test_a_draft_that_does_not_fit_is_refused() -> None:
    model = ToyModel()
    sampler = Sampler(model, Sampling(), slots=2, tokens_per_step=2)
    canvas = sampler.open(*sampler.contexts("a cat"), key=1, usage=Usage())
    with pytest.raises(ValueError, match="draft of 2 tokens, 2 deep, at 0: at most 1 fit"):
        sampler.forward([canvas], [Draft(torch.tensor([1, 2]))])
