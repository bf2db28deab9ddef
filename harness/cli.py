"""`python -m harness`: compose a run from configuration, then generate, score and report.

python -m harness method=best_of_n                      one run, one folder, resumable
python -m harness -m method=plain,best_of_n             a sweep
python -m harness -m experiment=demo                    a listed sweep
python -m harness stages=[report]                       leaderboard.csv from the journals, no computing
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.records import Job, Prompt, SampleRecord, UserError, digest, dump

log = logging.getLogger("harness")

STAGES = ("generate", "score", "report")
CHUNK = 32
"""Images scored at a time while others are drawn."""

_outcome: dict[str, Any] = {}
"""What the runs of this process (one multirun) left for its end: results folder, run folders, failures."""


def main() -> None:
    """Entry point: exit code 0 if every run ended well, 1 if one failed, 2 for a mistake in the command."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us, and we print them in one line
    _expect_one_home()
    sys.path.append(str(Path(__file__).parent / "plugins"))
    logging.captureWarnings(True)
    _outcome.update(results=None, folders=[], failures=[])
    try:
        _app()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(_say(error))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; run the same command again to continue", code=130))
    if _outcome["results"] is not None:
        _report(_outcome["results"], _outcome["folders"])
    for name, error in _outcome["failures"]:
        _say(f"{name}: {error}")
    sys.exit(1 if _outcome["failures"] else 0)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _app(config: DictConfig) -> None:
    """One point of a sweep, or the only run. A failing point does not stop the others."""
    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    if not sweeping and hydra_config.sweeper.get("points"):
        raise UserError(f"experiment={hydra_config.runtime.choices['experiment']} is a sweep: add -m")
    try:
        run(config, {group: str(choice) for group, choice in hydra_config.runtime.choices.items()})
    except Exception as error:
        if not sweeping:
            raise
        if not isinstance(error, UserError):
            log.exception("%s failed", hydra_config.job.override_dirname)
        _outcome["failures"].append((hydra_config.job.override_dirname, _one_line(error)))


def run(config: DictConfig, choices: dict[str, str]) -> None:
    """Carry out the chosen stages of one run."""
    unknown = set(config.stages) - set(STAGES)
    if unknown or not config.stages:
        raise UserError(f"stages={list(config.stages)}: choose from {', '.join(STAGES)}")
    results = Path(config.results)
    if "report" in config.stages:
        _outcome["results"] = results
    if set(config.stages) == {"report"}:
        return

    from harness.store import RunFolder

    point = _Point(config, choices)
    with RunFolder(point.folder(results), point.record(), point.jobs) as folder:
        missing = folder.missing()
        _outcome["folders"].append(folder.path)
        log.info("%s: %d planned, %d done, %d to draw", folder.path, len(point.jobs), len(folder.done), len(missing))
        if "generate" in config.stages and missing:
            _generate(point, folder, missing)
        if "score" in config.stages:
            _score(point, folder, folder.unscored(point.judge))
        failed = len(folder.missing())
        assert len(folder.done) + failed == len(point.jobs)
        if failed and "generate" in config.stages:
            raise UserError(f"{folder.path}: {failed} of {len(point.jobs)} images failed; run again to retry them")


# ------------------------------------------------------------------ one run


class _Point:
    """A run's parts, built from its configuration and checked against each other before anything is computed."""

    def __init__(self, config: DictConfig, choices: dict[str, str]) -> None:
        from harness.hooks import Sampling

        self.config, self.choices = config, choices
        model = OmegaConf.to_container(config.model, resolve=True)
        assert isinstance(model, dict)
        self.sampling = Sampling(**model.pop("sampling"))
        device = str(config.device)
        self.model = _model(dump(model), device)
        self.method = _build(config.method)
        self.benchmark = _build(config.benchmark)
        self.prompts: list[Prompt] = self.benchmark.prompts()
        self.jobs = [Job(prompt, image) for prompt in self.prompts for image in range(self.benchmark.images)]
        self.judge: str = self.benchmark.judge.id
        self.sampler = self._sampler_shape()
        self.fingerprint = self._fingerprint(model)

    def _sampler_shape(self) -> dict[str, Any]:
        shape = OmegaConf.to_container(self.config.sampler, resolve=True)
        assert isinstance(shape, dict)
        need = self.method.rows * self.method.streams
        if shape["slots"] is None:
            shape["slots"] = need
        if shape["slots"] < need:
            raise UserError(
                f"sampler.slots={shape['slots']} is too few: {self.choices['method']} needs {need} "
                f"({self.method.rows} canvases x {self.method.streams} streams); set sampler.slots={4 * need}"
            )
        return {**shape, "width": self.method.width}

    def _fingerprint(self, model: dict[str, Any]) -> str:
        from harness.store import fingerprint

        asked = {name: part.id for name, part in vars(self.method).items() if hasattr(part, "id")}
        settings = {k: v for k, v in OmegaConf.to_container(self.config.benchmark).items() if k != "metadata"}  # type: ignore[union-attr]
        rows = [[p.id, p.text, p.category, dict(p.spec)] for p in self.prompts]
        return fingerprint(
            {
                "model": [self.model.name, self.model.revision, str(self.model.dtype), model],
                "sampling": OmegaConf.to_container(self.config.model.sampling, resolve=True),
                "method": [self.choices["method"], OmegaConf.to_container(self.config.method, resolve=True), asked],
                "benchmark": [self.benchmark.version, settings, digest(dump(rows).encode()), self.judge],
                "sampler": self.sampler,
                "numerics": "constant",
                "seed": self.config.seed,
            }
        )

    def folder(self, results: Path) -> Path:
        name = f"{self.choices['method']}-{self.fingerprint}"
        return results / self.choices["benchmark"] / self.model.name / name

    def record(self) -> dict[str, Any]:
        """What config.yaml says: the resolved configuration, and under `run` what the leaderboard reads."""
        config = OmegaConf.to_container(self.config, resolve=True)
        assert isinstance(config, dict)
        for elsewhere in ("results", "stages", "device", "logger"):
            config.pop(elsewhere)
        summary = {
            "benchmark": self.choices["benchmark"],
            "model": self.model.name,
            "method": self.choices["method"],
            "params": _changed(self.config, self.choices),
            "fingerprint": self.fingerprint,
            "seed": self.config.seed,
            "images_per_prompt": self.benchmark.images,
            "planned": len(self.jobs),
            "numerics": "constant",
        }
        return {**config, "run": summary}


def _generate(point: _Point, folder: Any, missing: list[Job]) -> None:
    from harness.sampler import Sampler
    from harness.scheduler import Delivery, Scheduler
    from harness.store import encode_png, image_path

    shape = dict(point.sampler)
    concurrency = shape.pop("concurrency")
    sampler = Sampler(point.model, point.sampling, **{**shape, "prefill": tuple(shape["prefill"])})
    stamp = _stamp(point.model.device)
    fresh: list[Job] = []
    scoring = "score" in point.config.stages

    with _Progress(folder.path.name, len(missing)) as progress:

        def deliver(delivery: Delivery) -> None:
            job, image = delivery.job, delivery.image
            record = SampleRecord(
                prompt_id=job.prompt.id,
                image=job.image,
                category=job.prompt.category,
                status="failed" if image is None else "done",
                usage=delivery.usage,
                tokens_sha=digest(dump(list(delivery.tokens)).encode()),
                image_sha="" if image is None else digest(encode_png(image)),
                path="" if image is None else image_path(job.prompt, job.image),
                error=delivery.error,
                notes=delivery.notes,
                stamp=stamp,
            )
            folder.save(record, image)
            if image is None:
                log.warning("%s image %d failed: %s", job.prompt.id, job.image, delivery.error)
            elif scoring:
                fresh.append(job)
                if len(fresh) >= CHUNK:
                    progress.scores(_score(point, folder, fresh))
                    fresh.clear()
            progress.step()

        Scheduler(point.method, sampler, seed=point.config.seed, concurrency=concurrency).run(missing, deliver)
    log.info("%s: slot utilisation %.0f %%", folder.path, 100 * sampler.utilisation)


def _score(point: _Point, folder: Any, jobs: Iterable[Job]) -> list[float | None]:
    """Score delivered images; every score is in the journal before the next batch is judged."""
    jobs = list(jobs)
    values = []
    for score in point.benchmark.score((job.prompt, folder.file(job)) for job in jobs):
        folder.save_score(score)
        values.append(score.value)
    return values


def _report(results: Path, folders: list[Path]) -> None:
    from harness.leaderboard import build, render_table
    from harness.sheet import write_sheet

    frame = build(results)
    print(render_table(frame))
    print(f"\n{results / 'leaderboard.csv'}: {len(frame)} runs")
    if folders:
        print(f"{write_sheet(folders, results / 'sheet.png')}: prompts x methods")


# ------------------------------------------------------------------ parts


@lru_cache(maxsize=1)
def _model(config: str, device: str) -> Any:
    """The model, kept between the runs of one multirun."""
    import json

    import torch

    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        target = torch.device(where)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device} is not usable here ({_one_line(error)}): set device=auto or cpu") from error
    if target.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # two spinning threads are slower than one
    return _build(OmegaConf.create(json.loads(config)), device=target)


def _build(config: Any, **extra: Any) -> Any:
    """Instantiate a `_target_`; what its constructor refuses is the user's mistake, in one line."""
    try:
        return hydra.utils.instantiate(config, **extra)
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        raise (cause or UserError(_one_line(error))) from error


def _changed(config: DictConfig, choices: dict[str, str]) -> str:
    """The method's options that differ from its configuration file, as "n=8, reward=other"."""
    default = hydra.compose("config", overrides=[f"method={choices['method']}"]).method
    mine, theirs = (_flat(OmegaConf.to_container(part, resolve=True)) for part in (config.method, default))
    return ", ".join(f"{key}={value}" for key, value in sorted(mine.items()) if theirs.get(key) != value)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}" if prefix else key).items()}


def _stamp(device: Any) -> dict[str, str]:
    """Which code, library and device made an image."""
    import platform

    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"
    return {"commit": _commit(), "device": name, "torch": torch.__version__}


@lru_cache(maxsize=1)
def _commit() -> str:
    """Commit of the checkout that this code runs from, or the installed version."""
    import subprocess
    from importlib.metadata import PackageNotFoundError, version

    root = Path(__file__).parent.parent
    if (root / ".git").exists():
        asked = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        if asked.returncode == 0:
            return asked.stdout.strip()
    try:
        return version("visual-ar-tts")
    except PackageNotFoundError:
        return "unknown"


class _Progress:
    """A bar with ETA and running score on a terminal; a line every 30 s elsewhere."""

    def __init__(self, name: str, total: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc=name, unit="img", disable=None, smoothing=0.05)
        self._values: list[float] = []
        self._last = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self) -> None:
        self._bar.update()
        if self._bar.disable:
            self._bar.n += 1  # a disabled bar does not count
            if time.monotonic() - self._last > 30:
                self._last = time.monotonic()
                log.info("%s: %d of %d%s", self._bar.desc, self._bar.n, self._bar.total, self._running())

    def scores(self, values: list[float | None]) -> None:
        self._values += [value or 0.0 for value in values]
        self._bar.set_postfix_str(self._running().strip(", "))

    def _running(self) -> str:
        return f", score {sum(self._values) / len(self._values):.3f}" if self._values else ""


# ------------------------------------------------------------------ the edges


def _expect_one_home() -> None:
    """`methods`, `benchmarks` and `conf` are common names: stop if another package's are found first."""
    home = Path(__file__).resolve().parent.parent
    for name in ("methods", "benchmarks", "conf"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found != home:
            sys.exit(
                _say(f"package {name!r} is found in {found}, not beside harness in {home}: run from another folder")
            )


def _one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())


def _say(message: BaseException | str, code: int = 2) -> int:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    return code
