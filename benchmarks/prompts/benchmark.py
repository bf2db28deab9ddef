"""Define the benchmark of a user's own prompts, which any reward may score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.images import judge_each, read_images
from benchmarks.prompts.files import list_prompts, read_prompts
from benchmarks.spread import spread_evenly
from harness.records import Answer, Count, Prompt, Score, UserError

BATCH = 16
"""Images put to the judge at a time; their scores are journaled before the next batch."""


class Reward(Protocol):
    """Scores how well images show their texts, from 0 to 1: any judge that methods choose by."""

    @property
    def id(self) -> str: ...
    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> Sequence[Any]: ...


class OwnPrompts:
    """Draw `images` images of each prompt of `file`, or of `prompts_list`.

    `category` names the column of the prompts' categories; `prompts` takes that many, spread evenly
    over them. Without a `judge` images have costs and no scores. Raises UserError for a file that
    cannot be read, naming the line, and for a judge that gives no scores.
    """

    name = "prompts"
    version = "1"

    def __init__(
        self,
        judge: Reward | None = None,
        file: str | None = None,
        prompts_list: Sequence[str] | None = None,
        category: str = "category",
        prompts: Count | None = None,
        images: Count = 1,
    ) -> None:
        if images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per prompt is needed")
        if judge is not None and not callable(judge):
            raise UserError(
                f"judge@benchmark.judge: {type(judge).__name__} gives no score for a text and an "
                "image: choose a reward, such as pictogram_reward, vlm_reward or local_vlm_reward"
            )
        if (file is None) == (prompts_list is None):
            raise UserError(
                "benchmark=prompts: set benchmark.file=PATH (.txt with a prompt a line, .csv, .tsv "
                "or .jsonl), or benchmark.prompts_list=[...], one of the two"
            )
        self.judge = judge
        self.images = images
        if file is not None:
            available = read_prompts(Path(file).expanduser(), category)
        else:
            available = list_prompts(prompts_list or [])
        self._prompts = available if prompts is None else spread_evenly(available, prompts)

    def prompts(self) -> list[Prompt]:
        """List the prompts to draw."""
        return list(self._prompts)

    def ready(self) -> None:
        """Raise UserError if it is known beforehand that the judge cannot answer."""
        ready = getattr(self.judge, "ready", None)
        if callable(ready):
            ready()

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Score image files that are named by their number ("images/a-cat-12ab/0.png"), in order.

        A file that cannot be read, a refusal, an unreadable reply and a value outside 0 to 1 leave
        an image without a value, which counts as wrong; `unjudged` in the detail says why. A judge
        that was not reached gives no score: the next run asks again.
        """
        if self.judge is None:
            return
        remaining = iter(items)
        while batch := list(islice(remaining, BATCH)):
            # 1. Ask about all readable images of the batch at once.
            pictures = read_images(path for _, path in batch)
            asked = [
                (prompt.text, picture)
                for (prompt, _), picture in zip(batch, pictures, strict=True)
                if isinstance(picture, np.ndarray)
            ]
            answered = iter(judge_each(self._ask, asked))

            # 2. Score each one.
            for (prompt, path), picture in zip(batch, pictures, strict=True):
                found = picture if isinstance(picture, str) else next(answered)
                score = _make_score(prompt, int(path.stem), self.judge.id, found)
                if score is not None:
                    yield score

    def _ask(self, asked: Sequence[tuple[str, np.ndarray]]) -> list[Answer]:
        assert self.judge is not None
        texts = [text for text, _ in asked]
        said = self.judge(texts, [image for _, image in asked])
        if len(said) != len(asked):
            raise UserError(
                f"judge {self.judge.id} gave {len(said)} answers about {len(asked)} images"
            )
        return [Answer.of(one) for one in said]


def _make_score(prompt: Prompt, image: int, judge: str, found: Answer | str) -> Score | None:
    """Make the score of one image; None if the judge was not reached, a string says what failed."""
    if isinstance(found, str):
        return Score(prompt.id, image, judge, None, {"unjudged": found})
    if found.kind == "unreachable":
        return None
    if not found.answered:
        return Score(prompt.id, image, judge, None, {"unjudged": found.problem})
    value = found.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        problem = f"{value!r} is no score from 0 to 1"
        return Score(prompt.id, image, judge, None, {"unjudged": problem})
    return Score(prompt.id, image, judge, float(value), {})
