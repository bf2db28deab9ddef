"""TIIF-Bench's way of asking in the embedded model's world: scenes worded short and long, yes/no
questions about each.

Its scores are no TIIF-Bench scores: other prompts, other questions, another judge. They compare
methods with each other, and keep the whole path of TIIF-Bench in use where there is no network.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.tiif.interview import Interview
from benchmarks.tiif.questionnaire import Questionnaire
from benchmarks.tiif.scores import Groups
from benchmarks.tiif_pictogram import looking as ask
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
from harness.records import Prompt, UserError, dump

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
            *(
                "advanced_attribute_relation",
                "advanced_attribute_reasoning",
                "advanced_relation_reasoning",
            ),
        ),
    },
)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
WORDINGS = 24
"""Wordings drawn for a scene with a layout; the shortest and the longest are taken."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt asks for, and the questions about it with their right answers."""

    spec: Spec
    layout: Layout
    questions: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        return dump([self.spec, self.layout])


class TiifPictogram(Questionnaire):
    """Prompts in two lengths about `scenes` scenes of six dimensions, made from `seed`: color,
    number, 2D relation and each two of them.

    `classes` names the set of classes that the model draws. The texts are of the embedded model's
    grammar and fit its 32 positions. At least one question of a scene is to be answered with no.
    Raises UserError where that many scenes cannot be had.
    """

    name = "tiif_pictogram"
    version = "1"

    def __init__(
        self,
        judge: Interview,
        prompts: int | None = None,
        images: int = 1,
        scenes: int = 90,
        seed: int = 0,
        classes: str = DEFAULT,
    ) -> None:
        if classes not in CLASS_SETS:
            raise UserError(f"benchmark.classes={classes}: choose from {', '.join(CLASS_SETS)}")
        shares = {name: len(range(i, scenes, len(MAKERS))) for i, name in enumerate(MAKERS)}
        if min(shares.values()) < 1:
            raise UserError(
                f"benchmark.scenes={scenes}: at least one for each of the {len(MAKERS)} dimensions"
            )
        available = [
            prompt
            for dimension, count in shares.items()
            for index, scene in enumerate(_scenes(dimension, CLASS_SETS[classes], count, seed))
            for prompt in _prompts(self.name, dimension, index, scene, seed)
        ]
        super().__init__(available, judge, GROUPS, wanted=prompts, images=images)


# --- scenes ---------------------------------------------------------------------------------------


def _scenes(dimension: str, classes: Sequence[str], count: int, seed: int) -> list[Scene]:
    """Different scenes; a smaller number takes the first of a larger one."""
    rng = random.Random(f"{seed}/{dimension}")
    found: dict[str, Scene] = {}
    for _ in range(50 * count):
        scene = MAKERS[dimension](classes, rng)
        found.setdefault(scene.key, scene)
        if len(found) == count:
            return list(found.values())
    raise UserError(
        f"{count} different scenes of dimension {dimension} cannot be had: take fewer benchmark.scenes"
    )


def _color(classes: Sequence[str], rng: random.Random) -> Scene:
    (a, b) = rng.sample(classes, 2)
    (red, blue) = _colors(classes, rng, 2)
    asked = _yes(ask.present(a), ask.present(b), ask.colored(a, red), ask.colored(b, blue))
    return Scene(make_spec((a, b), colors=(red, blue)), (), (*asked, (ask.colored(a, blue), "no")))


def _numeracy(classes: Sequence[str], rng: random.Random) -> Scene:
    name, count, other = rng.choice(classes), *rng.sample((2, 3, 4), 2)
    asked = _yes(ask.present(name, many=True), ask.counted(name, count))
    return Scene(make_spec([name], count=count), (), (*asked, (ask.counted(name, other), "no")))


def _relation(classes: Sequence[str], rng: random.Random) -> Scene:
    (a, b) = rng.sample(classes, 2)
    relation = rng.choice(tuple(RELATIONS))
    asked = _yes(ask.present(a), ask.present(b), ask.related(a, relation, b))
    opposite = ask.related(a, OPPOSITE[relation], b)
    return Scene(make_spec((a, b), relation=relation), (), (*asked, (opposite, "no")))


def _numeracy_color(classes: Sequence[str], rng: random.Random) -> Scene:
    name = rng.choice(classes)
    count = rng.choice((2, 3, 4))
    (red, blue) = _colors(classes, rng, 2)
    asked = _yes(
        ask.present(name, many=True), ask.counted(name, count), ask.colored(name, red, many=True)
    )
    spec = make_spec([name], count=count, colors=[red])
    return Scene(spec, (), (*asked, (ask.colored(name, blue, many=True), "no")))


def _color_relation(classes: Sequence[str], rng: random.Random) -> Scene:
    (a, b) = rng.sample(classes, 2)
    (red, blue) = _colors(classes, rng, 2)
    relation = rng.choice(tuple(RELATIONS))
    asked = _yes(
        ask.present(a),
        ask.present(b),
        ask.colored(a, red),
        ask.colored(b, blue),
        ask.related(a, relation, b),
    )
    spec = make_spec((a, b), colors=(red, blue), relation=relation)
    return Scene(spec, (), (*asked, (ask.related(a, OPPOSITE[relation], b), "no")))


def _numeracy_relation(classes: Sequence[str], rng: random.Random) -> Scene:
    (name, absent) = rng.sample(classes, 2)
    count = rng.choice((2, 3, 4))
    spec = make_spec([name], count=count)
    layout = rng.choice(layouts(spec))
    places = (ask.placed(name, place, layout.count(place)) for place in dict.fromkeys(layout))
    asked = _yes(ask.present(name, many=True), ask.counted(name, count), *places)
    return Scene(spec, layout, (*asked, (ask.present(absent), "no")))


MAKERS: dict[str, Callable[[Sequence[str], random.Random], Scene]] = {
    "color": _color,
    "2d_spatial_relation": _relation,
    "numeracy": _numeracy,
    "color+2d": _color_relation,
    "numeracy+color": _numeracy_color,
    "numeracy+2d": _numeracy_relation,
}


def _colors(classes: Sequence[str], rng: random.Random, count: int) -> list[str]:
    """Different colors, none of which is also a thing."""
    return rng.sample([color for color in COLORS if color not in classes], count)


def _yes(*questions: str) -> list[tuple[str, str]]:
    return [(question, "yes") for question in questions]


# --- texts ----------------------------------------------------------------------------------------


def _prompts(name: str, dimension: str, index: int, scene: Scene, seed: int) -> Iterator[Prompt]:
    questions, answers = (list(column) for column in zip(*scene.questions, strict=True))
    for length, text in zip(
        ("short", "long"), _texts(scene, f"{seed}/{dimension}/{index}"), strict=True
    ):
        yield Prompt(
            id=f"{name}/{dimension}/{length}/{index}",
            text=text,
            category=f"{length}/{dimension}",
            spec={"questions": questions, "answers": answers},
            weight=len(questions),
            cluster=f"{name}/{dimension}/{index}",
        )


def _texts(scene: Scene, seed: str) -> tuple[str, str]:
    """A short and a long wording that the model was trained on.

    It knows no long wording of a layout: there the two are the shortest and the longest of its
    short style.
    """
    if not scene.layout:
        long = caption(scene.spec, style="long", rng=random.Random(seed))
        return caption(scene.spec, style="short", rng=random.Random(seed)), long
    drawn = [
        caption(scene.spec, style="short", layout=scene.layout, rng=random.Random(f"{seed}/{i}"))
        for i in range(WORDINGS)
    ]
    by_length = sorted(drawn, key=lambda text: len(words(text)))
    return by_length[0], by_length[-1]
