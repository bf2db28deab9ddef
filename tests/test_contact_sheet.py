"""Contact sheets show the images that they say they show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_runs import write_run

from harness.records import SampleRecord, UserError
from harness.results.contact_sheet import (
    CATEGORY_WIDTH,
    PART_NAME_HEIGHT,
    TILE,
    draw_reward_range,
)
from harness.runs.read import read_run

LEVELS = (40, 200, 120, 80, 160)
"""Grey of the images of each category."""


class Brightness:
    """A reward: the mean of an image's pixels."""

    id = "brightness"

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float]:
        assert len(texts) == len(images)
        return [float(image.mean()) for image in images]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a run of two categories, each with images of LEVELS."""
    folder = write_run(tmp_path, {name: [1.0] * len(LEVELS) for name in ("a/0", "b/0")})
    journal = folder / "records-0.jsonl"
    lines = []
    for line in journal.read_text().splitlines():
        record = SampleRecord.from_json(line)
        path = f"images/{record.category}{record.image}.png"
        (folder / path).parent.mkdir(exist_ok=True)
        grey = (LEVELS[record.image],) * 3
        Image.new("RGB", (8, 8), grey).save(folder / path)
        lines.append(dataclasses.replace(record, path=path).to_json())
    journal.write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_best_median_and_worst_stand_in_their_places(folder: Path) -> None:
    sheet = np.asarray(draw_reward_range(read_run(folder), Brightness(), each=1))
    height, width, _ = sheet.shape
    part_width = (width - CATEGORY_WIDTH) // 3
    row_height = (height - PART_NAME_HEIGHT) // 2
    for row in range(2):
        y = PART_NAME_HEIGHT + row * row_height + TILE // 2
        middles = [CATEGORY_WIDTH + part * part_width + TILE // 2 for part in range(3)]
        assert [int(sheet[y, x, 0]) for x in middles] == [200, 120, 40]


def test_a_run_without_its_images_is_refused(folder: Path) -> None:
    for image in folder.rglob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match=r"plain-00000001: no image of it is there"):
        draw_reward_range(read_run(folder), Brightness())
