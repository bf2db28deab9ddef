"""Words of prompts: the tokenizer beside a checkpoint's weights, or a stand-in for random weights.

What is special about a model's prompt is in its own prompt module; here is what they share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.kernels.noise import derive
from harness.records import UserError, one_line

FILE = "tokenizer.json"

_BYTE_PAIR_FILES = ("vocab.json", "merges.txt")
"""What a byte-pair tokenizer of the Qwen family is saved as where there is no `FILE`."""


class Words(Protocol):
    """A tokenizer of texts. `vocabulary` has the ids of special tokens by their names."""

    vocabulary: Mapping[str, int]

    def encode(self, text: str) -> list[int]:
        """Tokenise a text as it is; names of special tokens in it are these tokens."""
        ...


class TokenizerWords:
    """A tokenizer of the `tokenizers` library, with what tokenizer_config.json adds to it.

    `file` is its JSON, or the vocab.json of a byte-pair tokenizer that has merges.txt beside it.
    `names` are special tokens that it must know, `words` is the number of the model's word
    embeddings, `model` names the model in errors. Raises UserError for a file that is no tokenizer,
    or another model's.
    """

    def __init__(self, file: Path, names: Sequence[str], words: int, model: str) -> None:
        self._tokenizer = _read_tokenizer(file)
        self.vocabulary: Mapping[str, int] = self._tokenizer.get_vocab()
        missing = [name for name in names if name not in self.vocabulary]
        if missing:
            raise UserError(
                f"{file} does not know {', '.join(missing)}: it is not {model}'s tokenizer"
            )
        largest = max(self.vocabulary.values())
        if largest >= words:
            raise UserError(
                f"{file} has ids up to {largest}, the model {words} words: it is another model's"
            )

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _read_tokenizer(file: Path) -> Any:
    """The tokenizer of a file, as the transformers library reads it; nothing of it is run."""
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    try:
        if file.name == FILE:
            return PreTrainedTokenizerFast.from_pretrained(str(file.parent), local_files_only=True)
        if file.name in _BYTE_PAIR_FILES:
            return Qwen2Tokenizer.from_pretrained(str(file.parent), local_files_only=True)
        return PreTrainedTokenizerFast(tokenizer_file=str(file))
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(
            f"{file} is no tokenizer ({one_line(error)[:120]}): download it again"
        ) from None


class HashedWords:
    """A stand-in for random weights: words become arbitrary ids, so lengths stay realistic.

    `plain` are the ids that words become, `vocabulary` has the special tokens.
    """

    def __init__(self, plain: range, vocabulary: Mapping[str, int]) -> None:
        self.vocabulary = vocabulary
        self._plain = plain
        names = [re.escape(name) for name in vocabulary if name.startswith("<")]
        self._special = re.compile("(" + "|".join(names) + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._special.split(text):
            if part in self.vocabulary:
                ids.append(self.vocabulary[part])
            else:
                ids += [self._plain[derive(word) % len(self._plain)] for word in part.split()]
        return ids


def find_tokenizer(path: Path, others: Sequence[str] = ()) -> Path | None:
    """Find the tokenizer beside a checkpoint's weights, or in its folder; None if there is none.

    `others` are names of files that a model's tokenizer may have instead of `FILE`.
    """
    folder = path if path.is_dir() else path.parent
    for name in (FILE, *others):
        if (folder / name).is_file():
            return folder / name
    has_byte_pairs = all((folder / name).is_file() for name in _BYTE_PAIR_FILES)
    return folder / _BYTE_PAIR_FILES[0] if has_byte_pairs else None


# ------------------------------------------------------------------ image tokens by name


def read_vocabulary(config: Mapping[str, object], path: Path) -> Mapping[str, int]:
    """Read the `vocabulary_map` of a configuration: ids of all tokens by their names.

    `path` is named in errors. Raises UserError where it is missing, or holds anything else.
    """
    found = config.get("vocabulary_map")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: config.json has no vocabulary_map, download it again")
    for name, number in found.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise UserError(f"{path}: vocabulary_map has {number!r} for {name!r}, which is no id")
    return found


def find_run(vocabulary: Mapping[str, int], names: Sequence[str], path: Path) -> range:
    """Find the ids of image tokens whose names are given in the order of their codes.

    `path` is named in errors. Raises UserError for names that are missing, and for ids that do not
    follow one another: then a code would not be an id less a constant.
    """
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise UserError(
            f"{path}: the vocabulary lacks {len(missing)} of {len(names)} image tokens, the first "
            f"is {missing[0]}: it is another model's"
        )
    first = vocabulary[names[0]]
    for code, name in enumerate(names):
        if vocabulary[name] != first + code:
            raise UserError(
                f"{path}: image token {name} has id {vocabulary[name]}, not {first + code}: "
                "the ids of codes do not follow one another, so it is another model's"
            )
    return range(first, first + len(names))
