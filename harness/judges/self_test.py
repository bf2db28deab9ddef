"""Test a vision-language model before a run: two pictures whose answers are known.

A model that is mute, deaf to the pictures (always yes, always no) or unreadable is found before
anything is drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from harness.engine.rendering import Image
from harness.judges.replies import yes_or_no
from harness.records import Answer, UserError, one_line

log = logging.getLogger("harness")

QUESTION = "Is this picture red? Answer yes or no, without an explanation."
SIDE = 224
"""Pixels of a picture's side: no vision model finds that too small."""
RED = (220, 20, 20)
BLUE = (20, 20, 220)

Ask = Callable[[Sequence[str], Sequence[Image]], Sequence[Answer]]


def expect_sight(name: str, ask: Ask) -> None:
    """Ask whether a plain red and a plain blue picture are red, in words or for P(yes).

    Raises UserError, naming what was answered, unless the answers are yes and no.
    """
    log.info("%s: asked two test questions (chat.self_test=false leaves them out)", name)
    pictures = [np.full((SIDE, SIDE, 3), color, np.uint8) for color in (RED, BLUE)]
    red, blue = ask([QUESTION, QUESTION], pictures)
    verdicts = [_read_verdict(red), _read_verdict(blue)]
    if verdicts == [True, False]:
        return
    raise UserError(
        f"{name} {_name_trouble(red, blue)}: asked whether a plain red picture is red, "
        f"{_describe(red)}; of a plain blue one, {_describe(blue)}: mend it, or leave the test out "
        "with the chat's self_test=false"
    )


def _read_verdict(answer: Answer) -> bool | None:
    """Read a probability of yes, or words; None if there is no answer."""
    if not answer.answered:
        return None
    return yes_or_no(answer.value) if isinstance(answer.value, str) else answer.value > 0.5


def _name_trouble(red: Answer, blue: Answer) -> str:
    verdicts = {_read_verdict(red), _read_verdict(blue)}
    if "unreachable" in (red.kind, blue.kind):
        return "does not answer"
    if "refused" in (red.kind, blue.kind):
        return "refuses to answer"
    if None in verdicts:
        return "cannot be read"
    if len(verdicts) == 1:
        return f"says {'yes' if True in verdicts else 'no'} to every picture"
    return "sees the wrong picture"


def _describe(answer: Answer) -> str:
    if not answer.answered:
        return f"it was {answer.problem}"
    if isinstance(answer.value, str):
        return f"it said {one_line(answer.value)[:80]!r}"
    return f"it said {one_line(answer.text)[:80]!r}, P(yes) = {answer.value:.3f}"
