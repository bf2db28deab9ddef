"""Read and write folders of edited images: the reference's layout, and that of GridAR's driver.

FOLDER/1_change_object_80/1_artificial/1_animal/111000000000.jpg    the reference's, as the sources
FOLDER/visualization/111000000000_tgt_best.png                      GridAR's
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.jsonl import bad_line, read_objects
from benchmarks.pie_bench.annotations import SIDE
from harness.records import Prompt, UserError

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")


def find_outputs(folder: Path, prompts: Sequence[Prompt]) -> dict[tuple[str, int], Path]:
    """Find the edited image of each prompt; warns of those that are missing.

    Raises UserError for a folder without any.
    """
    found: dict[tuple[str, int], Path] = {}
    for prompt in prompts:
        path = _find_output(folder, prompt)
        if path is not None:
            found[prompt.id, 0] = path
    if not found:
        raise UserError(
            f"benchmark.images={folder}: no image of the {len(prompts)} edits asked for; the "
            f"layout is FOLDER/{prompts[0].spec['image_path']}, or "
            "FOLDER/visualization/<id>_tgt_best.png"
        )
    missing = len(prompts) - len(found)
    if missing:
        log.warning(
            "%s: %d of %d images are missing; they count as wrong", folder, missing, len(prompts)
        )
    return found


def _find_output(folder: Path, prompt: Prompt) -> Path | None:
    image_id = prompt.id.rpartition("/")[2]
    path = folder / prompt.spec["image_path"]
    places = [path, *(path.with_suffix(suffix) for suffix in SUFFIXES)]
    places.append(folder / "visualization" / f"{image_id}_tgt_best.png")
    return next((place for place in places if place.is_file()), None)


def crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of what is scored of an output.

    Of one that is not square it is the lower right square of 512: methods save source,
    reconstruction and result side by side.
    """
    if width == height:
        return 0, 0, width, height
    return width - SIDE, height - SIDE, width, height


def crop_output(pixels: np.ndarray) -> np.ndarray:
    """Crop an output to what is scored. Raises ValueError for one that is smaller than that."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = crop_box(width, height)
    if left < 0 or top < 0:
        raise ValueError(f"the output is {width}x{height}: it has no square of {SIDE} pixels")
    return pixels[top:bottom, left:right]


def export_run(run: Path, metadata: Path, folder: Path) -> tuple[int, int]:
    """Copy a run's first images into a new `folder` of the reference's layout, as PNG.

    `metadata` is PIE-Bench's folder. Returns how many were copied, and how many are missing. Raises
    UserError for a folder that is not empty and for a run of another benchmark.
    """
    from benchmarks.pie_bench.annotations import TYPES, read_annotations

    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose a new folder")
    prompts, _ = read_annotations(str(metadata), TYPES, brackets=False)
    known = {prompt.id: prompt for prompt in prompts}
    jobs = run / "jobs.jsonl"
    copied = 0
    missing = 0
    for line, job in read_objects(jobs):
        prompt = known.get(str(job.get("prompt_id")))
        if prompt is None:
            raise bad_line(jobs, line, f"{job.get('prompt_id')!r} is no edit of {metadata}")
        image = run / "images" / prompt.id.rpartition("/")[2] / "0.png"
        if not image.is_file():
            missing += 1
            continue
        target = (folder / prompt.spec["image_path"]).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, target)
        copied += 1
    return copied, missing
