"""TIIF-Bench itself: the official prompts and questions, a vision-language model as judge, OCR for
rendered text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.tiif.files import read_split
from benchmarks.tiif.interview import SYSTEM, Interview, message
from benchmarks.tiif.layout import read_folder
from benchmarks.tiif.questionnaire import Questionnaire
from benchmarks.tiif.scores import OFFICIAL
from benchmarks.tiif.text import RapidOcr
from harness.records import Prompt


class Tiif(Questionnaire):
    """The prompts of a split ("test" or "testmini") in both lengths, one image each unless `images`
    says otherwise.

    The files come from the folder `metadata`, the cache or the network; see files.py. With `ocr`,
    images of the dimension "text" are read too, for GNED and recall; the score is the judge's
    alone, as on the leaderboard. Instead of a number `images` may be a folder of the reference's
    layout, made elsewhere; `images_of` names the model in it.
    """

    reads_folders = True

    def __init__(
        self,
        judge: Interview,
        split: str = "test",
        prompts: int | None = None,
        images: int | str = 1,
        images_of: str | None = None,
        metadata: str | None = None,
        allow_other_version: bool = False,
        ocr: bool = True,
    ) -> None:
        self.name = "tiif" if split == "test" else f"tiif_{split}"
        available, self.version = read_split(self.name, split, metadata, allow_other_version)
        count = images if isinstance(images, int) else 1
        super().__init__(
            available,
            judge,
            OFFICIAL,
            wanted=prompts,
            images=count,
            reader=RapidOcr() if ocr else None,
        )
        self.found: dict[tuple[str, int], Path] = {}
        """Images made elsewhere, by prompt id and number."""
        if isinstance(images, str):
            self.found = read_folder(Path(images).expanduser(), images_of, self._prompts)

    def estimate(self, prompts: Sequence[Prompt]) -> str:
        """Calls and tokens for an image of each of these prompts, if every reply can be read at
        once.
        """
        questions = sum(len(prompt.spec["questions"]) for prompt in prompts)
        characters = sum(
            len(SYSTEM) + len(message(prompt.id, prompt.spec["questions"])) for prompt in prompts
        )
        small, large = (tokens * len(prompts) for tokens in (255, 765))
        return (
            f"{self.judge.id}: {len(prompts):,} calls with {questions:,} questions; about {characters // 4:,} tokens "
            f"of text and {small:,} (512 pixels) to {large:,} (1,024 pixels) of pictures in, about {25 * questions:,} "
            f"out; an unreadable reply is asked for up to {self.judge.attempts - 1} more times"
        )
