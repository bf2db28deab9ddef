"""Read prompts that people wrote: a prompt a line, a table, or JSON Lines.

.txt    a prompt a line; blank lines, and those that begin with "#", are left out
.csv    a header with the column "prompt", and maybe "id" and a category; .tsv the same with tabs
.jsonl  an object a line with the same keys; .json is no table and is refused

Names of columns are read without regard to case. A byte-order mark and line ends of other systems
are understood. Every complaint names file and line.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from benchmarks.jsonl import bad_line
from harness.records import OWN, Prompt, UserError

log = logging.getLogger("harness")

COMMENT = "#"
"""A line of a text file that begins so is no prompt."""
ID = r"[\w+-][\w+.-]*"
LONGEST_ID = 100


@dataclass(frozen=True, slots=True)
class Row:
    """What a file says about one prompt: its line, from 1 on, and its columns by name."""

    line: int
    columns: Mapping[str, object]


def read_prompts(path: Path, category: str) -> list[Prompt]:
    """Read the prompts of a file; `category` names the column of their categories.

    A prompt without an id is named by its text. Raises UserError that names file and line.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"benchmark.file={path}: the ending says what is in it: .txt (a prompt a line), .csv, "
            ".tsv or .jsonl"
        )
    rows = list(reader(path))
    if not rows:
        raise UserError(f"{path}: there is no prompt in it")
    _tell_unread_columns(path, rows, category)
    prompts = [_make_prompt(path, row, category) for row in rows]
    _expect_distinct(path, rows, prompts)
    return prompts


def list_prompts(texts: Sequence[str]) -> list[Prompt]:
    """Make the prompts of `benchmark.prompts_list`. Raises UserError for one that is repeated."""
    prompts = [Prompt.of_text(text) for text in texts]
    if not prompts:
        raise UserError("benchmark.prompts_list=[]: write at least one prompt")
    if twice := [text for text in dict.fromkeys(texts) if list(texts).count(text) > 1]:
        raise UserError(f"benchmark.prompts_list: {twice[0]!r} is there twice")
    return prompts


# ------------------------------------------------------------------ kinds of files


def _read_text_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read_lines(path), start=1):
        text = line.strip()
        if text and not text.startswith(COMMENT):
            yield Row(number, {"prompt": text})


def _read_csv(path: Path) -> Iterator[Row]:
    return _read_table(path, ",")


def _read_tsv(path: Path) -> Iterator[Row]:
    return _read_table(path, "\t")


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    """Read a table with a header; its quotes may hold line breaks."""
    lines = csv.reader(io.StringIO(_read(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    first = 1
    try:
        for cells in lines:
            number = first
            first = lines.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _read_header(path, number, cells)
                continue
            if len(cells) != len(header):
                problem = f"{len(cells)} cells under {len(header)} columns; quote cells with commas"
                raise bad_line(path, number, problem)
            yield Row(number, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise bad_line(path, first, f"not valid CSV ({error})") from None


def _read_header(path: Path, number: int, cells: Sequence[str]) -> list[str]:
    names = [cell.strip().casefold() for cell in cells]
    if "prompt" not in names:
        shown = ", ".join(names[:5])
        raise bad_line(path, number, f"no column 'prompt' among {shown}; the first line names them")
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise bad_line(path, number, f"column {twice[0]!r} is there twice")
    return names


def _read_objects(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise bad_line(path, number, f"not valid JSON ({error})") from None
        if not isinstance(value, dict):
            raise bad_line(path, number, f"expected a JSON object, found {type(value).__name__}")
        yield Row(number, {str(key).casefold(): inner for key, inner in value.items()})


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _read_text_lines,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_objects,
}


def _read_lines(path: Path) -> list[str]:
    """Read a file's lines; only line breaks divide them, not the separators that text may hold."""
    text = _read(path).replace("\r\n", "\n").replace("\r", "\n")
    return text.split("\n")


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"benchmark.file={path}: cannot be read ({error.strerror})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise bad_line(path, number, "not UTF-8 text; save the file as UTF-8") from None


# ------------------------------------------------------------------ from rows to prompts


def _make_prompt(path: Path, row: Row, category: str) -> Prompt:
    """Make the prompt of a row. Raises UserError for cells that are none."""
    text = row.columns.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise bad_line(path, row.line, f"'prompt' must be a text, found {text!r}")
    kind = _read_name(path, row, category.casefold()) or OWN
    if kind in _list_taken_names():
        problem = f"{category} {kind!r} has the name of a leaderboard column; rename it"
        raise bad_line(path, row.line, problem)
    name = _read_name(path, row, "id")
    if name and not (len(name) <= LONGEST_ID and re.fullmatch(ID, name)):
        problem = (
            f"id {name!r} would name a file: write at most {LONGEST_ID} letters, digits, "
            "'+', '-', '_' and '.'"
        )
        raise bad_line(path, row.line, problem)
    try:
        prompt = Prompt.of_text(text, kind)
        if name:
            prompt = Prompt(f"prompts/{name}", text, kind)
    except UserError as error:
        raise bad_line(path, row.line, str(error)) from None
    return prompt


@lru_cache
def _list_taken_names() -> frozenset[str]:
    """List the names that no category may have, as tables have columns of these names."""
    from harness.results.columns import LEADERBOARD, TASKS

    return frozenset(LEADERBOARD.names) - set(TASKS)


def _read_name(path: Path, row: Row, column: str) -> str:
    """Return a short text or a whole number of a row; "" where there is none."""
    value = row.columns.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise bad_line(path, row.line, f"{column!r} must be a text, found {value!r}")
    return str(value).strip()


def _expect_distinct(path: Path, rows: Sequence[Row], prompts: Iterable[Prompt]) -> None:
    """Raise UserError for two prompts of one id."""
    lines: dict[str, int] = {}
    for row, prompt in zip(rows, prompts, strict=True):
        first = lines.setdefault(prompt.id, row.line)
        if first == row.line:
            continue
        if "id" in row.columns and str(row.columns["id"] or "").strip():
            problem = f"the id {row.columns['id']!r} stands in line {first}, too"
        else:
            problem = (
                f"the prompt {prompt.text!r} stands in line {first}, too: delete one, give both "
                "an id, or set benchmark.images for more images of each prompt"
            )
        raise bad_line(path, row.line, problem)


def _tell_unread_columns(path: Path, rows: Sequence[Row], category: str) -> None:
    """Say which columns nobody reads."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row.columns))
    known = {"prompt", "id", category.casefold()}
    if unread := [name for name in names if name not in known]:
        log.info("%s: columns that are not read: %s", path, ", ".join(unread))
