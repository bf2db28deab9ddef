"""The embedded model's verifier: judges what is drawn so far with the reward's detector, and writes
layout clauses.

It answers in the words of a language model, so that methods read it the same way. What it knows of
the world: pictures are 48 pixels high, backgrounds flat, objects 16 to 32 pixels large and apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.models.pictogram.detector import Detection, Detector, color_shares, to_lab
from harness.models.pictogram.grammar import (
    COLORS,
    DEFAULT,
    Layout,
    Spec,
    layout_clause,
    layouts,
    objects,
    parse_layout,
)
from harness.models.pictogram.reading import chances
from harness.models.pictogram.world import BACKGROUNDS, LATTICE, SIDE, Pixels

RULES = "1"
"""Version of the rules below; part of the verifier's id."""
SURE = 0.5
"""Detections at least this good are objects."""
WRONG = 0.03
"""A colour whose share is smaller is another colour."""
CONTRAST = 14.0
"""Distance from the background, in Lab, at which a pixel belongs to something."""
SPECK = 25
PIECE = 60
"""Foreground pixels below which a patch is dirt, and from which a cut-off object shows its
colour.
"""
SMALLEST = 16
PER_ROW = 3
"""Side of the smallest objects, and how many of them stand in a row."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Thing:
    """A connected patch of foreground: a finished object where the detector knows it, or one that
    is still cut off.
    """

    box: Box
    area: int
    cut: bool  # it reaches the last visible row
    shares: tuple[float, ...]  # how well each of the ten colours fits
    best: Detection | None

    @property
    def known(self) -> Detection | None:
        """The finished object that this is, for sure."""
        return (
            self.best
            if self.best is not None and self.best.score >= SURE and not self.cut
            else None
        )


@dataclass(frozen=True, slots=True)
class View:
    """What the visible top of a picture shows."""

    visible: int  # rows
    things: tuple[Thing, ...]

    @property
    def known(self) -> list[Detection]:
        return [thing.known for thing in self.things if thing.known is not None]

    @property
    def cut(self) -> list[Thing]:
        return [thing for thing in self.things if thing.cut]


class PictogramVerifier:
    """Verifier (harness/judges/verifier.py) of partial pictures of the embedded model.

    A candidate is impossible only when something that cannot be mended is seen; every other is
    possible. Texts outside the grammar get no answer.
    """

    def __init__(self, weights: str = DEFAULT, part: str = "reward") -> None:
        self._detector, sha = Detector.load(weights, part)
        self.id = f"pictogram-verifier-{RULES}-{part}-{sha[:12]}"
        self.rewrite = _Rewriter(self)

    def select(self, strips: int) -> _Selector:
        return _Selector(self, strips)

    def views(self, tops: Sequence[Pixels]) -> list[View]:
        """What each top of a picture (uint8 [rows, 48, 3]) shows."""
        filled = [_filled(top) for top in tops]
        found = self._detector.detect([pixels for pixels, _ in filled])
        return [
            View(len(top), tuple(_things(pixels, background, len(top), detections)))
            for top, (pixels, background), detections in zip(tops, filled, found, strict=True)
        ]


class _Selector:
    """Judges every strip of a stack of tops."""

    def __init__(self, verifier: PictogramVerifier, strips: int) -> None:
        self._verifier = verifier
        self._strips = strips
        self.id = f"{verifier.id}-select-{strips}"

    def __call__(self, texts: Sequence[str], images: Sequence[Pixels]) -> list[str | None]:
        tops = [_without_lines(top) for image in images for top in np.split(image, self._strips)]
        views = iter(self._verifier.views(tops))
        return [self._reply(text, [next(views) for _ in range(self._strips)]) for text in texts]

    def _reply(self, text: str, views: Sequence[View]) -> str | None:
        parsed = parse_layout(text)
        if parsed is None:
            return None
        return ", ".join(
            "impossible" if next(faults(parsed[0], view), None) else "possible" for view in views
        )


class _Rewriter:
    """Appends the layout that a partial picture already commits to."""

    def __init__(self, verifier: PictogramVerifier) -> None:
        self._verifier = verifier
        self.id = f"{verifier.id}-rewrite"

    def __call__(self, texts: Sequence[str], images: Sequence[Pixels]) -> list[str | None]:
        tops = [_without_lines(_visible(image)) for image in images]
        seen = iter(self._verifier.views([top for top in tops if len(top)]))
        views = [next(seen) if len(top) else View(0, ()) for top in tops]
        return [self._reply(text, view) for text, view in zip(texts, views, strict=True)]

    def _reply(self, text: str, view: View) -> str | None:
        parsed = parse_layout(text)
        if parsed is None:
            return None
        spec, stated = parsed
        return text if stated else text + layout_clause(spec, layout_of(spec, view))


# --- from pixels to things ------------------------------------------------------------------------


def _visible(image: Pixels) -> Pixels:
    """The rows above the black part of a picture."""
    lit = np.flatnonzero(image.any((1, 2)))
    return image[: lit[-1] + 1] if len(lit) else image[:0]


def _without_lines(top: Pixels) -> Pixels:
    """A strip whose black rows, left by dividing lines, are mended from the nearest row."""
    lit = np.flatnonzero(top.any((1, 2)))
    if not len(lit):
        return top
    nearest = lit[np.abs(np.arange(len(top))[:, None] - lit).argmin(1)]
    return top[nearest]


def _filled(top: Pixels) -> tuple[Pixels, np.ndarray]:
    """A whole picture with plain background below the visible rows, and the background in Lab."""
    lab = to_lab(top.astype(np.float64))
    references = to_lab(np.array(BACKGROUNDS, np.float64))
    near = (np.linalg.norm(lab[None] - references[:, None, None], axis=-1) < CONTRAST).sum((1, 2))
    kind = int(near.argmax())
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    picture[:] = BACKGROUNDS[kind]
    picture[: len(top)] = top
    return picture, references[kind]


def _things(
    pixels: Pixels, background: np.ndarray, visible: int, detections: Sequence[Detection]
) -> Iterator[Thing]:
    """Connected patches of the visible foreground with the best detection that lies on each."""
    from scipy import ndimage

    lab = to_lab(pixels.astype(np.float64))
    foreground = np.linalg.norm(lab - background, axis=-1) > CONTRAST
    foreground[visible:] = False
    label, _ = ndimage.label(foreground, structure=np.ones((3, 3)))
    for number, (rows, columns) in enumerate(ndimage.find_objects(label), start=1):
        mine = label == number
        area = int(mine.sum())
        if area < SPECK:
            continue
        box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        on_it = [one for one in detections if _overlap(one.box, box) > 0.5]
        yield Thing(
            box,
            area,
            cut=bool(mine[visible - 1].any()) and visible < SIDE,
            shares=tuple(map(float, color_shares(lab, box, background))),
            best=max(on_it, key=lambda one: one.score, default=None),
        )


def _overlap(one: Box, other: Box) -> float:
    """Shared area over the smaller box's."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(0.0, width) * max(0.0, height) / max(1.0, smaller)


# --- what cannot be mended ------------------------------------------------------------------------


def faults(spec: Spec, view: View) -> Iterator[str]:
    """Reasons why no completion of a view can show what a spec asks for."""
    wanted = objects(spec)
    names = {name for name, _ in wanted}
    if len(wanted) > len(spec["include"]) and len(view.things) > len(wanted):
        yield "too many objects"
    for one in view.known:
        if one.name not in names:
            yield f"a {one.name} that was not asked for"
    yield from _wrong_colors(spec, view)
    if _missing(wanted, view) > len(view.cut) + max(0, len(wanted) - len(view.things)):
        yield "something else stands in the place of what is missing"
    yield from _wrong_places(spec, view)
    rows_left = (
        SIDE - view.visible + LATTICE
    ) // SMALLEST  # an object may begin unseen in the last row of tokens
    if len(wanted) - len(view.things) > PER_ROW * rows_left:
        yield "no room for the rest"


def _missing(wanted: Sequence[tuple[str, str | None]], view: View) -> int:
    """How many of the wanted objects no finished thing is. Things never outnumber what was asked
    for, so each finished one that is something else leaves an object without a place."""
    missing = [name for name, _ in wanted]
    for one in view.known:
        if one.name in missing:
            missing.remove(one.name)
    return len(missing)


def _wrong_colors(spec: Spec, view: View) -> Iterator[str]:
    colors = {clause["class"]: clause["color"] for clause in spec["include"] if "color" in clause}
    for one in view.known:
        if one.name in colors and one.color_shares[COLORS.index(colors[one.name])] < WRONG:
            yield f"a {one.color} {one.name}"
    for thing in view.cut:
        if (
            colors
            and thing.area >= PIECE
            and sum(thing.shares[COLORS.index(color)] for color in colors.values()) < WRONG
        ):
            yield "a wrong colour"


def _wrong_places(spec: Spec, view: View) -> Iterator[str]:
    """A position that is already decided against the prompt, or for which no place is left."""
    position = spec["include"][-1].get("position")
    if position is None:
        return
    (target, placed) = [clause["class"] for clause in spec["include"]]
    relation = str(position[0])
    seen = {one.name: one for one in view.known}
    if target in seen and placed in seen:
        if chances(spec, view.known)[-1] < 0.1:
            yield "the wrong way round"
        return
    if relation in ("above", "below"):
        lower = target if relation == "above" else placed
        if lower in seen:
            yield f"nothing can come above the {lower} any more"
        elif not view.things and view.visible >= SIDE // 2:
            yield "no room for one above the other"
        return
    left, right = (placed, target) if relation == "left of" else (target, placed)
    if left in seen and seen[left].box[0] > SIDE - 2 * SMALLEST:
        yield f"no room on the right of the {left}"
    if right in seen and seen[right].box[2] < 2 * SMALLEST:
        yield f"no room on the left of the {right}"


# --- what a view commits to -----------------------------------------------------------------------


def layout_of(spec: Spec, view: View) -> Layout:
    """The layout clause's places that fit a view; empty where it says nothing for sure."""
    allowed = layouts(spec)
    wanted = objects(spec)
    if len(spec["include"]) == 2:
        guess = allowed[0] if len(allowed) == 1 else _pair(spec, view)
    elif view.visible < SIDE // 2 or any(thing.box[1] < view.visible - 6 for thing in view.cut):
        guess = ()  # too early, or an object lies across the middle
    else:
        above = len(view.things) - len(view.cut)
        guess = ("top",) * above + ("bottom",) * (len(wanted) - above)
        if len(wanted) == 1 and above:
            guess = ()  # all there is can be seen
    return guess if guess in allowed else ()


def _pair(spec: Spec, view: View) -> Layout:
    """Where two objects stand to each other, as soon as one of them is recognised."""
    names = [clause["class"] for clause in spec["include"]]
    seen = [thing for thing in view.things if thing.known is not None and thing.known.name in names]
    if not seen or len(view.things) > 2:
        return ()
    first = seen[0]
    other = next((thing for thing in view.things if thing is not first), None)
    which = names.index(first.known.name) if first.known is not None else 0
    if other is None:
        if first.box[3] > view.visible or view.visible < SIDE // 2:
            return ()
        places = ("top", "bottom")
    else:
        across = (first.box[0] + first.box[2] - other.box[0] - other.box[2]) / 2
        along = (first.box[1] + first.box[3] - other.box[1] - other.box[3]) / 2
        if other.cut:
            along = min(along, first.box[1] - other.box[1])  # its middle will lie lower
        if abs(across) > abs(along):
            places = ("left", "right") if across < 0 else ("right", "left")
        else:
            places = ("top", "bottom") if along < 0 else ("bottom", "top")
    return places if which == 0 else places[::-1]
