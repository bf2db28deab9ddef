"""Define the benchmark T2I-CompBench++: official prompts and rules, four kinds of evaluator."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.boxes import Found
from benchmarks.images import judge_each, read_images
from benchmarks.spread import spread_evenly
from benchmarks.t2i_compbench.complex_prompts import average_parts
from benchmarks.t2i_compbench.evaluators import (
    DepthEstimator,
    Evaluator,
    HasScores,
    ObjectDetector,
    Picture,
    QuestionAnswerer,
    TextComparer,
)
from benchmarks.t2i_compbench.layout import count_images, read_folder, warn_of_missing
from benchmarks.t2i_compbench.numeracy import score_counts
from benchmarks.t2i_compbench.prompts import (
    CATEGORIES,
    can_be_found,
    read_own_prompts,
    read_prompts,
)
from benchmarks.t2i_compbench.questions import multiply_answers, round_answer, write_question
from benchmarks.t2i_compbench.spatial import SpatialScore, score_depth, score_plane
from benchmarks.t2i_compbench.summary import summarise_categories
from harness.records import Count, Prompt, Score, UserError

log = logging.getLogger(__name__)

IMAGES = 10
"""Images per prompt that the papers draw."""
BATCH = 8
"""Images read and judged at a time; their scores are journaled before the next batch."""
NEEDS = {
    "color": ("blip",),
    "shape": ("blip",),
    "texture": ("blip",),
    "spatial": ("detector",),
    "3d_spatial": ("detector", "depth"),
    "numeracy": ("detector",),
    "non_spatial": ("clip",),
    "complex": ("blip", "detector", "clip"),
}
"""The evaluators of each category, by the names of their options."""
PARTS = {
    "spatial": ("spatial", "attribute"),
    "action": ("action", "attribute"),
    "both": ("attribute", "spatial", "action"),
}
"""What the score of each kind of complex prompt averages."""
RESULT_FILES = {
    "color": "color/annotation_blip",
    "shape": "shape/annotation_blip",
    "texture": "texture/annotation_blip",
    "spatial": "spatial/annotation_obj_detection_2d",
    "3d_spatial": "3d_spatial/annotation_obj_detection_3d",
    "numeracy": "numeracy/annotation_num",
    "non_spatial": "non_spatial/annotation_clip",
    "complex": "complex/annotation_3_in_1",
}

Judged = tuple[float, dict[str, Any]] | None
"""Value and detail of an image; None where its detections were not imported yet."""


@dataclass(frozen=True)
class Judge:
    """Hold the evaluators that the categories of a run need; the others are None.

    Each of them declares what it takes of the device.
    """

    blip: Evaluator | None = None
    detector: Evaluator | None = None
    depth: Evaluator | None = None
    clip: Evaluator | None = None

    @property
    def id(self) -> str:
        used = (self.blip, self.detector, self.depth, self.clip)
        return "+".join(one.id for one in used if one is not None)


class T2ICompBench:
    """Judge `images` images of each official prompt of some categories (None: all eight).

    `metadata` is the folder of the lists, None the cache or a pinned download; `color_list` is
    "current", or "older" for the colour prompts of before 2025-09-03. `prompts` takes that many,
    spread evenly over the categories. `images` may be a folder of the reference's layout instead of
    a number. Evaluators other than the reference's mark the version, as does another number of
    images; `upright` reads depth maps the right way round, which the reference does not. With `own`
    the lists are not the official ones: spaCy parses their prompts, and marks the version.

    Raises UserError for what cannot be had, evaluators of the categories among it.
    """

    name = "t2i_compbench"
    reads_folders = True

    def __init__(
        self,
        blip: QuestionAnswerer,
        detector: ObjectDetector,
        depth: DepthEstimator,
        clip: TextComparer,
        categories: Sequence[str] | None = None,
        color_list: str = "current",
        metadata: str | None = None,
        prompts: Count | None = None,
        images: Count | str = IMAGES,
        upright: bool = False,
        own: bool = False,
    ) -> None:
        self._blip = blip
        self._detector = detector
        self._depth = depth
        self._clip = clip
        self._upright = upright
        if own:
            available, version = read_own_prompts(categories, metadata)
        else:
            named = CATEGORIES if categories is None else categories
            available, version = read_prompts(named, color_list, metadata)
        self._prompts = available if prompts is None else spread_evenly(available, prompts)
        self._total = len(available)
        self._categories = list(dict.fromkeys(prompt.category for prompt in self._prompts))
        self._evaluators = self._list_evaluators()
        for option, evaluator in self._evaluators.items():
            if evaluator.missing:
                users = [name for name in self._categories if option in NEEDS[name]]
                raise UserError(
                    f"{', '.join(users)} cannot be judged: set {evaluator.missing}; "
                    "or leave them out with benchmark.categories=[...]"
                )
        self.judge = Judge(**self._evaluators)

        self.found: dict[tuple[str, int], Path] = {}
        """Imported images, by prompt id and number."""
        if isinstance(images, str):
            folder = Path(images).expanduser()
            self.found = read_folder(folder, self._prompts)
            self.images = count_images(self.found)
            warn_of_missing(folder, self.found, self._prompts, self.images)
        elif images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per prompt is needed")
        else:
            self.images = images
        self.version = "+".join([version, *self._list_marks()])
        self.excluded = self._why_excluded()
        self.remark = "; ".join(self._describe_reach())

    def prompts(self) -> list[Prompt]:
        """List the prompts to draw."""
        return list(self._prompts)

    def ready(self) -> None:
        """Load the evaluators of the categories. Raises UserError if that is impossible."""
        for evaluator in self._evaluators.values():
            evaluator.load()
        has_scores = isinstance(self._detector, HasScores) and self._detector.scores is not None
        if self._upright and has_scores:
            raise UserError(
                "benchmark.upright=true: the reference's scores were made with depth maps read as "
                "it reads them; give its detections and depths instead, or leave upright out"
            )

    def estimate(self, prompts: Sequence[Prompt]) -> str:
        """Count what judging an image of each of these prompts asks of each evaluator."""
        asked: dict[str, int] = defaultdict(int)
        for prompt in prompts:
            for option in NEEDS[prompt.category]:
                number = len(prompt.spec.get("phrases", ())) if option == "blip" else 1
                asked[option] += number
        what = {"blip": "questions", "detector": "pictures", "depth": "pictures", "clip": "texts"}
        listed = [
            f"{asked[option]:,} {what[option]} to {one.id}"
            for option, one in self._evaluators.items()
        ]
        return "; ".join(listed)

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Judge image files named by their number ("images/color/42/2.png"), in order.

        A file that is missing or broken gets no value, which counts as wrong; `unjudged` in its
        detail says why. An image whose detections were not imported yet has no score at all.
        """
        remaining = iter(items)
        waiting = 0
        while batch := list(islice(remaining, BATCH)):
            pictures = read_images(path for _, path in batch)
            shown = [
                (prompt, int(path.stem), picture)
                for (prompt, path), picture in zip(batch, pictures, strict=True)
                if isinstance(picture, np.ndarray)
            ]
            judged = iter(judge_each(self._judge_images, shown))
            for (prompt, path), picture in zip(batch, pictures, strict=True):
                found = picture if isinstance(picture, str) else next(judged)
                if found is None:
                    waiting += 1
                elif isinstance(found, str):
                    yield self._make_score(prompt, path, None, {"unjudged": found})
                else:
                    yield self._make_score(prompt, path, *found)
        if waiting:
            log.warning(
                "%d images wait for the reference's detector: `python -m benchmarks.t2i_compbench "
                "export RUN FOLDER`, run its evaluators there, and set "
                "benchmark.detector.detections=FOLDER",
                waiting,
            )

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Format the score of each category, what cannot be reached, and what marks the run."""
        yield from summarise_categories(self._prompts, self.images, scores)
        if self.remark:
            yield self.remark
        if self.images != IMAGES:
            yield f"MARKED: {self.images} images a prompt where the papers have {IMAGES}"
        if len(self._prompts) < self._total:
            yield f"PARTIAL: {len(self._prompts)} of {self._total} prompts"
        cut = sum(bool(score.detail.get("cut")) for score in scores)
        if cut:
            yield f"{cut} texts are longer than CLIP reads; they were cut"
        yield f"Version {self.version}, judge {self.judge.id}"
        if self.excluded:
            yield f"NOT FOR A LEADERBOARD: {self.excluded}"

    def files(self, scores: Sequence[Score], folder: Path) -> dict[str, str]:
        """Write each category's result file as the reference does; returns texts by name."""
        indices = {prompt.id: int(prompt.id.rsplit("/", 1)[1]) for prompt in self._prompts}
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for score in scores:
            category = score.prompt_id.split("/")[1]
            number = self.images * indices[score.prompt_id] + score.image
            answer = score.detail.get("answer", score.value or 0.0)
            rows[category].append({"question_id": number, "answer": answer})
        files = {}
        for category, results in rows.items():
            results.sort(key=lambda row: row["question_id"])
            name = RESULT_FILES[category].replace("/", "-")
            files[f"{name}-vqa_result.json"] = json.dumps(results, indent=2) + "\n"
        return files

    # --- what the run is --------------------------------------------------------------------------

    def _list_evaluators(self) -> dict[str, Evaluator]:
        """List the evaluators that the categories need, by the names of their options."""
        of_option: dict[str, Evaluator] = {
            "blip": self._blip,
            "detector": self._detector,
            "depth": self._depth,
            "clip": self._clip,
        }
        needed = {option for category in self._categories for option in NEEDS[category]}
        return {option: one for option, one in of_option.items() if option in needed}

    def _list_marks(self) -> list[str]:
        """List what differs from the reference's protocol, for the version."""
        marks = []
        for option, evaluator in (("detector", self._detector), ("depth", self._depth)):
            if option in self._evaluators and evaluator.protocol:
                marks.append(evaluator.protocol)
        if self._upright and "depth" in self._evaluators:
            marks.append("upright")
        if self.images != IMAGES:
            marks.append(f"images={self.images}")
        return marks

    def _why_excluded(self) -> str:
        """Say why the run must not enter a leaderboard; empty if it may."""
        random = [one.id for one in self._evaluators.values() if one.random]
        if random:
            return (
                f"{' and '.join(random)}: random weights test the path, their scores mean nothing"
            )
        return "images made elsewhere: what they cost is not known" if self.found else ""

    def _describe_reach(self) -> Iterator[str]:
        """Say how many prompts cannot reach a full score with the reference's class names.

        A substitute has no such names.
        """
        if self._detector.protocol:
            return
        for category in ("spatial", "3d_spatial"):
            prompts = [prompt for prompt in self._prompts if prompt.category == category]
            lost = sum(not can_be_found(prompt) for prompt in prompts)
            if lost:
                consequence = "score 0" if category == "spatial" else "cannot earn the position"
                yield (
                    f"{category}: {lost} of {len(prompts)} prompts name an object that no class of "
                    f"the official detector matches; they {consequence}, whatever is drawn"
                )

    # --- judging ----------------------------------------------------------------------------------

    def _make_score(
        self, prompt: Prompt, path: Path, value: float | None, detail: Mapping[str, Any]
    ) -> Score:
        return Score(prompt.id, int(path.stem), self.judge.id, value, detail)

    def _judge_images(self, shown: Sequence[tuple[Prompt, int, np.ndarray]]) -> list[Judged]:
        """Judge a batch of images: each evaluator sees all that it is asked, then rules decide."""
        # 1. Collect what each evaluator is asked, by image.
        needs = [NEEDS[prompt.category] for prompt, _, _ in shown]
        pictures = [
            Picture(prompt.id, number, pixels, _names_of(prompt))
            for prompt, number, pixels in shown
        ]

        # 2. Ask.
        chances = self._ask_questions(shown)
        with_detector = [i for i, need in enumerate(needs) if "detector" in need]
        detected = dict(
            zip(with_detector, self._detect([pictures[i] for i in with_detector]), strict=True)
        )
        with_depth = [i for i, need in enumerate(needs) if "depth" in need]
        depths = dict(
            zip(with_depth, self._estimate([pictures[i] for i in with_depth]), strict=True)
        )
        with_clip = [i for i, need in enumerate(needs) if "clip" in need]
        asked = [(shown[i][2], shown[i][0].spec["clip_text"]) for i in with_clip]
        compared = dict(zip(with_clip, self._clip.compare(asked) if asked else [], strict=True))

        # 3. Decide.
        judged: list[Judged] = []
        for index, (prompt, number, _) in enumerate(shown):
            given = self._look_up_score(prompt, number)
            is_waiting = (index in detected and detected[index] is None) or (
                index in depths and depths[index] is None
            )
            if is_waiting and given is None:
                judged.append(None)
                continue
            judged.append(
                self._decide(
                    prompt,
                    chances[index],
                    detected.get(index) or [],
                    depths.get(index),
                    compared.get(index),
                    given,
                )
            )
        return judged

    def _look_up_score(self, prompt: Prompt, number: int) -> float | None:
        """Return what the reference's own detector and rules gave an image; None if unknown."""
        if "detector" not in NEEDS[prompt.category] or not isinstance(self._detector, HasScores):
            return None
        running = self.images * int(prompt.id.rsplit("/", 1)[1]) + number
        return (self._detector.scores or {}).get((prompt.category, running))

    def _ask_questions(self, shown: Sequence[tuple[Prompt, int, np.ndarray]]) -> list[list[float]]:
        """Ask about the noun phrases of each image; none where its category asks nothing."""
        asked = []
        for prompt, _, pixels in shown:
            for phrase in prompt.spec.get("phrases", ()):
                asked.append((pixels, write_question(phrase)))
        answers = iter(self._blip.answer(asked) if asked else [])
        return [[next(answers) for _ in prompt.spec.get("phrases", ())] for prompt, _, _ in shown]

    def _detect(self, pictures: Sequence[Picture]) -> list[list[Found] | None]:
        return self._detector.detect(pictures) if pictures else []

    def _estimate(self, pictures: Sequence[Picture]) -> list[np.ndarray | None]:
        return self._depth.estimate(pictures) if pictures else []

    def _decide(
        self,
        prompt: Prompt,
        chances: Sequence[float],
        detections: Sequence[Found],
        depth: np.ndarray | None,
        compared: tuple[float, bool] | None,
        given: float | None,
    ) -> tuple[float, dict[str, Any]]:
        """Apply the rules of a prompt's category; return the value and what it is made of.

        Of a part that needs a detector, `given` is the reference's own score, where it is known.
        """
        category = prompt.category
        key = prompt.spec
        parts: dict[str, float] = {}
        detail: dict[str, Any] = {}
        if "blip" in NEEDS[category]:
            parts["attribute"] = float(multiply_answers(chances))
            detail["answers"] = [round_answer(chance) for chance in chances]
        if given is not None:
            parts["numeracy" if category == "numeracy" else "spatial"] = given
        elif "detector" in NEEDS[category]:
            detail["detections"] = [[one.name, *one.box, one.score] for one in detections]
            self._apply_rules(prompt, detections, depth, parts, detail)
        if compared is not None:
            cosine, was_cut = compared
            parts["action"] = cosine
            detail["cosine"] = cosine
            if was_cut:
                detail["cut"] = True

        if category == "complex":
            detail["parts"] = parts
            value = average_parts(PARTS[key["kind"]], parts)
        else:
            (value,) = parts.values()
        # A cosine below zero is no score of a leaderboard; the result file has it as it is.
        if value < 0:
            detail["answer"] = value
        return min(1.0, max(0.0, value)), detail

    def _apply_rules(
        self,
        prompt: Prompt,
        detections: Sequence[Found],
        depth: np.ndarray | None,
        parts: dict[str, float],
        detail: dict[str, Any],
    ) -> None:
        """Score what was detected: numbers of objects, or where two of them are."""
        if prompt.category == "numeracy":
            wanted = [(name, count) for name, count in prompt.spec["counts"]]
            counted = score_counts(wanted, detections)
            parts["numeracy"] = counted.value
            detail["counts"] = list(counted.counts)
            return
        placed = self._place(prompt, detections, depth)
        parts["spatial"] = placed.value
        detail["position"] = placed.position
        detail["found"] = placed.found

    def _place(
        self, prompt: Prompt, detections: Sequence[Found], depth: np.ndarray | None
    ) -> SpatialScore:
        objects = prompt.spec.get("objects", (None, None))
        pair = (objects[0], objects[1])
        relation = prompt.spec["relation"]
        if depth is None:
            return score_plane(pair, relation, detections)
        return score_depth(pair, relation, detections, depth, upright=self._upright)


def _names_of(prompt: Prompt) -> tuple[str, ...]:
    """List the objects that a detector is asked for."""
    if "counts" in prompt.spec:
        return tuple(name for name, _ in prompt.spec["counts"])
    return tuple(prompt.spec.get("objects", ()))
