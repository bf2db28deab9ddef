"""Ask about attributes as T2I-CompBench does: a question per noun phrase, and their product.

Reference: BLIPvqa_eval of github.com/Karine-Huang/T2I-CompBench. These are pure functions that need
no network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

SLOTS = 8
"""Questions about an image at most; one without a phrase counts as 1."""
NOT_ASKED = ("top", "the side", "the left", "the right")
"""Noun phrases that are no objects; upper and lower case are told apart."""
MAX_WORDS = 50
_REMOVED = re.compile(r'[.!"()*#:;~]')


def select_phrases(noun_phrases: Sequence[str], most: int = SLOTS) -> list[str]:
    """Select the noun phrases of a prompt that are asked about, in order."""
    asked = [phrase for phrase in noun_phrases if phrase not in NOT_ASKED]
    return asked[:most]


def write_question(phrase: str) -> str:
    """Write the question about a noun phrase; none has no question."""
    return f"{phrase}?" if phrase else ""


def clean_question(text: str) -> str:
    """Prepare a question for the tokenizer, as BLIP does."""
    kept = _REMOVED.sub("", text.lower()).rstrip(" ")
    words = kept.split(" ")
    return " ".join(words[:MAX_WORDS]) if len(words) > MAX_WORDS else kept


def yes_probability(yes_logit: float, no_logit: float) -> float:
    """Compute p(yes) / (p(yes) + p(no)).

    It is the sigmoid of the difference, so it exists where both probabilities underflow.
    """
    difference = yes_logit - no_logit
    if difference >= 0:
        return 1 / (1 + math.exp(-difference))
    odds = math.exp(difference)
    return odds / (1 + odds)


def round_answer(value: float) -> str:
    """Write an answer, or a product of answers, with the four decimals that the reference keeps."""
    return f"{value:.4f}"


def multiply_answers(probabilities: Sequence[float]) -> str:
    """Multiply the rounded answers of the questions that were asked, in 32-bit floats.

    In 64-bit floats the last digit may differ. Without any question the product is 1.
    """
    product = np.float32(1)
    for probability in probabilities:
        product = np.float32(product * np.float32(round_answer(probability)))
    return round_answer(float(product))
