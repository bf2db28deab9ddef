"""Conservation: every token is counted once, thrown away or delivered; no slot leaks, whatever a
method does.
"""

from __future__ import annotations

from typing import get_args

import pytest
from test_batch_invariance import Wanderer
from toy import TEXTS, PixelSum, ToyModel, draw, jobs

from harness.engine import meter
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Scheduler
from harness.engine.session import Method, Session
from harness.records import Stage, UserError
from methods.best_of_n import BestOfN
from methods.plain import Plain


@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_costs_n_images(n: int) -> None:
    for delivery in draw(BestOfN(n, PixelSum()), jobs(TEXTS)).values():
        usage = delivery.usage
        assert usage.visual_tokens == usage.sampled == n * 16
        assert usage.discarded == (n - 1) * 16
        assert usage.target_positions == n * 2 * 15  # two branches; the last token is never fed
        assert usage.renders == n
        assert usage.judge_calls == (n if n > 1 else 0)


@pytest.mark.parametrize("method", [Plain(), BestOfN(3), Wanderer()])
def test_tokens_ever_committed_are_sampled_or_skipped(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted a second time, at the one place where a canvas grows."""
    grown = {"tokens": 0}

    class Counting(list):
        def extend(self, more: object) -> None:
            before = len(self)
            super().extend(more)  # type: ignore[arg-type]
            grown["tokens"] += len(self) - before

    opened = Sampler.open

    def open_counting(self: Sampler, *args: object, **kwargs: object) -> Canvas:
        canvas = opened(self, *args, **kwargs)  # type: ignore[arg-type]
        canvas._tokens = Counting()
        return canvas

    forked = Sampler.fork

    def fork_counting(self: Sampler, src: Canvas, over: Canvas) -> None:
        forked(self, src, over)
        over._tokens = Counting(over._tokens)

    monkeypatch.setattr(Sampler, "open", open_counting)
    monkeypatch.setattr(Sampler, "fork", fork_counting)
    deliveries = draw(method, jobs(TEXTS))
    assert (
        sum(d.usage.sampled + d.usage.skipped for d in deliveries.values()) == grown["tokens"] > 0
    )


def test_device_seconds_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of rows sum to the measured total: with a clock of 1 s a reading, to one second per
    measurement.
    """

    ticks = iter(range(10**6))
    monkeypatch.setattr(meter.time, "perf_counter", lambda: float(next(ticks)))
    measured = {"count": 0}
    share = meter._share

    def counting(seconds: float, shares: list, stage: str) -> None:
        measured["count"] += 1
        share(seconds, shares, stage)

    monkeypatch.setattr(meter, "_share", counting)
    deliveries = draw(BestOfN(2, PixelSum()), jobs(TEXTS))
    usages = [delivery.usage for delivery in deliveries.values()]
    assert sum(usage.device_s for usage in usages) == pytest.approx(measured["count"])
    for usage in usages:
        stages = {stage: getattr(usage, f"{stage}_s") for stage in get_args(Stage)}
        assert sum(stages.values()) == pytest.approx(usage.device_s)
        assert {stage for stage, seconds in stages.items() if seconds == 0} == {"draft"}


class Misbehaving(Plain):
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
    deliveries = draw(Misbehaving(how), jobs(TEXTS))
    good = draw(Misbehaving(how), [job for job in jobs(TEXTS) if job.prompt.text != TEXTS[1]])
    assert error in deliveries["toy/00001", 0].error
    assert all(deliveries[key].tokens == delivery.tokens for key, delivery in good.items())


def test_a_judge_that_fails_on_one_image_fails_one_job() -> None:
    class Fussy(PixelSum):
        def __call__(self, texts: object, images: object) -> list[float]:
            if TEXTS[2] in texts:  # type: ignore[operator]
                raise TimeoutError("no answer")
            return super().__call__(texts, images)  # type: ignore[arg-type]

    deliveries = draw(BestOfN(2, Fussy()), jobs(TEXTS))
    assert [d.error for d in deliveries.values() if d.error] == ["TimeoutError: no answer"]
    assert all(d.usage.judge_calls == 2 for d in deliveries.values() if not d.error)


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


@pytest.mark.parametrize(
    "bad", [{"scale": 0.5}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_sampling_out_of_range_is_refused(bad: dict[str, float]) -> None:
    (name,) = bad
    with pytest.raises(UserError, match=f"sampling.{name}={bad[name]}"):
        Sampling(**bad)  # type: ignore[arg-type]
