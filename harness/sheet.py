"""A picture sheet: some prompts down, the runs across, same seed in every row."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageFont

from harness.records import SampleRecord, Score
from harness.store import read_lines, write_atomic

TILE, GAP, TEXT = 144, 10, 270  # pixels
RIGHT, WRONG = "#2e9e5b", "#d0453e"


def write_sheet(folders: Sequence[Path], path: Path, rows: int = 12) -> Path:
    """Write the sheet of runs that share prompts: at most `rows` prompts, spread over the categories.

    A green frame says that the benchmark's judge found the image right, a red one that it did not.
    """
    runs = list(dict.fromkeys(folders))
    prompts = _prompts(runs[0], rows)
    records = [
        {r.key: r for r in read_lines(f / "records-0.jsonl", SampleRecord.from_json) if r.status == "done"}
        for f in runs
    ]
    scores = [{s.key[:2]: s.value for s in read_lines(f / "scores.jsonl", Score.from_json)} for f in runs]
    heads = [_head(folder) for folder in runs]
    font, bold = ImageFont.load_default(15), ImageFont.load_default(17)
    top = 76
    size = (TEXT + len(runs) * (TILE + GAP) + GAP, top + len(prompts) * (TILE + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        x = TEXT + column * (TILE + GAP)
        pen.multiline_text((x, 12), _wrapped(head, bold, TILE), font=bold, fill="#222222")
    for row, prompt in enumerate(prompts):
        y = top + row * (TILE + GAP)
        pen.multiline_text(
            (GAP, y + 6), _wrapped(prompt[1], font, TEXT - 3 * GAP), font=font, fill="#222222", spacing=5
        )
        pen.text((GAP, y + TILE - 22), prompt[2].replace("_", " "), font=font, fill="#888888")
        for column, folder in enumerate(runs):
            x = TEXT + column * (TILE + GAP)
            record = records[column].get((prompt[0], 0))
            if record is None:
                pen.rectangle((x, y, x + TILE, y + TILE), outline="#cccccc")
                continue
            picture = Image.open(folder / record.path).convert("RGB")
            sheet.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
            if record.key in scores[column]:
                right = (scores[column][record.key] or 0.0) >= 0.5
                pen.rectangle((x - 3, y - 3, x + TILE + 2, y + TILE + 2), outline=RIGHT if right else WRONG, width=4)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())
    return path


def _head(folder: Path) -> str:
    run = OmegaConf.load(folder / "config.yaml").run
    return f"{run.method.replace('_', ' ')} {run.params}"


def _prompts(folder: Path, count: int) -> list[tuple[str, str, str]]:
    """(id, text, category) of prompts taken in turn from each category."""
    by_category: dict[str, list[tuple[str, str, str]]] = {}
    for line in (folder / "jobs.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_category.setdefault(row["category"], []).append((row["prompt_id"], row["text"], row["category"]))
    chosen: list[tuple[str, str, str]] = []
    while len(chosen) < count and any(by_category.values()):
        chosen += [prompts.pop(0) for prompts in by_category.values() if prompts]
    order = list(by_category)
    return sorted(chosen[:count], key=lambda prompt: order.index(prompt[2]))


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return "\n".join(lines)
