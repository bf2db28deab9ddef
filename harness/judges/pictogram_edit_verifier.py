"""The embedded verifier of unfinished edits, for GridAR on edits (arXiv 2511.21185).

It looks at source and unfinished result with the reward's detector, and judges each strip twice:
can the instruction still be fulfilled, and is what it does not concern as it was in the source? A
strip that fails either is impossible. It answers in the words of a verifier of prompts, so that
methods read both alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from harness.engine.memory_need import takes_nothing
from harness.judges.pictogram_verifier import (
    MIDDLE,
    WRONG_COLOR_SHARE,
    WRONG_POSITION_CHANCE,
    PictogramVerifier,
    View,
    cut_visible,
    mend_lines,
)
from harness.models.pictogram import edits
from harness.models.pictogram.detector import Box, Detection, Detector
from harness.models.pictogram.edit_reading import FOUND, GONE, measure_overlap
from harness.models.pictogram.edits import Request
from harness.models.pictogram.grammar import COLORS
from harness.models.pictogram.reading import chance_of_relation
from harness.models.pictogram.world import Pixels

RULES_VERSION = "1"
"""Version of the rules below; part of the verifier's id."""
CLEARANCE = 1.0
"""Pixels by which a detected box has to cross the middle: boxes are no more exact than that."""


class PictogramEditVerifier:
    """Verify unfinished edits of the embedded editor (`harness/judges/verifier.py`).

    A strip is impossible only if it shows something that no completion can mend. Texts that are no
    instructions, and pictures without a source, get no answer.
    """

    def __init__(self, weights: str = "pictogram_16", part: str = "reward") -> None:
        self._detector, sha = Detector.load(weights, part)
        self._verifier = PictogramVerifier(weights, part)
        self.id = f"pictogram-edit-verifier-{RULES_VERSION}-{part}-{sha[:12]}"
        self.rewrite = _Rewriter(self)

    memory_need = takes_nothing  # it runs on the CPU

    def select(self, strips: int) -> _Selector:
        """Return the judge of stacks of `strips` candidates' tops."""
        return _Selector(self, strips)

    def read_views(self, tops: Sequence[Pixels]) -> list[View]:
        """Describe what each top of a picture shows."""
        return self._verifier.read_views(tops)

    def read_source(self, source: Pixels) -> list[Detection]:
        """List the objects of a source, best first."""
        (found,) = self._detector.detect([source])
        return [one for one in found if one.score > FOUND]


class _EditReader(ABC):
    """A judge that replies to each image by its instruction and source; None without them."""

    sees_source = True

    def __init__(self, verifier: PictogramEditVerifier, task: str) -> None:
        self._verifier = verifier
        self.id = f"{verifier.id}-{task}"

    def __call__(
        self,
        texts: Sequence[str],
        images: Sequence[Pixels],
        sources: Sequence[Pixels | None],
    ) -> list[str | None]:
        replies: list[str | None] = []
        for text, image, source in zip(texts, images, sources, strict=True):
            request = edits.parse(text)
            if request is None or source is None:
                replies.append(None)
                continue
            replies.append(self._reply(text, request, image, source))
        return replies

    @abstractmethod
    def _reply(self, text: str, request: Request, image: Pixels, source: Pixels) -> str:
        """Reply to one image."""


class _Selector(_EditReader):
    """A judge that answers "possible" or "impossible" for every strip of a stack."""

    def __init__(self, verifier: PictogramEditVerifier, strips: int) -> None:
        super().__init__(verifier, f"select-{strips}")
        self._strips = strips

    def _reply(self, text: str, request: Request, image: Pixels, source: Pixels) -> str:
        tops = [mend_lines(strip) for strip in np.split(image, self._strips)]
        present = self._verifier.read_source(source)
        views = self._verifier.read_views(tops)
        return ", ".join(_judge_view(request, present, view) for view in views)


class _Rewriter(_EditReader):
    """A judge that asks to finish the object that the middle of the picture cuts in two."""

    def __init__(self, verifier: PictogramEditVerifier) -> None:
        super().__init__(verifier, "rewrite")

    def _reply(self, text: str, request: Request, image: Pixels, source: Pixels) -> str:
        top = mend_lines(cut_visible(image))
        views = self._verifier.read_views([top]) if len(top) else []
        is_cut = any(view.cut for view in views)
        present = self._verifier.read_source(source)
        return _write_command(text, request, present, is_cut=is_cut)


def _write_command(
    text: str, request: Request, present: Sequence[Detection], *, is_cut: bool
) -> str:
    """Write what is left to do below the middle; the instruction itself where that is unclear."""
    if request.kind == "add":
        return f"finish the {request.name}" if is_cut else text
    if request.kind not in ("color", "replace"):
        return text
    edited = find_edited(request, present)
    if edited is None or not edited.box[1] + CLEARANCE < MIDDLE < edited.box[3] - CLEARANCE:
        return text
    return f"finish the {request.new_name or request.name}"


def find_edited(request: Request, present: Sequence[Detection]) -> Detection | None:
    """Find the object of the source that an instruction is about; an addition has none."""
    if request.kind == "add":
        return None
    return next((one for one in present if one.name == request.name), None)


# --- rules ----------------------------------------------------------------------------------------


def _judge_view(request: Request, present: Sequence[Detection], view: View) -> str:
    first_fault = next(find_faults(request, present, view), None)
    return "possible" if first_fault is None else "impossible"


def find_faults(request: Request, present: Sequence[Detection], view: View) -> Iterator[str]:
    """Yield what no completion of an unfinished edit can mend.

    `present` are the objects of the source.
    """
    edited = find_edited(request, present)
    yield from _find_unfollowed(request, edited, present, view)
    others = [one for one in present if one is not edited]
    yield from _find_lost(others, view)
    yield from _find_strangers(request, present, view)


def _find_unfollowed(
    request: Request, edited: Detection | None, present: Sequence[Detection], view: View
) -> Iterator[str]:
    """Yield finished objects that contradict the instruction."""
    if request.kind == "add":
        yield from _find_wrong_additions(request, present, view)
        return
    if edited is None or edited.box[3] > view.visible:
        return
    wanted = request.new_name if request.kind == "replace" else request.name
    for one in _stand_at(edited.box, view):
        if request.kind == "remove":
            yield f"the {one.name} is still there"
        elif one.name != wanted:
            yield f"a {one.name} where a {wanted} belongs"
        elif request.kind == "color" and _lacks_color(one, request.color):
            yield f"the {one.name} is not {request.color}"


def _find_wrong_additions(
    request: Request, present: Sequence[Detection], view: View
) -> Iterator[str]:
    anchor = next((one for one in present if one.name == request.anchor), None)
    for one in view.known:
        if one.name != request.name:
            continue
        if _lacks_color(one, request.color):
            yield f"the {one.name} is not {request.color}"
        chance = chance_of_relation(str(request.relation), one, anchor)
        if anchor is not None and chance < WRONG_POSITION_CHANCE:
            yield f"the {one.name} is not {request.relation} the {anchor.name}"


def _find_lost(others: Sequence[Detection], view: View) -> Iterator[str]:
    """Yield objects of the source that should be fully visible and are not there."""
    for other in others:
        if other.box[3] > view.visible:
            continue
        if not any(measure_overlap(patch.box, other.box) >= GONE for patch in view.patches):
            yield f"the {other.name} is gone"
        for one in _stand_at(other.box, view):
            if one.name != other.name:
                yield f"a {one.name} where the {other.name} was"


def _find_strangers(request: Request, present: Sequence[Detection], view: View) -> Iterator[str]:
    """Yield finished objects where the source has none, but for what is to be added."""
    for one in view.known:
        is_new = all(measure_overlap(one.box, other.box) < GONE for other in present)
        if is_new and not (request.kind == "add" and one.name == request.name):
            yield f"a {one.name} appears"


def _stand_at(box: Box, view: View) -> list[Detection]:
    """List the finished objects at a box."""
    return [one for one in view.known if measure_overlap(one.box, box) >= GONE]


def _lacks_color(detection: Detection, color: str | None) -> bool:
    if color is None:
        return False
    return detection.color_shares[COLORS.index(color)] < WRONG_COLOR_SHARE
