"""Published checkpoints: find them (a path or the hub's cache), read them without running code."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.download import cache_folder, file_sha256, format_bytes, prepare_hub
from harness.records import UserError, digest, one_line

log = logging.getLogger(__name__)

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files of weights that a checkpoint folder may hold, in the order in which they are looked for."""

LARGE_FILE = 1 << 20
"""Bytes of a file whose hash is worth keeping."""

DTYPES = ("float32", "bfloat16", "float16")
"""Types that a model may compute in, by their names in configurations."""


# ------------------------------------------------------------------ find


def locate(
    hub: str | None,
    revision: str | None,
    files: Sequence[str],
    checkpoint: str | os.PathLike[str] | None,
    option: str = "model.checkpoint",
) -> Path:
    """Find a checkpoint: the folder or file `checkpoint`, or a repository in the hub's cache.

    `files` are patterns of the repository's files that are needed; what is not cached is
    downloaded. Raises UserError with the remedy if there is nothing at the path or no network;
    `option` is what the user sets to the path.
    """
    if checkpoint is not None:
        path = Path(checkpoint).expanduser()
        if not path.exists():
            raise UserError(f"{option}={checkpoint}: there is no such file or folder")
        return path
    if hub is None:
        owner = option.rpartition(".")[0]
        raise UserError(
            f"{owner} names no weights: "
            f"set {option}=PATH, or {owner}.hub to a repository of the hub"
        )
    from huggingface_hub import snapshot_download

    silence = prepare_hub()
    _announce_download(hub, revision, files)
    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=list(files)))
    # The HTTP client's errors have no common base, and all mean the same to the user.
    except Exception as error:
        reason = silence or type(error).__name__
        raise UserError(
            f"{hub} (revision {revision or 'main'}) is not in the hub's cache "
            f"and cannot be downloaded ({reason}): "
            f"download it where there is a network, or set {option}=PATH"
        ) from error


def locate_tokenizer(
    hub: str | None,
    revision: str | None,
    files: Sequence[str],
    checkpoint: str | os.PathLike[str] | None,
) -> Path:
    """Find an image tokenizer's file or folder, as `locate` finds a model's.

    Raises UserError that names the tokenizer's own option.
    """
    try:
        return locate(hub, revision, files, checkpoint)
    except UserError as error:
        reason = str(error)
        for option in ("checkpoint", "hub"):
            reason = reason.replace(f"model.{option}", f"model.tokenizer_{option}")
        raise UserError(f"tokenizer: {reason}") from None


def _announce_download(hub: str, revision: str | None, files: Sequence[str]) -> None:
    """Log how much of a repository is about to be downloaded, if anything is.

    Without a network nothing is logged: whether the cache has all is told by who reads it.
    """
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(hub, revision=revision, allow_patterns=list(files), dry_run=True)
    except Exception as error:  # the HTTP client's errors have no common base
        log.debug("%s: its size is not known (%s)", hub, one_line(error))
        return
    missing = [file for file in found if file.will_download]
    if missing:
        size = sum(file.file_size or 0 for file in missing)
        log.info(
            "downloading %d files of %s, %s, into the hub's cache (HF_HOME)",
            len(missing),
            hub,
            format_bytes(size),
        )


def weight_files(path: Path) -> list[Path]:
    """List the file or shards that hold the weights of a checkpoint folder, or of a file.

    Raises UserError for a folder without weights and for an index whose shards are missing.
    """
    if path.is_dir():
        path = _weights_in(path)
    if path.suffix != ".json":
        return [path]

    try:
        index = json.loads(path.read_text())
        shards = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no index of shards ({one_line(error)}): download it again"
        ) from None
    for shard in shards:
        is_beside = Path(shard).name == shard and (path.parent / shard).is_file()
        if not is_beside:
            raise UserError(
                f"{path} names the shard {shard}, which is not beside it: download it again"
            )
    return [path.parent / shard for shard in shards]


def _weights_in(folder: Path) -> Path:
    """The file of weights, or index of shards, in a checkpoint folder."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds none of {', '.join(WEIGHTS)}: it is no checkpoint folder")


def revision_of(path: Path) -> str:
    """Identify a checkpoint: the commit of a hub snapshot, else 12 digits of its files' sha256."""
    if path.is_dir() and path.parent.name == "snapshots":
        return path.name
    return sha256(weight_files(path))[:12]


def content_of(path: Path) -> str:
    """Name the content of a file or folder: 12 digits of a sha256 over all names and bytes.

    Where it lies names nothing; hidden files are left out. Large files are read once: their hashes
    are kept in the user's cache, by path, size and time of change. Raises UserError for a path that
    cannot be read.
    """
    files = [path] if path.is_file() else _list_files(path)
    total = hashlib.sha256()
    for file in files:
        name = "" if file == path else file.relative_to(path).as_posix()
        total.update(f"{name} {_hash_of(file.resolve())}\n".encode())
    return total.hexdigest()[:12]


def _list_files(folder: Path) -> list[Path]:
    """List the files below a folder, in the order of their names."""
    files = [
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(f"{folder}: no file and no folder with files")
    return sorted(files)


def _hash_of(file: Path) -> str:
    """Hash a file, or look its hash up if neither its size nor its time has changed."""
    stat = file.stat()
    key = f"{file} {stat.st_size} {stat.st_mtime_ns}"
    kept = cache_folder() / "hashes" / f"{digest(key.encode(), 32)}.txt"
    if stat.st_size >= LARGE_FILE:
        with suppress(OSError):
            known = kept.read_text()
            if re.fullmatch("[0-9a-f]{64}", known):
                return known
    hashed = file_sha256(file)
    if stat.st_size >= LARGE_FILE:
        with suppress(OSError):  # without a cache it is hashed again next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            draft = kept.with_suffix(f".{os.getpid()}")
            draft.write_text(hashed)
            os.replace(draft, kept)
    return hashed


def sha256(files: Sequence[Path]) -> str:
    """Hash the content of some files, in their order, as one."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


# ------------------------------------------------------------------ read


def read_config(path: Path, name: str = "config.json") -> dict[str, Any]:
    """Read a JSON file beside the weights.

    Raises UserError where it is missing or holds no JSON object.
    """
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint by name.

    They are mapped from the files rather than copied where the format allows it.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        state |= read_file(file)
    return state


def read_file(file: Path) -> dict[str, Tensor]:
    """Read the tensors of one safetensors file or flat pickle.

    Raises UserError for a file that is damaged or holds more than tensors.
    """
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    state = unpickle(file)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{file}: entry {name!r} is no tensor, so this is no file of weights by name"
            )
    return state


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error)}): it is damaged, download it again"
        ) from None


def unpickle(file: Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """Read a dictionary out of a pickle by torch's weights-only reader.

    `allowed` are harmless classes and functions that the file may hold besides tensors. Raises
    UserError for a damaged file, for objects that could run code, and for anything but a
    dictionary.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            loaded = torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f" ({forbidden[1]})" if forbidden else ""
        raise UserError(
            f"{file} is damaged, or a pickle with more than tensors in it{found}, "
            "which is not read because it could run code: "
            "download it again, or convert it to safetensors"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = one_line(error)[:120]
        raise UserError(
            f"{file} cannot be read ({reason}): it is damaged, download it again"
        ) from None
    if not isinstance(loaded, dict):
        raise UserError(f"{file} holds a {type(loaded).__name__} instead of tensors by name")
    return loaded


# ------------------------------------------------------------------ put into a module


def fill(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Put tensors of the right names into a module after checking all shapes.

    Tensors keep their type and device. The module may live on the meta device: its parameters are
    replaced, not copied into. Raises UserError for a shape that does not fit, and for weights that
    are no finite floating-point numbers.
    """
    for name, parameter in module.state_dict().items():
        have = tuple(state[name].shape)
        want = tuple(parameter.shape)
        if have != want:
            raise UserError(
                f"{source}: tensor {name} is {have}, the model needs {want}: "
                "this checkpoint is of another size"
            )
        _expect_finite(state[name], f"{source}: tensor {name}")
    module.load_state_dict(dict(state), assign=True)


def _expect_finite(weight: Tensor, name: str) -> None:
    """Raise UserError unless a tensor has finite floating-point numbers; `meta` has none at all."""
    if not weight.is_floating_point():
        dtype = str(weight.dtype).removeprefix("torch.")
        raise UserError(
            f"{name} holds {dtype}, no floating-point numbers: quantised checkpoints are not read"
        )
    if not weight.is_meta and not torch.isfinite(weight).all():
        raise UserError(
            f"{name} is not finite: the file is damaged or was saved after a training that "
            "diverged; get it again"
        )


def expect_same_tensors(
    state: Mapping[str, Tensor],
    module: nn.Module,
    source: Path,
    name: str,
    without: Collection[str] = (),
) -> None:
    """Raise UserError unless a file has all tensors of a module, no others, and of their shapes.

    `name` is what the module is called; tensors in `without` are not asked for. The module may live
    on the meta device.
    """
    expected = {key: one for key, one in module.state_dict().items() if key not in without}
    for what, names in (
        ("lacks", sorted(expected.keys() - state.keys())),
        ("has, and the network has not,", sorted(state.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{source} is no checkpoint of {name}: it {what} {', '.join(names[:3])}{more}"
            )
    for key, known in expected.items():
        if state[key].shape != known.shape:
            raise UserError(
                f"{source} is no checkpoint of {name}: {key} is {tuple(state[key].shape)}, the "
                f"network has {tuple(known.shape)}"
            )


def report_unknown(names: Collection[str], source: Path) -> None:
    """Warn of the tensors of a checkpoint that were not used."""
    if names:
        log.warning(
            "%s: %d tensors are not known and not used, the first is %s",
            source,
            len(names),
            min(names),
        )


@torch.no_grad()
def randomise(module: nn.Module, device: str | torch.device) -> None:
    """Give a module made on the meta device random weights.

    They are the same every time on one kind of device. On the meta device they have sizes only.
    """
    if torch.device(device).type == "meta":
        return
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 1:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)


# ------------------------------------------------------------------ types


def dtype_named(name: str, option: str = "dtype") -> torch.dtype:
    """Return the type that a model computes in, by the value of its option.

    Raises UserError for anything but float32, bfloat16 and float16.
    """
    if name not in DTYPES:
        raise UserError(f"model.{option}={name}: choose float32, bfloat16 or float16")
    return getattr(torch, name)
