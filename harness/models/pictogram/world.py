"""The pictogram world: scenes of recoloured sprites on flat backgrounds, each a pure function of
its seed.

Objects lie on a 4-pixel lattice (one token of the tokenizer), never overlap, and obey the layout
their caption states. Sizes are pixels; boxes are (x1, y1, x2, y2) with exclusive right and bottom
edges. Only rendering sprites needs resvg.
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
from PIL import Image

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

SIDE = 48
LATTICE = 4
BACKGROUNDS = ((170, 188, 206), (206, 190, 156), (160, 186, 156), (150, 146, 160))
REFERENCE_RGB: dict[str, tuple[int, int, int]] = dict(
    zip(
        COLORS,
        (
            *((208, 34, 38), (242, 120, 22), (250, 216, 40), (40, 150, 60), (40, 90, 215)),
            *((128, 50, 175), (255, 140, 195), (122, 72, 36), (28, 28, 32), (246, 246, 246)),
        ),
        strict=True,
    )
)
DARK = {"black": (4, 4, 8), "white": (112, 112, 120)}
LUMINANCE = np.array([0.299, 0.587, 0.114])
LIGHT = {"black": (150, 150, 160), "white": (255, 255, 255)}


@dataclass(frozen=True, slots=True)
class Placed:
    """One object of a scene."""

    name: str
    color: str | None  # None: the sprite's own colours
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One training example: a text, a picture that shows what it says, and what is in the
    picture.
    """

    text: str
    spec: Spec
    pixels: Pixels
    placed: tuple[Placed, ...]


def sample(
    rng: random.Random,
    classes: Sequence[str],
    *,
    tasks: Sequence[str],
    style: Style,
    layout_share: float,
) -> Sample:
    """A random spec, a layout, the scene, and a caption that mentions the layout in `layout_share`
    of the cases.
    """
    spec = sample_spec(
        rng.choice(tasks), classes, rng, tinted=style != "geneval" and rng.random() < 0.15
    )
    named = rng.random() < layout_share
    free = not named and len(objects(spec)) == 1
    layout: Layout = () if free else rng.choice(layouts(spec))
    pixels, placed = scene(spec, rng, layout)
    return Sample(
        caption(spec, style=style, layout=layout if named else (), rng=rng), spec, pixels, placed
    )


def scene(spec: Spec, rng: random.Random, layout: Layout = ()) -> tuple[Pixels, tuple[Placed, ...]]:
    """A picture [48, 48, 3] of the objects of `spec`, and the objects with their tight boxes."""
    wanted = objects(spec)
    if not layout and len(wanted) > 1:
        layout = rng.choice(layouts(spec))
    background = rng.randrange(len(BACKGROUNDS))
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    pixels[:] = BACKGROUNDS[background]
    placed = []
    for (name, color), (x, y, size) in zip(wanted, _positions(spec, layout, rng), strict=True):
        patch, (left, top, right, bottom) = patch_of(name, color, size, background)
        pixels[y : y + size, x : x + size] = patch
        placed.append(Placed(name, color, (x + left, y + top, x + right, y + bottom)))
    return pixels, tuple(placed)


def clutter(
    rng: random.Random, classes: Sequence[str], *, most: int = 5
) -> tuple[Pixels, tuple[Placed, ...]]:
    """A scene no spec asked for: up to `most` objects of any class, colour and size, off the
    lattice, apart.
    """
    background = rng.randrange(len(BACKGROUNDS))
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    pixels[:] = BACKGROUNDS[background]
    taken: list[tuple[int, int, int]] = []
    placed = []
    for _ in range(rng.randint(0, most)):
        size = rng.choice((16, 16, 20, 20, 24, 28, 32))
        x = rng.randint(0, SIDE - size)
        y = rng.randint(0, SIDE - size)
        if any(
            abs(2 * (x - a) + size - s) < size + s and abs(2 * (y - b) + size - s) < size + s
            for a, b, s in taken
        ):
            continue
        name = rng.choice(classes)
        color = rng.choice((None, rng.choice(COLORS)))
        patch, (left, top, right, bottom) = patch_of(name, color, size, background)
        pixels[y : y + size, x : x + size] = patch
        taken.append((x, y, size))
        placed.append(Placed(name, color, (x + left, y + top, x + right, y + bottom)))
    return pixels, tuple(placed)


# --- where things stand ---------------------------------------------------------------------------


def _positions(spec: Spec, layout: Layout, rng: random.Random) -> list[tuple[int, int, int]]:
    """(x, y, size) of every object."""
    if not layout:
        size = rng.choice((20, 24, 28, 32))
        return [(_lattice(rng, 0, SIDE - size), _lattice(rng, 0, SIDE - size), size)]
    vertical = layout[0] in ("top", "bottom")
    spots = (
        _pair(layout[0] in ("top", "left"), rng)
        if len(spec["include"]) == 2
        else _split(layout, rng)
    )
    return [
        (across, along, size) if vertical else (along, across, size)
        for along, across, size in spots
    ]


def _pair(first_leads: bool, rng: random.Random) -> list[tuple[int, int, int]]:
    """(along, across, size) of two objects, one after the other along an axis and nearly level
    across it.
    """
    sizes = rng.choice(((20, 20), (24, 24), (24, 24), (20, 24), (24, 20), (20, 28), (28, 20)))
    near = _lattice(rng, 0, SIDE - sum(sizes))
    far = _lattice(rng, near + sizes[0], SIDE - sizes[1])
    across = _lattice(rng, 0, SIDE - sizes[0])
    level = _lattice(rng, max(0, across - 8), min(SIDE - sizes[1], across + 8))
    spots = [(near, across, sizes[0]), (far, level, sizes[1])]
    return spots if first_leads else spots[::-1]


def _split(layout: Layout, rng: random.Random) -> list[tuple[int, int, int]]:
    """(along, across, size) of equal objects in the two halves of an axis, those of a half in one
    row.
    """
    half = SIDE // 2
    most = max(layout.count(place) for place in set(layout))
    size = rng.choice({1: (20, 24), 2: (16, 20, 24), 3: (16,)}[most])
    spots = []
    for place in dict.fromkeys(layout):
        start = 0 if place in ("top", "left") else half
        along = _lattice(rng, start, start + half - size)
        count = layout.count(place)
        slack = (SIDE - count * size) // LATTICE
        gaps = sorted(rng.randint(0, slack) for _ in range(count))
        spots += [(along, i * size + gap * LATTICE, size) for i, gap in enumerate(gaps)]
    return spots


def _lattice(rng: random.Random, low: int, high: int) -> int:
    """A multiple of 4 between `low` and `high`, which are multiples of 4 themselves."""
    return LATTICE * rng.randint(low // LATTICE, high // LATTICE)


# --- sprites --------------------------------------------------------------------------------------


@cache
def patch_of(
    name: str, color: str | None, size: int, background: int
) -> tuple[Pixels, tuple[int, int, int, int]]:
    """A sprite composed over a flat background, [size, size, 3], and its tight box inside the
    patch.
    """
    rgba = sprite(name, color, size)
    alpha = rgba[..., 3:].astype(np.float32) / 255
    patch = rgba[..., :3] * alpha + np.asarray(BACKGROUNDS[background], np.float32) * (1 - alpha)
    ys, xs = np.nonzero(rgba[..., 3] > 127)
    return np.rint(patch).astype(np.uint8), (
        int(xs.min()),
        int(ys.min()),
        int(xs.max()) + 1,
        int(ys.max()) + 1,
    )


@cache
def sprite(name: str, color: str | None, size: int) -> Pixels:
    """A sprite as straight RGBA [size, size, 4], in its own colours or tinted."""
    rgba = rasterise(name, size)
    return rgba if color is None else np.dstack((tint(rgba, color, *_pins(name)), rgba[..., 3]))


@cache
def _pins(name: str) -> tuple[float, float]:
    """Median and largest luminance of a sprite, taken once at a fine size so that every size gets
    the same tint.
    """
    rgba = rasterise(name, 4 * SIDE)
    solid = (rgba[..., :3] @ LUMINANCE)[rgba[..., 3] > 127]
    return float(np.median(solid)), float(max(solid.max(), np.median(solid) + 1))


@cache
def rasterise(name: str, size: int) -> Pixels:
    import resvg_py

    svg = (
        resources.files("harness.models.pictogram") / "sprites" / f"{name.replace(' ', '_')}.svg"
    ).read_text()
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def tint(rgba: Pixels, color: str, median: float, top: float) -> Pixels:
    """Map luminance onto a ramp dark - reference - light, the sprite's median luminance pinned to
    the reference.

    (Pinning the extremes instead turns a red apple maroon.)
    """
    luminance = rgba[..., :3] @ LUMINANCE
    reference = np.asarray(REFERENCE_RGB[color], np.float64)
    dark = np.asarray(DARK.get(color, reference * 0.35))
    light = np.asarray(LIGHT.get(color, reference + 0.7 * (255 - reference)))
    below = np.clip(luminance / median, 0, 1)[..., None]
    above = np.clip((luminance - median) / (top - median), 0, 1)[..., None]
    ramp = dark + (reference - dark) * below + (light - reference) * above
    return np.clip(np.rint(ramp), 0, 255).astype(np.uint8)
