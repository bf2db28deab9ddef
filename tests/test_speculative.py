"""Speculative decoding with a draft model: lossless where it says so, ragged, honestly counted."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from test_batch_invariance import costs
from test_exactness import joint_probs, p_value
from torch import Tensor
from toy import TEXTS, PixelSum, ToyModel, draw, draw_pairs, jobs

from harness.drafters.model import DraftModel
from harness.engine.acceptance import Drafts, coupled, exact
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import Static, Tree
from harness.engine.guidance import Sampling, cfg
from harness.engine.session import Session
from harness.kernels.noise import Noise
from harness.records import UserError
from methods.best_of_n import BestOfN
from methods.plain import Plain
from methods.speculative import Speculative

BUSHY = Static({"": 2, "0": 2, "1": 1, "10": 1})


def drafter(seed: int = 9, guided: bool = True, like: ToyModel | None = None) -> DraftModel:
    """A toy draft model with the target's codebook and other weights; seed 0 has the target's."""

    def make(device: object = "cpu") -> ToyModel:
        target = like or ToyModel()
        made = ToyModel(grid=target.grid, vocab=target.vocab, seed=seed, device=str(device))
        made.codebook = target.codebook
        return made

    return DraftModel(make, guided)


# --- the same tokens as plain sampling ------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("guided", [True, False])
def test_coupled_is_plain_for_any_drafter(gamma: int, guided: bool) -> None:
    plain = draw(Plain(), jobs(TEXTS, images=2))
    method = Speculative(drafter(guided=guided), gamma, coupled)
    for key, delivery in draw(method, jobs(TEXTS, images=2)).items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens


@pytest.mark.parametrize("seed", [0, 9])
def test_greedy_speculation_is_greedy_plain(seed: int) -> None:
    greedy = Sampling(scale=2.0, temperature=0.0)
    plain = draw(Plain(), jobs(TEXTS), sampling=greedy)
    for key, delivery in draw(Speculative(drafter(seed)), jobs(TEXTS), sampling=greedy).items():
        assert delivery.tokens == plain[key].tokens


def test_candidates_drawn_speculatively_are_those_of_plain_sampling() -> None:
    best = draw(BestOfN(3, PixelSum()), jobs(TEXTS))
    method = BestOfN(3, PixelSum(), Speculative(drafter(), 3, coupled))
    for key, delivery in draw(method, jobs(TEXTS)).items():
        accepted = delivery.notes["accepted"]
        assert not delivery.error
        assert delivery.tokens == best[key].tokens
        assert sum((a + 1) * count for a, count in enumerate(accepted)) == 3 * 16
        assert delivery.usage.target_passes <= best[key].usage.target_passes


# --- the same distribution as plain sampling ------------------------------------------------------


PAIRS = 5_000
"""So many that a rule which accepts 8 % too much is seen."""


@pytest.fixture(scope="module")
def tiny() -> ToyModel:
    return ToyModel(grid=(1, 2), vocab=5, seed=4)


def test_exact_keeps_the_joint_law_through_the_whole_sampler(tiny: ToyModel) -> None:
    sampling = Sampling(scale=2.0, top_k=4)
    joint = joint_probs(tiny, sampling)
    possible = joint > 0
    method = Speculative(drafter(like=tiny), gamma=1)
    pairs = draw_pairs(method, PAIRS, tiny, sampling)
    assert not (~possible)[pairs].any()
    cell = torch.cumsum(possible, 0) - 1
    assert p_value(cell[pairs], joint[possible]) > 1e-3


def lenient(probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """A wrong rule: it tests the draft token with 8 % more than its probability."""
    token_RT1 = torch.nn.functional.pad(drafts.token_RG, (0, 1)).unsqueeze(-1)
    surplus_RT1 = torch.full_like(probs_RTV[..., :1], 0.08)
    return exact(probs_RTV.scatter_add(2, token_RT1, surplus_RT1), drafts, noise)


def test_the_test_sees_a_rule_that_accepts_too_much(tiny: ToyModel) -> None:
    sampling = Sampling(scale=2.0)
    method = Speculative(drafter(like=tiny), gamma=1, rule=lenient)
    pairs = draw_pairs(method, PAIRS, tiny, sampling)
    assert p_value(pairs, joint_probs(tiny, sampling)) < 1e-6


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [Sampling(scale=2.0), Sampling(scale=1.0, top_k=5), Sampling(scale=3.0, top_p=0.9)]
)
def test_the_target_as_its_own_drafter_is_always_accepted(sampling: Sampling) -> None:
    """Three drafts of 4 tokens and one more each; then the last token, for which no draft fits."""
    branches = 1 if sampling.scale == 1 else 2
    method = Speculative(drafter(seed=0), gamma=4)
    for delivery in draw(method, jobs(TEXTS), sampling=sampling).values():
        assert delivery.notes["accepted"] == [1, 0, 0, 0, 3]
        assert delivery.usage.target_positions == branches * 15


def test_counts_are_exact() -> None:
    deliveries = draw(Speculative(drafter(), gamma=3), jobs(TEXTS, images=3))
    assert len({tuple(d.notes["accepted"]) for d in deliveries.values()}) > 1  # rows are ragged
    for delivery in deliveries.values():
        usage = delivery.usage
        accepted = delivery.notes["accepted"]
        verifications = sum(accepted)
        assert usage.sampled == 16 == sum(count * (a + 1) for a, count in enumerate(accepted))
        assert usage.skipped == usage.discarded == 0
        assert usage.target_positions < 2 * verifications * 4
        assert usage.drafted_positions >= 2 * (verifications - 1)  # two branches


@pytest.mark.parametrize("gamma", [1, 4, 15])
def test_the_last_draft_ends_with_the_image(gamma: int) -> None:
    """Drafts are cut so that one more token fits: nothing is drafted after the image's end."""
    whole, rest = divmod(16, gamma + 1)
    expected = [0] * (gamma + 1)
    expected[gamma] = whole
    if rest:
        expected[rest - 1] += 1
    method = Speculative(drafter(seed=0), gamma, exact)
    for delivery in draw(method, jobs(TEXTS, images=2)).values():
        assert len(delivery.tokens) == delivery.usage.sampled == 16
        assert delivery.notes["accepted"] == expected


def test_what_else_is_in_the_batch_changes_nothing() -> None:
    some = jobs(TEXTS, images=2)
    together = draw(Speculative(drafter(), gamma=3), some)
    for others in (some[::-1], some[3:4]):
        for key, delivery in draw(Speculative(drafter(), gamma=3), others).items():
            assert delivery.tokens == together[key].tokens
            assert costs(delivery.usage) == costs(together[key].usage)


# --- details of drafting --------------------------------------------------------------------------


class Level(ToyModel):
    """A model to which all tokens are equally likely."""

    def head(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(super().head(hidden))


def test_a_tie_at_the_kth_token_survives_in_target_and_draft() -> None:
    """Where all logits are equal top-k keeps every token, for the drafter as for the target.

    All drafts are accepted, then.
    """
    flat = DraftModel(lambda device="cpu": Level())
    sampling = Sampling(scale=2.0, top_k=3)
    plain = draw(Plain(), jobs(TEXTS), model=Level(), sampling=sampling)
    one_by_one = Speculative(flat, 3, coupled)
    for key, delivery in draw(one_by_one, jobs(TEXTS), model=Level(), sampling=sampling).items():
        assert delivery.tokens == plain[key].tokens
        assert max(delivery.tokens) >= 3  # more tokens than three
    strict = Speculative(flat, 3, exact)
    for delivery in draw(strict, jobs(TEXTS), model=Level(), sampling=sampling).values():
        assert delivery.notes["accepted"] == [0, 0, 0, 4]


class Turning(Speculative):
    """Speculative decoding that draws the second half of the image from another prompt."""

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        while not canvas.done:
            if canvas.length == 0:
                s.condition(canvas, (None, prompt), cfg)
            elif canvas.length >= 8:
                s.condition(canvas, (None, "one"), cfg)
            drafts = await s.draft(self.drafter, [canvas], self.gamma)
            await s.step([canvas], drafts, rule=self.rule)
        return canvas


def test_a_re_prompted_canvas_is_drafted_with_its_new_text() -> None:
    """The target drafts for itself, so that a draft of the old text alone could be rejected."""
    for delivery in draw(Turning(drafter(seed=0), 3), jobs(TEXTS)).values():
        assert not delivery.error
        assert delivery.usage.target_positions <= 2 * (15 + 15 + 8)


# --- refusals -------------------------------------------------------------------------------------


class Alternating(Speculative):
    """Drafts a chain and a tree in turn, by one drafter."""

    rows = 1
    branches = 2

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        step = 0
        while not canvas.done:
            drafts = await s.draft(self.drafter, [canvas], self.shape_of(prompt, step))
            await s.step([canvas], drafts, coupled)
            step += 1
        return canvas

    def shape_of(self, prompt: str, step: int) -> int | Tree:
        """Choose a shape; jobs that are drawn together do not draft in the same one."""
        return (2, BUSHY)[(len(prompt) + step) % 2]


def test_one_drafter_drafts_chains_and_trees() -> None:
    plain = draw(Plain(), jobs(TEXTS))
    together = draw(Alternating(drafter(), BUSHY), jobs(TEXTS))
    for key, delivery in together.items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens
    for job in jobs(TEXTS)[:2]:
        (alone,) = draw(Alternating(drafter(), BUSHY), [job]).values()
        assert costs(alone.usage) == costs(together[job.key].usage)


class SlowText(ToyModel):
    """A model whose text encoder takes its time."""

    pause_s = 0.05

    def context(self, text: str | None, like: str) -> Tensor:
        time.sleep(self.pause_s)
        return super().context(text, like)


def test_the_draft_models_text_encoder_is_charged() -> None:
    draft_model = SlowText(seed=9)
    draft_model.codebook = ToyModel().codebook
    method = Speculative(DraftModel(lambda device="cpu": draft_model), 3)
    (delivery,) = draw(method, jobs(TEXTS[:1])).values()
    contexts = 2  # the null prompt's and the text's
    assert delivery.usage.draft_s > contexts * SlowText.pause_s


def test_a_decodings_parts_are_checked_too() -> None:
    wrong = Speculative(DraftModel(lambda device="cpu": ToyModel(vocab=16)))
    with pytest.raises(UserError, match="vocab is 16"):
        draw(BestOfN(2, PixelSum(), wrong), jobs(TEXTS))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda device="cpu": ToyModel(vocab=16), r"vocab is 16, the model's is 32"),
        (lambda device="cpu": ToyModel(grid=(2, 4)), r"grid is \(2, 4\), the model's is \(4, 4\)"),
        (lambda device="cpu": ToyModel(seed=1), "another tokenizer"),
    ],
)
def test_a_drafter_of_another_kind_is_refused_before_any_compute(
    make: Callable[..., ToyModel], complaint: str
) -> None:
    model = ToyModel()
    with pytest.raises(UserError, match=complaint):
        draw(Speculative(DraftModel(make)), jobs(TEXTS), model=model)
    assert model.forwards == 0


def test_drafts_that_do_not_fit_are_refused_before_any_compute() -> None:
    model = ToyModel()
    with pytest.raises(UserError, match=r"method\.gamma=0"):
        Speculative(drafter(), gamma=0)
    complaint = r"sampler\.tokens_per_step=2 is too small: the method needs 5"
    with pytest.raises(UserError, match=complaint):
        draw(Speculative(drafter()), jobs(TEXTS), model=model, tokens_per_step=2)
    assert model.forwards == 0
