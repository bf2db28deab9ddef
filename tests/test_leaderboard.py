"""The leaderboard is a pure projection of run folders."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from pathlib import Path

import pandas as pd
import pytest
import yaml
from written_runs import STAMP, write_lines

from harness.records import SampleRecord, Score, Usage, UserError
from harness.results.columns import LEADERBOARD, OCCASIONAL
from harness.results.exports import write_exports
from harness.results.leaderboard import build, project_runs, rows_beside
from harness.results.publish import publish
from harness.results.terminal_table import render_table
from harness.results.wandb import NoTracking
from harness.runs.read import read_run

CATEGORIES = {"p0": "colors", "p1": "colors", "p2": "position", "p3": "position"}
FIRST_COLUMNS = [
    "benchmark",
    "model",
    "method",
    "params",
    "images",
    "score",
    "ci_low",
    "ci_high",
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
    "visual_tokens",
    "target_passes",
    "target_positions",
    "drafted_positions",
    "renders",
    "judge_calls",
    "judge_s",
    "device_s",
    "wall_s",
    "failed",
    "unjudged",
    "seed",
    "fingerprint",
    "device",
    "commit",
]
"""The columns that readers of the file may rely on to come first, in this order.

Tasks of GenEval are left out where no run was asked them.
"""


def record(prompt: str, image: int, status: str = "done", **usage: float) -> SampleRecord:
    cost = Usage(**{"sampled": 100, "skipped": 44, "target_passes": 143, "device_s": 0.1, **usage})
    return SampleRecord(prompt, image, CATEGORIES[prompt], status, cost, stamp=STAMP)


def header_with(*tasks: str) -> list[str]:
    """Return the fixed columns, of occasional ones (GenEval's tasks) only these."""
    return [name for name in LEADERBOARD.names if name in tasks or name not in OCCASIONAL]


def score(prompt: str, image: int, value: float | None, judge: str = "judge@1") -> Score:
    return Score(prompt, image, judge, value)


DONE = [record(prompt, image) for prompt in CATEGORIES for image in range(2)]
"""Every image was delivered."""
SCORES = [score(r.prompt_id, r.image, float(r.prompt_id != "p0" or r.image)) for r in DONE]
"""All are right but the first image of p0."""
BROKEN = DONE[0].to_json().replace('"sampled":100', "%s") + "\n"
"""A journal line whose usage has another field instead."""
BROKEN_SCORE = SCORES[0].to_json().replace('"value":0.0', '"value":%s') + "\n"
"""A score of another value."""
CONFIG = 'run: {benchmark: b, model: m, method: x, params: "", fingerprint: f, planned: 8, %s}'


def write_folder(
    results: Path,
    name: str = "plain-0a1b2c3d",
    records: list[SampleRecord] = DONE,
    scores: list[Score] = SCORES,
    **about: object,
) -> Path:
    """Write a run folder of two images of each prompt; returns it."""
    folder = results / "pictogram" / "pictogram_16" / name
    folder.mkdir(parents=True)
    run = {
        "benchmark": "pictogram",
        "model": "pictogram_16",
        "method": "plain",
        "params": "",
        "seed": 0,
        "planned": 8,
        "images_per_prompt": 2,
        "fingerprint": name[-8:],
        "numerics": "constant",
        **about,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"method": {"_target_": "x"}, "run": run}))
    write_jobs(folder, CATEGORIES)
    write_lines(folder / "records-0.jsonl", [one.to_json() for one in records])
    if scores:
        write_lines(folder / "scores.jsonl", [one.to_json() for one in scores])
    return folder


def rename_categories(folder: Path, category: str) -> None:
    """Give all prompts of a folder one category, in the plan and in the records."""
    write_jobs(folder, dict.fromkeys(CATEGORIES, category))
    records = [dataclasses.replace(one, category=category).to_json() for one in DONE]
    write_lines(folder / "records-0.jsonl", records)


def write_jobs(folder: Path, categories: dict[str, str]) -> None:
    """Write the planned prompts: id -> category."""
    jobs = [{"prompt_id": p, "category": c, "images": 2} for p, c in categories.items()]
    write_lines(folder / "jobs.jsonl", [json.dumps(job) for job in jobs])


def row(folder: Path) -> dict:
    """Return a folder's row of the leaderboard."""
    return project_runs([read_run(folder)]).frame.iloc[0].to_dict()


def cells(results: Path) -> list[dict[str, str]]:
    """Read leaderboard.csv as text."""
    with (results / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_first_columns_keep_their_places(tmp_path: Path) -> None:
    write_folder(tmp_path)
    build(tmp_path)
    assert list(LEADERBOARD.names[: len(FIRST_COLUMNS)]) == FIRST_COLUMNS
    assert list(cells(tmp_path)[0]) == header_with("colors", "position")


def test_a_row_has_scores_costs_and_provenance(tmp_path: Path) -> None:
    write_folder(tmp_path)
    build(tmp_path)
    (line,) = cells(tmp_path)
    assert (line["images"], line["score"]) == ("8", "0.8750")
    assert (line["colors"], line["position"]) == ("0.7500", "1.0000")
    assert line["params"] == ""
    assert (line["visual_tokens"], line["target_passes"]) == ("144.00", "143.00")
    assert line["device_s"] == "0.1000"
    assert (line["ci_low"], line["ci_high"]) == ("0.7500", "1.0000")
    assert (line["device"], line["commit"], line["judge"]) == ("cpu", "abc1234", "judge@1")
    assert (line["failed"], line["missing"], line["unjudged"]) == ("0", "0", "0")


def test_what_is_not_there_is_wrong_and_costs_are_per_delivered_image(tmp_path: Path) -> None:
    records = [*DONE[:5], record("p2", 1, "failed", sampled=9999)]  # p3 was never reached
    scores = [
        score("p0", 0, 1.0),
        score("p0", 1, None),
        score("p1", 0, 1.0),
        score("p2", 0, 1.0),
        score("p3", 0, 1.0),
    ]
    line = row(write_folder(tmp_path, records=records, scores=scores))
    assert (line["colors"], line["position"], line["score"]) == (0.5, 0.25, 0.375)
    assert (line["images"], line["failed"], line["missing"], line["unjudged"]) == (5, 1, 2, 2)
    assert line["visual_tokens"] == 144


def test_nothing_delivered_is_a_row_too(tmp_path: Path) -> None:
    failed = [record(one.prompt_id, one.image, "failed") for one in DONE]
    write_folder(tmp_path, records=failed, scores=[])
    build(tmp_path)
    (line,) = cells(tmp_path)
    assert (line["images"], line["failed"], line["device_s"]) == ("0", "8", "")
    for nothing in ("score", "ci_low", "ci_high", "colors", "tie_group", "rank_low"):
        assert line[nothing] == ""


@pytest.mark.parametrize("answers", ["none asked for", "none readable"])
def test_a_run_that_no_judge_has_valued_has_costs_but_no_score_and_no_rank(
    tmp_path: Path, answers: str
) -> None:
    """Neither a scorer that raises nor one that never knows gives the run a zero."""
    write_folder(tmp_path, "plain-00000001")
    unknown = [score(one.prompt_id, one.image, None) for one in DONE]
    scores = unknown if answers == "none readable" else []
    write_folder(tmp_path, "sjd-00000002", method="sjd", scores=scores)
    board = build(tmp_path)
    scored, unscored = cells(tmp_path)
    assert scored["score"] != ""
    for nothing in ("score", "ci_low", "ci_high", "colors", "vs_plain", "tie_group", "rank_low"):
        assert unscored[nothing] == ""
    assert (unscored["images"], unscored["unjudged"], unscored["visual_tokens"]) != ("8", "0", "")
    assert "not scored" in render_table(board.frame)
    quality = board.metrics["metric"].str.startswith("quality/")
    assert set(board.metrics[quality]["method"]) == {"plain"}
    assert "sjd" in set(board.metrics["method"])


def test_done_beats_failed_and_later_lines_beat_earlier_ones(tmp_path: Path) -> None:
    records = [*DONE, record("p0", 0, "failed"), record("p0", 1, sampled=900)]
    scores = [*SCORES, score("p0", 0, 1.0)]
    run = read_run(write_folder(tmp_path, records=records, scores=scores))
    assert not run.failed
    assert run.done["p0", 1].usage.sampled == 900
    assert run.scores["p0", 0].value == 1


def test_a_torn_last_line_is_ignored_and_any_other_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    journal = folder / "records-0.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + DONE[0].to_json().encode()[:40] + "é".encode()[:1])
    assert row(folder)["images"] == 8
    journal.write_bytes(whole[:-1])  # only the line's end is missing
    assert row(folder)["images"] == 8
    journal.write_bytes(b'{"prompt_id": \n' + whole)
    with pytest.raises(UserError, match=r"plain-0a1b2c3d.records-0\.jsonl, line 1: cannot be read"):
        row(folder)


def test_order_and_shards_of_journals_do_not_change_the_file(tmp_path: Path) -> None:
    costs = random.Random(0)
    records = [record(r.prompt_id, r.image, device_s=costs.random()) for r in DONE]
    write_folder(tmp_path / "a", records=records)
    folder = write_folder(tmp_path / "b", records=[DONE[3], *records[:2:-1]], scores=SCORES[::-1])
    write_lines(folder / "records-1.jsonl", [one.to_json() for one in records[:3]])
    for results in (tmp_path / "a", tmp_path / "b", tmp_path / "b"):
        build(results)
    tables = [(tmp_path / name / "leaderboard.csv").read_bytes() for name in "ab"]
    assert tables[0] == tables[1]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "curves.csv",
        "leaderboard.csv",
        "metrics.csv",
        "pictogram",
    ]


def test_rows_are_sorted_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    for i, n in enumerate((16, 2, 4)):
        write_folder(tmp_path, f"best_of_n-0000000{i}", method="best_of_n", params=f"n={n}")
    write_folder(tmp_path)
    assert list(build(tmp_path).frame["params"]) == ["n=2", "n=4", "n=16", ""]


def test_other_benchmarks_add_their_categories(tmp_path: Path) -> None:
    write_folder(tmp_path)
    folder = write_folder(tmp_path, "other-00000001", benchmark="other")
    rename_categories(folder, "texture")
    frame = build(tmp_path).frame
    assert list(frame.columns) == [*header_with("colors", "position"), "texture"]
    assert [line["texture"] for line in cells(tmp_path)] == ["0.8750", ""]
    rename_categories(folder, "seed")
    board = build(tmp_path)
    assert board.problems == ()
    assert [line["category_seed"] for line in cells(tmp_path)] == ["0.8750", ""]
    assert list(board.frame["seed"]) == [0, 0]


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("config.yaml", "a: [", "cannot be read"),
        ("config.yaml", "just text", "cannot be read"),
        ("config.yaml", "a: 1", "no 'run' mapping"),
        ("config.yaml", "run: {benchmark: b}", "run.model is missing"),
        ("jobs.jsonl", None, "cannot be read"),
        ("jobs.jsonl", "", "no image is planned"),
        (
            "jobs.jsonl",
            '{"prompt_id": "p0", "category": "colors", "images": 2}\n',
            "plans 8 images, jobs.jsonl lists 2",
        ),
        ("jobs.jsonl", "{}\n", "line 1"),
        ("jobs.jsonl", '{"prompt_id": "p0", "category": "c", "images": "4"}\n', "line 1"),
        ("jobs.jsonl", '{"prompt_id": "p0", "category": "c", "images": 0}\n', "at least 1"),
        ("jobs.jsonl", 2 * '{"prompt_id": "p", "category": "c", "images": 4}\n', "planned twice"),
        (
            "jobs.jsonl",
            '{"prompt_id": "p0", "category": "c", "images": 8, "weight": NaN}\n',
            "weight",
        ),
        (
            "records-0.jsonl",
            DONE[0].to_json().replace('"p0"', '"x"') + "\n",
            "image 0 of x is not among the planned",
        ),
        ("records-0.jsonl", '{"usage": {"tokens": 1}}\n', "line 1"),
        ("records-0.jsonl", BROKEN % '"sampled": -1', "sampled: -1 is negative"),
        ("records-0.jsonl", BROKEN % '"sampled": 1.5', "usage.sampled: '1.5'"),
        ("records-0.jsonl", BROKEN % '"device_s": NaN', "usage.device_s"),
        ("records-0.jsonl", BROKEN % '"device_s": "1"', "usage.device_s"),
        ("scores.jsonl", BROKEN_SCORE % "7.0", "line 1: cannot be read (score 7.0: a score"),
        ("scores.jsonl", BROKEN_SCORE % "-0.1", "line 1: cannot be read (score -0.1: a score"),
        ("scores.jsonl", BROKEN_SCORE % "Infinity", "line 1: cannot be read (value"),
        ("scores.jsonl", BROKEN_SCORE % '"1"', "line 1: cannot be read (value"),
        ("scores.jsonl", BROKEN_SCORE % "true", "line 1: cannot be read (value"),
        ("timings-0.jsonl", '{"images": 1, "seconds": -3}\n', "line 1"),
        ("config.yaml", CONFIG % "seed: abc", "run.seed='abc': expected int"),
        ("config.yaml", CONFIG % "seed: true", "run.seed=True: expected int"),
        (
            "config.yaml",
            CONFIG.replace('params: "", ', "") % "seed: 0, params: [1]",
            "run.params=[1]: expected str",
        ),
        ("config.yaml", CONFIG % "seed: 0, aggregates: {score: {a: .nan}}", "run.aggregates.score"),
        ("config.yaml", CONFIG % "seed: 0, schema: two", "run.schema='two': expected int"),
        (
            "scores.jsonl",
            "".join(score("p0", 0, 1, j).to_json() + "\n" for j in "ab"),
            "several judges (a, b)",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_named_and_stops_no_other(
    tmp_path: Path, file: str, text: str | None, problem: str
) -> None:
    write_folder(tmp_path, "sjd-00000002", method="sjd")
    build(tmp_path)
    before = (tmp_path / "leaderboard.csv").read_bytes()

    folder = write_folder(tmp_path)
    (folder / file).unlink(missing_ok=True)
    if text is not None:
        (folder / file).write_text(text)
    (named,) = build(tmp_path).problems
    assert "plain-0a1b2c3d" in named
    assert problem in named
    assert (tmp_path / "leaderboard.csv").read_bytes() == before


def test_publishing_writes_the_others_and_ends_with_the_bad_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, "sjd-00000002", method="sjd")
    folder = write_folder(tmp_path)
    (folder / "scores.jsonl").write_text(BROKEN_SCORE % "7.0")
    for _ in range(2):  # it is said again as long as the folder is bad
        with pytest.raises(UserError, match=r"1 runs are left out: .*scores\.jsonl, line 1"):
            publish(tmp_path, [], NoTracking())
        assert [line["method"] for line in cells(tmp_path)] == ["sjd"]
        assert (tmp_path / "report" / "index.html").exists()


def test_a_command_prints_the_boards_of_its_own_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = write_folder(tmp_path)
    write_folder(tmp_path, "sjd-00000002", method="sjd")
    other = write_folder(tmp_path, "plain-00000003", benchmark="geneval")
    publish(tmp_path, [mine], NoTracking())
    printed = capsys.readouterr().out
    assert "pictogram on" in printed
    assert "geneval on" not in printed
    assert "1 other board is there" in printed

    board = build(tmp_path)
    for folders, methods in (
        ([mine], ["plain", "sjd"]),
        ([other], ["plain"]),
        ([mine, other], ["plain", "plain", "sjd"]),
        ([], ["plain", "plain", "sjd"]),
        ([tmp_path / "elsewhere"], ["plain", "plain", "sjd"]),
    ):
        assert sorted(rows_beside(board, folders)["method"]) == methods


def test_backups_beside_journals_are_not_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    before = read_run(folder)
    for name in ("records-0 (copy).jsonl", "records-0.jsonl~", "scores-old.jsonl", "scores_2.gz"):
        (folder / name).write_text("not for us\n")
    assert read_run(folder) == before


def test_the_judge_of_a_row_can_be_named(tmp_path: Path) -> None:
    scores = [score("p0", 0, 1.0, judge) for judge in ("a", "b")]
    line = row(write_folder(tmp_path, scores=scores, judge="a"))
    assert (line["judge"], line["unjudged"], line["colors"]) == ("a", 7, 0.25)


def test_no_runs(tmp_path: Path) -> None:
    (tmp_path / ".hydra" / "0" / "x").mkdir(parents=True)
    (tmp_path / ".hydra" / "0" / "x" / "config.yaml").touch()
    assert build(tmp_path).frame.empty
    assert (tmp_path / "leaderboard.csv").read_text() == ",".join(header_with()) + "\n"
    assert "no run to rank" in render_table(build(tmp_path).frame)
    write_exports(build(tmp_path), tmp_path / "export")
    assert (tmp_path / "export/leaderboard.md").read_text() == "No run.\n"
    with pytest.raises(UserError, match="no such results folder"):
        build(tmp_path / "none")


def test_the_terminal_table_fits_140_columns(tmp_path: Path) -> None:
    write_folder(tmp_path)
    write_folder(
        tmp_path,
        "lantern-00000001",
        method="lantern",
        params="delta=0.2, k=10, rule=optimal, drafter=small",
    )
    frame = build(tmp_path).frame
    for task in ("single_object", "two_object", "counting", "color_attr"):
        frame[task] = 0.5
    text = render_table(frame, 140)
    lines = text.splitlines()
    assert lines[0] == "pictogram on pictogram_16, 4 prompts x 2 images"
    assert "0.875 [0.750, 1.000]" in lines[2]
    assert "rule=optimal)" in text
    assert max(map(len, lines)) <= 140
    assert "attr" in lines[1]
    assert "failed" not in text
    assert "failed" in render_table(frame.assign(failed=[0, 3]))
    many = pd.DataFrame({f"category {i}": [0.5, 0.5] for i in range(20)})
    wide = pd.concat([frame, many], axis=1)
    assert max(map(len, render_table(wide, 140).splitlines())) <= 140
