"""The embedded verifier: certain before it rejects, right about what is seen, and within the
grammar when it writes.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.judges.pictogram import PictogramReward
from harness.judges.pictogram_verifier import PictogramVerifier, faults, layout_of
from harness.models.pictogram import grammar, world
from harness.models.pictogram.generator import Pictogram
from harness.models.pictogram.grammar import CLASS_SETS, TASKS, Layout, Spec, make_spec
from harness.records import Job, Prompt
from methods.gridar import GridAR, composite, masked

SET = "pictogram_80"
Scene = tuple[Spec, Layout, np.ndarray]


@pytest.fixture(scope="module")
def verifier() -> PictogramVerifier:
    return PictogramVerifier(SET)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Right pictures of every task, each with the layout it was composed in."""
    rng = random.Random("verifier")
    made = []
    for number in range(96):
        spec = grammar.sample_spec(TASKS[number % 6], CLASS_SETS[SET], rng)
        layout = rng.choice(grammar.layouts(spec)) if len(grammar.objects(spec)) > 1 else ()
        made.append((spec, layout, world.draw_scene(spec, rng, layout)[0]))
    return made


def placed(*things: tuple[str, str | None, int, int, int]) -> np.ndarray:
    """A picture with sprites (class, colour, x, y, size) on a plain background."""
    pixels = np.empty((48, 48, 3), np.uint8)
    pixels[:] = world.BACKGROUNDS[0]
    for name, color, x, y, size in things:
        pixels[y : y + size, x : x + size] = world.patch_of(name, color, size, 0)[0]
    return pixels


def reasons(
    verifier: PictogramVerifier, spec: Spec, pixels: np.ndarray, rows: int = 24
) -> list[str]:
    (view,) = verifier.views([pixels[:rows]])
    return list(faults(spec, view))


@pytest.mark.parametrize("rows", [12, 24, 36])
def test_right_pictures_are_possible(
    verifier: PictogramVerifier, scenes: list[Scene], rows: int
) -> None:
    views = verifier.views([pixels[:rows] for _, _, pixels in scenes])
    rejected = [list(faults(spec, view)) for (spec, _, _), view in zip(scenes, views, strict=True)]
    assert sum(map(bool, rejected)) <= 0.04 * len(scenes), [one for one in rejected if one]


def test_wrong_pictures_are_rejected_when_it_is_certain(verifier: PictogramVerifier) -> None:
    cats = make_spec(["cat"], count=2)
    red = make_spec(["car"], colors=["red"])
    assert reasons(verifier, cats, placed(*(("cat", None, x, 2, 16) for x in (0, 16, 32)))) == [
        "too many objects"
    ]
    assert reasons(verifier, cats, placed(("cat", None, 0, 2, 16))) == []
    assert reasons(verifier, red, placed(("car", "blue", 10, 2, 20)))[0] == "a blue car"
    assert reasons(verifier, red, placed(("car", "blue", 10, 10, 24))) == [
        "a wrong colour"
    ]  # cut off, and yet sure
    assert reasons(verifier, red, placed(("car", "red", 10, 10, 24))) == []
    pair = make_spec(["cat", "dog"])
    assert "a bottle that was not asked for" in reasons(
        verifier, pair, placed(("bottle", None, 10, 2, 20))
    )
    above = make_spec(["cat", "dog"], relation="above")
    assert reasons(verifier, above, placed(("dog", None, 10, 2, 20))) == [
        "nothing can come above the dog any more"
    ]
    assert reasons(verifier, above, placed(("cat", None, 10, 2, 20))) == []
    assert reasons(verifier, above, placed()) == ["no room for one above the other"]
    assert reasons(verifier, above, placed(), rows=12) == []
    left = make_spec(["cat", "dog"], relation="left of")
    assert reasons(verifier, left, placed(("cat", None, 28, 2, 20))) == [
        "no room on the right of the cat"
    ]
    four = make_spec(["cat"], count=4)
    assert reasons(verifier, four, placed()) == ["no room for the rest"]
    assert reasons(verifier, four, placed(), rows=12) == []


def test_layouts_are_those_that_are_seen(verifier: PictogramVerifier) -> None:
    def layout(spec: Spec, pixels: np.ndarray) -> Layout:
        (view,) = verifier.views([pixels[:24]])
        return layout_of(spec, view)

    cats = make_spec(["cat"], count=3)
    assert layout(cats, placed(("cat", None, 0, 2, 16), ("cat", None, 28, 4, 16))) == (
        "top",
        "top",
        "bottom",
    )
    assert layout(cats, placed()) == ("bottom",) * 3
    assert layout(cats, placed(("cat", None, 0, 8, 24))) == ()  # it lies across the middle
    pair = make_spec(["cat", "dog"])
    assert layout(pair, placed(("dog", None, 10, 2, 20))) == ("bottom", "top")
    assert layout(pair, placed(("dog", None, 0, 2, 20), ("cat", None, 24, 0, 20))) == (
        "right",
        "left",
    )
    assert layout(pair, placed()) == ()
    assert layout(make_spec(["cat"]), placed(("cat", None, 0, 2, 20))) == ()


def test_it_answers_like_a_language_model_and_keeps_the_prompt(
    verifier: PictogramVerifier, scenes: list[Scene]
) -> None:
    texts = [grammar.caption(spec) for spec, _, _ in scenes]
    pictures = [pixels for _, _, pixels in scenes]
    for share, strips in ((0.25, 4), (0.5, 2)):
        select = verifier.select(strips)
        stacks = [composite([pixels] * strips, share, 1) for pixels in pictures]
        replies = select(texts, stacks)
        assert all(
            reply is not None and len(set(reply.split(", "))) == 1 for reply in replies
        )  # lines do not matter
        rewritten = verifier.rewrite(texts, [masked(pixels, share, 1) for pixels in pictures])
        for text, new, (spec, _, _) in zip(texts, rewritten, scenes, strict=True):
            assert new is not None and new.startswith(text)
            assert len(grammar.words(new)) <= grammar.PROMPT_POSITIONS
            parsed = grammar.parse_layout(new)
            assert parsed is not None and parsed[0] == spec
    assert verifier.rewrite(texts[:1], [np.zeros((48, 48, 3), np.uint8)])[0] is not None
    assert verifier.select(2)(["a sunset in Provence"], stacks[:1]) == [None]
    assert verifier.rewrite(["a sunset in Provence"], pictures[:1]) == [None]


def test_company_changes_no_answer(verifier: PictogramVerifier, scenes: list[Scene]) -> None:
    texts = [grammar.caption(spec) for spec, _, _ in scenes[:12]]
    stacks = [composite([pixels, pixels[::-1]], 0.5, 1) for _, _, pixels in scenes[:12]]
    select = verifier.select(2)
    assert select(texts, stacks) == [
        select([text], [stack])[0] for text, stack in zip(texts, stacks, strict=True)
    ]


def test_gridar_on_the_embedded_model(verifier: PictogramVerifier) -> None:
    """A whole run: no failures, the paper's number of calls, and rewritten prompts that the model
    knows.
    """
    texts = ["a photo of three cats", "a photo of a dog above a cat"]
    some = [Job(Prompt(f"p/{i}", text, "any"), 0) for i, text in enumerate(texts)]
    stages = {"quarter": {"share": 0.25, "strips": 4}, "half": {"share": 0.5, "strips": 2}}
    method = GridAR(4, stages, verifier, PictogramReward(SET), line=1)
    sampler = Sampler(Pictogram(SET), Sampling(scale=2.0), slots=24, prefill=(8, 32))
    done: list[Delivery] = []
    Scheduler(method, sampler, seed=0).run(some, done.append)
    for delivery in done:
        assert not delivery.error
        assert delivery.usage.judge_calls == 15
        for stop in delivery.notes["stages"]:  # type: ignore[union-attr]
            assert (stop["failed"], stop["malformed"], stop["strayed"]) == (0, 0, 0)  # type: ignore
            assert all(grammar.parse(text) for text in stop["texts"])  # type: ignore
