"""TIIF-Bench itself: the official prompts and questions, a vision-language model as judge, OCR for rendered text."""

from __future__ import annotations

from benchmarks.tiif.files import read_split
from benchmarks.tiif.interview import Interview
from benchmarks.tiif.questionnaire import Questionnaire
from benchmarks.tiif.scores import OFFICIAL
from benchmarks.tiif.text import RapidOcr


class Tiif(Questionnaire):
    """The prompts of a split ("test" or "testmini") in both lengths, one image each unless `images` says otherwise.

    The files come from the folder `metadata`, the cache or the network; see files.py. With `ocr`, images of the
    dimension "text" are read too, for GNED and recall; the score is the judge's alone, as on the leaderboard.
    """

    def __init__(
        self,
        judge: Interview,
        split: str = "test",
        prompts: int | None = None,
        images: int = 1,
        metadata: str | None = None,
        allow_other_version: bool = False,
        ocr: bool = True,
    ) -> None:
        self.name = "tiif" if split == "test" else f"tiif_{split}"
        available, self.version = read_split(self.name, split, metadata, allow_other_version)
        super().__init__(available, judge, OFFICIAL, wanted=prompts, images=images, reader=RapidOcr() if ocr else None)
