"""Read the benchmark's files: 39 dimensions, a file of prompts and one of questions for each.

They carry no licence, so they are not shipped: they come from a folder of the user's, the cache or
the repository. Their hashes are pinned.
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
KINDS = ("prompts", "eval_prompts")
"""The files of a dimension: its prompts, and the questions about their images."""

_WORD = re.compile(r"Is the text '(.*)' in the image\?")


def read_split(
    name: str, split: str, metadata: str | None, allow_other_version: bool
) -> tuple[list[Prompt], str]:
    """Read the prompts of "test" or "testmini", and name the version of the files.

    Both lengths of a row stand side by side; prompt ids begin with `name`. `metadata` is a folder
    with the split's two folders; None is the cache, then the network. A file whose hash is not the
    published one is refused, or marks the version with `allow_other_version`. Raises UserError
    naming file, line and problem.
    """
    if split not in SPLITS:
        raise UserError(f"benchmark.split={split}: choose from {', '.join(SPLITS)}")
    files = {}
    for dimension in OFFICIAL.dimensions:
        for kind in KINDS:
            path = _path_in_repository(split, dimension, kind)
            files[path] = _locate_file(path, metadata)
    version = _check_version(split, files, allow_other_version)

    prompts: list[Prompt] = []
    for dimension in OFFICIAL.dimensions:
        texts, questions = (files[_path_in_repository(split, dimension, kind)] for kind in KINDS)
        prompts += _read_prompts(name, dimension, texts, questions)
    return prompts, version


def official_hashes() -> dict[str, str]:
    """Load the sha256 of each of the 156 files, by its path."""
    return json.loads((resources.files(__package__) / "sha256.json").read_text())


def _path_in_repository(split: str, dimension: str, kind: str) -> str:
    return f"{split}_{kind}/{dimension}_{kind}.jsonl"


def _locate_file(path: str, metadata: str | None) -> Path:
    if metadata is None:
        sha256 = official_hashes()[path]
        return fetch(ADDRESS + quote(path), sha256, f"tiif/{COMMIT[:8]}/{path}", REMEDY)
    file = Path(metadata) / path
    if not file.is_file():
        raise UserError(f"benchmark.metadata={metadata}: {path} is not there; {REMEDY}")
    return file


def _check_version(split: str, files: Mapping[str, Path], allow_other_version: bool) -> str:
    """Name the version of the files, which are given by their path in the repository.

    It is "other" and a hash over all files if one of them is not the published one.
    """
    published = official_hashes()
    found = {path: file_sha256(file) for path, file in files.items()}
    others = [path for path, sha256 in found.items() if sha256 != published[path]]
    if not others:
        return f"{split}@{COMMIT[:8]}"
    if not allow_other_version:
        first = others[0]
        raise UserError(
            f"{files[first]} has sha256 {found[first]}, the published one {published[first]} "
            f"({len(others)} of {len(found)} files differ): take the published files, "
            "or set benchmark.allow_other_version=true, and the rows are marked"
        )
    return f"other-{split}-{digest(' '.join(found.values()).encode(), 12)}"


def _read_prompts(name: str, dimension: str, texts: Path, questions: Path) -> Iterator[Prompt]:
    """Read a dimension's prompts: the files of texts and of questions belong together by row."""
    text_rows = list(read_objects(texts))
    question_rows = list(read_objects(questions))
    if len(text_rows) != len(question_rows):
        raise UserError(
            f"{questions}: {len(question_rows)} rows, {texts} has {len(text_rows)}; "
            "they belong together row by row"
        )
    pairs = zip(text_rows, question_rows, strict=True)
    for index, ((line, text_row), (_, question_row)) in enumerate(pairs):
        spec = _read_spec(dimension, questions, line, question_row)
        for length in LENGTHS:
            text = text_row.get(f"{length}_description")
            if text_row.get("type") != dimension or not isinstance(text, str) or not text.strip():
                problem = (
                    f"expected type {dimension!r} and a {length}_description, "
                    f"found {text_row!r:.200}"
                )
                raise bad_line(texts, line, problem)
            yield Prompt(
                id=f"{name}/{dimension}/{length}/{index}",
                text=text,
                category=f"{length}/{dimension}",
                spec=spec,
                weight=len(spec["questions"]),
                cluster=f"{name}/{dimension}/{index}",
            )


def _read_spec(
    dimension: str, path: Path, line: int, row: Mapping[str, object]
) -> dict[str, list[str]]:
    """Read questions and answers of a row, and the words that an image of "text" must show."""
    questions = row.get("yn_question_list")
    answers = row.get("yn_answer_list")
    if row.get("type") != dimension or not _are_lists_of_texts(questions, answers):
        problem = (
            f"expected type {dimension!r}, yn_question_list and yn_answer_list, found {row!r:.200}"
        )
        raise bad_line(path, line, problem)
    assert isinstance(questions, list) and isinstance(answers, list)

    answers = [answer.strip().lower() for answer in answers]
    if len(questions) != len(answers) or not set(answers) <= {"yes", "no"}:
        problem = f"expected yes or no for each of {len(questions)} questions, found {answers!r}"
        raise bad_line(path, line, problem)

    spec = {"questions": [question.strip() for question in questions], "answers": answers}
    if dimension == "text":
        quoted = [_WORD.fullmatch(question) for question in spec["questions"]]
        spec["words"] = [match[1] for match in quoted if match]
        if len(spec["words"]) != len(quoted):
            raise bad_line(path, line, "a question about text does not quote its word")
    return spec


def _are_lists_of_texts(*values: object) -> bool:
    """Tell whether each value is a list that holds at least one text, and no blank one."""
    for value in values:
        if not isinstance(value, list) or not value:
            return False
        if not all(isinstance(text, str) and text.strip() for text in value):
            return False
    return True
