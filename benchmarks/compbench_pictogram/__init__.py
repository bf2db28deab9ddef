"""T2I-CompBench++'s rules in the embedded model's world, with the embedded detector as evaluator.

Four of the eight categories exist there: color, 2-D spatial, numeracy and complex (attributes and
position). A pictogram has one shape, no texture, no depth and does nothing, so shape, texture, 3-D
spatial and non-spatial are left out; so are relations of nearness, which the model does not know.

Its scores are no T2I-CompBench++ scores: prompts, evaluator and images are others. They compare
methods with each other on the benchmark that GridAR was published on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from benchmarks.boxes import Detection, Found
from benchmarks.compbench_pictogram.scenes import make_prompts
from benchmarks.embedded import Detector, DetectorBenchmark
from benchmarks.t2i_compbench.boxes import SHORT_SIDE
from benchmarks.t2i_compbench.complex_prompts import average_parts
from benchmarks.t2i_compbench.numeracy import score_counts
from benchmarks.t2i_compbench.questions import multiply_answers, round_answer
from benchmarks.t2i_compbench.spatial import score_plane
from benchmarks.t2i_compbench.summary import summarise_categories
from harness.models.pictogram.grammar import COLORS
from harness.records import Count, Natural, Prompt, Score, Share, UserError

PARTS = ("spatial", "attribute")
"""What the score of a complex prompt averages, as the reference does for prompts about places."""


class ColoredDetection(Detection, Protocol):
    """A detected object, and how well each color fits it."""

    @property
    def color_shares(self) -> Sequence[float]: ...


class CompbenchPictogram(DetectorBenchmark):
    """Judge `images` images of each of `total` prompts made from `seed`.

    `prompts` takes that many of them, spread evenly over the categories; a smaller number takes a
    subset of a larger one's, under the same ids. Objects count for places and numbers from a
    detection score of `threshold`. Raises UserError where that cannot be had.
    """

    name = "compbench_pictogram"
    version = "1"
    remark = "left out, since no pictogram shows them: shape, texture, 3d_spatial, non_spatial"

    def __init__(
        self,
        judge: Detector,
        prompts: Count | None = None,
        images: Count = 4,
        total: Count = 480,
        seed: Natural = 0,
        threshold: Share = 0.4,
    ) -> None:
        if total < 1:
            raise UserError(f"benchmark.total={total}: at least one prompt is needed")
        available = make_prompts(self.name, judge.classes, total, seed)
        super().__init__(judge, available, prompts, images)
        self._threshold = threshold

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Format the score of each category with its interval, and what is left out."""
        yield from summarise_categories(self._prompts, self.images, scores)
        yield f"Version {self.version}, judge {self.judge.id}"
        yield self.remark

    def _judge_image(
        self, prompt: Prompt, pixels: np.ndarray, found: Sequence[ColoredDetection]
    ) -> tuple[float | None, dict[str, Any]]:
        """Decide about an image; the reason stands in the detail of one that has no value."""
        try:
            return self._apply_rules(prompt, pixels.shape[1], found)
        except ValueError as error:
            return None, {"unjudged": str(error)}

    def _apply_rules(
        self, prompt: Prompt, width: int, found: Sequence[ColoredDetection]
    ) -> tuple[float, dict[str, Any]]:
        """Apply the rules of a prompt's category; return the value and what it is made of."""
        key = prompt.spec
        parts: dict[str, float] = {}
        detail: dict[str, Any] = {}
        if "questions" in key:
            answers = [_answer_question(question, found) for question in key["questions"]]
            parts["attribute"] = float(multiply_answers(answers))
            detail["answers"] = [round_answer(answer) for answer in answers]

        scale = SHORT_SIDE / width
        seen = [_scale(one, scale) for one in found if one.score > self._threshold]
        if "objects" in key:
            first, second = key["objects"]
            placed = score_plane((first, second), key["relation"], seen)
            parts["spatial"] = placed.value
            detail["position"] = placed.position
            detail["found"] = placed.found
        if "counts" in key:
            counted = score_counts([(name, count) for name, count in key["counts"]], seen)
            parts["numeracy"] = counted.value
            detail["counts"] = list(counted.counts)

        if prompt.category == "complex":
            detail["parts"] = parts
            return average_parts(PARTS, parts), detail
        (value,) = parts.values()
        return value, detail


def _scale(one: ColoredDetection, scale: float) -> Found:
    return Found(one.name, tuple(corner * scale for corner in one.box), one.score)


def _answer_question(question: Mapping[str, str], found: Sequence[ColoredDetection]) -> float:
    """Answer with the chance that some object is of the class and has the color."""
    color = COLORS.index(question["color"])
    chances = [
        one.score * one.color_shares[color] for one in found if one.name == question["class"]
    ]
    return max(chances, default=0.0)
