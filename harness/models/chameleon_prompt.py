"""Prompts of the two models that draw with Chameleon's tokens: Lumina-mGPT and Anole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.models.words import HashedWords, TokenizerWords, Words, find_run, find_tokenizer
from harness.records import UserError

BEGIN_OF_TEXT = "<s>"
IMAGE_START = "<racm3:break>"
TURN = "<reserved08706>"
ROW_END = "<reserved08799>"

CODES = 8192
FIRST_CODE = 4
"""The id of code 0 in the released vocabulary."""

PIXELS_PER_CODE = 16
PIXELS_PER_SIZE = 32
"""What a size token counts in."""

_SIZE_ZERO = 8800
_RELEASED_IDS = {BEGIN_OF_TEXT: 0, IMAGE_START: 8197, TURN: 8710, ROW_END: 8803}
_RELEASED_SIZE_ZERO = 8804
_FIRST_WORD = 8900
"""Ids from here on are words; what is before are special tokens and codes."""

TOKENIZER_FILES = ("text_tokenizer.json",)
"""Other names than tokenizer.json of the file, as Meta and Anole ship it."""


class LuminaPrompts:
    """Lists the ids of a prompt of Lumina-mGPT's, or of the null prompt, for images of one size.

    `grid` is rows and columns of codes. The text names the width first, the tokens the height. The
    null prompt begins at the image's start. Nothing is trimmed.
    """

    def __init__(self, words: Words, grid: tuple[int, int]) -> None:
        self._words = words
        rows, columns = grid
        self._height = rows * PIXELS_PER_CODE
        self._width = columns * PIXELS_PER_CODE
        self._begin = words.vocabulary[BEGIN_OF_TEXT]
        self._turn = words.vocabulary[TURN]
        self.image_head = find_image_head(words.vocabulary, grid)

    def __call__(self, text: str | None) -> list[int]:
        if text is None:
            return list(self.image_head)
        words = self._words.encode(lumina_question(text, self._width, self._height))
        return [self._begin, *words, self._turn, *self.image_head]


def lumina_question(prompt: str, width: int, height: int) -> str:
    """Write what Lumina-mGPT is asked, up to the turn token; sizes are in pixels."""
    return f"Generate an image of {width}x{height} according to the following prompt:\n{prompt}"


def find_image_head(vocabulary: Mapping[str, int], grid: tuple[int, int]) -> tuple[int, int, int]:
    """Find the ids that an image begins with: its start, its height, its width.

    Raises UserError for a grid that has no size tokens.
    """
    names = []
    for what, codes in zip(("rows", "columns"), grid, strict=True):
        count, rest = divmod(codes * PIXELS_PER_CODE, PIXELS_PER_SIZE)
        name = f"<reserved{_SIZE_ZERO + count:05d}>"
        if rest or name not in vocabulary:
            raise UserError(
                f"Lumina-mGPT has no size token for {codes} {what} of codes: "
                "give an even number, such as 48"
            )
        names.append(name)
    return vocabulary[IMAGE_START], vocabulary[names[0]], vocabulary[names[1]]


class AnolePrompts:
    """Lists the ids of a prompt of Anole's, or of the null prompt: a text, and an image's start.

    The form is LANTERN's: an image has no size, and its rows have no ends. The null prompt has no
    text.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self._begin = words.vocabulary[BEGIN_OF_TEXT]
        self._turn = words.vocabulary[TURN]
        self._image_start = words.vocabulary[IMAGE_START]

    def __call__(self, text: str | None) -> list[int]:
        if text is None:
            return [self._begin, self._image_start]
        return [self._begin, *self._words.encode(text), self._turn, self._image_start]


# ------------------------------------------------------------------ vocabulary


def find_image_ids(vocabulary: Mapping[str, int], codes: int, path: Path) -> range:
    """Find the ids of the codes by their names.

    `path` is named in errors. Raises UserError for a vocabulary that lacks them, or has them in
    another order.
    """
    return find_run(vocabulary, [_name_code(code) for code in range(codes)], path)


def _name_code(code: int) -> str:
    """The name of a code's token: its digits as letters, A for 0."""
    letters = "".join(chr(ord("A") + int(digit)) for digit in str(code))
    return f"IMGIMG{letters}Z"


def hashed_words(words: int) -> HashedWords:
    """Make a stand-in for random weights with so many word embeddings, with the released ids."""
    vocabulary = dict(_RELEASED_IDS)
    for count in range(_FIRST_WORD - _RELEASED_SIZE_ZERO):
        vocabulary[f"<reserved{_SIZE_ZERO + count:05d}>"] = _RELEASED_SIZE_ZERO + count
    return HashedWords(range(_FIRST_WORD, words), vocabulary)


def read_words(path: Path, words: int) -> TokenizerWords | None:
    """Read the tokenizer beside the weights of a checkpoint; None if there is none.

    `words` is the number of word embeddings. Raises UserError for a file that is no tokenizer, or
    another model's.
    """
    file = find_tokenizer(path, TOKENIZER_FILES)
    if file is None:
        return None
    return TokenizerWords(file, tuple(_RELEASED_IDS), words, "Chameleon")
