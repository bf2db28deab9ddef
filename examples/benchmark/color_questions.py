"""Ask a VQA judge about each image: is the thing there, and has it its color?"""

from collections.abc import Iterable, Iterator
from itertools import islice, product
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.tiif.vqa_model import ImageQuestions, VQAJudge
from harness import Prompt, Score

THINGS = ("apple", "bus", "cat", "cup")
COLORS = ("red", "blue", "green", "yellow")
BATCH = 32  # images that are judged at a time


class ColorQuestions:
    """`prompts` prompts; the judge answers two questions about each of `images` images."""

    version = "1"  # changes whenever scores would change

    def __init__(self, judge: VQAJudge, prompts: int = 16, images: int = 1) -> None:
        self.judge = judge
        self.images = images
        self.wanted = prompts

    def prompts(self) -> list[Prompt]:
        made = []
        for thing, color in islice(product(THINGS, COLORS), self.wanted):
            article = "an" if thing[0] == "a" else "a"
            questions = [f"Is there {article} {thing} in the image?", f"Is the {thing} {color}?"]
            text = f"a photo of a {color} {thing}"
            made.append(Prompt(f"{color}-{thing}", text, color, {"questions": questions}))
        return made

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        waiting = iter(items)
        while batch := list(islice(waiting, BATCH)):
            pixels = [np.asarray(Image.open(path).convert("RGB")) for _, path in batch]
            asked = [
                ImageQuestions(prompt.id, prompt.spec["questions"], image)
                for (prompt, path), image in zip(batch, pixels, strict=True)
            ]
            for (prompt, path), said in zip(batch, self.judge.ask(asked), strict=True):
                answers = said.answers
                value = None if answers is None else sum(a == "yes" for a in answers) / len(answers)
                yield Score(prompt.id, int(path.stem), self.judge.id, value)
