"""Take what the reference's own networks made elsewhere: scores, or detections and depths.

UniDet runs on detectron2, which is on no package index, so the reference's detector cannot be
installed here. Its scores are read from a folder of the reference's layout, where its evaluators
left them (`RESULTS`); its detections from a file that has a JSON object for each image:

{"category": "spatial", "index": 3, "image": 0,
 "detections": [{"class": "cat", "box": [x1, y1, x2, y2], "score": 0.9}], "depth": "3_0.png"}

Detections are in the detector's order, boxes in its scale (boxes.py). `depth`, for 3d_spatial, is
an 8-bit picture beside the file, of any size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.boxes import Found, read_detection
from benchmarks.jsonl import bad_line, read_objects
from benchmarks.t2i_compbench.boxes import resized_sides
from benchmarks.t2i_compbench.evaluators import Picture
from harness.records import UserError

RESULTS = {
    "spatial": "spatial/labels/annotation_obj_detection_2d/vqa_result.json",
    "3d_spatial": "3d_spatial/labels/annotation_obj_detection_3d/vqa_result.json",
    "numeracy": "numeracy/annotation_num/vqa_result.json",
    "complex": "complex/labels/annotation_obj_detection_2d/vqa_result.json",
}
"""Where the reference's evaluators write the scores of each category that needs its detector."""

Key = tuple[str, int]
"""Prompt id and number of an image."""


@dataclass(frozen=True, slots=True)
class _Row:
    """What was detected in an image, and the name of its depth picture, if there is one."""

    detections: tuple[Found, ...]
    depth: str | None


class ImportedDetections:
    """Look up the reference's score of an image, or what was detected in it and its depth.

    `detections` is the folder of the scores or the file of the detections. The id does not name it,
    so that images are drawn first and detected later, in the same run. An image that it lacks gets
    no score: the next run asks again.
    """

    id = "unidet-imported"
    protocol = ""
    random = False

    def __init__(self, detections: str | None = None) -> None:
        self.missing = ""
        self._path = None if detections is None else Path(detections).expanduser()
        self._rows: Mapping[Key, _Row] | None = None
        self.scores: Mapping[tuple[str, int], float] | None = None
        """The reference's scores by category and running number; None where it has detections."""

    def load(self) -> None:
        """Read folder or file; later calls do nothing. Without either nothing was detected yet."""
        if self._rows is not None:
            return
        self._rows = {}
        if self._path is not None and self._path.is_dir():
            self.scores = _read_scores(self._path)
        elif self._path is not None:
            self._rows = _read_rows(self._path)

    def detect(self, pictures: Sequence[Picture]) -> list[list[Found] | None]:
        """Look up the detections of each picture; None where the file has none."""
        self.load()
        assert self._rows is not None
        found: list[list[Found] | None] = []
        for picture in pictures:
            row = self._rows.get((picture.prompt_id, picture.image))
            found.append(None if row is None else list(row.detections))
        return found

    def estimate(self, pictures: Sequence[Picture]) -> list[np.ndarray | None]:
        """Read the depth of each picture, float32 [h, w]; None where the file has none."""
        self.load()
        assert self._rows is not None
        depths: list[np.ndarray | None] = []
        for picture in pictures:
            row = self._rows.get((picture.prompt_id, picture.image))
            if row is None or row.depth is None or self._path is None:
                depths.append(None)
                continue
            height, width = picture.pixels.shape[:2]
            depths.append(_read_depth(self._path.parent / row.depth, width, height))
        return depths


def resize_depth(depth: Any, width: int, height: int) -> np.ndarray:
    """Resize an 8-bit depth picture to the detector's scale of an image; float32 in [0, 1]."""
    sides = resized_sides(width, height)
    return np.asarray(depth.convert("L").resize(sides), np.float32) / np.float32(255)


def _read_depth(path: Path, width: int, height: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as depth:
            return resize_depth(depth, width, height)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: no depth picture ({error})") from None


def _read_scores(folder: Path) -> dict[tuple[str, int], float]:
    """Read the scores of all categories that were judged. Raises UserError if none was."""
    scores: dict[tuple[str, int], float] = {}
    for category, name in RESULTS.items():
        path = folder / name
        if not path.is_file():
            continue
        try:
            for row in json.loads(path.read_text(encoding="utf-8")):
                scores[category, int(row["question_id"])] = _read_score(row["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no result file of the reference ({error!r})") from None
    if not scores:
        raise UserError(
            f"benchmark.detector.detections={folder}: the reference has judged nothing there; its "
            f"evaluators write {', '.join(RESULTS.values())}"
        )
    return scores


def _read_score(answer: object) -> float:
    """Read a score, which is a number or its text. Raises ValueError outside of 0 to 1."""
    score = float(str(answer))
    if not 0 <= score <= 1:
        raise ValueError(f"a score is between 0 and 1, found {answer!r}")
    return score


def _read_rows(path: Path) -> dict[Key, _Row]:
    rows: dict[Key, _Row] = {}
    for number, row in read_objects(path):
        try:
            key, found = _read_row(row)
        except ValueError as error:
            raise bad_line(path, number, str(error)) from None
        if key in rows:
            raise bad_line(path, number, f"a second row of image {key[1]} of {key[0]}")
        rows[key] = found
    return rows


def _read_row(row: Mapping[str, Any]) -> tuple[Key, _Row]:
    """Read whose detections a row has, and what they are. Raises ValueError for another row."""
    if not isinstance(row.get("category"), str):
        raise ValueError(f"'category' must be a name, found {row.get('category')!r}")
    for name in ("index", "image"):
        if not isinstance(row.get(name), int) or isinstance(row[name], bool) or row[name] < 0:
            raise ValueError(f"'{name}' must be a whole number from 0, found {row.get(name)!r}")
    detections = row.get("detections")
    if not isinstance(detections, list):
        raise ValueError(f"'detections' must be a list, found {detections!r:.60}")
    depth = row.get("depth")
    if depth is not None and not isinstance(depth, str):
        raise ValueError(f"'depth' must be the name of a picture, found {depth!r:.60}")
    key = (f"t2i_compbench/{row['category']}/{row['index']}", row["image"])
    return key, _Row(tuple(map(read_detection, detections)), depth)
