"""Audit run folders, and draw runs again in every way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.check.originals import print_result
from harness.packages import add_author_folder
from harness.records import SampleRecord, UserError, digest, dump, one_line
from harness.runs.unknown_names import explain_compose_error

OWN_PROMPTS = "benchmarks.prompts.OwnPrompts"
"""The benchmark whose prompts lie in a file of the user's."""


class Check(NamedTuple):
    """One thing that must hold, and what to print if it does not."""

    passed: bool
    message: str


@contextmanager
def _explain_options() -> Iterator[None]:
    """Turn the errors of a configuration into UserErrors that name the option."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        raise UserError(explain_compose_error(error)) from error


@_explain_options()
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
    return print_result(drawn - len(failures), len(failures), failures)


@_explain_options()
def check_run(folder: Path, again: int, config_dir: Path | None = None) -> int:
    """Audit a run folder, print what fails, and return the exit code.

    Modules of an author's own are found beside `config_dir`, as the run found them. Raises
    UserError if there is no such folder.
    """
    if config_dir is not None:
        if not config_dir.is_dir():
            raise UserError(f"--config-dir {config_dir}: no such folder")
        add_author_folder(config_dir.resolve().parent)
    return print_result(*audit_run(folder, again))


def audit_run(folder: Path, again: int) -> tuple[int, int, list[str]]:
    """Check that a run folder is complete and intact, and that `again` of its images draw again.

    An image that failed leaves it incomplete. Returns how many checks passed and failed, and what
    failed. Raises UserError for a folder that is no run.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: config.yaml is missing")
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    records = _read_records(folder)
    delivered = [record for record in records.values() if record.status == "done"]

    # 1. Every planned image is delivered.
    checks = [_check_complete(config.run.planned, list(records.values()))]

    # 2. Every delivered image is there, byte for byte.
    checks += [_check_image(folder, record) for record in delivered]

    # 3. Some of them draw again. Imported images have no model that could.
    if "model" in config:
        checks += _check_again(folder, config, delivered, again)

    failures = [check.message for check in checks if not check.passed]
    return len(checks) - len(failures), len(failures), failures


def _read_records(folder: Path) -> dict[tuple[str, int], SampleRecord]:
    """Read the record of each image: of the delivery, or of the first failure if there is none."""
    from harness.runs.journal import find_journals, read_lines

    records: dict[tuple[str, int], SampleRecord] = {}
    for journal in find_journals(folder, "records-*.jsonl"):
        for record in read_lines(journal, SampleRecord.from_json):
            if record.status == "done" or record.key not in records:
                records[record.key] = record
    return records


def _check_complete(planned: int, records: Sequence[SampleRecord]) -> Check:
    """Check that all planned images are delivered; tell the error of the first that failed."""
    failed = [record for record in records if record.status == "failed"]
    delivered = len(records) - len(failed)
    message = f"{planned} images planned, {delivered} done, {len(failed)} failed"
    if failed:
        first = failed[0]
        message += f", first {first.prompt_id}, image {first.image}: {one_line(first.error)}"
    return Check(delivered == planned, message)


def _check_image(folder: Path, record: SampleRecord) -> Check:
    file = folder / record.path
    found = digest(file.read_bytes()) if file.is_file() else "missing"
    is_intact = found == record.image_sha
    return Check(is_intact, f"{record.path}: {found[:12]} instead of {record.image_sha[:12]}")


def _check_again(
    folder: Path, config: DictConfig, delivered: Sequence[SampleRecord], count: int
) -> list[Check]:
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
    with _own_prompts_of(folder, config):
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


@contextmanager
def _own_prompts_of(folder: Path, config: DictConfig) -> Iterator[None]:
    """Have `benchmark=prompts` read the prompts that the run planned, not its file.

    The file may have moved or changed since. Other benchmarks are left as they are.
    """
    if config.benchmark.get("_target_") != OWN_PROMPTS or config.benchmark.file is None:
        yield
        return
    from harness.runs.read import read_run

    rows = [
        {"id": prompt.id.removeprefix("prompts/"), "prompt": prompt.text, "kind": prompt.category}
        for prompt in read_run(folder).prompts.values()
    ]
    with TemporaryDirectory() as place:
        file = Path(place) / "prompts.jsonl"
        file.write_text("".join(f"{dump(row)}\n" for row in rows), encoding="utf-8")
        config.benchmark.file = str(file)
        config.benchmark.category = "kind"
        yield
