"""What the author of a method gets wrong is told in one line: where it is, and what to write.

It fails its image alone, or ends the run where no image could be drawn, and all slots are free
afterwards.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from toy import TEXTS, ToyModel, draw, jobs

from harness.engine import watchdog
from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Method, Session
from harness.records import UserError, explain_error
from methods.best_of_n import BestOfN

BAD = TEXTS[1]
"""The prompt on which a method makes its mistake; it draws the others as plain sampling does."""
Mistake = Callable[[Canvas, Session], Awaitable[Any]]


class Mistaken:
    """Plain sampling, with a mistake about one prompt."""

    rows = 1
    branches = 2
    tokens_per_step = 1

    def __init__(self, mistake: Mistake) -> None:
        self.mistake = mistake

    async def generate(self, prompt: str, s: Session) -> Any:
        (canvas,) = s.open()
        if prompt == BAD:
            return await self.mistake(canvas, s)
        await s.run([canvas])
        return canvas


def draw_mistaken(mistake: Mistake, texts: Sequence[str] = TEXTS, **options: Any) -> str:
    """Draw all prompts. Returns the error of the bad one; the others must be as without it."""
    done = draw(Mistaken(mistake), jobs(texts), **options)
    (failed,) = (delivery for delivery in done.values() if delivery.job.prompt.text == BAD)
    others = [job for job in jobs(texts) if job.prompt.text != BAD]
    alone = draw(Mistaken(mistake), others)
    assert {key: done[key].tokens for key in alone} == {key: alone[key].tokens for key in alone}
    assert failed.image is None
    return failed.error


async def return_none(canvas: Canvas, s: Session) -> None:
    await s.run([canvas])


async def return_list(canvas: Canvas, s: Session) -> list[Canvas]:
    await s.run([canvas])
    return [canvas]


async def return_tokens(canvas: Canvas, s: Session) -> str:
    return "done"


async def return_unfinished(canvas: Canvas, s: Session) -> Canvas:
    return canvas


async def pass_canvas(canvas: Canvas, s: Session) -> Canvas:
    await s.run(canvas)  # type: ignore[arg-type]
    return canvas


async def pass_nested(canvas: Canvas, s: Session) -> Canvas:
    await s.render([[canvas]])  # type: ignore[list-item]
    return canvas


async def close_list(canvas: Canvas, s: Session) -> Canvas:
    s.close([canvas])  # type: ignore[arg-type]
    return canvas


async def forget_await(canvas: Canvas, s: Session) -> Canvas:
    s.run([canvas])
    return canvas


async def forget_answer(canvas: Canvas, s: Session) -> Canvas:
    await s.run([canvas])
    (_image,) = s.render([canvas])  # type: ignore[misc, var-annotated]
    return canvas


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (return_none, ["returned None", "`return canvas`", "Mistaken (tests/test_author_errors"]),
        (return_list, ["returned a list of 1", "`canvases[0]`"]),
        (return_tokens, ["returned a str", "one of its canvases"]),
        (return_unfinished, ["0 of 16 tokens", "`await s.run([canvas])`"]),
        (pass_canvas, ["list of canvases", "`s.run([canvas])`", "await s.run(canvas)"]),
        (pass_nested, ["s.render", "element 0 is a list", "await s.render([[canvas]])"]),
        (close_list, ["not a list", "s.close([canvas])"]),
        (forget_await, ["without await", "`await s.run(...)`", "test_author_errors.py, line"]),
        (forget_answer, ["without await", "`await s.render(...)`", "caused by TypeError"]),
    ],
)
def test_a_mistake_about_one_prompt_fails_its_image_alone(
    mistake: Mistake, words: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    error = draw_mistaken(mistake)
    assert "\n" not in error
    for word in words:
        assert word in error
    assert "author_errors.py, line" not in error.replace("test_author_errors.py, line", "")
    assert not recwarn.list  # Python's own about the forgotten await, long after


def test_calls_that_are_awaited_later_are_no_mistake() -> None:
    class Later(Mistaken):
        async def generate(self, prompt: str, s: Session) -> Canvas:
            (canvas,) = s.open()
            first = s.run([canvas], until=4)
            second = s.run([canvas])
            await first
            await second
            return canvas

    assert all(
        delivery.image is not None for delivery in draw(Later(return_none), jobs(TEXTS)).values()
    )


# ------------------------------------------------------------------ methods that end the run


class NotAsync:
    rows = 1
    branches = 2
    tokens_per_step = 1

    def generate(self, prompt: str, s: Session) -> Canvas:
        return s.open()[0]


class Yielding(Mistaken):
    async def generate(self, prompt: str, s: Session) -> Any:
        yield s.open()[0]


class OneArgument(NotAsync):
    async def generate(self, prompt: str) -> None:  # type: ignore[override]
        return None


class OneBranch(Mistaken):
    branches = 1


class EarlierName(NotAsync):
    """One branch under the member's earlier name."""

    branches = None  # type: ignore[assignment]
    streams = 1


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (NotAsync(), ["NotAsync (tests", "`async def generate(self, prompt, s)`"]),
        (Yielding(return_none), ["`yield`", "return a canvas"]),
        (OneArgument(), ["OneArgument", "generate(prompt: 'str')", "self, prompt, s"]),
        (OneBranch(return_none), ["branches=1", "scale=2", "`branches = 2`"]),
        (EarlierName(), ["branches=1", "scale=2", "`branches = 2`"]),
    ],
)
@pytest.mark.parametrize("prompts", [2, 24])
def test_a_method_that_can_draw_nothing_ends_the_run(
    method: Any, words: list[str], prompts: int
) -> None:
    with pytest.raises(UserError) as raised:
        draw(method, jobs(["a cat"], prompts))
    for word in words:
        assert word in str(raised.value)


def test_one_branch_is_enough_without_guidance() -> None:
    (delivery,) = draw(OneBranch(return_none), jobs(["a cat"]), sampling=Sampling()).values()
    assert delivery.image is not None


# ------------------------------------------------------------------ a decoding of one's own


class Chain:
    """A decoding that says nothing of trees."""

    tokens_per_step = 1

    async def finish(self, rows: Sequence[Canvas], s: Session) -> None:
        await s.run(rows)


def test_a_decoding_without_tree_capacity_is_told_what_to_declare() -> None:
    with pytest.raises(UserError, match="decoding Chain does not declare `tree_capacity`: set it"):
        BestOfN(2, decoding=Chain())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="decoding PixelSum has no `async def finish"):
        BestOfN(2, decoding=type("PixelSum", (), {})())


def test_a_decoding_that_declares_its_sizes_serves() -> None:
    chain = Chain()
    chain.tree_capacity = 0  # type: ignore[attr-defined]
    method = BestOfN(2, decoding=chain)  # type: ignore[arg-type]
    assert (method.tokens_per_step, method.tree_capacity) == (1, 0)
    done = draw(method, jobs(["a cat"]))
    assert done["toy/00000", 0].tokens == draw(BestOfN(2), jobs(["a cat"]))["toy/00000", 0].tokens


# ------------------------------------------------------------------ no progress


async def spin(canvas: Canvas, s: Session) -> None:
    while True:
        pass


async def spin_and_catch(canvas: Canvas, s: Session) -> None:
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


async def spin_in_session(canvas: Canvas, s: Session) -> None:
    while True:
        s.truncate(canvas, 0)


async def run_for_nothing(canvas: Canvas, s: Session) -> None:
    await s.run([canvas], until=4)
    while canvas.length < 5:
        await s.run([canvas], until=4)


async def look_for_nothing(canvas: Canvas, s: Session) -> None:
    while True:
        await s.render([canvas])


def draw_stuck(
    mistake: Mistake, texts: Sequence[str] = TEXTS, **options: Any
) -> dict[Any, Delivery]:
    """Draw with a short patience; all slots are free afterwards, whatever happens."""
    sampler = Sampler(ToyModel(), Sampling(scale=2.0), slots=12, prefill=(3, 4))
    method: Method = Mistaken(mistake)
    scheduler = Scheduler(method, sampler, seed=0, stuck_after_s=0.3, **options)
    done: dict[Any, Delivery] = {}
    try:
        scheduler.run(jobs(texts), lambda delivery: done.update({delivery.job.key: delivery}))
    finally:
        assert sampler.free == 12
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    return done


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (spin, ["has not awaited", "while True:", "in spin"]),
        (spin_and_catch, ["has not awaited", "time.sleep(60)"]),
        # The alarm rings inside the call or between two of them: either line is right.
        (spin_in_session, ["has not awaited", "in spin_in_session"]),
        (run_for_nothing, ["drawn no token", "await s.run([canvas], until=4)"]),
        (look_for_nothing, ["drawn no token", "await s.render([canvas])"]),
    ],
)
def test_a_method_that_makes_no_progress_fails_its_image_alone(
    mistake: Mistake, words: list[str]
) -> None:
    done = draw_stuck(mistake)
    error = done["toy/00001", 0].error
    for word in ["StuckError", "stuck_after_s", "test_author_errors.py, line", *words]:
        assert word in error, error
    assert sum(delivery.image is not None for delivery in done.values()) == len(TEXTS) - 1


def test_a_method_that_is_always_stuck_ends_the_run() -> None:
    with pytest.raises(UserError, match=r"3 images in a row got stuck: StuckError: .*in spin"):
        draw_stuck(spin, [BAD] * 5, concurrency=1)


def test_a_slow_turn_is_left_alone_where_nobody_may_handle_alarms() -> None:
    """Another handler of SIGALRM, and another thread, keep what they have."""

    async def take_a_while(canvas: Canvas, s: Session) -> Canvas:
        time.sleep(0.6)
        await s.run([canvas])
        return canvas

    def take_all() -> None:
        done.update(draw(Mistaken(take_a_while), jobs(TEXTS)))

    done: dict[Any, Delivery] = {}
    thread = threading.Thread(target=take_all)
    thread.start()
    thread.join()
    assert all(delivery.image is not None for delivery in done.values())

    def keep(number: int, frame: object) -> None:
        pass

    former = signal.signal(signal.SIGALRM, keep)
    try:
        with watchdog.TurnTimer(0.05).installed():
            assert signal.getsignal(signal.SIGALRM) is keep
    finally:
        signal.signal(signal.SIGALRM, former)


def test_waiting_for_a_slow_judge_is_no_fault() -> None:
    """Few turns pass, however long each of them takes."""
    progress = watchdog.Progress()
    assert progress.count_turn(4, limit_s=0.0) is None
    for _ in range(watchdog.IDLE_TURNS - 1):
        assert progress.count_turn(4, limit_s=0.0) is None
    assert isinstance(progress.count_turn(4, limit_s=0.0), watchdog.StuckError)
    assert progress.count_turn(5, limit_s=0.0) is None  # a token
    assert progress.turns == 0


def test_without_a_limit_nothing_is_ever_stuck() -> None:
    progress = watchdog.Progress()
    for _ in range(3 * watchdog.IDLE_TURNS):
        assert progress.count_turn(4, limit_s=None) is None


# ------------------------------------------------------------------ causes


def test_a_chain_of_causes_is_told_to_its_root() -> None:
    def read() -> None:
        raise OSError("no such table")

    def load() -> None:
        try:
            read()
        except OSError as error:
            raise ValueError("bad file") from error

    try:
        try:
            load()
        except ValueError as error:
            raise RuntimeError("no method") from error
    except RuntimeError as error:
        told = explain_error(error)
    first, second, third = told.split("; caused by ")
    assert first.startswith("RuntimeError: no method (tests/test_author_errors.py, line")
    assert "ValueError: bad file" in second and "in load" in second
    assert "OSError: no such table" in third and "in read" in third
