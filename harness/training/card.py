"""Write the model card of a weight set: `card.json` for programs, `MODEL_CARD.md` for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.models.pictogram.weights import PARTS
from harness.results.gates import Gate, summarise, to_markdown

Card = dict[str, Any]
"""The contents of card.json."""

# The texts below are part of the shipped cards: a change of a word changes their files.
ABOUT = (
    "\n"
    "A small text-to-image model with its tokenizer, draft, judge and reward, trained from nothing "
    "by the scripts of\n"
    "`harness/models/pictogram` on scenes they draw themselves: flat pictograms "
    "(`sprites/SHEET.png` shows them all) in ten\n"
    "colours on plain backgrounds, 48 by 48 pixels, 12 by 12 tokens. It exists to compare "
    "test-time methods on any machine.\n"
    "Its scores are no GenEval scores: other images, another judge, and one renderer behind "
    "generator, judge and reward,\n"
    "which share its blind spots.\n"
)

RECIPE = (
    "\n"
    "- **World** (`world.py`): objects of 16 to 32 pixels on a 4-pixel lattice, four backgrounds, "
    "own colours or one of ten\n"
    "  tints. Captions (`grammar.py`): GenEval's templates 60 %, with layout clauses 25 %, "
    "TIIF-like wordings 15 %.\n"
    "- **Tokenizer** (`train_tokenizer`): LlamaGen's VQ at small width with its attention switched "
    "off, 512 codes of 8\n"
    "  unit-length numbers, EMA codebook with restarts after 150 plain autoencoder steps and "
    "k-means; then the decoder\n"
    "  alone, every other picture cut off at some token. Muon 0.02, AdamW 0.003; L1 + 2 L2 + 0.5 "
    "L1 of neighbour differences.\n"
    "- **Generator** (`train_generator`): Muon 0.02, AdamW 0.003, linear decay over the second "
    "half, running average 0.998\n"
    "  shipped; 10 % of captions dropped, some wrong (see the notes), tinted pairs practised "
    "most.\n"
    "- **Draft** (`train_draft`): learns the generator's law under guidance 2, three quarters on "
    "its samples, else on scenes.\n"
    "- **Judge, reward** (`train_detector`): two architectures, seeds and data streams; renders "
    "with blur, gain, tint and\n"
    "  noise, half of them through the tokenizer; halved, merged and shuffled objects as "
    "negatives.\n"
)

EDITOR_RECIPE = (
    "- **Editor** (`train_editor`): begins with the generator's weights; the source's tokens stand "
    "in front of the words, and\n"
    "  the source token of the next cell is added to the input. 13 % of the instructions dropped, "
    "3 % with their source; a\n"
    "  tenth asks to finish what is drawn; 30 % change nothing in the first 15 % of the budget. "
    "Batches of 32; rates, decay\n"
    "  and average are the generator's.\n"
)
"""Of a set that has an editor."""


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write both forms atomically."""
    _replace(folder / "card.json", json.dumps(card, indent=1) + "\n")
    _replace(folder / "MODEL_CARD.md", render(card))


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(text)
    os.replace(draft, path)


def render(card: Mapping[str, Any]) -> str:
    """Render the card as Markdown."""
    lines = [f"# {card['set']}", ABOUT]
    missing = [part for part in PARTS if f"{part}.safetensors" not in card["sha256"]]
    if missing:
        unfinished = f"**In training.** Not here yet: {', '.join(missing)}."
        lines += [f"{unfinished} `export --unpack` lays out what there is.", ""]
    recipe = RECIPE + (EDITOR_RECIPE if "editor" in card["parts"] else "")
    lines += [f"Classes: {', '.join(card['classes'])}.", "", "## Recipe", recipe]
    lines += [f"- Note: {note}" for note in card.get("notes", [])]
    lines += _render_parts(card)
    for kind, measured in sorted(card.get("measured", {}).items()):
        if measured:
            lines += _render_measurement(kind, measured)
    return "\n".join(lines) + "\n"


def _render_parts(card: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "## Parts",
        "",
        "| part | parameters | seed | CPU min | steps | samples | sha256 |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, about in card["parts"].items():
        digest = card["sha256"].get(f"{part}.safetensors", "")
        keys = ("parameters", "seed", "cpu_min", "steps", "samples")
        numbers = " | ".join(str(about[key]) for key in keys)
        lines.append(f"| {part} | {numbers} | `{digest}` |")
    for part, about in card["parts"].items():
        if about.get("recipe"):
            lines += ["", _render_recipe(part, about["recipe"])]
    return lines


def _render_recipe(part: str, recipe: Mapping[str, Any]) -> str:
    """Say in a line what differs from the usual training of a part."""
    options = ", ".join(f"`--{name.replace('_', '-')} {value}`" for name, value in recipe.items())
    return f"{part.capitalize()}: trained with {options}."


def _render_measurement(kind: str, measured: Mapping[str, Any]) -> list[str]:
    """Render the gates that one command measured; its options are named in `kind`."""
    command = "python -m harness.training.verify"
    if "quick" in kind:
        command += " --quick"
    if "official" in kind:
        command += " --metadata evaluation_metadata.jsonl"
    gates = [Gate.from_row(row) for row in measured["gates"]]
    about = f"On {measured['on']}. {summarise(gates)}."
    return ["", f"## Measured by `{command}`", "", about, "", *to_markdown(gates)]
