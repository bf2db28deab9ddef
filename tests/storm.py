"""A storm of kills over whole sweeps, and what must hold after every one of them.

python tests/storm.py FOLDER --scene toy --kills 20 --points 40 --commands 2

There are three kinds of kills, all by SIGKILL. Sweeps of every kind of method are forked from a
process that has torch, the models and the configurations at hand, and killed at random instants;
forks are killed at chosen instants, in front of and in the middle of the writes, fsyncs and renames
of the product's own code; and the real command is killed.

After each kill the folder is examined, and run on until it is complete; then its images, records,
scores and table must be those of a sweep that nobody disturbed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from runs import TOY, deterministic, fork, start

from harness.records import SampleRecord, Score, digest

SCENES = {
    "toy": (
        [*TOY, "benchmark.prompts=2"],
        ["plain", "toy_best", "toy_scalingar", "toy_gridar", "toy_speculative"],
    ),
    "newest": (
        [*TOY, "benchmark.prompts=2"],
        [
            "pjd",
            "pjd_released",
            "sjd_cool",
            "sjd_entropy",
            "sjd_pac",
            "sjd_pac_released",
            "scalingar_sjd",
            "toy_beam",
            "toy_best_pjd",
            "toy_fr_tts",
            "toy_importance",
            "toy_twig",
        ],
    ),
    "pictogram": (
        [
            "sampler.slots=16",
            "sampler.prefill=[4,32]",
            "sampler.render_batch=4",
            "benchmark.prompts=3",
            "benchmark.images=1",
        ],
        ["plain", "best_of_n", "scalingar", "gridar", "speculative"],
    ),
}
"""Overrides of a sweep on few prompts, and its methods."""
JOURNALS = {"records": SampleRecord.from_json, "scores": Score.from_json}


# ------------------------------------------------------------------ what must hold after a kill


@dataclass(frozen=True)
class Seen:
    """What lay in a results folder: whole journal lines, and the images that they call finished."""

    lines: dict[Path, bytes] = field(default_factory=dict)
    finished: dict[tuple[Path, str, int], str] = field(default_factory=dict)
    """The sha256 of each finished image, by run folder, prompt id and number."""


@dataclass
class Findings:
    """What a storm did and what it broke."""

    kills: Counter[str] = field(default_factory=Counter)
    finished: int = 0  # images that were called finished when a kill came, summed over kills
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    folders: int = 0  # that were completed
    unequal: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.corrupt or self.unequal)

    def log(self, name: str, seconds: float) -> str:
        """Tell all of it in a few lines."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        equal = self.folders - len(self.unequal)
        lines = [
            f"{name}: {self.kills.total()} kills ({kinds}) in {seconds:.0f} s",
            f"  finished images at the kills {self.finished}, lost {len(self.lost)}, "
            f"corrupt files {len(self.corrupt)}",
            f"  completed folders {self.folders}, equal to the undisturbed one {equal}",
        ]
        lines += [f"  ! {what}" for what in (*self.lost, *self.corrupt, *self.unequal)]
        return "\n".join(lines)


def examine(cwd: Path, before: Seen, findings: Findings) -> Seen:
    """Compare a folder after a kill with what was there before it; returns what is there now."""
    seen = Seen()
    for journal in sorted(cwd.rglob("*.jsonl")):
        examine_journal(journal, seen, findings)

    # 1. Nothing that was there before is gone.
    for journal, whole in before.lines.items():
        if not seen.lines.get(journal, b"").startswith(whole):
            findings.lost.append(f"{journal}: a whole line is gone")
    for key, sha in before.finished.items():
        if seen.finished.get(key) != sha:
            findings.lost.append(f"{key}: a finished image is gone")

    # 2. Pictures and tables are whole.
    for picture in cwd.rglob("*.png"):
        try:
            with Image.open(picture) as image:
                image.load()
        except Exception as error:
            findings.corrupt.append(f"{picture}: {error!r}")
    for table in cwd.rglob("leaderboard.csv"):
        with table.open() as file:
            if any(None in row or None in row.values() for row in csv.DictReader(file)):
                findings.corrupt.append(f"{table}: a line is not whole")
    findings.finished += len(seen.finished)
    return seen


def examine_journal(journal: Path, seen: Seen, findings: Findings) -> None:
    """Read a journal's whole lines; each must be readable, and tell the truth about its image."""
    whole, _, _ = journal.read_bytes().rpartition(b"\n")
    seen.lines[journal] = whole
    kind = journal.name.split("-")[0].removesuffix(".jsonl")
    parse = JOURNALS.get(kind, json.loads)
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        place = f"{journal}, line {number}"
        try:
            row = parse(line)
        except Exception as error:
            findings.corrupt.append(f"{place}: {error!r}")
            continue
        if isinstance(row, SampleRecord) and row.status == "done":
            seen.finished[journal.parent, row.prompt_id, row.image] = row.image_sha
            file = journal.parent / row.path
            if not file.is_file() or digest(file.read_bytes()) != row.image_sha:
                findings.corrupt.append(f"{place}: {row.path} is not the image it speaks of")


# ------------------------------------------------------------------ instants between durable steps


class Instants:
    """The instants of this process at which a kill could hurt.

    They come before and amid writes, before fsyncs and before renames. They are counted, and at the
    one numbered `deadly` the process kills itself. A write that is cut leaves half of its bytes.
    """

    def __init__(self, deadly: int = -1) -> None:
        self.deadly = deadly
        self.reached = list[str]()

    def arm(self) -> None:
        """From now on, watch what the process does to files that it writes."""
        fsync = os.fsync
        replace = os.replace
        opened = io.open
        instants = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:  # type: ignore[override]
                path = str(self.name)
                half = bytes(data)[: len(data) // 2]
                write = super().write
                instants.reach("write", path)
                instants.reach("half", path, lambda: write(half))
                return write(data)

        def watched_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if mode in ("wb", "ab"):
                return io.BufferedWriter(Raw(os.fspath(file), mode))
            return opened(file, mode, *rest, **options)

        def watched_fsync(fd: int) -> None:
            instants.reach("fsync", os.readlink(f"/proc/self/fd/{fd}"))
            fsync(fd)

        def watched_replace(source: Any, target: Any, **options: Any) -> None:
            instants.reach("rename", str(target))
            replace(source, target, **options)

        io.open = watched_open
        os.fsync = watched_fsync
        os.replace = watched_replace  # type: ignore[assignment]

    def reach(self, step: str, path: str, first: Callable[[], object] = lambda: None) -> None:
        """Count an instant; at the deadly one do `first`, and die."""
        if len(self.reached) == self.deadly:
            first()
            os.kill(os.getpid(), signal.SIGKILL)
        self.reached.append(f"{step} {Path(path).name}")


# ------------------------------------------------------------------ the sweep


class Sweep:
    """A sweep whose configurations are composed once, so that a fork of this process is quick."""

    def __init__(self, scene: str) -> None:
        from hydra._internal.hydra import Hydra
        from hydra._internal.utils import create_config_search_path

        from harness import cli

        cli.enable_plugins()
        places = create_config_search_path("pkg://conf")
        overrides, self.methods = SCENES[scene]
        self.command = ["-m", *overrides, f"method={','.join(self.methods)}"]
        if overrides[0] == "--config-dir":
            places.prepend("storm", f"file://{overrides[1]}")
            overrides = overrides[2:]
        Hydra.create_main_hydra2("storm", places)
        self._composed = {
            method: compose_run([*overrides, f"method={method}"]) for method in self.methods
        }

    def run(self, methods: Sequence[str], with_report: bool = True) -> None:
        """Do what `python -m harness` does once its configurations are composed."""
        from harness.results.publish import publish
        from harness.results.wandb import NoTracking
        from harness.runs.stages import run_stages

        folders: list[Path] = []
        for method in methods:
            config, choices = self._composed[method]
            run_stages(config, choices, NoTracking(), folders.append)
        if with_report:
            publish(Path("results"), folders, NoTracking())


def compose_run(overrides: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Compose a run's configuration, and the options that were chosen in each group."""
    from hydra import compose
    from omegaconf import open_dict

    config = compose("config", list(overrides), return_hydra_config=True)
    choices = {group: str(choice) for group, choice in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    return config, choices


def ends_in_time(pid: int, within_s: float) -> bool:
    """Whether a child ends by itself in that time; else it is killed.

    Raises RuntimeError for one that fails.
    """
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, -signal.SIGKILL):
                raise RuntimeError(f"a run ended with exit code {code}")
            return code == 0
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


# ------------------------------------------------------------------ three kinds of kills


class Storm:
    """Kills over sweeps, in folders of their own below `home`.

    `findings` has what became of them.
    """

    def __init__(self, scene: str, home: Path, seed: int) -> None:
        self.scene = scene
        self.home = home
        self.rng = random.Random(seed)
        self.findings = Findings()
        self.began = time.monotonic()
        self.sweep = Sweep(scene)
        self._expected = dict[tuple[str, ...], dict[str, object]]()
        self._warm_up()
        began = time.monotonic()
        self._undisturbed(self.sweep.methods)
        self.whole_s = time.monotonic() - began

    def at_random(self, kills: int) -> None:
        """Kill forks of the whole sweep, until it is complete; and again, until it was enough.

        The methods come in any order.
        """
        while self.findings.kills["at random instants"] < kills:
            methods = self.rng.sample(self.sweep.methods, len(self.sweep.methods))
            cwd = self._folder("random")
            seen = Seen()
            while not ends_in_time(
                self._fork(cwd, methods), self.rng.expovariate(4 / self.whole_s)
            ):
                seen = self._killed("at random instants", cwd, seen)
            self._complete(cwd, methods, seen)

    def at_instants(self, most: int | None = None) -> None:
        """Kill each method's run, and one report, at each instant; then complete it.

        With `most` it is two methods', at so many instants.
        """
        methods = self.sweep.methods
        if most is not None:
            methods = self.rng.sample(methods, 2 if most else 0)
        instants = []
        for method in methods:
            with_report = method == self.sweep.methods[0]
            for instant in range(self._count(method, with_report)):
                instants.append((method, with_report, instant))
        for method, with_report, instant in self.rng.sample(instants, len(instants))[:most]:
            cwd = self._folder("instant")
            deadly = self._fork(cwd, [method], with_report, Instants(instant))
            assert not ends_in_time(deadly, 600), f"instant {instant} of {method} never came"
            seen = self._killed("at chosen instants", cwd, Seen())
            assert ends_in_time(self._fork(cwd, [method], with_report), 600)
            self._complete(cwd, [method], seen, with_report)

    def of_the_command(self, kills: int) -> None:
        """Kill `python -m harness`: one time in five before it draws anything, else meanwhile."""
        while self.findings.kills["of the command"] < kills:
            cwd = self._folder("command")
            seen = Seen()
            while not self._run_command(cwd):
                seen = self._killed("of the command", cwd, seen)
            self._complete(cwd, self.sweep.methods, seen)

    def log(self) -> str:
        """Tell what happened so far; also in log.txt, for whoever cannot wait."""
        return self.findings.log(self.scene, time.monotonic() - self.began)

    # ------------------------------------------------------------------ processes

    def _warm_up(self) -> None:
        """Run the sweep in this process, so that forks find everything loaded."""
        before = Path.cwd()
        os.chdir(self._folder("warm"))
        with redirect_stdout(io.StringIO()):
            self.sweep.run(self.sweep.methods)
        os.chdir(before)

    def _fork(
        self,
        cwd: Path,
        methods: Sequence[str],
        with_report: bool = True,
        instants: Instants | None = None,
    ) -> int:
        def work() -> None:
            if instants:
                instants.arm()
            self.sweep.run(methods, with_report)
            if instants:
                (cwd / "instants").write_text("\n".join(instants.reached))

        return fork(cwd, work)

    def _run_command(self, cwd: Path) -> bool:
        """Run the command for a while; whether it came to its end."""
        log = cwd / "output.txt"
        former = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            process = start(cwd, *self.sweep.command, output=output)
        is_early = self.rng.random() < 0.2
        while not is_early and process.poll() is None:
            if b"planned," in log.read_bytes()[former:]:
                break
            time.sleep(0.01)
        try:
            code = process.wait(self.rng.expovariate(2 / self.whole_s))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{cwd}: the command ended with exit code {code}")
        return code == 0

    def _count(self, method: str, with_report: bool) -> int:
        """Count the instants that a run has."""
        cwd = self._folder(f"count-{method}")
        assert ends_in_time(self._fork(cwd, [method], with_report, Instants()), 600)
        return len((cwd / "instants").read_text().splitlines())

    # ------------------------------------------------------------------ folders

    def _folder(self, kind: str) -> Path:
        folder = self.home / f"{kind}-{self.findings.kills.total()}"
        folder.mkdir(parents=True)
        return folder

    def _killed(self, kind: str, cwd: Path, before: Seen) -> Seen:
        self.findings.kills[kind] += 1
        return examine(cwd, before, self.findings)

    def _undisturbed(self, methods: Sequence[str], with_report: bool = True) -> dict[str, object]:
        """Return what lies on disk after a sweep without kills."""
        name = (*sorted(methods), str(with_report))
        if name not in self._expected:
            cwd = self._folder(f"undisturbed-{len(self._expected)}")
            assert ends_in_time(self._fork(cwd, methods, with_report), 3600)
            self._expected[name] = deterministic(cwd)
        return self._expected[name]

    def _complete(
        self, cwd: Path, methods: Sequence[str], before: Seen, with_report: bool = True
    ) -> None:
        """Compare a completed folder with the undisturbed one, and remove it if they agree."""
        examine(cwd, before, self.findings)
        expected = self._undisturbed(methods, with_report)
        found = deterministic(cwd)
        self.findings.folders += 1
        if found == expected and self.findings.good:
            shutil.rmtree(cwd)
        elif found != expected:
            names = sorted(expected.keys() | found.keys())
            unequal = [name for name in names if expected.get(name) != found.get(name)]
            self.findings.unequal.append(f"{cwd}: {', '.join(unequal)}")
        (self.home / "log.txt").write_text(self.log())


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill sweeps and examine what is left.")
    parser.add_argument("folder", type=Path, help="where; must not exist")
    parser.add_argument("--scene", choices=SCENES, default="toy")
    parser.add_argument(
        "--kills", type=int, default=0, help="at random instants of forked sweeps, at least"
    )
    parser.add_argument(
        "--points", type=int, default=0, help="kills at chosen instants; -1 for all there are"
    )
    parser.add_argument("--commands", type=int, default=0, help="of the real command, at least")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True)
    storm = Storm(asked.scene, asked.folder.resolve(), asked.seed)
    try:
        storm.at_random(asked.kills)
        storm.at_instants(None if asked.points < 0 else asked.points)
        storm.of_the_command(asked.commands)
    finally:
        print(storm.log(), flush=True)
    return 0 if storm.findings.good else 1


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
