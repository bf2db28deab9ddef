"""The pictogram world: scenes of recoloured sprites on flat backgrounds, pure functions of a seed.

Objects lie on a 4-pixel lattice (one token of the tokenizer), never overlap, and obey the layout
that their caption states. Sizes are pixels; boxes are (x1, y1, x2, y2) with exclusive right and
bottom edges. Only rendering sprites needs resvg.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from harness.models.pictogram.grammar import (
    COLORS,
    Layout,
    Spec,
    Style,
    caption,
    layouts,
    objects,
    sample_spec,
)

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]

SIDE = 48
"""Pixels a side of a picture."""

LATTICE = 4
"""Pixels between places where objects may lie."""

BACKGROUNDS = ((170, 188, 206), (206, 190, 156), (160, 186, 156), (150, 146, 160))

_RGB_IN_ORDER = (
    *((208, 34, 38), (242, 120, 22), (250, 216, 40), (40, 150, 60), (40, 90, 215)),
    *((128, 50, 175), (255, 140, 195), (122, 72, 36), (28, 28, 32), (246, 246, 246)),
)
REFERENCE_RGB: dict[str, tuple[int, int, int]] = dict(zip(COLORS, _RGB_IN_ORDER, strict=True))
"""The colour of a tinted sprite's median pixel."""

DARK = {"black": (4, 4, 8), "white": (112, 112, 120)}
LIGHT = {"black": (150, 150, 160), "white": (255, 255, 255)}
"""Darkest and lightest colour of a tint, where they are not computed from its reference."""

LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One object of a scene."""

    name: str
    color: str | None  # None: the sprite's own colours
    box: Box


@dataclass(frozen=True, slots=True)
class Sample:
    """One training example: a text, a picture that shows it, and what is in the picture."""

    text: str
    spec: Spec
    pixels: Pixels
    placed: tuple[Placed, ...]


def draw_sample(
    rng: random.Random,
    classes: Sequence[str],
    *,
    tasks: Sequence[str],
    style: Style,
    layout_share: float,
) -> Sample:
    """Draw a random spec, a layout, the scene, and a caption.

    The caption mentions the layout in `layout_share` of the cases.
    """
    task = rng.choice(tasks)
    tinted = style != "geneval" and rng.random() < 0.15
    spec = sample_spec(task, classes, rng, tinted=tinted)

    is_mentioned = rng.random() < layout_share
    is_free = not is_mentioned and len(objects(spec)) == 1
    layout: Layout = () if is_free else rng.choice(layouts(spec))

    pixels, placed = draw_scene(spec, rng, layout)
    text = caption(spec, style=style, layout=layout if is_mentioned else (), rng=rng)
    return Sample(text, spec, pixels, placed)


def draw_scene(
    spec: Spec, rng: random.Random, layout: Layout = ()
) -> tuple[Pixels, tuple[Placed, ...]]:
    """Draw a picture [48, 48, 3] of the objects of `spec`; returns them too, with tight boxes."""
    wanted = objects(spec)
    if not layout and len(wanted) > 1:
        layout = rng.choice(layouts(spec))
    picture = _Picture(rng)
    squares = place_objects(spec, layout, rng)
    for (name, color), (x, y, size) in zip(wanted, squares, strict=True):
        picture.paste(name, color, x, y, size)
    return picture.pixels, tuple(picture.placed)


def draw_clutter(
    rng: random.Random, classes: Sequence[str], *, most: int = 5
) -> tuple[Pixels, tuple[Placed, ...]]:
    """Draw a scene that no spec asks for; returns its objects too, with tight boxes.

    It has up to `most` objects of any class, colour and size, off the lattice and apart.
    """
    picture = _Picture(rng)
    squares: list[tuple[int, int, int]] = []
    for _ in range(rng.randint(0, most)):
        size = rng.choice((16, 16, 20, 20, 24, 28, 32))
        x = rng.randint(0, SIDE - size)
        y = rng.randint(0, SIDE - size)
        square = (x, y, size)
        if any(_overlap(square, other) for other in squares):
            continue
        squares.append(square)
        name = rng.choice(classes)
        color = rng.choice((None, rng.choice(COLORS)))
        picture.paste(name, color, x, y, size)
    return picture.pixels, tuple(picture.placed)


class _Picture:
    """A picture on a random flat background, and the objects that were pasted into it."""

    def __init__(self, rng: random.Random) -> None:
        self.background = rng.randrange(len(BACKGROUNDS))
        self.pixels = np.empty((SIDE, SIDE, 3), np.uint8)
        self.pixels[:] = BACKGROUNDS[self.background]
        self.placed: list[Placed] = []

    def paste(self, name: str, color: str | None, x: int, y: int, size: int) -> None:
        """Paste a sprite with its corner at (x, y)."""
        patch, (left, top, right, bottom) = patch_of(name, color, size, self.background)
        self.pixels[y : y + size, x : x + size] = patch
        box = (x + left, y + top, x + right, y + bottom)
        self.placed.append(Placed(name, color, box))


def _overlap(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Tell whether squares (x, y, size) overlap: centres nearer than half their sizes."""
    x, y, size = one
    a, b, other_size = other
    reach = size + other_size
    across = abs(2 * (x - a) + size - other_size)
    down = abs(2 * (y - b) + size - other_size)
    return across < reach and down < reach


# --- where things stand ---------------------------------------------------------------------------


def place_objects(spec: Spec, layout: Layout, rng: random.Random) -> list[tuple[int, int, int]]:
    """Choose (x, y, size) of every object; a single one may lie anywhere without a layout."""
    if not layout:
        size = rng.choice((20, 24, 28, 32))
        x = _lattice_point(rng, 0, SIDE - size)
        y = _lattice_point(rng, 0, SIDE - size)
        return [(x, y, size)]

    if len(spec["include"]) == 2:
        spots = _pair_spots(layout[0] in ("top", "left"), rng)
    else:
        spots = _half_spots(layout, rng)
    if layout[0] in ("top", "bottom"):
        return [(across, along, size) for along, across, size in spots]
    return spots


_PAIR_SIZES = ((20, 20), (24, 24), (24, 24), (20, 24), (24, 20), (20, 28), (28, 20))


def _pair_spots(first_leads: bool, rng: random.Random) -> list[tuple[int, int, int]]:
    """(along, across, size) of two objects that follow each other along an axis.

    They are nearly level across it.
    """
    near_size, far_size = rng.choice(_PAIR_SIZES)
    near = _lattice_point(rng, 0, SIDE - near_size - far_size)
    far = _lattice_point(rng, near + near_size, SIDE - far_size)
    across = _lattice_point(rng, 0, SIDE - near_size)
    level = _lattice_point(rng, max(0, across - 8), min(SIDE - far_size, across + 8))
    spots = [(near, across, near_size), (far, level, far_size)]
    return spots if first_leads else spots[::-1]


def _half_spots(layout: Layout, rng: random.Random) -> list[tuple[int, int, int]]:
    """(along, across, size) of equal objects in the two halves of an axis, each half in a row."""
    half = SIDE // 2
    places = dict.fromkeys(layout)
    most = max(layout.count(place) for place in places)
    size = rng.choice({1: (20, 24), 2: (16, 20, 24), 3: (16,)}[most])
    spots = []
    for place in places:
        start = 0 if place in ("top", "left") else half
        along = _lattice_point(rng, start, start + half - size)
        count = layout.count(place)
        slack = (SIDE - count * size) // LATTICE
        gaps = sorted(rng.randint(0, slack) for _ in range(count))
        for i, gap in enumerate(gaps):
            spots.append((along, i * size + gap * LATTICE, size))
    return spots


def _lattice_point(rng: random.Random, low: int, high: int) -> int:
    """A multiple of 4 between `low` and `high`, which are multiples of 4 themselves."""
    return LATTICE * rng.randint(low // LATTICE, high // LATTICE)


# --- sprites --------------------------------------------------------------------------------------


@cache
def patch_of(name: str, color: str | None, size: int, background: int) -> tuple[Pixels, Box]:
    """Draw a sprite over a flat background, [size, size, 3]; returns its tight box in it too."""
    rgba = sprite(name, color, size)
    alpha = rgba[..., 3:].astype(np.float32) / 255
    behind = np.asarray(BACKGROUNDS[background], np.float32)
    patch = rgba[..., :3] * alpha + behind * (1 - alpha)

    rows, columns = np.nonzero(rgba[..., 3] > 127)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    left, top, right, bottom = map(int, box)
    return np.rint(patch).astype(np.uint8), (left, top, right, bottom)


@cache
def sprite(name: str, color: str | None, size: int) -> Pixels:
    """Draw a sprite as straight RGBA [size, size, 4], in its own colours or tinted."""
    rgba = rasterise(name, size)
    if color is None:
        return rgba
    median, top = _luminance_pins(name)
    return np.dstack((tint(rgba, color, median, top), rgba[..., 3]))


@cache
def _luminance_pins(name: str) -> tuple[float, float]:
    """Median and largest luminance of a sprite.

    They are taken once, at a fine size, so that every size gets the same tint.
    """
    rgba = rasterise(name, 4 * SIDE)
    solid = (rgba[..., :3] @ LUMINANCE)[rgba[..., 3] > 127]
    median = np.median(solid)
    return float(median), float(max(solid.max(), median + 1))


@cache
def rasterise(name: str, size: int) -> Pixels:
    """Render a sprite's SVG as RGBA [size, size, 4], in its own colours."""
    import resvg_py
    from PIL import Image

    folder = resources.files("harness.models.pictogram") / "sprites"
    svg = (folder / f"{name.replace(' ', '_')}.svg").read_text()
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def tint(rgba: Pixels, color: str, median: float, top: float) -> Pixels:
    """Map a sprite's luminance onto a ramp from dark over the reference colour to light.

    Its median luminance becomes the reference, `top` the lightest. (Pinning both extremes instead
    turns a red apple maroon.)
    """
    luminance = rgba[..., :3] @ LUMINANCE
    reference = np.asarray(REFERENCE_RGB[color], np.float64)
    dark = np.asarray(DARK.get(color, reference * 0.35))
    light = np.asarray(LIGHT.get(color, reference + 0.7 * (255 - reference)))
    below = np.clip(luminance / median, 0, 1)[..., None]
    above = np.clip((luminance - median) / (top - median), 0, 1)[..., None]
    ramp = dark + (reference - dark) * below + (light - reference) * above
    return np.clip(np.rint(ramp), 0, 255).astype(np.uint8)
