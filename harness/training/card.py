"""The model card of a weight set: `card.json` for programs, `MODEL_CARD.md` rendered from it for
people.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.models.pictogram.weights import PARTS

Card = dict[str, Any]

ABOUT = """
A small text-to-image model with its tokenizer, draft, judge and reward, trained from nothing by the scripts of
`harness/models/pictogram` on scenes they draw themselves: flat pictograms (`sprites/SHEET.png` shows them all) in ten
colours on plain backgrounds, 48 by 48 pixels, 12 by 12 tokens. It exists to compare test-time methods on any machine.
Its scores are no GenEval scores: other images, another judge, and one renderer behind generator, judge and reward,
which share its blind spots.
"""

RECIPE = """
- **World** (`world.py`): objects of 16 to 32 pixels on a 4-pixel lattice, four backgrounds, own colours or one of ten
  tints. Captions (`grammar.py`): GenEval's templates 60 %, with layout clauses 25 %, TIIF-like wordings 15 %.
- **Tokenizer** (`train_tokenizer`): LlamaGen's VQ at small width with its attention switched off, 512 codes of 8
  unit-length numbers, EMA codebook with restarts after 150 plain autoencoder steps and k-means; then the decoder
  alone, every other picture cut off at some token. Muon 0.02, AdamW 0.003; L1 + 2 L2 + 0.5 L1 of neighbour differences.
- **Generator** (`train_generator`): Muon 0.02, AdamW 0.003, linear decay over the second half, running average 0.998
  shipped; 10 % of captions dropped, some wrong (see the notes), tinted pairs practised most.
- **Draft** (`train_draft`): learns the generator's law under guidance 2, three quarters on its samples, else on scenes.
- **Judge, reward** (`train_detector`): two architectures, seeds and data streams; renders with blur, gain, tint and
  noise, half of them through the tokenizer; halved, merged and shuffled objects as negatives.
"""


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write both forms, atomically."""
    for name, text in (
        ("card.json", json.dumps(card, indent=1) + "\n"),
        ("MODEL_CARD.md", render(card)),
    ):
        draft = folder / f"{name}.tmp"
        draft.write_text(text)
        os.replace(draft, folder / name)


def render(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    lines = [f"# {card['set']}", ABOUT]
    if missing := [part for part in PARTS if f"{part}.safetensors" not in card["sha256"]]:
        lines += [
            f"**In training.** Not here yet: {', '.join(missing)}. `export --unpack` lays out what there is.",
            "",
        ]
    lines += [f"Classes: {', '.join(card['classes'])}.", "", "## Recipe", RECIPE]
    lines += [f"- Note: {note}" for note in card.get("notes", [])]
    lines += [
        "",
        "## Parts",
        "",
        "| part | parameters | seed | CPU min | steps | samples | sha256 |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, about in card["parts"].items():
        sha = card["sha256"].get(f"{part}.safetensors", "")
        numbers = (about[key] for key in ("parameters", "seed", "cpu_min", "steps", "samples"))
        lines.append(f"| {part} | {' | '.join(map(str, numbers))} | `{sha}` |")
    for kind, measured in sorted(card.get("measured", {}).items()):
        if measured:
            command = " --quick" * ("quick" in kind) + " --metadata evaluation_metadata.jsonl" * (
                "official" in kind
            )
            lines += ["", f"## Measured by `python -m harness.training.verify{command}`", ""]
            lines += [
                f"On {measured['on']}.",
                "",
                "| gate | measured | asked | |",
                "|---|---|---|---|",
                *map(_gate, measured["gates"]),
            ]
    return "\n".join(lines) + "\n"


def _gate(row: Mapping[str, Any]) -> str:
    asked = " ".join(
        f"{sign} {row[key]:g}"
        for sign, key in (("≥", "least"), ("≤", "most"))
        if row[key] is not None
    )
    return f"| {row['name']} | {row['value']:.3f} | {asked or 'reported'} | {'' if row['holds'] else '**short**'} |"
