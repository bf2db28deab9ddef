"""Make the small images that a report's page shows, one file for each image.

A file is named by the hash of the original image. Equal images share a thumbnail, and it stays
when the original is deleted.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from PIL import Image

from harness.records import SampleRecord, digest
from harness.runs.folder import FORMATS, UNREADABLE
from harness.runs.read import Run

THUMB = 192
"""Pixels of a thumbnail's longer side, at most; smaller images are their own thumbnails."""


def write_thumbnails(run: Run, folder: Path, thumbs: MutableMapping[str, str]) -> None:
    """Make the thumbnails of a run's images that `thumbs` (stem -> file name) does not list yet.

    Adds them to `thumbs`. Images that are gone or damaged get none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for key, record in run.done.items():
        stem = thumbnail_stem(record)
        if stem in thumbs:
            continue
        name = write_thumbnail(run, key, folder)
        if name:
            thumbs[stem] = name


def write_thumbnail(run: Run, key: tuple[str, int], folder: Path) -> str:
    """Make the thumbnail of a delivered image where reports look for it; returns its file's name.

    Returns "" if the image is gone or damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = run.done[key]
    source = run.image(record)
    return _write_thumbnail(source, folder / thumbnail_stem(record)) if source else ""


def write_source_thumbnails(run: Run, folder: Path, thumbs: MutableMapping[str, str]) -> None:
    """Make the thumbnails of the images that a run's prompts ask to edit; adds them to `thumbs`."""
    for prompt_id, sha in run.sources.items():
        stem = source_stem(sha)
        file = run.source(prompt_id)
        if stem in thumbs or file is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        name = _write_thumbnail(file, folder / stem)
        if name:
            thumbs[stem] = name


def source_stem(sha: str) -> str:
    """Return the name of a source's thumbnail, without its suffix."""
    return digest(f"source {sha}".encode(), 16)


def _write_thumbnail(source: Path, target: Path) -> str:
    """Copy a small image or shrink a large one; a process that is killed leaves no half file."""
    temporary = target.with_name(f".{target.name}")
    try:
        with Image.open(source, formats=FORMATS) as image:
            image.load()
            if max(image.size) <= THUMB:
                target = target.with_suffix(".png")
                temporary.write_bytes(source.read_bytes())
            else:
                target = target.with_suffix(".webp")
                image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
                image.save(temporary, format="WEBP", quality=80)
    except UNREADABLE:
        return ""
    os.replace(temporary, target)
    return target.name


def thumbnail_stem(record: SampleRecord) -> str:
    """Return the name of an image's thumbnail, without its suffix.

    The hash is hashed once more: a journal may say anything, and this becomes a file's name.
    """
    return digest(record.image_sha.encode(), 16)


def measure_images(run: Run) -> list[int] | None:
    """Return width and height of a run's images in pixels, from the first that can be read."""
    for record in run.done.values():
        source = run.image(record)
        if source is None:
            continue
        with suppress(*UNREADABLE), Image.open(source, formats=FORMATS) as image:
            return list(image.size)
    return None
