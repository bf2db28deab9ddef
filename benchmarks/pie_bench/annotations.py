"""Read PIE-Bench's folder: its mapping file, and the images that are to be edited."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pie_bench.masks import decode_mask
from harness.download import file_sha256
from harness.records import Prompt, SourceImage, UserError, one_line

MAPPING = "mapping_file.json"
IMAGES = "annotation_images"
SIDE = 512
"""Pixels a side of images and masks."""
TYPES = (
    "random",
    "change_object",
    "add_object",
    "delete_object",
    "change_content",
    "change_pose",
    "change_color",
    "change_material",
    "change_background",
    "change_style",
)
"""The edit types, by their id in the mapping file: categories of the prompts."""
COUNTS = (140, 80, 80, 80, 40, 40, 40, 40, 80, 80)
"""Images of each edit type."""
REMEDY = (
    "benchmark=pie_bench: set benchmark.metadata=PATH to the folder with mapping_file.json and "
    "annotation_images, which its authors hand out through a form "
    "(github.com/cure-lab/PnPInversion)"
)
FIELDS = {
    "image_path": str,
    "original_prompt": str,
    "editing_prompt": str,
    "editing_instruction": str,
    "editing_type_id": str,
    "mask": list,
}
"""The fields of an entry that are read, and their types."""


def read_annotations(
    metadata: str | None, types: Sequence[str], *, brackets: bool
) -> tuple[list[Prompt], str]:
    """Read the edits of some types, and name the data by the mapping file's hash.

    With `brackets` the prompts keep the square brackets that mark what differs. Raises UserError,
    with the entry and the remedy, for a folder that is not whole.
    """
    _expect_types(types)
    if metadata is None:
        raise UserError(REMEDY)
    folder = Path(metadata).expanduser()
    mapping = folder / MAPPING
    if not mapping.is_file():
        raise UserError(f"{mapping} is not there. {REMEDY}")
    try:
        entries = json.loads(mapping.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{mapping}: no JSON ({one_line(error)[:100]})") from None
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{mapping}: expected an object with an entry for each image")

    prompts = []
    for image_id, entry in entries.items():
        prompt = _read_entry(folder, image_id, entry, brackets=brackets)
        if prompt.category in types:
            prompts.append(prompt)
    if not prompts:
        raise UserError(f"{mapping}: no image of the types {', '.join(types)}")
    return prompts, file_sha256(mapping)[:8]


def remove_brackets(text: str) -> str:
    """Remove the square brackets that mark what differs between two prompts."""
    return text.replace("[", "").replace("]", "")


def _expect_types(types: Sequence[str]) -> None:
    for name in types:
        if name not in TYPES:
            raise UserError(f"benchmark.types: {name!r} is none of {', '.join(TYPES)}")
    if not types or len(set(types)) < len(types):
        raise UserError(f"benchmark.types={list(types)}: name each one once")


def _read_entry(folder: Path, image_id: str, entry: Any, *, brackets: bool) -> Prompt:
    """Read one entry of the mapping file. Raises UserError that names it."""
    where = f"{folder / MAPPING}, entry {image_id!r}"
    if not re.fullmatch("[0-9]{12}", image_id):
        raise UserError(f"{where}: ids have 12 digits")
    _expect_fields(where, entry)
    type_id = entry["editing_type_id"]
    if type_id not in map(str, range(len(TYPES))):
        raise UserError(f"{where}: editing_type_id {type_id!r} is none of 0 to 9")
    mask = entry["mask"]
    try:
        if not all(type(value) is int for value in mask):
            raise ValueError("a mask holds whole numbers")
        decode_mask(mask, SIDE, SIDE)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if not entry["editing_instruction"].strip():
        raise UserError(f"{where}: its editing_instruction is empty")

    clean = str if brackets else remove_brackets
    return Prompt(
        id=f"pie_bench/{image_id}",
        text=entry["editing_instruction"],
        category=TYPES[int(type_id)],
        spec={
            "image_path": entry["image_path"],
            "source_prompt": clean(entry["original_prompt"]),
            "target_prompt": clean(entry["editing_prompt"]),
            "mask": mask,
        },
        source=_read_source(folder, where, entry["image_path"]),
    )


def _expect_fields(where: str, entry: Any) -> None:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: expected an object, found {type(entry).__name__}")
    for name, kind in FIELDS.items():
        if not isinstance(entry.get(name), kind):
            raise UserError(f"{where}: {name!r} is missing or no {kind.__name__}")


def _read_source(folder: Path, where: str, image_path: str) -> SourceImage:
    """Read an image to be edited. Raises UserError unless it lies in the folder and fits a mask."""
    images = (folder / IMAGES).resolve()
    path = (images / image_path).resolve()
    if not path.is_relative_to(images):
        raise UserError(f"{where}: image_path {image_path!r} leads out of {IMAGES}")
    if not path.is_file():
        raise UserError(f"{where}: {path} is missing")
    source = SourceImage(path.read_bytes(), str(path))
    width, height = source.size
    if (width, height) != (SIDE, SIDE):
        raise UserError(f"{where}: {path} is {width}x{height}, its mask is of {SIDE}x{SIDE}")
    return source
