"""The embedded model's verifier of unfinished pictures.

It looks at what is drawn so far with the reward's detector, tells whether the picture can still
become what was asked for, and writes layout clauses. It answers in the words of a language model,
so that methods read both alike. It knows the world: pictures are 48 pixels high, backgrounds are
flat, and objects are 16 to 32 pixels large and do not touch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.engine.memory_need import takes_nothing
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

RULES_VERSION = "1"
"""Version of the rules below; part of the verifier's id."""
SURE_SCORE = 0.5
"""Detections with at least this score are objects."""
WRONG_COLOR_SHARE = 0.03
"""An object is of another colour if the share of the asked one is smaller."""
WRONG_POSITION_CHANCE = 0.1
"""Two objects are the wrong way round if the chance of their relation is smaller."""
FOREGROUND_DISTANCE = 14.0
"""Distance from the background, in Lab, above which a pixel belongs to an object."""
DIRT_PIXELS = 25
"""A patch of fewer foreground pixels is dirt."""
COLORED_PIXELS = 60
"""A cut-off object of at least so many foreground pixels shows its colour."""
SMALLEST_SIDE = 16
"""Side of the smallest objects, in pixels."""
OBJECTS_PER_ROW = 3
"""How many of the smallest objects stand side by side."""
EDGE_ROWS = 6
"""An object that is cut off begins in the lower half if no more of its rows can be seen."""
MIDDLE = SIDE // 2
"""The first row of the lower half."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels; right and bottom are exclusive."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A connected patch of foreground: an object that is finished, or cut off."""

    box: Box
    area: int  # foreground pixels
    cut: bool  # it reaches the last visible row
    shares: tuple[float, ...]  # how well each of the ten colours fits
    best: Detection | None  # the best detection that lies on it

    @property
    def known(self) -> Detection | None:
        """Return the finished object that this is; None if that is not sure."""
        if self.cut or self.best is None or self.best.score < SURE_SCORE:
            return None
        return self.best


@dataclass(frozen=True, slots=True)
class View:
    """What the visible top of a picture shows."""

    visible: int  # rows
    patches: tuple[Patch, ...]

    @property
    def known(self) -> list[Detection]:
        """List the finished objects that are recognised."""
        found = (patch.known for patch in self.patches)
        return [detection for detection in found if detection is not None]

    @property
    def cut(self) -> list[Patch]:
        """List the objects that are cut off at the last visible row."""
        return [patch for patch in self.patches if patch.cut]


class PictogramVerifier:
    """Verify unfinished pictures of the embedded model (harness/judges/verifier.py).

    A candidate is impossible only if it shows something that no completion can mend; every other is
    possible. Texts outside the grammar get no answer.
    """

    def __init__(self, weights: str = DEFAULT, part: str = "reward") -> None:
        self._detector, sha = Detector.load(weights, part)
        self.id = f"pictogram-verifier-{RULES_VERSION}-{part}-{sha[:12]}"
        self.rewrite = _Rewriter(self)

    memory_need = takes_nothing  # it runs on the CPU

    def select(self, strips: int) -> _Selector:
        """Return the judge of stacks of `strips` candidates' tops."""
        return _Selector(self, strips)

    def read_views(self, tops: Sequence[Pixels]) -> list[View]:
        """Describe what each top of a picture (uint8 [rows, 48, 3]) shows."""
        completed = [_complete_top(top) for top in tops]
        found = self._detector.detect([picture for picture, _ in completed])
        views = []
        for top, (picture, background), detections in zip(tops, completed, found, strict=True):
            patches = _find_patches(picture, background, len(top), detections)
            views.append(View(len(top), tuple(patches)))
        return views


class _Selector:
    """A judge that answers "possible" or "impossible" for every strip of a stack."""

    def __init__(self, verifier: PictogramVerifier, strips: int) -> None:
        self._verifier = verifier
        self._strips = strips
        self.id = f"{verifier.id}-select-{strips}"

    def __call__(self, texts: Sequence[str], images: Sequence[Pixels]) -> list[str | None]:
        tops: list[Pixels] = []
        for image in images:
            strips = np.split(image, self._strips)
            tops += [mend_lines(strip) for strip in strips]
        views = self._verifier.read_views(tops)

        replies = []
        for i, text in enumerate(texts):
            first = i * self._strips
            stack = views[first : first + self._strips]
            replies.append(self._reply(text, stack))
        return replies

    def _reply(self, text: str, views: Sequence[View]) -> str | None:
        parsed = parse_layout(text)
        if parsed is None:
            return None
        spec, _ = parsed
        return ", ".join(_judge_view(spec, view) for view in views)


def _judge_view(spec: Spec, view: View) -> str:
    first_fault = next(find_faults(spec, view), None)
    return "possible" if first_fault is None else "impossible"


class _Rewriter:
    """A judge that appends the layout which a picture's top already commits to."""

    def __init__(self, verifier: PictogramVerifier) -> None:
        self._verifier = verifier
        self.id = f"{verifier.id}-rewrite"

    def __call__(self, texts: Sequence[str], images: Sequence[Pixels]) -> list[str | None]:
        tops = [mend_lines(cut_visible(image)) for image in images]
        views = self._read_views(tops)
        return [self._reply(text, view) for text, view in zip(texts, views, strict=True)]

    def _read_views(self, tops: Sequence[Pixels]) -> list[View]:
        """Describe tops; one without rows shows nothing."""
        views = [View(0, ())] * len(tops)
        begun = [i for i, top in enumerate(tops) if len(top)]
        found = self._verifier.read_views([tops[i] for i in begun])
        for i, view in zip(begun, found, strict=True):
            views[i] = view
        return views

    def _reply(self, text: str, view: View) -> str | None:
        parsed = parse_layout(text)
        if parsed is None:
            return None
        spec, stated = parsed
        if stated:
            return text
        return text + layout_clause(spec, infer_layout(spec, view))


# --- from pixels to patches -----------------------------------------------------------------------


def cut_visible(image: Pixels) -> Pixels:
    """Return the rows above the black part of a picture."""
    lit = np.flatnonzero(image.any((1, 2)))
    rows = lit[-1] + 1 if len(lit) else 0
    return image[:rows]


def mend_lines(top: Pixels) -> Pixels:
    """Replace black rows, which dividing lines leave, by the nearest other row."""
    lit = np.flatnonzero(top.any((1, 2)))
    if not len(lit):
        return top
    rows = np.arange(len(top))
    distance = np.abs(rows[:, None] - lit)
    return top[lit[distance.argmin(1)]]


def _complete_top(top: Pixels) -> tuple[Pixels, np.ndarray]:
    """Complete a picture with plain background; also return the background in Lab."""
    lab = to_lab(top.astype(np.float64))
    backgrounds = to_lab(np.array(BACKGROUNDS, np.float64))
    distance = np.linalg.norm(lab[None] - backgrounds[:, None, None], axis=-1)
    matching_pixels = (distance < FOREGROUND_DISTANCE).sum((1, 2))
    kind = int(matching_pixels.argmax())

    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    picture[:] = BACKGROUNDS[kind]
    picture[: len(top)] = top
    return picture, backgrounds[kind]


def _find_patches(
    pixels: Pixels, background: np.ndarray, visible: int, detections: Sequence[Detection]
) -> Iterator[Patch]:
    """Find the connected patches of the visible foreground."""
    from scipy import ndimage

    # 1. Foreground is what differs from the background in the visible rows.
    lab = to_lab(pixels.astype(np.float64))
    foreground = np.linalg.norm(lab - background, axis=-1) > FOREGROUND_DISTANCE
    foreground[visible:] = False

    # 2. Pixels that touch, at corners too, are one patch.
    label, _ = ndimage.label(foreground, structure=np.ones((3, 3)))
    for number, (rows, columns) in enumerate(ndimage.find_objects(label), start=1):
        mask = label == number
        area = int(mask.sum())
        if area < DIRT_PIXELS:
            continue
        box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        reaches_end = bool(mask[visible - 1].any())
        shares = color_shares(lab, box, background)
        yield Patch(
            box,
            area,
            cut=reaches_end and visible < SIDE,
            shares=tuple(float(share) for share in shares),
            best=_choose_detection(detections, box),
        )


def _choose_detection(detections: Sequence[Detection], box: Box) -> Detection | None:
    """Choose the best detection of those that overlap a box by more than half."""
    overlapping = [one for one in detections if _overlap_boxes(one.box, box) > 0.5]
    return max(overlapping, key=lambda one: one.score, default=None)


def _overlap_boxes(one: Box, other: Box) -> float:
    """Return the area that two boxes share, over that of the smaller one."""
    left, top, right, bottom = one
    other_left, other_top, other_right, other_bottom = other
    width = min(right, other_right) - max(left, other_left)
    height = min(bottom, other_bottom) - max(top, other_top)
    smaller = min(_measure_area(one), _measure_area(other))
    return max(0.0, width) * max(0.0, height) / max(1.0, smaller)


def _measure_area(box: Box) -> float:
    left, top, right, bottom = box
    return (right - left) * (bottom - top)


# --- what cannot be mended ------------------------------------------------------------------------


def find_faults(spec: Spec, view: View) -> Iterator[str]:
    """Tell why no completion of a view can show what a spec asks for, rule by rule."""
    for rule in FAULT_RULES:
        yield from rule(spec, view)


def _find_surplus(spec: Spec, view: View) -> Iterator[str]:
    """More objects than were asked for, where their number was stated."""
    wanted = objects(spec)
    counted = len(wanted) > len(spec["include"])
    if counted and len(view.patches) > len(wanted):
        yield "too many objects"


def _find_strangers(spec: Spec, view: View) -> Iterator[str]:
    """Objects of classes that were not asked for."""
    names = {name for name, _ in objects(spec)}
    for one in view.known:
        if one.name not in names:
            yield f"a {one.name} that was not asked for"


def _find_wrong_colors(spec: Spec, view: View) -> Iterator[str]:
    """Objects of a wrong colour; cut-off ones may be any of those asked for."""
    colors: dict[str, str] = {}
    for clause in spec["include"]:
        if "color" in clause:
            colors[clause["class"]] = clause["color"]
    for one in view.known:
        color = colors.get(one.name)
        if color is None:
            continue
        share = one.color_shares[COLORS.index(color)]
        if share < WRONG_COLOR_SHARE:
            yield f"a {one.color} {one.name}"

    if not colors:
        return
    asked = [COLORS.index(color) for color in colors.values()]
    for patch in view.cut:
        share = sum(patch.shares[index] for index in asked)
        if patch.area >= COLORED_PIXELS and share < WRONG_COLOR_SHARE:
            yield "a wrong colour"


def _find_displaced(spec: Spec, view: View) -> Iterator[str]:
    """Objects for which finished patches of other classes leave no place.

    An object that is missing can become a cut-off patch, or be drawn where patches are still to
    come; there are never more patches than objects that were asked for.
    """
    wanted = objects(spec)
    missing = [name for name, _ in wanted]
    for one in view.known:
        if one.name in missing:
            missing.remove(one.name)

    still_to_come = max(0, len(wanted) - len(view.patches))
    if len(missing) > len(view.cut) + still_to_come:
        yield "something else stands in the place of what is missing"


def _find_wrong_places(spec: Spec, view: View) -> Iterator[str]:
    """A relation that is decided against the prompt already, or cannot be fulfilled any more."""
    position = spec["include"][-1].get("position")
    if position is None:
        return
    relation = str(position[0])
    target, placed = [clause["class"] for clause in spec["include"]]
    seen = {one.name: one for one in view.known}

    if target in seen and placed in seen:
        if chances(spec, view.known)[-1] < WRONG_POSITION_CHANCE:
            yield "the wrong way round"
    elif relation == "above":
        yield from _find_blocked_above(target, seen, view)
    elif relation == "below":
        yield from _find_blocked_above(placed, seen, view)
    elif relation == "left of":
        yield from _find_blocked_beside(placed, target, seen)
    else:
        yield from _find_blocked_beside(target, placed, seen)


def _find_blocked_above(lower: str, seen: dict[str, Detection], view: View) -> Iterator[str]:
    """No place for an object above `lower`: pictures are drawn from top to bottom."""
    if lower in seen:
        yield f"nothing can come above the {lower} any more"
    elif not view.patches and view.visible >= MIDDLE:
        yield "no room for one above the other"


def _find_blocked_beside(left: str, right: str, seen: dict[str, Detection]) -> Iterator[str]:
    """No place for one of two objects beside the other."""
    needed = 2 * SMALLEST_SIDE
    if left in seen:
        left_edge, _, _, _ = seen[left].box
        if left_edge > SIDE - needed:
            yield f"no room on the right of the {left}"
    if right in seen:
        _, _, right_edge, _ = seen[right].box
        if right_edge < needed:
            yield f"no room on the left of the {right}"


def _find_crowding(spec: Spec, view: View) -> Iterator[str]:
    """More objects still to come than fit into the rows below."""
    # An object may begin unseen in the last visible row of tokens.
    free_pixels = SIDE - view.visible + LATTICE
    free_rows = free_pixels // SMALLEST_SIDE
    still_to_come = len(objects(spec)) - len(view.patches)
    if still_to_come > OBJECTS_PER_ROW * free_rows:
        yield "no room for the rest"


FaultRule = Callable[[Spec, View], Iterator[str]]
FAULT_RULES: tuple[FaultRule, ...] = (
    _find_surplus,
    _find_strangers,
    _find_wrong_colors,
    _find_displaced,
    _find_wrong_places,
    _find_crowding,
)
"""The rules, in the order in which their faults are told."""


# --- what a view commits to -----------------------------------------------------------------------


def infer_layout(spec: Spec, view: View) -> Layout:
    """Infer the places of a layout clause that fit a view; empty if nothing is sure."""
    allowed = layouts(spec)
    if len(spec["include"]) == 2:
        layout = allowed[0] if len(allowed) == 1 else _infer_pair(spec, view)
    else:
        layout = _infer_halves(spec, view)
    return layout if layout in allowed else ()


def _infer_halves(spec: Spec, view: View) -> Layout:
    """Infer which of several objects of one class stand in the upper half."""
    # 1. It is too early, or an object lies across the middle.
    if view.visible < MIDDLE:
        return ()
    if any(patch.box[1] < view.visible - EDGE_ROWS for patch in view.cut):
        return ()

    # 2. Finished objects are in the upper half, all others in the lower one.
    wanted = len(objects(spec))
    above = len(view.patches) - len(view.cut)
    if wanted == 1 and above:
        return ()  # all there is can be seen
    return ("top",) * above + ("bottom",) * (wanted - above)


def _infer_pair(spec: Spec, view: View) -> Layout:
    """Infer how two objects stand to each other, as soon as one of them is recognised."""
    names = [clause["class"] for clause in spec["include"]]
    if len(view.patches) > 2:
        return ()

    # 1. Find a patch that is one of the two objects.
    recognised = []
    for patch in view.patches:
        if patch.known is not None and patch.known.name in names:
            recognised.append((patch, names.index(patch.known.name)))
    if not recognised:
        return ()
    first, index = recognised[0]

    # 2. Place it relative to the other patch, or to the empty part of the picture.
    other = next((patch for patch in view.patches if patch is not first), None)
    places = _place_alone(first, view) if other is None else _compare_places(first, other)

    # 3. Turn the places into the order of the text.
    return places if index == 0 else places[::-1]


def _place_alone(patch: Patch, view: View) -> Layout:
    """Return the places of the only patch and of what is not drawn yet."""
    too_early = view.visible < MIDDLE
    if patch.box[3] > view.visible or too_early:
        return ()
    return ("top", "bottom")


def _compare_places(first: Patch, other: Patch) -> Layout:
    """Return the places of two patches, along the axis on which they are further apart."""
    left, top, right, bottom = first.box
    other_left, other_top, other_right, other_bottom = other.box
    across = (left + right - other_left - other_right) / 2
    along = (top + bottom - other_top - other_bottom) / 2
    if other.cut:
        along = min(along, top - other_top)  # the other's middle will lie lower
    if abs(across) > abs(along):
        return ("left", "right") if across < 0 else ("right", "left")
    return ("top", "bottom") if along < 0 else ("bottom", "top")
