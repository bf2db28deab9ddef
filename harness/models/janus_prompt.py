"""Janus' prompt: its one-turn template, its token ids, and the null prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.models.words import HashedWords, TokenizerWords, Words, find_tokenizer

Roles = tuple[str, str]

ROLES: dict[str, Roles] = {
    "Janus-Pro": ("<|User|>", "<|Assistant|>"),
    "Janus-1.3B": ("User", "Assistant"),
}
"""Names of user and assistant in the prompts of each family of models."""

BOS = "<｜begin▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
BEGIN_OF_IMAGE = "<begin_of_image>"
_NAMES = (BOS, PAD, BEGIN_OF_IMAGE)


def template(roles: Roles, prompt: str) -> str:
    """Write the text that is tokenised (Janus `generation_inference.py`).

    It is the user's turn, an empty turn of the assistant, and begin-of-image.
    """
    user, assistant = roles
    conversation = f"{user}: {prompt.strip()}\n\n{assistant}:"
    return conversation.strip() + BEGIN_OF_IMAGE


def null_ids(ids: Sequence[int], pad: int) -> list[int]:
    """Make the null prompt of the length of `ids`: all but the first and the last id are pad.

    These pads are attended to like words.
    """
    words = [pad] * (len(ids) - 2)
    return [ids[0], *words, ids[-1]]


class JanusWords:
    """Prompts in their template, by a tokenizer.

    BOS is prepended here, as the tokenizer's class does in upstream's version of the library; `pad`
    is the id that stands for a word in the null prompt.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self.bos = words.vocabulary[BOS]
        self.pad = words.vocabulary[PAD]

    def __call__(self, roles: Roles, prompt: str) -> list[int]:
        """Tokenise a prompt in its template: BOS first, begin-of-image last."""
        ids = self._words.encode(template(roles, prompt))
        assert ids[-1] == self._words.vocabulary[BEGIN_OF_IMAGE]
        return [self.bos, *ids]


def hashed_words(words: int) -> JanusWords:
    """Make a stand-in for random weights with so many word embeddings."""
    vocabulary = {name: words - 1 - n for n, name in enumerate(_NAMES)}
    return JanusWords(HashedWords(range(words - len(_NAMES)), vocabulary))


def read_words(path: Path, words: int) -> JanusWords | None:
    """Read the tokenizer beside the weights of a checkpoint; None if there is none.

    `words` is the number of word embeddings of the model. Special ids are read from it, because the
    families of Janus disagree about them. Raises UserError for a file that is no tokenizer or
    another model's.
    """
    file = find_tokenizer(path)
    if file is None:
        return None
    return JanusWords(TokenizerWords(file, _NAMES, words, "Janus-Pro"))
