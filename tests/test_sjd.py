"""Jacobi decoding: the target drafts for itself.

It keeps the target's law, or with coupled noise the tokens of plain sampling.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_batch_invariance import costs
from test_exactness import Joint, generous, joint_probs, p_value
from torch import Tensor
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, draw_pairs, jobs

from harness.drafters.jacobi import COUPLINGS, INITS, Jacobi, JacobiWindow, keep_or_redraw
from harness.engine.acceptance import Draft, Drafts, Rule, coupled, exact
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling, cfg
from harness.engine.sampler import Sampler
from harness.kernels.noise import Noise
from harness.records import Usage, UserError
from methods.best_of_n import BestOfN
from methods.lantern import Lantern
from methods.plain import Plain
from methods.sjd import SJD

DRAWS = 30_000
TOKENS = 4


# --- the joint law of a whole image ---------------------------------------------------------------


class Rows:
    """DRAWS images of TOKENS tokens, each at its own place, as a sampler would hold them.

    Shapes: R images or a part of them, N tokens of an image, G places of a window, T = G + 1.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.key_R2 = torch.randint(0, 2**32, (DRAWS, 2), generator=generator)
        self.token_RN = torch.zeros((DRAWS, TOKENS), dtype=torch.int64)
        self.at_R = torch.zeros_like(self.token_RN[:, 0])  # the next place
        # What the last verification left: distributions of the next `verified_R` places, the tokens
        # last drafted at all places, what these were drawn from, and a likeliest token.
        self.probs_RNV = torch.zeros((DRAWS, TOKENS, 4), dtype=torch.float64)
        self.verified_R = torch.zeros_like(self.at_R)
        self.old_RN = self.token_RN.clone()
        self.old_probs_RNV = torch.zeros_like(self.probs_RNV)
        self.likeliest_R = torch.zeros_like(self.at_R)

    def window(self, row: Tensor, here: slice) -> JacobiWindow:
        """What the last verification left of the places `here` of some rows."""
        length = here.stop - here.start
        count_R = self.verified_R[row].clamp(max=length)
        has_probs_RG = torch.arange(length) < count_R[:, None]
        return JacobiWindow(
            torch.where(has_probs_RG.unsqueeze(-1), self.probs_RNV[row, here], 0),
            count_R,
            self.old_RN[row, here],
            self.old_probs_RNV[row, here],
            self.token_RN[row],
            self.likeliest_R[row],
        )


def decoded(drafter: Jacobi, rule: Rule, target: Joint, window: int = TOKENS) -> Tensor:
    """Numbers of DRAWS images, decoded by the drafter's own arithmetic and the rule.

    Rows advance at their own pace: all that stand at a place are verified together, before those
    of the next place.
    """
    rows = Rows()
    for place in range(TOKENS):
        verify_at(place, rows, drafter, rule, target, window)
    return rows.token_RN @ torch.tensor([64, 16, 4, 1])


def verify_at(
    place: int, rows: Rows, drafter: Jacobi, rule: Rule, target: Joint, window: int
) -> None:
    """Draft and verify a window for all rows that stand at a place."""
    (row,) = torch.where(rows.at_R == place)
    length = min(window, TOKENS - place) - 1
    here = slice(place, place + length)
    noise = Noise(rows.key_R2[row], (place + torch.arange(length + 1)).expand(len(row), -1))

    # 1. Draft a window.
    last = rows.window(row, here)
    token_RN = rows.token_RN[row]
    draft_probs_RGV = last.probs_RGV
    if length:
        window_noise = Noise(noise.key_R2, noise.position_RT[:, :-1])
        token_RN[:, here], draft_probs_RGV = drafter.fill(last, window_noise, grid_width=2)

    # 2. Verify it; a window without places is an ordinary draw.
    places = range(place, place + length + 1)
    probs_RTV = torch.stack([target.after(t, token_RN) for t in places], 1)
    lengths = torch.full((len(row),), length)
    drafts = Drafts(token_RN[:, here].clone(), draft_probs_RGV, lengths)
    path_RG, next_R = (rule if length else exact)(probs_RTV, drafts, noise)
    accepted_R = (path_RG >= 0).sum(1)

    # 3. Commit, and record what the next window is made of.
    rows.token_RN[row] = token_RN.scatter(1, place + accepted_R[:, None], next_R[:, None])
    rows.at_R[row] = place + accepted_R + 1
    rows.probs_RNV[row, place : place + length + 1] = probs_RTV
    rows.verified_R[row] = length - accepted_R
    rows.old_RN[row, here] = drafts.token_RG
    rows.old_probs_RNV[row, here] = draft_probs_RGV
    rows.likeliest_R[row] = probs_RTV[:, -1].argmax(-1)


def fits(number_R: Tensor, target: Joint) -> float:
    """p-value of the images' joint law; images expected less than five times count together."""
    probs = target.whole()
    rare = probs * len(number_R) < 5
    cell = torch.where(rare, 0, (~rare).cumsum(0))
    cell_probs = torch.zeros(int(cell.max()) + 1, dtype=probs.dtype).index_add(0, cell, probs)
    return p_value(cell[number_R], cell_probs)


KEEPS_THE_LAW = [
    *((init, "none", 4) for init in INITS),
    ("uniform", "maximal", 4),
    ("uniform", "gumbel", 4),
    ("random", "maximal", 4),
    ("random", "gumbel", 4),
    ("sample_horizon", "maximal", 3),
]


@pytest.mark.parametrize(("init", "coupling", "window"), KEEPS_THE_LAW)
def test_it_keeps_the_joint_law(init: str, coupling: str, window: int) -> None:
    target = Joint(3, TOKENS)
    drawn = decoded(Jacobi(init, coupling), exact, target, window)
    assert (target.whole() > 0)[drawn].all()
    assert fits(drawn, target) > 1e-3


class OldProbs(Jacobi):
    """As the released MC scheduler (junhyukso/SCD): a kept token keeps the law it came from."""

    def fill(
        self, window: JacobiWindow, noise: Noise, grid_width: int, sibling: int = 0
    ) -> tuple[Tensor, Tensor]:
        token_RG, probs_RGV = super().fill(window, noise, grid_width, sibling)
        kept_RG = (token_RG == window.old_RG) & (window.old_probs_RGV.amax(-1) > 0)
        return token_RG, torch.where(kept_RG.unsqueeze(-1), window.old_probs_RGV, probs_RGV)


class OldNoise(Jacobi):
    """Keeps a token by the very chance that will accept it later."""

    def fill(
        self, window: JacobiWindow, noise: Noise, grid_width: int, sibling: int = 0
    ) -> tuple[Tensor, Tensor]:
        token_RG, probs_RGV = super().fill(window, noise, grid_width, sibling)
        kept_RG = keep_or_redraw(window.old_RG, window.old_probs_RGV, window.probs_RGV, noise)
        return torch.where(window.old_probs_RGV.amax(-1) > 0, kept_RG, token_RG), probs_RGV


class OldDrafts(Jacobi):
    """Proposes its old tokens again, as if they had been drawn from the new laws."""

    def fill(
        self, window: JacobiWindow, noise: Noise, grid_width: int, sibling: int = 0
    ) -> tuple[Tensor, Tensor]:
        token_RG, probs_RGV = super().fill(window, noise, grid_width, sibling)
        return torch.where(window.old_probs_RGV.amax(-1) > 0, window.old_RG, token_RG), probs_RGV


@pytest.mark.parametrize(
    ("drafter", "rule"),
    [
        (Jacobi("random"), generous),
        (Jacobi("random", "maximal"), generous),
        (Jacobi("random", "gumbel"), generous),
        (OldProbs("uniform", "maximal"), exact),
        (OldNoise("uniform", "maximal"), exact),
        (OldDrafts("random", "none"), exact),
    ],
)
def test_a_bug_of_two_percent_and_every_reuse_that_forgets_the_law_show(
    drafter: Jacobi, rule: Rule
) -> None:
    """Even without the images that are impossible."""
    target = Joint(3, TOKENS)
    drawn = decoded(drafter, rule, target)
    possible = drawn[(target.whole() > 0)[drawn]]
    assert fits(possible, target) < 1e-6


def test_drafts_follow_their_recorded_law_whatever_the_coupling() -> None:
    old = torch.tensor([0.5, 0.3, 0.2, 0.0]).double()
    new = torch.tensor([0.2, 0.3, 0.1, 0.4]).double()
    key_R2 = torch.randint(0, 2**32, (DRAWS, 2), generator=torch.Generator().manual_seed(6))
    noise = Noise(key_R2, torch.full((DRAWS, 1), 3))
    old_RG = noise.race(9, old.expand(DRAWS, 1, -1))
    window = JacobiWindow(
        new.expand(DRAWS, 1, -1),
        torch.ones(DRAWS).long(),
        old_RG,
        old.expand(DRAWS, 1, -1),
        old_RG,
        old_RG,
    )
    kept = {}
    for coupling in COUPLINGS:
        token_RG, probs_RGV = Jacobi("random", coupling).fill(window, noise, grid_width=2)
        kept[coupling] = (token_RG == old_RG).double().mean().item()
        if coupling == "threshold":  # as PJD's released code has it: what it keeps is biased
            assert p_value(token_RG[:, 0], new) < 1e-6
            continue
        assert p_value(token_RG[:, 0], new) > 1e-3
        assert torch.equal(probs_RGV, window.probs_RGV)
    assert kept["maximal"] == pytest.approx(torch.minimum(old, new).sum().item(), abs=4e-3)
    assert kept["none"] == pytest.approx((old * new).sum().item(), abs=4e-3)


def test_the_whole_sampler_keeps_the_joint_law() -> None:
    tiny = ToyModel(grid=(1, 3), vocab=5, seed=4)
    sampling = Sampling(scale=2.0, top_k=4)
    method = SJD(Jacobi("uniform", "maximal"), 3)
    drawn = draw_pairs(method, 1_200, tiny, sampling)
    joint = joint_probs(tiny, sampling)
    possible = joint > 0
    cell = torch.cumsum(possible, 0) - 1
    assert possible[drawn].all()
    assert p_value(cell[drawn], joint[possible]) > 1e-3
    wrong = joint_probs(tiny, Sampling(scale=2.8, top_k=4))
    assert p_value(cell[drawn], wrong[possible]) < 1e-6


# --- the same tokens as plain sampling ------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "coupling", "window"),
    [*((init, "gumbel", 6) for init in INITS), ("uniform", "none", 2), ("random", "maximal", 16)],
)
def test_coupled_noise_is_plain_token_for_token(init: str, coupling: str, window: int) -> None:
    plain = draw(Plain(), jobs(TEXTS, images=2))
    method = SJD(Jacobi(init, coupling), window, coupled)
    for key, delivery in draw(method, jobs(TEXTS, images=2)).items():
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


def make_sampler(model: ToyModel, tokens_per_step: int = 5) -> Sampler:
    return Sampler(
        model, Sampling(scale=2.0), slots=8, tokens_per_step=tokens_per_step, prefill=(2, 4)
    )


def open_canvas(sampler: Sampler, key: int) -> Canvas:
    return sampler.open(*sampler.contexts(TEXTS[1]), key=key, usage=Usage())


def advance(
    sampler: Sampler, canvas: Canvas, until: int, drafter: Jacobi | None
) -> tuple[int, ...]:
    """Draw up to `until` tokens, by drafts that end there."""
    while canvas.length < until:
        drafts: list[Draft | None] = [None]
        if drafter is not None:
            length = min(4, until - canvas.length - 1)
            drafts = drafter.propose(sampler, [canvas], length)
        sampler.forward([canvas], drafts)
        sampler.draw([canvas], drafts, coupled)
    return canvas.tokens


def wandered(model: ToyModel, drafter: Jacobi | None) -> list[tuple[int, ...]]:
    """Tokens of two canvases between and after all that may be done with them."""
    sampler = make_sampler(model)
    source = open_canvas(sampler, key=1)
    copy = open_canvas(sampler, key=2)
    advance(sampler, copy, 3, drafter)
    seen = [advance(sampler, source, 6, drafter)]

    sampler.fork(source, over=copy)
    assert sampler.verdict(copy) is None
    seen.append(advance(sampler, copy, 9, drafter))
    seen.append(advance(sampler, source, 9, drafter))

    sampler.truncate(source, 7)
    assert sampler.verdict(source) is None
    sampler.condition(copy, sampler.contexts("one")[0], cfg)
    assert sampler.verdict(copy) is None
    sampler.commit(source, [3, 4])
    seen.append(advance(sampler, copy, 16, drafter))
    seen.append(advance(sampler, source, 16, drafter))
    return seen


@pytest.mark.parametrize("device", DEVICES)
def test_forks_truncations_and_new_texts_keep_the_tokens_of_plain(device: str) -> None:
    model = ToyModel(device=device)
    plain = wandered(model, None)
    for init in INITS:
        assert wandered(model, Jacobi(init, "gumbel")) == plain


def test_it_draws_the_candidates_of_other_methods() -> None:
    best = draw(BestOfN(2, PixelSum()), jobs(TEXTS))
    method = BestOfN(2, PixelSum(), decoding=SJD(Jacobi("uniform", "gumbel"), 5, coupled))
    for key, delivery in draw(method, jobs(TEXTS)).items():
        assert delivery.tokens == best[key].tokens


# --- what else is in the batch, and counts --------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_what_else_is_in_the_batch_changes_nothing(coupling: str, device: str) -> None:
    def method() -> SJD:
        return SJD(Jacobi("uniform", coupling), 5)

    some = jobs(TEXTS, images=2)
    model = ToyModel(grid=(3, 5), vocab=31, dtype=torch.float32, device=device)
    together = draw(method(), some, model=model)
    assert len({tuple(d.notes["accepted"]) for d in together.values()}) > 1  # rows are ragged
    for others in (some[::-1], some[3:4]):
        for key, delivery in draw(method(), others, model=model).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


def test_counts_are_exact() -> None:
    for delivery in draw(SJD(Jacobi(), 5), jobs(TEXTS, images=3)).values():
        usage = delivery.usage
        accepted = delivery.notes["accepted"]
        verifications = sum(accepted)
        # Two branches; the first window begins with the prompt.
        most_positions = 2 * (5 * verifications - 1)
        assert usage.sampled == 16 == sum(count * (a + 1) for a, count in enumerate(accepted))
        assert usage.skipped == usage.discarded == usage.drafted_positions == 0
        assert verifications <= 16
        assert usage.target_positions <= most_positions
        assert usage.device_s > 0


def test_laws_that_do_not_change_are_accepted() -> None:
    """Where a law does not depend on what was drawn before, every draft that has one passes."""
    model = ToyModel()
    model.output.weight.data.zero_()
    sampler = make_sampler(model, tokens_per_step=6)
    canvas = open_canvas(sampler, key=1)
    drafter = Jacobi()
    while not canvas.done:
        verdict = sampler.verdict(canvas)
        left = 0 if verdict is None else len(verdict.draft) - len(verdict.path)
        drafts = drafter.propose(sampler, [canvas], 5)
        sampler.forward([canvas], drafts)
        (accepted,) = sampler.draw([canvas], drafts, exact)
        assert accepted >= min(left, len(drafts[0] or ()))


def verifications(rule: Rule) -> int:
    method = SJD(Jacobi("uniform", "maximal"), 6, rule)
    total = 0
    for delivery in draw(method, jobs(TEXTS, 3)).values():
        assert not delivery.error
        total += sum(delivery.notes["accepted"])
    return total


def test_lanterns_relaxation_saves_verifications() -> None:
    assert verifications(Lantern(8, delta=0.5)) < verifications(exact)


def test_a_verdict_is_kept_for_drafts_that_ask() -> None:
    sampler = make_sampler(ToyModel())
    canvas = open_canvas(sampler, key=1)
    proposals = Jacobi().propose(sampler, [canvas], 4)
    for followed in (True, False):
        drafts = [replace(draft, followed=followed) if draft else None for draft in proposals]
        sampler.forward([canvas], proposals)
        sampler.draw([canvas], drafts, exact)
        assert (sampler.verdict(canvas) is not None) == followed


# --- made-up tokens -------------------------------------------------------------------------------

KEY_R2 = torch.tensor([[3, 4]])
CERTAIN_PROBS = torch.eye(9).double()[[7, 8]]
FIVE_COMMITTED = JacobiWindow(
    probs_RGV=torch.cat((CERTAIN_PROBS, torch.zeros(7, 9).double()))[None],
    verified_R=torch.tensor([2]),
    old_RG=torch.zeros((1, 9), dtype=torch.int64),
    old_probs_RGV=torch.zeros((1, 9, 9)).double(),
    image_RN=torch.tensor([[1, 2, 3, 4, 5] + [0] * 11]),
    likeliest_R=torch.tensor([6]),
)
"""A grid four wide, five tokens committed, the next two with laws that leave no choice."""


def made_up(init: str, window: JacobiWindow, first: int) -> tuple[Tensor, Tensor]:
    """Tokens [9], and the laws they follow [9, 9], of a window that begins at place `first`."""
    noise = Noise(KEY_R2, torch.arange(first, first + 9)[None])
    token_RG, probs_RGV = Jacobi(init).fill(window, noise, grid_width=4)
    return token_RG[0], probs_RGV[0]


@pytest.mark.parametrize("init", INITS)
def test_every_token_can_be_drawn_from_its_law(init: str) -> None:
    token_G, probs_GV = made_up(init, FIVE_COMMITTED, 5)
    assert token_G[:2].tolist() == [7, 8]
    assert probs_GV.sum(-1).allclose(torch.ones(9).double())
    assert (probs_GV.gather(-1, token_G.unsqueeze(-1)) > 0).all()


def test_what_is_made_up_is_what_the_option_says() -> None:
    _, uniform_GV = made_up("uniform", FIVE_COMMITTED, 5)
    assert uniform_GV[2:].eq(1 / 9).all()

    random = made_up("random", FIVE_COMMITTED, 5)[0].tolist()
    assert len(set(random[2:])) > 2

    horizon = made_up("repeat_horizon", FIVE_COMMITTED, 5)[0].tolist()
    assert horizon[2] == 8  # the rest of its row; then rows that begin with a random token
    assert horizon[3:7] == [random[3]] * 4
    assert horizon[7:] == [random[7]] * 2

    vertical = made_up("repeat_vertical", FIVE_COMMITTED, 5)[0].tolist()
    assert vertical == [7, 8, 4, 5, 7, 8, 4, 5, 7]

    sample = made_up("sample_horizon", FIVE_COMMITTED, 5)[0].tolist()
    assert sample[2] == 6
    assert sample[3:] == horizon[3:]


def test_the_first_row_has_none_above_it_to_repeat() -> None:
    nothing = torch.zeros((1, 9, 9)).double()
    beginning = replace(FIVE_COMMITTED, verified_R=torch.tensor([0]), probs_RGV=nothing)
    begun = made_up("repeat_vertical", beginning, 0)[0].tolist()
    assert begun[4:8] == begun[:4]
    assert len(set(begun[:4])) > 1


# --- refusals -------------------------------------------------------------------------------------


def test_windows_that_do_not_fit_are_refused_before_any_compute() -> None:
    model = ToyModel()
    complaint = r"method\.window=17: the image has 16 tokens; set method\.window=16"
    with pytest.raises(UserError, match=complaint):
        draw(SJD(Jacobi(), 17), jobs(TEXTS), model=model)
    complaint = r"sampler\.tokens_per_step=4 is too small: the method needs 5"
    with pytest.raises(UserError, match=complaint):
        draw(SJD(Jacobi(), 5), jobs(TEXTS), model=model, tokens_per_step=4)
    assert model.forwards == 0


def test_values_out_of_range_are_refused() -> None:
    complaint = r"method\.window=1: must be at least 2; a window of 1 is method=plain"
    with pytest.raises(UserError, match=complaint):
        SJD(Jacobi(), 1)
    with pytest.raises(UserError, match=r"drafter\.init=zeros: choose from random, uniform"):
        Jacobi("zeros")
    complaint = r"drafter\.coupling=tight: choose from none, maximal, gumbel"
    with pytest.raises(UserError, match=complaint):
        Jacobi(coupling="tight")
