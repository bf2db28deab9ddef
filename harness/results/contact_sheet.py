"""Pictures of runs: prompts down and runs across with the same seed in every row, and images of a
single run.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.engine.session import Judge
from harness.records import Prompt, UserError
from harness.runs.folder import FORMATS, UNREADABLE
from harness.runs.journal import write_atomic
from harness.runs.read import Run, read_run

TILE = 144
GAP = 10
TEXT = 270
TOP = 76
LEFT = 100  # pixels
RIGHT = "#2e9e5b"
WRONG = "#d0453e"
UNJUDGED = "#cccccc"


def write_sheet(folders: Sequence[Path], path: Path, rows: int = 12) -> Path:
    """Write the sheet of runs that share prompts: at most `rows` prompts, spread over the
    categories.

    A green frame says that the benchmark's judge found the image right, a red one that it did not.
    """
    runs = [read_run(folder) for folder in dict.fromkeys(folders)]
    prompts = _spread(list(runs[0].prompts.values()), rows)
    runs = [
        run for run in runs if any(prompt.id in run.prompts for prompt in prompts)
    ]  # not of another benchmark
    font = ImageFont.load_default(15)
    bold = ImageFont.load_default(17)
    size = (TEXT + len(runs) * (TILE + GAP) + GAP, TOP + len(prompts) * (TILE + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, run in enumerate(runs):
        head = f"{str(run.about['method']).replace('_', ' ')} {run.about['params']}"
        place = (TEXT + column * (TILE + GAP), 12)
        pen.multiline_text(place, _wrapped(head, bold, TILE), font=bold, fill="#222222")
    for row, prompt in enumerate(prompts):
        y = TOP + row * (TILE + GAP)
        words = _wrapped(prompt.text, font, TEXT - 3 * GAP)
        pen.multiline_text((GAP, y + 6), words, font=font, fill="#222222", spacing=5)
        pen.text((GAP, y + TILE - 22), prompt.category.replace("_", " "), font=font, fill="#888888")
        for column, run in enumerate(runs):
            _paste(sheet, (TEXT + column * (TILE + GAP), y), run, (prompt.id, 0))
    write_atomic(path, _png(sheet))
    return path


def contact_sheet(run: Run, pictures: int = 16, columns: int = 4) -> bytes | None:
    """PNG bytes of some of a run's images, spread over its categories; None where no image is
    there.
    """
    there = [prompt for prompt in run.prompts.values() if _file(run, (prompt.id, 0)) is not None]
    chosen = _spread(there, pictures)
    if not chosen:
        return None
    lines = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (GAP + columns * (TILE + GAP), GAP + lines * (TILE + GAP)), "white")
    for i, prompt in enumerate(chosen):
        place = (GAP + i % columns * (TILE + GAP), GAP + i // columns * (TILE + GAP))
        _paste(sheet, place, run, (prompt.id, 0))
    return _png(sheet)


def range_sheet(run: Run, reward: Judge, each: int = 3) -> Image.Image:
    """A run's best, median and worst images by a reward, `each` of them, a line for each category.

    Raises UserError where no image is there.
    """
    graded: dict[str, list[tuple[float, tuple[str, int]]]] = {}
    for key, record in sorted(run.done.items()):
        prompt = run.prompts[key[0]]
        file = run.image(record)
        if file is None:
            continue
        with Image.open(file, formats=FORMATS) as picture:
            (grade,) = reward([prompt.text], [np.asarray(picture.convert("RGB"))])
        graded.setdefault(prompt.category, []).append((grade or 0.0, key))
    if not graded:
        raise UserError(f"{run.path}: no image of it is there to be shown")
    font = ImageFont.load_default(14)
    bold = ImageFont.load_default(17)
    caption = 3 * 19
    wide = 3 * (each * (TILE + GAP) + 2 * GAP)
    high = TILE + caption + 3 * GAP
    sheet = Image.new("RGB", (LEFT + wide, 40 + len(graded) * high), "white")
    pen = ImageDraw.Draw(sheet)
    for i, head in enumerate(("best", "median", "worst")):
        pen.text((LEFT + i * wide // 3, 8), head, font=bold, fill="#222222")
    for line, (category, grades) in enumerate(graded.items()):
        y = 40 + line * high
        keys = [key for _, key in sorted(grades, reverse=True)]
        pen.multiline_text((GAP, y + 6), category.replace("_", "\n"), font=bold, fill="#222222")
        middle = max(0, (len(keys) - each) // 2)
        for i, some in enumerate((keys[:each], keys[middle : middle + each], keys[-each:])):
            for column, key in enumerate(some):
                x = LEFT + i * wide // 3 + column * (TILE + GAP)
                _paste(sheet, (x, y), run, key)
                words = _wrapped(run.prompts[key[0]].text, font, TILE)
                pen.multiline_text((x, y + TILE + 6), words, font=font, fill="#222222")
    return sheet


def _paste(sheet: Image.Image, place: tuple[int, int], run: Run, key: tuple[str, int]) -> None:
    """An image in a frame that tells its verdict; an empty frame where it is not there or not
    whole.
    """
    (x, y) = place
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((x, y, x + TILE, y + TILE), outline=UNJUDGED)
    file = _file(run, key)
    if file is None:
        return
    try:
        with Image.open(file, formats=FORMATS) as picture:
            sheet.paste(
                picture.convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST), place
            )
    except UNREADABLE:
        return
    if key in run.scores:
        right = (run.scores[key].value or 0.0) >= 0.5
        pen.rectangle(
            (x - 3, y - 3, x + TILE + 2, y + TILE + 2), outline=RIGHT if right else WRONG, width=4
        )


def _file(run: Run, key: tuple[str, int]) -> Path | None:
    """The image's file, if the image was delivered and is still there."""
    record = run.done.get(key)
    return run.image(record) if record is not None else None


def _spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count` prompts taken in turn from each category, sorted by category."""
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)
    order = list(by_category)
    chosen: list[Prompt] = []
    while len(chosen) < count and any(by_category.values()):
        chosen += [some.pop(0) for some in by_category.values() if some]
    return sorted(chosen[:count], key=lambda prompt: order.index(prompt.category))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return "\n".join(lines)
