"""From a judge's reply to its answers: the reference's reading, and ours, which forgives decoration
but no doubt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

READING = "fair-1"
"""Of `read_fairly`: part of a judge's id, to be raised when replies are read otherwise."""

_ANSWER = re.compile(r"(yes|no)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\W*(?:(?:question|answer|q|a)\W*)?(\d{1,3})\W+", re.IGNORECASE)
_ORNAMENT = re.compile(r"(?:(?:answer|a)\s*:|[\W_])*", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|unable to|(?:can't|can’t|cannot|can not|won't|won’t) (?:help|assist|answer|provide|view|"
    r"see|analy[sz]e|identify|process|comply|fulfil|do that)|not (?:able|allowed|comfortable))\b",
    re.IGNORECASE,
)


def read_strictly(reply: str, questions: int) -> tuple[str, ...] | None:
    """The reference's reading: lines that begin with the word yes or no are the answers, all others
    are passed over.

    None where their number is not that of the questions (eval/eval_with_gpt4o.py).
    """
    return _complete((_answer(line) for line in _lines(reply)), questions)


def read_fairly(reply: str, questions: int) -> tuple[str, ...] | None:
    """Answers of a reply that may number, bullet, quote or embolden them; None where they are not
    plainly there.

    Wherever the reference reads answers, so does this, unless numbers in the reply contradict them.
    """
    plain = read_strictly(reply, questions)
    if plain is None:
        plain = _complete(
            (_answer(_ORNAMENT.sub("", line, count=1)) for line in _lines(reply)), questions
        )
    numbered = _by_number(reply, questions)
    if plain is not None and numbered is not None and plain != numbered:
        return None
    return plain if plain is not None else numbered


def refused(reply: str) -> bool:
    """Whether a reply without answers says that there will be none."""
    return not reply.strip() or bool(_REFUSAL.search(reply))


def _by_number(reply: str, questions: int) -> tuple[str, ...] | None:
    """The answers of lines numbered 1, 2, ... to the last question; None where a number or an
    answer is amiss.
    """
    found = []
    for line in _lines(reply):
        if number := _NUMBER.match(line):
            answer = _answer(_ORNAMENT.sub("", line[number.end() :], count=1))
            found.append((int(number[1]), answer))
    if not questions or [number for number, _ in found] != list(range(1, questions + 1)):
        return None
    return _complete((answer for _, answer in found), questions)


def _lines(reply: str) -> list[str]:
    return [line for line in map(str.strip, reply.split("\n")) if line]


def _answer(line: str) -> str | None:
    begun = _ANSWER.match(line)
    return begun[1].lower() if begun else None


def _complete(answers: Iterable[str | None], questions: int) -> tuple[str, ...] | None:
    said = tuple(answer for answer in answers if answer is not None)
    return said if len(said) == questions else None
