"""A benchmark that puts yes/no questions about every image to a judge: scoring, aggregation, and
what a run adds up to.

A prompt's `spec` has `questions`, the `answers` that are right ("yes" or "no"), and `words` where
an image must show text. Its `weight` is its number of questions, so that a category's mean is the
share of right answers among all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.images import read_images
from benchmarks.spread import spread
from benchmarks.tiif.interview import Asked, Heard, Interview
from benchmarks.tiif.scores import LENGTHS, Groups, matches, weighted
from benchmarks.tiif.text import Reader, gned, read_words, recall
from harness.records import Prompt, Score, UserError, one_line

BATCH = 16
"""Images put to the judge at a time; a kill loses no more answers."""
MUTE = 20
"""Images in a row without a readable reply at which the judge is taken for broken."""


class Questionnaire:
    """Prompts with questions, a judge that answers them, and groups that its scores are summed up
    in.

    `wanted` prompts are taken, spread evenly over the dimensions, always both lengths of a scene;
    None takes all.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        judge: Interview,
        groups: Groups,
        *,
        wanted: int | None = None,
        images: int = 1,
        reader: Reader | None = None,
    ) -> None:
        if images < 1:
            raise UserError(f"benchmark.images={images}: at least one image per prompt is needed")
        self.judge = judge
        self.groups = groups
        self.images = images
        self._reader = reader
        self._prompts = list(prompts) if wanted is None else _pairs(prompts, wanted)
        self._mute = 0  # images in a row without a readable reply

    def prompts(self) -> list[Prompt]:
        return list(self._prompts)

    def aggregates(self, categories: Collection[str]) -> dict[str, dict[str, float]]:
        """Groups, levels and the overall score of each length as weights of categories; "score" is
        the mean of both.
        """
        return self.groups.aggregates(categories)

    def ready(self) -> None:
        """Raises UserError where it is known beforehand that the judge cannot answer."""
        self.judge.ready()

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Judge image files named by their number ("images/text/short/3/0.png"), in order.

        A value is the share of right answers; None, which counts as wrong, for a file that cannot
        be read and for a judge whose replies cannot. An image that it did not reply to at all has
        no score: the next run asks again. Raises UserError for a judge that gives no readable reply
        `MUTE` times in a row; these have no score either.
        """
        remaining = iter(items)
        unread: list[Score] = []
        while batch := list(islice(remaining, BATCH)):
            pixels = read_images(path for _, path in batch)
            heard = iter(
                self.judge.ask(
                    [
                        Asked(prompt.id, prompt.spec["questions"], image)
                        for (prompt, _), image in zip(batch, pixels, strict=True)
                        if isinstance(image, np.ndarray)
                    ]
                )
            )
            for (prompt, path), image in zip(batch, pixels, strict=True):
                if isinstance(image, str):
                    unread.append(
                        Score(prompt.id, int(path.stem), self.judge.id, None, {"unjudged": image})
                    )
                    continue
                one = next(heard)
                self._mute = 0 if one.answers else self._mute + 1
                if self._mute >= MUTE:
                    raise UserError(_muted(self.judge.id, one))
                if one.answers:
                    yield from unread
                    unread.clear()
                    yield self._score(prompt, path, image, one)
                elif one.replies:
                    unread.append(self._score(prompt, path, image, one))
        yield from unread

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Lines about a run: the official table, how the judge answered, and how well text is
        rendered.
        """
        prompts = {prompt.id: prompt for prompt in self._prompts}
        right: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        for prompt in self._prompts:
            asked[prompt.category] += self.images * len(prompt.spec["questions"])
        for score in scores:
            right[prompts[score.prompt_id].category] += score.detail.get("right", 0)
        accuracy = {category: right[category] / total for category, total in asked.items()}
        means = {
            name: weighted(share, accuracy) for name, share in self.aggregates(accuracy).items()
        }
        yield f"{self.judge.id}, score {100 * means['score']:.2f} %; a missing or unjudged image is wrong"
        for name in dict.fromkeys(
            name.partition("/")[2] for name in [*means, *accuracy] if "/" in name
        ):
            cells = [{**accuracy, **means}.get(f"{length}/{name}") for length in LENGTHS]
            yield f"{name:<28} " + " / ".join(
                "-" if cell is None else f"{100 * cell:.2f}" for cell in cells
            )
        yield from _balance(prompts, scores)
        yield from _rendering(prompts, scores)

    def _score(self, prompt: Prompt, path: Path, image: np.ndarray, heard: Heard) -> Score:
        """Raw replies are kept, so that a run can be read again without asking again."""
        detail: dict[str, object] = {
            "replies": list(heard.replies),
            "served": heard.served,
            "tokens": heard.tokens,
        }
        if self._reader and "words" in prompt.spec:
            detail["text"] = _text(self._reader, prompt.spec["words"], image)
        number = int(path.stem)
        value = None
        if heard.answers is None:
            detail["unjudged"] = heard.problem
        else:
            expected = prompt.spec["answers"]
            right = sum(matches(*pair) for pair in zip(heard.answers, expected, strict=True))
            detail |= {"answers": list(heard.answers), "right": right}
            value = right / len(expected)
        return Score(prompt.id, number, self.judge.id, value, detail)


def _pairs(prompts: Sequence[Prompt], wanted: int) -> list[Prompt]:
    """Both lengths of as many scenes as make `wanted` prompts."""
    if wanted % len(LENGTHS) or not len(LENGTHS) <= wanted <= len(prompts):
        raise UserError(
            f"benchmark.prompts={wanted}: choose an even number up to the {len(prompts)} prompts available, "
            "every scene has a short and a long one"
        )
    length, _, _ = prompts[0].category.partition("/")
    scenes = [
        replace(prompt, category=_dimension(prompt))
        for prompt in prompts
        if _length(prompt) == length
    ]
    chosen = {scene.cluster for scene in spread(scenes, wanted // len(LENGTHS))}
    return [prompt for prompt in prompts if prompt.cluster in chosen]


def _length(prompt: Prompt) -> str:
    return prompt.category.partition("/")[0]


def _dimension(prompt: Prompt) -> str:
    return prompt.category.partition("/")[2]


def _muted(judge: str, last: Heard) -> str:
    said = f"{last.problem}: {one_line(last.replies[-1])[:120]!r}" if last.replies else last.problem
    return (
        f"judge {judge}: {MUTE} images in a row without a readable reply (the last: {said}); it is asked no more, all "
        "images and scores so far are kept: mend the judge and run the same command again"
    )


def _text(reader: Reader, words: Sequence[str], image: np.ndarray) -> dict[str, object]:
    """What is written in an image, and how far that is from the words it must show."""
    lines = reader.read(image)
    wanted = [word.lower() for word in words]
    read = read_words(lines)
    return {
        "reader": reader.id,
        "lines": lines,
        "gned": gned(wanted, read),
        "recall": recall(wanted, read),
    }


def _balance(prompts: Mapping[str, Prompt], scores: Sequence[Score]) -> Iterator[str]:
    """How often the judge says yes, and how often it is then right: one that agrees readily scores
    above all models.
    """
    said = [
        (answer, expected)
        for score in scores
        if "answers" in score.detail
        for answer, expected in zip(
            score.detail["answers"], prompts[score.prompt_id].spec["answers"], strict=True
        )
    ]
    problems = Counter(score.detail["unjudged"] for score in scores if score.value is None)
    listed = ", ".join(f"{count} {problem}" for problem, count in problems.most_common(4))
    yield f"{len(scores)} images judged, in vain: {listed or 'none'}"
    if said:
        right = {
            key: _share(answer == key for answer, expected in said if expected == key)
            for key in ("yes", "no")
        }
        yield (
            f"it says yes to {_share(answer == 'yes' for answer, _ in said)} of {len(said)} questions, the key to "
            f"{_share(expected == 'yes' for _, expected in said)}; it is right on {right['yes']} of those whose key is "
            f"yes, on {right['no']} of the others"
        )


def _share(holds: Iterable[bool]) -> str:
    values = list(holds)
    return f"{100 * sum(values) / len(values):.1f} %" if values else "none"


def _rendering(prompts: Mapping[str, Prompt], scores: Sequence[Score]) -> Iterator[str]:
    """Means over the images that text was read in."""
    for length in LENGTHS:
        read = [
            score.detail["text"]
            for score in scores
            if "text" in score.detail and _length(prompts[score.prompt_id]) == length
        ]
        if read:
            distance, found = (
                sum(one[name] for one in read) / len(read) for name in ("gned", "recall")
            )
            yield (
                f"{length} text by {read[0]['reader']}: GNED {distance:.4f} (lower is better), recall {found:.4f}, "
                f"{len(read)} images"
            )
