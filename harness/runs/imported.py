"""Import images that somebody else made, as a run.

It is scored, summed up and resumed like others, and kept out of leaderboards. Its method is
recorded as "elsewhere".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from harness.records import Job, SampleRecord, Usage, UserError, digest
from harness.runs.benchmark import Key, reads_folders
from harness.runs.fingerprint import fingerprint
from harness.runs.folder import RunFolder
from harness.runs.instantiate import build_object, resolve_config
from harness.runs.plan import Plan
from harness.runs.plugins import hash_plugins

METHOD = "elsewhere"
"""The method's name in journals and folders of imported images."""


@dataclass(frozen=True)
class ImportedRun:
    """A run whose images lie in the folder `benchmark.images=FOLDER`: no model, no method."""

    config: DictConfig
    benchmark_choice: str  # the name of the benchmark's configuration
    source: Path
    plan: Plan
    image_shas: Mapping[Key, str]
    plugins: Mapping[str, str]  # modules of a user's own -> hash of their source
    fingerprint: str
    missing_word = "missing"

    def folder(self, results: Path) -> Path:
        """Return where the run's folder is below a results folder."""
        name = f"{METHOD}-{self.fingerprint}"
        return results / self.benchmark_choice / self._source_name() / name

    def describe(self) -> dict[str, Any]:
        """Return what config.yaml says.

        That is the benchmark's configuration, and under `run` what a leaderboard would read.
        """
        made = {
            "model": self._source_name(),
            "method": METHOD,
            "params": "",
            "seed": 0,
            "numerics": "",
            "asked": {},
            "plugins": dict(self.plugins),
        }
        described = self.plan.describe(
            made, benchmark=self.benchmark_choice, fingerprint=self.fingerprint
        )
        return {"benchmark": resolve_config(self.config.benchmark), "run": described}

    def import_images(self, folder: RunFolder) -> None:
        """Put the images into the run folder, as links, and into its journal."""
        found = self.plan.benchmark.found
        for job in folder.missing():
            if job.key in found:
                folder.link_image(self._make_record(job, folder), found[job.key])

    def prepare(self) -> None:
        """Refuse to draw. Raises UserError."""
        raise _has_its_images(self.source)

    def generate(self, jobs: Sequence[Job], folder: RunFolder, track: Callable[[], None]) -> None:
        """Refuse to draw. Raises UserError."""
        raise _has_its_images(self.source)

    def _source_name(self) -> str:
        """Return the images' folder's name, as far as it can be one below results."""
        return re.sub(r"[^\w.+-]|^\.+", "_", self.source.resolve().name) or "images"

    def _make_record(self, job: Job, folder: RunFolder) -> SampleRecord:
        return SampleRecord(
            prompt_id=job.prompt.id,
            image=job.image,
            category=job.prompt.category,
            status="done",
            usage=Usage(),
            image_sha=self.image_shas[job.key],
            path=str(folder.image_file(job).relative_to(folder.path)),
        )


def build_imported_run(config: DictConfig, choices: Mapping[str, str]) -> ImportedRun:
    """Build a run of the images in `benchmark.images`.

    The fingerprint names the images' content, so that a changed folder is another run. Raises
    UserError if there is no such folder, if the benchmark reads none, or if images are to be drawn.
    """
    # 1. The folder, and whether anything can be done with it.
    source = Path(str(config.benchmark.images)).expanduser()
    if not source.is_dir():
        raise UserError(
            f"benchmark.images={config.benchmark.images}: neither a number nor a folder of images"
        )
    if not reads_folders(hydra.utils.get_class(config.benchmark._target_)):
        raise UserError(
            f"benchmark={choices['benchmark']} has no folder layout: give benchmark.images a number"
        )
    if "generate" in config.stages:
        raise _has_its_images(source)

    # 2. The benchmark, and the images that it found there.
    plan = Plan.of(build_object(config.benchmark, place="benchmark"), config.benchmark)
    found = plan.benchmark.found
    image_shas = {key: digest(path.read_bytes()) for key, path in found.items()}

    # 3. The name of all that scores depend on; where the folder lies is not part of it.
    identity: dict[str, Any] = {
        "benchmark": plan.identify(without=("images",)),
        "images": [[*key, sha] for key, sha in sorted(image_shas.items())],
    }
    plugins = hash_plugins(resolve_config(config.benchmark))
    if plugins:
        identity["plugins"] = plugins
    return ImportedRun(
        config=config,
        benchmark_choice=choices["benchmark"],
        source=source,
        plan=plan,
        image_shas=image_shas,
        plugins=plugins,
        fingerprint=fingerprint(identity),
    )


def _has_its_images(source: Path) -> UserError:
    return UserError(f"benchmark.images={source} has its images already: set stages=[score]")
