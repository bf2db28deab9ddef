"""Say where a network beside the sampler is, and how many rows a forward of it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class OnDevice(Protocol):
    """What a sampler's shape says of where it will run."""

    @property
    def device(self) -> torch.device: ...


def place_network(device_name: str, shape: OnDevice) -> torch.device:
    """Say where a network will be beside a sampler, which need not be on this machine's device.

    `device_name` is "auto" for the sampler's, or a device of torch.
    """
    import torch

    return shape.device if device_name == "auto" else torch.device(device_name)


def count_rows(batch: int | None, device: torch.device, on_gpu: int) -> int:
    """Count the rows of a forward: `batch`, else one on the CPU, where more gain nothing."""
    return batch or (1 if device.type == "cpu" else on_gpu)
