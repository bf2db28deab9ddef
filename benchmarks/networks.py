"""What the networks of evaluators have in common: their weights, and what they take of a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from harness.records import MemoryPart, UserError

if TYPE_CHECKING:
    import torch


class OnDevice(Protocol):
    """What a sampler's shape says of where it will run."""

    @property
    def device(self) -> torch.device: ...


def is_random(option: str, weights: str) -> bool:
    """Tell whether weights are random, which tests the path. Raises UserError for an unknown kind.

    `option` is the evaluator's, for the message.
    """
    if weights not in ("published", "random"):
        raise UserError(f"benchmark.{option}.weights={weights}: choose published or random")
    return weights == "random"


def count_rows(batch: int | None, device: torch.device, on_gpu: int) -> int:
    """Count the rows of a forward: `batch`, else one on the CPU, where more gain nothing."""
    return batch or (1 if device.type == "cpu" else on_gpu)


def place_network(device_name: str, shape: OnDevice) -> torch.device:
    """Say where a network will be beside a sampler, which need not be this machine's device."""
    import torch

    return shape.device if device_name == "auto" else torch.device(device_name)


def list_network_parts(
    name: str, weights: int, pictures: int, *, is_loaded: bool, device: str
) -> list[MemoryPart]:
    """List a network's weights, and what a forward over a batch of pictures takes, in bytes."""
    return [
        MemoryPart(name, weights, held=weights if is_loaded else 0, device=device),
        MemoryPart(f"{name}'s pictures", pictures, device=device),
    ]
