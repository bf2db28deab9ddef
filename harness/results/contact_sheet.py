"""Draw contact sheets: images of several runs side by side, and images of a single run.

A sheet is a white RGB image with a frame around every picture. The frame is green where the
benchmark's judge found the image right, red where it did not, and grey where it was not asked.
All lengths are pixels.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.engine.session import Judge
from harness.records import Answer, Prompt, UserError
from harness.results.labels import label_runs
from harness.results.ranking import RankedGroup
from harness.runs.folder import FORMATS, UNREADABLE
from harness.runs.journal import write_atomic
from harness.runs.read import Run, read_run

TILE = 144
"""Side of a picture, whatever the size of the image."""
GAP = 10
PITCH = TILE + GAP
"""From the corner of one picture to that of the next."""

PROMPT_WIDTH = 270
"""Column on the left of a sheet of runs, with the prompts."""
RUN_NAME_HEIGHT = 112
"""Row at the top of a sheet of runs, with their labels and scores."""
LEGEND_HEIGHT = 34
"""Row at the bottom, which says what the frames mean."""

CATEGORY_WIDTH = 100
"""Column on the left of a sheet of rewards, with the categories."""
PART_NAME_HEIGHT = 40
"""Row at the top of a sheet of rewards."""
PARTS = ("best", "median", "worst")
CAPTION_HEIGHT = 3 * 19
"""Three lines of text below a picture."""

RIGHT = "#2e9e5b"
WRONG = "#d0453e"
UNJUDGED = "#cccccc"
INK = "#222222"
QUIET_INK = "#888888"

Key = tuple[str, int]
"""An image of a run: prompt id and number of the image."""
Grade = tuple[float, Key]
"""The reward of an image, and the image."""
Corner = tuple[int, int]
"""Left and upper edge."""
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


# --- several runs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Section:
    """Runs that share prompts, and the prompts that are shown of them."""

    prompts: list[Prompt]
    runs: list[Run]

    @property
    def has_sources(self) -> bool:
        """Tell whether its images are edits, which stand beside their sources."""
        return any(run.sources for run in self.runs)

    @property
    def width(self) -> int:
        return PROMPT_WIDTH + (self.has_sources + len(self.runs)) * PITCH + GAP

    @property
    def height(self) -> int:
        return RUN_NAME_HEIGHT + len(self.prompts) * PITCH + GAP


def write_contact_sheet(folders: Sequence[Path], path: Path, rows: int = 12) -> Path:
    """Write a PNG with a row for each prompt and a column for each run; returns `path`.

    Runs of other benchmarks have sections of their own below, half as long. A section shows the
    first image of at most `rows` prompts of its first run, spread over its categories, and before
    them the images that edits were made from.
    """
    runs = [read_run(folder) for folder in dict.fromkeys(folders)]
    sections = _split_into_sections(runs, rows)
    width = max(section.width for section in sections)
    height = sum(section.height for section in sections)
    sheet = ContactSheet(width, height + LEGEND_HEIGHT)
    top = 0
    for section in sections:
        _draw_section(sheet, top, section)
        top += section.height
    sheet.write_legend((GAP, height + 6), is_judged=_is_any_judged(runs))
    write_atomic(path, sheet.png())
    return path


def _split_into_sections(runs: Sequence[Run], rows: int) -> list[Section]:
    """Put runs that share shown prompts into sections, in the order of their first runs."""
    sections: list[Section] = []
    waiting = list(runs)
    while waiting:
        most = max(1, rows // 2) if sections else rows
        first, *others = waiting
        prompts = _spread_over_categories(list(first.prompts.values()), most)
        shown_ids = {prompt.id for prompt in prompts}
        members = [first] + [run for run in others if not shown_ids.isdisjoint(run.prompts)]
        waiting = [run for run in others if shown_ids.isdisjoint(run.prompts)]
        sections.append(Section(prompts, members))
    return sections


def _draw_section(sheet: ContactSheet, top: int, section: Section) -> None:
    """Draw runs side by side, from `top` on."""
    labels = label_runs(section.runs)
    first_column = int(section.has_sources)
    if first_column:
        sheet.write((PROMPT_WIDTH, top + 12), "source", size=16)
    for column, run in enumerate(section.runs, start=first_column):
        x = PROMPT_WIDTH + column * PITCH
        sheet.write((x, top + 12), str(labels[run.path]), size=16, width=TILE, most_lines=4)
        y = top + RUN_NAME_HEIGHT - 22
        sheet.write((x, y), _score_text(run), size=14, ink=QUIET_INK)

    for row, prompt in enumerate(section.prompts):
        y = top + RUN_NAME_HEIGHT + row * PITCH
        width = PROMPT_WIDTH - 3 * GAP
        category = prompt.category.replace("_", " ")
        sheet.write((GAP, y + 6), prompt.text, size=15, width=width, spacing=5)
        sheet.write((GAP, y + TILE - 22), category, size=15, ink=QUIET_INK)
        if first_column:
            sheet.paste_file((PROMPT_WIDTH, y), section.runs[0].source(prompt.id))
        for column, run in enumerate(section.runs, start=first_column):
            x = PROMPT_WIDTH + column * PITCH
            sheet.paste((x, y), run, (prompt.id, 0))


# --- one run --------------------------------------------------------------------------------------


def render_contact_sheet(run: Run, pictures: int = 16, columns: int = 4) -> bytes | None:
    """Return a PNG with at most `pictures` images of a run, spread over its categories.

    Edits stand beside their sources. Returns None if no image of the run is on the disk.
    """
    with_image = []
    for prompt in run.prompts.values():
        if _image_file(run, (prompt.id, 0)) is not None:
            with_image.append(prompt)
    prompts = _spread_over_categories(with_image, pictures)
    if not prompts:
        return None

    tiles = 2 if run.sources else 1  # of each image
    images_per_row = columns // tiles
    rows = math.ceil(len(prompts) / images_per_row)
    height = GAP + rows * PITCH + LEGEND_HEIGHT
    sheet = ContactSheet(GAP + columns * PITCH, height)
    for i, prompt in enumerate(prompts):
        row, column = divmod(i, images_per_row)
        x = GAP + column * tiles * PITCH
        y = GAP + row * PITCH
        if run.sources:
            sheet.paste_file((x, y), run.source(prompt.id))
            x += PITCH
        sheet.paste((x, y), run, (prompt.id, 0))
    sheet.write_legend((GAP, height - LEGEND_HEIGHT + 6), is_judged=_is_any_judged([run]))
    return sheet.png()


def _score_text(run: Run) -> str:
    """Return a run's score over all its prompts, as the leaderboard has it."""
    if not run.is_scored:
        return "not scored"
    return f"score {RankedGroup([run]).score(run):.3f}"


def _is_any_judged(runs: Sequence[Run]) -> bool:
    return any(run.is_scored for run in runs)


# --- one run, by a reward -------------------------------------------------------------------------


def draw_reward_range(run: Run, reward: Judge, each: int = 3) -> Image.Image:
    """Draw a run's best, median and worst images by a reward, `each` of them for each category.

    Raises UserError if no image of the run is on the disk.
    """
    grades = _grade_images(run, reward)
    if not grades:
        raise UserError(f"{run.path}: no image of it is there to be shown")

    part_width = each * PITCH + 2 * GAP
    row_height = TILE + CAPTION_HEIGHT + 3 * GAP
    width = CATEGORY_WIDTH + len(PARTS) * part_width
    height = PART_NAME_HEIGHT + len(grades) * row_height
    sheet = ContactSheet(width, height)

    for i, part in enumerate(PARTS):
        sheet.write((CATEGORY_WIDTH + i * part_width, 8), part, size=17)

    for row, (category, graded) in enumerate(grades.items()):
        y = PART_NAME_HEIGHT + row * row_height
        sheet.write((GAP, y + 6), category.replace("_", "\n"), size=17)
        for i, keys in enumerate(_split_range(graded, each)):
            x = CATEGORY_WIDTH + i * part_width
            _draw_captioned(sheet, (x, y), run, keys)
    return sheet.image


def _grade_images(run: Run, reward: Judge) -> Mapping[str, list[Grade]]:
    """Ask the reward about every image on the disk -> category -> graded images."""
    grades: dict[str, list[Grade]] = {}
    for key, record in sorted(run.done.items()):
        prompt = run.prompts[key[0]]
        file = run.image(record)
        if file is None:
            continue
        with Image.open(file, formats=FORMATS) as image:
            pixels = np.asarray(image.convert("RGB"))
        (said,) = reward([prompt.text], [pixels])
        grades.setdefault(prompt.category, []).append((Answer.of(said).value or 0.0, key))
    return grades


def _split_range(graded: Sequence[Grade], each: int) -> tuple[list[Key], ...]:
    """Return the images of each of PARTS, best first."""
    keys = [key for _, key in sorted(graded, reverse=True)]
    middle = max(0, (len(keys) - each) // 2)
    best = keys[:each]
    median = keys[middle : middle + each]
    worst = keys[-each:]
    return best, median, worst


def _draw_captioned(sheet: ContactSheet, corner: Corner, run: Run, keys: Sequence[Key]) -> None:
    """Draw images in a row, each with its prompt below."""
    left, y = corner
    for column, key in enumerate(keys):
        x = left + column * PITCH
        prompt = run.prompts[key[0]]
        sheet.paste((x, y), run, key)
        sheet.write((x, y + TILE + 6), prompt.text, size=14, width=TILE)


# --- parts of a sheet -----------------------------------------------------------------------------


class ContactSheet:
    """A white image of that size, on which pictures and texts are drawn."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), "white")
        self._pen = ImageDraw.Draw(self.image)

    def write(
        self,
        corner: Corner,
        text: str,
        *,
        size: int,
        width: int | None = None,
        ink: str = INK,
        spacing: int = 4,
        most_lines: int | None = None,
    ) -> None:
        """Write a text below and right of `corner`, in lines of at most `width`.

        `size` is that of the font, `spacing` the gap between lines. Of more than `most_lines` lines
        the rest is left out, which "..." says.
        """
        font = ImageFont.load_default(size)
        if width is not None:
            text = wrap(text, font, width)
        lines = text.split("\n")
        if most_lines is not None and len(lines) > most_lines:
            text = "\n".join(lines[:most_lines]) + " ..."
        self._pen.multiline_text(corner, text, font=font, fill=ink, spacing=spacing)

    def paste(self, corner: Corner, run: Run, key: Key) -> None:
        """Draw an image in the frame of its verdict; an empty grey frame if it cannot be read."""
        x, y = corner
        score = run.scores.get(key)
        if self.paste_file(corner, _image_file(run, key)) and score is not None:
            is_right = (score.value or 0.0) >= 0.5
            frame = (x - 3, y - 3, x + TILE + 2, y + TILE + 2)
            self._pen.rectangle(frame, outline=RIGHT if is_right else WRONG, width=4)

    def paste_file(self, corner: Corner, file: Path | None) -> bool:
        """Draw an image file in a grey frame, which stays empty if it cannot be read.

        Returns whether it could.
        """
        x, y = corner
        self._pen.rectangle((x, y, x + TILE, y + TILE), outline=UNJUDGED)
        if file is None:
            return False
        try:
            with Image.open(file, formats=FORMATS) as image:
                picture = image.convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST)
        except UNREADABLE:
            return False
        self.image.paste(picture, corner)
        return True

    def write_legend(self, corner: Corner, *, is_judged: bool) -> None:
        """Say in a line what the frames mean."""
        x, y = corner
        meanings = ((RIGHT, "right"), (WRONG, "wrong"), (UNJUDGED, "not judged, or no image"))
        if not is_judged:
            self.write(corner, "not judged", size=14, ink=QUIET_INK)
            return
        font = ImageFont.load_default(14)
        for color, meaning in meanings:
            self._pen.rectangle((x, y, x + 14, y + 14), outline=color, width=4)
            self.write((x + 22, y - 1), meaning, size=14, ink=QUIET_INK)
            x += 22 + math.ceil(font.getlength(meaning)) + 2 * GAP

    def png(self) -> bytes:
        """Return the image as a PNG file."""
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG")
        return buffer.getvalue()


def _image_file(run: Run, key: Key) -> Path | None:
    """Return the image's file; None if the image was not delivered or its file is gone."""
    record = run.done.get(key)
    return run.image(record) if record is not None else None


def _spread_over_categories(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Take at most `count` prompts, one of each category in turn; sorted by category."""
    waiting: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        waiting.setdefault(prompt.category, []).append(prompt)

    chosen: list[Prompt] = []
    while len(chosen) < count and any(waiting.values()):
        chosen += [some.pop(0) for some in waiting.values() if some]

    order = list(waiting)
    return sorted(chosen[:count], key=lambda prompt: order.index(prompt.category))


def wrap(text: str, font: Font, width: int) -> str:
    """Break a text into lines of at most `width` pixels; what cannot be broken has its own line."""
    lines = [""]
    for word in text.split():
        for part in _break_word(word, font, width):
            longer = f"{lines[-1]} {part}".strip()
            if not lines[-1] or font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
    return "\n".join(lines)


def _break_word(word: str, font: Font, width: int) -> list[str]:
    """Break a word that is wider than `width`, such as an option, behind its marks."""
    parts = [""]
    for piece in re.findall(r"[^=_,;:/@-]*[=_,;:/@-]|[^=_,;:/@-]+", word):
        if not parts[-1] or font.getlength(parts[-1] + piece) <= width:
            parts[-1] += piece
        else:
            parts.append(piece)
    return parts
