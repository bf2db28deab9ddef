"""What a parity check compares: quantities of our model against arrays that the original
implementation returned.

A fixture folder has a `manifest.json` (family, configuration, run settings, tolerances, every
tensor with its kind), checkpoints in the released layout, inputs and expected arrays. A model's
module turns a folder into `Quantity` rows; `python -m harness.check parity FOLDER` prints them.
"""

from __future__ import annotations

import json
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
    """One compared array: its largest error, and whether that is within the manifest's tolerance
    for its kind.
    """

    name: str
    kind: str
    error: float
    passed: bool

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name:<48} {self.kind:<8} largest error {self.error:.3g}"


class Fixture:
    """A fixture folder, read. Raises UserError for a folder that is none, or lacks a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: Mapping[str, Any] = json.loads((folder / "manifest.json").read_text())
            self.family: str = self.manifest["family"]
            self._kinds = {
                n: t["kind"]
                for tensors in self.manifest["tensors"].values()
                for n, t in tensors.items()
            }
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder} is no parity fixture: manifest.json cannot be used ({error})"
            ) from None

    def tensors(self, file: str) -> dict[str, Tensor]:
        """Arrays of one safetensors file of the folder."""
        try:
            return load_file(self.folder / file)
        except OSError as error:
            raise UserError(f"{self.folder / file} cannot be read ({error})") from None

    def compare(self, name: str, got: Tensor, expected: Tensor, device: torch.device) -> Quantity:
        """Hold one array against the tolerance of its kind on this device."""
        kind = self._kinds[name]
        tolerances = self.manifest["tolerances_float32_cpu"]
        if device.type == "cuda":
            tolerances = {**tolerances, **self.manifest["tolerances_float32_cuda_tf32_off"]}
        got = got.detach().cpu()
        expected = expected
        if got.shape != expected.shape:
            return Quantity(name, kind, float("inf"), False)
        difference = (got.double() - expected.double()).abs()
        error = float(difference.max())
        if kind == "uint8":
            return Quantity(
                name, kind, error, error <= 1 and float((difference > 0).double().mean()) <= 1e-3
            )
        if kind == "exact":
            return Quantity(name, kind, error, error == 0)
        return Quantity(name, kind, error, error <= float(tolerances[kind].rsplit(" ", 1)[1]))

    def compare_all(
        self, got: Mapping[str, Tensor], file: str, device: torch.device
    ) -> Iterator[Quantity]:
        """Every array of `got` against the array of that name in `file`."""
        expected = self.tensors(file)
        for name, value in got.items():
            yield self.compare(name, value, expected[name], device)
