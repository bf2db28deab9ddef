"""Hold our decisions and models against what the original code returned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records import UserError

if TYPE_CHECKING:
    import torch

    from harness.parity.fixture import Fixture, Quantity

CONFORMANCE = {
    "acceptance": "methods.conformance.acceptance.conformance",
    "coco": "benchmarks.coco.conformance.conformance",
    "cool_sd": "methods.conformance.cool_sd.conformance",
    "geneval": "benchmarks.geneval.conformance.conformance",
    "geneval-summary": "benchmarks.geneval.conformance.conformance",
    "gridar": "methods.conformance.gridar.conformance",
    "pie_bench": "benchmarks.pie_bench.conformance.conformance",
    "scalingar": "methods.conformance.scalingar.conformance",
    "sjd_pac": "methods.conformance.sjd_pac.conformance",
    "t2i_compbench": "benchmarks.t2i_compbench.conformance.conformance",
    "tiif": "benchmarks.tiif.conformance.conformance",
}
"""Function of each kind of conformance file: file -> passed, failed, messages."""
PARITY = {
    "BLIP VQA, the attribute evaluator of T2I-CompBench": "benchmarks.t2i_compbench.parity.parity",
    "EditAR instruction editing": "harness.parity.editar.parity",
    "LlamaGen text-to-image": "harness.parity.llamagen.parity",
    "Janus-Pro text-to-image": "harness.parity.janus.parity",
    "SimpleAR text-to-image": "harness.parity.language.simplear",
    "Lumina-mGPT text-to-image": "harness.parity.language.lumina",
    "Emu3 text-to-image": "harness.parity.language.emu3",
}
"""Comparison of each family that a fixture's manifest may name."""


def check_conformance(kind: str, file: Path) -> int:
    """Run a conformance file, print what fails, and return the exit code."""
    return print_result(*import_function(CONFORMANCE[kind])(file))


def check_parity(folder: Path, device: str) -> int:
    """Compare our model with a fixture folder's arrays, and print a line for each.

    Returns a non-zero exit code if one is out of tolerance. Raises UserError for a folder that
    cannot be used, and for a device that is not there.
    """
    import torch

    from harness.models.devices import choose_device
    from harness.parity.fixture import Fixture

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    target = choose_device(device)

    passed = 0
    failed = 0
    for quantity in compare_with_original(Fixture(folder), target):
        print(quantity, flush=True)
        passed += quantity.passed
        failed += not quantity.passed
    return print_result(passed, failed or int(not passed), [])


def compare_with_original(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Compare every array of a fixture.

    Raises UserError for a family that we have no model of, and for a fixture that lacks an array.
    """
    if fixture.family not in PARITY:
        raise UserError(
            f"{fixture.folder} is of family {fixture.family!r}: known are {', '.join(PARITY)}"
        )
    try:
        yield from import_function(PARITY[fixture.family])(fixture, device)
    except KeyError as error:
        raise UserError(
            f"{fixture.folder} lacks {error}, which every fixture of its family has"
        ) from error


def print_result(passed: int, failed: int, messages: Sequence[str]) -> int:
    """Print messages and counts, and return the exit code."""
    for message in messages:
        print(message)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def import_function(name: str) -> Any:
    """Import the object of a dotted name."""
    module, function = name.rsplit(".", 1)
    return getattr(import_module(module), function)
