"""Progress is said in words and with units: of a sweep, of a run, of a download."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import TOY, harness

from harness.download import format_bytes
from harness.models.checkpoint import locate
from harness.runs import generate
from harness.sweeps.progress import SweepProgress, format_seconds

FEW = (*TOY, "benchmark.prompts=2", "stages=[generate]")


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_time_left_is_that_of_what_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = SweepProgress(16, 3, clock=clock)
    for name in ("a", "b", "c"):
        progress.begin(name)
        clock.now_s += 30
        progress.end()
    progress.begin("d")
    assert capsys.readouterr().out.splitlines() == [
        "point 4 of 16: a",
        "point 5 of 16: b",
        "point 6 of 16, about 5.5 min left: c",
        "point 7 of 16, about 5.0 min left: d",
    ]


def test_jobs_side_by_side_are_counted_as_they_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = SweepProgress(3, unit="job", clock=clock)
    for _ in range(3):
        clock.now_s += 10
        progress.end()
        progress.print_ended()
    assert capsys.readouterr().out.splitlines() == [
        "1 of 3 jobs have ended",
        "2 of 3 jobs have ended, about 10 s left",
        "3 of 3 jobs have ended",
    ]


def test_a_sweep_numbers_its_points_and_counts_those_that_are_finished(tmp_path: Path) -> None:
    command = ("-m", *FEW, "method=plain,toy_best,best_of_n_likelihood")
    code, said = harness(tmp_path, "-m", *FEW, "method=toy_best")
    assert code == 0, said
    assert "point 1 of 1: " in said

    code, said = harness(tmp_path, *command)
    assert code == 0, said
    assert re.findall(r"point \d of \d.*", said) == [
        "point 2 of 3: method=plain",
        "point 3 of 3: method=best_of_n_likelihood",
    ]
    code, said = harness(tmp_path, *command, "seed=1", "shards=2")
    assert code == 0, said
    assert "job 3 of 6, about" in said
    assert ": method=toy_best (share 0/2)" in said


def test_a_command_ends_by_naming_what_to_open(tmp_path: Path) -> None:
    for _ in range(2):  # the second finds nothing to do
        code, said = harness(tmp_path, "-m", *TOY, "benchmark.prompts=2", "method=plain,toy_best")
        assert code == 0, said
        named = said.partition("\nOpen:\n")[2].splitlines()
        files = [line.strip().partition(": ")[0] for line in named]
        assert [Path(file).name for file in files] == ["index.html", "leaderboard.csv", "sheet.png"]
        assert all((tmp_path / file).is_file() for file in files)


def test_a_single_run_is_no_sweep(tmp_path: Path) -> None:
    code, said = harness(tmp_path, *FEW, "method=plain")
    assert code == 0, said
    assert "point" not in said


def test_a_runs_bar_counts_images(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with generate._Progress("plain-12345678", 4) as progress:
        for _ in range(4):
            progress.advance()
        progress.add_scores([1.0, 0.0])
    shown = terminal.getvalue().split("\r")[-1]
    assert shown.startswith("plain-12345678: 100%")
    assert re.search(r"4 of 4 images \[.* images/s, score 0\.500\]", shown)


def test_without_a_terminal_lines_count_images(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(generate, "PROGRESS_S", 0)
    with caplog.at_level(logging.INFO, "harness"), generate._Progress("plain", 2) as progress:
        progress.advance()
    assert re.fullmatch(r"plain: 1 of 2 images, [\d.e+]+ images/s", caplog.messages[0])


def test_a_download_from_the_hub_says_how_much_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = [
        SimpleNamespace(will_download=True, file_size=3_100_000_000),
        SimpleNamespace(will_download=True, file_size=900_000),
        SimpleNamespace(will_download=False, file_size=5_000_000_000),
    ]

    def download(hub: str, *, dry_run: bool = False, **_: object) -> object:
        return files if dry_run else str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with caplog.at_level(logging.INFO):
        assert locate("owner/model", None, ["*.safetensors"], None) == tmp_path
        assert caplog.messages == [
            "downloading 2 files of owner/model, 3.1 GB, into the hub's cache (HF_HOME)"
        ]
        files.clear()
        locate("owner/model", None, ["*.safetensors"], None)
    assert len(caplog.messages) == 1


def test_amounts_have_units() -> None:
    sizes = [format_bytes(size) for size in (900, 12_345, 6_789_000, 2_345_000_000)]
    assert sizes == ["0.9 kB", "12.3 kB", "6.79 MB", "2.35 GB"]
    times = [format_seconds(seconds) for seconds in (5, 119, 120, 7200, 172800)]
    assert times == ["5 s", "119 s", "2.0 min", "2.0 h", "2.0 d"]


@pytest.mark.parametrize("target", ["demo", "test", "docs"])
def test_setting_up_says_what_it_does(target: str) -> None:
    """`make` says how much is installed before it installs."""
    root = Path(__file__).parent.parent
    made = subprocess.run(
        ["make", "--dry-run", "V=nowhere", "--assume-new=pyproject.toml", target],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = made.stdout.splitlines()
    install = next(index for index, line in enumerate(lines) if "uv pip install" in line)
    assert any("about 6 GB" in line for line in lines[:install])
