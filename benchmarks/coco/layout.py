"""Find images of COCO captions that were made elsewhere, by the names that evaluations give them.

    000000000139.png     the image's id, as COCO's own files
    prompt_0.png         its place in the list of captions, from 0 (LANTERN)
    370818.png           the caption's id (SJD)
    0.png, captions.txt  a line of captions.txt, from 0, which has the caption

Names are matched by number, never by their order: one missing image would shift all that follow.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.records import Prompt, UserError

log = logging.getLogger("harness")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = "captions.txt"
MOST_SHOWN = 5

Found = dict[tuple[str, int], Path]


def find_images(folder: Path, prompts: Sequence[Prompt]) -> Found:
    """Find the image of each prompt, by prompt id and number.

    Raises UserError where nothing is found, two layouts fit, a name is beyond the list, or two
    files are of one prompt. Warns of prompts without an image, and of images that are not PNG.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    layouts = _list_layouts(folder, prompts)
    fitting = []
    for layout, keys in layouts.items():
        matched = [path for path in files if _read_key(layout, path) in keys]
        if matched:
            fitting.append((layout, matched))
    if not fitting:
        raise UserError(
            f"benchmark.images={folder}: no image of the {len(prompts)} captions: name files by "
            f"{', by '.join(LAYOUTS.values())}"
        )
    if len(fitting) > 1:
        listed = "; ".join(f"by {LAYOUTS[layout]}: {_show(matched)}" for layout, matched in fitting)
        raise UserError(f"benchmark.images={folder}: two layouts fit ({listed}): keep one")
    layout = fitting[0][0]
    found = _match(folder, files, layout, layouts[layout])
    _warn(folder, found, prompts)
    return found


LAYOUTS: Mapping[str, str] = {
    "image": "the image's id of twelve digits",
    "prompt": "prompt_<place in the list, from 0>",
    "annotation": "the caption's id",
    "line": f"the line of {CAPTIONS}, from 0",
}
"""What names say, by the name of the layout."""
PATTERNS: Mapping[str, re.Pattern[str]] = {
    "image": re.compile(r"(\d{12})"),
    "prompt": re.compile(r"prompt_(\d+)"),
    "annotation": re.compile(r"(\d{1,11})"),
    "line": re.compile(r"(\d{1,11})"),
}


def _list_layouts(folder: Path, prompts: Sequence[Prompt]) -> dict[str, dict[int, str]]:
    """Return the prompt that each number stands for, by layout."""
    layouts: dict[str, dict[int, str]] = {
        "image": {int(prompt.spec["image_id"]): prompt.id for prompt in prompts},
        "prompt": {place: prompt.id for place, prompt in enumerate(prompts)},
        "annotation": {int(prompt.spec["annotation_id"]): prompt.id for prompt in prompts},
    }
    if (folder / CAPTIONS).is_file():
        layouts["line"] = _read_lines(folder / CAPTIONS, prompts)
    return layouts


def _read_lines(file: Path, prompts: Sequence[Prompt]) -> dict[int, str]:
    """Return the prompt of each line; equal captions are dealt in their order.

    Raises UserError naming a line that is no caption of the list, or stands too often.
    """
    left: dict[str, list[str]] = defaultdict(list)
    for prompt in prompts:
        left[" ".join(prompt.text.split())].append(prompt.id)
    found = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    for number, line in enumerate(lines):
        same = left.get(" ".join(line.split()))
        if not same:
            raise UserError(
                f"{file}, line {number + 1}: {line[:60]!r} is no caption of the list, or stands "
                "there more often"
            )
        found[number] = same.pop(0)
    return found


def _read_key(layout: str, path: Path) -> int | None:
    """Return the number in a file's name; None for a name of another layout."""
    match = PATTERNS[layout].fullmatch(path.stem)
    return int(match.group(1)) if match else None


def _match(folder: Path, files: Sequence[Path], layout: str, keys: Mapping[int, str]) -> Found:
    """Match files to prompts. Raises UserError for strange and for double ones."""
    found: Found = {}
    strange = []
    double = []
    for path in files:
        number = _read_key(layout, path)
        if number is None or number not in keys:
            strange.append(path)
            continue
        key = (keys[number], 0)
        if key in found:
            double.append(path)
        found[key] = path
    if strange:
        raise UserError(
            f"benchmark.images={folder}: {len(strange)} images are of no caption of the list, "
            f"named by {LAYOUTS[layout]}: {_show(strange)}"
        )
    if double:
        raise UserError(
            f"benchmark.images={folder}: {len(double)} captions have two images: {_show(double)}"
        )
    return found


def _warn(folder: Path, found: Found, prompts: Sequence[Prompt]) -> None:
    """Warn of what moves or prevents a distance: missing images, and lossy ones."""
    if missing := len(prompts) - len(found):
        log.warning(
            "%s: %d of %d images are missing: the run has no distances",
            folder,
            missing,
            len(prompts),
        )
    lossy = [path for path in found.values() if path.suffix.lower() != ".png"]
    if lossy:
        log.warning("%s: %d images are not PNG, which moves FID", folder, len(lossy))


def _show(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:MOST_SHOWN])
    return names + (", ..." if len(paths) > MOST_SHOWN else "")
