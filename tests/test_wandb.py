"""wandb shows what the journals say: read back from disk, number by number, and made again without
a change.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run
from runs import TOY, folders, harness

from harness.records import UserError
from harness.results.columns import COSTS
from harness.results.dashboards import Page, Progress, describe_board
from harness.results.leaderboard import build, format_cell
from harness.results.wandb import Wandb

KEY = "0123456789abcdef" * 2 + "01234567"
TASKS = ("colors", "counting", "position")
SUMMARY = {
    "score": "quality/score",
    "ci_low": "quality/score_low",
    "vs_plain": "compare/vs_plain",
    "budget": "compare/budget",
    **{task: f"quality/{task}" for task in TASKS},
    **{cost: f"cost/{cost}" for cost in COSTS},
}
"""Column of the leaderboard -> its name in a run's summary."""


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))


def read_back(results: Path, id_: str) -> dict[str, Any]:
    """Return what an offline run holds: its `run` record, the final summary, the history."""
    (file,) = (results / "wandb").glob(f"offline-run-*-{id_}/run-{id_}.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = {"summary": {}, "history": []}
    for record in map(json.loads, output.splitlines()):
        if record["type"] == "run":
            found["run"] = record["run"]
        elif record["type"] == "summary":
            found["summary"] |= record["summary"].get("update", {})
        elif record["type"] == "history":
            found["history"].append(record["history"]["item"])
    return found


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by its place."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            files[str(path.relative_to(folder))] = path.read_bytes()
    return files


def modification_times(folder: Path) -> dict[str, int]:
    """Return when each file below a folder was last written, in nanoseconds."""
    times = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            times[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return times


# --- publishing -----------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published folder of two runs: plain sampling and Best-of-4."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    make_run(tmp_path, "plain")
    make_run(tmp_path, "best_of_n", n=4)
    line = Wandb("made", mode="offline").publish(build(tmp_path), tmp_path)
    assert line.endswith("3 of 3 dashboards written (offline)")
    return tmp_path


def best_of_n(results: Path) -> dict[str, str]:
    """Return the row of Best-of-4."""
    rows = read_rows(results / "leaderboard.csv")
    return next(row for row in rows if row["method"] == "best_of_n")


def test_every_number_of_a_run_reads_back_as_the_tables_have_it(results: Path) -> None:
    row = best_of_n(results)
    summary = read_back(results, row["fingerprint"])["summary"]
    for column, name in SUMMARY.items():
        assert format_cell(column, float(summary[name])) == row[column], column
    for name in ("images", "failed"):
        assert str(summary[f"images/{name}"]) == row[name]

    every = read_rows(results / "metrics.csv")
    metrics = [metric for metric in every if metric["fingerprint"] == row["fingerprint"]]
    assert len(metrics) > 20
    for metric in metrics:
        for column, end in (("value", ""), ("ci_low", "_low"), ("ci_high", "_high")):
            value = summary.get(metric["metric"] + end)
            shown = "" if value is None else format_cell("value", float(value))
            assert shown == metric[column], metric["metric"]


def test_a_run_shows_its_options_progress_budget_and_pictures(results: Path) -> None:
    row = best_of_n(results)
    found = read_back(results, row["fingerprint"])
    run = found["run"]
    assert run["run_id"] == row["fingerprint"]
    assert run["run_group"] == f"made-small-{row['protocol']}"
    assert run["tags"] == ["best_of_n", "made", "small"]
    assert run["config"]["update"]["method"]["n"] == 4

    (point,) = (line for line in found["history"] if "scaling/score" in line)
    assert format_cell("budget", float(point["budget"])) == row["budget"]
    assert format_cell("budget", float(point["scaling/score"])) == row["score"]

    steps = [line["progress/images"] for line in found["history"] if "progress/images" in line]
    assert steps == list(range(1, 25))
    assert found["summary"]["progress/visual_tokens"] == float(row["visual_tokens"])
    media = {path.suffix for path in (results / "wandb").rglob("media/*/*")}
    assert media == {".png", ".json"}


def test_a_protocol_shows_its_scaling_curves(results: Path) -> None:
    history = read_back(results, best_of_n(results)["protocol"])["history"]
    every = read_rows(results / "curves.csv")
    (curve,) = (row for row in every if row["currency"] == "visual_tokens")
    points = [line for line in history if "budget" in line]
    budgets = [f"{point['budget']:.4g}" for point in points]
    scores = [f"{point['scaling/Best-of-N, seed 0']:.4f}" for point in points]
    assert budgets == curve["budgets"].split()
    assert scores == curve["scores"].split()


def test_publishing_twice_changes_nothing(results: Path) -> None:
    files = read_files(results)
    times = modification_times(results / "wandb")
    line = Wandb("made", mode="offline").publish(build(results), results)
    assert line.endswith("0 of 3 dashboards written (offline)")
    assert read_files(results) == files
    assert modification_times(results / "wandb") == times


def test_the_key_is_in_no_file_and_dashboards_are_no_runs(results: Path) -> None:
    assert not [name for name, data in read_files(results).items() if KEY.encode() in data]
    assert len(build(results).runs) == 2


# --- following ------------------------------------------------------------------------------------


def test_a_run_is_followed_while_it_is_drawn_and_its_dashboard_made_again_from_the_journals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key, so offline by itself. What was logged live is what the journals say
    afterwards.
    """
    logged: list[tuple[int, dict[str, float]]] = []
    opened: list[str] = []
    open_page = Wandb.open_page

    class Spy:
        step = 0

        def log(self, line: dict[str, float], step: int) -> None:
            logged.append((step, line))

    def spy_first(self: Wandb, page: Page, results: Path) -> AbstractContextManager[Any]:
        opened.append(page.id)
        return nullcontext(Spy()) if len(opened) == 1 else open_page(self, page, results)

    monkeypatch.setattr(Wandb, "open_page", spy_first)
    code, output = harness(tmp_path, *TOY, "logger=wandb")
    assert code == 0, output
    assert "2 of 2 dashboards written (offline)" in output
    (folder,) = folders(tmp_path)
    assert opened[:2] == [folder.name.split("-")[1]] * 2

    board = build(tmp_path / "results")
    assert 0 < board.runs[0].about["memory_gb"] < 0.1
    (page, _) = describe_board(board, 16)
    assert logged == list(page.progress)
    assert len(logged) == 48

    code, output = harness(tmp_path, "stages=[report]", "logger=wandb")
    assert "0 of 2 dashboards written" in output
    assert len(opened) == 3


def test_a_dashboard_that_fails_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def fail(*arguments: object) -> None:
        attempts.append(arguments)
        raise ConnectionError("no way\nout")

    folder = make_run(tmp_path, "plain")
    scores = (folder / "scores.jsonl").read_text()
    (folder / "scores.jsonl").write_text("")
    monkeypatch.setattr(Wandb, "open_page", fail)
    with Wandb("made", mode="offline").follow(folder, tmp_path) as update:
        update()
        assert not attempts
        (folder / "scores.jsonl").write_text(scores)
        update()
        update()
    assert len(attempts) == 1


def test_progress_is_logged_at_about_fifty_numbers_of_images(tmp_path: Path) -> None:
    make_run(tmp_path, "plain", prompts=75)
    (page, _) = describe_board(build(tmp_path), 16)
    assert [step for step, _ in page.progress] == list(range(3, 151, 3))
    assert Progress(10_000).add([]) == []


# --- options --------------------------------------------------------------------------------------


def test_a_key_in_the_environment_or_in_netrc_means_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    netrc = tmp_path / "no_netrc"
    host = wandb.Settings().base_url.removeprefix("https://")
    assert Wandb("made").mode == "offline"
    netrc.write_text(f"machine {host} login user password {KEY}\n")
    assert Wandb("made").mode == "online"
    netrc.write_text(f"machine another.example login user password {KEY}\n")
    assert Wandb("made").mode == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert Wandb("made").mode == "online"
    assert Wandb("made", mode="offline").mode == "offline"


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logger.mode=always: choose from auto, online, offline"):
        Wandb("made", mode="always")
    code, output = harness(tmp_path, *TOY, "logger=wandb", "logger.mode=always")
    assert code == 2
    assert "logger.mode=always" in output
    assert len(output.strip().splitlines()) == 1


def test_without_the_package_the_logger_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    problem = (
        "logger=wandb needs the package wandb, which is not installed: "
        "pip install 'visual-ar-tts[wandb]'"
    )
    with pytest.raises(UserError) as error:
        Wandb("made")
    assert str(error.value) == problem
    code, output = harness(tmp_path, *TOY, "logger=wandb")
    assert (code, output.strip()) == (2, f"error: {problem}")
    assert folders(tmp_path) == []
