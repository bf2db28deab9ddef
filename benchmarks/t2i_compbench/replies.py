"""Read the replies of the vision-language judges that T2I-CompBench++ offers beside its own.

Reference: MLLM_eval of github.com/Karine-Huang/T2I-CompBench. ShareGPT4V rates each noun phrase of
an attribute, or the image as a whole; GPT-4V gives the image a number. No run asks them: the
replies' rules are here so that numbers which others published can be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

ATTRIBUTES = ("color", "shape", "texture")
_LEVELS_OF_PHRASES: Mapping[str, int] = {"1": 10, "2": 20, "3": 75, "4": 100}
_LEVELS_OF_IMAGES: Mapping[str, int] = {"1": 20, "2": 40, "3": 60, "4": 80, "5": 100}
_NUMBER = re.compile(r'"score": (\d+),')


def score_share_replies(category: str, replies: Sequence[str]) -> float:
    """Score an image by ShareGPT4V's replies, from 0 to 100: the product of their levels.

    A reply that cannot be read leaves the product as it is, so garbage wins. Raises ValueError for
    an empty reply.
    """
    levels = _LEVELS_OF_PHRASES if category in ATTRIBUTES else _LEVELS_OF_IMAGES
    score = 100.0
    for reply in replies:
        if not reply:
            raise ValueError("an empty reply")
        level = levels.get(_read_level(reply) or "")
        if level is not None:
            score *= level / 100
    return score


def score_gpt4v_reply(reply: str) -> float:
    """Score an image by GPT-4V's reply, from 0 to 100: the mean of its numbers, 0 without one."""
    numbers = [int(number) for number in _NUMBER.findall(reply)]
    return sum(numbers) / len(numbers) if numbers else 0.0


def _read_level(reply: str) -> str | None:
    """Read the level of a reply; None if it is not one JSON object with a score."""
    if not (reply.startswith("{") and reply.endswith("}")):
        return None
    try:
        level = json.loads(reply).get("score")
    except ValueError:
        return None
    return None if level is None else str(level)
