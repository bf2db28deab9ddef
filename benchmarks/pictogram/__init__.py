"""The embedded model's benchmark: GenEval's six tasks over pictogram classes, by GenEval's rules.

Its scores are no GenEval scores: images, detector and prompts are others. They compare methods with
each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from benchmarks.boxes import Detection
from benchmarks.embedded import Detector, DetectorBenchmark
from benchmarks.geneval.prompts import locate_metadata, read_prompts, select_by_classes
from benchmarks.geneval.verdict import Options, verdict
from harness.records import Count, Natural, Prompt, Share, UserError


class ColoredDetection(Detection, Protocol):
    """A detection with the color that the detector sees in it."""

    @property
    def color(self) -> str: ...


class Pictogram(DetectorBenchmark):
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
        self.options = Options(threshold=threshold, counting_threshold=threshold)
        self.left_out = 0
        if metadata is None:
            available = _generate_prompts(judge.classes, total, seed)
        else:
            available, self.left_out = _read_geneval_prompts(judge, metadata)
        super().__init__(judge, available, prompts, images)

    def _judge_image(
        self, prompt: Prompt, pixels: np.ndarray, found: Sequence[ColoredDetection]
    ) -> tuple[float, dict[str, Any]]:
        """Decide about an image by GenEval's rules."""

        def color_of(_: str, indices: Sequence[int]) -> list[str]:
            return [found[i].color for i in indices]

        decision = verdict(found, prompt.spec, color_of, self.options)
        kept = {}
        for name, indices in decision.kept.items():
            kept[name] = [_summarise_detection(found[i]) for i in indices]
        detail = {"reasons": list(decision.reasons), "kept": kept}
        return float(decision.correct), detail


def _generate_prompts(classes: Sequence[str], total: int, seed: int) -> list[Prompt]:
    from harness.models.pictogram.grammar import generate_prompts

    try:
        rows = generate_prompts(classes, total, seed)
    except ValueError as error:
        raise UserError(f"benchmark.total={total}: {error}") from None
    return [
        Prompt(f"pictogram/{i:05d}", row["prompt"], row["tag"], dict(row))
        for i, row in enumerate(rows)
    ]


def _read_geneval_prompts(judge: Detector, metadata: str) -> tuple[list[Prompt], int]:
    """Return the rows of known classes as prompts, and how many rows are left out."""
    path, _ = locate_metadata(metadata, allow_other_version=True)
    rows = read_prompts(path)
    prompts = select_by_classes(rows, judge.classes, f"unknown to {judge.id}", metadata)
    return prompts, len(rows) - len(prompts)


def _summarise_detection(found: ColoredDetection) -> list[float | str]:
    corners = [round(float(corner), 1) for corner in found.box]
    return [*corners, round(float(found.score), 4), found.color]
