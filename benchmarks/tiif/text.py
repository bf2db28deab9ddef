"""How well an image renders the words it was asked for: OCR, then GNED (lower is better) and
recall.

Words are compared in lower case. The reference reads with PaddleOCR, this with rapidocr, whose
models are PaddleOCR's PP-OCR in another format and ship in its wheel: near it, not equal to it.
Reference: eval/eval_text.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

CLOSE = 0.3
"""Largest distance at which a word read counts as a word wanted."""


class Reader(Protocol):
    """Reads the text in pictures."""

    @property
    def id(self) -> str: ...
    def read(self, image: np.ndarray) -> list[str]:
        """The lines of text in an RGB picture, uint8 [H, W, 3], as they are written; none where
        there is no text.
        """
        ...


class RapidOcr:
    """rapidocr with the models of its wheel, without the angle classifier, as the reference has
    it.
    """

    @cached_property
    def id(self) -> str:
        return f"rapidocr-{version('rapidocr')}"

    @cached_property
    def _engine(self) -> Any:
        from rapidocr import RapidOCR

        return RapidOCR(params={"Global.log_level": "error", "Global.use_cls": False})

    def read(self, image: np.ndarray) -> list[str]:
        found = self._engine(np.ascontiguousarray(image[..., ::-1]))  # it wants BGR
        return list(found.txts or ())


def read_words(lines: Sequence[str]) -> list[str]:
    """Lower-case words of OCR lines, parted at single blanks; a picture without text is one empty
    word.
    """
    return [word for line in lines or [""] for word in line.lower().split(" ")]


def gned(expected: Sequence[str], read: Sequence[str]) -> float:
    """Distance of the best pairing of words, plus one for every word without a partner, over the
    larger count.
    """
    from scipy.optimize import (
        linear_sum_assignment,  # a second of import that other benchmarks do not need
    )

    if not expected and not read:
        return 0.0
    costs = np.array([[distance(a, b) for b in expected] for a in read]).reshape(
        len(read), len(expected)
    )
    pairs = linear_sum_assignment(costs)
    return float(
        (costs[pairs].sum() + abs(len(read) - len(expected))) / max(len(read), len(expected))
    )


def recall(expected: Sequence[str], read: Sequence[str]) -> float | None:
    """Share of the expected words that find a close one, each the first unused; None where nothing
    is expected.
    """
    unused = list(read)
    served = 0
    for word in expected:
        close = next((i for i, other in enumerate(unused) if distance(word, other) <= CLOSE), None)
        if close is not None:
            del unused[close]
            served += 1
    return served / len(expected) if expected else None


def distance(a: str, b: str) -> float:
    """Levenshtein distance over the longer length, 0 to 1; two empty words are equal."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above = row[0]
        row[0] = i
        for j, y in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1] / max(len(a), len(b), 1)
