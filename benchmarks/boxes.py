"""Detected objects and their boxes: (x1, y1, x2, y2) in pixels, y downwards.

GenEval and T2I-CompBench++ have rules of their own over them; what both need is here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.jsonl import is_number


class Detection(Protocol):
    """What rules need to know about a detected object."""

    @property
    def name(self) -> str: ...
    @property
    def box(self) -> Sequence[float]: ...
    @property
    def score(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A detected object and nothing else."""

    name: str
    box: tuple[float, ...]
    score: float


def read_detection(row: object) -> Found:
    """Read {"class": "cat", "box": [x1, y1, x2, y2], "score": 0.9}.

    Raises ValueError for anything else; more fields may stand beside these.
    """
    if isinstance(row, Mapping) and isinstance(row.get("class"), str):
        box = row.get("box")
        score = row.get("score")
        if isinstance(box, list) and len(box) == 4 and all(map(_is_finite, [*box, score])):
            return Found(row["class"], tuple(map(float, box)), float(row["score"]))
    raise ValueError(f"a detection has class, box (four numbers) and score, found {row!r:.120}")


def measure_areas(a: Sequence[float], b: Sequence[float], edge: int) -> tuple[float, float, float]:
    """Measure what two boxes share, and the area of each, in the precision of their corners.

    `edge` 1 counts whole pixels, far corners included; 0 measures between the corners.
    """
    shared = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return _measure_area(shared, edge), _measure_area(a, edge), _measure_area(b, edge)


def single(value: float) -> float:
    """Round a number to a 32-bit float, as detectors return them."""
    return float(np.float32(value))


def single_box(box: Sequence[float]) -> tuple[float, ...]:
    """Round a box to 32-bit floats."""
    return tuple(map(single, box))


def _measure_area(box: Sequence[float], edge: int) -> float:
    return max(0.0, box[2] - box[0] + edge) * max(0.0, box[3] - box[1] + edge)


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
