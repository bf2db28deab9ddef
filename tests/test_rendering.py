"""Images are decoded beside the drawing of others, and neither waits for the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.engine import rendering
from harness.engine.canvas import Canvas
from harness.engine.forward import Forward
from harness.engine.rendering import Picture, Renderer
from harness.engine.session import Method, Session
from harness.records import Usage
from methods.best_of_n import BestOfN
from methods.plain import Plain


class Slow:
    """The event of a picture on a device that is behind: it is there after some asking, or when it
    is waited for.
    """

    waited = 0

    def __init__(self, polls: int) -> None:
        self._polls = polls

    def query(self) -> bool:
        self._polls -= 1
        return self._polls < 0

    def synchronize(self) -> None:
        Slow.waited += self._polls >= 0
        self._polls = -1


class Looker:
    """Looks at its half-drawn image, then draws on."""

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


def slowly(monkeypatch: pytest.MonkeyPatch, polls: int) -> None:
    """As on a GPU: a picture is not there when it was begun."""
    decode = Renderer.decode

    def late(self: Renderer, tokens: Any) -> list[Picture]:
        return [Picture(picture._pixels_HW3, Slow(polls)) for picture in decode(self, tokens)]  # type: ignore[arg-type]

    Slow.waited = 0
    monkeypatch.setattr(rendering.Renderer, "decode", late)


@pytest.mark.parametrize("polls", [0, 3, 1000])
@pytest.mark.parametrize("method", [Plain(), BestOfN(2, PixelSum()), Looker()])
def test_images_do_not_depend_on_when_they_are_there(
    method: Method, polls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = jobs(TEXTS, images=2)
    at_once = draw(method, some, slots=8)
    slowly(monkeypatch, polls)
    later = draw(method, some, slots=8)
    assert Slow.waited > 0 or polls < 1000
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
    slowly(monkeypatch, polls=10_000)
    seen: list[str] = []
    image = Picture.image
    charge_steps = Forward.charge_steps

    def counting(forward: Forward, rows: Sequence[Canvas], count: int) -> None:
        seen.extend(["forward"] * count)
        charge_steps(forward, rows, count)

    monkeypatch.setattr(Forward, "charge_steps", counting)
    monkeypatch.setattr(Picture, "image", lambda self: (seen.append("image"), image(self))[1])
    draw(Plain(), jobs(TEXTS[:3]), slots=2, concurrency=3)
    first = seen.index("image")
    assert seen[:first].count("forward") == 3 * ToyModel().num_tokens


@pytest.mark.parametrize("device", DEVICES)
def test_a_picture_does_not_depend_on_its_company(device: str) -> None:
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
    class Model:
        pass

    Model.device = torch.device(device)  # type: ignore[attr-defined]
    assert rendering.images_at_once(Model(), 16) == chunk  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here to decode beside")
def test_decoding_happens_on_a_stream_of_its_own() -> None:
    model: Any = ToyModel(device="cuda")
    renderer = Renderer(model, 4)
    with renderer.beside():
        assert torch.cuda.current_stream() != torch.cuda.default_stream()
        (picture,) = renderer.decode([[1, 2]])
    assert picture._pixels_HW3.is_pinned()
    assert np.array_equal(picture.image(), model.decode(_padded(model, [1, 2]))[0].cpu().numpy())


def _padded(model: Any, tokens: list[int]) -> torch.Tensor:
    return torch.tensor([[*tokens, *[-1] * (model.num_tokens - len(tokens))]], device=model.device)


def test_device_seconds_of_one_job_are_settled_alone() -> None:
    from harness.engine.meter import Clock

    class Event:
        def synchronize(self) -> None: ...

        def elapsed_time(self, _other: Event) -> float:
            return 2000.0

    clock = Clock(torch.device("cuda"))
    mine = Usage()
    other = Usage()
    event: Any = Event()
    clock._open = [(event, event, [mine, other], "render"), (event, event, [other], "decode")]
    clock.settle(mine)
    assert (mine.device_s, mine.render_s, other.device_s, len(clock._open)) == (1.0, 1.0, 1.0, 1)
    clock.settle(None)
    assert (other.device_s, other.decode_s, clock._open) == (3.0, 2.0, [])
