"""Find and read the files of COCO's captions: val2017's, and MLPerf's list of val2014."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.coco.captions import RULES, Caption, list_captions
from benchmarks.jsonl import bad_line
from harness.download import fetch, file_sha256
from harness.records import UserError, one_line

MLPERF = "mlperf"
"""The list that is a file of its own: 5,000 captions of val2014 that MLPerf Inference draws."""
ANNOTATIONS = "captions_val2017.json"
ANNOTATIONS_SHA256 = "afe3b30e403dd7f228e2373023abbd60042a6e10ec6874d3652df034d289ebb9"
ANNOTATIONS_URL = (
    "https://raw.githubusercontent.com/jadohu/LANTERN/"
    f"3a56e451dd5ebfa1903d044f754c68c420de27a9/data/prompts/{ANNOTATIONS}"
)
TABLE = "captions_source.tsv"
TABLE_SHA256 = "2eeb95637b30fe5af26dd644bafa7affe4e5472ad0bda32d0feb1bd261280d5e"
TABLE_URL = (
    "https://raw.githubusercontent.com/mlcommons/inference/"
    f"b66003e10e2db4b8c36a448b0545ec90fcc6e9e9/text_to_image/coco2014/captions/{TABLE}"
)
COLUMNS = ("id", "image_id", "caption", "height", "width", "file_name", "coco_url")
ROWS = 5000
"""Rows of MLPerf's list."""
CHOICES = (*RULES, MLPERF)


def read_captions(
    rule: str, coco: str | None, *, allow_other_version: bool
) -> tuple[list[Caption], str]:
    """Read a list of captions, and name the version of its file.

    `coco` is the file, or a folder with it (also in `annotations/`, as COCO's archives are
    unpacked); None is a pinned download. Raises UserError for a file that cannot be had, is another
    one unless `allow_other_version`, or is not whole.
    """
    if rule not in CHOICES:
        raise UserError(f"benchmark.captions={rule}: choose from {', '.join(CHOICES)}")
    is_table = rule == MLPERF
    name = TABLE if is_table else ANNOTATIONS
    url = TABLE_URL if is_table else ANNOTATIONS_URL
    sha256 = TABLE_SHA256 if is_table else ANNOTATIONS_SHA256
    if coco is None:
        path = fetch(url, sha256, f"coco/{name}", "set benchmark.coco=FOLDER")
    else:
        path = _locate(Path(coco).expanduser(), name)
    found = file_sha256(path)
    version = sha256[:7]
    if found != sha256:
        if not allow_other_version:
            raise UserError(
                f"{path} has sha256 {found}, {name} has {sha256}: take that file, or set "
                "benchmark.allow_other_version=true, which marks the version of every row"
            )
        version = f"other-{found[:8]}"
    if is_table:
        return read_table(path, expected=None if allow_other_version else ROWS), version
    try:
        return list_captions(read_annotations(path), rule), version
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _locate(place: Path, name: str) -> Path:
    """Return a file of captions in a folder, or the place itself if it is a file."""
    for path in (place / "annotations" / name, place / name, place):
        if path.is_file():
            return path
    raise UserError(f"benchmark.coco={place}: no {name} there, nor in annotations/ below it")


def read_annotations(path: Path) -> dict[str, Any]:
    """Read a caption file of COCO whose entries have the fields that are read, of their types.

    Raises UserError naming the file, and the entry where there is one.
    """
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a caption file of COCO ({one_line(error)[:200]})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a caption file of COCO: no JSON object")
    needed: Mapping[str, Mapping[str, type]] = {
        "images": {"id": int},
        "annotations": {"image_id": int, "id": int, "caption": str},
    }
    for kind, fields in needed.items():
        entries = data.get(kind)
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{path}: not a caption file of COCO: it has no list {kind!r}")
        for number, entry in enumerate(entries):
            for field, expected in fields.items():
                value = entry.get(field) if isinstance(entry, dict) else None
                if not isinstance(value, expected) or isinstance(value, bool):
                    raise UserError(
                        f"{path}: {kind}[{number}] has {field} {value!r}: expected "
                        f"{expected.__name__}"
                    )
    return data


def read_table(path: Path, expected: int | None = ROWS) -> list[Caption]:
    """Read MLPerf's list: tab-separated, quotes doubled; captions are taken as they are.

    Raises UserError naming the line of a row that is malformed, and for another number of rows than
    `expected`.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise bad_line(path, line, "not UTF-8") from None
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    header = next(rows, [])
    if tuple(header) != COLUMNS:
        raise bad_line(path, 1, f"columns {', '.join(header)}: expected {', '.join(COLUMNS)}")
    found: list[Caption] = []
    seen: set[int] = set()
    for row in rows:
        caption = _read_row(path, rows.line_num, row)
        if caption.annotation in seen:
            raise bad_line(path, rows.line_num, f"id {caption.annotation} stands twice")
        seen.add(caption.annotation)
        found.append(caption)
    if not found or (expected is not None and len(found) != expected):
        raise UserError(f"{path}: {len(found)} captions, expected {expected or 'some'}")
    return found


def _read_row(path: Path, line: int, row: list[str]) -> Caption:
    """Read a row of MLPerf's list. Raises UserError naming its line."""
    if len(row) != len(COLUMNS):
        raise bad_line(path, line, f"{len(row)} fields: expected {len(COLUMNS)}")
    try:
        caption = Caption(image=int(row[1]), annotation=int(row[0]), raw=row[2])
    except ValueError:
        raise bad_line(
            path, line, f"id {row[0]!r}, image_id {row[1]!r}: expected numbers"
        ) from None
    if not caption.text:
        raise bad_line(path, line, f"caption {caption.annotation} is blank")
    return caption
