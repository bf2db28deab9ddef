"""What the networks of evaluators have in common: their weights, and what they take of a device."""

from __future__ import annotations

from harness.records import MemoryPart, UserError


def is_random(option: str, weights: str) -> bool:
    """Tell whether weights are random, which tests the path. Raises UserError for an unknown kind.

    `option` is the evaluator's, for the message.
    """
    if weights not in ("published", "random"):
        raise UserError(f"benchmark.{option}.weights={weights}: choose published or random")
    return weights == "random"


def list_network_parts(
    name: str, weights: int, pictures: int, *, is_loaded: bool, device: str
) -> list[MemoryPart]:
    """List a network's weights, and what a forward over a batch of pictures takes, in bytes."""
    return [
        MemoryPart(name, weights, held=weights if is_loaded else 0, device=device),
        MemoryPart(f"{name}'s pictures", pictures, device=device),
    ]
