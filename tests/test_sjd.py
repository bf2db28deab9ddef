"""Jacobi decoding: the target drafts for itself, and keeps its law, or with coupled noise its
tokens.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_batch_invariance import costs
from test_exactness import Joint, generous, joint_probs, p_value
from torch import Tensor
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.drafters.jacobi import COUPLINGS, INITS, Jacobi, JacobiWindow, keep_or_redraw
from harness.engine.acceptance import Drafts, Rule, coupled, exact
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.kernels.noise import Noise
from harness.records import Usage, UserError
from methods.best_of_n import BestOfN
from methods.lantern import Lantern
from methods.plain import Plain
from methods.sjd import SJD

DRAWS = 30_000
TOKENS = 4


def decoded(drafter: Jacobi, rule: Rule, target: Joint, window: int = TOKENS) -> Tensor:
    """Numbers of DRAWS images of four tokens, decoded by the drafter's own arithmetic and the rule,
    round by round.

    Rows advance at their own pace: all that stand at one place are verified together before the
    next place's.
    """
    key_R2 = torch.randint(0, 2**32, (DRAWS, 2), generator=torch.Generator().manual_seed(5))
    token_RN = torch.zeros((DRAWS, TOKENS), dtype=torch.int64)
    at_R = torch.zeros_like(token_RN[:, 0])
    left_R = torch.zeros_like(token_RN[:, 0])
    old_RN = token_RN.clone()
    probs_RNV = torch.zeros((DRAWS, TOKENS, 4), dtype=torch.float64)
    old_probs_RNV = torch.zeros_like(probs_RNV)
    likeliest_R = torch.zeros_like(at_R)
    for place in range(TOKENS):
        (row,) = torch.where(at_R == place)
        room = min(window, TOKENS - place) - 1
        here = slice(place, place + room)
        behind = slice(place, place + room + 1)
        noise = Noise(key_R2[row], (place + torch.arange(room + 1)).expand(len(row), -1))
        token = token_RN[row]
        probs = probs_RNV[row, here]
        count = left_R[row].clamp(max=room)
        probs = torch.where((torch.arange(room) < count[:, None]).unsqueeze(-1), probs, 0)
        if room:
            past = JacobiWindow(
                probs, count, old_RN[row, here], old_probs_RNV[row, here], token, likeliest_R[row]
            )
            token[:, here], probs = drafter.fill(
                past, Noise(noise.key_R2, noise.position_RT[:, :-1]), grid_width=2
            )
        probs_RTV = torch.stack([target.after(t, token) for t in range(place, place + room + 1)], 1)
        drafts = Drafts(token[:, here].clone(), probs, torch.full((len(row),), room))
        path_RG, next_R = (rule if room else exact)(probs_RTV, drafts, noise)
        accepted = (path_RG >= 0).sum(1)
        old_RN[row, here] = drafts.token_RG
        old_probs_RNV[row, here] = probs
        probs_RNV[row, behind] = probs_RTV
        token_RN[row] = token.scatter(1, place + accepted[:, None], next_R[:, None])
        at_R[row] = place + accepted + 1
        left_R[row] = room - accepted
        likeliest_R[row] = probs_RTV[:, -1].argmax(-1)
    return token_RN @ torch.tensor([64, 16, 4, 1])


def fits(number_R: Tensor, target: Joint) -> float:
    """p-value of the images' joint law; images expected less than five times are counted
    together.
    """
    probs = target.whole()
    rare = probs * len(number_R) < 5
    cell = torch.where(rare, 0, (~rare).cumsum(0))
    return p_value(
        cell[number_R],
        torch.zeros(int(cell.max()) + 1, dtype=probs.dtype).index_add(0, cell, probs),
    )


@pytest.mark.parametrize(
    ("init", "coupling", "window"),
    [
        *((init, "none", 4) for init in INITS),
        *(
            (init, coupling, 4)
            for init in ("uniform", "random")
            for coupling in ("maximal", "gumbel")
        ),
        ("sample_horizon", "maximal", 3),
    ],
)
def test_it_keeps_the_joint_law(init: str, coupling: str, window: int) -> None:
    target = Joint(3, TOKENS)
    drawn = decoded(Jacobi(init, coupling), exact, target, window)
    assert (target.whole() > 0)[drawn].all()
    assert fits(drawn, target) > 1e-3


class OldLaw(Jacobi):
    """What the released MC scheduler does (junhyukso/SCD): a token that was kept keeps the law it
    came from.
    """

    def fill(
        self, past: JacobiWindow, noise: Noise, grid_width: int, sibling: int = 0
    ) -> tuple[Tensor, Tensor]:
        token_RG, probs_RGV = super().fill(past, noise, grid_width, sibling)
        kept_RG = (token_RG == past.old_RG) & (past.old_probs_RGV.amax(-1) > 0)
        return token_RG, torch.where(kept_RG.unsqueeze(-1), past.old_probs_RGV, probs_RGV)


class OldNoise(Jacobi):
    """Keeps a token by the very chance that will accept it later."""

    def fill(
        self, past: JacobiWindow, noise: Noise, grid_width: int, sibling: int = 0
    ) -> tuple[Tensor, Tensor]:
        token_RG, probs_RGV = super().fill(past, noise, grid_width, sibling)
        kept_RG = keep_or_redraw(past.old_RG, past.old_probs_RGV, past.probs_RGV, noise)
        return torch.where(past.old_probs_RGV.amax(-1) > 0, kept_RG, token_RG), probs_RGV


class OldDrafts(Jacobi):
    """Proposes its old tokens again, as if they had been drawn from the new laws."""

    def fill(
        self, past: JacobiWindow, noise: Noise, grid_width: int, sibling: int = 0
    ) -> tuple[Tensor, Tensor]:
        token_RG, probs_RGV = super().fill(past, noise, grid_width, sibling)
        return torch.where(past.old_probs_RGV.amax(-1) > 0, past.old_RG, token_RG), probs_RGV


@pytest.mark.parametrize(
    ("drafter", "rule"),
    [
        (Jacobi("random"), generous),
        (Jacobi("random", "maximal"), generous),
        (Jacobi("random", "gumbel"), generous),
        (OldLaw("uniform", "maximal"), exact),
        (OldNoise("uniform", "maximal"), exact),
        (OldDrafts("random", "none"), exact),
    ],
)
def test_a_bug_of_two_percent_and_every_reuse_that_forgets_the_law_show(
    drafter: Jacobi, rule: Rule
) -> None:
    target = Joint(3, TOKENS)
    drawn = decoded(drafter, rule, target)
    assert (
        fits(drawn[(target.whole() > 0)[drawn]], target) < 1e-6
    )  # even without the images that cannot be


def test_drafts_follow_their_recorded_law_whatever_the_coupling() -> None:
    old = torch.tensor([0.5, 0.3, 0.2, 0.0]).double()
    new = torch.tensor([0.2, 0.3, 0.1, 0.4]).double()
    key_R2 = torch.randint(0, 2**32, (DRAWS, 2), generator=torch.Generator().manual_seed(6))
    noise = Noise(key_R2, torch.full((DRAWS, 1), 3))
    old_RG = noise.race(9, old.expand(DRAWS, 1, -1))
    past = JacobiWindow(
        new.expand(DRAWS, 1, -1),
        torch.ones(DRAWS).long(),
        old_RG,
        old.expand(DRAWS, 1, -1),
        old_RG,
        old_RG,
    )
    kept = {}
    for coupling in COUPLINGS:
        token_RG, probs_RGV = Jacobi("random", coupling).fill(past, noise, grid_width=2)
        assert p_value(token_RG[:, 0], new) > 1e-3
        assert torch.equal(probs_RGV, past.probs_RGV)
        kept[coupling] = (token_RG == old_RG).double().mean().item()
    assert kept["maximal"] == pytest.approx(torch.minimum(old, new).sum().item(), abs=4e-3)
    assert kept["none"] == pytest.approx((old * new).sum().item(), abs=4e-3)


def test_the_whole_sampler_keeps_the_joint_law() -> None:
    tiny = ToyModel(grid=(1, 3), vocab=5, seed=4)
    sampling = Sampling(scale=2.0, top_k=4)
    method = SJD(Jacobi("uniform", "maximal"), 3)
    deliveries = draw(method, jobs(["a cat"], 1_200), model=tiny, sampling=sampling, slots=512)
    drawn = torch.tensor([d.tokens[0] * 5 + d.tokens[1] for d in deliveries.values()])
    joint = joint_probs(tiny, sampling)
    kept = joint > 0
    assert kept[drawn].all()
    assert p_value((torch.cumsum(kept, 0) - 1)[drawn], joint[kept]) > 1e-3
    wrong = joint_probs(tiny, Sampling(scale=2.8, top_k=4))
    assert p_value((torch.cumsum(kept, 0) - 1)[drawn], wrong[kept]) < 1e-6


@pytest.mark.parametrize(
    ("init", "coupling", "window"),
    [*((init, "gumbel", 6) for init in INITS), ("uniform", "none", 2), ("random", "maximal", 16)],
)
def test_coupled_noise_is_plain_token_for_token(init: str, coupling: str, window: int) -> None:
    plain = draw(Plain(), jobs(TEXTS, images=2))
    for key, delivery in draw(
        SJD(Jacobi(init, coupling), window, coupled), jobs(TEXTS, images=2)
    ).items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens


@pytest.mark.parametrize(
    ("init", "coupling"), [*((init, "none") for init in INITS), ("uniform", "maximal")]
)
def test_greedy_is_greedy_plain(init: str, coupling: str) -> None:
    greedy = Sampling(scale=2.0, temperature=0.0)
    plain = draw(Plain(), jobs(TEXTS), sampling=greedy)
    for key, delivery in draw(SJD(Jacobi(init, coupling), 6), jobs(TEXTS), sampling=greedy).items():
        assert delivery.tokens == plain[key].tokens


def advance(
    sampler: Sampler, canvas: Canvas, until: int, drafter: Jacobi | None
) -> tuple[int, ...]:
    """Draw up to `until` tokens, by drafts that end there."""
    while canvas.length < until:
        drafts = (
            drafter.propose(sampler, [canvas], min(4, until - canvas.length - 1))
            if drafter
            else [None]
        )
        sampler.forward([canvas], drafts)
        sampler.draw([canvas], drafts, coupled)
    return canvas.tokens


@pytest.mark.parametrize("device", DEVICES)
def test_forks_truncations_and_new_texts_keep_the_tokens_of_plain(device: str) -> None:
    model = ToyModel(device=device)

    def wandered(drafter: Jacobi | None) -> list[tuple[int, ...]]:
        sampler = Sampler(model, Sampling(scale=2.0), slots=8, tokens_per_step=5, prefill=(2, 4))
        source, copy = (
            sampler.open(*sampler.contexts(TEXTS[1]), key=key, usage=Usage()) for key in (1, 2)
        )
        advance(sampler, copy, 3, drafter)
        seen = [advance(sampler, source, 6, drafter)]
        sampler.fork(source, over=copy)
        assert sampler.verdict(copy) is None
        seen += [advance(sampler, each, 9, drafter) for each in (copy, source)]
        sampler.truncate(source, 7)
        assert sampler.verdict(source) is None
        sampler.condition(copy, sampler.contexts("one")[0], copy.guide)
        assert sampler.verdict(copy) is None
        sampler.commit(source, [3, 4])
        return seen + [advance(sampler, each, 16, drafter) for each in (copy, source)]

    plain = wandered(None)
    for init in INITS:
        assert wandered(Jacobi(init, "gumbel")) == plain


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_batch_invariance_and_interruption_change_nothing(coupling: str, device: str) -> None:
    def method() -> SJD:
        return SJD(Jacobi("uniform", coupling), 5)

    some = jobs(TEXTS, images=2)
    model = ToyModel(grid=(3, 5), vocab=31, dtype=torch.float32, device=device)
    together = draw(method(), some, model=model)
    assert len({tuple(d.notes["accepted"]) for d in together.values()}) > 1  # rows are ragged
    for other in (some[::-1], some[3:4]):
        for key, delivery in draw(method(), other, model=model).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


def test_counts_are_exact() -> None:
    for delivery in draw(SJD(Jacobi(), 5), jobs(TEXTS, images=3)).values():
        usage = delivery.usage
        accepted = delivery.notes["accepted"]
        rounds = sum(accepted)
        assert usage.sampled == 16 == sum(count * (a + 1) for a, count in enumerate(accepted))
        assert usage.skipped == usage.discarded == usage.drafted_positions == 0
        assert rounds <= 16
        assert usage.target_positions <= 2 * (
            5 * rounds - 1
        )  # two branches; the first window begins with the prompt
        assert usage.device_s > 0


def test_laws_that_do_not_change_are_accepted() -> None:
    """Where a law does not depend on what was drawn before, every draft that has one passes."""
    model = ToyModel()
    model.output.weight.data.zero_()
    sampler = Sampler(model, Sampling(scale=2.0), slots=8, tokens_per_step=6, prefill=(2, 4))
    canvas = sampler.open(*sampler.contexts(TEXTS[1]), key=1, usage=Usage())
    drafter = Jacobi()
    while not canvas.done:
        verdict = sampler.verdict(canvas)
        left = 0 if verdict is None else len(verdict.draft) - verdict.accepted
        drafts = drafter.propose(sampler, [canvas], 5)
        sampler.forward([canvas], drafts)
        (accepted,) = sampler.draw([canvas], drafts, exact)
        assert accepted >= min(left, len(drafts[0] or ()))


def test_what_is_made_up_is_what_the_option_says() -> None:
    """A grid four wide, five tokens committed, the next two with laws that leave no choice."""
    probs = torch.eye(9).double()[[7, 8]]
    past = JacobiWindow(
        probs_RGV=torch.cat((probs, torch.zeros(7, 9).double()))[None],
        verified_R=torch.tensor([2]),
        old_RG=torch.zeros((1, 9), dtype=torch.int64),
        old_probs_RGV=torch.zeros((1, 9, 9)).double(),
        image_RN=torch.tensor([[1, 2, 3, 4, 5] + [0] * 11]),
        likeliest_R=torch.tensor([6]),
    )
    noise = Noise(torch.tensor([[3, 4]]), torch.arange(5, 14)[None])
    made = {init: Jacobi(init).fill(past, noise, 4) for init in INITS}
    for token_RG, probs_RGV in made.values():
        assert token_RG[0, :2].tolist() == [7, 8]
        assert probs_RGV.sum(-1).allclose(torch.ones(1, 9).double())
        assert (probs_RGV.gather(-1, token_RG.unsqueeze(-1)) > 0).all()
    assert made["uniform"][1][0, 2:].eq(1 / 9).all()
    random, horizon, vertical, sample = (
        made[init][0][0].tolist() for init in INITS if init != "uniform"
    )
    assert len(set(random[2:])) > 2
    assert horizon[2] == 8  # the rest of its row; then rows that begin with a random token
    assert horizon[3:7] == [random[3]] * 4
    assert horizon[7:] == [random[7]] * 2
    assert vertical == [7, 8, 4, 5, 7, 8, 4, 5, 7]
    assert sample[2] == 6
    assert sample[3:] == horizon[3:]
    first = replace(past, verified_R=torch.tensor([0]), probs_RGV=torch.zeros((1, 9, 9)).double())
    begun = (
        Jacobi("repeat_vertical")
        .fill(first, Noise(noise.key_R2, torch.arange(9)[None]), 4)[0][0]
        .tolist()
    )
    assert begun[4:8] == begun[:4]
    assert len(set(begun[:4])) > 1


def test_lanterns_relaxation_shortens_it() -> None:
    def rounds(rule: Rule) -> int:
        deliveries = draw(SJD(Jacobi("uniform", "maximal"), 6, rule), jobs(TEXTS, 3))
        assert not any(delivery.error for delivery in deliveries.values())
        return sum(sum(d.notes["accepted"]) for d in deliveries.values())

    assert rounds(Lantern(8, delta=0.5)) < rounds(exact)


def test_it_draws_the_candidates_of_other_methods() -> None:
    best = draw(BestOfN(2, PixelSum()), jobs(TEXTS))
    method = BestOfN(2, PixelSum(), decoding=SJD(Jacobi("uniform", "gumbel"), 5, coupled))
    for key, delivery in draw(method, jobs(TEXTS)).items():
        assert delivery.tokens == best[key].tokens


def test_a_verdict_is_kept_for_those_who_ask() -> None:
    sampler = Sampler(ToyModel(), Sampling(scale=2.0), slots=8, tokens_per_step=5, prefill=(2, 4))
    canvas = sampler.open(*sampler.contexts(TEXTS[1]), key=1, usage=Usage())
    drafts = Jacobi().propose(sampler, [canvas], 4)
    for followed in (True, False):
        sampler.forward([canvas], drafts)
        sampler.draw(
            [canvas], [replace(d, followed=followed) if d else None for d in drafts], exact
        )
        assert (sampler.verdict(canvas) is not None) == followed


def test_windows_that_do_not_fit_are_refused_before_any_compute() -> None:
    model = ToyModel()
    with pytest.raises(
        UserError, match=r"method\.window=17: the image has 16 tokens; set method\.window=16"
    ):
        draw(SJD(Jacobi(), 17), jobs(TEXTS), model=model)
    with pytest.raises(
        UserError, match=r"method\.window=1: must be at least 2; a window of 1 is method=plain"
    ):
        SJD(Jacobi(), 1)
    with pytest.raises(
        UserError, match=r"sampler\.tokens_per_step=4 is too small: the method needs 5"
    ):
        draw(SJD(Jacobi(), 5), jobs(TEXTS), model=model, tokens_per_step=4)
    with pytest.raises(UserError, match=r"drafter\.init=zeros: choose from random, uniform"):
        Jacobi("zeros")
    with pytest.raises(
        UserError, match=r"drafter\.coupling=tight: choose from none, maximal, gumbel"
    ):
        Jacobi(coupling="tight")
    assert model.forwards == 0
