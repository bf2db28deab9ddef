"""What a user types: good commands do what they say, bad ones get one line with the value and the
remedy.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest
from runs import TOY, folders, harness, start

from harness.records import Prompt, UserError
from harness.runs.folder import image_path


def read_board(cwd: Path) -> list[dict[str, str]]:
    with (cwd / "results/leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_makes_a_folder_a_row_and_a_label_each(tmp_path: Path) -> None:
    code, output = harness(
        tmp_path, "-m", *TOY, "method=toy_best", "method.n=2,3,4", "benchmark.prompts=6"
    )
    assert code == 0, output
    rows = read_board(tmp_path)
    assert [(row["method"], row["params"], row["images"]) for row in rows] == [
        ("toy_best", "n=2", "12"),
        ("toy_best", "n=3", "12"),  # the preset's own number
        ("toy_best", "n=4", "12"),
    ]
    assert [row["label"] for row in rows] == [f"toy_best, N = {n}" for n in (2, 3, 4)]
    assert [row["visual_tokens"] for row in rows] == ["32.00", "48.00", "64.00"]
    assert len(folders(tmp_path)) == 3
    assert (tmp_path / "results/sheet.png").is_file()
    assert not list(tmp_path.glob("*.log"))


def test_results_moves_everything_and_report_rebuilds_without_computing(tmp_path: Path) -> None:
    harness(tmp_path, *TOY, "results=moved")
    board = tmp_path / "moved/leaderboard.csv"
    before = board.read_bytes()
    board.unlink()
    code, output = harness(tmp_path, "stages=[report]", "results=moved")
    assert code == 0, output
    assert board.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"]


def test_the_same_seed_is_the_same_run_and_another_is_another(tmp_path: Path) -> None:
    for seed in (0, 1, 0):
        harness(tmp_path, *TOY, f"seed={seed}", "benchmark.prompts=4")
    assert len(folders(tmp_path)) == 2


def test_latency_draws_one_image_at_a_time_and_the_same_candidates(tmp_path: Path) -> None:
    code, output = harness(
        tmp_path, "-m", *TOY[:-1], "sampler=latency,throughput", "benchmark.prompts=4"
    )
    assert code == 0, output
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=ploin"], ["ploin", "best_of_n", "plain"]),
        (["methud=plain"], ["methud"]),
        (["method=toy_best", "method.m=3"], ["method.m", "--cfg job"]),
        (["method=toy_best", "method.n=0"], ["method.n=0"]),
        (["method=toy_best", "method.n=20"], ["sampler.slots=24", "needs 40", "sampler.slots=160"]),
        (["model.sampling.temperature=-1"], ["temperature=-1"]),
        (["model.sampling.warmth=1"], ["warmth"]),
        (["stages=[draw]"], ["draw", "generate"]),
        (["device=cuda:77"], ["cuda:77", "device=auto"]),
        (["experiment=demo"], ["experiment=demo", "-m"]),
        (["stages=[report]", "results=nowhere"], ["nowhere"]),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    code, output = harness(tmp_path, *TOY, *arguments)
    assert code == 2, output
    (line,) = output.strip().splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


def test_a_second_writer_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    run = (*TOY, "benchmark.pause=0.2")
    first = start(tmp_path, *run)
    while not list(tmp_path.rglob("records-0.jsonl")):
        assert first.poll() is None
        time.sleep(0.01)  # leaves it the core
    code, output = harness(tmp_path, *run)
    first.kill()
    first.communicate()
    assert code == 2
    assert "written by another process" in output

    (folder,) = folders(tmp_path)
    _, fingerprint = folder.name.split("-")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(fingerprint, "deadbeef"))
    code, output = harness(tmp_path, *run)
    assert code == 2
    assert "holds run deadbeef" in output


def test_a_file_name_from_data_cannot_leave_the_run_folder() -> None:
    path = image_path(Prompt("tiif/color+3d/0017/short", "", ""), 2)
    assert path == "images/color+3d/0017/short/2.png"
    for hostile in ("x/../../etc", "x//a", "x/a b", "x/.", "/"):
        with pytest.raises(UserError, match="file name"):
            image_path(Prompt(hostile, "", ""), 0)


def test_an_audit_passes_a_good_folder_and_finds_what_was_changed(tmp_path: Path) -> None:
    harness(tmp_path, *TOY, "method=toy_best")
    (folder,) = folders(tmp_path)
    code, output = harness(tmp_path, "run", str(folder), module="harness.check")
    assert (code, output.splitlines()[-1]) == (0, "53 passed, 0 failed")

    journal = folder / "records-0.jsonl"
    journal.write_text(journal.read_text().replace('"tokens_sha":"', '"tokens_sha":"f'))
    next(folder.rglob("*.png")).unlink()
    code, output = harness(tmp_path, "run", str(folder), module="harness.check")
    assert (code, output.splitlines()[-1]) == (1, "48 passed, 5 failed")

    code, output = harness(tmp_path, "run", str(tmp_path), module="harness.check")
    assert code == 2
    assert "is no run folder" in output


def test_an_audit_fails_a_run_whose_images_failed(tmp_path: Path) -> None:
    run = (*TOY, "method=toy_faulty", "benchmark.prompts=8", "stages=[generate]")
    harness(tmp_path, *run)
    (folder,) = folders(tmp_path)
    code, output = harness(tmp_path, "run", str(folder), module="harness.check")
    assert code == 1
    assert " failed, first " in output and "the judge is down" in output
    # None delivered: nothing is left to draw again, and it fails all the same.
    journal = folder / "records-0.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"status":"failed"' in line))
    code, output = harness(tmp_path, "run", str(folder), module="harness.check")
    assert (code, output.splitlines()[-1]) == (1, "0 passed, 1 failed")


def test_an_option_that_only_the_swept_choices_have_goes_with_each_point(tmp_path: Path) -> None:
    sweep = ("-m", *TOY, "method=toy_best,best_of_n_likelihood", "benchmark.prompts=2")
    code, said = harness(tmp_path, *sweep, "method.n=2")
    assert code == 0, said
    rows = {(row["method"], row["params"]) for row in read_board(tmp_path)}
    assert rows == {("toy_best", "n=2"), ("best_of_n_likelihood", "n=2")}

    code, said = harness(tmp_path, *sweep, "method.m=2")
    assert code == 2
    assert "unknown option 'method.m'" in said
