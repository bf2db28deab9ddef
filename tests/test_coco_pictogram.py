"""Sets of images: features beside them, distances of complete runs, and plain sampling's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harness
from benchmarks.coco.judge import SetJudge
from benchmarks.coco.pictogram import CocoPictogram, render_scene
from harness.board import pack
from harness.distance import main as distance
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
from harness.results.stats.set_metrics import Reference
from harness.results.terminal_table import render_table
from harness.runs.benchmark import BenchmarkSpec
from harness.runs.folder import RunFolder, encode_png
from harness.runs.lock import Shard
from harness.runs.plan import Plan
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
            scorers={"lightness": Lightness()},
            reference=self._make_reference,
            planned=prompts * images,
        )

    def _make_reference(self) -> Reference:
        pictures = [noise(f"reference {i}") for i in range(60)]
        return Reference.of_features("noise", Means().features(pictures))

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
    assert (fid.error, fid.pseudo, fid.note) == (None, {}, "no interval: 12 images of 12 features")
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
    assert "as two sets of one law are so far apart" in text and "never alone" in text
    runs = harness.load(board).runs
    assert runs["fid"].dtype == "float64" and runs["fd_plain_verdict"].dtype == "string"


def test_the_images_of_equals_are_not_told_apart_and_those_of_others_are(board: Path) -> None:
    frame = build(board).frame.set_index("method")
    equal = frame.loc["speculative"]
    assert equal["fd_plain_p"] > 0.05
    assert equal["fd_plain_verdict"].startswith("no difference found with n = 40 (p = ")
    assert frame.loc["zipar", "fd_plain_verdict"].startswith("differs (p = ")
    assert frame.loc["zipar", "fd_plain"] > 2 * frame.loc["zipar", "fd_plain_null"]


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
    assert pack(board, target, "none") == 0
    assert not list(target.rglob("*.npy"))
    for name in ("leaderboard.csv", "metrics.csv"):
        assert (target / name).read_bytes() == (board / name).read_bytes()


def test_a_distance_is_measured_again_when_features_change(board: Path) -> None:
    build(board)
    (kept,) = board.glob(f"light/small/zipar-*/{PLAIN_DISTANCE}*.json")
    first = kept.read_bytes()
    kept.write_text(json.dumps({**json.loads(first), "made_of": {}, "value": 99.0}))
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
    assert distance([zipar, plains[0], "--each", "--results", str(board)]) == 0
    assert "1 of 1 repetitions differ at 5%" in capsys.readouterr().out
