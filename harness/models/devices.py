"""Devices by name, and the current one: where launches go that name none.

Graphs are captured, kernels launched and memory pinned on the current GPU, whatever tensors they
work on. So the device that a run is given becomes the current one (`choose_device`), and what works
on a model's device does so under `on_device`: a process may hold models on several.
"""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from harness.records import UserError, one_line

log = logging.getLogger(__name__)


def device_named(name: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU if there is one that works, else the CPU.

    A GPU is returned with its number; "auto" and "cuda" are the current one, which is the run's.
    Raises UserError, with the devices that there are, for one that is not usable here.
    """
    if name != "auto":
        return _working_device(name)
    if torch.cuda.is_available():
        try:
            return _working_device("cuda")
        except UserError as error:
            log.warning("the CPU is used: %s", error)
    return torch.device("cpu")


def choose_device(name: str) -> torch.device:
    """Return the device of that name as `device_named` does, and make it the current one."""
    device = device_named(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one inside; do nothing for the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _working_device(name: str) -> torch.device:
    """Return a device that has computed something: torch may lack the kernels for a GPU."""
    try:
        device = torch.device(name)
        _expect_there(device)
        return torch.ones(1, device=device).add_(1).device
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error)[:200]
        raise UserError(
            f"device={name} is not usable here ({reason}): set device={_list_choices()}"
        ) from error


def _expect_there(device: torch.device) -> None:
    """Raise RuntimeError for a device of another kind, or with a number that no GPU has."""
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError("models are drawn on a CPU or on CUDA")
    if device.type == "cuda" and device.index is not None:
        count = torch.cuda.device_count()
        if device.index >= count:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            shown = "" if visible is None else f", by CUDA_VISIBLE_DEVICES={visible}"
            raise RuntimeError(f"GPUs that are visible: {count}{shown}")


def _list_choices() -> str:
    """List the values of `device` that there are."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return f"{', '.join(['auto', *gpus])} or cpu"
