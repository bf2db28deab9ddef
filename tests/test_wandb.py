"""wandb shows what the journals say: read back from disk, number by number, and made again without
a change.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run
from runs import TOY, folders, harness

from harness.records import UserError
from harness.results.columns import COSTS
from harness.results.leaderboard import build, format_cell
from harness.results.wandb import Progress, Wandb, pages

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))


def read_back(results: Path, id_: str) -> dict[str, Any]:
    """What an offline run holds: its `run` record, the final summary, the history."""
    (file,) = (results / "wandb").glob(f"offline-run-*-{id_}/run-{id_}.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = {"summary": {}, "history": []}
    for record in map(json.loads, said.splitlines()):
        if record["type"] == "run":
            found["run"] = record["run"]
        elif record["type"] == "summary":
            found["summary"] |= record["summary"].get("update", {})
        elif record["type"] == "history":
            found["history"].append(record["history"]["item"])
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in found
    }


def test_every_number_reads_back_as_the_tables_have_it_and_twice_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    make_run(tmp_path, "plain")
    best = make_run(tmp_path, "best_of_n", n=4)
    board = build(tmp_path)
    assert (
        Wandb("made", mode="offline")
        .publish(board, tmp_path)
        .endswith("3 of 3 dashboards written (offline)")
    )
    row = next(row for row in rows(tmp_path / "leaderboard.csv") if row["method"] == "best_of_n")
    found = read_back(tmp_path, row["fingerprint"])

    names = {
        "score": "quality/score",
        **{task: f"quality/{task}" for task in ("colors", "counting", "position")},
    }
    names |= {name: f"cost/{name}" for name in COSTS} | {"ci_low": "quality/score_low"}
    names |= {"vs_plain": "compare/vs_plain", "budget": "compare/budget"}
    assert {n: format_cell(n, float(found["summary"][key])) for n, key in names.items()} == {
        n: row[n] for n in names
    }
    assert [str(found["summary"][f"images/{name}"]) for name in ("images", "failed")] == [
        row["images"],
        row["failed"],
    ]
    metrics = [
        one for one in rows(tmp_path / "metrics.csv") if one["fingerprint"] == row["fingerprint"]
    ]
    assert len(metrics) > 20
    for one in metrics:
        for column, end in (("value", ""), ("ci_low", "_low"), ("ci_high", "_high")):
            value = found["summary"].get(one["metric"] + end)
            assert (format_cell("value", float(value)) if value is not None else "") == one[
                column
            ], one["metric"]

    run = found["run"]
    assert (run["run_id"], run["run_group"]) == (
        row["fingerprint"],
        f"made-small-{row['protocol']}",
    )
    assert run["tags"] == ["best_of_n", "made", "small"]
    assert run["config"]["update"]["method"]["n"] == 4
    (point,) = (line for line in found["history"] if "scaling/score" in line)
    assert [format_cell("budget", float(point[x])) for x in ("budget", "scaling/score")] == [
        row["budget"],
        row["score"],
    ]
    steps = [line["progress/images"] for line in found["history"] if "progress/images" in line]
    assert steps == list(range(1, 25))
    assert found["summary"]["progress/visual_tokens"] == float(row["visual_tokens"])
    media = {path.suffix for path in (tmp_path / "wandb").rglob("media/*/*")}
    assert media == {".png", ".json"}

    group = read_back(tmp_path, row["protocol"])
    (curve,) = (one for one in rows(tmp_path / "curves.csv") if one["currency"] == "visual_tokens")
    points = [line for line in group["history"] if "budget" in line]
    assert [f"{line['budget']:.4g}" for line in points] == curve["budgets"].split()
    assert [f"{line['scaling/best_of_n, seed 0']:.4f}" for line in points] == curve[
        "scores"
    ].split()

    before = tree(tmp_path)
    assert (
        Wandb("made", mode="offline")
        .publish(build(tmp_path), tmp_path)
        .endswith("0 of 3 dashboards written (offline)")
    )
    after = tree(tmp_path)
    assert {name: content for name, (_, content) in before.items()} == {
        n: content for n, (_, content) in after.items()
    }
    assert {n: when for n, (when, _) in before.items() if n.startswith("wandb/")} == {
        n: when for n, (when, _) in after.items() if n.startswith("wandb/")
    }
    assert not [name for name, (_, content) in after.items() if KEY.encode() in content]
    assert len(build(tmp_path).runs) == 2  # what wandb writes is no run folder
    assert best.exists()


def test_a_run_is_followed_while_it_is_drawn_and_its_dashboard_made_again_from_the_journals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key, so offline by itself. What was logged live is what the journals say
    afterwards.
    """
    logged: list[tuple[int, dict[str, float]]] = []
    opened: list[str] = []
    real = Wandb._open

    class Spy:
        step = 0

        def log(self, line: dict[str, float], step: int) -> None:
            logged.append((step, line))

    def fake(self: Wandb, page: Any, results: Path) -> Any:
        from contextlib import nullcontext

        opened.append(page.id)
        return nullcontext(Spy()) if len(opened) == 1 else real(self, page, results)

    monkeypatch.setattr(Wandb, "_open", fake)
    code, output = harness(tmp_path, *TOY, "logger=wandb")
    assert code == 0, output
    assert "2 of 2 dashboards written (offline)" in output
    (folder,) = folders(tmp_path)
    assert opened[:2] == [folder.name.split("-")[1]] * 2
    board = build(tmp_path / "results")
    assert 0 < board.runs[0].about["memory_gb"] < 0.1
    (page, _) = pages(board, 16)
    assert logged == list(page.progress)
    assert len(logged) == 48
    code, output = harness(tmp_path, "stages=[report]", "logger=wandb")
    assert "0 of 2 dashboards written" in output
    assert len(opened) == 3


def test_a_key_in_the_environment_or_in_netrc_means_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    host = wandb.Settings().base_url.removeprefix("https://")
    assert Wandb("made").mode == "offline"
    (tmp_path / "no_netrc").write_text(f"machine {host} login user password {KEY}\n")
    assert Wandb("made").mode == "online"
    (tmp_path / "no_netrc").write_text(f"machine elsewhere.example login user password {KEY}\n")
    assert Wandb("made").mode == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert Wandb("made").mode == "online"
    assert Wandb("made", mode="offline").mode == "offline"


def test_a_dashboard_that_fails_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ConnectionError("no way\nout")

    folder = make_run(tmp_path, "plain")
    scores = (folder / "scores.jsonl").read_text()
    (folder / "scores.jsonl").write_text("")
    monkeypatch.setattr(Wandb, "_open", broken)
    with Wandb("made", mode="offline").follow(folder, tmp_path) as update:
        update()
        (folder / "scores.jsonl").write_text(scores)
        update()
        update()


def test_progress_is_logged_at_about_fifty_numbers_of_images(tmp_path: Path) -> None:
    make_run(tmp_path, "plain", prompts=75)
    (page, _) = pages(build(tmp_path), 16)
    assert [step for step, _ in page.progress] == list(range(3, 151, 3))
    assert Progress(10_000).lines([]) == []


def test_a_mode_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logger.mode=always: choose from auto, online, offline"):
        Wandb("made", mode="always")
    code, output = harness(tmp_path, *TOY, "logger=wandb", "logger.mode=always")
    assert (code, "logger.mode=always" in output, len(output.strip().splitlines())) == (2, True, 1)
