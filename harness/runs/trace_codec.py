"""Pack series and pictures into short text: methods note them in the journal, reports show them.

A series is kept in thousandths as 16-bit numbers, compressed, in base64: about 1.5 characters a
value. A picture is a small WebP in base64.
"""

from __future__ import annotations

import base64
import io
import zlib

import numpy as np

LONGEST = 96
"""Pixels of a packed picture's longer side, at most."""
_MISSING = 2**16 - 1


def pack_series(values: np.ndarray) -> str:
    """Pack numbers from 0 to 65.534 to a thousandth; others are clipped, NaN is kept."""
    thousandths = np.clip(values * 1000, 0, _MISSING - 1).round()
    numbers = np.where(np.isnan(thousandths), _MISSING, thousandths).astype("<u2")
    # High bytes hardly change: apart from the low ones they compress well.
    planes = numbers.reshape(-1, 1).view(np.uint8).T
    packed = zlib.compress(planes.tobytes(), 9)
    return base64.b64encode(packed).decode()


def unpack_series(text: str) -> np.ndarray:
    """Unpack a series, float [T], to a thousandth; NaN where a number was missing."""
    unpacked = zlib.decompress(base64.b64decode(text))
    planes = np.frombuffer(unpacked, dtype=np.uint8).reshape(2, -1)
    numbers = np.ascontiguousarray(planes.T).view("<u2").ravel()
    return np.where(numbers == _MISSING, np.nan, numbers / 1000)


def pack_picture(image: np.ndarray) -> str:
    """Pack a uint8 [H, W, 3] image as a small lossy picture, about 1 kB.

    Equal pixels give equal text.
    """
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=80, method=6)
    return base64.b64encode(buffer.getvalue()).decode()
