"""How well a picture's detections satisfy a spec, as chances.

These are GenEval's clauses, softened: each becomes a number in [0, 1]. The reward computes with
them and training watches them; the verdict is the benchmark's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from harness.models.pictogram.detector import LOWEST, Box, Detection
from harness.models.pictogram.grammar import COLORS, Clause, Spec


class HasBox(Protocol):
    """Something that stands somewhere: a detection, or an object of a scene."""

    @property
    def box(self) -> Box: ...


_AXIS_AND_SIGN = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def soft_score(spec: Spec, detections: Sequence[Detection]) -> float:
    """Compute the chance that all conditions hold, as if they were independent."""
    return math.prod(chances(spec, detections))


def holds(spec: Spec, detections: Sequence[Detection]) -> bool:
    """Return True if every condition is more likely than not."""
    return all(chance > 0.5 for chance in chances(spec, detections))


def chances(spec: Spec, detections: Sequence[Detection]) -> list[float]:
    """Compute one chance per condition of a spec.

    For each clause: enough objects, then their colours, then their place. At the end: not too many.
    """
    objects_of = {clause["class"]: _objects_of(clause, detections) for clause in spec["include"]}
    best: list[Detection | None] = []  # object of each clause so far
    values: list[float] = []
    for clause in spec["include"]:
        objects = objects_of[clause["class"]]
        values.append(_chance_of_enough(objects, clause["count"]))
        if "color" in clause:
            color = COLORS.index(clause["color"])
            values += [one.color_shares[color] for one in objects[: clause["count"]]]
        one = objects[0] if objects else None
        if "position" in clause:
            relation, target = clause["position"]
            values.append(chance_of_relation(str(relation), one, best[int(target)]))
        best.append(one)

    for clause in spec.get("exclude", []):
        objects = objects_of.get(clause["class"], [])
        values.append(1 - _chance_of_enough(objects, clause["count"]))
    return values


def _objects_of(clause: Clause, detections: Sequence[Detection]) -> list[Detection]:
    """Detections of a clause's class, best first as all are."""
    return [one for one in detections if one.name == clause["class"]]


def _chance_of_enough(objects: Sequence[Detection], count: int) -> float:
    """The score of the `count`-th best object; half of the lowest reported one if it is missing."""
    return objects[count - 1].score if len(objects) >= count else LOWEST / 2


def chance_of_relation(relation: str, one: HasBox | None, other: HasBox | None) -> float:
    """Compute the chance that one thing stands in a relation to another.

    It is GenEval's position rule through a steep sigmoid: shrunk offset over distance, against 0.5.
    """
    if one is None or other is None:
        return 0.0
    offsets = []
    sizes = []
    for axis in (0, 1):
        low, high = _interval(one, axis)
        other_low, other_high = _interval(other, axis)
        offsets.append((low + high - other_low - other_high) / 2)
        sizes.append(high - low + other_high - other_low)

    axis, sign = _AXIS_AND_SIGN[relation]
    shrunk = max(abs(offsets[axis]) - 0.1 * sizes[axis], 0.0)
    distance = max(math.hypot(*offsets), 1e-6)
    lean = sign * math.copysign(shrunk, offsets[axis]) / distance
    return 1 / (1 + math.exp(-20 * (lean - 0.5)))


def _interval(thing: HasBox, axis: int) -> tuple[float, float]:
    """Where a box begins and ends along an axis (0 right, 1 down), in pixels."""
    left, top, right, bottom = thing.box
    return (left, right) if axis == 0 else (top, bottom)
