"""The embedded model's weights: find, read, check and write them.

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
"""What every set has."""
OPTIONAL_PARTS = ("editor",)
"""What some sets have besides."""

Config = dict[str, object]
"""The configuration of a part, as its file states it."""


class WeightsError(UserError, ValueError):
    """Weights that are missing, altered or of another model."""


def find_set(weights: str) -> Path:
    """Find the folder of a set by its name ("pictogram_16") or path.

    Raises WeightsError where there is none.
    """
    named = FOLDER / weights
    if named.is_dir():
        return named
    if Path(weights).is_dir():
        return Path(weights)

    known = []
    if FOLDER.is_dir():
        known = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
    raise WeightsError(
        f"no weights {weights!r}: "
        f"neither a folder nor one of the shipped sets {', '.join(known) or '(none)'}"
    )


def has_part(weights: str, part: str) -> bool:
    """Tell whether a set has a part. Raises WeightsError where there is no such set."""
    return _part_file(weights, part).is_file()


def read_part(weights: str, part: str) -> tuple[dict[str, Tensor], Config, str]:
    """Read tensors (float32), configuration and sha256 of one part of a set.

    Raises WeightsError for a file that is missing or is not the one that the set's card lists.
    """
    path = _part_file(weights, part)
    if not path.is_file():
        script = "detector" if part in ("judge", "reward") else part
        raise WeightsError(
            f"{path} is missing: train it with `python -m harness.training.train_{script}` (about "
            "an hour), then export it with `python -m harness.training.export`; docs/models.md has "
            "both commands"
        )
    sha = hash_file(path)
    card = path.parent / "card.json"
    if card.is_file():
        _expect_listed(path, sha, card)

    state = {}
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        for name in file.keys():  # noqa: SIM118 (not a dict)
            state[name] = file.get_tensor(name).float()
    return state, config, sha


def _part_file(weights: str, part: str) -> Path:
    return find_set(weights) / f"{part}.safetensors"


def _expect_listed(path: Path, sha: str, card: Path) -> None:
    stated = json.loads(card.read_text())["sha256"].get(path.name)
    if stated != sha:
        raise WeightsError(
            f"{path} has sha256 {sha}, its card says {stated}: "
            "restore the file or export the set again"
        )


def write_part(path: Path, module: nn.Module, config: Mapping[str, object]) -> None:
    """Write a module in half precision, atomically."""
    state = {
        name: tensor.detach().half().contiguous() for name, tensor in module.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    save_file(state, draft, metadata={"config": json.dumps(config, sort_keys=True)})
    os.replace(draft, path)


def fill_module(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into a module.

    Raises WeightsError, naming the `source`, for a name or shape that does not fit.
    """
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        have = tuple(state[name].shape) if name in state else "nothing"
        want = tuple(wanted[name].shape) if name in wanted else "nothing"
        if have != want:
            raise WeightsError(
                f"{source}: tensor {name} is {have}, the model needs {want}: "
                "these weights are of another model"
            )
    module.load_state_dict(dict(state))


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def config_integer(config: Config, key: str) -> int:
    """Read an integer of a configuration."""
    value = config[key]
    assert isinstance(value, int), f"{key} is {value!r}"
    return value


def config_strings(config: Config, key: str) -> tuple[str, ...]:
    """Read a list of strings of a configuration."""
    value = config[key]
    assert isinstance(value, list), f"{key} is {value!r}"
    return tuple(map(str, value))


def count_parameters(module: nn.Module) -> int:
    """Count the numbers that a module is trained in."""
    return sum(tensor.numel() for tensor in module.parameters())
