"""`python -m harness.check`: conformance files and audits of run folders.

python -m harness.check geneval FILE     our GenEval decision against a conformance file
python -m harness.check geneval-summary FILE     its summary, likewise
python -m harness.check acceptance FILE  acceptance rules of speculative methods, likewise
python -m harness.check gridar FILE      GridAR's guidance, verdicts, copies, prompts and choice
python -m harness.check scalingar FILE   our ScalingAR arithmetic, likewise
python -m harness.check tiif FILE        TIIF-Bench's replies, scores and text metrics, likewise
python -m harness.check parity FOLDER    our model against what the original returned
python -m harness.check run FOLDER       is a run folder complete, intact and reproducible?
python -m harness.check repeat [OPTIONS] is a run the same in other batches, orders, pieces, sizes?
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.cli import explain_unknown_option, print_error
from harness.records import SampleRecord, UserError, digest, one_line

CONFORMANCE = {
    "acceptance": "methods.conformance.acceptance.conformance",
    "geneval": "benchmarks.geneval.conformance.conformance",
    "geneval-summary": "benchmarks.geneval.conformance.conformance",
    "gridar": "methods.conformance.gridar.conformance",
    "scalingar": "methods.conformance.scalingar.conformance",
    "tiif": "benchmarks.tiif.conformance.conformance",
}
"""Function of each kind of conformance file: file -> passed, failed, messages."""
PARITY = {
    "LlamaGen text-to-image": "harness.parity.llamagen.parity",
    "Janus-Pro text-to-image": "harness.parity.janus.parity",
}
"""Comparison of each family that a fixture's manifest may name."""


class Check(NamedTuple):
    """One thing that must hold, and what to print if it does not."""

    passed: bool
    message: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line, and return the exit code."""
    chosen = _parse_arguments(arguments)
    try:
        if chosen.kind == "repeat":
            return check_reproducibility(chosen.options)
        if chosen.kind == "parity":
            return check_parity(chosen.folder, chosen.device)
        if chosen.kind == "run":
            return _print_result(*audit_run(chosen.folder, chosen.again))
        check_conformance = _import_function(CONFORMANCE[chosen.kind])
        return _print_result(*check_conformance(chosen.file))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return print_error(explain_unknown_option(one_line(error)))


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
    fixture = Fixture(folder)
    if fixture.family not in PARITY:
        raise UserError(f"{folder} is of family {fixture.family!r}: known are {', '.join(PARITY)}")

    compare = _import_function(PARITY[fixture.family])
    passed = 0
    failed = 0
    try:
        for quantity in compare(fixture, target):
            print(quantity, flush=True)
            passed += quantity.passed
            failed += not quantity.passed
    except KeyError as error:
        raise UserError(f"{folder} lacks {error}, which every fixture of its family has") from error
    return _print_result(passed, failed or int(not passed), [])


def check_reproducibility(options: Sequence[str]) -> int:
    """Draw each run of a sweep again in every way, and print a table.

    Returns a non-zero exit code if a promise is broken.
    """
    from harness.reproducibility import (
        VARIATIONS,
        audit,
        compose_runs,
        find_broken_promises,
        format_table,
    )

    rows = []
    failures = []
    for name, spec in compose_runs(options):
        found = audit(spec)
        rows.append((name, found))
        for variation in find_broken_promises(found):
            failures.append(
                f"{name}, {variation}: promised to agree in every bit, but {found[variation]}"
            )
        agreements = ", ".join(f"{variation} {how}" for variation, how in found.items())
        print(f"{spec.model.name}, {name}: {agreements}", flush=True)
    print(f"\n{format_table(rows)}\n")
    drawn = len(VARIATIONS) * len(rows)
    return _print_result(drawn - len(failures), len(failures), failures)


def audit_run(folder: Path, again: int) -> tuple[int, int, list[str]]:
    """Check that a run folder is complete and intact, and that `again` of its images draw again.

    Returns how many checks passed and failed, and what failed. Raises UserError for a folder that
    is no run.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: config.yaml is missing")
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    records = _read_records(folder)
    delivered = [record for record in records.values() if record.status == "done"]

    # 1. Every planned image is done or failed.
    planned = config.run.planned
    is_complete = len(records) == planned
    checks = [Check(is_complete, f"{planned} images planned, {len(records)} done or failed")]

    # 2. Every delivered image is there, byte for byte.
    checks += [_check_image(folder, record) for record in delivered]

    # 3. Some of them draw again. Imported images have no model that could.
    if "model" in config:
        checks += _check_again(config, delivered, again)

    failures = [check.message for check in checks if not check.passed]
    return len(checks) - len(failures), len(failures), failures


# ------------------------------------------------------------------ helpers


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m harness.check", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in CONFORMANCE:
        conformance = kinds.add_parser(kind, help="run a conformance file")
        conformance.add_argument("file", type=Path)
    parity = kinds.add_parser("parity", help="compare a model with what the original returned")
    parity.add_argument("folder", type=Path)
    parity.add_argument(
        "--device", default="cpu", help="cpu (default) or cuda; float32 without TF32"
    )
    audit = kinds.add_parser("run", help="audit a run folder")
    audit.add_argument("folder", type=Path)
    audit.add_argument(
        "--again", type=int, default=4, help="images to draw again and compare (default 4)"
    )
    repeat = kinds.add_parser(
        "repeat", help="draw runs again in other batches, orders, pieces and sizes"
    )
    repeat.add_argument("options", nargs="*", help="of a sweep (default experiment=determinism)")
    return parser.parse_args(arguments)


def _print_result(passed: int, failed: int, messages: Sequence[str]) -> int:
    for message in messages:
        print(message)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def _import_function(name: str) -> Any:
    module, function = name.rsplit(".", 1)
    return getattr(import_module(module), function)


def _read_records(folder: Path) -> dict[tuple[str, int], SampleRecord]:
    """Read the record of each image: of the delivery, or of the first failure if there is none."""
    from harness.runs.journal import find_journals, read_lines

    records: dict[tuple[str, int], SampleRecord] = {}
    for journal in find_journals(folder, "records-*.jsonl"):
        for record in read_lines(journal, SampleRecord.from_json):
            if record.status == "done" or record.key not in records:
                records[record.key] = record
    return records


def _check_image(folder: Path, record: SampleRecord) -> Check:
    file = folder / record.path
    found = digest(file.read_bytes()) if file.is_file() else "missing"
    is_intact = found == record.image_sha
    return Check(is_intact, f"{record.path}: {found[:12]} instead of {record.image_sha[:12]}")


def _check_again(config: DictConfig, delivered: Sequence[SampleRecord], count: int) -> list[Check]:
    """Draw some images again, on a fresh sampler, and compare their tokens."""
    from harness.engine.scheduler import Delivery
    from harness.runs.execute import Executor
    from harness.runs.folder import hash_tokens
    from harness.runs.spec import build_run_spec

    chosen = random.Random(0).sample(delivered, min(count, len(delivered)))
    if not chosen:
        return []
    config.device = "auto"
    choices = {"method": config.run.method, "benchmark": config.run.benchmark}
    spec = build_run_spec(config, choices)
    recorded = config.run.fingerprint
    if spec.fingerprint != recorded:
        message = f"this installation makes run {spec.fingerprint}, the folder holds {recorded}"
        return [Check(False, message)]

    checks = []
    records = {record.key: record for record in chosen}

    def compare(delivery: Delivery) -> None:
        record = records[delivery.job.key]
        is_same = hash_tokens(delivery.tokens) == record.tokens_sha
        checks.append(Check(is_same, f"{record.path}: drawn again, it differs"))

    jobs = [job for job in spec.plan.jobs if job.key in records]
    Executor(spec).draw(jobs, compare)
    return checks


if __name__ == "__main__":
    sys.exit(main())
