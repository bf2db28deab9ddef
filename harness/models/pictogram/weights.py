"""Where the embedded model's weights lie, and how they are read and written.

A set is a folder `weights/<set>/` with one half-precision safetensors file per part and a
`card.json` that lists their sha256. A file's own configuration (dimensions, classes, recipe) is
JSON in its safetensors metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.records import UserError

FOLDER = Path(__file__).parent / "weights"
PARTS = ("tokenizer", "generator", "draft", "eagle", "judge", "reward")

Config = dict[str, object]


class WeightsError(UserError, ValueError):
    """Weights that are missing, altered or of another model."""


def folder(weights: str) -> Path:
    """The folder of a set name ("pictogram_16") or of a path."""
    named = FOLDER / weights
    if named.is_dir():
        return named
    if Path(weights).is_dir():
        return Path(weights)
    known = (
        sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) if FOLDER.is_dir() else []
    )
    raise WeightsError(
        f"no weights {weights!r}: neither a folder nor one of the shipped sets {', '.join(known) or '(none)'}"
    )


def read(weights: str, part: str) -> tuple[dict[str, Tensor], Config, str]:
    """Tensors (float32), configuration and sha256 of one part; refuses a file that its card does
    not vouch for.
    """
    path = folder(weights) / f"{part}.safetensors"
    if not path.is_file():
        raise WeightsError(f"{path} is missing: export it with `python -m harness.training.export`")
    sha = sha256(path)
    card = path.parent / "card.json"
    if card.is_file():
        stated = json.loads(card.read_text())["sha256"].get(path.name)
        if stated != sha:
            raise WeightsError(
                f"{path} has sha256 {sha}, its card says {stated}: restore the file or export the set again"
            )
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
    return state, config, sha


def write(path: Path, module: nn.Module, config: Mapping[str, object]) -> None:
    """Write a module in half precision, atomically."""
    state = {
        name: tensor.detach().half().contiguous() for name, tensor in module.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    save_file(state, draft, metadata={"config": json.dumps(config, sort_keys=True)})
    os.replace(draft, path)


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into a module; a name or shape that does not fit is the user's mistake, said in
    one line.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        have = tuple(state[name].shape) if name in state else "nothing"
        want = tuple(own[name].shape) if name in own else "nothing"
        if have != want:
            raise WeightsError(
                f"{source}: tensor {name} is {have}, the model needs {want}: these weights are of another model"
            )
    module.load_state_dict(dict(state))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def integer(config: Config, key: str) -> int:
    value = config[key]
    assert isinstance(value, int), f"{key} is {value!r}"
    return value


def strings(config: Config, key: str) -> tuple[str, ...]:
    value = config[key]
    assert isinstance(value, list), f"{key} is {value!r}"
    return tuple(map(str, value))


def parameters(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters())
