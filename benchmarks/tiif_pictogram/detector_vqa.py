"""Ask about the embedded model's world, and answer with a detector.

The answers are found by reading the text of a question, nothing else. Each question that the
functions here write is understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from benchmarks.geneval.verdict import relations
from benchmarks.pictogram import ColoredDetection, Detector, detect_each
from harness.models.pictogram.grammar import COLORS, PLACES, RELATIONS, article, plural

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

Objects = Sequence[ColoredDetection]
Answer = tuple[bool, str]
"""Yes or no, and what was seen."""
AnswerKind = Callable[[Mapping[str, str], np.ndarray, Objects], Answer]
"""Answers a question given by its named parts, about an image, by the objects seen in it."""

HALVES = {"left": (0, False), "right": (0, True), "top": (1, False), "bottom": (1, True)}
"""For each place the axis of a box (0 is x), and whether the place is the far half."""


class DetectorVQA:
    """Answer questions with a detector: a VQA model as in benchmarks/tiif/vqa_model.py.

    Each line of a message that is a question of the functions above gets an answer. Objects count
    from a score of `threshold`. A color must be that of all objects of a class. A relation is that
    of the most confident two objects, by GenEval's rule. An object is on the top if its centre is
    in the upper half.
    """

    def __init__(self, detector: Detector, threshold: float = 0.4) -> None:
        self._detector = detector
        self._threshold = threshold
        self.id = f"{detector.id}-eyes-{threshold}"  # as run folders have recorded it
        self.tokens: Sequence[int] = ()
        self.served: Sequence[str] = ()

        self._class_of: dict[str, str] = {}
        for name in detector.classes:
            self._class_of[name] = name
            self._class_of[plural(name)] = name
        self._kinds = self._compile_kinds()

    def ready(self) -> None:
        """Do nothing: a detector can always be asked."""

    def reply(
        self, questions: Sequence[str], images: Sequence[np.ndarray], system: str
    ) -> list[str | None]:
        """Reply to each message about its image: a line per question, with what was seen."""
        self.tokens = [0] * len(questions)
        self.served = [self.id] * len(questions)
        detected = detect_each(self._detector, images)
        return [
            self._reply_to(message, image, objects)
            for message, image, objects in zip(questions, images, detected, strict=True)
        ]

    def _reply_to(self, message: str, image: np.ndarray, objects: Objects | str) -> str:
        if isinstance(objects, str):
            return f"Unreadable: {objects}"
        confident = [one for one in objects if one.score > self._threshold]
        lines = []
        for line in message.splitlines():
            answer = self._answer(line.strip(), image, confident)
            if answer is not None:
                holds, seen = answer
                lines.append(f"{'yes' if holds else 'no'}: {seen}")
        return "\n".join(lines) or "Unknown: no question that a detector understands"

    def _answer(self, line: str, image: np.ndarray, objects: Objects) -> Answer | None:
        """Answer a line; None if it is no question."""
        for pattern, answer in self._kinds:
            if match := pattern.fullmatch(line):
                return answer(match.groupdict(), image, objects)
        return None

    def _compile_kinds(self) -> list[tuple[re.Pattern[str], AnswerKind]]:
        """Pair each kind of question with the method that answers it."""
        names = _any_of(self._class_of)
        thing = f"(?P<thing>{names})"
        other = f"(?P<other>{names})"
        place = f"(?: on the (?P<place>{_any_of(PLACES)}))?"
        color = f"(?P<color>{_any_of(COLORS)})"
        relation = f"(?P<relation>{_any_of(RELATIONS)})"
        kinds: dict[str, AnswerKind] = {
            rf"(?:Is there an?|Are there) {thing} in the image\?": self._answer_presence,
            rf"Is the number of {thing}{place} (?P<count>\d+)\?": self._answer_number,
            rf"(?:Is|Are) the {thing} {color}\?": self._answer_color,
            rf"Is the {thing} {relation} the {other}\?": self._answer_relation,
        }
        return [(re.compile(pattern), answer) for pattern, answer in kinds.items()]

    def _answer_presence(
        self, asked: Mapping[str, str], image: np.ndarray, objects: Objects
    ) -> Answer:
        found = self._find(asked["thing"], objects)
        return bool(found), _list_objects(found)

    def _answer_number(
        self, asked: Mapping[str, str], image: np.ndarray, objects: Objects
    ) -> Answer:
        found = self._find(asked["thing"], objects)
        if asked["place"]:
            found = [one for one in found if _is_on(asked["place"], one, image)]
        return len(found) == int(asked["count"]), _list_objects(found)

    def _answer_color(
        self, asked: Mapping[str, str], image: np.ndarray, objects: Objects
    ) -> Answer:
        found = self._find(asked["thing"], objects)
        holds = bool(found) and all(one.color == asked["color"] for one in found)
        return holds, _list_objects(found)

    def _answer_relation(
        self, asked: Mapping[str, str], image: np.ndarray, objects: Objects
    ) -> Answer:
        a = self._find(asked["thing"], objects)[:1]
        b = self._find(asked["other"], objects)[:1]
        held = relations(a[0].box, b[0].box) if a and b else []
        seen = [_list_objects(a), _list_objects(b), " and ".join(held) or "no relation"]
        return asked["relation"] in held, ", ".join(seen)

    def _find(self, word: str, objects: Objects) -> list[ColoredDetection]:
        """Select the objects of the class that a word names, the most confident first."""
        found = [one for one in objects if one.name == self._class_of[word]]
        return sorted(found, key=lambda one: -one.score)


def _any_of(options: Iterable[str]) -> str:
    """Write a pattern for any of these words; the longest is tried first."""
    return "|".join(sorted(map(re.escape, options), key=len, reverse=True))


def _is_on(place: str, found: ColoredDetection, image: np.ndarray) -> bool:
    axis, is_far_half = HALVES[place]
    centre = (found.box[axis] + found.box[axis + 2]) / 2
    middle = image.shape[1 - axis] / 2
    return (centre >= middle) == is_far_half


def _list_objects(found: Objects) -> str:
    return ", ".join(f"{one.color} {one.name} {one.score:.2f}" for one in found) or "nothing"
