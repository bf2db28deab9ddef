"""Score images by yes/no questions about them, add the answers up, and summarise a run.

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
from benchmarks.spread import spread_evenly
from benchmarks.tiif.scores import LENGTHS, Groups, matches, weighted_mean
from benchmarks.tiif.text import Reader, gned, read_words, recall
from benchmarks.tiif.vqa_model import ImageAnswers, ImageQuestions, VQAJudge
from harness.records import Prompt, Score, UserError, one_line

BATCH = 16
"""Images judged at a time; a kill loses no more answers."""
MAX_UNREADABLE = 20
"""Images in a row without a readable reply after which the judge counts as broken."""


class VQABenchmark:
    """Prompts with questions, a judge that answers them, and groups that add the scores up.

    `wanted` prompts are taken, spread evenly over the dimensions, always both lengths of a scene;
    None takes all. With a `reader`, images that must show words are read, too.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        judge: VQAJudge,
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
        self._prompts = list(prompts) if wanted is None else _take_scenes(prompts, wanted)
        self._unreadable = 0  # images in a row without a readable reply

    def prompts(self) -> list[Prompt]:
        """List the prompts to draw."""
        return list(self._prompts)

    def aggregates(self, categories: Collection[str]) -> dict[str, dict[str, float]]:
        """Express groups, levels and the overall score of each length as weights of categories.

        "score" is the mean of both overall scores.
        """
        return self.groups.aggregates(categories)

    def ready(self) -> None:
        """Raise UserError if it is known beforehand that the judge cannot answer."""
        self.judge.ready()

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        """Judge image files named by their number ("images/text/short/3/0.png"), in order.

        A score's value is the share of right answers. It is None, which counts as wrong, for a file
        that cannot be read, and for a judge whose replies cannot be read. An image without any
        reply has no score: the next run asks again.

        Raises UserError once `MAX_UNREADABLE` images in a row, over all calls, had no readable
        reply. Their scores are withheld until a readable reply shows that the judge works, so that
        the next run asks again about them, too.
        """
        remaining = iter(items)
        withheld: list[Score] = []
        while batch := list(islice(remaining, BATCH)):
            # 1. Ask about all readable images of the batch at once.
            pictures = read_images(path for _, path in batch)
            asked = [
                ImageQuestions(prompt.id, prompt.spec["questions"], picture)
                for (prompt, _), picture in zip(batch, pictures, strict=True)
                if isinstance(picture, np.ndarray)
            ]
            answered = iter(self.judge.ask(asked))

            for (prompt, path), picture in zip(batch, pictures, strict=True):
                # 2. A file that cannot be read says nothing about the judge.
                if isinstance(picture, str):
                    detail = {"unjudged": picture}
                    score = Score(prompt.id, int(path.stem), self.judge.id, None, detail)
                    withheld.append(score)
                    continue

                # 3. Stop before a broken judge makes many images wrong.
                found = next(answered)
                self._unreadable = 0 if found.answers else self._unreadable + 1
                if self._unreadable >= MAX_UNREADABLE:
                    raise UserError(_describe_broken_judge(self.judge.id, found))

                # 4. A readable reply releases what was withheld.
                if found.answers:
                    yield from withheld
                    withheld.clear()
                    yield self._make_score(prompt, path, picture, found)
                elif found.replies:
                    withheld.append(self._make_score(prompt, path, picture, found))
        yield from withheld

    def summarise(self, scores: Sequence[Score]) -> Iterator[str]:
        """Format lines about a run.

        They are the official table, how the judge answered, and how well text is rendered.
        """
        prompts = {prompt.id: prompt for prompt in self._prompts}
        accuracy = self._accuracy_by_category(prompts, scores)
        means = {
            name: weighted_mean(weights, accuracy)
            for name, weights in self.aggregates(accuracy).items()
        }
        percent = f"{100 * means['score']:.2f} %"
        yield f"{self.judge.id}, score {percent}; a missing or unjudged image is wrong"
        yield from _format_table({**means, **accuracy})
        yield _describe_unjudged(scores)
        yield from _describe_answers(prompts, scores)
        yield from _describe_rendering(prompts, scores)

    def _accuracy_by_category(
        self, prompts: Mapping[str, Prompt], scores: Sequence[Score]
    ) -> dict[str, float]:
        """Divide the right answers by the questions about all planned images."""
        asked: Counter[str] = Counter()
        for prompt in self._prompts:
            asked[prompt.category] += self.images * len(prompt.spec["questions"])
        right: Counter[str] = Counter()
        for score in scores:
            right[prompts[score.prompt_id].category] += score.detail.get("right", 0)
        return {category: right[category] / total for category, total in asked.items()}

    def _make_score(
        self, prompt: Prompt, path: Path, image: np.ndarray, found: ImageAnswers
    ) -> Score:
        """Compare the answers with the prompt's.

        Raw replies are kept in the detail, so that they can be read again without asking again.
        """
        detail: dict[str, object] = {
            "replies": list(found.replies),
            "served": found.served,
            "tokens": found.tokens,
        }
        if self._reader and "words" in prompt.spec:
            detail["text"] = _measure_text(self._reader, prompt.spec["words"], image)

        value = None
        if found.answers is None:
            detail["unjudged"] = found.problem
        else:
            expected = prompt.spec["answers"]
            right = sum(matches(*pair) for pair in zip(found.answers, expected, strict=True))
            detail["answers"] = list(found.answers)
            detail["right"] = right
            value = right / len(expected)
        return Score(prompt.id, int(path.stem), self.judge.id, value, detail)


# --- prompts --------------------------------------------------------------------------------------


def _take_scenes(prompts: Sequence[Prompt], wanted: int) -> list[Prompt]:
    """Take both lengths of as many scenes as make `wanted` prompts, evenly over the dimensions."""
    if wanted % len(LENGTHS) or not len(LENGTHS) <= wanted <= len(prompts):
        raise UserError(
            f"benchmark.prompts={wanted}: choose an even number up to the {len(prompts)} prompts "
            "available, every scene has a short and a long one"
        )
    one_length = _length(prompts[0])
    scenes = [
        replace(prompt, category=_dimension(prompt))
        for prompt in prompts
        if _length(prompt) == one_length
    ]
    chosen = {scene.cluster for scene in spread_evenly(scenes, wanted // len(LENGTHS))}
    return [prompt for prompt in prompts if prompt.cluster in chosen]


def _length(prompt: Prompt) -> str:
    return prompt.category.partition("/")[0]


def _dimension(prompt: Prompt) -> str:
    return prompt.category.partition("/")[2]


# --- scores ---------------------------------------------------------------------------------------


def _describe_broken_judge(judge: str, last: ImageAnswers) -> str:
    problem = last.problem
    if last.replies:
        problem += f", it said {one_line(last.replies[-1])[:120]!r}"
    return (
        f"judge {judge}: {MAX_UNREADABLE} images in a row without a readable reply "
        f"(the last: {problem}); it is asked no more, all images and scores so far are kept: "
        "mend the judge and run the same command again"
    )


def _measure_text(reader: Reader, words: Sequence[str], image: np.ndarray) -> dict[str, object]:
    """Read an image, and measure how far its text is from the words that it must show."""
    lines = reader.read(image)
    wanted = [word.lower() for word in words]
    read = read_words(lines)
    return {
        "reader": reader.id,
        "lines": lines,
        "gned": gned(wanted, read),
        "recall": recall(wanted, read),
    }


# --- summary --------------------------------------------------------------------------------------


def _format_table(values: Mapping[str, float]) -> Iterator[str]:
    """Format a line for each mean and dimension; both lengths of it stand side by side."""
    names = dict.fromkeys(name.partition("/")[2] for name in values if "/" in name)
    for name in names:
        cells = [values.get(f"{length}/{name}") for length in LENGTHS]
        shown = ["-" if cell is None else f"{100 * cell:.2f}" for cell in cells]
        yield f"{name:<28} {' / '.join(shown)}"


def _describe_unjudged(scores: Sequence[Score]) -> str:
    problems = Counter(score.detail["unjudged"] for score in scores if score.value is None)
    listed = ", ".join(f"{count} {problem}" for problem, count in problems.most_common(4))
    return f"{len(scores)} images judged, in vain: {listed or 'none'}"


def _describe_answers(prompts: Mapping[str, Prompt], scores: Sequence[Score]) -> Iterator[str]:
    """Say how often the judge answers yes, and how often it is then right.

    A judge that always agrees scores above all models.
    """
    pairs = [pair for score in scores for pair in _pair_answers(prompts, score)]
    if not pairs:
        return
    said_yes = _format_share(answer == "yes" for answer, _ in pairs)
    key_yes = _format_share(expected == "yes" for _, expected in pairs)
    right = {}
    for key in ("yes", "no"):
        right[key] = _format_share(answer == key for answer, expected in pairs if expected == key)
    yield (
        f"it says yes to {said_yes} of {len(pairs)} questions, the key to {key_yes}; "
        f"it is right on {right['yes']} of those whose key is yes, on {right['no']} of the others"
    )


def _pair_answers(prompts: Mapping[str, Prompt], score: Score) -> list[tuple[str, str]]:
    """Pair the judge's answers with the expected ones; none for an unjudged image."""
    if "answers" not in score.detail:
        return []
    expected = prompts[score.prompt_id].spec["answers"]
    return list(zip(score.detail["answers"], expected, strict=True))


def _format_share(holds: Iterable[bool]) -> str:
    values = list(holds)
    return f"{100 * sum(values) / len(values):.1f} %" if values else "none"


def _describe_rendering(prompts: Mapping[str, Prompt], scores: Sequence[Score]) -> Iterator[str]:
    """Average over the images that text was read in, a line for each length."""
    for length in LENGTHS:
        read = [
            score.detail["text"]
            for score in scores
            if "text" in score.detail and _length(prompts[score.prompt_id]) == length
        ]
        if read:
            mean_gned = sum(text["gned"] for text in read) / len(read)
            mean_recall = sum(text["recall"] for text in read) / len(read)
            yield (
                f"{length} text by {read[0]['reader']}: GNED {mean_gned:.4f} (lower is better), "
                f"recall {mean_recall:.4f}, {len(read)} images"
            )
