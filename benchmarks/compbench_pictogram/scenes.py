"""Make the prompts of `compbench_pictogram`: scenes of four kinds, worded in the model's grammar.

A prompt's `spec` has what the rules of its category need: `questions` about attributes, `objects`
and their `relation`, or `counts`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.t2i_compbench.questions import write_question
from harness.models.pictogram.grammar import (
    COLORS,
    RELATIONS,
    Spec,
    caption,
    make_spec,
    noun_phrase,
)
from harness.records import Prompt, UserError, dump

NUMBERS = (2, 3, 4)
"""Numbers of objects that the embedded model draws beside one."""
RELATION_NAMES = {
    "left of": "on the left of",
    "right of": "on the right of",
    "above": "on the top of",
    "below": "on the bottom of",
}
"""The embedded model's relations, by the names that T2I-CompBench's rules know them by."""
DRAWS = 50
"""Scenes drawn at most for each that is wanted, since drawn ones may be equal."""

Scene = tuple[Spec, Mapping[str, Any]]
"""What the prompt asks for, and the answer key."""


def make_prompts(name: str, classes: Sequence[str], total: int, seed: int) -> list[Prompt]:
    """Make `total` different prompts, spread evenly over the categories.

    A smaller total makes the first prompts of a larger one, under the same ids. Raises UserError if
    the classes give fewer.
    """
    prompts = []
    for position, category in enumerate(SCENE_MAKERS):
        count = len(range(position, total, len(SCENE_MAKERS)))
        for index, scene in enumerate(_make_scenes(category, classes, count, seed)):
            wording = random.Random(f"{seed}/{category}/{index}")
            spec, key = scene
            text = caption(spec, style="short", rng=wording)
            prompts.append(Prompt(f"{name}/{category}/{index}", text, category, key))
    return prompts


def _make_scenes(category: str, classes: Sequence[str], count: int, seed: int) -> list[Scene]:
    """Make different scenes of a category."""
    make_scene = SCENE_MAKERS[category]
    rng = random.Random(f"{seed}/{category}")
    found: dict[str, Scene] = {}
    for _ in range(DRAWS * count):
        scene = make_scene(classes, rng)
        found.setdefault(dump(scene[0]), scene)
        if len(found) == count:
            break
    if len(found) < count:
        raise UserError(
            f"{count} different scenes of category {category} cannot be had: "
            "take a smaller benchmark.total"
        )
    return list(found.values())


def _make_color_scene(classes: Sequence[str], rng: random.Random) -> Scene:
    spec = make_spec(rng.sample(classes, 2), colors=_draw_colors(classes, rng))
    return spec, {"questions": _ask_about(spec)}


def _make_spatial_scene(classes: Sequence[str], rng: random.Random) -> Scene:
    names = rng.sample(classes, 2)
    relation = rng.choice(tuple(RELATIONS))
    key = {"objects": names, "relation": RELATION_NAMES[relation]}
    return make_spec(names, relation=relation), key


def _make_numeracy_scene(classes: Sequence[str], rng: random.Random) -> Scene:
    name = rng.choice(classes)
    count = rng.choice(NUMBERS)
    return make_spec([name], count=count), {"counts": [[name, count]]}


def _make_complex_scene(classes: Sequence[str], rng: random.Random) -> Scene:
    names = rng.sample(classes, 2)
    relation = rng.choice(tuple(RELATIONS))
    spec = make_spec(names, colors=_draw_colors(classes, rng), relation=relation)
    key = {
        "questions": _ask_about(spec),
        "objects": names,
        "relation": RELATION_NAMES[relation],
    }
    return spec, key


SCENE_MAKERS: Mapping[str, Callable[[Sequence[str], random.Random], Scene]] = {
    "color": _make_color_scene,
    "spatial": _make_spatial_scene,
    "numeracy": _make_numeracy_scene,
    "complex": _make_complex_scene,
}
"""How to make a scene of each category."""


def _draw_colors(classes: Sequence[str], rng: random.Random) -> list[str]:
    """Draw two different colors, none of which is also the name of a class."""
    return rng.sample([color for color in COLORS if color not in classes], 2)


def _ask_about(spec: Spec) -> list[dict[str, str]]:
    """Ask about each object with its color; the question's parts are kept beside its text."""
    return [
        {
            "text": write_question(noun_phrase(clause)),
            "class": clause["class"],
            "color": clause["color"],
        }
        for clause in spec["include"]
    ]
