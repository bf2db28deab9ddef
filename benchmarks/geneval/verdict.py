"""Decide about one image as GenEval does: which detections count, and whether the prompt is met.

These are pure functions that need no detector. Boxes are (x1, y1, x2, y2) in pixels, y downwards;
boxes and scores are treated as 32-bit floats, as the reference's detector returns them. Reference:
evaluation/evaluate_images.py, functions `evaluate_image`, `evaluate`, `relative_position` and
`compute_iou`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from benchmarks.boxes import Detection, measure_areas
from harness.records import Count, NotNegative, Share

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

Kept = dict[str, list[int]]
"""Class -> indices into the detections, the most confident first."""

ColorOf = Callable[[str, Sequence[int]], Sequence[str]]
"""Name the colors of a class's detections, given by index; called only if a clause needs it."""


@dataclass(frozen=True, slots=True)
class Options:
    """Hold the reference's options, with its defaults and its names."""

    threshold: float = 0.3  # scores must be strictly greater
    counting_threshold: float = 0.9  # the same, for the counting task
    max_objects: int = 16  # per class
    max_overlap: float = 1.0  # IoU at which the less confident of two boxes is dropped; 1 = never
    position_threshold: float = 0.1  # share of the two sizes that an offset must exceed


class ChangedOptions(TypedDict, total=False):
    """The reference's options that have other values than its own."""

    threshold: Share
    counting_threshold: Share
    max_objects: Count
    max_overlap: Share
    position_threshold: NotNegative


@dataclass(frozen=True, slots=True)
class Verdict:
    """Hold the decision about an image; it is correct if no clause of its prompt failed."""

    reasons: tuple[str, ...]  # one for each clause that failed, in the reference's words
    kept: Kept
    color_checked: tuple[tuple[str, tuple[int, ...]], ...]  # the calls of `color_of`, in order

    @property
    def correct(self) -> bool:
        return not self.reasons


DEFAULTS = Options()


def verdict(
    detections: Sequence[Detection],
    spec: Mapping[str, Any],
    color_of: ColorOf,
    options: Options = DEFAULTS,
) -> Verdict:
    """Judge one image's detections against a metadata row (`tag`, `include`, `exclude`).

    All clauses are evaluated, also after one has failed. Color and position look at the most
    confident `count` objects only: a correct runner-up does not help, a wrong one does not hurt.
    """
    kept = keep_detections(detections, spec["tag"], options)
    reasons: list[str] = []
    checked: list[tuple[str, tuple[int, ...]]] = []
    groups: list[list[int] | None] = []  # the objects of each include clause, None if it failed

    def ask_color(name: str, found: Sequence[int]) -> Sequence[str]:
        checked.append((name, tuple(found)))
        return color_of(name, found)

    for clause in spec["include"]:
        found = kept.get(clause["class"], [])[: clause["count"]]
        failure = (
            _too_few(clause, found)
            or _wrong_color(clause, found, ask_color)
            or _wrong_place(clause, found, groups, detections, options)
        )
        if failure:
            reasons.append(failure)
        groups.append(None if failure else found)

    for clause in spec.get("exclude", ()):
        count = len(kept.get(clause["class"], ()))
        if count >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {count}")
    return Verdict(tuple(reasons), kept, tuple(checked))


def keep_detections(detections: Sequence[Detection], tag: str, options: Options = DEFAULTS) -> Kept:
    """Select the detections that count, by class and falling score.

    Scores must exceed the threshold of the task `tag`; then each class is capped, then overlapping
    boxes are suppressed. Among equal scores the later detection comes first, as in the reference's
    sort of small inputs.
    """
    threshold = np.float32(options.counting_threshold if tag == "counting" else options.threshold)
    kept: Kept = {}
    for name in dict.fromkeys(detection.name for detection in detections):
        indices = [i for i, detection in enumerate(detections) if detection.name == name]
        scores = np.array([detections[i].score for i in indices], np.float32)
        falling = np.argsort(scores, kind="stable")[::-1]
        order = [indices[i] for i in falling if scores[i] > threshold]
        order = order[: options.max_objects]
        if options.max_overlap != 1:
            order = _suppress(order, detections, options.max_overlap)
        if order:
            kept[name] = order
    return kept


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute the IoU of two boxes from inclusive pixel areas; 0 if both are empty."""
    box_a = list(np.asarray(a, np.float32))
    box_b = list(np.asarray(b, np.float32))
    shared, area_a, area_b = measure_areas(box_a, box_b, edge=1)
    union = area_a + area_b - shared
    return float(shared / union) if union else 0.0


def relations(
    a: Sequence[float], b: Sequence[float], threshold: float = DEFAULTS.position_threshold
) -> list[str]:
    """List the relations of box `a` to box `b`, sorted: none, one, or two on a diagonal.

    The offset of the centres is shrunk by `threshold` times the two sizes, then divided by its
    unshrunk length. A relation holds if more than half of that length is left along its axis.
    """
    corners_a = np.asarray(a, np.float32).reshape(2, 2)
    corners_b = np.asarray(b, np.float32).reshape(2, 2)
    offset = corners_a.mean(axis=0) - corners_b.mean(axis=0)
    sizes = np.abs(corners_a[1] - corners_a[0]) + np.abs(corners_b[1] - corners_b[0])
    shrunk = np.maximum(np.abs(offset) - np.float32(threshold) * sizes, 0) * np.sign(offset)
    if np.all(np.abs(shrunk) < 1e-3):
        return []
    x, y = shrunk / np.linalg.norm(offset)
    holds = {"above": y < -0.5, "below": y > 0.5, "left of": x < -0.5, "right of": x > 0.5}
    return [relation for relation, held in holds.items() if held]


def _too_few(clause: Mapping[str, Any], found: Sequence[int]) -> str:
    if len(found) >= clause["count"]:
        return ""
    return f"expected {clause['class']}>={clause['count']}, found {len(found)}"


def _wrong_color(clause: Mapping[str, Any], found: Sequence[int], color_of: ColorOf) -> str:
    wanted = clause.get("color")
    if wanted is None:
        return ""
    seen = list(color_of(clause["class"], found))
    if seen.count(wanted) >= clause["count"]:
        return ""
    all_seen = ", ".join(f"{seen.count(color)} {color}" for color in COLORS if color in seen)
    return (
        f"expected {wanted} {clause['class']}>={clause['count']}, "
        f"found {seen.count(wanted)} {wanted}; and {all_seen}"
    )


def _wrong_place(
    clause: Mapping[str, Any],
    found: Sequence[int],
    groups: Sequence[Sequence[int] | None],
    detections: Sequence[Detection],
    options: Options,
) -> str:
    if "position" not in clause:
        return ""
    wanted, target = clause["position"]
    targets = groups[target]
    if targets is None:
        return f"no target for {clause['class']} to be {wanted}"
    for i, j in product(found, targets):
        seen = relations(detections[i].box, detections[j].box, options.position_threshold)
        if wanted not in seen:
            return f"expected {clause['class']} {wanted} target, found {' and '.join(seen)} target"
    return ""


def _suppress(order: list[int], detections: Sequence[Detection], max_overlap: float) -> list[int]:
    """Drop each box that overlaps a more confident one that stays."""
    limit = np.float32(max_overlap)
    survivors = []
    while order:
        best, *rest = order
        survivors.append(best)
        box = detections[best].box
        order = [i for i in rest if overlap(box, detections[i].box) < limit]
    return survivors
