"""Define the benchmark GenEval: the official prompts, the official evaluator, and its files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.geneval.colors import ColorQuestion, Colors
from benchmarks.geneval.detector import CLASSES, Detector, Instance
from benchmarks.geneval.layout import IMAGES, read_folder, warn_of_oddities
from benchmarks.geneval.prompts import locate_metadata, read_prompts, select_by_classes
from benchmarks.geneval.summary import Result, format_result, summarize
from benchmarks.geneval.verdict import (
    COLORS,
    DEFAULTS,
    ChangedOptions,
    ColorOf,
    Options,
    Verdict,
    verdict,
)
from benchmarks.images import judge_each, read_images
from benchmarks.spread import spread_evenly
from harness.records import Count, Prompt, Score, UserError

if TYPE_CHECKING:
    import pandas as pd

BATCH = 8
"""Images read, detected and judged at a time; their scores are journaled before the next batch."""
FLOOR = 0.05
"""Detections above this score are journaled, so that other thresholds need no second detection."""


@dataclass(frozen=True)
class Evaluator:
    """Hold detector and color classifier: together they are the judge.

    Each of them declares what it takes of the device.
    """

    detector: Detector
    colors: Colors

    @property
    def id(self) -> str:
        return f"geneval-{self.detector.id}+{self.colors.id}"


class GenEval:
    """Judge `images` images of each official prompt as the reference does.

    `metadata` is the prompts' file; None is the official one, from the cache or a download pinned
    by its hash. Another file is refused unless `allow_other_version` is set; then it marks the
    version. `classes` selects the prompts about these classes, and warns of the number left out;
    `prompts` takes that many of them, spread evenly over the tasks. `images` may be a folder of the
    reference's layout instead of a number: then its images are judged. `options` are the
    reference's; other values than its own mark the version.

    Raises UserError for what cannot be had.
    """

    name = "geneval"
    reads_folders = True

    def __init__(
        self,
        detector: Detector,
        colors: Colors,
        metadata: str | None = None,
        allow_other_version: bool = False,
        prompts: Count | None = None,
        images: Count | str = IMAGES,
        classes: Sequence[str] | None = None,
        options: ChangedOptions | None = None,
    ) -> None:
        self.judge = Evaluator(detector, colors)
        self.options = Options(**(options or {}))
        path, file_version = locate_metadata(metadata, allow_other_version)
        self.version = "+".join([file_version, *_changed_options(self.options)])

        available = read_prompts(path, CLASSES)
        chosen = available
        if classes is not None:
            chosen = select_by_classes(available, classes, "beside benchmark.classes", path.name)
        self._prompts = chosen if prompts is None else spread_evenly(chosen, prompts)
        self._total = len(available)

        self.found: dict[tuple[str, int], Path] = {}
        """Imported images, by prompt id and number."""
        if isinstance(images, str):
            self.images = self._find_images(images, available)
        elif images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per prompt is needed")
        else:
            self.images = images
        self.excluded = self._why_excluded()

    def prompts(self) -> list[Prompt]:
        """List the prompts to draw."""
        return list(self._prompts)

    def ready(self) -> None:
        """Load detector and color classifier. Raises UserError if that is impossible."""
        self.judge.detector.load()
        self.judge.colors.load()

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Judge image files named by their number ("images/00042/2.png"), in order.

        A file that is missing or broken gets no value, which counts as wrong; `unjudged` in its
        detail says why.
        """
        remaining = iter(items)
        while batch := list(islice(remaining, BATCH)):
            pictures = read_images(path for _, path in batch)
            shown = [
                (prompt.spec, picture)
                for (prompt, _), picture in zip(batch, pictures, strict=True)
                if isinstance(picture, np.ndarray)
            ]
            judged = iter(judge_each(self._judge_images, shown))
            for (prompt, path), picture in zip(batch, pictures, strict=True):
                number = int(path.stem)
                found = picture if isinstance(picture, str) else next(judged)
                if isinstance(found, str):
                    yield Score(prompt.id, number, self.judge.id, None, {"unjudged": found})
                else:
                    correct, detail = found
                    yield Score(prompt.id, number, self.judge.id, float(correct), detail)

    def summarise(self, scores: Sequence[Score]) -> list[str]:
        """Format the reference's summary and ours.

        Ours says what is partial, and gives the score with an interval; there a missing image
        counts as wrong.
        """
        from harness.results.stats import interval, macro_mean

        values = {(score.prompt_id, score.image): score.value or 0.0 for score in scores}
        if not values:
            return ["no image was scored"]
        table = self._tabulate_planned(values)
        low, high = interval(table)

        lines = str(summarize(self._results(scores, Path()))).split("\n")
        if len(self._prompts) < self._total:
            lines.append(f"PARTIAL: {len(self._prompts)} of {self._total} prompts")
        if len(values) < len(table):
            lines.append(f"PARTIAL: {len(values)} of {len(table)} images")
        score = f"{macro_mean(table):.5f} {_format_interval(low, high)}"
        lines.append(f"Score over planned images: {score}")
        lines.append(f"Version {self.version}, judge {self.judge.id}")
        if self.excluded:
            lines.append(f"NOT FOR A LEADERBOARD: {self.excluded}")
        return lines

    def files(self, scores: Sequence[Score], folder: Path) -> dict[str, str]:
        """Write the reference's result file of a run folder; returns its text by its name."""
        return {"results.jsonl": "".join(map(format_result, self._results(scores, folder)))}

    def _results(self, scores: Iterable[Score], folder: Path) -> list[Result]:
        prompts = {prompt.id: prompt for prompt in self._prompts}
        results = [_make_result(prompts[score.prompt_id], score, folder) for score in scores]
        return sorted(results, key=lambda result: result.filename)

    def _tabulate_planned(self, values: Mapping[tuple[str, int], float]) -> pd.DataFrame:
        """Tabulate all planned images, one a row; those without a value count as wrong."""
        import pandas as pd

        rows = [
            (prompt.category, prompt.id, image, values.get((prompt.id, image), 0.0))
            for prompt in self._prompts
            for image in range(self.images)
        ]
        return pd.DataFrame(rows, columns=["category", "prompt_id", "image", "value"])

    def _find_images(self, folder: str, available: Sequence[Prompt]) -> int:
        """Fill `found` with a folder's images; return the most images that a prompt has."""
        by_prompt = read_folder(Path(folder), available)
        most = max(len(by_prompt.get(prompt.id, ())) for prompt in self._prompts)
        if not most:
            raise UserError(
                f"benchmark.images={folder}: no image of the {len(self._prompts)} prompts asked for"
            )
        warn_of_oddities(Path(folder), by_prompt, self._prompts, most)
        for prompt in self._prompts:
            for number, path in enumerate(by_prompt.get(prompt.id, ())):
                self.found[prompt.id, number] = path
        return most

    def _why_excluded(self) -> str:
        """Say why the run must not enter a leaderboard; empty if it may."""
        random = [part.id for part in (self.judge.detector, self.judge.colors) if part.random]
        if random:
            names = " and ".join(random)
            return f"{names}: random weights test the path, their verdicts mean nothing"
        return "images made elsewhere: what they cost is not known" if self.found else ""

    def _judge_images(
        self, shown: Sequence[tuple[Mapping[str, Any], np.ndarray]]
    ) -> list[tuple[bool, dict[str, Any]]]:
        """Decide about each image, by its prompt's answer key.

        Returns whether it is correct, and the detail of its score.
        """
        # 1. Detect the objects of all images.
        specs = [spec for spec, _ in shown]
        images = [image for _, image in shown]
        floor = min(FLOOR, self.options.threshold, self.options.counting_threshold)
        detected = self.judge.detector.detect(images, floor)

        # 2. Collect the questions about colors. Which objects a verdict asks about does not depend
        #    on the answers, so a verdict without answers finds them.
        asked: list[dict[int, ColorQuestion]] = []
        for spec, image, instances in zip(specs, images, detected, strict=True):
            trial = verdict(instances, spec, _answer_nothing, self.options)
            checked = [i for _, indices in trial.color_checked for i in indices]
            asked.append({i: ColorQuestion(image, instances[i]) for i in checked})

        # 3. Ask about the colors of all images at once.
        questions = [question for by_index in asked for question in by_index.values()]
        answers = iter(self.judge.colors.scores(questions))

        # 4. Decide.
        judged = []
        for spec, instances, by_index in zip(specs, detected, asked, strict=True):
            looks = {i: next(answers) for i in by_index}
            decision = verdict(instances, spec, _answer_from(looks), self.options)
            judged.append((decision.correct, _make_detail(instances, decision, looks)))
        return judged


def _changed_options(options: Options) -> list[str]:
    """List the options that differ from the reference's, as "name=value"."""
    return [
        f"{name}={value}"
        for name, value in dataclasses.asdict(options).items()
        if value != getattr(DEFAULTS, name)
    ]


def _format_interval(low: float, high: float) -> str:
    if math.isnan(low):
        return "(no interval: a task has a single prompt)"
    return f"[{low:.5f}, {high:.5f}] (95 %, prompts resampled)"


def _answer_nothing(_: str, indices: Sequence[int]) -> list[str]:
    return [""] * len(indices)


def _answer_from(looks: Mapping[int, Sequence[float]]) -> ColorOf:
    """Answer with the color that each object looks like most; `looks` are scores by index."""
    colors = {i: COLORS[int(np.argmax(scores))] for i, scores in looks.items()}
    return lambda _, indices: [colors[i] for i in indices]


def _make_detail(
    instances: Sequence[Instance], decision: Verdict, looks: Mapping[int, Sequence[float]]
) -> dict[str, Any]:
    """Make the detail of a score.

    It has the reasons, every detection, which of them counted, and what their colors look like.
    """
    colors = {}
    for i, scores in looks.items():
        colors[str(i)] = [round(score, 4) for score in scores]
    return {
        "reasons": list(decision.reasons),
        "detections": [[one.name, *one.box, one.score] for one in instances],
        "kept": decision.kept,
        "colors": colors,
    }


def _make_result(prompt: Prompt, score: Score, folder: Path) -> Result:
    """Make a row of the reference's result file; an image that could not be judged is wrong."""
    path = folder / "images" / prompt.id.split("/")[-1] / f"{score.image}.png"
    reasons = score.detail.get("reasons", [f"unjudged: {score.detail.get('unjudged')}"])
    detections = score.detail.get("detections", ())
    details = {}
    for name, indices in score.detail.get("kept", {}).items():
        details[name] = [detections[i][1:] for i in indices]
    return Result(
        filename=os.readlink(path) if path.is_symlink() else str(path),
        tag=prompt.category,
        prompt=prompt.text,
        correct=bool(score.value),
        reason="\n".join(reasons),
        metadata=json.dumps(dict(prompt.spec)),
        details=json.dumps(details),
    )
