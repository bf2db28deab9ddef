"""T2I-CompBench++'s rules in the embedded model's world, with the embedded detector as evaluator.

Four of the eight categories exist there: color, 2-D spatial, numeracy and complex (attributes and
position). A pictogram has one shape, no texture, no depth and does nothing, so shape, texture, 3-D
spatial and non-spatial are left out; so are relations of nearness, which the model does not know.

Its scores are no T2I-CompBench++ scores: prompts, evaluator and images are others. They compare
methods with each other on the benchmark that GridAR was published on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.boxes import Detection, Found
from benchmarks.compbench_pictogram.scenes import make_prompts
from benchmarks.images import judge_files
from benchmarks.spread import spread_evenly
from benchmarks.t2i_compbench.boxes import SHORT_SIDE
from benchmarks.t2i_compbench.complex_prompts import average_parts
from benchmarks.t2i_compbench.numeracy import score_counts
from benchmarks.t2i_compbench.questions import multiply_answers, round_answer
from benchmarks.t2i_compbench.spatial import score_plane
from benchmarks.t2i_compbench.summary import summarise_categories
from harness.models.pictogram.grammar import COLORS
from harness.records import Count, Natural, Prompt, Score, Share, UserError

BATCH = 64
"""Images read and judged at a time."""
PARTS = ("spatial", "attribute")
"""What the score of a complex prompt averages, as the reference does for prompts about places."""


class ColoredDetection(Detection, Protocol):
    """A detected object, and how well each color fits it."""

    @property
    def color_shares(self) -> Sequence[float]: ...


class Detector(Protocol):
    """The benchmark's judge (harness/judges/pictogram.py)."""

    @property
    def id(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    def detect(self, images: Sequence[np.ndarray]) -> Sequence[Sequence[ColoredDetection]]: ...


class CompbenchPictogram:
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
        if images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per prompt is needed")
        if total < 1:
            raise UserError(f"benchmark.total={total}: at least one prompt is needed")
        self.judge = judge
        self.images = images
        self._threshold = threshold
        available = make_prompts(self.name, judge.classes, total, seed)
        self._prompts = available if prompts is None else spread_evenly(available, prompts)

    def prompts(self) -> list[Prompt]:
        """List the prompts to draw."""
        return list(self._prompts)

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Judge image files named by their number ("images/color/42/2.png"), in order.

        A file that is missing, broken or of a size the judge cannot read gets no value, which
        counts as wrong; `unjudged` in its detail says why.
        """
        for prompt, path, picture, found in judge_files(self.judge.detect, items, BATCH):
            yield self._make_score(prompt, path, picture, found)

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Format the score of each category with its interval, and what is left out."""
        yield from summarise_categories(self._prompts, self.images, scores)
        yield f"Version {self.version}, judge {self.judge.id}"
        yield self.remark

    def _make_score(
        self,
        prompt: Prompt,
        path: Path,
        picture: np.ndarray | str,
        found: Sequence[ColoredDetection] | str,
    ) -> Score:
        """Decide about an image by its detections; a string says why there are none."""
        number = int(path.stem)
        if isinstance(found, str) or isinstance(picture, str):
            return Score(prompt.id, number, self.judge.id, None, {"unjudged": str(found)})
        try:
            value, detail = self._judge_image(prompt, picture.shape[1], found)
        except ValueError as error:
            return Score(prompt.id, number, self.judge.id, None, {"unjudged": str(error)})
        return Score(prompt.id, number, self.judge.id, value, detail)

    def _judge_image(
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
