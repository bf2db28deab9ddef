"""Step 4: our models on the device against arrays that the original code returned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from harness.check.gpu.finding import Finding, NotRunError, Part, Setting
from harness.check.originals import PARITY, compare_with_original
from harness.parity.fixture import Fixture, Quantity


def list_parts(setting: Setting) -> Sequence[Part]:
    """List a part for each fixture of a family that we have a model of.

    Raises NotRunError without a folder of fixtures, and for one that holds none of ours.
    """
    if setting.fixtures is None:
        raise NotRunError("no fixtures were named: give --fixtures DIR")
    manifests = sorted(setting.fixtures.glob("*/manifest.json"))
    folders = [path.parent for path in manifests if _is_known(path.parent)]
    if not folders:
        raise NotRunError(f"{setting.fixtures} holds no fixture of {', '.join(PARITY)}")
    return [Part(folder.name, partial(compare_fixture, folder), 90) for folder in folders]


def _is_known(folder: Path) -> bool:
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest.get("family") in PARITY


def compare_fixture(folder: Path, setting: Setting) -> Finding:
    """Compare all arrays of a fixture: float32 without TF32, then bfloat16."""
    fixture = Fixture(folder)
    left_out: list[str] = []
    found = list(_until_missing(compare_with_original(fixture, setting.torch_device), left_out))
    return judge_quantities(found, left_out)


def judge_quantities(found: Sequence[Quantity], left_out: Sequence[str]) -> Finding:
    """Sum compared arrays up: how many agree, and the largest error of each kind."""
    largest: dict[str, float] = {}
    for quantity in found:
        largest[quantity.kind] = max(largest.get(quantity.kind, 0.0), quantity.error)
    failures = [str(quantity) for quantity in found if not quantity.passed]
    if not found:
        failures.append("nothing was compared")
    passed = sum(quantity.passed for quantity in found)
    headline = f"{passed} of {len(found)} arrays agree"
    if left_out:
        headline += f", left out: {', '.join(left_out)}"
    figures = {
        "compared": len(found),
        "passed": passed,
        "largest_errors": {kind: _finite(error) for kind, error in largest.items()},
        "left_out": list(left_out),
    }
    return Finding(headline, figures, failures)


def _finite(error: float) -> float | str:
    """Return an error as JSON may hold it; infinity is an array of another shape."""
    return error if error < float("inf") else "infinite"


def _until_missing(quantities: Iterable[Quantity], left_out: list[str]) -> Iterable[Quantity]:
    """Yield quantities; where a package for cleaning captions is missing, note that and end.

    Captions are the last that a fixture's comparison comes to.
    """
    try:
        yield from quantities
    except ModuleNotFoundError as error:
        if error.name != "ftfy":
            raise
        left_out.append("caption cleaning (ftfy is not installed)")
