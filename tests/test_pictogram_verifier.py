"""The embedded verifier rejects only what is certain, and writes within the grammar."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.judges.pictogram import PictogramReward
from harness.judges.pictogram_verifier import PictogramVerifier, View, find_faults, infer_layout
from harness.models.pictogram import grammar, world
from harness.models.pictogram.generator import Pictogram
from harness.models.pictogram.grammar import CLASS_SETS, TASKS, Layout, Spec, make_spec
from harness.records import Job, Prompt
from methods.gridar import GridAR, hide_undrawn, stack_tops

SET = "pictogram_80"
Scene = tuple[Spec, Layout, np.ndarray]
Thing = tuple[str, str | None, int, int, int]
"""Class, colour, x, y and size of an object in a picture."""


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
        several = len(grammar.objects(spec)) > 1
        layout = rng.choice(grammar.layouts(spec)) if several else ()
        pixels, _ = world.draw_scene(spec, rng, layout)
        made.append((spec, layout, pixels))
    return made


def draw_things(*things: Thing) -> np.ndarray:
    """Draw a picture with some objects on a plain background."""
    pixels = np.empty((48, 48, 3), np.uint8)
    pixels[:] = world.BACKGROUNDS[0]
    for name, color, x, y, size in things:
        sprite = world.patch_of(name, color, size, 0)[0]
        pixels[y : y + size, x : x + size] = sprite
    return pixels


def view_top(verifier: PictogramVerifier, pixels: np.ndarray, rows: int = 24) -> View:
    (view,) = verifier.read_views([pixels[:rows]])
    return view


# ------------------------------------------------------------------ what is rejected


@pytest.mark.parametrize("rows", [12, 24, 36])
def test_right_pictures_are_possible(
    verifier: PictogramVerifier, scenes: list[Scene], rows: int
) -> None:
    views = verifier.read_views([pixels[:rows] for _, _, pixels in scenes])
    rejected = []
    for (spec, _, _), view in zip(scenes, views, strict=True):
        faults = list(find_faults(spec, view))
        if faults:
            rejected.append(faults)
    assert len(rejected) <= 0.04 * len(scenes), rejected


CATS = make_spec(["cat"], count=2)
FOUR_CATS = make_spec(["cat"], count=4)
RED_CAR = make_spec(["car"], colors=["red"])
PAIR = make_spec(["cat", "dog"])
ABOVE = make_spec(["cat", "dog"], relation="above")
LEFT = make_spec(["cat", "dog"], relation="left of")


@pytest.mark.parametrize(
    ("spec", "things", "faults"),
    [
        (CATS, [("cat", None, x, 2, 16) for x in (0, 16, 32)], ["too many objects"]),
        (CATS, [("cat", None, 0, 2, 16)], []),
        (RED_CAR, [("car", "blue", 10, 10, 24)], ["a wrong colour"]),  # cut off, and yet sure
        (RED_CAR, [("car", "red", 10, 10, 24)], []),
        (ABOVE, [("dog", None, 10, 2, 20)], ["nothing can come above the dog any more"]),
        (ABOVE, [("cat", None, 10, 2, 20)], []),
        (ABOVE, [], ["no room for one above the other"]),
        (LEFT, [("cat", None, 28, 2, 20)], ["no room on the right of the cat"]),
        (FOUR_CATS, [], ["no room for the rest"]),
    ],
)
def test_wrong_pictures_are_rejected_when_it_is_certain(
    verifier: PictogramVerifier, spec: Spec, things: list[Thing], faults: list[str]
) -> None:
    view = view_top(verifier, draw_things(*things))
    assert list(find_faults(spec, view)) == faults


def test_every_reason_is_told(verifier: PictogramVerifier) -> None:
    blue = view_top(verifier, draw_things(("car", "blue", 10, 2, 20)))
    assert next(find_faults(RED_CAR, blue)) == "a blue car"
    bottle = view_top(verifier, draw_things(("bottle", None, 10, 2, 20)))
    assert "a bottle that was not asked for" in find_faults(PAIR, bottle)


@pytest.mark.parametrize("spec", [ABOVE, FOUR_CATS])
def test_an_empty_top_is_possible_while_there_is_room(
    verifier: PictogramVerifier, spec: Spec
) -> None:
    view = view_top(verifier, draw_things(), rows=12)
    assert not list(find_faults(spec, view))


# ------------------------------------------------------------------ what is written


THREE_CATS = make_spec(["cat"], count=3)


@pytest.mark.parametrize(
    ("spec", "things", "layout"),
    [
        (
            THREE_CATS,
            [("cat", None, 0, 2, 16), ("cat", None, 28, 4, 16)],
            ("top", "top", "bottom"),
        ),
        (THREE_CATS, [], ("bottom", "bottom", "bottom")),
        (THREE_CATS, [("cat", None, 0, 8, 24)], ()),  # it lies across the middle
        (PAIR, [("dog", None, 10, 2, 20)], ("bottom", "top")),
        (PAIR, [("dog", None, 0, 2, 20), ("cat", None, 24, 0, 20)], ("right", "left")),
        (PAIR, [], ()),
        (make_spec(["cat"]), [("cat", None, 0, 2, 20)], ()),
    ],
)
def test_layouts_are_those_that_are_seen(
    verifier: PictogramVerifier, spec: Spec, things: list[Thing], layout: Layout
) -> None:
    view = view_top(verifier, draw_things(*things))
    assert infer_layout(spec, view) == layout


@pytest.mark.parametrize(("share", "strips"), [(0.25, 4), (0.5, 2)])
def test_it_answers_like_a_language_model_and_keeps_the_prompt(
    verifier: PictogramVerifier, scenes: list[Scene], share: float, strips: int
) -> None:
    texts = [grammar.caption(spec) for spec, _, _ in scenes]
    pictures = [pixels for _, _, pixels in scenes]

    # 1. Equal strips get equal words: the lines between them do not matter.
    stacks = [stack_tops([pixels] * strips, share, 1) for pixels in pictures]
    for reply in verifier.select(strips)(texts, stacks):
        assert reply is not None
        words = reply.split(", ")
        assert len(words) == strips and len(set(words)) == 1

    # 2. A rewritten prompt begins with the prompt, fits the model and means the same.
    rewritten = verifier.rewrite(texts, [hide_undrawn(pixels, share, 1) for pixels in pictures])
    for text, new, (spec, _, _) in zip(texts, rewritten, scenes, strict=True):
        assert new is not None and new.startswith(text)
        assert len(grammar.words(new)) <= grammar.PROMPT_POSITIONS
        parsed = grammar.parse_layout(new)
        assert parsed is not None and parsed[0] == spec


def test_black_pictures_and_texts_outside_the_grammar(
    verifier: PictogramVerifier, scenes: list[Scene]
) -> None:
    spec, _, pixels = scenes[0]
    black = np.zeros((48, 48, 3), np.uint8)
    assert verifier.rewrite([grammar.caption(spec)], [black])[0] is not None

    stack = stack_tops([pixels] * 2, 0.5, 1)
    assert verifier.select(2)(["a sunset in Provence"], [stack]) == [None]
    assert verifier.rewrite(["a sunset in Provence"], [pixels]) == [None]


def test_what_else_is_in_the_batch_changes_no_answer(
    verifier: PictogramVerifier, scenes: list[Scene]
) -> None:
    texts = [grammar.caption(spec) for spec, _, _ in scenes[:12]]
    stacks = [stack_tops([pixels, pixels[::-1]], 0.5, 1) for _, _, pixels in scenes[:12]]
    select = verifier.select(2)
    alone = [select([text], [stack])[0] for text, stack in zip(texts, stacks, strict=True)]
    assert select(texts, stacks) == alone


# ------------------------------------------------------------------ the whole method


def test_gridar_on_the_embedded_model(verifier: PictogramVerifier) -> None:
    """No failures, the paper's number of calls, and rewritten prompts that the model knows."""
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
        told: Any = delivery.notes["stages"]
        for stop in told:
            assert (stop["failed"], stop["malformed"], stop["strayed"]) == (0, 0, 0)
            assert all(grammar.parse(text) for text in stop["texts"])
