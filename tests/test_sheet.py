"""Pictures of runs hold the images that they say they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_runs import write_run

from harness.records import SampleRecord, UserError
from harness.results.contact_sheet import LEFT, TILE, range_sheet
from harness.runs.read import read_run

LEVELS = (40, 200, 120, 80, 160)


class Brightness:
    id = "brightness"

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float]:
        assert len(texts) == len(images)
        return [float(image.mean()) for image in images]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two categories, each with images of these levels of grey."""
    folder = write_run(tmp_path, {name: [1.0] * len(LEVELS) for name in ("a/0", "b/0")})
    journal = folder / "records-0.jsonl"
    lines = []
    for line in journal.read_text().splitlines():
        record = SampleRecord.from_json(line)
        place = f"images/{record.category}{record.image}.png"
        (folder / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (LEVELS[record.image],) * 3).save(folder / place)
        lines.append(dataclasses.replace(record, path=place).to_json())
    journal.write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_best_median_and_worst_stand_in_their_places(folder: Path) -> None:
    pixels = np.asarray(range_sheet(read_run(folder), Brightness(), each=1))
    third = (pixels.shape[1] - LEFT) // 3
    middles = [LEFT + i * third + TILE // 2 for i in range(3)]
    for y in (40 + TILE // 2, 40 + (pixels.shape[0] - 40) // 2 + TILE // 2):
        assert [int(pixels[y, x, 0]) for x in middles] == [200, 120, 40]


def test_a_run_without_its_images_is_refused(folder: Path) -> None:
    for image in folder.rglob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match=r"plain-00000001: no image of it is there"):
        range_sheet(read_run(folder), Brightness())
