"""Images are decoded beside the drawing of others, and neither waits for the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.engine.canvas import Canvas
from harness.engine.forward import Forward
from harness.engine.meter import Clock
from harness.engine.rendering import Image, Picture, Renderer, images_at_once
from harness.engine.session import Method, Session
from harness.records import Usage
from methods.best_of_n import BestOfN
from methods.plain import Plain

# ------------------------------------------------------------------ a device that is slow


class SlowEvent:
    """The event of a picture on a slow device: it happens after `polls` queries, or if waited for.

    `waits` counts, over all events, how often somebody waited for one that had not happened.
    """

    waits = 0

    def __init__(self, polls: int) -> None:
        self._polls = polls

    def query(self) -> bool:
        self._polls -= 1
        return self._polls < 0

    def synchronize(self) -> None:
        SlowEvent.waits += self._polls >= 0
        self._polls = -1


def slow_down(monkeypatch: pytest.MonkeyPatch, polls: int) -> None:
    """As on a GPU: a picture is not there yet when its decoding has begun."""
    decode = Renderer.decode

    def decode_slowly(self: Renderer, tokens: Any) -> list[Picture]:
        event: Any
        slow = []
        for picture in decode(self, tokens):
            event = SlowEvent(polls)
            slow.append(Picture(picture.pixels_HW3, picture.is_finite, event))
        return slow

    monkeypatch.setattr(SlowEvent, "waits", 0)
    monkeypatch.setattr(Renderer, "decode", decode_slowly)


class Looker:
    """Renders its half-drawn image, then draws on."""

    rows = 1
    branches = 2
    tokens_per_step = 1

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open(1)
        await s.run([canvas], until=s.num_tokens // 2)
        (before,) = await s.render([canvas])
        await s.run([canvas])
        (after,) = await s.render([canvas])
        s.note(before=int(before.sum()), after=int(after.sum()))
        return canvas


@pytest.mark.parametrize("polls", [0, 3, 1000])
@pytest.mark.parametrize("method", [Plain(), BestOfN(2, PixelSum()), Looker()])
def test_images_do_not_depend_on_when_they_are_there(
    method: Method, polls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = jobs(TEXTS, images=2)
    at_once = draw(method, some, slots=8)
    slow_down(monkeypatch, polls)
    later = draw(method, some, slots=8)
    assert SlowEvent.waits > 0 or polls < 1000
    for key, delivery in at_once.items():
        assert not later[key].error
        assert later[key].tokens == delivery.tokens
        assert np.array_equal(later[key].image, delivery.image)  # type: ignore[arg-type]
        assert later[key].notes == delivery.notes
        assert later[key].usage.renders == delivery.usage.renders


def test_slots_go_to_others_while_the_last_image_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With slots for one image at a time, the next is drawn before the first is waited for."""
    slow_down(monkeypatch, polls=10_000)
    seen: list[str] = []
    plain_image = Picture.image
    charge_steps = Forward.charge_steps

    def image_and_log(picture: Picture) -> Image:
        seen.append("image")
        return plain_image(picture)

    def charge_and_log(forward: Forward, rows: Sequence[Canvas], count: int) -> None:
        seen.extend(["forward"] * count)
        charge_steps(forward, rows, count)

    monkeypatch.setattr(Forward, "charge_steps", charge_and_log)
    monkeypatch.setattr(Picture, "image", image_and_log)
    draw(Plain(), jobs(TEXTS[:3]), slots=2, concurrency=3)
    first = seen.index("image")
    assert seen[:first].count("forward") == 3 * ToyModel().num_tokens


# ------------------------------------------------------------------ the renderer


@pytest.mark.parametrize("device", DEVICES)
def test_a_picture_does_not_depend_on_its_batch(device: str) -> None:
    model: Any = ToyModel(device=device)
    renderer = Renderer(model, 4)
    renderer.chunk = 4  # on a CPU, too
    tokens = [list(range(length)) for length in (model.num_tokens - 1, 3, 0)]
    with renderer.beside():
        together = [picture.image() for picture in renderer.decode(tokens)]
        for row, expected in zip(tokens, together, strict=True):
            (alone,) = renderer.decode([row])
            assert np.array_equal(alone.image(), expected)
            assert alone.ready


@pytest.mark.parametrize(("device", "chunk"), [("cpu", 1), ("cuda", 16)])
def test_images_are_decoded_one_by_one_on_a_cpu(device: str, chunk: int) -> None:
    assert images_at_once(torch.device(device), 16) == chunk


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here to decode beside")
def test_decoding_happens_on_a_stream_of_its_own() -> None:
    model: Any = ToyModel(device="cuda")
    renderer = Renderer(model, 4)
    with renderer.beside():
        assert torch.cuda.current_stream() != torch.cuda.default_stream()
        (picture,) = renderer.decode([[1, 2]])
    assert picture.pixels_HW3.is_pinned()
    missing = [-1] * (model.num_tokens - 2)
    token_1N = torch.tensor([[1, 2, *missing]], device=model.device)
    assert np.array_equal(picture.image(), model.decode(token_1N)[0].cpu().numpy())


# ------------------------------------------------------------------ the clock


class TimedEvent:
    """A CUDA event; any two of them are two seconds apart."""

    recorded: ClassVar[list[str]] = []  # on which streams

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str) -> None:
        self.recorded.append(stream)

    def synchronize(self) -> None: ...

    def elapsed_time(self, _other: TimedEvent) -> float:
        return 2000.0


def test_device_seconds_of_one_job_are_settled_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", TimedEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"a stream of {device}")
    clock = Clock(torch.device("cuda:1"))
    mine = Usage()
    other = Usage()
    with clock.measure([mine, other], "render"):
        pass
    with clock.measure([other], "decode"):
        pass
    assert (mine.device_s, other.device_s) == (0.0, 0.0)  # nothing waits for the device
    assert set(TimedEvent.recorded) == {"a stream of cuda:1"}  # whichever device is current

    clock.settle(mine)
    assert (mine.device_s, mine.render_s) == (1.0, 1.0)
    assert (other.device_s, other.render_s, other.decode_s) == (1.0, 1.0, 0.0)

    clock.settle(None)
    assert (other.device_s, other.render_s, other.decode_s) == (3.0, 1.0, 2.0)

    clock.settle(None)  # all is charged once
    assert (mine.device_s, other.device_s) == (1.0, 3.0)
