"""`python -m harness.check`: conformance files and audits of run folders.

python -m harness.check geneval FILE     our GenEval decision against a conformance file; geneval-summary: the summary
python -m harness.check acceptance FILE  acceptance rules of speculative methods, likewise
python -m harness.check gridar FILE      GridAR's guidance, verdicts, copies, prompts and choice, likewise
python -m harness.check scalingar FILE   our ScalingAR arithmetic against a conformance file
python -m harness.check tiif FILE        TIIF-Bench's replies, scores and text metrics, likewise
python -m harness.check parity FOLDER    our model against what the original returned, in a fixture folder
python -m harness.check run FOLDER       is a run folder complete, intact and reproducible?
python -m harness.check repeat [OPTIONS] is a run the same in other company, order, pieces, sizes? options as of a sweep
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.cli import remedy, say
from harness.records import SampleRecord, UserError, digest, one_line

CONFORMANCE = {
    "acceptance": "methods.conformance.acceptance.conformance",
    "geneval": "benchmarks.geneval.conformance.conformance",
    "geneval-summary": "benchmarks.geneval.conformance.conformance",
    "gridar": "methods.conformance.gridar.conformance",
    "scalingar": "methods.conformance.scalingar.conformance",
    "tiif": "benchmarks.tiif.conformance.conformance",
}
PARITY = {
    "LlamaGen text-to-image": "harness.parity.llamagen.parity",
    "Janus-Pro text-to-image": "harness.parity.janus.parity",
}
"""Comparison of each family that a fixture's manifest may name."""


def main(arguments: Sequence[str] | None = None) -> int:
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
    repeated = kinds.add_parser(
        "repeat", help="draw runs again in other company, order, pieces and sizes"
    )
    repeated.add_argument("options", nargs="*", help="of a sweep (default experiment=determinism)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.kind == "repeat":
            return check_repeat(chosen.options)
        if chosen.kind == "parity":
            return check_parity(chosen.folder, chosen.device)
        if chosen.kind == "run":
            return _verdict(*audit_run(chosen.folder, chosen.again))
        return _verdict(*_dotted(CONFORMANCE[chosen.kind])(chosen.file))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return say(remedy(one_line(error)))


def _verdict(passed: int, failed: int, messages: Sequence[str]) -> int:
    for message in messages:
        print(message)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def _dotted(name: str) -> Any:
    module, function = name.rsplit(".", 1)
    return getattr(import_module(module), function)


def check_parity(folder: Path, device: str) -> int:
    """Compare our model with a fixture folder's arrays, one line each; non-zero when one is out of
    tolerance.
    """
    import torch

    from harness.parity.fixture import Fixture

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {device} is not usable here: leave it out for the CPU")
    fixture = Fixture(folder)
    if fixture.family not in PARITY:
        raise UserError(f"{folder} is of family {fixture.family!r}: known are {', '.join(PARITY)}")
    passed = failed = 0
    try:
        for quantity in _dotted(PARITY[fixture.family])(fixture, torch.device(device)):
            print(quantity, flush=True)
            passed = passed + quantity.passed
            failed = failed + (not quantity.passed)
    except KeyError as error:
        raise UserError(f"{folder} lacks {error}, which every fixture of its family has") from error
    return _verdict(passed, failed or int(not passed), [])


def check_repeat(options: Sequence[str]) -> int:
    """Draw each point of a sweep again in every way and print a table; non-zero where a promise is
    broken.
    """
    from harness import reproducibility as repeat

    rows = []
    failures = []
    for name, point in repeat.points(options):
        found = repeat.audit(point)
        rows.append((name, found))
        failures += [
            f"{name}, {what}: promised to agree in every bit, but {found[what]}"
            for what in repeat.broken(found)
        ]
        print(
            f"{point.model.name}, {name}: {', '.join(f'{what} {how}' for what, how in found.items())}",
            flush=True,
        )
    print(f"\n{repeat.table(rows)}\n")
    return _verdict(len(repeat.VARIATIONS) * len(rows) - len(failures), len(failures), failures)


def audit_run(folder: Path, again: int) -> tuple[int, int, list[str]]:
    """Checks of a run folder: planned = done + failed, files match their hashes, `again` records
    can be drawn again.

    Returns how many checks passed and failed, and what failed. Raises UserError for a folder that
    is no run.
    """
    from harness.runs.journal import journals, read_lines

    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: config.yaml is missing")
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    records = {}
    lines = [
        read_lines(path, SampleRecord.from_json) for path in journals(folder, "records-*.jsonl")
    ]
    for record in chain.from_iterable(lines):
        if record.status == "done" or record.key not in records:
            records[record.key] = record
    planned = config.run.planned
    done = [record for record in records.values() if record.status == "done"]
    checks = [(len(records) == planned, f"{planned} images planned, {len(records)} done or failed")]
    for record in done:
        file = folder / record.path
        found = digest(file.read_bytes()) if file.is_file() else "missing"
        checks.append(
            (
                found == record.image_sha,
                f"{record.path}: {found[:12]} instead of {record.image_sha[:12]}",
            )
        )
    if "model" in config:  # images made elsewhere have none
        checks += _drawn_again(config, done, again)
    failures = [message for passed, message in checks if not passed]
    return len(checks) - len(failures), len(failures), failures


def _drawn_again(
    config: DictConfig, done: list[SampleRecord], count: int
) -> list[tuple[bool, str]]:
    """Draw some records again, alone on a fresh sampler, and compare tokens."""
    from harness.engine.scheduler import Delivery
    from harness.runs.folder import tokens_sha
    from harness.runs.spec import Point

    chosen = random.Random(0).sample(done, min(count, len(done)))
    if not chosen:
        return []
    config.device = "auto"
    point = Point(config, {"method": config.run.method, "benchmark": config.run.benchmark})
    if point.fingerprint != config.run.fingerprint:
        return [
            (
                False,
                f"this installation makes run {point.fingerprint}, the folder holds {config.run.fingerprint}",
            )
        ]
    wanted = {record.key: record for record in chosen}
    checks = []

    def compare(delivery: Delivery) -> None:
        record = wanted[delivery.job.key]
        checks.append(
            (
                tokens_sha(delivery.tokens) == record.tokens_sha,
                f"{record.path}: drawn again, it differs",
            )
        )

    point.draw([job for job in point.jobs if job.key in wanted], compare)
    return checks


if __name__ == "__main__":
    sys.exit(main())
