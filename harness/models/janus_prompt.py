"""Janus' prompt: the one-turn template, the ids of a checkpoint's own tokenizer, and the null
prompt's rule.
"""

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
"""User and assistant as each family writes them."""

BOS = "<｜begin▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
BEGIN_OF_IMAGE = "<begin_of_image>"


class Words(Protocol):
    """Token ids of a prompt, BOS first and begin-of-image last."""

    pad: int

    def __call__(self, roles: Roles, prompt: str) -> list[int]: ...


def template(roles: Roles, prompt: str) -> str:
    """What is tokenised: user's turn, assistant's empty turn, begin-of-image (Janus
    `generation_inference.py`).
    """
    user, assistant = roles
    return f"{user}: {prompt.strip()}\n\n{assistant}:".strip() + BEGIN_OF_IMAGE


def null_ids(ids: Sequence[int], pad: int) -> list[int]:
    """The null prompt shaped like `ids`: everything but the first and the last id is pad, and
    attended like a word.
    """
    return [ids[0], *[pad] * (len(ids) - 2), ids[-1]]


class TokenizerWords:
    """A checkpoint's own tokenizer.json, with the tokens that tokenizer_config.json adds.

    Special ids come from it: the families of Janus disagree about them. BOS is prepended here, as
    the tokenizer's class does in upstream's version of the library.
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
        lost = [tag for tag in (BOS, PAD, BEGIN_OF_IMAGE) if tag not in known]
        if lost:
            raise UserError(
                f"{file} does not know {', '.join(lost)}: it is not Janus-Pro's tokenizer"
            )
        if max(known.values()) >= words:
            raise UserError(
                f"{file} has ids up to {max(known.values())}, the model {words} words: it is another model's"
            )
        self.bos = known[BOS]
        self.pad = known[PAD]
        self.begin_of_image = known[BEGIN_OF_IMAGE]

    def __call__(self, roles: Roles, prompt: str) -> list[int]:
        ids = self._tokenizer.encode(template(roles, prompt), add_special_tokens=False)
        assert ids[-1] == self.begin_of_image
        return [self.bos, *ids]


class HashedWords:
    """A stand-in for random weights: blank-separated words become arbitrary ids, so lengths stay
    realistic.
    """

    def __init__(self, words: int) -> None:
        self.bos = words - 1
        self.pad = words - 2
        self.begin_of_image = words - 3

    def __call__(self, roles: Roles, prompt: str) -> list[int]:
        text = template(roles, prompt).removesuffix(BEGIN_OF_IMAGE)
        ids = (derive(word) % self.begin_of_image for word in text.split())
        return [self.bos, *ids, self.begin_of_image]


def read_words(path: Path, words: int) -> Words | None:
    """The tokenizer beside the weights of a checkpoint with so many word embeddings, if there is
    one.
    """
    file = (path if path.is_dir() else path.parent) / "tokenizer.json"
    return TokenizerWords(file, words) if file.is_file() else None
