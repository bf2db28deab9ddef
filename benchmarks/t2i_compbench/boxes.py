"""Compute with boxes as T2I-CompBench does: (x1, y1, x2, y2) in pixels, y downwards.

Boxes and scores are treated as 32-bit floats, as the reference's detector returns them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

SHORT_SIDE = 479
LONG_SIDE = 480
"""Detections are in a picture that was resized so: the short side to 479, the long one to 480."""


class Detection(Protocol):
    """What the rules need to know about one detected object."""

    @property
    def name(self) -> str: ...
    @property
    def box(self) -> Sequence[float]: ...
    @property
    def score(self) -> float: ...


def single_box(box: Sequence[float]) -> tuple[float, ...]:
    """Round a box to 32-bit floats."""
    return tuple(float(np.float32(corner)) for corner in box)


def single(value: float) -> float:
    """Round a number to a 32-bit float."""
    return float(np.float32(value))


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute the IoU of two boxes. Raises ValueError if both are empty: they have none."""
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - shared
    if union == 0:
        raise ValueError("two detections of zero area have no overlap to compute")
    return shared / union


def is_duplicate(a: Sequence[float], b: Sequence[float], threshold: float = 0.9) -> bool:
    """Tell whether two boxes of a class are one object to the counting rule.

    Areas are of whole pixels, far corners included. They are one if their IoU exceeds the
    threshold, or if what they share exceeds that share of either.
    """
    shared = _pixels((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    area_a = _pixels(a)
    area_b = _pixels(b)
    largest = max(shared / (area_a + area_b - shared), shared / area_a, shared / area_b)
    return largest > threshold


def resized_sides(width: int, height: int) -> tuple[int, int]:
    """Compute width and height of a picture at the detector's scale, its ratio kept.

    The short side becomes 479 pixels, unless the long one would exceed 480.
    """
    scale = min(SHORT_SIDE / min(width, height), LONG_SIDE / max(width, height))
    return round(width * scale), round(height * scale)


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _pixels(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0] + 1) * max(0.0, box[3] - box[1] + 1)
