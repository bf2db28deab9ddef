"""Images made elsewhere, as a run: scored, summed up and resumed like ours, and kept out of
leaderboards.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from harness.records import Job, SampleRecord, Usage, UserError, digest
from harness.runs.folder import RunFolder, fingerprint
from harness.runs.instantiate import build, container
from harness.runs.spec import Point


class Elsewhere(Point):
    """The parts of a run whose images a benchmark found in a folder (`benchmark.images=FOLDER`): no
    model, no method.

    The fingerprint names the images' content, so a changed folder is another run.
    """

    def __init__(self, config: DictConfig, choices: dict[str, str]) -> None:
        self.source = Path(str(config.benchmark.images)).expanduser()
        if not self.source.is_dir():
            raise UserError(
                f"benchmark.images={config.benchmark.images}: neither a number nor a folder of images"
            )
        if not hasattr(hydra.utils.get_class(config.benchmark._target_), "reads_folders"):
            raise UserError(
                f"benchmark={choices['benchmark']} has no folder layout: give benchmark.images a number"
            )
        if "generate" in config.stages:
            raise UserError(
                f"benchmark.images={self.source} has its images already: set stages=[score]"
            )
        self.config = config
        self.choices = {**choices, "method": "elsewhere"}
        self._take(build(config.benchmark))
        self.found: dict[tuple[str, int], Path] = self.benchmark.found
        self._shas = {key: digest(path.read_bytes()) for key, path in self.found.items()}
        settings = {name: value for name, value in self.settings.items() if name != "images"}
        content = [[*key, sha] for key, sha in sorted(self._shas.items())]
        self.fingerprint = fingerprint(
            {
                "benchmark": [self.benchmark.version, settings, self.prompts_sha, self.judge],
                "images": content,
            }
        )

    def folder(self, results: Path) -> Path:
        return results / self.choices["benchmark"] / self._name / f"elsewhere-{self.fingerprint}"

    @property
    def _name(self) -> str:
        """The folder's name, as far as it can be one below results."""
        return re.sub(r"[^\w.+-]|^\.+", "_", self.source.resolve().name) or "images"

    def adopt(self, folder: RunFolder) -> None:
        """Put the images into the run folder, as links, and into its journal."""
        for job in folder.missing():
            if job.key in self.found:
                folder.adopt(self._record(job, folder), self.found[job.key])

    def _record(self, job: Job, folder: RunFolder) -> SampleRecord:
        return SampleRecord(
            prompt_id=job.prompt.id,
            image=job.image,
            category=job.prompt.category,
            status="done",
            usage=Usage(),
            image_sha=self._shas[job.key],
            path=str(folder.file(job).relative_to(folder.path)),
        )

    def record(self) -> dict[str, Any]:
        """What config.yaml says: the benchmark's configuration, and under `run` what a leaderboard
        would read.
        """
        made = {
            "model": self._name,
            "method": "elsewhere",
            "params": "",
            "seed": 0,
            "numerics": "",
            "asked": {},
        }
        return {"benchmark": container(self.config.benchmark), "run": self._about(made)}
