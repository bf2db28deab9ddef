"""The folder layout of GenEval's reference: reading images made elsewhere, and handing ours over.

FOLDER/00000/metadata.jsonl      one row of the metadata file, as a single JSON object
FOLDER/00000/samples/0000.png    and so on; other files are ignored
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.jsonl import bad_line, read_objects
from harness.records import Prompt, UserError, dump, one_line

log = logging.getLogger(__name__)

IMAGES = 4
"""Images a prompt that the reference asks for."""


def read_folder(folder: Path, known: Sequence[Prompt]) -> dict[str, list[Path]]:
    """Image files by prompt id, in the order of their numbers.

    A prompt is known by its row alone, as for the reference: the folder's number is not used.
    Raises UserError for a folder that is not of the layout, or rows that `known` has not.
    """
    if not folder.is_dir():
        raise UserError(
            f"benchmark.images={folder}: a number of images per prompt, or a folder of GenEval's layout"
        )
    ids = {dump(dict(prompt.spec)): prompt.id for prompt in known}
    found: dict[str, list[Path]] = {}
    for one in sorted(
        path for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"[0-9]+", path.name)
    ):
        row = _row(one / "metadata.jsonl")
        if (prompt_id := ids.get(dump(row))) is None:
            raise UserError(
                f"{one / 'metadata.jsonl'}: {str(row.get('prompt'))[:60]!r} is no row of the benchmark's metadata; set "
                "benchmark.metadata to the file that the folder was made from, and benchmark.allow_other_version=true"
            )
        if prompt_id in found:
            raise UserError(
                f"{one / 'metadata.jsonl'}: another folder has the same row; a prompt has one folder"
            )
        found[prompt_id] = _samples(one / "samples")
    if not any(found.values()):
        raise UserError(
            f"{folder}: no image; GenEval's layout is FOLDER/00000/metadata.jsonl, .../samples/0000.png"
        )
    return found


def say_oddities(
    folder: Path, found: dict[str, list[Path]], asked: Sequence[Prompt], images: int
) -> None:
    """Warn of images that are missing, of another number than the reference's, and of several
    sizes.
    """
    short = [prompt.id for prompt in asked if len(found.get(prompt.id, ())) < images]
    if short:
        lacking = sum(images - len(found.get(prompt_id, ())) for prompt_id in short)
        log.warning(
            "%s: %d of %d images are missing, from %d prompts (%s%s); they count as wrong",
            *(
                folder,
                lacking,
                images * len(asked),
                len(short),
                ", ".join(short[:5]),
                ", ..." if short[5:] else "",
            ),
        )
    if images != IMAGES:
        log.warning("%s: %d images a prompt where the reference has %d", folder, images, IMAGES)
    sizes = Counter(
        _size(path) for prompt in asked for path in found.get(prompt.id, ())
    ).most_common()
    if len(sizes) > 1:
        log.warning(
            "%s: images of several sizes: %s",
            folder,
            ", ".join(f"{n} of {size}" for size, n in sizes[:5]),
        )


def export(run: Path, folder: Path, prompts: Sequence[Prompt]) -> tuple[int, int]:
    """Copy a run's images into a new `folder` of the reference's layout, and say how many there
    were and are missing.

    `prompts` are all rows of the metadata file that the run was made from. Raises UserError for
    another file's rows.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is not empty: choose a new folder, so that no other run's images stay in it"
        )
    known = {prompt.id: prompt for prompt in prompts}
    copied = missing = 0
    for number, job in read_objects(run / "jobs.jsonl"):
        prompt = known.get(str(job.get("prompt_id")))
        if prompt is None or prompt.text != job.get("text"):
            raise bad_line(
                run / "jobs.jsonl",
                number,
                f"{job.get('prompt_id')!r} is no row of the metadata file",
            )
        name = prompt.id.split("/")[-1]
        samples = folder / name / "samples"
        samples.mkdir(parents=True)
        (folder / name / "metadata.jsonl").write_text(json.dumps(dict(prompt.spec)) + "\n")
        for image in range(int(job["images"])):
            source = run / "images" / name / f"{image}.png"
            if source.is_file():
                shutil.copyfile(source, samples / f"{image:04d}.png")
                copied += 1
            else:
                missing += 1
    return copied, missing


def _row(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no metadata row ({one_line(error)})") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}: expected one JSON object, found {type(row).__name__}")
    return row


def _samples(folder: Path) -> list[Path]:
    numbered = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := re.match(r"([0-9]+)\.png", path.name)) and path.is_file()
    ]
    return [path for _, path in sorted(numbered)]


def _size(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return f"{image.width} x {image.height}"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "no readable size"
