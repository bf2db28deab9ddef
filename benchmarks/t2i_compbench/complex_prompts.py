"""Score complex prompts as T2I-CompBench does: attributes, positions and actions in one number.

Reference: 3_in_1_eval and CLIPScore_eval of github.com/Karine-Huang/T2I-CompBench.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def drop_adjectives(tokens: Sequence[tuple[str, str]]) -> str:
    """Write the text that CLIP compares with the image of a complex prompt.

    `tokens` are words with their parts of speech; punctuation stands apart.
    """
    return " ".join(word for word, part in tokens if part != "ADJ")


def first_sentence(prompt: str) -> str:
    """Cut a prompt at its first full stop, and lower its case: so lists of prompts are compared."""
    return prompt.partition(".")[0].lower()


def list_parts(prompt: str, spatial: Collection[str], action: Collection[str]) -> tuple[str, ...]:
    """Name the parts of a complex prompt's score.

    `spatial` and `action` are the first sentences of the prompts of those lists.
    """
    sentence = first_sentence(prompt)
    if sentence in spatial:
        return ("spatial", "attribute")
    if sentence in action:
        return ("action", "attribute")
    return ("attribute", "spatial", "action")


def average_parts(parts: Sequence[str], values: dict[str, float]) -> float:
    """Average the parts of a score."""
    return sum(values[part] for part in parts) / len(parts)
