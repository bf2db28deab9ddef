"""What a picture's detections say of an edit: was it made, and was the rest kept?

`judge_edit` decides by an answer key, as the benchmark does. `soft_scores` gives chances from the
instruction and the detections of source and result alone, as a reward may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.models.pictogram.detector import LOWEST, Box, Detection
from harness.models.pictogram.edits import Request
from harness.models.pictogram.grammar import COLORS
from harness.models.pictogram.reading import chance_of_relation

FOUND = 0.4
"""Score above which a detection counts."""
OVERLAP = 0.4
"""IoU with a box from which a detection stands there."""
GONE = 0.3
"""IoU with a removed object's box from which something is still there."""
CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an edit was made, and whether the rest was kept, with the reasons against."""

    done: bool
    kept: bool
    reasons: tuple[str, ...]

    @property
    def correct(self) -> bool:
        """Tell whether both hold."""
        return self.done and self.kept


@dataclass(frozen=True, slots=True)
class KnownObject:
    """An object that stands somewhere, with its colour, or without one that matters."""

    name: str
    color: str | None
    box: Box

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> KnownObject:
        """Read an object of an answer key (`edits.describe`)."""
        left, top, right, bottom = described["box"]
        return cls(described["name"], described["color"], (left, top, right, bottom))


def measure_overlap(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over their union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


# --- by the answer key ----------------------------------------------------------------------------


def judge_edit(key: Mapping[str, Any], detections: Sequence[Detection]) -> Verdict:
    """Decide about a result by its detections; `key` is what `edits.describe` returned."""
    found = [one for one in detections if one.score > FOUND]
    reasons = [*_list_undone(key, found), *_list_lost(key, found)]
    undone = len(_list_undone(key, found))
    return Verdict(not undone, len(reasons) == undone, tuple(reasons))


def _list_undone(key: Mapping[str, Any], found: Sequence[Detection]) -> list[str]:
    """Say why the edit was not made; nothing if it was."""
    kind = key["kind"]
    made = None if key["made"] is None else KnownObject.of(key["made"])
    gone = None if key["gone"] is None else KnownObject.of(key["gone"])
    if kind == "remove":
        assert gone is not None
        left = any(measure_overlap(one.box, gone.box) >= GONE for one in found)
        return [f"something is where the {gone.name} was"] if left else []
    assert made is not None
    if kind == "add":
        return _list_not_added(made, KnownObject.of(key["others"][0]), key["relation"], found)
    reasons = []
    if not any(_stands(one, made) for one in found):
        reasons.append(f"no {_describe(made)} at its place")
    if kind == "replace":
        assert gone is not None
        bare = KnownObject(gone.name, None, gone.box)
        if any(_stands(one, bare) for one in found):
            reasons.append(f"the {gone.name} is still there")
    return reasons


def _list_not_added(
    made: KnownObject, anchor: KnownObject, relation: str, found: Sequence[Detection]
) -> list[str]:
    fitting = [one for one in found if one.name == made.name and _has_color(one, made.color)]
    if not fitting:
        return [f"no {_describe(made)}"]
    if any(chance_of_relation(relation, one, anchor) > CHANCE for one in fitting):
        return []
    return [f"the {made.name} is not {relation} the {anchor.name}"]


def _list_lost(key: Mapping[str, Any], found: Sequence[Detection]) -> list[str]:
    """Say what was not kept; nothing if all was."""
    reasons = []
    for described in key["others"]:
        other = KnownObject.of(described)
        if not any(_stands(one, other) for one in found):
            reasons.append(f"the {_describe(other)} is not where it was")
    if len(found) > key["most"]:
        reasons.append(f"{len(found)} objects where {key['most']} belong")
    return reasons


def _stands(detection: Detection, wanted: KnownObject) -> bool:
    is_there = measure_overlap(detection.box, wanted.box) >= OVERLAP
    return is_there and detection.name == wanted.name and _has_color(detection, wanted.color)


def _has_color(detection: Detection, color: str | None) -> bool:
    return color is None or detection.color_shares[COLORS.index(color)] > CHANCE


def _describe(known: KnownObject) -> str:
    return f"{known.color} {known.name}" if known.color else known.name


# --- by the instruction and the source ------------------------------------------------------------


def soft_scores(
    request: Request, before: Sequence[Detection], after: Sequence[Detection]
) -> tuple[float, float]:
    """Return the chances that an edit was made and that the rest was kept.

    `before` are the detections in the source, `after` those in the result, best first.
    """
    present = [one for one in before if one.score > FOUND]
    edited = _find_edited(request, present)
    done = _chance_of_done(request, edited, present, after)
    kept = 1.0
    for one in present:
        if one is not edited:
            kept *= _chance_at_box(one.name, one.box, after, _own_color(one))
    most = len(present) + {"add": 1, "remove": -1}.get(request.kind, 0)
    extra = after[most].score if len(after) > most else LOWEST / 2
    return done, kept * (1 - extra)


def _find_edited(request: Request, present: Sequence[Detection]) -> Detection | None:
    """Find the object of the source that is edited; an addition edits none."""
    if request.kind == "add":
        return None
    return next((one for one in present if one.name == request.name), None)


def _chance_of_done(
    request: Request,
    edited: Detection | None,
    present: Sequence[Detection],
    after: Sequence[Detection],
) -> float:
    if request.kind == "add":
        anchor = next((one for one in present if one.name == request.anchor), None)
        return _chance_of_added(request, anchor, after)
    if edited is None:
        return LOWEST / 2
    if request.kind == "remove":
        overlaps = [one for one in after if measure_overlap(one.box, edited.box) >= GONE]
        return 1 - max((one.score for one in overlaps), default=LOWEST / 2)
    if request.kind == "replace":
        assert request.new_name is not None
        new = _chance_at_box(request.new_name, edited.box, after, None)
        old = _chance_at_box(request.name, edited.box, after, None)
        return new * (1 - old)
    return _chance_at_box(request.name, edited.box, after, request.color)


def _chance_of_added(
    request: Request, anchor: Detection | None, after: Sequence[Detection]
) -> float:
    chances = [LOWEST / 2]
    for one in after:
        if one.name == request.name:
            color = 1.0 if request.color is None else _share_of(one, request.color)
            place = chance_of_relation(str(request.relation), one, anchor)
            chances.append(one.score * color * place)
    return max(chances)


def _chance_at_box(name: str, box: Box, after: Sequence[Detection], color: str | None) -> float:
    """Return the chance that an object is at a box, with its colour if that matters."""
    chances = [LOWEST / 2]
    for one in after:
        if one.name == name and measure_overlap(one.box, box) >= OVERLAP:
            chances.append(one.score * (1.0 if color is None else _share_of(one, color)))
    return max(chances)


def _share_of(detection: Detection, color: str) -> float:
    return detection.color_shares[COLORS.index(color)]


def _own_color(detection: Detection) -> str | None:
    """Return the colour that an object clearly has; None where no colour fits well."""
    return detection.color if max(detection.color_shares) > CHANCE else None
