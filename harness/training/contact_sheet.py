"""Pages to be looked at: every class (`python -m harness.training.contact_sheet`), or what was
drawn.

Each cell shows a sprite in its own colours at 32 and at 16 pixels, and in the ten colours at 20.
With `--run FOLDER` the page shows that run's best, median and worst images of every task, by the
reward, and lies beside the weights' card.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from harness.cli import print_error
from harness.judges.pictogram import PictogramReward
from harness.models.pictogram import weights as files
from harness.models.pictogram import world
from harness.models.pictogram.grammar import CLASSES, COLORS, DEFAULT
from harness.records import UserError
from harness.results.contact_sheet import draw_reward_range
from harness.runs.read import read_run

PAGE = files.FOLDER.parent / "sprites" / "SHEET.png"
COLUMNS = 5
ZOOM = 2
TITLE = 7
CELL = (32 + 16 + 5 * 20 + 2, TITLE + 2 * 20 + 1)
"""Width and height in the sprites' pixels."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m harness.training.contact_sheet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run", type=Path, help="a folder of a run, as results/pictogram/pictogram_80/plain-..."
    )
    parser.add_argument(
        "--weights", default=DEFAULT, help="the set whose reward grades them, and whose page it is"
    )
    chosen = parser.parse_args(arguments)
    try:
        drawn = chosen.run and draw_reward_range(
            read_run(chosen.run), PictogramReward(chosen.weights)
        )
        path = files.find_set(chosen.weights) / "IMAGES.png" if drawn else PAGE
        (drawn or page()).quantize(128).save(path, optimize=True)
    except UserError as error:
        return print_error(error)
    print(path)
    return 0


def page() -> Image.Image:
    """All classes, enlarged."""
    spots = [(i % COLUMNS * CELL[0], i // COLUMNS * CELL[1]) for i in range(len(CLASSES))]
    pixels = np.full((spots[-1][1] + CELL[1], COLUMNS * CELL[0], 3), 255, np.uint8)
    for name, (x, y) in zip(CLASSES, spots, strict=True):
        top = y + TITLE
        pixels[top : y + CELL[1] - 1, x : x + CELL[0] - 2] = world.BACKGROUNDS[0]
        shown: list[tuple[int, int, str | None, int]] = [
            (x, top, None, 32),
            (x + 32, top, None, 16),
        ]
        shown += [
            (x + 48 + i % 5 * 20, top + i // 5 * 20, color, 20) for i, color in enumerate(COLORS)
        ]
        for left, up, color, size in shown:
            pixels[up : up + size, left : left + size] = world.patch_of(name, color, size, 0)[0]
    sheet = Image.fromarray(pixels).resize(
        (pixels.shape[1] * ZOOM, pixels.shape[0] * ZOOM), Image.Resampling.NEAREST
    )
    text = ImageDraw.Draw(sheet)
    for name, (x, y) in zip(CLASSES, spots, strict=True):
        text.text((x * ZOOM + 2, y * ZOOM + 1), name, fill=(0, 0, 0))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
