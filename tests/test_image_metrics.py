"""Metrics of any run's images: they name no run, are resumed like scores, and compared in pairs."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import make_run
from runs import TOY, folders, harness

import harness as public
from harness.board import main as pack
from harness.records import UserError
from harness.results import stats
from harness.results.leaderboard import build
from harness.results.windows import find_margin
from harness.runs.metrics import Measurement, read_metrics
from harness.runs.read import read_run
from harness.sweeps.finished import is_complete

FEW = (*TOY, "benchmark.prompts=4")


class Contrast:
    """A metric of two directions in one: how far pixels lie apart. Lower is better."""

    unit = "levels"
    better = "lower"
    digits = 3
    fault = ""
    calls = 0
    version = "1"

    def __init__(self) -> None:
        self.id = f"contrast-{Contrast.version}"

    def ready(self) -> None:
        if Contrast.fault == "missing":
            raise UserError("weights.pt cannot be downloaded: set checkpoint=PATH")

    def count_cut(self, text: str) -> int:
        return max(0, len(text.split()) - 6)

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float]:
        Contrast.calls += 1
        if Contrast.fault == "late" and Contrast.calls > 1:
            raise KeyboardInterrupt
        if Contrast.fault == "not finite":
            return [float("nan")] * len(images)
        return [float(image.std()) for image in images]


@pytest.fixture(autouse=True)
def reset() -> None:
    Contrast.fault = ""
    Contrast.calls = 0
    Contrast.version = "1"


def the_folder(results: Path) -> Path:
    (folder,) = folders(results)
    return folder


def lines(folder: Path) -> list[Measurement]:
    text = (folder / "metrics.jsonl").read_text()
    return [Measurement.from_json(line) for line in text.splitlines()]


# ------------------------------------------------------------------ measuring


def test_a_metric_names_no_run_and_a_finished_run_is_measured_without_drawing(
    tmp_path: Path,
) -> None:
    assert harness(tmp_path, *FEW)[0] == 0
    folder = the_folder(tmp_path)
    before = {path: path.read_bytes() for path in folder.glob("[!.]*.*")}

    code, output = harness(tmp_path, *FEW, "metrics=[brightness,contrast]")
    assert code == 0, output
    assert "8 done, 0 to draw" in output
    assert the_folder(tmp_path) == folder
    assert all(path.read_bytes() == content for path, content in before.items())
    run = read_run(folder)
    assert list(run.metrics) == ["brightness", "contrast"]
    for name, measured in run.metrics.items():
        assert measured.values.keys() == run.planned.keys(), name
    key, score = next(iter(run.scores.items()))
    values = {name: measured.values[key] for name, measured in run.metrics.items()}
    assert score.detail["metrics"] == values

    Contrast.calls = 0
    assert harness(tmp_path, *FEW, "metrics=[contrast]")[0] == 0
    assert Contrast.calls == 0  # nothing is left to measure
    assert list(read_run(folder).metrics) == ["brightness", "contrast"]


def test_a_run_that_is_measured_at_once_ends_in_the_same_bytes(tmp_path: Path) -> None:
    later = tmp_path / "later"
    at_once = tmp_path / "at_once"
    for results in (later, at_once):
        results.mkdir()
    harness(later, *FEW)
    harness(later, *FEW, "metrics=[contrast]")
    harness(at_once, *FEW, "metrics=[contrast]")
    for name in ("metrics.json", "metrics.jsonl", "scores.jsonl", "config.yaml"):
        assert (the_folder(later) / name).read_bytes() == (the_folder(at_once) / name).read_bytes()


def test_measuring_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    options = (*TOY, "metrics=[contrast]")
    Contrast.fault = "late"
    assert harness(tmp_path, *options)[0] == 130
    folder = the_folder(tmp_path)
    first = (folder / "metrics.jsonl").read_bytes()
    assert len(lines(folder)) == 16
    assert not is_complete(folder, ["generate", "score"])

    (folder / "metrics.jsonl").write_bytes(first[:-30])  # a line is torn
    Contrast.fault = ""
    Contrast.calls = 0
    assert harness(tmp_path, *options)[0] == 0
    assert Contrast.calls == 3  # of 48 images 15 were measured
    assert len({line.key for line in lines(folder)}) == len(lines(folder)) == 48
    assert is_complete(folder, ["generate", "score"])
    assert (folder / "metrics.jsonl").read_bytes().startswith(first)


def test_shares_measure_their_own_images(tmp_path: Path) -> None:
    for shard in ("0/2", "1/2"):
        code, output = harness(tmp_path, *FEW, "metrics=[contrast]", f"shard={shard}")
        assert code == 0, output
    folder = the_folder(tmp_path)
    assert (folder / "metrics-1.jsonl").exists()
    assert len(lines(folder)) == 4
    assert len(read_metrics(folder)["contrast"].values) == 8


def test_what_cannot_measure_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    Contrast.fault = "missing"
    code, output = harness(tmp_path, *FEW, "metrics=[brightness,contrast]")
    assert code == 2
    assert "metrics=contrast: weights.pt cannot be downloaded: set checkpoint=PATH" in output
    assert "metrics=[brightness]" in output
    assert folders(tmp_path) == []
    code, output = harness(tmp_path, *FEW, "metrics=[sharpness]")
    assert code == 2
    assert "metrics=sharpness: there is no such choice" in output
    assert "brightness" in output
    for name, column in (("seed", "seed"), ("ci", "ci_high")):
        code, output = harness(
            tmp_path, *FEW, "metrics=[contrast]", f"+metrics.{name}=${{metrics.contrast}}"
        )
        assert code == 2
        assert f"metrics.{name}: the leaderboard has a column {column!r} already" in output
    assert folders(tmp_path) == []


def test_a_run_that_was_never_drawn_is_not_measured_in_silence(tmp_path: Path) -> None:
    code, output = harness(tmp_path, *FEW, "metrics=[contrast]", "stages=[score]")
    assert code == 2
    assert "nothing was drawn by these options yet" in output
    assert folders(tmp_path) == []


def test_values_that_are_no_numbers_stop_the_run_and_are_measured_again(tmp_path: Path) -> None:
    Contrast.fault = "not finite"
    code, output = harness(tmp_path, *FEW, "metrics=[contrast]")
    assert code == 2
    assert "values of contrast-1 are no finite numbers" in output
    assert {line.reason for line in lines(the_folder(tmp_path))} == {"no finite number: nan"}
    Contrast.fault = ""
    assert harness(tmp_path, *FEW, "metrics=[contrast]")[0] == 0
    assert len(read_metrics(the_folder(tmp_path))["contrast"].values) == 8


def test_another_scorer_of_the_name_measures_all_images_again(tmp_path: Path) -> None:
    harness(tmp_path, *FEW, "metrics=[contrast]")
    Contrast.version = "2"
    harness(tmp_path, *FEW, "metrics=[contrast]")
    folder = the_folder(tmp_path)
    assert len(lines(folder)) == 16
    measured = read_metrics(folder)["contrast"]
    assert (measured.about.id, len(measured.values)) == ("contrast-2", 8)


def test_texts_that_are_not_read_to_their_end_are_counted(tmp_path: Path) -> None:
    code, output = harness(tmp_path, *TOY, "metrics=[contrast]")
    assert code == 0
    measured = read_metrics(the_folder(tmp_path))["contrast"]
    assert measured.cut == 16  # "two dogs left of a car 0" and "a b c d e f g h 0", 4 each, twice
    assert "contrast reads only the beginning of 16 texts" in output


def test_a_benchmark_without_a_judge_has_metrics(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\na dog\n")
    toy = [option for option in TOY if not option.startswith("benchmark=")]
    options = (*toy, "benchmark=prompts", "benchmark.file=mine.txt", "metrics=[contrast]")
    code, output = harness(tmp_path, *options)
    assert code == 0, output
    code, output = harness(tmp_path, *options, "stages=[score,report]")
    assert code == 0, output
    runs = public.load(tmp_path / "results").runs
    assert runs["contrast"].notna().all()
    assert runs["score"].isna().all()


# ------------------------------------------------------------------ comparing


def measure(
    folder: Path, name: str, values: np.ndarray, scorer: str = "scorer-1", **about: object
) -> None:
    """Write what a metric says of a made run's images, in their order."""
    described = {name: {"id": scorer, **about}}
    (folder / "metrics.json").write_text(json.dumps(described))
    run = read_run(folder)
    rows = []
    for (prompt_id, image), value in zip(sorted(run.planned), values, strict=False):
        rows.append(Measurement(prompt_id, image, name, scorer, float(value)).to_json())
    (folder / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows))


def made(results: Path, shift: float = 0.5, **about: object) -> tuple[Path, Path]:
    """A plain run and one whose values lie `shift` above, of 12 prompts x 2 images each."""
    rng = np.random.default_rng(0)
    base = rng.normal(20, 1, 24)
    plain = make_run(results, "plain")
    other = make_run(results, "gridar", n=4)
    measure(plain, "taste", base, **about)
    measure(other, "taste", base + shift + rng.normal(0, 0.1, 24), **about)
    return plain, other


def test_a_metric_is_compared_with_plain_sampling_by_prompt(tmp_path: Path) -> None:
    plain, other = made(tmp_path)
    frame = build(tmp_path).frame.set_index("method")
    tables = {}
    for method, folder in (("plain", plain), ("gridar", other)):
        run = read_run(folder)
        values = [run.metrics["taste"].values[key] for key in sorted(run.planned)]
        tables[method] = run.table.assign(value=values)
        expected = stats.prompt_means(tables[method]).mean()
        assert frame.loc[method, "taste"] == pytest.approx(expected)
        low, high = frame.loc[method, ["taste_low", "taste_high"]]
        assert low < expected < high
    difference, low, high = stats.paired_difference(tables["gridar"], tables["plain"])
    row = frame.loc["gridar"]
    assert row["taste_vs_plain"] == pytest.approx(difference)
    assert (row["taste_vs_plain_low"], row["taste_vs_plain_high"]) == pytest.approx((low, high))
    assert row["taste_vs_plain_verdict"] == "resolved"
    assert row["taste_vs_plain_p_holm"] == row["taste_vs_plain_p"] < 0.01
    assert pd.isna(frame.loc["plain", "taste_vs_plain"])
    assert row["taste_images"] == 24


@pytest.mark.parametrize(
    ("name", "shift", "noise", "expected"),
    [
        ("taste", 0.02, 0.05, "yes"),
        ("taste", 0.5, 0.1, "no (taste)"),  # better is different, too
        ("taste", -0.5, 0.1, "no (taste)"),
        ("taste", 0.1, 0.1, "not shown (taste)"),
        ("taste", 0.02, 1.0, "cannot be shown with this n (taste)"),
        ("clip", 0.0, 0.02, "yes"),  # 0.2 % of 20
        ("clip", 0.07, 0.02, "no (clip)"),
        ("clip", 0.0, 0.1, "cannot be shown with this n (clip)"),
    ],
)
def test_a_run_lies_inside_the_window_about_plain_or_not(
    tmp_path: Path, name: str, shift: float, noise: float, expected: str
) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(20, 1, 24)  # of one prompt, images lie 1 apart: a tenth is the margin
    measure(make_run(tmp_path, "plain"), name, base)
    moved = rng.normal(0, noise, 24)
    measure(make_run(tmp_path, "gridar", n=4), name, base + shift + moved - moved.mean())
    frame = build(tmp_path).frame.set_index("method")
    assert frame.loc["gridar", "inside_window"] == expected
    assert pd.isna(frame.loc["plain", "inside_window"])


def test_the_margin_is_known_from_images_of_one_prompt_or_a_second_plain_run() -> None:
    values = np.random.default_rng(1).normal(0, 2, (2, 4000))
    runs = []
    for of_run in values:
        runs.append(pd.DataFrame({"prompt_id": range(4000), "image": 0, "value": of_run}))
    assert find_margin("taste", 9.0, 20.0, runs) == pytest.approx(0.2, rel=0.05)
    several = pd.DataFrame({"prompt_id": [*range(2000)] * 2, "image": [0] * 2000 + [1] * 2000})
    several["value"] = values[0]
    assert find_margin("taste", 9.0, 20.0, [several]) == pytest.approx(0.2, rel=0.05)
    assert np.isnan(find_margin("taste", 9.0, 20.0, runs[:1]))
    assert find_margin("kid", 9.0, 20.0, []) == 9.0
    assert find_margin("fid", 9.0, 20.0, []) == pytest.approx(0.4)


def test_runs_without_metrics_keep_their_tables(tmp_path: Path) -> None:
    make_run(tmp_path, "plain")
    make_run(tmp_path, "gridar", n=4)
    before = build(tmp_path).frame
    made(tmp_path / "measured")
    after = build(tmp_path / "measured").frame
    assert list(after)[: before.shape[1]] == list(before)
    assert after[list(before)].equals(before)


@pytest.mark.parametrize("problem", ["fewer", "another scorer", "random weights"])
def test_what_cannot_be_compared_has_no_difference(problem: str, tmp_path: Path) -> None:
    _, other = made(tmp_path)
    values = np.arange(24.0)
    if problem == "fewer":
        measure(other, "taste", values[:23])
    elif problem == "another scorer":
        measure(other, "taste", values, scorer="scorer-2")
    else:
        measure(other, "taste", values, excluded="random weights")
    row = build(tmp_path).frame.set_index("method").loc["gridar"]
    assert pd.isna(row["taste_vs_plain"])
    assert pd.isna(row["taste"]) == (problem != "another scorer")
    if problem == "fewer":
        assert row["taste_images"] == 23
    if problem == "another scorer":
        assert row["taste_by"] == "scorer-2"


def test_a_reward_that_is_the_metric_is_flagged(tmp_path: Path) -> None:
    for method, asked in (("plain", {}), ("gridar", {"reward": "imagereward-5736be03"})):
        folder = make_run(tmp_path, method, n=None if method == "plain" else 4, asked=asked)
        measure(folder, "imagereward", np.arange(24.0), scorer="imagereward-5736be03")
        records = (folder / "records-0.jsonl").read_text()
        asked_often = records.replace('"judge_calls":0', '"judge_calls":4')
        (folder / "records-0.jsonl").write_text(asked_often)
    frame = build(tmp_path).frame.set_index("method")
    assert frame["imagereward_is_reward"].to_dict() == {"plain": "", "gridar": "same"}


def test_tables_pages_and_frames_show_a_metric(tmp_path: Path) -> None:
    made(tmp_path, -0.5, unit="points", better="lower", digits=2)
    code, output = harness(tmp_path.parent, "stages=[report]", f"results={tmp_path}")
    assert code == 0, output
    assert "taste" in output
    with (tmp_path / "leaderboard.csv").open() as file:
        cells = next(csv.DictReader(file))
    assert len(cells["taste"].partition(".")[2]) == 2
    long = pd.read_csv(tmp_path / "metrics.csv").set_index("metric")
    assert long.loc["quality/taste", "n"].tolist() == [12, 12]
    assert long.loc["compare/taste_vs_plain", "value"] == pytest.approx(-0.5, abs=0.1)
    assert "taste |" in (tmp_path / "export" / "leaderboard.md").read_text()

    results = public.load(tmp_path)
    assert results.runs["taste_vs_plain_verdict"].dtype == "string"
    assert results.images["metrics.taste"].notna().sum() == 48
    first = results.images.iloc[0]
    assert first["detail"]["metrics"]["taste"] == first["metrics.taste"]
    data = "".join(path.read_text() for path in (tmp_path / "report" / "data").rglob("*.js"))
    assert '"metrics":[{"better":"lower","digits":2,"name":"taste","unit":"points"}]' in data


def test_a_packed_board_keeps_its_metrics(tmp_path: Path) -> None:
    made(tmp_path / "made")
    assert pack(["pack", str(tmp_path / "made"), str(tmp_path / "packed")]) == 0
    build(tmp_path / "made")
    build(tmp_path / "packed")
    for name in ("leaderboard.csv", "metrics.csv"):
        packed = (tmp_path / "packed" / name).read_bytes()
        assert packed == (tmp_path / "made" / name).read_bytes()


def test_metrics_that_a_judge_wrote_itself_are_shown_alike(tmp_path: Path) -> None:
    for method in ("plain", "gridar"):
        folder = make_run(tmp_path, method, n=None if method == "plain" else 4)
        rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            row["detail"] = {**row["detail"], "metrics": {"clip": 0.3 + 0.001 * number}}
        (folder / "scores.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    frame = build(tmp_path).frame.set_index("method")
    assert frame.loc["plain", "clip"] == pytest.approx(0.3115)
    assert frame.loc["gridar", "clip_vs_plain"] == pytest.approx(0)


@pytest.mark.parametrize("name", ["method", "score"])
def test_a_name_of_a_column_is_no_metrics(name: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path, "plain")
    measure(folder, name, np.arange(24.0))
    board = build(tmp_path)
    assert "has the name of a leaderboard column; rename the metric" in board.problems[0]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.json", "[1]"),
        ("metrics.json", '{"a": {"id": 1}}'),
        ("metrics.json", "{"),
        ("metrics.jsonl", "{}\n{}\n"),
        ("metrics.jsonl", '{"value": "x"}\n{}\n'),
    ],
)
def test_a_file_that_cannot_be_read_is_named(file: str, text: str, tmp_path: Path) -> None:
    folder, _ = made(tmp_path)
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=rf"{file}.*cannot be read"):
        read_run(folder)


def test_a_network_is_reward_and_metric_of_one_run(tmp_path: Path) -> None:
    reward = ("judge@method.reward=clip", "method.reward.weights=tiny")
    method = ("method=best_of_n", "method.n=2", *reward)
    options = (*TOY, "benchmark.prompts=2", *method, "device=cpu")
    harness(tmp_path, *options)
    code, output = harness(tmp_path, *options, "metrics=[clip]", "metrics.clip.weights=tiny")
    assert code == 0, output
    assert "4 done, 0 to draw" in output  # a metric that is mounted from the judges names no run
    run = read_run(the_folder(tmp_path))
    measured = run.metrics["clip"]
    assert run.about["asked"]["reward"] == measured.about.id == "clip-tiny-cosine"
    assert (measured.about.excluded, len(measured.values)) == ("random weights", 4)
    assert "clip" not in build(tmp_path / "results").frame
