"""Draw a page of all classes, or of a run's images: `python -m harness.training.contact_sheet`.

Each cell shows a sprite in its own colours at 32 and at 16 pixels, and in the ten colours at 20.
With `--run FOLDER` the page shows that run's best, median and worst images of every task, by the
reward, and is written beside the card of the weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from harness.arguments import print_error
from harness.judges.pictogram import PictogramReward
from harness.models.pictogram import weights as files
from harness.models.pictogram import world
from harness.models.pictogram.grammar import CLASSES, COLORS, DEFAULT
from harness.records import UserError
from harness.results.contact_sheet import draw_reward_range
from harness.runs.read import read_run

CLASS_PAGE = files.FOLDER.parent / "sprites" / "SHEET.png"
COLUMNS = 5
ZOOM = 2
TITLE = 7
"""Height of a cell's title."""
CELL = (32 + 16 + 5 * 20 + 2, TITLE + 2 * 20 + 1)
"""Width and height of a cell; lengths are in pixels of the sprites."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page that the options ask for; return the exit code."""
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
        folder = files.find_set(chosen.weights)
        drawn = chosen.run and draw_reward_range(
            read_run(chosen.run), PictogramReward(chosen.weights)
        )
        path = folder / "IMAGES.png" if drawn else CLASS_PAGE
        (drawn or draw_class_page()).quantize(128).save(path, optimize=True)
    except UserError as error:
        return print_error(error)
    print(path)
    return 0


def draw_class_page() -> Image.Image:
    """Draw all classes, enlarged."""
    # 1. Place a cell for each class.
    width, height = CELL
    corners = []
    for i in range(len(CLASSES)):
        row, column = divmod(i, COLUMNS)
        corners.append((column * width, row * height))
    bottom = corners[-1][1] + height
    pixels = np.full((bottom, COLUMNS * width, 3), 255, np.uint8)

    # 2. Draw the sprites.
    for name, corner in zip(CLASSES, corners, strict=True):
        _draw_cell(pixels, name, corner)

    # 3. Enlarge the page, and write the titles.
    size = (pixels.shape[1] * ZOOM, pixels.shape[0] * ZOOM)
    page = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(page)
    for name, (x, y) in zip(CLASSES, corners, strict=True):
        pen.text((x * ZOOM + 2, y * ZOOM + 1), name, fill=(0, 0, 0))
    return page


def _draw_cell(pixels: np.ndarray, name: str, corner: tuple[int, int]) -> None:
    """Draw the sprites of one class into a cell."""
    x, y = corner
    width, height = CELL
    top = y + TITLE
    pixels[top : y + height - 1, x : x + width - 2] = world.BACKGROUNDS[0]
    sprites: list[tuple[int, int, str | None, int]] = [(x, top, None, 32), (x + 32, top, None, 16)]
    for i, color in enumerate(COLORS):
        row, column = divmod(i, 5)
        sprites.append((x + 48 + column * 20, top + row * 20, color, 20))
    for left, up, tint, side in sprites:
        patch, _ = world.patch_of(name, tint, side, 0)
        pixels[up : up + side, left : left + side] = patch


if __name__ == "__main__":
    sys.exit(main())
