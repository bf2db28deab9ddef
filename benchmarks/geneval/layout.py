"""Read and write the folder layout of GenEval's reference.

FOLDER/00000/metadata.jsonl      one row of the metadata file, as a single JSON object
FOLDER/00000/samples/0000.png    and so on; other files are ignored
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.jsonl import bad_line, read_objects
from harness.records import Prompt, UserError, dump, one_line

log = logging.getLogger(__name__)

IMAGES = 4
"""Images per prompt that the reference asks for."""


def read_folder(folder: Path, known: Sequence[Prompt]) -> dict[str, list[Path]]:
    """List the image files of each prompt id, in the order of their numbers.

    As in the reference, the metadata row alone tells which prompt it is; the folder's number is
    ignored. Raises UserError for a folder of another layout, and for a row that is none of the
    `known` prompts' or that two folders share.
    """
    if not folder.is_dir():
        raise UserError(
            f"benchmark.images={folder}: "
            "a number of images per prompt, or a folder of GenEval's layout"
        )
    ids = {dump(dict(prompt.spec)): prompt.id for prompt in known}
    found: dict[str, list[Path]] = {}
    for numbered in _numbered_folders(folder):
        metadata = numbered / "metadata.jsonl"
        row = _read_row(metadata)
        prompt_id = ids.get(dump(row))
        if prompt_id is None:
            raise UserError(
                f"{metadata}: {str(row.get('prompt'))[:60]!r} is no row of the benchmark's "
                "metadata; set benchmark.metadata to the file that the folder was made from, "
                "and benchmark.allow_other_version=true"
            )
        if prompt_id in found:
            raise UserError(f"{metadata}: another folder has the same row; a prompt has one folder")
        found[prompt_id] = _list_samples(numbered / "samples")

    if not any(found.values()):
        raise UserError(
            f"{folder}: no image; "
            "GenEval's layout is FOLDER/00000/metadata.jsonl, .../samples/0000.png"
        )
    return found


def warn_of_oddities(
    folder: Path, found: Mapping[str, Sequence[Path]], prompts: Sequence[Prompt], images: int
) -> None:
    """Warn of missing images, of another number per prompt than the reference's, of mixed sizes.

    `found` is what `read_folder` gave, `images` the number of images per prompt that are expected.
    """
    _warn_of_missing(folder, found, prompts, images)
    if images != IMAGES:
        log.warning("%s: %d images a prompt where the reference has %d", folder, images, IMAGES)

    paths = [path for prompt in prompts for path in found.get(prompt.id, ())]
    sizes = Counter(_describe_size(path) for path in paths).most_common()
    if len(sizes) > 1:
        listed = ", ".join(f"{count} of {size}" for size, count in sizes[:5])
        log.warning("%s: images of several sizes: %s", folder, listed)


def _warn_of_missing(
    folder: Path, found: Mapping[str, Sequence[Path]], prompts: Sequence[Prompt], images: int
) -> None:
    missing = {prompt.id: images - len(found.get(prompt.id, ())) for prompt in prompts}
    incomplete = [prompt_id for prompt_id, count in missing.items() if count > 0]
    if not incomplete:
        return
    log.warning(
        "%s: %d of %d images are missing, from %d prompts (%s%s); they count as wrong",
        folder,
        sum(missing[prompt_id] for prompt_id in incomplete),
        images * len(prompts),
        len(incomplete),
        ", ".join(incomplete[:5]),
        ", ..." if len(incomplete) > 5 else "",
    )


def export_run(run: Path, folder: Path, prompts: Sequence[Prompt]) -> tuple[int, int]:
    """Copy a run's images into a new `folder` of the reference's layout; count copied and missing.

    `prompts` are all rows of the metadata file that the run was made from. Raises UserError for
    prompts of another file, and for a folder that is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is not empty: choose a new folder, so that no other run's images stay in it"
        )
    known = {prompt.id: prompt for prompt in prompts}
    jobs = run / "jobs.jsonl"
    copied = 0
    missing = 0
    for number, job in read_objects(jobs):
        prompt = known.get(str(job.get("prompt_id")))
        if prompt is None or prompt.text != job.get("text"):
            problem = f"{job.get('prompt_id')!r} is no row of the metadata file"
            raise bad_line(jobs, number, problem)

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


def _numbered_folders(folder: Path) -> list[Path]:
    """List the subfolders whose name is a number, sorted by name."""
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"[0-9]+", path.name)
    )


def _read_row(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no metadata row ({one_line(error)})") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}: expected one JSON object, found {type(row).__name__}")
    return row


def _list_samples(folder: Path) -> list[Path]:
    """List the images of a `samples` folder by their number; none where there is no folder.

    Raises UserError for two files of one number, such as 0.png beside 0000.png.
    """
    if not folder.is_dir():
        return []
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"([0-9]+)\.png", path.name)
        if not match or not path.is_file():
            continue
        other = numbered.setdefault(int(match[1]), path)
        if other != path:
            raise UserError(f"{path} and {other.name} have the same number: remove one of them")
    return [path for _, path in sorted(numbered.items())]


def _describe_size(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return f"{image.width} x {image.height}"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "no readable size"
