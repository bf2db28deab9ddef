"""Janus' prompt: its one-turn template, its token ids, and the null prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from harness.kernels.noise import derive
from harness.records import UserError, one_line

Roles = tuple[str, str]

ROLES: dict[str, Roles] = {
    "Janus-Pro": ("<|User|>", "<|Assistant|>"),
    "Janus-1.3B": ("User", "Assistant"),
}
"""Names of user and assistant in the prompts of each family of models."""

BOS = "<｜begin▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
BEGIN_OF_IMAGE = "<begin_of_image>"


class Words(Protocol):
    """A tokenizer of prompts; `pad` is the id that stands for a word in the null prompt."""

    pad: int

    def __call__(self, roles: Roles, prompt: str) -> list[int]:
        """Tokenise a prompt in its template: BOS first, begin-of-image last."""
        ...


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


class TokenizerWords:
    """The tokenizer.json of a checkpoint, with the tokens that tokenizer_config.json adds.

    Special ids are read from it, because the families of Janus disagree about them. BOS is
    prepended here, as the tokenizer's class does in upstream's version of the library. `words` is
    the number of word embeddings of the model. Raises UserError for a file that is no tokenizer or
    another model's.
    """

    def __init__(self, file: Path, words: int) -> None:
        from transformers import PreTrainedTokenizerFast

        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(
                str(file.parent), local_files_only=True
            )
        except Exception as error:  # the tokenizers library raises bare exceptions
            raise UserError(
                f"{file} is no tokenizer ({one_line(error)[:120]}): download it again"
            ) from None
        known = self._tokenizer.get_vocab()
        missing = [tag for tag in (BOS, PAD, BEGIN_OF_IMAGE) if tag not in known]
        if missing:
            raise UserError(
                f"{file} does not know {', '.join(missing)}: it is not Janus-Pro's tokenizer"
            )
        largest = max(known.values())
        if largest >= words:
            raise UserError(
                f"{file} has ids up to {largest}, the model {words} words: it is another model's"
            )
        self.bos = known[BOS]
        self.pad = known[PAD]
        self.begin_of_image = known[BEGIN_OF_IMAGE]

    def __call__(self, roles: Roles, prompt: str) -> list[int]:
        ids = self._tokenizer.encode(template(roles, prompt), add_special_tokens=False)
        assert ids[-1] == self.begin_of_image
        return [self.bos, *ids]


class HashedWords:
    """A stand-in for random weights: words become arbitrary ids, so lengths stay realistic."""

    def __init__(self, words: int) -> None:
        self.bos = words - 1
        self.pad = words - 2
        self.begin_of_image = words - 3

    def __call__(self, roles: Roles, prompt: str) -> list[int]:
        text = template(roles, prompt).removesuffix(BEGIN_OF_IMAGE)
        ids = [derive(word) % self.begin_of_image for word in text.split()]
        return [self.bos, *ids, self.begin_of_image]


def read_words(path: Path, words: int) -> Words | None:
    """Read the tokenizer beside the weights of a checkpoint; None if there is none.

    `words` is the number of word embeddings of the model.
    """
    file = (path if path.is_dir() else path.parent) / "tokenizer.json"
    return TokenizerWords(file, words) if file.is_file() else None
