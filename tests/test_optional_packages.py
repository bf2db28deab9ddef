"""A benchmark whose optional packages are not installed says which command installs them."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.geneval.colors import Clip
from benchmarks.geneval.mmdet_backend import Mmdet
from benchmarks.optional import require
from benchmarks.tiif.text import RapidOcr
from harness.records import UserError


def load_detector() -> None:
    Mmdet(weights="random", device="cpu").load()


def load_colors() -> None:
    Clip(device="cpu").load()


def read_text() -> None:
    RapidOcr().read(np.zeros((8, 8, 3), np.uint8))


def test_a_package_that_is_installed_is_not_imported() -> None:
    require("antigravity", extra="geneval")  # it opens a browser when it is imported
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("mmcv", "geneval", load_detector),
        ("mmengine", "geneval", load_detector),
        ("mmdet", "geneval", load_detector),
        ("open_clip", "geneval", load_colors),
        ("rapidocr", "tiif", read_text),
        ("onnxruntime", "tiif", read_text),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, extra: str, use: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        use()
    assert str(caught.value) == (
        f"benchmark={extra} needs {package}, which is not installed: "
        f"pip install 'visual-ar-tts[{extra}]'"
    )
