"""Reading image files for judges: what cannot be read is said, and spoils nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def read_images(paths: Iterable[Path]) -> list[np.ndarray | str]:
    """RGB pixels of each file, uint8 [H, W, 3] and upright by its EXIF orientation, or why there
    are none.
    """
    with ThreadPoolExecutor(8) as readers:  # decoding and the disk leave Python alone
        return list(readers.map(_read, paths))


def _read(path: Path) -> np.ndarray | str:
    from PIL import Image, ImageOps

    if not path.is_file():
        return f"{path.name} is missing"
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{path.name} cannot be read: {error}".replace(str(path), path.name)
