"""The result file: a header that names the machine and the code, then a line for each part.

A line is written as soon as its part is done. Later lines of a part replace earlier ones.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from harness.check.gpu.finding import Status
from harness.records import JSON, UserError, dump

FOLDER = Path("results/gpu")
"""Where result files lie if nothing else is said."""
IDENTITY = ("device", "size", "torch", "triton", "code")
"""Facts of a header that must agree for a second call to go on in a file."""


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one part of a step."""

    step: str
    part: str
    status: Status
    seconds: float
    headline: str = ""
    reason: str = ""  # why it was not run, or what does not hold
    figures: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Tell whether a second call need not carry the part out again."""
        return self.status != "not run"


class Journal:
    """One result file, read and appended to."""

    def __init__(self, path: Path, header: Mapping[str, JSON], lines: Sequence[Line]) -> None:
        self.path = path
        self.header = header
        self._lines = {(line.step, line.part): line for line in lines}

    @property
    def lines(self) -> list[Line]:
        """Return the latest line of each part, in the order in which parts first came."""
        return list(self._lines.values())

    def find(self, step: str, part: str) -> Line | None:
        """Return the latest line of a part, if there is one."""
        return self._lines.get((step, part))

    def append(self, line: Line) -> None:
        """Write a line, so that it is on disk when this returns."""
        _append(self.path, asdict(line))
        self._lines[line.step, line.part] = line

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a result file. Raises UserError for a file that is none.

        A last line that was cut off, as by a kill, is left out.
        """
        try:
            texts = path.read_text(encoding="utf-8").splitlines()
            header = json.loads(texts[0])["header"]
            lines = [Line(**row) for row in _read_rows(texts[1:])]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{path} is no result file of `harness.check gpu` ({error}): name one"
            ) from None
        return cls(path, header, lines)


def _read_rows(texts: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for number, text in enumerate(texts):
        try:
            rows.append(json.loads(text))
        except ValueError:
            if number < len(texts) - 1:
                raise
    return rows


def open_journal(folder: Path | None, header: Mapping[str, JSON]) -> Journal:
    """Open the newest file of a folder with the same machine and code, or begin one.

    A new file is `gpu.jsonl` in a folder that the user named, else it has the device and the day in
    its name. A file of another machine, or of other code, is left alone.
    """
    home = folder or FOLDER
    files = sorted(home.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files:
        journal = _continue(path, header)
        if journal is not None:
            return journal

    home.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", str(header["device"]).lower()).strip("-")
    stem = "gpu" if folder else f"{device}-{header['date']}"
    path = _free_path(home, stem)
    _append(path, {"header": dict(header)})
    return Journal(path, header, [])


def _continue(path: Path, header: Mapping[str, JSON]) -> Journal | None:
    """Return a file's journal if it is of the same machine and code."""
    try:
        journal = Journal.read(path)
    except UserError:
        return None
    if any(journal.header.get(fact) != header[fact] for fact in IDENTITY):
        return None
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):  # the last line was cut off: keep what is whole
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return journal


def _free_path(folder: Path, stem: str) -> Path:
    path = folder / f"{stem}.jsonl"
    number = 2
    while path.exists():
        path = folder / f"{stem}-{number}.jsonl"
        number += 1
    return path


def _append(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{dump(value)}\n")
        file.flush()
        os.fsync(file.fileno())
