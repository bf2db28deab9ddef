"""Questions about the embedded model's world, and a judge that answers them by looking.

The judge reads a question's text, nothing else: every question that can be asked here, it
understands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from benchmarks.geneval.verdict import relations
from benchmarks.pictogram import Detector, Found
from harness.models.pictogram.grammar import COLORS, PLACES, RELATIONS, article, plural

# --- questions ------------------------------------------------------------------------------------


def present(name: str, *, many: bool = False) -> str:
    return (
        f"Are there {plural(name)} in the image?"
        if many
        else f"Is there {article(name)} {name} in the image?"
    )


def counted(name: str, count: int) -> str:
    return f"Is the number of {plural(name)} {count}?"


def colored(name: str, color: str, *, many: bool = False) -> str:
    return f"Are the {plural(name)} {color}?" if many else f"Is the {name} {color}?"


def related(a: str, relation: str, b: str) -> str:
    return f"Is the {a} {relation} the {b}?"


def placed(name: str, place: str, count: int) -> str:
    return f"Is the number of {plural(name)} on the {place} {count}?"


# --- answers --------------------------------------------------------------------------------------


Answer = tuple[bool, str]
"""Yes or no, and what was seen."""


class Eyes:
    """A detector as witness (benchmarks/tiif/interview.py): it answers each line that is a question
    of the above.

    Objects count from a score of `threshold`. A color is said of all objects of a class, a relation
    of the surest two, by GenEval's rule; an object is on the top if its centre is in the upper
    half.
    """

    def __init__(self, detector: Detector, threshold: float = 0.4) -> None:
        self._detector = detector
        self._threshold = threshold
        self.id = f"{detector.id}-eyes-{threshold}"
        self.tokens: Sequence[int] = ()
        self.served: Sequence[str] = ()
        self._patterns = _patterns(detector.classes)

    def ready(self) -> None:
        """It always is."""

    def reply(
        self, questions: Sequence[str], images: Sequence[np.ndarray], system: str
    ) -> list[str | None]:
        """A line for each question in each text, with what was seen as its reason."""
        self.tokens = [0] * len(questions)
        self.served = [self.id] * len(questions)
        seen = self._detect(images)
        return [
            self._reply(text, *pair)
            for text, pair in zip(questions, zip(images, seen, strict=True), strict=True)
        ]

    def _detect(self, images: Sequence[np.ndarray]) -> list[Sequence[Found] | str]:
        try:
            return list(self._detector.detect(images)) if images else []
        except ValueError as error:  # one image spoils the batch: find out which
            return (
                [str(error)] if len(images) == 1 else [self._detect([image])[0] for image in images]
            )

    def _reply(self, text: str, image: np.ndarray, seen: Sequence[Found] | str) -> str:
        if isinstance(seen, str):
            return f"Unreadable: {seen}"
        there = [one for one in seen if one.score > self._threshold]
        answers = [
            answer
            for line in text.splitlines()
            if (answer := self._answer(line.strip(), image, there))
        ]
        lines = [f"{'yes' if right else 'no'}: {why}" for right, why in answers]
        return "\n".join(lines) or "Unknown: no question that a detector understands"

    def _answer(self, line: str, image: np.ndarray, there: Sequence[Found]) -> Answer | None:
        for pattern, answer in self._patterns:
            if match := pattern.fullmatch(line):
                return answer(match.groupdict(), image, there)
        return None


def _patterns(classes: Sequence[str]) -> list[tuple[re.Pattern[str], Callable[..., Answer]]]:
    """Each kind of question, and who answers it."""
    names = {word: name for name in classes for word in (name, plural(name))}

    def named(word: str, there: Sequence[Found]) -> list[Found]:
        """Objects of a class, the surest first."""
        found = [one for one in there if one.name == names[word]]
        return sorted(found, key=lambda one: -one.score)

    def is_there(of: dict[str, str], image: np.ndarray, there: Sequence[Found]) -> Answer:
        found = named(of["x"], there)
        return bool(found), _seen(found)

    def is_number(of: dict[str, str], image: np.ndarray, there: Sequence[Found]) -> Answer:
        found = named(of["x"], there)
        if of["place"]:
            found = [one for one in found if _is_on(of["place"], one, image)]
        return len(found) == int(of["count"]), _seen(found)

    def is_colored(of: dict[str, str], image: np.ndarray, there: Sequence[Found]) -> Answer:
        found = named(of["x"], there)
        return bool(found) and all(one.color == of["color"] for one in found), _seen(found)

    def is_related(of: dict[str, str], image: np.ndarray, there: Sequence[Found]) -> Answer:
        (a, b) = (named(of[side], there)[:1] for side in "xy")
        held = relations(a[0].box, b[0].box) if a and b else []
        return of[
            "relation"
        ] in held, f"{_seen(a)}, {_seen(b)}, {' and '.join(held) or 'no relation'}"

    one = {side: f"(?P<{side}>{_any(names)})" for side in "xy"}
    kinds = {
        rf"(?:Is there an?|Are there) {one['x']} in the image\?": is_there,
        rf"Is the number of {one['x']}(?: on the (?P<place>{_any(PLACES)}))? (?P<count>\d+)\?": is_number,
        rf"(?:Is|Are) the {one['x']} (?P<color>{_any(COLORS)})\?": is_colored,
        rf"Is the {one['x']} (?P<relation>{_any(RELATIONS)}) the {one['y']}\?": is_related,
    }
    return [(re.compile(pattern), answer) for pattern, answer in kinds.items()]


def _any(options: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, options), key=len, reverse=True))


def _is_on(place: str, one: Found, image: np.ndarray) -> bool:
    axis, far = {"left": (0, False), "right": (0, True), "top": (1, False), "bottom": (1, True)}[
        place
    ]
    middle = image.shape[1 - axis] / 2
    return ((one.box[axis] + one.box[axis + 2]) / 2 >= middle) == far


def _seen(found: Sequence[Found]) -> str:
    return ", ".join(f"{one.color} {one.name} {one.score:.2f}" for one in found) or "nothing"
