"""Compare boxes as T2I-CompBench does, and say in which scale its detector has them.

Boxes and scores are treated as 32-bit floats, as the reference's detector returns them.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.boxes import measure_areas

SHORT_SIDE = 479
LONG_SIDE = 480
"""Detections are in a picture that was resized so: the short side to 479, the long one to 480."""


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute the IoU of two boxes. Raises ValueError if both are empty: they have none."""
    shared, area_a, area_b = measure_areas(a, b, edge=0)
    union = area_a + area_b - shared
    if union == 0:
        raise ValueError("two detections of zero area have no overlap to compute")
    return shared / union


def is_duplicate(a: Sequence[float], b: Sequence[float], threshold: float = 0.9) -> bool:
    """Tell whether two boxes of a class are one object to the counting rule.

    Areas are of whole pixels, far corners included. They are one if their IoU exceeds the
    threshold, or if what they share exceeds that share of either.
    """
    shared, area_a, area_b = measure_areas(a, b, edge=1)
    largest = max(shared / (area_a + area_b - shared), shared / area_a, shared / area_b)
    return largest > threshold


def resized_sides(width: int, height: int) -> tuple[int, int]:
    """Compute width and height of a picture at the detector's scale, its ratio kept.

    The short side becomes 479 pixels, unless the long one would exceed 480.
    """
    scale = min(SHORT_SIDE / min(width, height), LONG_SIDE / max(width, height))
    return round(width * scale), round(height * scale)
