"""Judge and reward of the embedded model's world: two detectors, A and B.

They share neither weights, shape nor training data. The judge (A) belongs to the benchmark. The
reward (B) serves methods, and reads nothing but texts and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.engine.memory_need import takes_nothing
from harness.models.pictogram.detector import Detection, Detector
from harness.models.pictogram.grammar import DEFAULT, parse
from harness.models.pictogram.reading import soft_score

__all__ = ["Detection", "PictogramDetector", "PictogramReward"]


class PictogramDetector:
    """Find objects in pictures with detector A. Results are the same whatever else is in the batch.

    `weights` is a shipped set or the folder of one. Raises ValueError for weights that are missing,
    altered or of another shape.
    """

    def __init__(self, weights: str = DEFAULT, part: str = "judge") -> None:
        self._detector, sha = Detector.load(weights, part)
        self.id = f"pictogram-{part}-{sha[:12]}"

    memory_need = takes_nothing  # it runs on the CPU

    @property
    def classes(self) -> Sequence[str]:
        """List the names of all classes that can be found."""
        return self._detector.classes

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Find the objects of every picture (uint8 [48, 48, 3]), best first.

        Raises ValueError for a picture of another shape.
        """
        return self._detector.detect(images)


class PictogramReward:
    """Score how likely a picture shows what its text asks for, with detector B.

    The score of a text outside the grammar is None.
    """

    def __init__(self, weights: str = DEFAULT, part: str = "reward") -> None:
        self._detector, sha = Detector.load(weights, part)
        self.id = f"pictogram-{part}-{sha[:12]}"

    memory_need = takes_nothing  # it runs on the CPU

    @property
    def classes(self) -> Sequence[str]:
        """List the names of all classes that can be found."""
        return self._detector.classes

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float | None]:
        found = self._detector.detect(images)
        scores: list[float | None] = []
        for text, detections in zip(texts, found, strict=True):
            spec = parse(text)
            scores.append(None if spec is None else soft_score(spec, detections))
        return scores
