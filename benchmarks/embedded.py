"""What benchmarks of the embedded model share: prompts that are made, a detector as judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.images import judge_files
from benchmarks.spread import spread_evenly
from harness.records import Prompt, Score, UserError

BATCH = 64
"""Images read and judged at a time."""


class Detector(Protocol):
    """The judge (harness/judges/pictogram.py)."""

    @property
    def id(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    def detect(self, images: Sequence[np.ndarray]) -> Sequence[Sequence[Any]]: ...


class DetectorBenchmark(ABC):
    """Judge `images` images of each prompt by what a detector finds in them.

    `wanted` takes that many of the `available` prompts, spread evenly over the categories; a
    smaller number takes a subset of a larger one's, under the same ids. Raises UserError where that
    cannot be had.
    """

    def __init__(
        self, judge: Detector, available: Sequence[Prompt], wanted: int | None, images: int
    ) -> None:
        if images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per prompt is needed")
        self.judge = judge
        self.images = images
        self._prompts = list(available) if wanted is None else spread_evenly(available, wanted)

    def prompts(self) -> list[Prompt]:
        """List the prompts to draw."""
        return list(self._prompts)

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Judge image files named by their number ("images/00042/2.png"), in order.

        A file that is missing, broken or of a size the judge cannot read gets no value, which
        counts as wrong; `unjudged` in its detail says why.
        """
        for prompt, path, pixels, found in judge_files(self.judge.detect, items, BATCH):
            if isinstance(found, str) or isinstance(pixels, str):
                value, detail = None, {"unjudged": str(found)}
            else:
                value, detail = self._judge_image(prompt, pixels, found)
            yield Score(prompt.id, int(path.stem), self.judge.id, value, detail)

    @abstractmethod
    def _judge_image(
        self, prompt: Prompt, pixels: np.ndarray, found: Sequence[Any]
    ) -> tuple[float | None, dict[str, Any]]:
        """Return the value of an image by its detections, and its detail."""
