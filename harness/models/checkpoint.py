"""Published checkpoints: where they lie (a path or the hub's cache), and how they are read without
running any code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.records import UserError, one_line

log = logging.getLogger(__name__)

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What a checkpoint folder may hold, in the order in which it is looked for."""


def locate(
    hub: str | None,
    revision: str | None,
    files: Sequence[str],
    checkpoint: str | os.PathLike[str] | None,
) -> Path:
    """The folder or file `checkpoint`, or the folder of the hub repository's `files` in the hub's
    cache.

    What is not cached is downloaded. Raises UserError with the remedy where neither is possible.
    """
    if checkpoint is not None:
        path = Path(checkpoint).expanduser()
        if not path.exists():
            raise UserError(f"model.checkpoint={checkpoint}: there is no such file or folder")
        return path
    if hub is None:
        raise UserError(
            "the model names no weights: set model.checkpoint=PATH, or model.hub to a repository of the hub"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=list(files)))
    except (
        Exception
    ) as error:  # its HTTP client's errors have no common base, and all mean the same to the user
        raise UserError(
            f"{hub} (revision {revision or 'main'}) is not in the hub's cache and cannot be downloaded "
            f"({type(error).__name__}): download it where there is a network, or set model.checkpoint=PATH"
        ) from error


def read_config(path: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON file beside the weights. Raises UserError where it is missing or is no JSON object."""
    file = (path if path.is_dir() else path.parent) / name
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error)}): a checkpoint needs its {name}"
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no JSON object: this is not a model's {name}")
    return config


def weight_files(path: Path) -> list[Path]:
    """The file or shards that hold the weights of a checkpoint folder; a file stands for itself."""
    if path.is_dir():
        found = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if found is None:
            raise UserError(
                f"{path} holds none of {', '.join(WEIGHTS)}: it is no checkpoint folder"
            )
        path = found
    if path.suffix != ".json":
        return [path]
    try:
        shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no index of shards ({one_line(error)}): download it again"
        ) from None
    for shard in shards:
        if Path(shard).name != shard or not (path.parent / shard).is_file():
            raise UserError(
                f"{path} names the shard {shard}, which is not beside it: download it again"
            )
    return [path.parent / shard for shard in shards]


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, mapped from the files rather than copied where the
    format allows it.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        state |= read_file(file)
    return state


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file or flat pickle."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} cannot be read ({one_line(error)}): it is damaged, download it again"
            ) from None
    state = unpickle(file)
    odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise UserError(
            f"{file}: entry {odd!r} is no tensor, so this is no file of weights by name"
        )
    return state


def unpickle(file: Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """A dictionary out of a pickle, by torch's weights-only reader: objects that could run code are
    refused.

    `allowed` are harmless classes and functions that the file may hold besides tensors.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            loaded = torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        more = f" ({named[1]})" if named else ""
        raise UserError(
            f"{file} is damaged, or a pickle with more than tensors in it{more}, which is not read because it could "
            "run code: download it again, or convert it to safetensors"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error)[:120]}): it is damaged, download it again"
        ) from None
    if not isinstance(loaded, dict):
        raise UserError(f"{file} holds a {type(loaded).__name__} instead of tensors by name")
    return loaded


def dtype_named(name: str, option: str = "dtype") -> torch.dtype:
    """What a model computes in, by its option. Raises UserError for anything but float32, bfloat16
    and float16.
    """
    if name not in ("float32", "bfloat16", "float16"):
        raise UserError(f"model.{option}={name}: choose float32, bfloat16 or float16")
    return getattr(torch, name)


def device_named(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one that works, else the CPU.

    Raises UserError for one that is not usable here.
    """
    if name != "auto":
        return _working(name)
    if torch.cuda.is_available():
        try:
            return _working("cuda")
        except UserError as error:
            log.warning("the CPU is used: %s", error)
    return torch.device("cpu")


def _working(name: str) -> torch.device:
    """A device after it has computed something: torch may lack the kernels for a GPU that it
    finds.
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).add_(1)
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error)[:200]
        raise UserError(
            f"device={name} is not usable here ({reason}): set device=auto or cpu"
        ) from error
    return device


def sha256(files: Sequence[Path]) -> str:
    """One hash over the content of some files."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def revision_of(path: Path) -> str:
    """What identifies a checkpoint: the commit of a hub snapshot, else 12 digits of its files'
    sha256.
    """
    if path.is_dir() and path.parent.name == "snapshots":
        return path.name
    return sha256(weight_files(path))[:12]


def report_unknown(names: Collection[str], source: Path) -> None:
    """Say which tensors of a checkpoint were not used."""
    if names:
        log.warning(
            "%s: %d tensors are not known and not used, the first is %s",
            source,
            len(names),
            min(names),
        )


@torch.no_grad()
def randomise(module: nn.Module, device: str | torch.device) -> None:
    """Give a module made on the meta device random weights, the same every time on one kind of
    device.
    """
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 1:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)


def fill(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Put tensors of the right names into a module, after checking all shapes; keeps their type and
    device.

    The module may live on the meta device: its parameters are replaced, not copied into.
    """
    for name, want in module.state_dict().items():
        have = tuple(state[name].shape)
        if have != tuple(want.shape):
            raise UserError(
                f"{source}: tensor {name} is {have}, the model needs {tuple(want.shape)}: "
                "this checkpoint is of another size"
            )
    module.load_state_dict(dict(state), assign=True)
