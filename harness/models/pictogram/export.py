"""Write a trained set into the package: `python -m harness.models.pictogram.export --set pictogram_16`.

Takes the parts whose checkpoints exist, writes them in half precision, and records in `card.json` what made them:
seeds, CPU minutes, samples, curves and the sha256 of each file. Measurements already on the card stay if no file
changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from harness.models.pictogram import training
from harness.models.pictogram import weights as files
from harness.models.pictogram.detector import new_network
from harness.models.pictogram.generator import GPT, spec_config
from harness.models.pictogram.train_draft import SPEC as DRAFT
from harness.models.pictogram.train_generator import SPEC as GENERATOR
from harness.models.pictogram.train_tokenizer import new_vq


def main() -> None:
    parser = training.parser(__doc__ or "", cpu_minutes=0)
    parser.add_argument("--to", type=Path, default=files.FOLDER, help="folder of weight sets")
    arguments = parser.parse_args()
    export(training.options(arguments), arguments.to / arguments.set)


def export(options: training.Options, folder: Path) -> None:
    """Write every part that has a checkpoint, then the card that vouches for them."""
    path = folder / "card.json"
    card: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"parts": {}}
    card |= {"set": options.set, "classes": list(options.classes)}
    for part in files.PARTS:
        progress, states = training.resume(options.checkpoint(part))
        if not states:
            continue
        module, config = rebuild(part, states, len(options.classes))
        about = {"seed": states["seed"], "cpu_min": round(progress.cpu_s / 60, 1), "samples": progress.samples}
        files.write(folder / f"{part}.safetensors", module, {**config, **about, "classes": list(options.classes)})
        curve = progress.curve[:: max(1, len(progress.curve) // 24)] + progress.curve[-1:]
        size = {"parameters": files.parameters(module), "steps": progress.step}
        card["parts"][part] = {**config, **about, **size, "curve": curve}
    sha = {file.name: files.sha256(file) for file in sorted(folder.glob("*.safetensors"))}
    if card.get("sha256") != sha:
        card.pop("measured", None)
    write_card(folder, card | {"sha256": sha})


def rebuild(part: str, states: Mapping[str, Any], classes: int) -> tuple[nn.Module, dict[str, object]]:
    """The module of a checkpoint (a generator's running average) and the configuration it is stored with."""
    if part == "tokenizer":
        vq = new_vq()
        vq.load_state_dict(states["model"])
        return vq, spec_config(vq.spec)
    if part in ("generator", "draft"):
        gpt = GPT(GENERATOR if part == "generator" else DRAFT)
        gpt.load_state_dict(states["average"])
        return gpt, spec_config(gpt.spec)
    network = new_network(states["architecture"], classes)
    network.load_state_dict(states["model"])
    return network, {"architecture": states["architecture"]}


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    draft = folder / "card.tmp"
    draft.write_text(json.dumps(card, indent=1) + "\n")
    os.replace(draft, folder / "card.json")


if __name__ == "__main__":
    main()
