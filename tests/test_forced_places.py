"""Places that are fed and never drawn: the ends of rows.

Whatever draws, a forced place holds token 0 for sure; it costs no code, and no picture shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pytest
import torch
from combinations import (
    GREEDY,
    LATENCY,
    SEARCHES,
    SUBJECTS,
    THROUGHPUT,
    Family,
    draw_on,
    make_sampler,
)
from tiny_language import CODES, tiny
from torch import Tensor
from toy import ToyModel, draw, jobs

from harness.drafters.jacobi import INITS, Jacobi
from harness.engine.acceptance import Draft, Drafts, coupled
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery
from harness.engine.session import Method, Session
from harness.kernels.noise import DRAW, Noise
from harness.models.language_model import LanguageModel
from harness.models.raster import Raster, raster_of, with_row_ends
from harness.records import Usage, UserError
from methods.best_of_n import BestOfN
from methods.pjd import PJD
from methods.plain import Plain
from methods.scalingar import Policy, ScalingAR
from methods.scalingar.group import CandidateGroup
from methods.sjd import SJD
from methods.vvs import VVS, Uniform
from methods.zipar import ZipAR, row_counts

GRID = (3, 4)
ENDS = {4, 9}
"""The forced places of a grid of 3 x 4 codes."""


@lru_cache
def lined() -> LanguageModel:
    return tiny("lumina", grid=GRID)


def drawn(method: Method, sampling: Sampling | None = None) -> dict[tuple[str, int], Delivery]:
    """The deliveries of two prompts."""
    return draw(method, jobs(["a cat", "two dogs"]), model=lined(), sampling=sampling)


def tokens(deliveries: dict[tuple[str, int], Delivery]) -> list[tuple[int, ...]]:
    for delivery in deliveries.values():
        assert not delivery.error, delivery.error
    return [deliveries[key].tokens for key in sorted(deliveries)]


# ------------------------------------------------------------------ the raster


def test_a_raster_counts_codes_and_places() -> None:
    raster = raster_of(lined())
    assert (raster.places, raster.codes, raster.stride) == (14, 12, 5)
    assert raster.forced_places() == ENDS
    assert [raster.places_of_rows(rows) for rows in range(4)] == [0, 5, 10, 14]
    assert raster.count_codes(3, 11) == 6
    laid_out = raster.lay_out(range(1, 13), 0)
    assert laid_out == [1, 2, 3, 4, 0, 5, 6, 7, 8, 0, 9, 10, 11, 12]
    assert raster.pick_codes(laid_out) == list(range(1, 13))
    assert raster.lay_out([7, 8], 9) == [0, 7, 8]


def test_a_raster_without_forced_places_is_the_grid() -> None:
    raster = raster_of(ToyModel(GRID))
    assert raster == Raster(3, 4, 4)
    assert (raster.places, raster.places_of_rows(2), raster.count_codes(3, 11)) == (12, 8, 8)
    assert raster.forced_mask(torch.device("cpu")) is None


def test_a_grid_that_does_not_hold_its_places_is_refused() -> None:
    model = tiny("lumina", grid=GRID)
    model.grid = (4, 4)
    with pytest.raises(UserError, match=r"grid of 4 x 4 does not hold num_tokens=14 with 2"):
        raster_of(model)


def test_an_image_never_ends_in_a_forced_place() -> None:
    assert with_row_ends(2, 3) == (False, False, False, True, False, False, False)


# ------------------------------------------------------------------ what is drawn


@pytest.mark.parametrize("sampling", [Sampling(scale=2.0), GREEDY, Sampling(scale=2.0, top_k=5)])
def test_a_forced_place_holds_token_0_and_costs_no_code(sampling: Sampling) -> None:
    for delivery in drawn(Plain(), sampling).values():
        assert {place for place in ENDS if delivery.tokens[place] == 0} == ENDS
        assert delivery.usage.sampled == 12
        assert delivery.usage.target_passes >= 14 - 1
        assert len(set(delivery.tokens)) > 2


class Steps:
    """Token by token, with the host between, and what each token's probability was."""

    rows = 1
    branches = 2
    tokens_per_step = 1

    def __init__(self) -> None:
        self.log_probs: list[float] = []

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        while not canvas.done:
            await s.step([canvas])
        self.log_probs = list(canvas.log_probs)
        return canvas


def test_bursts_and_steps_draw_the_same_and_a_forced_place_is_certain() -> None:
    steps = Steps()
    assert tokens(drawn(steps)) == tokens(drawn(Plain()))
    assert {place for place, value in enumerate(steps.log_probs) if value == 0} == ENDS


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("coupling", ["none", "maximal", "gumbel"])
def test_jacobi_drafts_are_right_at_forced_places(init: str, coupling: str) -> None:
    """Every made-up token there is the only possible one, so no window breaks at a row's end."""
    greedy = drawn(SJD(Jacobi(init, coupling), 6), GREEDY)
    assert tokens(greedy) == tokens(drawn(Plain(), GREEDY))
    noisy = drawn(SJD(Jacobi(init, coupling), 6, coupled))
    assert tokens(noisy) == tokens(drawn(Plain()))


def test_a_draft_is_certain_at_forced_places() -> None:
    sampler = Sampler(lined(), Sampling(scale=2.0), slots=2, tokens_per_step=8)
    contexts, guide = sampler.contexts("a cat")
    canvas = sampler.open(contexts, guide, 7, Usage())
    for init in INITS:
        (draft,) = Jacobi(init).propose(sampler, [canvas], 7)
        assert draft is not None and draft.probs is not None
        assert int(draft.tokens[4]) == 0
        assert draft.probs[4].tolist() == [1.0] + [0.0] * (CODES - 1)


def accept_all(probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
    """A rule that accepts whole chains, whatever their tokens."""
    path_RG = torch.arange(drafts.token_RG.shape[1]).expand(len(probs_RTV), -1)
    return path_RG, noise.race(DRAW, probs_RTV)[:, -1]


def test_whatever_a_rule_accepts_at_a_forced_place_is_its_token() -> None:
    """Relaxed rules take look-alikes; a look-alike of a row's end is the row's end."""
    sampler = Sampler(lined(), Sampling(scale=2.0), slots=2, tokens_per_step=7)
    contexts, guide = sampler.contexts("a cat")
    canvas = sampler.open(contexts, guide, 7, Usage())
    draft = Draft(torch.tensor([1, 2, 3, 4, 5, 6]), None)
    sampler.forward([canvas], [draft])
    assert sampler.draw([canvas], [draft], accept_all) == [6]
    assert canvas.tokens[:6] == (1, 2, 3, 4, 0, 6)
    assert canvas.log_probs[4] == 0
    assert canvas.ledger.sampled == 6


def test_skipped_places_are_charged_as_codes_only() -> None:
    skipping = VVS(Jacobi("uniform"), Uniform(2, 1), 5)
    for delivery in drawn(skipping).values():
        usage = delivery.usage
        assert usage.skipped > 0
        assert usage.sampled + usage.skipped - usage.discarded == 12


def test_another_token_is_not_committed_to_a_forced_place() -> None:
    sampler = Sampler(lined(), Sampling(scale=2.0), slots=2)
    contexts, guide = sampler.contexts("a cat")
    canvas = sampler.open(contexts, guide, 7, Usage())
    sampler.commit(canvas, [3, 3, 3, 3, 0])
    assert canvas.ledger.skipped == 4
    sampler.truncate(canvas, 4)
    assert canvas.ledger.discarded == 0
    with pytest.raises(ValueError, match=r"token 5 at the forced place 4, which holds 0"):
        sampler.commit(canvas, [5])


# ------------------------------------------------------------------ out of order


@pytest.mark.parametrize("parallel", [1, 3])
def test_zipar_with_a_window_of_the_whole_row_is_plain_sampling(parallel: int) -> None:
    assert tokens(drawn(ZipAR(4, parallel))) == tokens(drawn(Plain()))


def test_zipar_draws_rows_side_by_side_and_never_waits_for_a_row_end() -> None:
    for delivery in drawn(ZipAR(2, 3)).values():
        assert delivery.usage.sampled == 12
        assert [delivery.tokens[place] for place in sorted(ENDS)] == [0, 0]
        # Three rows of four codes, each two behind the one above: 8 forwards, one for the prompt.
        assert delivery.usage.target_passes == 1 + 8
        # No position is fed twice: both branches feed their prompt, 11 codes and 2 row ends.
        assert delivery.usage.target_positions <= 2 * (11 + 2)


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("defer", [False, True])
def test_pjd_one_row_after_another_is_plain_sampling(parallel: int, defer: bool) -> None:
    drafter = Jacobi("repeat_vertical", "maximal")
    method = PJD(drafter, context=4, window=3, parallel=parallel, defer=defer)
    assert tokens(drawn(method, GREEDY)) == tokens(drawn(Plain(), GREEDY))


def test_pjd_draws_rows_side_by_side_around_row_ends() -> None:
    method = PJD(Jacobi("repeat_vertical", "maximal"), context=2, window=3, parallel=3, defer=True)
    for delivery in drawn(method).values():
        assert delivery.usage.sampled == 12
        assert [delivery.tokens[place] for place in sorted(ENDS)] == [0, 0]


def test_rows_are_counted_by_their_codes() -> None:
    assert row_counts(7, raster_of(lined())) == [4, 2, 0]
    assert row_counts(5, raster_of(lined())) == [4, 0, 0]


# ------------------------------------------------------------------ pictures and statistics


class Looks:
    """Shows half an image with codes behind it."""

    rows = 1
    branches = 2
    tokens_per_step = 1

    def __init__(self) -> None:
        self.views: list[np.ndarray] = []
        self.tokens: tuple[int, ...] = ()

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        await s.run([canvas], until=s.raster.places_of_rows(1))
        self.tokens = canvas.tokens
        self.views = await s.render([canvas, canvas], [(), list(range(8))])
        await s.run([canvas])
        return canvas


def test_a_partial_image_shows_codes_and_no_row_ends() -> None:
    looks = Looks()
    draw(looks, jobs(["a cat"]), model=lined())
    unfinished, filled = (view[..., 0].tolist() for view in looks.views)
    first_row = [token + 1 for token in looks.tokens[:4]]
    assert unfinished == [first_row, [0] * 4, [0] * 4]
    assert filled == [first_row, [1, 2, 3, 4], [5, 6, 7, 8]]


def test_scalingar_looks_at_codes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its series have a step for each code, on the grid of codes."""
    looked = []
    observe = CandidateGroup.observe

    def note(group: CandidateGroup, signals: Sequence[Mapping[str, float]]) -> list[float]:
        looked.append(group)
        return observe(group, signals)

    monkeypatch.setattr(CandidateGroup, "observe", note)
    (first, second) = drawn(ScalingAR(3)).values()
    assert not first.error and not second.error
    assert len(looked) == 2 * 12
    assert not np.isnan(looked[0].profile.confidence).all(1).any()

    drafted = ScalingAR(
        2, drafter=Jacobi("uniform", "gumbel"), window=4, policy=Policy(scheduler=False)
    )
    for delivery in drawn(drafted).values():
        assert not delivery.error, delivery.error
        assert delivery.usage.sampled >= 12
    assert len(looked) == 4 * 12


def test_a_likelihood_per_token_is_one_per_code() -> None:
    """A forced token is certain: it changes no sum, and must not dilute a mean."""
    likeliest = BestOfN(2)
    (delivery,) = draw(likeliest, jobs(["a cat"]), model=lined()).values()
    steps = Steps()
    draw(steps, jobs(["a cat"]), model=lined())
    scores = delivery.notes["scores"]
    assert isinstance(scores, list)
    assert scores[0] == pytest.approx(sum(steps.log_probs) / 12)


QUICK_SEARCHES = ("fr_tts", "gridar, jacobi tree", "twig", "likeliest of 2", "wanderer")


def list_searches() -> list[object]:
    """Every way that chooses among candidates; some stand for all in quick tests."""
    cases = []
    for family in SEARCHES:
        marks = [] if family.name in QUICK_SEARCHES else [pytest.mark.long]
        cases.append(pytest.param(family, id=family.name, marks=marks))
    return cases


@pytest.mark.parametrize("family", list_searches())
def test_every_search_fills_the_codes(family: Family) -> None:
    """Forks inherit tokens, which the canvas that drew them has discarded by then."""
    subject = SUBJECTS["lumina"]
    model = subject.make("cpu")
    for setting in (THROUGHPUT, LATENCY):
        method = family.build(subject)
        sampler = make_sampler(method, model, family.sampling, setting)
        (delivery,) = draw_on(sampler, method, subject.jobs(1), setting).values()
        assert not delivery.error, delivery.error
        assert [delivery.tokens[place] for place in (4, 9, 14)] == [0, 0, 0]
        usage = delivery.usage
        assert 0 < usage.sampled + usage.skipped - usage.discarded <= 16
        assert delivery.image is not None and delivery.image.shape == (4, 4, 3)
