"""PJD: drafts of several rows in one forward; SJD and ZipAR are cases of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from test_batch_invariance import costs
from test_exactness import p_value
from test_trees import slightly
from torch import Tensor
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.drafters.jacobi import Jacobi, JacobiWindow
from harness.drafters.model import DraftModel
from harness.engine.acceptance import Draft, Drafts, Front, Rule, coupled, exact
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import Static
from harness.engine.guidance import Sampling, warp
from harness.engine.sampler import Sampler
from harness.engine.session import Session
from harness.kernels.noise import ACCEPT, DRAW, Noise
from harness.records import Usage, UserError
from methods.best_of_n import BestOfN
from methods.cool_sd import CoolSD
from methods.pjd import PJD
from methods.plain import Plain
from methods.sjd import SJD
from methods.zipar import ZipAR

GRID = (3, 6)
RELEASED = Jacobi("random", "threshold")
MAXIMAL = Jacobi("random", "maximal")

# --- what a token is drawn from -------------------------------------------------------------------


@dataclass
class Log(PJD):
    """Keeps the fronts of every forward, the tokens of their drafts, and what was accepted."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.steps: list[list[tuple[Front, list[int], int]]] = []
        self.log_probs: tuple[float, ...] = ()

    async def generate(self, prompt: str, s: Session) -> Canvas:
        step_at = s.step_at

        async def logged(
            rows: list[Canvas], fronts: list[list[Front]], rule: object
        ) -> list[list[int]]:
            accepted = await step_at(rows, fronts, rule)  # type: ignore[arg-type]
            step = []
            for front, count in zip(fronts[0], accepted[0], strict=True):
                tokens = [] if front.draft is None else front.draft.tokens.tolist()
                step.append((front, tokens, count))
            self.steps.append(step)
            return accepted

        (canvas,) = s.open()
        await self.finish([canvas], Logged(s, logged))  # type: ignore[arg-type]
        self.log_probs = canvas.log_probs
        return canvas


class Logged:
    """A session whose `step_at` is another."""

    def __init__(self, session: Session, step_at: object) -> None:
        self._session = session
        self.step_at = step_at

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)


@dataclass
class Memory:
    """Keys and values of one branch, written place by place as they are fed; -1 is the context."""

    model: ToyModel
    context: Tensor
    stored: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        length = len(self.context) + self.model.num_tokens
        spec = self.model.trunk_spec
        shape = (1, spec.heads, length, spec.head_dim)
        zeros = torch.zeros(shape, dtype=self.model.dtype)
        self.stored = [(zeros.clone(), zeros.clone()) for _ in range(spec.layers)]
        start = len(self.context)
        causal = torch.ones(start, length).tril().bool()
        self.feed(self.context, list(range(-start, 0)), causal)

    def feed(self, x: Tensor, places: list[int], seen: Tensor) -> Tensor:
        """Logits behind some places, which see what `seen` [fed, length] says."""
        position = torch.tensor(places) + len(self.context)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.stored[layer]
            keys[:, :, position] = k
            values[:, :, position] = v
            return torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen)

        start = torch.tensor([len(self.context)])
        hidden = self.model.forward(x[None], position[None], start, attend)
        return self.model.head(hidden)[0]


class Reference:
    """Log-probabilities of an image from its log, with a mask written out place by place."""

    def __init__(self, model: ToyModel, sampling: Sampling, text: str) -> None:
        self.model = model
        self.sampling = sampling
        self.branches = [Memory(model, model.context(one, text)) for one in (None, text)]
        self.settled: dict[int, int] = {}
        self.cached: set[int] = set()
        self.log_probs: dict[int, float] = {}
        self.fed = 0

    def step(self, fronts: list[tuple[Front, list[int], int]], tokens: Sequence[int]) -> None:
        """One forward, and what it committed."""
        # 1. List what is fed: place -> token, and the front that it belongs to.
        fed = {place: self.settled[place] for place in self.settled if place not in self.cached}
        own: dict[int, int] = {}
        for number, (front, draft, _) in enumerate(fronts):
            for place, token in enumerate(draft, front.place):
                fed[place] = token
                own[place] = number
            before = front.place - 1
            if before >= 0:
                nearest = max(place for place in self.settled if place <= before)
                fed[before] = self.settled[nearest]
                if nearest < before:
                    own[before] = number
        places = sorted(fed)
        x = self.model.tokens(torch.tensor([fed[place] for place in places], dtype=torch.int64))

        # 2. Feed it to both branches.
        logits = []
        for branch in self.branches:
            start = len(branch.context)
            seen = torch.zeros(len(places), start + self.model.num_tokens).bool()
            seen[:, :start] = True
            for row, place in enumerate(places):
                for other in range(place + 1):
                    is_own = place in own and own.get(other) == own[place]
                    is_settled = other in self.settled
                    seen[row, start + other] = is_settled or is_own or other == place
            if fronts[0][0].place == 0 and not places:
                logits.append({})
                continue
            out = branch.feed(x, places, seen)
            logits.append(dict(zip(places, out, strict=True)))
            self.fed += len(places)
        if fronts[0][0].place == 0:
            for branch, found in zip(self.branches, logits, strict=True):
                start = len(branch.context)
                last = torch.ones(1, start + self.model.num_tokens).bool()
                last[:, start:] = False
                found[-1] = branch.feed(branch.context[-1:], [-1], last)[0]
        self.cached |= self.settled.keys()

        # 3. Note the log-probabilities of what was committed.
        for front, draft, count in fronts:
            committed = range(front.place, front.place + count + front.commits_next)
            for place in committed:
                null, guided = logits[0][place - 1], logits[1][place - 1]
                probs = warp(null + self.sampling.scale * (guided - null), self.sampling)
                self.log_probs[place] = probs[tokens[place]].log().item()
                self.settled[place] = tokens[place]
            self.cached |= set(committed[:count])
            assert draft[:count] == [tokens[place] for place in committed[:count]]


@pytest.mark.parametrize(
    ("context", "window", "parallel", "defer", "drafter"),
    [
        (2, 4, 3, True, MAXIMAL),
        (2, 4, 3, False, MAXIMAL),
        (3, 3, 2, True, RELEASED),
        (1, 3, 3, False, Jacobi("repeat_vertical", "none")),
        (9, 4, 3, True, MAXIMAL),
        (2, 4, 1, True, MAXIMAL),
    ],
)
def test_a_token_is_drawn_from_what_it_may_see_and_nothing_else(
    context: int, window: int, parallel: int, defer: bool, drafter: Jacobi
) -> None:
    """Every log-probability is that of a forward whose mask is written out, place by place."""
    model = ToyModel(grid=GRID)
    sampling = Sampling(scale=2.0, temperature=0.7)
    method = Log(drafter, context, window, parallel, defer)
    (delivery,) = draw(method, jobs(TEXTS[1:2]), model=model, sampling=sampling).values()
    assert not delivery.error
    assert len(method.steps) < model.num_tokens
    reference = Reference(model, sampling, TEXTS[1])
    for step in method.steps:
        reference.step(step, delivery.tokens)
    expected = [reference.log_probs[place] for place in range(model.num_tokens)]
    assert method.log_probs == pytest.approx(expected, abs=1e-9)
    # The first forward may read the prompt's last positions, too.
    assert delivery.usage.target_positions == pytest.approx(reference.fed, abs=0)
    assert delivery.usage.sampled == model.num_tokens
    if context < GRID[1] and parallel > 1:
        assert max(len(step) for step in method.steps) > 1


def make_sampler(model: ToyModel | None = None, tokens_per_step: int = 12) -> Sampler:
    return Sampler(
        model or ToyModel(grid=GRID),
        Sampling(scale=2.0),
        slots=8,
        tokens_per_step=tokens_per_step,
        prefill=(2, 4),
    )


def open_canvas(sampler: Sampler, key: int = 1) -> Canvas:
    return sampler.open(*sampler.contexts(TEXTS[1]), key=key, usage=Usage())


def chain(*tokens: int) -> Draft | None:
    return Draft(torch.tensor(tokens), followed=True) if tokens else None


def probs_below(above: tuple[int, ...], order: int = 1) -> Tensor:
    """The probs of a draft in the second row, beside a draft in the first."""
    sampler = make_sampler()
    canvas = open_canvas(sampler)
    for place in range(3):
        sampler.step_at([canvas], [[Front(place)]], exact)
    fronts = [Front(3, chain(*above)), Front(6, chain(1, 2, 3))]
    sampler.step_at([canvas], [fronts[::order]], exact)
    verdict = sampler.verdict_at(canvas, 6)
    assert verdict is not None
    return verdict.probs_TV


def test_a_row_does_not_see_the_draft_of_another_nor_the_order_of_fronts() -> None:
    alone = probs_below(())
    assert torch.allclose(probs_below((4, 5)), alone, rtol=0, atol=1e-12)
    assert torch.allclose(probs_below((9, 8)), alone, rtol=0, atol=1e-12)
    assert torch.equal(probs_below((4, 5), order=-1), probs_below((4, 5)))


def test_one_front_at_the_frontier_is_a_step() -> None:
    """The same tokens, verdicts and counts, and the same logits behind them."""
    seen = []
    for at_front in (False, True):
        sampler = make_sampler()
        canvas = open_canvas(sampler)
        for tokens in ((), (1, 2), (3, 4, 5), (), (6,)):
            draft = chain(*tokens)
            if at_front:
                sampler.step_at([canvas], [[Front(canvas.length, draft)]], exact)
            else:
                sampler.forward([canvas], [draft])
                sampler.draw([canvas], [draft], exact)
        verdict = sampler.verdict_at(canvas, canvas.length) if at_front else canvas.verdict
        assert verdict is not None
        sampler.forward([canvas], [None])
        behind = sampler.target_probs([canvas], [None])
        seen.append((canvas.tokens, canvas.log_probs, costs(canvas.ledger), verdict.path))
        seen.append((verdict.probs_TV, behind))
    assert seen[0] == seen[2]
    for mine, theirs in zip(seen[1], seen[3], strict=True):
        assert torch.equal(mine, theirs)


# --- reductions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("coupling", "defer"), [("none", True), ("maximal", False)])
def test_an_image_of_one_row_is_sjd(coupling: str, defer: bool) -> None:
    model = ToyModel(grid=(1, 14))
    drafter = Jacobi("random", coupling)
    sjd = draw(SJD(drafter, 5), jobs(TEXTS, 2), model=model)
    method = PJD(drafter, context=3, window=5, parallel=3, defer=defer)
    for key, delivery in draw(method, jobs(TEXTS, 2), model=model).items():
        assert not delivery.error
        assert delivery.tokens == sjd[key].tokens
        mine = delivery.notes["accepted"]
        assert isinstance(mine, list)
        assert mine[:5] == sjd[key].notes["accepted"]
        assert not any(mine[5:])
        assert costs(delivery.usage).target_positions == sjd[key].usage.target_positions


@pytest.mark.parametrize(("context", "parallel", "window"), [(9, 4, 2), (2, 1, 6), (6, 2, 4)])
def test_rows_one_after_another_and_coupled_noise_are_plain(
    context: int, parallel: int, window: int
) -> None:
    model = ToyModel(grid=GRID)
    plain = draw(Plain(), jobs(TEXTS, 2), model=model)
    method = PJD(Jacobi("random", "gumbel"), context, window, parallel, rule=coupled)
    for key, delivery in draw(method, jobs(TEXTS, 2), model=model).items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens


@pytest.mark.parametrize("context", [1, 4, 6])
def test_without_drafts_it_is_zipar(context: int) -> None:
    model = ToyModel(grid=GRID)
    zipar = draw(ZipAR(context, 3), jobs(TEXTS, 2), model=model)
    method = PJD(MAXIMAL, context, window=1, parallel=3, defer=False)
    for key, delivery in draw(method, jobs(TEXTS, 2), model=model).items():
        assert not delivery.error
        assert delivery.tokens == zipar[key].tokens
        assert delivery.usage.target_passes == zipar[key].usage.target_passes


def test_it_draws_the_candidates_of_other_methods() -> None:
    best = draw(BestOfN(2, PixelSum()), jobs(TEXTS))
    decoding = PJD(Jacobi("random", "gumbel"), parallel=1, rule=coupled)
    for key, delivery in draw(BestOfN(2, PixelSum(), decoding), jobs(TEXTS)).items():
        assert delivery.tokens == best[key].tokens


def test_a_relaxed_rule_is_told_how_deep_drafts_are_and_its_signals_are_noted() -> None:
    method = PJD(MAXIMAL, 2, 4, 3, rule=CoolSD(2.0, floor=1.0))
    for delivery in draw(method, jobs(TEXTS)).values():
        assert not delivery.error
        assert len(delivery.notes["weights"]) == 3  # type: ignore[arg-type]
        assert delivery.notes["defect"] > 0  # type: ignore[operator]


# --- what else is in the batch, forks, refusals ---------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("drafter", [MAXIMAL, RELEASED], ids=["maximal", "released"])
def test_what_else_is_in_the_batch_changes_nothing(drafter: Jacobi, device: str) -> None:
    some = jobs(TEXTS, images=2)
    model = ToyModel(grid=GRID, vocab=31, dtype=torch.float32, device=device)
    together = draw(PJD(drafter, 2, 4, 3), some, model=model)
    assert len({tuple(d.notes["accepted"]) for d in together.values()}) > 1  # type: ignore[arg-type]
    for others in (some[::-1], some[3:4]):
        for key, delivery in draw(PJD(drafter, 2, 4, 3), others, model=model).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


def test_a_smaller_context_and_drafts_take_fewer_passes() -> None:
    model = ToyModel(grid=(4, 8))
    passes = []
    for method in (
        PJD(MAXIMAL, 8, 4, 4),
        PJD(MAXIMAL, 4, 4, 4, defer=False),
        PJD(MAXIMAL, 2, 4, 4, defer=False),
    ):
        drawn = draw(method, jobs(TEXTS, 2), model=model)
        passes.append(sum(delivery.usage.target_passes for delivery in drawn.values()))
    assert passes[0] > passes[1] > passes[2]


def test_verdicts_and_retests_are_gone_when_a_canvas_changes() -> None:
    sampler = make_sampler()
    canvas = open_canvas(sampler)
    for place in range(3):
        sampler.step_at([canvas], [[Front(place)]], exact)
    deferred = Front(6, chain(1, 2), commits_next=False)

    def defer() -> tuple[int, ...]:
        sampler.step_at([canvas], [[Front(3, chain(4, 5)), deferred]], exact)
        assert sampler.verdict_at(canvas, 3) is not None
        verdict = sampler.verdict_at(canvas, 6)
        assert verdict is not None
        assert verdict.held is not None
        assert sampler.verdict_at(canvas, 12) is None
        return (*canvas.tokens, *verdict.path, verdict.held)

    first = defer()
    sampler.truncate(canvas, 3)
    for place in (3, 6):
        assert sampler.verdict_at(canvas, place) is None
    assert defer() == first  # the same noise as the first time


@pytest.mark.parametrize(
    ("fronts", "words"),
    [
        ([Front(2)], r"places \[2\] are drawn or beyond the image's 18 tokens"),
        ([Front(15, chain(1, 2, 3))], r"places \[18\] are drawn or beyond"),
        ([], "are drawn or beyond"),
        ([Front(6), Front(6)], "the fronts of a canvas must lie apart"),
        ([Front(3, chain(1)), Front(5, chain(1))], "a row of the image has one draft at most"),
        ([Front(4, chain(1, 2, 3))], "a draft goes beyond its row of the image"),
        ([Front(4, chain(1, 1)), Front(6)], "must lie apart|before another front"),
        ([Front(3, chain(1, 2, 3)), Front(6)], "must lie apart"),
        ([Front(3, commits_next=False)], "the front at 3 has no draft and commits nothing"),
        ([Front(3, Draft(torch.tensor([1]), parents=(-1,)))], "a chain, not a tree"),
        (
            [Front(3, chain(1, 2)), Front(6, chain(1, 2, 3)), Front(12, chain(1, 2, 3, 4, 5))],
            "13 positions wait to be fed: at most 12 fit",
        ),
    ],
)
def test_fronts_that_cannot_be_are_refused_and_change_nothing(
    fronts: list[Front], words: str
) -> None:
    sampler = make_sampler()
    canvas = open_canvas(sampler)
    for place in range(3):
        sampler.step_at([canvas], [[Front(place)]], exact)
    before = (canvas.tokens, costs(canvas.ledger))
    with pytest.raises(ValueError, match=words):
        sampler.step_at([canvas], [fronts], exact)
    assert (canvas.tokens, costs(canvas.ledger)) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 0}, r"method\.context=0: must be at least 1"),
        ({"window": 0}, r"method\.window=0: must be at least 1"),
        ({"parallel": 0}, r"method\.parallel=0: must be at least 1"),
        ({"window": 1}, r"method\.window=1 has no drafts.*set method\.defer=false"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PJD(MAXIMAL, **options)  # type: ignore[arg-type]


def test_a_drafter_of_one_place_and_trees_of_a_threshold_are_refused() -> None:
    with pytest.raises(UserError, match="DraftModel drafts at one place of an image only"):
        PJD(DraftModel(lambda device="cpu": ToyModel()))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"drafter\.coupling=threshold: tokens of a tree"):
        RELEASED.expect_tree(Static({"": 2}))


# --- the law of a place that is drafted, rejected, and tested again -------------------------------

DRAFTED = torch.tensor([0.5, 0.3, 0.2, 0.0]).double()
TESTED = torch.tensor([0.2, 0.3, 0.1, 0.4]).double()
DRAWS = 60_000


def settle(coupling: str) -> tuple[Tensor, float]:
    """Tokens of a place of a deferred row, drafted under one law and tested under another."""
    generator = torch.Generator().manual_seed(6)
    key_R2 = torch.randint(0, 2**32, (DRAWS, 2), generator=generator)
    noise = Noise(key_R2, torch.full((DRAWS, 2), 3) + torch.arange(2))
    drafter = Jacobi("random", coupling)
    nothing = torch.zeros(DRAWS).long()
    law_R1V = TESTED.expand(DRAWS, 1, -1)
    length_R = torch.ones(DRAWS).long()

    # 1. A token drawn from the first law is tested under the second.
    old_RG = noise.race(9, DRAFTED.expand(DRAWS, 2, -1))[:, :1]
    old = Drafts(old_RG, DRAFTED.expand(DRAWS, 1, -1), length_R)
    probs_RTV = TESTED.expand(DRAWS, 2, -1)
    path_RG, next_R = exact(probs_RTV, old, noise.retested(nothing))
    settled_R = torch.where(path_RG[:, 0] >= 0, old_RG[:, 0], -1)

    # 2. Where it was rejected, the place is drafted and tested again, until a token passes.
    for count in range(1, 9):
        again = Noise(noise.key_R2, noise.position_RT).retested(torch.full((DRAWS,), count))
        window = JacobiWindow(
            law_R1V,
            length_R,
            nothing.unsqueeze(1),
            torch.zeros_like(law_R1V),
            nothing.unsqueeze(1),
            nothing,
            next_R,
        )
        one = Noise(again.key_R2, again.position_RT[:, :1], again.test_key_R2)
        token_RG, probs_RGV = drafter.fill(window, one, grid_width=4)
        path_RG, next_R = exact(probs_RTV, Drafts(token_RG, probs_RGV, length_R), again)
        passed_R = (settled_R < 0) & (path_RG[:, 0] >= 0)
        settled_R = torch.where(passed_R, token_RG[:, 0], settled_R)
    return settled_R, float((settled_R < 0).double().mean())


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
def test_a_deferred_place_follows_the_law_it_is_tested_under(coupling: str) -> None:
    settled_R, missing = settle(coupling)
    assert missing == 0
    assert p_value(settled_R, TESTED) > 1e-3
    wrong = TESTED + torch.tensor([0.02, 0, 0, -0.02]).double()
    assert p_value(settled_R, wrong) < 1e-6


@pytest.mark.parametrize("coupling", ["none", "threshold"])
def test_a_deferred_place_as_published_is_biased_towards_what_has_become_less_likely(
    coupling: str,
) -> None:
    settled_R, missing = settle(coupling)
    kept = torch.minimum(DRAFTED, TESTED)
    assert missing == 0
    assert p_value(settled_R, kept + (1 - kept.sum()) * TESTED) > 1e-3
    assert p_value(settled_R, TESTED) < 1e-6


# --- the joint law of an image whose tokens depend on those to the left and above alone ----------

IMAGES = 40_000
HEIGHT = 2
WIDTH = 4
CODES = 2


class LocalLaw:
    """P(token | left, above) at every place: it does not matter what a lower row lacks."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(4)
        shape = (HEIGHT * WIDTH, CODES, CODES, CODES)
        probs = torch.rand(shape, generator=generator).double() ** 3
        self._probs = probs / probs.sum(-1, keepdim=True)

    def at(self, row: int, column: int, left_R: Tensor, above_R: Tensor) -> Tensor:
        """The distributions [R, V] of a place."""
        nothing = torch.zeros_like(left_R)
        left_R = left_R if column else nothing
        above_R = above_R if row else nothing
        return self._probs[row * WIDTH + column, left_R, above_R]

    def whole(self) -> Tensor:
        """The probability of every image, [2^8]."""
        token_RN = torch.cartesian_prod(*[torch.arange(CODES)] * (HEIGHT * WIDTH))
        probs = torch.ones(len(token_RN)).double()
        for place in range(HEIGHT * WIDTH):
            left_R = token_RN[:, max(place - 1, 0)]
            above_R = token_RN[:, max(place - WIDTH, 0)]
            probs_RV = self.at(place // WIDTH, place % WIDTH, left_R, above_R)
            probs *= probs_RV.gather(1, token_RN[:, place : place + 1])[:, 0]
        return probs


class Images:
    """IMAGES images of two rows, as a sampler and its verdicts hold them, [R, row, column]."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.key_R2 = torch.randint(0, 2**32, (IMAGES, 2), generator=generator)
        self.token = torch.zeros(IMAGES, HEIGHT, WIDTH).long()
        self.count = torch.zeros(IMAGES, HEIGHT).long()
        self.retests = torch.zeros(IMAGES, HEIGHT).long()
        self.held = torch.full((IMAGES, HEIGHT), -1)
        self.old = torch.zeros(IMAGES, HEIGHT, WIDTH).long()
        self.old_probs = torch.zeros(IMAGES, HEIGHT, WIDTH, CODES).double()
        self.law = torch.zeros(IMAGES, HEIGHT, WIDTH, CODES).double()

    def window(self, some: Tensor, row: int, column: int, length: int) -> JacobiWindow:
        """What the last verification of a row left."""
        here = slice(column, column + length)
        law_RGV = self.law[some, row, here]
        return JacobiWindow(
            law_RGV,
            (law_RGV.sum(-1) > 0).sum(1),
            self.old[some, row, here],
            self.old_probs[some, row, here],
            self.token[some].flatten(1),
            self.token[some, row, 0],
            self.held[some, row],
        )


def decoded(drafter: Jacobi, rule: Rule, defer: bool = True) -> Tensor:
    """Numbers of images as PJD draws them with context 1 and window 4, by drafter and rule."""
    law = LocalLaw()
    images = Images()
    while (images.count < WIDTH).any():
        count = images.count.clone()
        top_R = (count[:, 0] == WIDTH).long()
        for row in range(HEIGHT):
            reach_R = count[:, 0] if row else torch.full_like(top_R, WIDTH)
            length_R = reach_R - count[:, row] - 1
            commits_R = torch.full_like(top_R, not defer).bool() | (top_R == row)
            length_R = torch.where((top_R == row), WIDTH - count[:, row] - 1, length_R)
            may_R = (count[:, row] < WIDTH) & (length_R >= 1 - commits_R.long())
            for column in range(WIDTH):
                for length in range(WIDTH):
                    for commits in (False, True):
                        here_R = may_R & (count[:, row] == column) & (length_R == length)
                        (some,) = torch.where(here_R & (commits_R == commits))
                        if len(some):
                            step(images, some, row, column, length, commits, law, drafter, rule)
    weight = torch.tensor([CODES ** (HEIGHT * WIDTH - 1 - i) for i in range(HEIGHT * WIDTH)])
    return images.token.flatten(1) @ weight


def step(
    images: Images,
    some: Tensor,
    row: int,
    column: int,
    length: int,
    commits: bool,
    law: LocalLaw,
    drafter: Jacobi,
    rule: Rule,
) -> None:
    """Draft, verify and commit at one front of some images."""
    # 1. Draft.
    place_R = torch.full_like(some, row * WIDTH + column)
    place_RT = place_R.unsqueeze(1) + torch.arange(length + 1)
    noise = Noise(images.key_R2[some], place_RT).retested(images.retests[some, row])
    token_RG = torch.zeros(len(some), 0).long()
    probs_RGV = torch.zeros(len(some), 0, CODES).double()
    if length:
        ahead = Noise(noise.key_R2, place_RT[:, :-1], noise.test_key_R2)
        window = images.window(some, row, column, length)
        token_RG, probs_RGV = drafter.fill(window, ahead, WIDTH)

    # 2. Verify.
    before_R = images.token[some, row, max(column - 1, 0)]
    left_RT = torch.cat((before_R.unsqueeze(1), token_RG), 1)
    laws = []
    for g in range(length + 1):
        above_R = images.token[some, max(row - 1, 0), column + g]
        laws.append(law.at(row, column + g, left_RT[:, g], above_R))
    law_RTV = torch.stack(laws, 1)
    drafts = Drafts(token_RG, probs_RGV, torch.full_like(some, length))
    path_RG, next_R = rule(law_RTV, drafts, noise)
    accepted_R = (path_RG >= 0).sum(1)

    # 3. Commit, and keep what the next window is made of.
    images.old_probs[some, row] = 0
    images.law[some, row] = 0
    images.held[some, row] = -1
    for g in range(length + 1):
        settled_R = g < accepted_R
        if g < length:
            images.token[some[settled_R], row, column + g] = token_RG[settled_R, g]
        is_next_R = g == accepted_R
        if commits:
            images.token[some[is_next_R], row, column + g] = next_R[is_next_R]
        behind_R = g > accepted_R if commits else g >= accepted_R
        images.law[some[behind_R], row, column + g] = law_RTV[behind_R, g]
        if g < length:
            old_R = g > accepted_R
            images.old[some[old_R], row, column + g] = token_RG[old_R, g]
            images.old_probs[some[old_R], row, column + g] = probs_RGV[old_R, g]
    images.count[some, row] += accepted_R + commits
    if not commits:
        images.held[some, row] = next_R
        images.retests[some, row] += 1


@pytest.mark.parametrize("coupling", ["maximal", "gumbel"])
@pytest.mark.parametrize("defer", [True, False])
def test_rows_side_by_side_keep_the_joint_law_and_a_bug_of_two_percent_shows(
    coupling: str, defer: bool
) -> None:
    law = LocalLaw().whole()
    assert fits(decoded(Jacobi("random", coupling), exact, defer), law) > 1e-3
    assert fits(decoded(Jacobi("random", coupling), slightly, defer), law) < 1e-6


@pytest.mark.parametrize("coupling", ["none", "threshold"])
def test_what_is_published_loses_the_joint_law(coupling: str) -> None:
    """Even where a row's context is complete in all that matters."""
    drawn = decoded(Jacobi("uniform", coupling), exact)
    assert fits(drawn, LocalLaw().whole()) < 1e-5


def test_fresh_drafts_keep_the_joint_law_where_nothing_is_deferred() -> None:
    drawn = decoded(Jacobi("random", "none"), exact, defer=False)
    assert fits(drawn, LocalLaw().whole()) > 1e-3


def test_every_retest_has_chances_of_its_own_and_plain_draws_stay() -> None:
    key_R2 = torch.randint(0, 2**32, (100, 2), generator=torch.Generator().manual_seed(7))
    noise = Noise(key_R2, torch.full((100, 3), 3))
    chances = [noise.retested(torch.full((100,), count)).uniform(ACCEPT, 1) for count in range(3)]
    assert torch.equal(chances[0], noise.uniform(ACCEPT, 1))
    assert not (chances[1] == chances[0]).any()
    assert not (chances[2] == chances[1]).any()
    again = noise.retested(torch.full((100,), 2))
    assert torch.equal(again.uniform(DRAW, 1), noise.uniform(DRAW, 1))


def fits(number_R: Tensor, probs: Tensor) -> float:
    """p-value of a joint law; images expected less than five times count together."""
    rare = probs * len(number_R) < 5
    cell = torch.where(rare, 0, (~rare).cumsum(0))
    cell_probs = torch.zeros(int(cell.max()) + 1, dtype=probs.dtype).index_add(0, cell, probs)
    return p_value(cell[number_R], cell_probs)
