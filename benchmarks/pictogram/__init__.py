"""The embedded model's benchmark: GenEval's six tasks over pictogram classes, by GenEval's rules.

Its scores are no GenEval scores: images, detector and prompts are others. They compare methods with
each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.boxes import Detection
from benchmarks.geneval.prompts import locate_metadata, read_prompts, select_by_classes
from benchmarks.geneval.verdict import Options, verdict
from benchmarks.images import judge_files
from benchmarks.spread import spread_evenly
from harness.records import Count, Natural, Prompt, Score, Share, UserError

BATCH = 64
"""Images read and judged at a time."""


class ColoredDetection(Detection, Protocol):
    """A detection with the color that the detector sees in it."""

    @property
    def color(self) -> str: ...


class Detector(Protocol):
    """The benchmark's judge (harness/judges/pictogram.py)."""

    @property
    def id(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    def detect(self, images: Sequence[np.ndarray]) -> Sequence[Sequence[ColoredDetection]]: ...


class Pictogram:
    """Judge `images` images of each prompt; the prompts are about the classes that the judge knows.

    They are `total` prompts generated from `seed`. With `metadata`, they are instead the rows of a
    GenEval file that name known classes only, and `left_out` counts the other rows; "official" is
    the cached file or a download pinned by its hash. `prompts` takes that many of them, spread
    evenly over the tasks; a smaller number takes a subset of a larger one's, under the same ids.

    Raises UserError where that cannot be had.
    """

    name = "pictogram"
    version = "1"

    def __init__(
        self,
        judge: Detector,
        prompts: Count | None = None,
        images: Count = 4,
        total: Count = 553,
        seed: Natural = 0,
        metadata: str | None = None,
        threshold: Share = 0.4,
    ) -> None:
        if images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per prompt is needed")
        self.judge = judge
        self.images = images
        self.options = Options(threshold=threshold, counting_threshold=threshold)
        self.left_out = 0
        if metadata is None:
            available = self._generate_prompts(total, seed)
        else:
            available = self._read_geneval_prompts(metadata)
        self._prompts = available if prompts is None else spread_evenly(available, prompts)

    def prompts(self) -> list[Prompt]:
        """List the prompts to draw."""
        return list(self._prompts)

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Judge image files named by their number ("images/00042/2.png"), in order.

        A file that is missing, broken or of a size the judge cannot read gets no value, which
        counts as wrong; `unjudged` in its detail says why.
        """
        for prompt, path, _, found in judge_files(self.judge.detect, items, BATCH):
            yield self._make_score(prompt, path, found)

    def _generate_prompts(self, total: int, seed: int) -> list[Prompt]:
        from harness.models.pictogram.grammar import generate_prompts

        try:
            rows = generate_prompts(self.judge.classes, total, seed)
        except ValueError as error:
            raise UserError(f"benchmark.total={total}: {error}") from None
        return [
            Prompt(f"pictogram/{i:05d}", row["prompt"], row["tag"], dict(row))
            for i, row in enumerate(rows)
        ]

    def _read_geneval_prompts(self, metadata: str) -> list[Prompt]:
        path, _ = locate_metadata(metadata, allow_other_version=True)
        rows = read_prompts(path)
        known = self.judge.classes
        prompts = select_by_classes(rows, known, f"unknown to {self.judge.id}", metadata)
        self.left_out = len(rows) - len(prompts)
        return prompts

    def _make_score(
        self, prompt: Prompt, path: Path, found: Sequence[ColoredDetection] | str
    ) -> Score:
        """Decide about an image by its detections; a string says why there are none."""
        number = int(path.stem)
        if isinstance(found, str):
            return Score(prompt.id, number, self.judge.id, None, {"unjudged": found})

        def color_of(_: str, indices: Sequence[int]) -> list[str]:
            return [found[i].color for i in indices]

        decision = verdict(found, prompt.spec, color_of, self.options)
        kept = {}
        for name, indices in decision.kept.items():
            kept[name] = [_summarise_detection(found[i]) for i in indices]
        detail = {"reasons": list(decision.reasons), "kept": kept}
        return Score(prompt.id, number, self.judge.id, float(decision.correct), detail)


def _summarise_detection(found: ColoredDetection) -> list[float | str]:
    corners = [round(float(corner), 1) for corner in found.box]
    return [*corners, round(float(found.score), 4), found.color]
