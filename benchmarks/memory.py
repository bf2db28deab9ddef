"""Say what the networks of an evaluator take of a device, before anything is loaded."""

from __future__ import annotations

from harness.records import MemoryPart


def list_network_parts(
    name: str, weights: int, pictures: int, *, is_loaded: bool, device: str
) -> list[MemoryPart]:
    """List a network's weights, and what a forward over a batch of pictures takes, in bytes."""
    return [
        MemoryPart(name, weights, held=weights if is_loaded else 0, device=device),
        MemoryPart(f"{name}'s pictures", pictures, device=device),
    ]
