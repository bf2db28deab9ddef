"""Write a trained set into the package: `python -m harness.training.export --set pictogram_16`.

The parts whose checkpoints exist are written in half precision, and `card.json` records what made
them: seeds, CPU minutes, samples, curves and the sha256 of each file. Measurements that are on the
card already stay if no file that was there changed. `--unpack` does the reverse: it lays out
checkpoints from a shipped set, so that training can go on on another machine. `--candidate` keeps a
drafter that is not shipped: laid into the folder of checkpoints, its file can be exported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.arguments import explain_mistakes
from harness.drafters.eagle import Layer
from harness.models.pictogram import weights as files
from harness.models.pictogram.detector import new_network
from harness.models.pictogram.editor import EditorGPT, editor_spec
from harness.models.pictogram.generator import GPT, GPTSpec, spec_config
from harness.training import loop as training
from harness.training.card import Card, write_card
from harness.training.train_draft import SPEC as DRAFT
from harness.training.train_generator import SPECS as GENERATORS
from harness.training.train_tokenizer import new_vq

STATE = Path("training") / "generator.pt"
"""The generator's checkpoint in half the bits, beside the weights: a longer training continues it.
"""


@explain_mistakes
def main() -> None:
    """Export a set, or unpack one."""
    parser = training.parser("export", __doc__ or "", cpu_minutes=0)
    parser.add_argument("--to", type=Path, default=files.FOLDER, help="folder of weight sets")
    parser.add_argument(
        "--unpack", action="store_true", help="make checkpoints from the shipped set instead"
    )
    parser.add_argument(
        "--unfinished", action="store_true", help="of the generator only what its training needs"
    )
    parser.add_argument(
        "--candidate",
        choices=("draft", "eagle"),
        help="write this part's checkpoint in few bits beside the weights, and change none of them",
    )
    arguments = parser.parse_args()
    options = training.options(arguments)
    folder = arguments.to / arguments.set
    if arguments.unpack:
        unpack(options, folder)
    elif arguments.candidate:
        write_candidate(arguments.candidate, options, folder)
    else:
        export(options, folder, unfinished=arguments.unfinished)


def export(options: training.Options, folder: Path, *, unfinished: bool = False) -> None:
    """Write every part that has a checkpoint, then the card with their digests.

    An unfinished set has no generator to load, only its checkpoint to continue from.
    """
    path = folder / "card.json"
    card: Card = json.loads(path.read_text()) if path.is_file() else {"parts": {}}
    card |= {"set": options.set, "classes": list(options.classes)}
    for part in files.PARTS + files.OPTIONAL_PARTS:
        progress, states = training.resume(options.checkpoint(part))
        if not states:
            continue

        # 1. The weights, with what made them.
        module, config = rebuild(part, states, options)
        about = {
            "seed": states["seed"],
            "cpu_min": round(progress.cpu_s / 60, 1),
            "samples": progress.samples,
        }
        if not (unfinished and part == "generator"):
            metadata = {**config, **about, "classes": list(options.classes)}
            files.write_part(folder / f"{part}.safetensors", module, metadata)

        # 2. The part's entry on the card.
        size = {"parameters": files.count_parameters(module), "steps": progress.step}
        curve = thin_out(progress.curve)
        recipe = {"recipe": states["recipe"]} if "recipe" in states else {}
        card["parts"][part] = {**config, **about, **size, **recipe, "curve": curve}

        # 3. What the generator's training continues from.
        if part == "generator":
            saved = torch.load(options.checkpoint(part), weights_only=True)
            training.write(folder / STATE, compact(saved, torch.bfloat16))

    sha = {file.name: files.hash_file(file) for file in sorted(folder.glob("*.safetensors"))}
    if any(sha.get(name) != before for name, before in card.get("sha256", {}).items()):
        card.pop("measured", None)
    write_card(folder, card | {"sha256": sha})


def write_candidate(part: str, options: training.Options, folder: Path) -> None:
    """Write the running average of a drafter in half precision, as a checkpoint of its own.

    Raises WeightsError where the part has no checkpoint.
    """
    path = options.checkpoint(part)
    progress, states = training.resume(path)
    if not states:
        raise files.WeightsError(f"{path} is missing: train the {part} first")
    half = compact(states["average"], torch.half)
    kept: dict[str, Any] = {key: states[key] for key in ("seed", "spec", "target") if key in states}
    saved: dict[str, Any] = {
        "progress": progress.state(),
        "model": half,
        "average": half,
        "optimisers": [],
        **kept,
    }
    training.write(folder / STATE.parent / f"{part}.pt", saved)


def thin_out(curve: list[dict[str, float]], points: int = 24) -> list[dict[str, float]]:
    """Keep about so many points of a curve, and its last one."""
    return curve[:: max(1, len(curve) // points)] + curve[-1:]


def unpack(options: training.Options, folder: Path) -> None:
    """Write checkpoints of every part that was trained.

    The generator's has its optimisers, the others start with fresh ones. Raises WeightsError where
    there is a checkpoint already.
    """
    card = json.loads((folder / "card.json").read_text())
    for part in card["parts"]:
        path = options.checkpoint(part)
        if path.is_file():
            raise files.WeightsError(f"{path} exists: training would lose it; move it away first")
        if part == "generator":
            saved = torch.load(folder / STATE, weights_only=True)
            training.write(path, compact(saved, torch.float32))
        else:
            training.write(path, _remake_checkpoint(part, folder, card["parts"][part]))


def _remake_checkpoint(part: str, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Make a checkpoint from shipped weights and their entry on the card."""
    state, config, _ = files.read_part(str(folder), part)
    progress = training.Progress(
        about["steps"], about["samples"], 60 * about["cpu_min"], about["curve"]
    )
    rows = state.get("quantize.embedding.weight", torch.zeros(0))
    shape: dict[str, Any] = {}
    if part == "draft":
        shape = {"spec": {field.name: config[field.name] for field in fields(GPTSpec)}}
    recipe = {"recipe": about["recipe"]} if "recipe" in about else {}
    return {
        **shape,
        **recipe,
        "progress": progress.state(),
        "model": state,
        "average": state,
        "optimisers": [],
        "seed": about["seed"],
        "codebook": (torch.ones(len(rows)), rows),
        "architecture": config.get("architecture"),
        "target": config.get("target"),
    }


def compact(value: Any, dtype: torch.dtype) -> Any:
    """Convert the floating-point tensors of a nested checkpoint to another precision."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: compact(one, dtype) for key, one in value.items()}
    if isinstance(value, list):
        return [compact(one, dtype) for one in value]
    return value


def rebuild(
    part: str, states: Mapping[str, Any], options: training.Options
) -> tuple[nn.Module, dict[str, object]]:
    """Return the module of a checkpoint and the configuration that it is stored with.

    Of models over tokens it is the running average.
    """
    if part == "tokenizer":
        vq = new_vq()
        vq.load_state_dict(states["model"])
        return vq, spec_config(vq.spec)
    if part in ("generator", "draft"):
        usual = GENERATORS[options.set] if part == "generator" else DRAFT
        gpt = GPT(GPTSpec(**states.get("spec", asdict(usual))))
        gpt.load_state_dict(states["average"])
        return gpt, spec_config(gpt.spec)
    if part == "editor":
        editor = EditorGPT(editor_spec(GENERATORS[options.set]))
        editor.load_state_dict(states["average"])
        return editor, spec_config(editor.spec)
    if part == "eagle":
        layer = Layer(GPT(GENERATORS[options.set]).trunk.spec)
        layer.load_state_dict(states["average"])
        return layer, {"target": states["target"]}
    network = new_network(states["architecture"], len(options.classes))
    network.load_state_dict(states["model"])
    return network, {"architecture": states["architecture"]}


if __name__ == "__main__":
    sys.exit(main())
