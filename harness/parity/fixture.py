"""A parity fixture: a folder of arrays that an original implementation returned, and comparison.

The folder has a `manifest.json` (family, configuration, run settings, tolerances, every tensor with
its kind), checkpoints in the released layout, inputs and expected arrays. The module of a model
turns a folder into `Quantity` rows; `python -m harness.check parity FOLDER` prints them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.records import UserError


@dataclass(frozen=True, slots=True)
class Quantity:
    """One compared array: its largest error, and whether that is within tolerance."""

    name: str
    kind: str  # the manifest states a tolerance for each
    error: float
    passed: bool

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.name:<48} {self.kind:<8} largest error {self.error:.3g}"


class Fixture:
    """A fixture folder, its manifest read.

    Raises UserError for a folder that is no fixture, or lacks a file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: Mapping[str, Any] = json.loads((folder / "manifest.json").read_text())
            self.family: str = self.manifest["family"]
            self._kinds: dict[str, str] = {}
            for tensors in self.manifest["tensors"].values():
                for name, entry in tensors.items():
                    # A manifest without kinds states a tolerance for each array by its name.
                    self._kinds[name] = name if isinstance(entry, str) else entry["kind"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder} is no parity fixture: manifest.json cannot be used ({error})"
            ) from None

    def read_tensors(self, file: str) -> dict[str, Tensor]:
        """Read the arrays of one safetensors file of the folder."""
        try:
            return load_file(self.folder / file)
        except OSError as error:
            raise UserError(f"{self.folder / file} cannot be read ({error})") from None

    def compare(self, name: str, got: Tensor, expected: Tensor, device: torch.device) -> Quantity:
        """Compare one array, computed on `device`, within the tolerance of its kind there."""
        kind = self._kinds[name]
        got = got.detach().cpu()
        if got.shape != expected.shape:
            return Quantity(name, kind, float("inf"), False)

        difference = (got.double() - expected.double()).abs()
        error = float(difference.max())
        if kind == "uint8":
            # One level off is rounding, as long as it is rare.
            share = float((difference > 0).double().mean())
            return Quantity(name, kind, error, error <= 1 and share <= 1e-3)
        if kind == "exact":
            return Quantity(name, kind, error, error == 0)
        return Quantity(name, kind, error, error <= self._tolerance(kind, device))

    def compare_bfloat16(self, name: str, got: Tensor, expected: Tensor) -> Iterator[Quantity]:
        """Compare bfloat16 logits with expected float32 ones, if the manifest says how far apart.

        They may depart from them hardly more than the original's own do.
        """
        original = self.manifest.get("measured", {}).get("bf16")
        if original is None:
            return
        error = (got.detach().cpu().float() - expected).abs()
        measured = {
            "mean": (float(error.mean()), 1.5 * original["mean"]),
            "max": (float(error.max()), 3.0 * original["max"]),
        }
        for what, (value, limit) in measured.items():
            yield Quantity(f"{name} (bfloat16, {what})", "bf16", value, value <= limit)

    def _tolerance(self, kind: str, device: torch.device) -> float:
        """The largest allowed error of a kind; the manifest states it as "max abs 1e-4".

        Kinds with one tolerance may share an entry ("yes_logit, no_logit"). Raises KeyError for a
        kind without any.
        """
        tolerances = self.manifest["tolerances_float32_cpu"]
        if device.type == "cuda":
            on_cuda = self.manifest.get("tolerances_float32_cuda_tf32_off", {})
            tolerances = {**tolerances, **on_cuda}
        for kinds, text in tolerances.items():
            stated = re.match(r"max abs (\S+)", text)
            if stated and kind in kinds.split(", "):
                return float(stated[1])
        raise KeyError(kind)

    def compare_all(
        self, got: Mapping[str, Tensor], file: str, device: torch.device
    ) -> Iterator[Quantity]:
        """Compare every array of `got` with the array of that name in `file`."""
        expected = self.read_tensors(file)
        for name, value in got.items():
            yield self.compare(name, value, expected[name], device)
