"""TIIF-Bench's way of asking in the embedded model's world: yes/no questions about scenes.

Each scene is worded short and long. Its scores are no TIIF-Bench scores: prompts, questions and
judge are others. They compare methods with each other, and keep the whole path of TIIF-Bench in use
where there is no network.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.tiif.scores import LENGTHS, Groups
from benchmarks.tiif.vqa_benchmark import VQABenchmark
from benchmarks.tiif.vqa_model import VQAJudge
from benchmarks.tiif_pictogram.detector_vqa import (
    ask_color,
    ask_number,
    ask_number_at,
    ask_presence,
    ask_relation,
)
from harness.models.pictogram.grammar import (
    CLASS_SETS,
    COLORS,
    DEFAULT,
    RELATIONS,
    Layout,
    Spec,
    caption,
    layouts,
    make_spec,
    words,
)
from harness.records import Count, Natural, Prompt, UserError, dump

GROUPS = Groups(
    groups={
        "basic_attribute": ("color",),
        "basic_relation": ("2d_spatial_relation",),
        "basic_reasoning": ("numeracy",),
        "advanced_attribute_relation": ("color+2d",),
        "advanced_attribute_reasoning": ("numeracy+color",),
        "advanced_relation_reasoning": ("numeracy+2d",),
    },
    levels={
        "basic": ("basic_attribute", "basic_relation", "basic_reasoning"),
        "advanced": (
            "advanced_attribute_relation",
            "advanced_attribute_reasoning",
            "advanced_relation_reasoning",
        ),
    },
)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NUMBERS = (2, 3, 4)
"""Numbers of objects that a scene of many shows."""
WORDINGS = 24
"""Wordings drawn for a scene with a layout; the shortest and the longest are taken."""
DRAWS = 50
"""Scenes drawn at most for each that is wanted, since drawn ones may be equal."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold what a prompt asks for, and pairs of a question about it and its right answer."""

    spec: Spec
    layout: Layout
    questions: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        return dump([self.spec, self.layout])


class TiifPictogram(VQABenchmark):
    """Judge images of `scenes` scenes made from `seed`, each with a short and a long prompt.

    The six dimensions are color, number, 2D relation and each two of them. `classes` names the set
    of classes that the model draws. The texts are of the embedded model's grammar and fit its 32
    positions. Each scene has a question whose answer is no. Raises UserError if there are not as
    many scenes.
    """

    name = "tiif_pictogram"
    version = "1"

    def __init__(
        self,
        judge: VQAJudge,
        prompts: Count | None = None,
        images: Count = 1,
        scenes: Count = 90,
        seed: Natural = 0,
        classes: str = DEFAULT,
    ) -> None:
        if classes not in CLASS_SETS:
            raise UserError(f"benchmark.classes={classes}: choose from {', '.join(CLASS_SETS)}")
        if scenes < len(SCENE_MAKERS):
            raise UserError(
                f"benchmark.scenes={scenes}: "
                f"at least one for each of the {len(SCENE_MAKERS)} dimensions"
            )
        available: list[Prompt] = []
        for position, dimension in enumerate(SCENE_MAKERS):
            count = len(range(position, scenes, len(SCENE_MAKERS)))
            made = _make_scenes(dimension, CLASS_SETS[classes], count, seed)
            for index, scene in enumerate(made):
                available += _make_prompts(self.name, dimension, index, scene, seed)
        super().__init__(available, judge, GROUPS, wanted=prompts, images=images)


# --- scenes ---------------------------------------------------------------------------------------


def _make_scenes(dimension: str, classes: Sequence[str], count: int, seed: int) -> list[Scene]:
    """Make different scenes; a smaller number makes the first of a larger one."""
    make_scene = SCENE_MAKERS[dimension]
    rng = random.Random(f"{seed}/{dimension}")
    found: dict[str, Scene] = {}
    for _ in range(DRAWS * count):
        scene = make_scene(classes, rng)
        found.setdefault(scene.key, scene)
        if len(found) == count:
            return list(found.values())
    raise UserError(
        f"{count} different scenes of dimension {dimension} cannot be had: "
        "take fewer benchmark.scenes"
    )


def _make_color_scene(classes: Sequence[str], rng: random.Random) -> Scene:
    a, b = rng.sample(classes, 2)
    color_a, color_b = _draw_colors(classes, rng, 2)
    spec = make_spec((a, b), colors=(color_a, color_b))
    right = _expect_yes(
        ask_presence(a), ask_presence(b), ask_color(a, color_a), ask_color(b, color_b)
    )
    return Scene(spec, (), (*right, (ask_color(a, color_b), "no")))


def _make_number_scene(classes: Sequence[str], rng: random.Random) -> Scene:
    name = rng.choice(classes)
    count, other = rng.sample(NUMBERS, 2)
    spec = make_spec([name], count=count)
    right = _expect_yes(ask_presence(name, many=True), ask_number(name, count))
    return Scene(spec, (), (*right, (ask_number(name, other), "no")))


def _make_relation_scene(classes: Sequence[str], rng: random.Random) -> Scene:
    a, b = rng.sample(classes, 2)
    relation = rng.choice(tuple(RELATIONS))
    spec = make_spec((a, b), relation=relation)
    right = _expect_yes(ask_presence(a), ask_presence(b), ask_relation(a, relation, b))
    return Scene(spec, (), (*right, (ask_relation(a, OPPOSITE[relation], b), "no")))


def _make_number_color_scene(classes: Sequence[str], rng: random.Random) -> Scene:
    name = rng.choice(classes)
    count = rng.choice(NUMBERS)
    color, other = _draw_colors(classes, rng, 2)
    spec = make_spec([name], count=count, colors=[color])
    right = _expect_yes(
        ask_presence(name, many=True),
        ask_number(name, count),
        ask_color(name, color, many=True),
    )
    return Scene(spec, (), (*right, (ask_color(name, other, many=True), "no")))


def _make_color_relation_scene(classes: Sequence[str], rng: random.Random) -> Scene:
    a, b = rng.sample(classes, 2)
    color_a, color_b = _draw_colors(classes, rng, 2)
    relation = rng.choice(tuple(RELATIONS))
    spec = make_spec((a, b), colors=(color_a, color_b), relation=relation)
    right = _expect_yes(
        ask_presence(a),
        ask_presence(b),
        ask_color(a, color_a),
        ask_color(b, color_b),
        ask_relation(a, relation, b),
    )
    return Scene(spec, (), (*right, (ask_relation(a, OPPOSITE[relation], b), "no")))


def _make_number_place_scene(classes: Sequence[str], rng: random.Random) -> Scene:
    name, absent = rng.sample(classes, 2)
    count = rng.choice(NUMBERS)
    spec = make_spec([name], count=count)
    layout = rng.choice(layouts(spec))
    places = [ask_number_at(name, place, layout.count(place)) for place in dict.fromkeys(layout)]
    right = _expect_yes(ask_presence(name, many=True), ask_number(name, count), *places)
    return Scene(spec, layout, (*right, (ask_presence(absent), "no")))


SCENE_MAKERS: dict[str, Callable[[Sequence[str], random.Random], Scene]] = {
    "color": _make_color_scene,
    "2d_spatial_relation": _make_relation_scene,
    "numeracy": _make_number_scene,
    "color+2d": _make_color_relation_scene,
    "numeracy+color": _make_number_color_scene,
    "numeracy+2d": _make_number_place_scene,
}
"""How to make a scene of each dimension."""


def _draw_colors(classes: Sequence[str], rng: random.Random, count: int) -> list[str]:
    """Draw different colors, none of which is also the name of a class."""
    return rng.sample([color for color in COLORS if color not in classes], count)


def _expect_yes(*questions: str) -> list[tuple[str, str]]:
    return [(question, "yes") for question in questions]


# --- texts ----------------------------------------------------------------------------------------


def _make_prompts(
    name: str, dimension: str, index: int, scene: Scene, seed: int
) -> Iterator[Prompt]:
    """Make a scene's prompt of each length; both have the same questions."""
    questions = [question for question, _ in scene.questions]
    answers = [answer for _, answer in scene.questions]
    texts = _word_scene(scene, f"{seed}/{dimension}/{index}")
    for length, text in zip(LENGTHS, texts, strict=True):
        yield Prompt(
            id=f"{name}/{dimension}/{length}/{index}",
            text=text,
            category=f"{length}/{dimension}",
            spec={"questions": questions, "answers": answers},
            weight=len(questions),
            cluster=f"{name}/{dimension}/{index}",
        )


def _word_scene(scene: Scene, seed: str) -> tuple[str, str]:
    """Draw a short and a long wording that the model was trained on.

    It was trained on no long wording of a layout: there the two are the shortest and the longest of
    the short style.
    """
    if not scene.layout:
        short = caption(scene.spec, style="short", rng=random.Random(seed))
        long = caption(scene.spec, style="long", rng=random.Random(seed))
        return short, long

    drawn = []
    for i in range(WORDINGS):
        rng = random.Random(f"{seed}/{i}")
        drawn.append(caption(scene.spec, style="short", layout=scene.layout, rng=rng))
    by_length = sorted(drawn, key=lambda text: len(words(text)))
    return by_length[0], by_length[-1]
