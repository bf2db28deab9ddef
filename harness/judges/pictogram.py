"""Judge and reward of the embedded model's world: two detectors that share neither weights, shape
nor data.

The judge (A) belongs to the benchmark; the reward (B) serves methods and reads nothing but text and
picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.models.pictogram.detector import Detection, Detector
from harness.models.pictogram.grammar import DEFAULT, parse
from harness.models.pictogram.reading import soft_score

__all__ = ["Detection", "PictogramDetector", "PictogramReward"]


class PictogramDetector:
    """Objects of pictures, by detector A. Results do not depend on which pictures are asked about
    together.

    `weights` is a shipped set or the folder of one; raises ValueError when missing, altered or of
    another shape.
    """

    def __init__(self, weights: str = DEFAULT, part: str = "judge") -> None:
        self._detector, sha = Detector.load(weights, part)
        self.id = f"pictogram-{part}-{sha[:12]}"

    @property
    def classes(self) -> Sequence[str]:
        """Every class that can be found, by name."""
        return self._detector.classes

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Detections per picture (uint8 [48, 48, 3]), best first. Raises ValueError for another
        shape.
        """
        return self._detector.detect(images)


class PictogramReward:
    """The chance that a picture shows what its text says, by detector B; None for a text outside
    the grammar.
    """

    def __init__(self, weights: str = DEFAULT, part: str = "reward") -> None:
        self._detector, sha = Detector.load(weights, part)
        self.id = f"pictogram-{part}-{sha[:12]}"

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float | None]:
        specs = [parse(text) for text in texts]
        found = self._detector.detect(images)
        return [
            None if spec is None else soft_score(spec, one)
            for spec, one in zip(specs, found, strict=True)
        ]
