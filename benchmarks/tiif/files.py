"""The benchmark's files: 39 dimensions, a file of prompts and one of questions each, pinned by
their hashes.

They carry no licence, so they are not shipped: they come from a folder of the user's, the cache or
the repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from benchmarks.jsonl import bad_line, read_objects
from benchmarks.tiif.scores import LENGTHS, OFFICIAL
from harness.download import fetch, file_sha256
from harness.records import Prompt, UserError, digest

COMMIT = "3aae7504d2546516eaec2fea82fde9ae445dfea3"
ADDRESS = f"https://raw.githubusercontent.com/A113N-W3I/TIIF-Bench/{COMMIT}/data/"
REMEDY = "set benchmark.metadata=PATH to the repository's folder data"
SPLITS = ("test", "testmini")

_WORD = re.compile(r"Is the text '(.*)' in the image\?")


def read_split(
    name: str, split: str, metadata: str | None, allow_other_version: bool
) -> tuple[list[Prompt], str]:
    """The prompts of "test" or "testmini", both lengths of a row side by side, and the version they
    are of.

    `metadata` is a folder with the split's two folders; without one the cache is asked, then the
    network. A file whose hash is not the published one is refused, or marks the version. Raises
    UserError naming file, line and problem.
    """
    if split not in SPLITS:
        raise UserError(f"benchmark.split={split}: choose from {', '.join(SPLITS)}")
    files = {
        stem: (
            _file(split, stem, "prompts", metadata),
            _file(split, stem, "eval_prompts", metadata),
        )
        for stem in OFFICIAL.dimensions
    }
    version = _version(split, files, metadata, allow_other_version)
    return [
        prompt for stem, pair in files.items() for prompt in _prompts(name, stem, *pair)
    ], version


def official_hashes() -> dict[str, str]:
    """The sha256 of each of the 156 files, by its path."""
    return json.loads((resources.files(__package__) / "sha256.json").read_text())


def _path(split: str, stem: str, kind: str) -> str:
    return f"{split}_{kind}/{stem}_{kind}.jsonl"


def _file(split: str, stem: str, kind: str, metadata: str | None) -> Path:
    path = _path(split, stem, kind)
    if metadata is None:
        return fetch(
            ADDRESS + quote(path), official_hashes()[path], f"tiif/{COMMIT[:8]}/{path}", REMEDY
        )
    file = Path(metadata) / path
    if not file.is_file():
        raise UserError(f"benchmark.metadata={metadata}: {path} is not there; {REMEDY}")
    return file


def _version(
    split: str, files: Mapping[str, tuple[Path, Path]], metadata: str | None, allow: bool
) -> str:
    """What the files are; "other" and a hash over all of them where one is not the published
    one.
    """
    known = official_hashes()
    found = {
        _path(split, stem, kind): (file, file_sha256(file))
        for stem, pair in files.items()
        for kind, file in zip(("prompts", "eval_prompts"), pair, strict=True)
    }
    others = [(file, sha, known[path]) for path, (file, sha) in found.items() if sha != known[path]]
    if not others:
        return f"{split}@{COMMIT[:8]}"
    file, sha, wanted = others[0]
    if not allow:
        raise UserError(
            f"{file} has sha256 {sha}, the published one {wanted} ({len(others)} of {len(found)} files differ): take "
            "the published files, or set benchmark.allow_other_version=true, and the rows are marked"
        )
    return f"other-{split}-{digest(' '.join(sha for _, sha in found.values()).encode(), 12)}"


def _prompts(name: str, stem: str, texts: Path, questions: Path) -> Iterator[Prompt]:
    rows = list(read_objects(texts))
    asked = list(read_objects(questions))
    if len(rows) != len(asked):
        raise UserError(
            f"{questions}: {len(asked)} rows, {texts} has {len(rows)}; they belong together row by row"
        )
    for index, ((line, row), (_, key)) in enumerate(zip(rows, asked, strict=True)):
        spec = _spec(stem, questions, line, key)
        for length in LENGTHS:
            text = row.get(f"{length}_description")
            if row.get("type") != stem or not isinstance(text, str) or not text.strip():
                raise bad_line(
                    texts,
                    line,
                    f"expected type {stem!r} and a {length}_description, found {row!r:.200}",
                )
            yield Prompt(
                id=f"{name}/{stem}/{length}/{index}",
                text=text,
                category=f"{length}/{stem}",
                spec=spec,
                weight=len(spec["questions"]),
                cluster=f"{name}/{stem}/{index}",
            )


def _spec(stem: str, path: Path, line: int, key: Mapping[str, object]) -> dict[str, list[str]]:
    """Questions and answers of a row, and the words that an image of dimension "text" must show."""
    questions = key.get("yn_question_list")
    answers = key.get("yn_answer_list")
    if key.get("type") != stem or not _texts(questions) or not _texts(answers):
        raise bad_line(
            path,
            line,
            f"expected type {stem!r}, yn_question_list and yn_answer_list, found {key!r:.200}",
        )
    assert isinstance(questions, list) and isinstance(answers, list)
    answers = [answer.strip().lower() for answer in answers]
    if len(questions) != len(answers) or not set(answers) <= {"yes", "no"}:
        raise bad_line(
            path,
            line,
            f"expected yes or no for each of {len(questions)} questions, found {answers!r}",
        )
    spec = {"questions": [question.strip() for question in questions], "answers": answers}
    if stem == "text":
        words = [_WORD.fullmatch(question) for question in spec["questions"]]
        spec["words"] = [word[1] for word in words if word]
        if len(spec["words"]) != len(words):
            raise bad_line(path, line, "a question about text does not quote its word")
    return spec


def _texts(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, str) and one.strip() for one in value)
    )
