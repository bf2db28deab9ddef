"""Take detections and depths that the reference's own networks made elsewhere.

UniDet runs on detectron2, which is on no package index, so the reference's detector cannot be
installed here. A file has a JSON object for each image:

{"category": "spatial", "index": 3, "image": 0,
 "detections": [{"class": "cat", "box": [x1, y1, x2, y2], "score": 0.9}], "depth": "3_0.png"}

Detections are in the detector's order, boxes in its scale (boxes.py). `depth`, for 3d_spatial, is
an 8-bit picture beside the file, of any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.jsonl import bad_line, read_objects
from benchmarks.t2i_compbench.boxes import resized_sides
from benchmarks.t2i_compbench.evaluators import Found, Picture
from harness.records import UserError

Key = tuple[str, int]
"""Prompt id and number of an image."""


class ImportedDetections:
    """Look up what was detected in an image, and its depth.

    Its id does not name the file, so that images are drawn first and detected later, in the same
    run. An image that the file lacks gets no score: the next run asks again.
    """

    id = "unidet-imported"
    protocol = ""
    random = False

    def __init__(self, detections: str | None = None) -> None:
        self.missing = ""
        self._path = None if detections is None else Path(detections).expanduser()
        self._rows: Mapping[Key, Mapping[str, Any]] | None = None

    def load(self) -> None:
        """Read the file; later calls do nothing. Without a file nothing was detected yet."""
        if self._rows is None:
            self._rows = {} if self._path is None else _read_rows(self._path)

    def detect(self, pictures: Sequence[Picture]) -> list[list[Found] | None]:
        """Look up the detections of each picture; None where the file has none."""
        self.load()
        assert self._rows is not None
        found: list[list[Found] | None] = []
        for picture in pictures:
            row = self._rows.get((picture.prompt_id, picture.image))
            found.append(None if row is None else list(map(_read_detection, row["detections"])))
        return found

    def estimate(self, pictures: Sequence[Picture]) -> list[np.ndarray | None]:
        """Read the depth of each picture, float32 [h, w]; None where the file has none."""
        self.load()
        assert self._rows is not None
        depths: list[np.ndarray | None] = []
        for picture in pictures:
            row = self._rows.get((picture.prompt_id, picture.image), {})
            name = row.get("depth")
            if name is None or self._path is None:
                depths.append(None)
                continue
            height, width = picture.pixels.shape[:2]
            depths.append(_read_depth(self._path.parent / str(name), width, height))
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


def _read_rows(path: Path) -> dict[Key, Mapping[str, Any]]:
    rows: dict[Key, Mapping[str, Any]] = {}
    for number, row in read_objects(path):
        if problem := _row_problem(row):
            raise bad_line(path, number, problem)
        key = (f"t2i_compbench/{row['category']}/{row['index']}", row["image"])
        if key in rows:
            raise bad_line(path, number, f"a second row of image {key[1]} of {key[0]}")
        rows[key] = row
    return rows


def _row_problem(row: Mapping[str, Any]) -> str | None:
    """Describe what is wrong with a row; None if nothing is."""
    if not isinstance(row.get("category"), str):
        return f"'category' must be a name, found {row.get('category')!r}"
    for name in ("index", "image"):
        if not isinstance(row.get(name), int) or isinstance(row[name], bool) or row[name] < 0:
            return f"'{name}' must be a whole number from 0, found {row.get(name)!r}"
    detections = row.get("detections")
    if not isinstance(detections, list):
        return f"'detections' must be a list, found {detections!r:.60}"
    for detection in detections:
        if not _is_detection(detection):
            return f"a detection has class, box (four numbers) and score, found {detection!r:.120}"
    return None


def _is_detection(detection: object) -> bool:
    if not isinstance(detection, dict) or not isinstance(detection.get("class"), str):
        return False
    box = detection.get("box")
    numbers = [*box, detection.get("score")] if isinstance(box, list) else []
    return len(numbers) == 5 and all(map(_is_finite, numbers))


def _is_finite(number: object) -> bool:
    return (
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    )


def _read_detection(detection: Mapping[str, Any]) -> Found:
    return Found(detection["class"], tuple(map(float, detection["box"])), detection["score"])
