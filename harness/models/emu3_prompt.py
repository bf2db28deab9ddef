"""Emu3-Gen's prompt: its frame with the image's size, and the null prompt in the same frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from harness.models.words import HashedWords, TokenizerWords, Words, find_run, find_tokenizer
from harness.records import UserError

BEGIN_OF_TEXT = "<|extra_203|>"
ROW_END = "<|extra_200|>"
IMAGE_START = "<|image start|>"
MARKERS = ("<|image token|>", "<image>")
"""The token that the codes follow, in the original vocabulary and in the library's."""

_RELEASED_IDS = {
    ROW_END: 151846,
    BEGIN_OF_TEXT: 151849,
    MARKERS[0]: 151851,
    IMAGE_START: 151852,
}
_WORDS = 151643
"""Ids below are words."""

FIRST_CODE = 151854
PIXELS_PER_CODE = 8

POSITIVE = " masterpiece, film grained, best quality."
"""What upstream's example writes behind a prompt."""

NEGATIVE = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, "
    "cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, "
    "username, blurry."
)
"""The text of upstream's null prompt, the same for all prompts."""


class Emu3Prompts:
    """Lists the ids of a prompt, or of the null prompt, in upstream's frame with an image's size.

    `grid` is rows and columns of codes. `positive` stands behind a prompt, `negative` is the text
    of the null prompt. Names of special tokens in a prompt are read as these tokens, as upstream
    does.
    """

    def __init__(
        self,
        words: Words,
        grid: tuple[int, int],
        positive: str = POSITIVE,
        negative: str = NEGATIVE,
    ) -> None:
        self._words = words
        self._positive = positive
        self._negative = negative
        rows, columns = grid
        self._size = f"{rows}*{columns}"
        self._marker = words.vocabulary[find_marker(words.vocabulary)]

    def __call__(self, text: str | None) -> list[int]:
        shown = self._negative if text is None else text + self._positive
        vocabulary = self._words.vocabulary
        return [
            vocabulary[BEGIN_OF_TEXT],
            *self._words.encode(shown),
            vocabulary[IMAGE_START],
            *self._words.encode(self._size),
            self._marker,
        ]


def find_marker(vocabulary: Mapping[str, int]) -> str:
    """Find which of `MARKERS` a vocabulary has. Raises UserError if it is none."""
    for name in MARKERS:
        if name in vocabulary:
            return name
    raise UserError(f"the tokenizer knows none of {', '.join(MARKERS)}: it is not Emu3's")


def compute_grid(ratio: tuple[int, int], area: int) -> tuple[int, int]:
    """Compute the rows and columns of codes of a width-to-height ratio and an area in pixels.

    Source: Emu3's `processing_emu3.py`, `calculate_generate_size`. Raises UserError for an area
    that has no code in a row or column.
    """
    width, height = ratio
    scale = math.sqrt(area / (width * height)) / PIXELS_PER_CODE
    grid = (round(height * scale), round(width * scale))
    if not all(grid):
        raise UserError(
            f"model.area={area}: an image of {width}:{height} would have {grid[0]} rows and "
            f"{grid[1]} columns of codes, give a larger area"
        )
    return grid


# ------------------------------------------------------------------ vocabulary


def find_image_ids(vocabulary: Mapping[str, int], codes: int, path: Path) -> range:
    """Find the ids of the codes by their names.

    `path` is named in errors. Raises UserError for a vocabulary that lacks them, or has them in
    another order.
    """
    names = [f"<|visual token {code:06d}|>" for code in range(codes)]
    return find_run(vocabulary, names, path)


def hashed_words() -> HashedWords:
    """Make a stand-in for random weights, with the released ids."""
    return HashedWords(range(_WORDS), _RELEASED_IDS)


def read_words(path: Path, words: int) -> TokenizerWords | None:
    """Read the tokenizer beside the weights of a checkpoint; None if there is none.

    `words` is the number of word embeddings. Raises UserError for a file that is no tokenizer, or
    another model's.
    """
    file = find_tokenizer(path)
    if file is None:
        return None
    found = TokenizerWords(file, (BEGIN_OF_TEXT, ROW_END, IMAGE_START), words, "Emu3")
    find_marker(found.vocabulary)
    return found
