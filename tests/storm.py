"""A storm of kills over whole sweeps, and what must hold after every one of them.

python tests/storm.py FOLDER --scene toy --kills 20 --points 40 --commands 2

Sweeps of every kind of method are forked from a process that has torch, the models and the
configurations at hand, and killed (SIGKILL) at random instants; killed at chosen instants, in front
of and in the middle of the writes, fsyncs and renames of the product's own code; and killed as the
real command. After each kill the folder is examined, and run on until it is complete; then its
images, records, scores and table must be those of a sweep that nobody disturbed.
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
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from runs import TOY, deterministic, start

from harness.records import SampleRecord, Score, digest

SCENES = {
    "toy": ([*TOY, "benchmark.prompts=2"], ["plain", "toy_best", "toy_scalingar", "toy_gridar", "toy_speculative"]),
    "pictogram": (
        ["sampler.slots=16", "sampler.prefill=[4,32]", "sampler.render_batch=4", "benchmark.prompts=3",
         "benchmark.images=1"],
        ["plain", "best_of_n", "scalingar", "gridar", "speculative"],
    ),
}  # fmt: skip
"""Overrides of a sweep on few prompts, and its methods."""
JOURNALS = {"records": SampleRecord.from_json, "scores": Score.from_json}


# ------------------------------------------------------------------ what must hold after a kill


@dataclass(frozen=True)
class Seen:
    """What lay in a results folder: whole journal lines, and the images that they call finished."""

    lines: dict[Path, bytes] = field(default_factory=dict)
    finished: dict[tuple[Path, str, int], str] = field(
        default_factory=dict
    )  # sha256 by run folder and image


@dataclass
class Findings:
    """What a storm did and what it broke."""

    kills: Counter[str] = field(default_factory=Counter)
    finished: int = 0  # images that were called finished when a kill came, summed over kills
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    folders: int = 0
    unequal: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.corrupt or self.unequal)

    def log(self, name: str, seconds: float) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        return "\n".join(
            [
                f"{name}: {self.kills.total()} kills ({kinds}) in {seconds:.0f} s",
                f"  finished images at the kills {self.finished}, lost {len(self.lost)}, "
                f"corrupt files {len(self.corrupt)}",
                f"  completed folders {self.folders}, equal to the undisturbed one {self.folders - len(self.unequal)}",
                *(f"  ! {what}" for what in (*self.lost, *self.corrupt, *self.unequal)),
            ]
        )


def examine(cwd: Path, before: Seen, findings: Findings) -> Seen:
    """Compare a folder after a kill with what was there before it."""
    seen = Seen()
    for journal in sorted(cwd.rglob("*.jsonl")):
        whole, _, _ = journal.read_bytes().rpartition(b"\n")
        seen.lines[journal] = whole
        parse = JOURNALS.get(journal.name.split("-")[0].removesuffix(".jsonl"), json.loads)
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                row = parse(line)
            except Exception as error:
                findings.corrupt.append(f"{journal}, line {number}: {error!r}")
                continue
            if isinstance(row, SampleRecord) and row.status == "done":
                seen.finished[journal.parent, row.prompt_id, row.image] = row.image_sha
                file = journal.parent / row.path
                if not file.is_file() or digest(file.read_bytes()) != row.image_sha:
                    findings.corrupt.append(
                        f"{journal}, line {number}: {row.path} is not the image it speaks of"
                    )
    for journal, whole in before.lines.items():
        if not seen.lines.get(journal, b"").startswith(whole):
            findings.lost.append(f"{journal}: a whole line is gone")
    for key, sha in before.finished.items():
        if seen.finished.get(key) != sha:
            findings.lost.append(f"{key}: a finished image is gone")
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


# ------------------------------------------------------------------ instants between durable steps


class Instants:
    """The instants of this process at which a kill could hurt: before and amid writes, before
    fsyncs, before renames.

    They are counted, and the one numbered `deadly` is the last. A write that is cut leaves half of
    its bytes.
    """

    def __init__(self, deadly: int = -1) -> None:
        self.deadly = deadly
        self.passed = list[str]()

    def arm(self) -> None:
        """From now on, what the process does to files that it writes passes here."""
        fsync = os.fsync
        replace = os.replace
        opened = io.open
        instants = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:  # type: ignore[override]
                instants.reach("write", str(self.name))
                instants.reach(
                    "half",
                    str(self.name),
                    lambda: super(Raw, self).write(bytes(data)[: len(data) // 2]),
                )
                return super().write(data)

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
        if len(self.passed) == self.deadly:
            first()
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed.append(f"{step} {Path(path).name}")


# ------------------------------------------------------------------ the sweep


class Sweep:
    """A sweep whose configurations are composed once, so that a fork of this process needs little
    time for it.
    """

    def __init__(self, scene: str) -> None:
        from hydra import compose
        from hydra._internal.hydra import Hydra
        from hydra._internal.utils import create_config_search_path
        from omegaconf import open_dict

        from harness import cli

        cli.enable_plugins()
        places = create_config_search_path("pkg://conf")
        overrides, self.methods = SCENES[scene]
        self.command = ["-m", *overrides, f"method={','.join(self.methods)}"]
        if overrides[0] == "--config-dir":
            places.prepend("storm", f"file://{overrides[1]}")
            overrides = overrides[2:]
        Hydra.create_main_hydra2("storm", places)
        self._points = {}
        for method in self.methods:
            config = compose("config", [*overrides, f"method={method}"], return_hydra_config=True)
            choices = {group: str(choice) for group, choice in config.hydra.runtime.choices.items()}
            with open_dict(config):
                del config["hydra"]
            self._points[method] = config, choices

    def run(self, methods: Sequence[str], reported: bool = True) -> None:
        """What `python -m harness` does once its configurations are composed."""
        from harness.results.publish import publish
        from harness.results.wandb import NoTracking
        from harness.runs.stages import run_stages

        folders: list[Path] = []
        for method in methods:
            run_stages(*self._points[method], NoTracking(), folders.append)
        if reported:
            publish(Path("results"), folders, NoTracking())


def fork(cwd: Path, work: Callable[[], None]) -> int:
    """Carry out `work` in `cwd`, in a child whose output goes to a file there. Returns its process
    id.
    """
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        out = os.open(cwd / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(cwd)
        work()
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int, within_s: float) -> bool:
    """Whether a child ended by itself in that time; else it is killed. A failed one is an error."""
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
    """Kills over sweeps in folders of their own below `home`; `findings` says what became of
    them.
    """

    def __init__(self, scene: str, home: Path, seed: int) -> None:
        self.scene = scene
        self.home = home
        self.rng = random.Random(seed)
        self.findings = Findings()
        self.began = time.monotonic()
        self.sweep = Sweep(scene)
        self._expected = dict[tuple[str, ...], dict[str, object]]()
        before = Path.cwd()
        cwd = self._folder("warm")
        os.chdir(cwd)
        with redirect_stdout(io.StringIO()):
            self.sweep.run(self.sweep.methods)  # from now on, forks find everything loaded
        os.chdir(before)
        began = time.monotonic()
        self._undisturbed(self.sweep.methods)
        self.whole_s = time.monotonic() - began

    def at_random(self, kills: int) -> None:
        """Kill forks of the whole sweep, its methods in any order, until it is complete; again,
        until enough.
        """
        while self.findings.kills["at random instants"] < kills:
            methods = self.rng.sample(self.sweep.methods, len(self.sweep.methods))
            cwd = self._folder("random")
            seen = Seen()
            while not ended(self._fork(cwd, methods), self.rng.expovariate(4 / self.whole_s)):
                seen = self._killed("at random instants", cwd, seen)
            self._complete(cwd, methods, seen)

    def at_instants(self, most: int | None = None) -> None:
        """Kill each method's run, and one report, at each instant, or two methods' at so many; then
        complete it.
        """
        methods = (
            self.sweep.methods
            if most is None
            else self.rng.sample(self.sweep.methods, 2 if most else 0)
        )
        instants = [
            (method, report, i)
            for method in methods
            for report in (method == self.sweep.methods[0],)
            for i in range(self._count(method, report))
        ]
        for method, report, i in self.rng.sample(instants, len(instants))[:most]:
            cwd = self._folder("instant")
            assert not ended(self._fork(cwd, [method], report, Instants(i)), 600), (
                f"instant {i} of {method} never came"
            )
            seen = self._killed("at chosen instants", cwd, Seen())
            assert ended(self._fork(cwd, [method], report), 600)
            self._complete(cwd, [method], seen, report)

    def of_the_command(self, kills: int) -> None:
        """Kill `python -m harness`, one time in five before it has drawn anything, else while it
        draws.
        """
        while self.findings.kills["of the command"] < kills:
            cwd = self._folder("command")
            seen = Seen()
            while not self._command(cwd):
                seen = self._killed("of the command", cwd, seen)
            self._complete(cwd, self.sweep.methods, seen)

    def _command(self, cwd: Path) -> bool:
        """Run the command for a while; whether it came to its end."""
        begun = (cwd / "output.txt").stat().st_size if (cwd / "output.txt").exists() else 0
        with (cwd / "output.txt").open("ab") as output:
            process = start(cwd, *self.sweep.command, output=output)
        early = self.rng.random() < 0.2
        while (
            not early
            and process.poll() is None
            and b"planned," not in (cwd / "output.txt").read_bytes()[begun:]
        ):
            time.sleep(0.01)
        try:
            code = process.wait(self.rng.expovariate(2 / self.whole_s))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{cwd}: the command ended with exit code {code}")
        return code == 0

    def _folder(self, kind: str) -> Path:
        folder = self.home / f"{kind}-{self.findings.kills.total()}"
        folder.mkdir(parents=True)
        return folder

    def _fork(
        self,
        cwd: Path,
        methods: Sequence[str],
        report: bool = True,
        instants: Instants | None = None,
    ) -> int:
        def work() -> None:
            if instants:
                instants.arm()
            self.sweep.run(methods, report)
            if instants:
                (cwd / "instants").write_text("\n".join(instants.passed))

        return fork(cwd, work)

    def _count(self, method: str, report: bool) -> int:
        """How many instants a run has."""
        cwd = self._folder(f"count-{method}")
        assert ended(self._fork(cwd, [method], report, Instants()), 600)
        return len((cwd / "instants").read_text().splitlines())

    def _killed(self, kind: str, cwd: Path, before: Seen) -> Seen:
        self.findings.kills[kind] += 1
        return examine(cwd, before, self.findings)

    def _undisturbed(self, methods: Sequence[str], report: bool = True) -> dict[str, object]:
        """What lies on disk after a sweep without kills."""
        name = (*sorted(methods), str(report))
        if name not in self._expected:
            cwd = self._folder(f"undisturbed-{len(self._expected)}")
            assert ended(self._fork(cwd, methods, report), 3600)
            self._expected[name] = deterministic(cwd)
        return self._expected[name]

    def _complete(
        self, cwd: Path, methods: Sequence[str], before: Seen, report: bool = True
    ) -> None:
        """Compare a completed folder with the undisturbed one; it is not needed any more if they
        agree.
        """
        examine(cwd, before, self.findings)
        expected = self._undisturbed(methods, report)
        found = deterministic(cwd)
        self.findings.folders += 1
        if found == expected and self.findings.good:
            shutil.rmtree(cwd)
        elif found != expected:
            names = sorted(
                k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)
            )
            self.findings.unequal.append(f"{cwd}: {', '.join(names)}")
        (self.home / "log.txt").write_text(self.log())

    def log(self) -> str:
        """What happened so far; also in log.txt, for whoever cannot wait."""
        return self.findings.log(self.scene, time.monotonic() - self.began)


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
