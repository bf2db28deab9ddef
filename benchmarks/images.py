"""Read image files for judges: a file that cannot be read becomes a message and spoils no other."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def read_images(paths: Iterable[Path]) -> list[np.ndarray | str]:
    """Read the pixels of each file, or a message that says why they cannot be read.

    Pixels are RGB, uint8 [H, W, 3], and turned upright by the EXIF orientation.
    """
    # Disk and decoder release Python's lock, so threads help.
    with ThreadPoolExecutor(8) as readers:
        return list(readers.map(_read_image, paths))


def _read_image(path: Path) -> np.ndarray | str:
    from PIL import Image, ImageOps

    if not path.is_file():
        return f"{path.name} is missing"
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{path.name} cannot be read: {error}".replace(str(path), path.name)
