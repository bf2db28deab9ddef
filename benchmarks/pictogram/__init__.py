"""The embedded model's benchmark: GenEval's six tasks over pictogram classes, decided by GenEval's
own rules.

Its scores are no GenEval scores: other images, other detector, other prompts. They compare methods
with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.geneval.prompts import about, official_file, read_prompts
from benchmarks.geneval.verdict import Detection, Options, verdict
from benchmarks.images import read_images
from benchmarks.spread import spread
from harness.records import Prompt, Score, UserError

BATCH = 64
"""Images read and put to the judge at a time."""


class Found(Detection, Protocol):
    """A detection with the color that the detector sees in it."""

    @property
    def color(self) -> str: ...


class Detector(Protocol):
    """The benchmark's judge (harness/judges/pictogram.py)."""

    @property
    def id(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    def detect(self, images: Sequence[np.ndarray]) -> Sequence[Sequence[Found]]: ...


class Pictogram:
    """Prompts of the six tasks about the classes the judge knows, `images` images each.

    They are `total` prompts made from `seed`, or the rows of the GenEval file `metadata`
    (`official`: the cache, or a download pinned by its hash) that name known classes only
    (`left_out` counts the others); `prompts` takes that many of them, spread evenly over the tasks.
    A smaller `prompts` takes a subset of what a larger one takes, under the same ids. Raises
    UserError where that cannot be had.
    """

    name = "pictogram"
    version = "1"

    def __init__(
        self,
        judge: Detector,
        prompts: int | None = None,
        images: int = 4,
        total: int = 553,
        seed: int = 0,
        metadata: str | None = None,
        threshold: float = 0.4,
    ) -> None:
        if images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per prompt is needed")
        self.judge = judge
        self.images = images
        self.options = Options(threshold=threshold, counting_threshold=threshold)
        self.left_out = 0
        available = self._generated(total, seed) if metadata is None else self._official(metadata)
        self._prompts = available if prompts is None else spread(available, prompts)

    def prompts(self) -> list[Prompt]:
        return list(self._prompts)

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Judge image files named by their number ("images/00042/2.png"), in order.

        A file that is missing, broken or of a size the judge cannot read gets no value, which
        counts as wrong; `unjudged` in its detail says why.
        """
        remaining = iter(items)
        while batch := list(islice(remaining, BATCH)):
            pixels = read_images(path for _, path in batch)
            seen = iter(self._detect([image for image in pixels if isinstance(image, np.ndarray)]))
            for (prompt, path), image in zip(batch, pixels, strict=True):
                found = next(seen) if isinstance(image, np.ndarray) else image
                yield self._score(prompt, path, found)

    def _generated(self, total: int, seed: int) -> list[Prompt]:
        from harness.models.pictogram.grammar import generate_prompts

        try:
            rows = generate_prompts(self.judge.classes, total, seed)
        except ValueError as error:
            raise UserError(f"benchmark.total={total}: {error}") from None
        return [
            Prompt(f"pictogram/{i:05d}", row["prompt"], row["tag"], dict(row))
            for i, row in enumerate(rows)
        ]

    def _official(self, metadata: str) -> list[Prompt]:
        rows = read_prompts(official_file(metadata, allow_other_version=True)[0])
        prompts = about(rows, self.judge.classes, f"unknown to {self.judge.id}", metadata)
        self.left_out = len(rows) - len(prompts)
        return prompts

    def _detect(self, images: Sequence[np.ndarray]) -> list[Sequence[Found] | str]:
        try:
            return list(self.judge.detect(images)) if images else []
        except ValueError as error:  # one image spoils the batch: find out which
            return (
                [str(error)] if len(images) == 1 else [self._detect([image])[0] for image in images]
            )

    def _score(self, prompt: Prompt, path: Path, found: Sequence[Found] | str) -> Score:
        image = int(path.stem)
        if isinstance(found, str):
            return Score(prompt.id, image, self.judge.id, None, {"unjudged": found})

        def color_of(_: str, indices: Sequence[int]) -> list[str]:
            return [found[i].color for i in indices]

        decision = verdict(found, prompt.spec, color_of, self.options)
        kept = {
            name: [_compact(found[i]) for i in indices] for name, indices in decision.kept.items()
        }
        detail = {"reasons": list(decision.reasons), "kept": kept}
        return Score(prompt.id, image, self.judge.id, float(decision.correct), detail)


def _compact(found: Found) -> list[float | str]:
    return [
        *(round(float(corner), 1) for corner in found.box),
        round(float(found.score), 4),
        found.color,
    ]
