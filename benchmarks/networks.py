"""What the networks of evaluators have in common: their weights, and what they take of a device.

Where a network is, and how many rows a forward of it has, is `harness.judges.placement`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.download import prepare_hub
from harness.records import MemoryPart, UserError, one_line


def is_random(option: str, weights: str) -> bool:
    """Tell whether weights are random, which tests the path. Raises UserError for an unknown kind.

    `option` is the evaluator's, for the message.
    """
    if weights not in ("published", "random"):
        raise UserError(f"benchmark.{option}.weights={weights}: choose published or random")
    return weights == "random"


def draw_weights(build: Callable[[], Any]) -> Any:
    """Build a network with random weights, the same each time; other draws are not disturbed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def load_published(kind: Any, model: str, revision: str | None, option: str) -> Any:
    """Load a class of transformers from a hub id or a folder, in float32.

    `option` is the evaluator's, for the message. Raises UserError if its files cannot be had.
    """
    import torch

    prepare_hub()
    try:
        return kind.from_pretrained(model, revision=revision, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{option} {model!r} cannot be had ({one_line(error)[:200]}): "
            f"set benchmark.{option}.model to a folder with its files"
        ) from None


def list_network_parts(
    name: str, weights: int, pictures: int, *, is_loaded: bool, device: str
) -> list[MemoryPart]:
    """List a network's weights, and what a forward over a batch of pictures takes, in bytes."""
    return [
        MemoryPart(name, weights, held=weights if is_loaded else 0, device=device),
        MemoryPart(f"{name}'s pictures", pictures, device=device),
    ]
