"""Series and pictures as short text, so that a method can note them in the journal and the report
can show them.

A series is kept in thousandths as 16-bit numbers, compressed, in base64: about 1.5 characters a
value.
"""

from __future__ import annotations

import base64
import io
import zlib

import numpy as np
from PIL import Image

_MISSING = 2**16 - 1
LONGEST = 96
"""Pixels of a noted picture's longer side, at most."""


def pack_series(values: np.ndarray) -> str:
    """Numbers from 0 to 65.534, others are cut off; NaN is kept."""
    number = np.clip(values * 1000, 0, _MISSING - 1).round()
    number = np.where(np.isnan(number), _MISSING, number).astype("<u2")
    planes = (
        number.reshape(-1, 1).view(np.uint8).T
    )  # high bytes hardly change: apart they compress well
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()


def unpack_series(text: str) -> np.ndarray:
    """The numbers of a packed series, float [T], to a thousandth; NaN where one was missing."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).reshape(2, -1)
    number = np.ascontiguousarray(planes.T).view("<u2").ravel()
    return np.where(number == _MISSING, np.nan, number / 1000)


def pack_picture(image: np.ndarray) -> str:
    """A uint8 [H, W, 3] image as a small lossy WebP in base64, about 1 kB; equal pixels give equal
    text.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=80, method=6)
    return base64.b64encode(buffer.getvalue()).decode()
