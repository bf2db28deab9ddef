"""Measure how well an image renders the words it was asked for: OCR, then GNED and recall.

GNED is a distance: lower is better. Words are compared in lower case. The reference reads with
PaddleOCR, this with rapidocr, whose models are PaddleOCR's PP-OCR in another format and ship in its
wheel: close to the reference, not equal. Reference: eval/eval_text.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from benchmarks.optional import require

CLOSE = 0.3
"""Largest distance at which a word that was read counts as a word that is wanted."""


class Reader(Protocol):
    """Reads the text in pictures."""

    @property
    def id(self) -> str: ...
    def read(self, image: np.ndarray) -> list[str]:
        """Read the lines of text in an RGB picture, uint8 [H, W, 3]; none where there is no text.

        Letters keep their case.
        """
        ...


class RapidOcr:
    """Read text with rapidocr and the models of its wheel.

    As in the reference, the angle classifier is off.
    """

    def ready(self) -> None:
        """Raise UserError if rapidocr is not installed."""
        for package in ("rapidocr", "onnxruntime"):
            require(package, extra="tiif")

    @cached_property
    def id(self) -> str:
        return f"rapidocr-{version('rapidocr')}"

    @cached_property
    def _engine(self) -> Any:
        self.ready()
        from rapidocr import RapidOCR

        return RapidOCR(params={"Global.log_level": "error", "Global.use_cls": False})

    def read(self, image: np.ndarray) -> list[str]:
        """Read the lines of text in an RGB picture, uint8 [H, W, 3]."""
        found = self._engine(np.ascontiguousarray(image[..., ::-1]))  # rapidocr expects BGR
        return list(found.txts or ())


def read_words(lines: Sequence[str]) -> list[str]:
    """Split OCR lines into lower-case words at single blanks.

    A picture without text gives one empty word.
    """
    return [word for line in lines or [""] for word in line.lower().split(" ")]


def gned(expected: Sequence[str], read: Sequence[str]) -> float:
    """Compute the global normalised edit distance of the words read from those expected, 0 to 1.

    It is the sum of the distances in the best pairing of words, plus one for every word without a
    partner, over the larger number of words.
    """
    # Importing scipy takes a second, which other benchmarks do not need.
    from scipy.optimize import linear_sum_assignment

    if not expected and not read:
        return 0.0
    costs = np.zeros((len(read), len(expected)))
    for i, word in enumerate(read):
        for j, wanted in enumerate(expected):
            costs[i, j] = distance(word, wanted)

    paired = costs[linear_sum_assignment(costs)].sum()
    unpaired = abs(len(read) - len(expected))
    return float((paired + unpaired) / max(len(read), len(expected)))


def recall(expected: Sequence[str], read: Sequence[str]) -> float | None:
    """Compute the share of the expected words for which a close word was read.

    Each expected word takes the first close word that is unused. None where nothing is expected.
    """
    unused = list(read)
    found = 0
    for word in expected:
        matches = (i for i, other in enumerate(unused) if distance(word, other) <= CLOSE)
        first = next(matches, None)
        if first is not None:
            del unused[first]
            found += 1
    return found / len(expected) if expected else None


def distance(a: str, b: str) -> float:
    """Divide the Levenshtein distance by the longer length: 0 to 1, 0 for two empty words."""
    edits = list(range(len(b) + 1))  # from the first i letters of a to each beginning of b
    for i, letter_a in enumerate(a, start=1):
        diagonal = edits[0]
        edits[0] = i
        for j, letter_b in enumerate(b, start=1):
            substituted = diagonal + (letter_a != letter_b)
            diagonal = edits[j]
            edits[j] = min(edits[j] + 1, edits[j - 1] + 1, substituted)
    return edits[-1] / max(len(a), len(b), 1)
