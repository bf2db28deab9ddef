"""Read yes/no answers out of a judge's reply: as the reference does, and as we do.

Our reading forgives decoration such as numbers and bullets, but no doubt about what is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

READING = "fair-1"
"""Version of `read_fairly`: part of a judge's id, to be raised when replies are read otherwise."""

_ANSWER = re.compile(r"(yes|no)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\W*(?:(?:question|answer|q|a)\W*)?(\d{1,3})\W+", re.IGNORECASE)
_ORNAMENT = re.compile(r"(?:(?:answer|a)\s*:|[\W_])*", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|unable to|"
    r"(?:can't|can’t|cannot|can not|won't|won’t) "
    r"(?:help|assist|answer|provide|view|see|analy[sz]e|identify|process|comply|fulfil|do that)|"
    r"not (?:able|allowed|comfortable))\b",
    re.IGNORECASE,
)


def read_strictly(reply: str, questions: int) -> tuple[str, ...] | None:
    """Read a reply as the reference does: the lines that begin with the word yes or no.

    All other lines are skipped. Returns None unless there are as many answers as questions
    (eval/eval_with_gpt4o.py).
    """
    answers = [_read_answer(line) for line in _split_lines(reply)]
    return _expect_all(answers, questions)


def read_fairly(reply: str, questions: int) -> tuple[str, ...] | None:
    """Read a reply whose answers may be numbered, bulleted, quoted or bold.

    Returns None if the answers are not plain. The result is the reference's wherever the reference
    reads answers, unless numbers in the reply contradict it; then it is None.
    """
    plain = read_strictly(reply, questions)
    if plain is None:
        answers = [_read_ornamented_answer(line) for line in _split_lines(reply)]
        plain = _expect_all(answers, questions)

    numbered = _read_by_number(reply, questions)
    if plain is None:
        return numbered
    if numbered is not None and plain != numbered:
        return None
    return plain


def is_refusal(reply: str) -> bool:
    """Tell whether a reply without answers is empty, or says that there will be none."""
    return not reply.strip() or bool(_REFUSAL.search(reply))


def _read_by_number(reply: str, questions: int) -> tuple[str, ...] | None:
    """Read the lines numbered 1, 2, ... up to the last question.

    Returns None if a number is missing, repeated or out of order, or if an answer is missing.
    """
    numbers = []
    answers = []
    for line in _split_lines(reply):
        if number := _NUMBER.match(line):
            numbers.append(int(number[1]))
            answers.append(_read_ornamented_answer(line[number.end() :]))
    if not questions or numbers != list(range(1, questions + 1)):
        return None
    return _expect_all(answers, questions)


def _split_lines(reply: str) -> list[str]:
    return [line for line in map(str.strip, reply.split("\n")) if line]


def _read_answer(line: str) -> str | None:
    word = _ANSWER.match(line)
    return word[1].lower() if word else None


def _read_ornamented_answer(line: str) -> str | None:
    return _read_answer(_ORNAMENT.sub("", line, count=1))


def _expect_all(answers: Iterable[str | None], questions: int) -> tuple[str, ...] | None:
    """Drop the lines without an answer; None unless one answer per question is left."""
    found = tuple(answer for answer in answers if answer is not None)
    return found if len(found) == questions else None
