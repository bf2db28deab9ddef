"""The benchmark: official prompts, the official evaluator, and its files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.geneval.colors import Colors, Question
from benchmarks.geneval.detector import CLASSES, Detector, Found
from benchmarks.geneval.layout import IMAGES, read_folder, say_oddities
from benchmarks.geneval.prompts import about, official_file, read_prompts
from benchmarks.geneval.summary import Result, format_result, summarize
from benchmarks.geneval.verdict import COLORS, DEFAULTS, ColorOf, Options, Verdict, verdict
from benchmarks.images import read_images
from benchmarks.spread import spread
from harness.records import Prompt, Score, UserError

BATCH = 8
"""Images read, detected and judged at a time; their scores are in the journal before the next."""
FLOOR = 0.05
"""Detections above this score are kept in the journal, so that other thresholds can be studied
without a detector.
"""


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Detector and color classifier together: the judge."""

    detector: Detector
    colors: Colors

    @property
    def id(self) -> str:
        return f"geneval-{self.detector.id}+{self.colors.id}"


class GenEval:
    """The official prompts, `images` of each, judged as the reference does.

    The metadata file is `metadata`, or the download pinned by its hash. Another one is refused,
    unless `allow_other_version`; then it marks the version. `prompts` takes that many, spread
    evenly over the tasks; `classes` only those about these classes, and says what it leaves out.
    Instead of a number `images` may be a folder of the reference's layout, made elsewhere.
    `options` are the reference's; others than its own mark the version. Raises UserError for what
    cannot be had.
    """

    name = "geneval"
    reads_folders = True

    def __init__(
        self,
        detector: Detector,
        colors: Colors,
        metadata: str | None = None,
        allow_other_version: bool = False,
        prompts: int | None = None,
        images: int | str = IMAGES,
        classes: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.judge = Evaluator(detector, colors)
        self.options = Options(**(options or {}))
        path, self.version = official_file(metadata, allow_other_version)
        changed = [
            f"{k}={v}"
            for k, v in dataclasses.asdict(self.options).items()
            if v != getattr(DEFAULTS, k)
        ]
        self.version = "+".join([self.version, *changed])
        every = read_prompts(path, CLASSES)
        chosen = (
            every
            if classes is None
            else about(every, classes, "beside benchmark.classes", path.name)
        )
        self._prompts = chosen if prompts is None else spread(chosen, prompts)
        self._total = len(every)
        self.found: dict[tuple[str, int], Path] = {}
        """Images made elsewhere, by prompt id and number."""
        self.images = self._count(images, every)
        self.excluded = self._excluded()

    def prompts(self) -> list[Prompt]:
        return list(self._prompts)

    def ready(self) -> None:
        """Load detector and color classifier. Raises UserError where that is impossible."""
        self.judge.detector.load()
        self.judge.colors.load()

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Judge image files named by their number ("images/00042/2.png"), in order.

        A file that is missing or broken gets no value, which counts as wrong; `unjudged` in its
        detail says why.
        """
        remaining = iter(items)
        while batch := list(islice(remaining, BATCH)):
            read = read_images(path for _, path in batch)
            whole = [i for i, pixels in enumerate(read) if isinstance(pixels, np.ndarray)]
            judged = self._judge(
                [batch[i][0].spec for i in whole], [_pixels(read[i]) for i in whole]
            )
            details = dict(zip(whole, judged, strict=True))
            for i, (prompt, path) in enumerate(batch):
                image = int(path.stem)
                made = details.get(i)
                if made is None:
                    yield Score(prompt.id, image, self.judge.id, None, {"unjudged": str(read[i])})
                else:
                    yield Score(prompt.id, image, self.judge.id, float(made[0]), made[1])

    def summarise(self, scores: Sequence[Score]) -> list[str]:
        """The reference's summary, what of it is partial, and our score: missing images are wrong,
        with an interval.
        """
        import pandas as pd

        from harness.results.stats import interval, macro_mean

        values = {(score.prompt_id, score.image): score.value or 0.0 for score in scores}
        if not values:
            return ["no image was scored"]
        keys = [(prompt, i) for prompt in self._prompts for i in range(self.images)]
        rows = [
            (prompt.category, prompt.id, i, values.get((prompt.id, i), 0.0)) for prompt, i in keys
        ]
        table = pd.DataFrame(rows, columns=["category", "prompt_id", "image", "value"])
        low, high = interval(table)
        partial = {"prompts": (len(self._prompts), self._total), "images": (len(values), len(keys))}
        return [
            *str(summarize(self._results(scores, Path()))).split("\n"),
            *(
                f"PARTIAL: {had} of {whole} {what}"
                for what, (had, whole) in partial.items()
                if had < whole
            ),
            f"Score over planned images: {macro_mean(table):.5f} {_interval(low, high)}",
            f"Version {self.version}, judge {self.judge.id}",
            *([f"NOT FOR A LEADERBOARD: {self.excluded}"] if self.excluded else []),
        ]

    def files(self, scores: Sequence[Score], folder: Path) -> dict[str, str]:
        """The reference's result file of a run folder, by its name."""
        return {"results.jsonl": "".join(map(format_result, self._results(scores, folder)))}

    def _results(self, scores: Iterable[Score], folder: Path) -> list[Result]:
        prompts = {prompt.id: prompt for prompt in self._prompts}
        made = [_result(prompts[score.prompt_id], score, folder) for score in scores]
        return sorted(made, key=lambda result: result.filename)

    def _count(self, images: int | str, every: Sequence[Prompt]) -> int:
        """Images per prompt; of a folder, the most that one has."""
        if not isinstance(images, str):
            if images < 1:
                raise UserError(
                    f"benchmark.images={images}: at least one image per prompt is needed"
                )
            return images
        by_prompt = read_folder(Path(images), every)
        most = max(len(by_prompt.get(prompt.id, ())) for prompt in self._prompts)
        if not most:
            raise UserError(
                f"benchmark.images={images}: no image of the {len(self._prompts)} prompts asked for"
            )
        say_oddities(Path(images), by_prompt, self._prompts, most)
        for prompt in self._prompts:
            self.found |= {
                (prompt.id, i): path for i, path in enumerate(by_prompt.get(prompt.id, ()))
            }
        return most

    def _excluded(self) -> str:
        """Why the run must not enter a leaderboard."""
        random = [part.id for part in (self.judge.detector, self.judge.colors) if part.random]
        if random:
            return (
                f"{' and '.join(random)}: random weights test the path, their verdicts mean nothing"
            )
        return "images made elsewhere: what they cost is not known" if self.found else ""

    def _judge(
        self, specs: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray]
    ) -> list[tuple[bool, dict[str, Any]]]:
        """Verdict and detail for each picture.

        Which colors a verdict asks for does not depend on the answers, so a first round of verdicts
        collects the questions of all pictures, and they are put together.
        """
        floor = min(FLOOR, self.options.threshold, self.options.counting_threshold)
        pictures = self.judge.detector.detect(images, floor)
        asked = []
        for spec, image, found in zip(specs, images, pictures, strict=True):
            dry = verdict(found, spec, _no_answer, self.options)
            asked.append(
                {i: Question(image, found[i]) for _, indices in dry.color_checked for i in indices}
            )
        answers = iter(
            self.judge.colors.scores([question for one in asked for question in one.values()])
        )
        made = []
        for spec, found, questions in zip(specs, pictures, asked, strict=True):
            looks = {i: next(answers) for i in questions}
            decision = verdict(found, spec, _answering(looks), self.options)
            made.append((decision.correct, _detail(found, decision, looks)))
        return made


def _interval(low: float, high: float) -> str:
    if math.isnan(low):
        return "(no interval: a task has a single prompt)"
    return f"[{low:.5f}, {high:.5f}] (95 %, prompts resampled)"


def _no_answer(_: str, indices: Sequence[int]) -> list[str]:
    return [""] * len(indices)


def _answering(looks: Mapping[int, Sequence[float]]) -> ColorOf:
    """The colors that objects look like most, by index."""
    colors = {i: COLORS[int(np.argmax(scores))] for i, scores in looks.items()}
    return lambda _, indices: [colors[i] for i in indices]


def _pixels(read: np.ndarray | str) -> np.ndarray:
    assert isinstance(read, np.ndarray)
    return read


def _detail(
    found: Sequence[Found], decision: Verdict, looks: Mapping[int, Sequence[float]]
) -> dict[str, Any]:
    """What of a verdict is kept: reasons, every detection, which of them counted, and what their
    colors look like.
    """
    return {
        "reasons": list(decision.reasons),
        "detections": [[one.name, *one.box, one.score] for one in found],
        "kept": decision.kept,
        "colors": {str(i): [round(score, 4) for score in scores] for i, scores in looks.items()},
    }


def _result(prompt: Prompt, score: Score, folder: Path) -> Result:
    """A row of the reference's result file. An image that could not be judged is wrong, and says
    why.
    """
    path = folder / "images" / prompt.id.split("/")[-1] / f"{score.image}.png"
    seen = score.detail.get("detections", ())
    kept = score.detail.get("kept", {})
    return Result(
        filename=os.readlink(path) if path.is_symlink() else str(path),
        tag=prompt.category,
        prompt=prompt.text,
        correct=bool(score.value),
        reason="\n".join(
            score.detail.get("reasons", [f"unjudged: {score.detail.get('unjudged')}"])
        ),
        metadata=json.dumps(dict(prompt.spec)),
        details=json.dumps(
            {name: [seen[i][1:] for i in indices] for name, indices in kept.items()}
        ),
    )
