"""Ask about the embedded model's world, and answer with a detector.

The answers are found by reading the text of a question, nothing else. Each question that the
functions here write is understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.embedded import Detector
from benchmarks.geneval.verdict import relations
from benchmarks.images import judge_each
from benchmarks.pictogram import ColoredDetection
from harness.models.pictogram.grammar import COLORS, PLACES, RELATIONS, article, plural
from harness.records import Share

# --- questions ------------------------------------------------------------------------------------


def ask_presence(name: str, *, many: bool = False) -> str:
    """Ask whether there is a thing, or whether there are many of it."""
    if many:
        return f"Are there {plural(name)} in the image?"
    return f"Is there {article(name)} {name} in the image?"


def ask_number(name: str, count: int) -> str:
    """Ask whether there are `count` of a thing."""
    return f"Is the number of {plural(name)} {count}?"


def ask_color(name: str, color: str, *, many: bool = False) -> str:
    """Ask whether a thing has a color, or whether all things of a class have it."""
    if many:
        return f"Are the {plural(name)} {color}?"
    return f"Is the {name} {color}?"


def ask_relation(a: str, relation: str, b: str) -> str:
    """Ask whether a thing stands in a relation to another."""
    return f"Is the {a} {relation} the {b}?"


def ask_number_at(name: str, place: str, count: int) -> str:
    """Ask whether there are `count` of a thing in a half of the image."""
    return f"Is the number of {plural(name)} on the {place} {count}?"


# --- answers --------------------------------------------------------------------------------------

Answer = tuple[bool, str]
"""Yes or no, and what was seen."""
HALVES = {"left": (0, False), "right": (0, True), "top": (1, False), "bottom": (1, True)}
"""For each place the axis of a box (0 is x), and whether the place is the far half."""


@dataclass(frozen=True, slots=True)
class _Question:
    """Hold a question by its parts, and what it is about."""

    parts: Mapping[str, str]  # such as thing, color, count
    class_of: Mapping[str, str]  # the class that a word names, singular or plural
    objects: Sequence[ColoredDetection]
    image: np.ndarray

    def find(self, part: str) -> list[ColoredDetection]:
        """Select the objects of the class that a part names, the most confident first."""
        name = self.class_of[self.parts[part]]
        found = [one for one in self.objects if one.name == name]
        return sorted(found, key=lambda one: -one.score)


class DetectorVQA:
    """Answer questions with a detector: a VQA model as in benchmarks/tiif/vqa_model.py.

    Each line of a message that is a question of the functions above gets an answer. Objects count
    from a score of `threshold`. A color must be that of all objects of a class. A relation is that
    of the most confident two objects, by GenEval's rule. An object is on the top if its centre is
    in the upper half.
    """

    def __init__(self, detector: Detector, threshold: Share = 0.4) -> None:
        self._detector = detector
        self._threshold = threshold
        self.id = f"{detector.id}-eyes-{threshold}"  # as run folders have recorded it
        self.tokens: Sequence[int] = ()
        self.served: Sequence[str] = ()

        self._class_of: dict[str, str] = {}
        for name in detector.classes:
            self._class_of[name] = name
            self._class_of[plural(name)] = name
        self._kinds = _compile_kinds(self._class_of)

    def ready(self) -> None:
        """Do nothing: a detector can always be asked."""

    def reply(
        self, questions: Sequence[str], images: Sequence[np.ndarray], system: str
    ) -> list[str | None]:
        """Reply to each message about its image: a line per question, with what was seen."""
        self.tokens = [0] * len(questions)
        self.served = [self.id] * len(questions)
        detected: Sequence[Sequence[ColoredDetection] | str]
        detected = judge_each(self._detector.detect, images)
        replies: list[str | None] = []
        for message, image, objects in zip(questions, images, detected, strict=True):
            if isinstance(objects, str):
                replies.append(f"Unreadable: {objects}")
            else:
                replies.append(self._answer_message(message, image, objects))
        return replies

    def _answer_message(
        self, message: str, image: np.ndarray, objects: Sequence[ColoredDetection]
    ) -> str:
        confident = [one for one in objects if one.score > self._threshold]
        lines = []
        for line in message.splitlines():
            answer = self._answer_line(line.strip(), image, confident)
            if answer is not None:
                holds, seen = answer
                lines.append(f"{'yes' if holds else 'no'}: {seen}")
        return "\n".join(lines) or "Unknown: no question that a detector understands"

    def _answer_line(
        self, line: str, image: np.ndarray, objects: Sequence[ColoredDetection]
    ) -> Answer | None:
        """Answer a line; None if it is no question."""
        for pattern, answer in self._kinds:
            match = pattern.fullmatch(line)
            if match:
                return answer(_Question(match.groupdict(), self._class_of, objects, image))
        return None


def _compile_kinds(
    names: Iterable[str],
) -> list[tuple[re.Pattern[str], Callable[[_Question], Answer]]]:
    """Pair each kind of question with the function that answers it."""
    thing = f"(?P<thing>{_any_of(names)})"
    other = f"(?P<other>{_any_of(names)})"
    place = f"(?: on the (?P<place>{_any_of(PLACES)}))?"
    color = f"(?P<color>{_any_of(COLORS)})"
    relation = f"(?P<relation>{_any_of(RELATIONS)})"
    kinds = {
        rf"(?:Is there an?|Are there) {thing} in the image\?": _answer_presence,
        rf"Is the number of {thing}{place} (?P<count>\d+)\?": _answer_number,
        rf"(?:Is|Are) the {thing} {color}\?": _answer_color,
        rf"Is the {thing} {relation} the {other}\?": _answer_relation,
    }
    return [(re.compile(pattern), answer) for pattern, answer in kinds.items()]


def _any_of(options: Iterable[str]) -> str:
    """Write a pattern for any of these words; the longest is tried first."""
    return "|".join(sorted(map(re.escape, options), key=len, reverse=True))


def _answer_presence(question: _Question) -> Answer:
    found = question.find("thing")
    return bool(found), _list_objects(found)


def _answer_number(question: _Question) -> Answer:
    found = question.find("thing")
    place = question.parts["place"]
    if place:
        found = [one for one in found if _is_on(place, one, question.image)]
    holds = len(found) == int(question.parts["count"])
    return holds, _list_objects(found)


def _answer_color(question: _Question) -> Answer:
    found = question.find("thing")
    color = question.parts["color"]
    holds = bool(found) and all(one.color == color for one in found)
    return holds, _list_objects(found)


def _answer_relation(question: _Question) -> Answer:
    a = question.find("thing")[:1]
    b = question.find("other")[:1]
    held = relations(a[0].box, b[0].box) if a and b else []
    seen = [_list_objects(a), _list_objects(b), " and ".join(held) or "no relation"]
    return question.parts["relation"] in held, ", ".join(seen)


def _is_on(place: str, found: ColoredDetection, image: np.ndarray) -> bool:
    axis, is_far_half = HALVES[place]
    centre = (found.box[axis] + found.box[axis + 2]) / 2
    middle = image.shape[1 - axis] / 2
    return (centre >= middle) == is_far_half


def _list_objects(found: Sequence[ColoredDetection]) -> str:
    listed = [f"{one.color} {one.name} {one.score:.2f}" for one in found]
    return ", ".join(listed) or "nothing"
