"""SimpleAR's prompt: its frame, the null prompt, and where its image tokens begin."""

from __future__ import annotations

from pathlib import Path

from harness.models.words import HashedWords, TokenizerWords, Words, find_tokenizer
from harness.records import UserError

TEXT_TO_IMAGE = "<|t2i|>"
START_OF_IMAGE = "<|soi|>"
_NAMES = (TEXT_TO_IMAGE, START_OF_IMAGE)

PREFIX = "A highly realistic image of "
"""What upstream's demo writes before a prompt. Its evaluation draws one of 20 styles instead."""

NEGATIVE = (
    "An image of aerial view, overexposed, low quality, deformation, a poor composition, "
    "bad hands, bad teeth, bad eyes, bad limbs, distortion"
)
"""The text of upstream's null prompt, the same for all prompts."""


class SimpleARPrompts:
    """Lists the ids of a prompt, or of the null prompt, in upstream's frame without a first token.

    `prefix` stands before a prompt, `negative` is the text of the null prompt. Nothing is trimmed.
    """

    def __init__(self, words: Words, prefix: str = PREFIX, negative: str = NEGATIVE) -> None:
        self._words = words
        self._prefix = prefix
        self._negative = negative

    def __call__(self, text: str | None) -> list[int]:
        shown = self._negative if text is None else self._prefix + text
        first = self._words.vocabulary[TEXT_TO_IMAGE]
        last = self._words.vocabulary[START_OF_IMAGE]
        return [first, *self._words.encode(shown), last]


def hashed_words(vocab: int, codes: int) -> HashedWords:
    """Make a stand-in for random weights with a vocabulary of `vocab` tokens."""
    first_code = vocab - codes
    vocabulary = {name: first_code - 1 - n for n, name in enumerate(_NAMES)}
    return HashedWords(range(first_code - len(_NAMES)), vocabulary)


def read_words(path: Path, vocab: int, codes: int) -> TokenizerWords | None:
    """Read the tokenizer beside the weights of a checkpoint; None if there is none.

    Raises UserError for another model's: the codes follow the tokenizer's last token, which is the
    last of those that were added to it.
    """
    file = find_tokenizer(path)
    if file is None:
        return None
    words = TokenizerWords(file, _NAMES, vocab - codes, "SimpleAR")
    known = max(words.vocabulary.values()) + 1
    if known != vocab - codes:
        raise UserError(
            f"{file} has {known} tokens, so {codes} codes would end at {known + codes}, but "
            f"config.json has vocab_size {vocab}: it is another model's"
        )
    return words
