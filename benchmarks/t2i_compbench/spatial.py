"""Score where two objects are, in the plane and in depth, as T2I-CompBench does.

The rules were written from a description of what the reference computes (2D_spatial_eval.py,
3D_spatial_eval.py), not from its code. They are pure functions that need no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.boxes import Detection, single, single_box
from benchmarks.t2i_compbench.boxes import overlap

PERSONS = ("girl", "boy", "man", "woman")
"""Nouns for which the detector's class is "person"."""
NEARNESS = ("on side of", "next to", "near")
DIRECTIONS = {
    "on the right of": (0, -1),
    "on the left of": (0, 1),
    "on the bottom of": (1, -1),
    "on the top of": (1, 1),
}
"""The axis on which the second object is displaced (0 is x), and in which direction."""
RELATIONS_2D = (
    *NEARNESS,
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
)
"""Relations in the plane, in the order in which a prompt is searched for them."""
RELATIONS_3D = ("in front of", "behind", "hidden")
PREPOSITIONS = (
    "on top of",
    "on bottom of",
    "on the left",
    "on the right",
    "next to",
    "on side of",
    "near",
)
"""What the objects of a complex prompt stand on either side of."""
NEAR_PIXELS = 150
"""Distance of the centres, on either axis, within which objects are near each other."""
SMALL_OVERLAP = 0.1
"""IoU below which objects lie apart."""
LARGE_OVERLAP = 0.5
"""IoU above which one object hides another."""
CUT = 0.5
"""Scores in the plane below this one are 0."""

Objects = tuple[str | None, str | None]
"""The classes of the two objects; (None, None) where they are undefined."""
Tokens = Sequence[tuple[str, str]]
"""The words of a prompt, each with its part of speech."""


@dataclass(frozen=True, slots=True)
class SpatialScore:
    """What became of two objects: the score, how well they stand, and how many were found."""

    value: float
    position: float
    found: int


# --- prompts --------------------------------------------------------------------------------------


def find_relation(prompt: str, relations: Sequence[str]) -> str | None:
    """Find the first of the relations that occurs in a prompt, inside of words, too."""
    return next((relation for relation in relations if relation in prompt), None)


def find_objects(tokens: Tokens) -> Objects:
    """Find the objects of a simple prompt: its first and its last noun.

    Raises ValueError for a prompt without a noun.
    """
    nouns = [word for word, part in tokens if part == "NOUN"]
    if not nouns:
        raise ValueError("the prompt has no noun")
    return _class_of(nouns[0]), _class_of(nouns[-1])


def find_complex_objects(tokens: Tokens) -> Objects:
    """Find the objects of a complex prompt: the nouns before and after a preposition.

    Both are undefined unless all prepositions together have two.
    """
    words = [word for word, _ in tokens]
    found: list[str] = []
    for preposition in PREPOSITIONS:
        parts = preposition.split(" ")
        for start in range(len(words) - len(parts) + 1):
            if words[start : start + len(parts)] == parts:
                found += _noun_before(tokens[:start])
                found += _noun_after(tokens[start + len(parts) :])
    if len(found) != 2:
        return None, None
    return _class_of(found[0]), _class_of(found[1])


def _noun_before(tokens: Tokens) -> list[str]:
    """List the last noun of some tokens, common or proper; none if there is no noun."""
    return [word for word, part in tokens if part in ("NOUN", "PROPN")][-1:]


def _noun_after(tokens: Tokens) -> list[str]:
    """List the first common noun of some tokens, else the last proper one; none without a noun.

    So the parser's proper nouns, of which colors before an object are some, are passed over.
    """
    common = [word for word, part in tokens if part == "NOUN"]
    proper = [word for word, part in tokens if part == "PROPN"]
    return common[:1] or proper[-1:]


def _class_of(noun: str) -> str:
    return "person" if noun in PERSONS else noun


# --- in the plane ---------------------------------------------------------------------------------


def score_position(relation: str | None, a: Sequence[float], b: Sequence[float]) -> float:
    """Score how far box `a` stands in a relation to box `b`, from 0 to 1.

    Raises ValueError for two boxes of zero area.
    """
    iou = overlap(a, b)
    offsets = [(b[axis] + b[axis + 2] - a[axis] - a[axis + 2]) / 2 for axis in (0, 1)]
    if relation in NEARNESS:
        nearest, farthest = sorted(abs(offset) for offset in offsets)
        return 1.0 if nearest < NEAR_PIXELS else NEAR_PIXELS / farthest
    if relation not in DIRECTIONS:
        return 0.0
    axis, direction = DIRECTIONS[relation]
    along = offsets[axis] * direction
    if along <= abs(offsets[1 - axis]):
        return 0.0
    return 1.0 if iou < SMALL_OVERLAP else SMALL_OVERLAP / iou


def score_plane(
    objects: Objects, relation: str | None, detections: Sequence[Detection]
) -> SpatialScore:
    """Score two objects in the plane; of each class, the first detection counts.

    Raises ValueError if both boxes have zero area.
    """
    a = _first_of(objects[0], detections)
    b = _first_of(objects[1], detections)
    position = score_position(relation, single_box(a.box), single_box(b.box)) if a and b else 0.0
    total = _combine(a, b, position)
    return SpatialScore(total if total >= CUT else 0.0, position, sum(map(bool, (a, b))))


def _first_of(name: str | None, detections: Sequence[Detection]) -> Detection | None:
    """Find the first detection of a class; names must be equal."""
    return next((one for one in detections if one.name == name), None)


def _combine(a: Detection | None, b: Detection | None, position: float) -> float:
    """Add up a quarter for each object that was found, by its score, and half for the position."""
    total = 0.5 * position
    for one in (a, b):
        if one is not None:
            total += 0.25 * single(one.score)
    return total


# --- in depth -------------------------------------------------------------------------------------


def score_depth(
    objects: Objects,
    relation: str | None,
    detections: Sequence[Detection],
    depth_HW: np.ndarray,
    *,
    upright: bool = False,
) -> SpatialScore:
    """Score two objects in depth, by the mean of `depth_HW` (float32, larger is nearer) in each.

    The reference reads the transposed region of the depth map; `upright` reads the right one.
    Raises ValueError if both boxes have zero area.
    """
    a, b = _search_both(objects, detections)
    position = 0.0
    if a and b:
        iou = overlap(single_box(a.box), single_box(b.box))
        depths = [_mean_depth(one, depth_HW, upright) for one in (a, b)]
        position = _score_order(relation, iou, *depths)
    return SpatialScore(_combine(a, b, position), position, sum(map(bool, (a, b))))


def _search_both(
    objects: Objects, detections: Sequence[Detection]
) -> tuple[Detection | None, Detection | None]:
    """Search detections in order until both objects are found, each inside of a class's name.

    Until then a later match replaces an earlier one.
    """
    found: list[Detection | None] = [None, None]
    for one in detections:
        for index, name in enumerate(objects):
            if name is not None and name in one.name:
                found[index] = one
        if all(found):
            break
    return found[0], found[1]


def _mean_depth(one: Detection, depth_HW: np.ndarray, upright: bool) -> float:
    """Average the depths in a box, its corners cut to integers; nan for an empty region."""
    x1, y1, x2, y2 = (int(corner) for corner in single_box(one.box))
    region = depth_HW[y1:y2, x1:x2] if upright else depth_HW[x1:x2, y1:y2]
    return float(region.mean()) if region.size else float("nan")


def _score_order(relation: str | None, iou: float, depth_a: float, depth_b: float) -> float:
    """Score whether the first object is on the right side of the second, where they overlap."""
    if relation == "in front of":
        is_right = depth_a > depth_b
    else:
        is_right = relation in RELATIONS_3D and depth_a < depth_b
    if not is_right or iou == LARGE_OVERLAP:
        return 0.0
    return 1.0 if iou > LARGE_OVERLAP else iou / LARGE_OVERLAP
