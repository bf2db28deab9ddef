"""Define the benchmark TIIF-Bench: official prompts and questions, a VQA model as judge, OCR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.tiif.files import read_split
from benchmarks.tiif.layout import read_folder
from benchmarks.tiif.scores import OFFICIAL
from benchmarks.tiif.text import RapidOcr
from benchmarks.tiif.vqa_benchmark import VQABenchmark
from benchmarks.tiif.vqa_model import SYSTEM, VQAJudge, write_message
from harness.records import Count, Prompt

CHARACTERS_PER_TOKEN = 4
PICTURE_TOKENS = (255, 765)
"""Tokens of a picture of 512 and of 1,024 pixels, as OpenAI's vision models count them."""
ANSWER_TOKENS = 25


class Tiif(VQABenchmark):
    """Judge images of the prompts of a split, "test" or "testmini", in both lengths.

    The files come from the folder `metadata`, the cache or the network (files.py). The protocol is
    one image per prompt; `images` may be another number, or a folder of the reference's layout
    whose images are judged; `images_of` names the model in it. With `ocr`, images of the dimension
    "text" are read, too, for GNED and recall; the score is the judge's alone, as on the
    leaderboard.
    """

    reads_folders = True

    def __init__(
        self,
        judge: VQAJudge,
        split: str = "test",
        prompts: Count | None = None,
        images: Count | str = 1,
        images_of: str | None = None,
        metadata: str | None = None,
        allow_other_version: bool = False,
        ocr: bool = True,
    ) -> None:
        self.name = "tiif" if split == "test" else f"tiif_{split}"
        available, self.version = read_split(self.name, split, metadata, allow_other_version)
        self._ocr = RapidOcr() if ocr else None
        super().__init__(
            available,
            judge,
            OFFICIAL,
            wanted=prompts,
            images=images if isinstance(images, int) else 1,
            reader=self._ocr,
        )
        self.found: dict[tuple[str, int], Path] = {}
        """Imported images, by prompt id and number."""
        if isinstance(images, str):
            self.found = read_folder(Path(images).expanduser(), images_of, self._prompts)

    def ready(self) -> None:
        """Raise UserError if it is known beforehand that images cannot be judged or read."""
        super().ready()
        if self._ocr and any("words" in prompt.spec for prompt in self._prompts):
            self._ocr.ready()

    def estimate(self, prompts: Sequence[Prompt]) -> str:
        """Estimate calls and tokens for one image of each of these prompts.

        It assumes that every reply can be read at once.
        """
        questions = 0
        characters = 0
        for prompt in prompts:
            asked = prompt.spec["questions"]
            questions += len(asked)
            characters += len(SYSTEM) + len(write_message(prompt.id, asked))
        calls = len(prompts)
        small, large = (tokens * calls for tokens in PICTURE_TOKENS)
        return (
            f"{self.judge.id}: {calls:,} calls with {questions:,} questions; "
            f"about {characters // CHARACTERS_PER_TOKEN:,} tokens of text "
            f"and {small:,} (512 pixels) to {large:,} (1,024 pixels) of pictures in, "
            f"about {ANSWER_TOKENS * questions:,} out; "
            f"an unreadable reply is asked for up to {self.judge.attempts - 1} more times"
        )
