"""Sets of images: features beside them, distances of complete runs, and plain sampling's own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import harness as run_harness

import harness
from benchmarks.coco.judge import SetJudge
from benchmarks.coco.pictogram import CocoPictogram, render_scene
from harness.board import pack
from harness.distance import describe_distances, describe_repetitions
from harness.distance import main as distance
from harness.judges.features import Extractor
from harness.records import (
    PLAIN_DISTANCE,
    SET_METRICS,
    Job,
    Prompt,
    SampleRecord,
    SetMetrics,
    Usage,
    UserError,
    digest,
)
from harness.results.leaderboard import build
from harness.results.plain_distance import find_extractor
from harness.results.stats.set_metrics import Reference
from harness.results.terminal_table import render_table
from harness.runs.benchmark import BenchmarkSpec
from harness.runs.folder import RunFolder, encode_png
from harness.runs.lock import Shard
from harness.runs.plan import Plan
from harness.runs.read import read_run
from harness.runs.score import score_images, write_summary
from harness.sweeps.finished import is_complete

TOTAL = 90
"""Captions: more than the 88 features, so that intervals are known."""


@pytest.fixture(scope="module")
def coco() -> CocoPictogram:
    return CocoPictogram(total=TOTAL)


class Means:
    """Mean of each colour channel in each quarter of a picture: an extractor that costs nothing."""

    identity = "means"
    dim = 12

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([i.reshape(2, 8, 2, 8, 3).mean((1, 3)).ravel() for i in images], np.float32)


class Lightness:
    """How light a picture is, from 0 to 1."""

    id = "lightness"

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float]:
        return [float(image.mean() / 255) for image in images]


class Light:
    """A benchmark of sets of noise: the same code as `coco_pictogram`, with quick networks."""

    name = "light"
    version = "1"

    def __init__(self, prompts: int = 40, images: int = 1) -> None:
        self.images = images
        self._prompts = [Prompt(f"light/{i:03d}", f"noise {i}", "coco") for i in range(prompts)]
        self.judge = SetJudge(
            id="light-judge",
            extractor=Means(),
            neighbours=Means(),
            scorers={"lightness": Lightness()},
            reference=self._make_reference,
            planned=prompts * images,
        )

    def _make_reference(self, extractor: Extractor) -> Reference:
        pictures = [noise(f"reference {i}") for i in range(60)]
        return Reference.of_features("noise", extractor.features(pictures))

    def prompts(self) -> list[Prompt]:
        return self._prompts

    def score(self, items: Any) -> Any:
        return self.judge.score(items)

    def files(self, scores: Any, folder: Path) -> Mapping[str, str]:
        return self.judge.files(scores, folder)

    def summarise(self, scores: Any) -> Any:
        return self.judge.summarise(scores)


def noise(seed: str, light: int = 0) -> np.ndarray:
    """A picture of noise that follows from its seed."""
    own = np.random.default_rng(list(seed.encode()))
    pixels = own.integers(0, 156, (16, 16, 3)) + own.integers(0, 60, 3) + light
    return pixels.clip(0, 255).astype(np.uint8)


def fill(
    results: Path,
    benchmark: Any,
    method: str = "plain",
    seed: int = 0,
    *,
    light: int = 0,
    shard: str = "0/1",
    picture: Any = None,
    skip: Sequence[int] = (),
) -> Path:
    """Put an image of every prompt into a run folder, score it, and sum up; returns the folder."""
    spec = BenchmarkSpec.of(benchmark)
    jobs = [Job(prompt, image) for prompt in spec.prompts for image in range(spec.images)]
    fingerprint = digest(f"{spec.name} {method} {seed} {light}".encode(), 8)
    folder = results / spec.name / "small" / f"{method}-{fingerprint}"
    made = {"model": "small", "method": method, "params": "", "seed": seed, "numerics": "constant"}
    from omegaconf import OmegaConf

    plan = Plan.of(benchmark, OmegaConf.create({}))
    run = plan.describe(made, benchmark=spec.name, fingerprint=fingerprint)
    config = {"method": {"_target_": "x"}, "sampler": {"concurrency": None}, "run": run}
    with RunFolder(folder, config, jobs, Shard.parse(shard)) as open_folder:
        for number, job in enumerate(open_folder.missing()):
            if number in skip:
                continue
            if picture is None:
                pixels = noise(f"{seed} {job.prompt.id} {job.image}", light)
            else:
                pixels = picture(job)
            open_folder.save_record(record_of(job, pixels, open_folder), pixels)
        score_images(spec, open_folder, open_folder.unscored(spec.judge))
        write_summary(spec, open_folder)
    return folder


def record_of(job: Job, pixels: np.ndarray, folder: RunFolder) -> SampleRecord:
    path = str(folder.image_file(job).relative_to(folder.path))
    sha = digest(encode_png(pixels))
    usage = Usage(sampled=100, target_passes=101)
    return SampleRecord(
        job.prompt.id, job.image, job.prompt.category, "done", usage, image_sha=sha, path=path
    )


def read_sets(folder: Path) -> SetMetrics:
    return SetMetrics.from_json((folder / SET_METRICS).read_bytes())


def read_bytes(folder: Path) -> dict[str, bytes]:
    """All that a run's scoring left, but for journals in the order of their lines."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".npy", ".json", ".txt"):
            found[str(file.relative_to(folder))] = file.read_bytes()
    lines = b"".join(file.read_bytes() for file in sorted(folder.glob("scores*.jsonl")))
    return {**found, "scores": b"\n".join(sorted(set(lines.split(b"\n"))))}


# ------------------------------------------------------------------ the embedded benchmark


def test_captions_are_spread_and_a_smaller_number_takes_the_first(coco: CocoPictogram) -> None:
    prompts = coco.prompts()
    assert len({prompt.text for prompt in prompts}) == TOTAL
    assert len({prompt.spec["tag"] for prompt in prompts[:6]}) == 6
    assert CocoPictogram(total=TOTAL, prompts=7).prompts() == prompts[:7]
    with pytest.raises(UserError, match=r"benchmark\.prompts=97: choose from 1 to the 90"):
        CocoPictogram(total=TOTAL, prompts=97)


def test_scenes_of_the_reference_are_at_no_distance_and_others_near(
    coco: CocoPictogram, tmp_path: Path
) -> None:
    def reference(job: Job) -> np.ndarray:
        return render_scene(job.prompt.text, f"0/{job.prompt.id}")

    def another(job: Job) -> np.ndarray:
        return render_scene(job.prompt.text, f"1/{job.prompt.id}")

    same = read_sets(fill(tmp_path / "same", coco, picture=reference))
    fid = same.metrics["fid"]
    assert fid.value == pytest.approx(0, abs=1e-6)
    assert (fid.n, fid.m, same.scored) == (TOTAL, TOTAL, TOTAL)
    assert fid.extractor.startswith("pictogram-judge-") and fid.reference.startswith("scenes-")

    other = read_sets(fill(tmp_path / "other", coco, picture=another)).metrics
    # The mean of the pseudo-values is the metric, and equals are as far apart as is said.
    for metric in other.values():
        assert np.mean(list(metric.pseudo.values())) == pytest.approx(metric.value, rel=1e-6)
        assert set(metric.pseudo) == {prompt.id for prompt in coco.prompts()}
    assert other["fid"].bias is not None
    assert 0.5 * other["fid"].bias < other["fid"].value < 1.5 * other["fid"].bias


def test_other_references_and_captions_are_other_protocols(coco: CocoPictogram) -> None:
    ids = {
        coco.judge.id,
        CocoPictogram(total=TOTAL, reference_seed=1).judge.id,
        CocoPictogram(total=TOTAL, prompts=40).judge.id,
    }
    assert len(ids) == 3


# ------------------------------------------------------------------ features and resume


def test_a_kill_between_features_and_score_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fill(tmp_path / "whole", Light())
    save = RunFolder.save_score
    saved = []

    def die(self: RunFolder, score: Any) -> None:
        if len(saved) == 7:
            raise KeyboardInterrupt
        saved.append(score)
        save(self, score)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_score", die)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "killed", Light())
    (killed,) = (tmp_path / "killed/light/small").iterdir()
    assert len(list(killed.rglob("*.npy"))) == 8
    assert not (killed / SET_METRICS).exists()
    fill(tmp_path / "killed", Light())
    assert read_bytes(killed) == read_bytes(whole)


@pytest.mark.parametrize("harm", ["delete", "alter"])
def test_lost_features_are_made_again_and_nothing_else(tmp_path: Path, harm: str) -> None:
    folder = fill(tmp_path, Light())
    before = read_bytes(folder)
    assert is_complete(folder, ["score"])
    victim = folder / "features/means/005/0.npy"
    if harm == "delete":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-4] + b"\0\0\0\0")
    assert not is_complete(folder, ["score"])
    fill(tmp_path, Light())
    assert read_bytes(folder) == before
    assert (folder / "scores.jsonl").read_bytes().count(b"\n") == 41


def test_shares_end_in_the_same_distances(tmp_path: Path) -> None:
    whole = fill(tmp_path / "whole", Light())
    fill(tmp_path / "shared", Light(), shard="0/2")
    (shared,) = (tmp_path / "shared/light/small").iterdir()
    assert read_sets(shared).problem == "incomplete 20/40"
    fill(tmp_path / "shared", Light(), shard="1/2")
    assert read_bytes(shared) == read_bytes(whole)


def test_several_images_of_a_prompt_are_one_number(tmp_path: Path) -> None:
    fid = read_sets(fill(tmp_path, Light(prompts=20, images=3))).metrics["fid"]
    assert (fid.n, len(fid.pseudo)) == (60, 20)
    assert np.mean(list(fid.pseudo.values())) == pytest.approx(fid.value, rel=1e-7)
    assert fid.error == pytest.approx(np.std(list(fid.pseudo.values()), ddof=1) / 20**0.5)


def test_up_to_as_many_images_as_features_have_no_interval(tmp_path: Path) -> None:
    folder = fill(tmp_path, Light(prompts=12))
    fid = read_sets(folder).metrics["fid"]
    assert (fid.error, fid.pseudo) == (None, {})
    assert fid.note == "no interval: 12 images of 12 features, it takes 13 or more"
    row = build(tmp_path).frame.iloc[0]
    assert row["set_note"] == f"fid {fid.value:.4g}, {fid.note}"


# ------------------------------------------------------------------ incomplete runs, broken numbers


def test_an_incomplete_run_has_no_distance_and_is_not_compared(tmp_path: Path) -> None:
    fill(tmp_path, Light())
    folder = fill(tmp_path, Light(), "zipar", skip=[3])
    sets = read_sets(folder)
    assert (sets.metrics, sets.problem) == ({}, "incomplete 39/40")
    frame = build(tmp_path).frame.set_index("method")
    assert np.isnan(frame.loc["zipar", "fid"]) and frame.loc["plain", "fid"] > 0
    assert np.isnan(frame.loc["zipar", "fid_vs_plain"]) and "fd_plain" not in frame
    assert frame.loc["zipar", "set_note"] == "incomplete 39/40"
    board = build(tmp_path)
    assert "ZipAR: incomplete 39/40." in render_table(board.frame, 400, board.image_metrics)


def test_numbers_that_are_not_finite_leave_their_image_unjudged(tmp_path: Path) -> None:
    class Broken(Lightness):
        def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float]:
            return [float("nan") if text == "noise 5" else 0.5 for text in texts]

    benchmark = Light(prompts=101)
    benchmark.judge.scorers = {"lightness": Broken()}
    folder = fill(tmp_path / "one", benchmark)
    assert read_sets(folder).problem == "incomplete 100/101"
    assert '"unjudged":"no finite number: lightness"' in (folder / "scores.jsonl").read_text()

    benchmark = Light(prompts=100)
    benchmark.judge.scorers = {"lightness": Broken()}
    with pytest.raises(UserError, match="lightness gave no finite number for 1 of 100 images"):
        fill(tmp_path / "many", benchmark)


def test_set_metrics_that_are_of_something_else_are_named(tmp_path: Path) -> None:
    folder = fill(tmp_path, Light())
    good = (folder / SET_METRICS).read_text()
    (folder / SET_METRICS).write_text(good[:50])
    (problem,) = build(tmp_path).problems
    assert f"{SET_METRICS}: cannot be read" in problem and "stages=[score] makes it" in problem
    (folder / SET_METRICS).write_text(good.replace("light/001", "light/991"))
    (problem,) = build(tmp_path).problems
    assert "is of other prompts" in problem
    (folder / SET_METRICS).write_text(good.replace('"judge":"light-judge"', '"judge":"former"'))
    assert "fid" not in build(tmp_path).frame


# ------------------------------------------------------------------ tables


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plain runs, one of the same law, and one of another."""
    results = tmp_path_factory.mktemp("board")
    fill(results, Light(), "plain", 0)
    fill(results, Light(), "plain", 1)
    fill(results, Light(), "speculative", 2)
    fill(results, Light(), "zipar", 3, light=12)
    return results


def test_distances_are_columns_with_interval_test_and_holm(board: Path) -> None:
    frame = build(board).frame
    zipar = frame[frame["method"] == "zipar"].iloc[0]
    assert zipar["fid_low"] < zipar["fid"] < zipar["fid_high"]
    assert zipar["fid_vs_plain"] > 0 and zipar["fid_vs_plain_verdict"] == "resolved"
    plain = frame[(frame["method"] == "plain") & (frame["seed"] == 0)].iloc[0]
    assert zipar["fid_vs_plain"] == pytest.approx(zipar["fid"] - plain["fid"])
    assert zipar["kid_vs_plain_p_holm"] >= zipar["kid_vs_plain_p"]
    speculative = frame[frame["method"] == "speculative"].iloc[0]
    assert str(speculative["fid_vs_plain_verdict"]).startswith("not resolved")
    assert zipar["fid_bias"] > 0
    text = render_table(build(board).frame, 400, metrics=build(board).image_metrics)
    assert "as two sets of one distribution are so far apart" in text and "never alone" in text
    runs = harness.load(board).runs
    assert runs["fid"].dtype == "float64" and runs["fd_plain_verdict"].dtype == "string"


def test_the_images_of_equals_are_not_told_apart_and_those_of_others_are(board: Path) -> None:
    frame = build(board).frame.set_index("method")
    equal = frame.loc["speculative"]
    assert equal["fd_plain_p"] > 0.05
    assert equal["fd_plain_verdict"].startswith("no difference found with n = 40 (p = ")
    assert frame.loc["zipar", "fd_plain_verdict"].startswith("differs (p = ")
    assert frame.loc["zipar", "fd_plain"] > 2 * frame.loc["zipar", "fd_plain_null"]


def test_precision_and_recall_are_columns_of_which_more_is_better(board: Path) -> None:
    built = build(board)
    frame = built.frame.set_index("method")
    for name in ("precision", "recall"):
        assert built.image_metrics[name].better == "higher"
        zipar = frame.loc["zipar"]
        assert 0 <= zipar[f"{name}_low"] <= zipar[name] <= zipar[f"{name}_high"]
        assert zipar[f"{name}_vs_plain"] < 0
    assert frame.loc["zipar", "inside_window"].startswith("no (")
    assert "kid" in frame.loc["zipar", "inside_window"]


def test_a_single_image_is_refused_before_it_is_drawn() -> None:
    with pytest.raises(UserError, match=r"benchmark\.total=1: the scene of a single caption"):
        CocoPictogram(total=1)
    with pytest.raises(UserError, match=r"benchmark\.prompts=1: the scene of a single caption"):
        CocoPictogram(total=TOTAL, prompts=1)
    with pytest.raises(UserError, match="a single image has no distance to a set"):
        Light(prompts=1)


@pytest.mark.parametrize("prompts", [2, 3, 5])
def test_few_images_have_distances_without_intervals(tmp_path: Path, prompts: int) -> None:
    metrics = read_sets(fill(tmp_path, Light(prompts=prompts))).metrics
    assert set(metrics) == {"fid", "kid", *(("precision", "recall") if prompts > 4 else ())}
    assert metrics["kid"].note == ("no interval: it takes 3 images or more" if prompts < 3 else "")
    note = str(build(tmp_path).frame.iloc[0]["set_note"])
    assert f"no interval: {prompts} images of 12 features, it takes 13 or more" in note


def test_a_table_names_the_plain_run_that_is_missing(tmp_path: Path, board: Path) -> None:
    fill(tmp_path, Light(), "plain", 0)
    fill(tmp_path, Light(), "zipar", 0, light=12)
    frame = build(tmp_path).frame
    text = " ".join(render_table(frame, 400).split())
    assert "fd plain: Fréchet distance to plain sampling's own images" in text
    assert "fd null:" not in text and "fd p:" not in text
    assert (
        "A second plain run is needed to test ZipAR, whose noise is that of the plain run and to "
        "tell how far apart equals are (fd null): method=plain seed=1." in text
    )
    fill(tmp_path, Light(), "zipar", 7, light=12)
    text = " ".join(render_table(build(tmp_path).frame, 400).split())
    assert "differs (p = " in text
    whole = render_table(build(board).frame, 400)
    assert "A second plain run" not in whole
    assert "no difference found with n = 40" in whole


def test_a_table_finds_the_metrics_that_its_columns_are_of(board: Path) -> None:
    built = build(board)
    assert render_table(built.frame, 400) == render_table(built.frame, 400, built.image_metrics)


def test_runs_of_one_seed_have_a_distance_and_no_test(tmp_path: Path) -> None:
    fill(tmp_path, Light(), "plain", 0)
    fill(tmp_path, Light(), "speculative", 0, light=1)

    def like_plain(job: Job) -> np.ndarray:
        return noise(f"0 {job.prompt.id} {job.image}")

    fill(tmp_path, Light(), "sjd_coupled", 5, picture=like_plain)
    frame = build(tmp_path).frame.set_index("method")
    assert frame.loc["speculative", "fd_plain"] > 0
    assert np.isnan(frame.loc["speculative", "fd_plain_p"])
    assert "no test: of the same seed" in frame.loc["speculative", "fd_plain_verdict"]
    assert frame.loc["sjd_coupled", "fd_plain"] == 0
    assert frame.loc["sjd_coupled", "fd_plain_verdict"] == "identical images"


def test_a_packed_board_without_features_has_the_same_tables(board: Path, tmp_path: Path) -> None:
    build(board)
    target = tmp_path / "packed"
    assert pack(board, target, ["none"]) == 0
    assert not list(target.rglob("*.npy"))
    for name in ("leaderboard.csv", "metrics.csv"):
        assert (target / name).read_bytes() == (board / name).read_bytes()


@pytest.mark.parametrize("change", [{"made_of": {}}, {"scale": "another rule"}, {"scale": None}])
def test_a_distance_is_measured_again_when_features_or_their_scale_change(
    board: Path, change: dict[str, Any]
) -> None:
    build(board)
    (kept,) = board.glob(f"light/small/zipar-*/{PLAIN_DISTANCE}*.json")
    first = kept.read_bytes()
    assert "plain runs" in json.loads(first)["scale"]
    changed = {**json.loads(first), **change, "value": 99.0}
    if changed["scale"] is None:  # of a time before rules had names
        del changed["scale"]
    kept.write_text(json.dumps(changed))
    build(board)
    assert kept.read_bytes() == first


def test_the_command_takes_the_features_that_are_kept(
    board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [path.name for path in sorted((board / "light/small").iterdir())]
    plains = [name for name in names if name.startswith("plain")]
    (zipar,) = (name for name in names if name.startswith("zipar"))
    assert distance([zipar, *plains, "--results", str(board)]) == 0
    output = capsys.readouterr().out
    assert "features means" in output and "the images differ (p < 0.001)" in output
    assert "no difference found with 40 prompts" in output
    assert distance([zipar, plains[0], "--each", "1", "--results", str(board)]) == 2
    assert "no two repetitions" in capsys.readouterr().err


def test_repetitions_show_the_level_of_the_test_and_its_power(tmp_path: Path) -> None:
    """The short form of what `test_an_exact_method_passes...` does with the embedded model."""
    benchmark = Light(prompts=8, images=12)
    equal = fill(tmp_path, benchmark, "plain", 0)
    other = fill(tmp_path, benchmark, "speculative", 1)
    moved = fill(tmp_path, benchmark, "zipar", 2, light=12)
    runs = [read_run(path) for path in (other, equal, moved)]
    lines = describe_repetitions(runs, "means")
    assert lines[0] == "12 repetitions of 8 images"
    assert count_rejected(lines[1]) <= 3  # of 12 at 5 %: more in 0.2 % of cases
    assert 3 <= count_rejected(lines[3]) < 12
    # A third run changes no repetition of the others.
    assert describe_repetitions(runs[:2], "means") == lines[:3]
    larger = describe_repetitions(runs, "means", 6)
    assert larger[0] == "2 repetitions of 48 images"
    assert (count_rejected(larger[1]), count_rejected(larger[3])) == (0, 2)


def count_rejected(line: str) -> int:
    """How many repetitions differ, as a line says."""
    return int(re.search(r": (\d+) of \d+ repetitions", line)[1])  # type: ignore[index]


@pytest.mark.long
def test_an_exact_method_passes_and_a_change_of_five_percent_is_found(tmp_path: Path) -> None:
    """Twenty repetitions on the embedded model: the level of the test, and its power.

    The change is top_p=0.95: each token's distribution loses up to 5 % of its mass. 48 images do
    not show it, 960 do.
    """
    points = {
        "plain": ["method=plain", "seed=0"],
        "exact": ["method=speculative", "seed=1"],
        "planted": ["method=plain", "seed=2", "model.sampling.top_p=0.95"],
    }
    runs = {}
    for name, point in points.items():
        (tmp_path / name).mkdir()
        options = ["benchmark=coco_pictogram", "benchmark.total=48", "benchmark.images=20", *point]
        code, output = run_harness(tmp_path / name, *options, "stages=[generate,score]")
        assert code == 0, output
        (config,) = (tmp_path / name).rglob("config.yaml")
        runs[name] = read_run(config.parent)
    extractor = find_extractor(runs["plain"])
    exact = describe_repetitions([runs["exact"], runs["plain"]], extractor)
    assert count_rejected(exact[1]) <= 4
    assert "no difference found" in describe_distances([runs["exact"], runs["plain"]], extractor)[1]
    assert "differ (p" in describe_distances([runs["planted"], runs["plain"]], extractor)[1]
