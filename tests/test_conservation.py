"""Conservation: every token is counted once and ends discarded or delivered; no slot leaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from test_batch_invariance import Wanderer
from test_twig import Muse
from toy import TEXTS, PixelSum, ToyModel, draw, jobs

from harness.drafters.jacobi import Jacobi
from harness.engine import meter
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import Proactive
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Scheduler
from harness.engine.session import Method, Session
from harness.records import Stage, UserError
from methods.best_of_n import BestOfN
from methods.plain import Plain
from methods.search import Beam, FillingReward
from methods.speculative import Speculative
from methods.twig import TwiG

# ------------------------------------------------------------------ tokens and seconds


@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_costs_n_images(n: int) -> None:
    for delivery in draw(BestOfN(n, PixelSum()), jobs(TEXTS)).values():
        usage = delivery.usage
        assert usage.visual_tokens == usage.sampled == n * 16
        assert usage.discarded == (n - 1) * 16
        assert usage.target_positions == n * 2 * 15  # two branches; the last token is never fed
        assert usage.renders == n
        assert usage.judge_calls == (n if n > 1 else 0)


class CountingList(list):
    """A list that counts what it and all others of its kind were extended by."""

    total = 0

    def extend(self, more: Any) -> None:
        before = len(self)
        super().extend(more)
        CountingList.total += len(self) - before


@pytest.mark.parametrize(
    "method",
    [
        Plain(),
        BestOfN(3),
        Wanderer(),
        Beam(PixelSum(), 2, 2),
        FillingReward(4, PixelSum()),
        TwiG(Muse(), layers=2),
        Speculative(Jacobi("uniform", "maximal"), Proactive(2, 2, 6)),
    ],
)
def test_tokens_ever_committed_are_sampled_or_skipped(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted a second time, at the one place where a canvas grows."""
    plain_open = Sampler.open
    plain_fork = Sampler.fork

    def open_counting(self: Sampler, *args: Any, **kwargs: Any) -> Canvas:
        canvas = plain_open(self, *args, **kwargs)
        canvas._tokens = CountingList()
        return canvas

    def fork_counting(self: Sampler, src: Canvas, over: Canvas) -> None:
        plain_fork(self, src, over)
        over._tokens = CountingList(over._tokens)

    monkeypatch.setattr(CountingList, "total", 0)
    monkeypatch.setattr(Sampler, "open", open_counting)
    monkeypatch.setattr(Sampler, "fork", fork_counting)
    usages = [delivery.usage for delivery in draw(method, jobs(TEXTS)).values()]
    counted = sum(usage.sampled + usage.skipped for usage in usages)
    assert counted == CountingList.total > 0


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The seconds of every piece of work, by a clock that advances by 1 s when it is read."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(meter.time, "perf_counter", lambda: float(next(ticks)))
    measured: list[float] = []
    charge = meter._charge_seconds

    def charge_and_keep(seconds: float, shares: list, stage: Stage) -> None:
        measured.append(seconds)
        charge(seconds, shares, stage)

    monkeypatch.setattr(meter, "_charge_seconds", charge_and_keep)
    return measured


def test_device_seconds_add_up(measurements: list[float]) -> None:
    """Shares of rows sum to the measured total: one second for each measurement."""
    deliveries = draw(BestOfN(2, PixelSum()), jobs(TEXTS))
    usages = [delivery.usage for delivery in deliveries.values()]
    assert sum(usage.device_s for usage in usages) == pytest.approx(len(measurements))
    for usage in usages:
        stages = {stage: getattr(usage, f"{stage}_s") for stage in get_args(Stage)}
        assert sum(stages.values()) == pytest.approx(usage.device_s)
        assert {stage for stage, seconds in stages.items() if seconds == 0} == {"draft"}


# ------------------------------------------------------------------ methods and judges that fail


class Misbehaving(Plain):
    """Plain sampling that does one thing wrong for one of the prompts."""

    rows = 2

    def __init__(self, how: str) -> None:
        self.how = how

    async def generate(self, prompt: str, s: Session) -> Canvas:
        a, b = s.open(2)
        await s.run([a, b], until=5)
        if prompt != TEXTS[1]:
            await s.run([a])
            return a
        if self.how == "raises":
            raise ZeroDivisionError("oops")
        if self.how == "too many":
            s.open(1)
        if self.how == "uses a closed one":
            s.close(b)
            await s.run([b])
        if self.how == "awaits something else":
            await _Foreign()
        return b  # unfinished


class _Foreign:
    def __await__(self) -> object:
        yield "not a request"


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("raises", "ZeroDivisionError: oops"),
        ("too many", "more canvases than its `rows`"),
        ("uses a closed one", "closed or belongs to another job"),
        ("awaits something else", "only a session's requests"),
        ("returns early", "5 of 16 tokens"),
    ],
)
def test_a_job_that_fails_fails_alone_and_frees_its_slots(how: str, error: str) -> None:
    others = [job for job in jobs(TEXTS) if job.prompt.text != TEXTS[1]]
    deliveries = draw(Misbehaving(how), jobs(TEXTS))
    good = draw(Misbehaving(how), others)
    assert error in deliveries["toy/00001", 0].error
    assert all(deliveries[key].tokens == delivery.tokens for key, delivery in good.items())


class Fussy(PixelSum):
    """A reward that has no answer about one text."""

    def __call__(self, texts: Any, images: Any) -> list[float]:
        if TEXTS[2] in texts:
            raise TimeoutError("no answer")
        return super().__call__(texts, images)


def test_a_judge_that_fails_on_one_image_fails_one_job() -> None:
    deliveries = draw(BestOfN(2, Fussy()), jobs(TEXTS))
    errors = [delivery.error for delivery in deliveries.values() if delivery.error]
    (said,) = errors
    assert said.startswith("TimeoutError: no answer (tests/test_conservation.py, line ")
    for delivery in deliveries.values():
        assert delivery.error or delivery.usage.judge_calls == 2


class Wordy(PixelSum):
    """A reward that reads and writes as many tokens as its text has letters."""

    tokens: list[int]

    def __call__(self, texts: Any, images: Any) -> list[float]:
        self.tokens = [len(text) for text in texts]
        return super().__call__(texts, images)


def test_each_job_is_charged_with_the_tokens_of_its_own_questions() -> None:
    for delivery in draw(BestOfN(3, Wordy()), jobs(TEXTS)).values():
        assert delivery.usage.judge_tokens == 3 * len(delivery.job.prompt.text)
    for delivery in draw(BestOfN(3, PixelSum()), jobs(TEXTS)).values():
        assert delivery.usage.judge_tokens == 0


def test_rewards_see_the_text_and_the_image_only() -> None:
    """With a falsified answer key nothing changes: no method and no reward can read it."""
    true = jobs(TEXTS)
    false = jobs(TEXTS)
    for job in false:
        job.prompt.spec["answer"] = "falsified"  # type: ignore[index]
    reward = BestOfN(4, PixelSum())
    honest = draw(reward, true)
    misled = draw(reward, false)
    assert [d.tokens for d in honest.values()] == [d.tokens for d in misled.values()]


# ------------------------------------------------------------------ what is refused


def test_a_session_has_no_public_name_for_what_a_method_must_not_reach() -> None:
    public = {name for name in dir(Session) if not name.startswith("_")}
    properties = {"codebook", "grid", "num_tokens", "raster"}
    immediate = {"close", "commit", "condition", "fork", "note", "open", "rng", "truncate"}
    awaitable = {
        "ask",
        "draft",
        "draft_at",
        "draw_at",
        "look",
        "look_along",
        "render",
        "run",
        "step",
        "step_at",
    }
    assert public == properties | immediate | awaitable


def test_a_method_that_does_not_fit_is_refused_before_any_compute() -> None:
    model = ToyModel()
    sampler = Sampler(model, Sampling(scale=2.0), slots=6)
    with pytest.raises(UserError, match=r"sampler\.slots=6 is too few: the method needs 8"):
        Scheduler(BestOfN(4), sampler, seed=0)

    class Wide(Plain):
        tokens_per_step = 3

    with pytest.raises(
        UserError, match=r"sampler\.tokens_per_step=1 is too small: the method needs 3"
    ):
        Scheduler(Wide(), sampler, seed=0)

    class Guided(Plain):
        needs_guidance = True

    Scheduler(Guided(), sampler, seed=0)
    with pytest.raises(UserError, match="the method needs it"):
        Scheduler(Guided(), Sampler(model, Sampling(scale=1.0), slots=6), seed=0)
    assert model.forwards == 0


class Stingy:
    """A drafter that forgets a row."""

    def propose(self, sampler: Any, rows: Any, n: int, sibling: int = 0) -> list[None]:
        return [None] * (len(rows) - 1)


class Drafting(Plain):
    """Asks its drafter for drafts, and draws nothing."""

    drafter = Stingy()

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        await s.draft(self.drafter, [canvas], 1)
        return canvas


def test_a_drafter_that_forgets_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="drafter Stingy gave 5 drafts for 6 rows"):
        draw(Drafting(), jobs(TEXTS))


@pytest.mark.parametrize(
    "bad", [{"scale": 0.5}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_sampling_out_of_range_is_refused(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(UserError, match=f"sampling.{name}={bad[name]}"):
        Sampling(**bad)
