"""Traces in journals are short text, and the same for the same numbers and pixels."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from harness import pack_picture, pack_series, unpack_series


def test_a_series_comes_back_to_a_thousandth_with_its_gaps() -> None:
    values = np.array([0.0, 0.1234, np.nan, 65.534, 70.0, -1.0])
    expected = [0.0, 0.123, np.nan, 65.534, 65.534, 0.0]
    np.testing.assert_array_equal(unpack_series(pack_series(values)), expected)

    smooth = 0.5 + 0.2 * np.sin(np.arange(1000) / 30)
    assert len(pack_series(smooth)) < 2 * len(smooth)

    empty = np.zeros(0)
    assert unpack_series(pack_series(empty)).shape == (0,)


def test_a_picture_is_small_and_keeps_its_shape() -> None:
    image = np.zeros((384, 192, 3), np.uint8)
    image[:96] = (200, 40, 40)
    text = pack_picture(image)
    assert text == pack_picture(image.copy()) != pack_picture(image[::-1].copy())

    shown = Image.open(io.BytesIO(base64.b64decode(text)))
    assert (shown.format, shown.size) == ("WEBP", (48, 96))
    pixels = np.asarray(shown.convert("RGB"))
    np.testing.assert_allclose(pixels[4, 4], (200, 40, 40), atol=12)
    assert len(text) < 1000
