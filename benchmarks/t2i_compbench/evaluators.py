"""Say what T2I-CompBench++ asks of its evaluators, whichever networks they are.

Each has an `id` by which scores of different ones are told apart, and `random`, which is True for
random weights: they test the path, their scores mean nothing. `missing` says what the user has to
give before it can be used; it is empty where nothing is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from benchmarks.boxes import Found


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to be judged: uint8 [H, W, 3], whose it is, and the objects asked for."""

    prompt_id: str
    image: int
    pixels: np.ndarray
    names: tuple[str, ...] = ()


class Evaluator(Protocol):
    """What every evaluator has."""

    id: str
    random: bool
    missing: str

    def load(self) -> None:
        """Load the network; later calls do nothing. Raises UserError if that is impossible."""


class QuestionAnswerer(Evaluator, Protocol):
    """Answers questions about attributes."""

    def answer(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[float]:
        """Return the chance of yes for each picture and question."""


class ObjectDetector(Evaluator, Protocol):
    """Finds objects."""

    protocol: str
    """What marks the version of scores by a substitute; "" for the reference's detector."""

    def detect(self, pictures: Sequence[Picture]) -> list[list[Found] | None]:
        """Find objects in each picture, in the detector's order; None where nobody looked yet.

        Boxes are in the reference detector's scale (boxes.py).
        """


@runtime_checkable
class HasScores(Protocol):
    """A detector that knows the reference's scores themselves."""

    @property
    def scores(self) -> Mapping[tuple[str, int], float] | None:
        """Scores by category and running number, once it is loaded; None where it has none."""


class DepthEstimator(Evaluator, Protocol):
    """Estimates how near each pixel is."""

    protocol: str
    """As a detector's."""

    def estimate(self, pictures: Sequence[Picture]) -> list[np.ndarray | None]:
        """Return depths, float32 [h, w] in the detector's scale, larger is nearer."""


class TextComparer(Evaluator, Protocol):
    """Compares pictures with texts."""

    def compare(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[tuple[float, bool]]:
        """Return the cosine of each picture and text, and whether the text had to be cut."""
