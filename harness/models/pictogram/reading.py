"""How well a picture's detections satisfy a spec, as chances: the reward's arithmetic and the
training's monitor.

GenEval's clauses, softened: each becomes a number in [0, 1]. Not a verdict: that is the
benchmark's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.models.pictogram.detector import LOWEST, Detection
from harness.models.pictogram.grammar import COLORS, Clause, Spec


def chances(spec: Spec, detections: Sequence[Detection]) -> list[float]:
    """One chance per condition: enough objects, right colours, right places, not too many."""
    found = {
        clause["class"]: [one for one in detections if one.name == clause["class"]]
        for clause in spec["include"]
    }
    chosen: list[Detection | None] = []
    values: list[float] = []
    for clause in spec["include"]:
        objects = found[clause["class"]]
        values.append(_enough(objects, clause["count"]))
        if "color" in clause:
            values += [
                one.color_shares[COLORS.index(clause["color"])]
                for one in objects[: clause["count"]]
            ]
        best = objects[0] if objects else None
        if "position" in clause:
            relation, target = clause["position"]
            values.append(_related(str(relation), best, chosen[int(target)]))
        chosen.append(best)
    return values + [
        1 - _enough(found.get(clause["class"], []), clause["count"]) for clause in _excluded(spec)
    ]


def soft_score(spec: Spec, detections: Sequence[Detection]) -> float:
    """The chance that all conditions hold, as if they were independent."""
    return math.prod(chances(spec, detections))


def holds(spec: Spec, detections: Sequence[Detection]) -> bool:
    """Whether every condition is more likely than not."""
    return all(chance > 0.5 for chance in chances(spec, detections))


def _excluded(spec: Spec) -> list[Clause]:
    return spec.get("exclude", [])


def _enough(objects: Sequence[Detection], count: int) -> float:
    """The score of the least of the `count` best objects; below what a detector reports, a
    little.
    """
    return objects[count - 1].score if len(objects) >= count else LOWEST / 2


def _related(relation: str, one: Detection | None, other: Detection | None) -> float:
    """GenEval's position rule (shrunk offset over distance, compared with 0.5) through a steep
    sigmoid.
    """
    if one is None or other is None:
        return 0.0
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[
        relation
    ]
    offset = [(one.box[i] + one.box[i + 2] - other.box[i] - other.box[i + 2]) / 2 for i in (0, 1)]
    sizes = [one.box[i + 2] - one.box[i] + other.box[i + 2] - other.box[i] for i in (0, 1)]
    shrunk = math.copysign(max(abs(offset[axis]) - 0.1 * sizes[axis], 0.0), offset[axis])
    lean = sign * shrunk / max(math.hypot(*offset), 1e-6)
    return 1 / (1 + math.exp(-20 * (lean - 0.5)))
