"""Read image files for judges: a file that cannot be read becomes a message and spoils no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from harness.records import UserError, one_line

MOST_SHOWN = 200
"""Characters of an error that a message shows."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_images(paths: Iterable[Path]) -> list[np.ndarray | str]:
    """Read the pixels of each file, or a message that says why they cannot be read.

    Pixels are RGB, uint8 [H, W, 3], and turned upright by the EXIF orientation.
    """
    # Disk and decoder release Python's lock, so threads help.
    with ThreadPoolExecutor(8) as readers:
        return list(readers.map(_read_image, paths))


def judge_each(
    judge: Callable[[Sequence[Item]], Iterable[Result]], items: Sequence[Item]
) -> list[Result | str]:
    """Judge a batch of items; one that the judge cannot take gives a message instead of its result.

    An odd picture, of one row of pixels say, makes some networks raise: then each item is judged by
    itself. What the user can mend, and a lack of memory, are raised as they are.
    """
    if not items:
        return []
    try:
        return list(judge(items))
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if "memory" in str(error).lower():  # of a device: no fault of the picture
            raise
        if len(items) == 1:
            reason = one_line(error)[:MOST_SHOWN]
            is_refusal = isinstance(error, ValueError)
            return [reason if is_refusal else f"{type(error).__name__}: {reason}"]
    return [judge_each(judge, [item])[0] for item in items]


def judge_files(
    judge: Callable[[Sequence[np.ndarray]], Iterable[Result]],
    items: Iterable[tuple[Item, Path]],
    batch: int,
) -> Iterator[tuple[Item, Path, np.ndarray | str, Result | str]]:
    """Read and judge image files by batches; yield each with its pixels and its result.

    In their places is a message where a file cannot be read, or the judge cannot take it.
    """
    remaining = iter(items)
    while some := list(islice(remaining, batch)):
        pictures = read_images(path for _, path in some)
        images = [picture for picture in pictures if isinstance(picture, np.ndarray)]
        judged = iter(judge_each(judge, images))
        for (item, path), picture in zip(some, pictures, strict=True):
            yield item, path, picture, picture if isinstance(picture, str) else next(judged)


def _read_image(path: Path) -> np.ndarray | str:
    from PIL import Image, ImageOps

    if not path.is_file():
        return f"{path.name} is missing"
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                return _narrow_gray(np.asarray(upright))
            return np.asarray(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{path.name} cannot be read: {error}".replace(str(path), path.name)


def _narrow_gray(gray: np.ndarray) -> np.ndarray:
    """Return gray of 16 bits as RGB of 8: Pillow's own conversion makes nearly all of it white."""
    narrow = (gray.clip(0, 65535) // 257).astype(np.uint8)
    return np.repeat(narrow[..., None], 3, axis=-1)
