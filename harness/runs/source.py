"""Tell where the images of a run come from: a method draws them, or a folder has them already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from harness.records import Job
from harness.runs.execute import Executor
from harness.runs.folder import RunFolder
from harness.runs.generate import Generation
from harness.runs.imported import build_imported_run
from harness.runs.options import spell_numbers
from harness.runs.plan import Plan, wants_scores
from harness.runs.spec import RunSpec, build_run_spec


class RunSource(Protocol):
    """A run, as its stages see it."""

    @property
    def plan(self) -> Plan:
        """Return the images that are to be made, and their benchmark."""
        ...

    @property
    def missing_word(self) -> str:
        """Name images that are not there, for the log."""
        ...

    @property
    def draws(self) -> bool:
        """Tell whether its images are drawn, so that a run without a folder has none."""
        ...

    def folder(self, results: Path) -> Path:
        """Return where the run's folder is below a results folder."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what config.yaml says."""
        ...

    def import_images(self, folder: RunFolder) -> None:
        """Put the images that exist already into the run folder."""
        ...

    def prepare(self) -> None:
        """Prepare what is needed to draw. Raises UserError if nothing can be drawn."""
        ...

    def generate(self, jobs: Sequence[Job], folder: RunFolder, track: Callable[[], None]) -> None:
        """Draw images into the run folder; `track` is called whenever some were scored."""
        ...


class DrawnRun:
    """A run whose images a method draws: its spec, and the executor of it."""

    missing_word = "to draw"
    draws = True

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.executor = Executor(spec)

    @property
    def plan(self) -> Plan:
        return self.spec.plan

    def folder(self, results: Path) -> Path:
        """Return where the run's folder is below a results folder."""
        return self.spec.folder(results)

    def describe(self) -> dict[str, Any]:
        """Return what config.yaml says."""
        return self.spec.describe()

    def import_images(self, folder: RunFolder) -> None:
        """Import nothing: all images are drawn."""

    def prepare(self) -> None:
        """Test the method's judges. Raises UserError for one that cannot answer."""
        self.spec.method_spec.prepare_parts()

    def generate(self, jobs: Sequence[Job], folder: RunFolder, track: Callable[[], None]) -> None:
        """Draw images into the run folder, and score them meanwhile if scores are asked for."""
        config = self.spec.config
        generation = Generation(
            self.executor,
            self.plan.benchmark,
            folder,
            with_scores=wants_scores(self.plan, config),
            stop_on_error=config.on_error == "stop",
            track=track,
        )
        generation.run(jobs)


def build_source(config: DictConfig, choices: Mapping[str, str]) -> RunSource:
    """Build the run of a configuration: an imported one if `benchmark.images` is a folder's name.

    Raises UserError for parts that cannot be had, or that do not fit each other.
    """
    config = spell_numbers(config, choices)
    if isinstance(config.benchmark.get("images"), str):
        return build_imported_run(config, choices)
    return DrawnRun(build_run_spec(config, choices))
