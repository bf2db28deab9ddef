"""GenEval from prompts to the reference's files, with tiny networks: verdicts, resume, imports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import folders, harness
from tiny_evaluator import picture, write_clip, write_config

from benchmarks.geneval import GenEval
from benchmarks.geneval.__main__ import main
from benchmarks.geneval.colors import Clip, ColorQuestion
from benchmarks.geneval.mmdet_backend import Mmdet
from benchmarks.geneval.summary import read_results, summarize
from benchmarks.geneval.verdict import COLORS
from benchmarks.images import read_images
from harness.records import Score, UserError

SHARED = Path(__file__).parents[2] / "shared" / "data" / "geneval" / "evaluation_metadata.jsonl"
LOW = {"threshold": 0.011, "counting_threshold": 0.011}
"""Thresholds for random weights, which are never confident."""
TAGS = ("single_object", "two_object", "colors", "counting")
"""Tasks of the prompts that the embedded model knows, in their order."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_config(folder)
    write_clip(folder)
    write(folder / "metadata.jsonl", ROWS)
    return folder


@pytest.fixture(scope="module")
def judges(files: Path) -> tuple[Mmdet, Clip]:
    detector = Mmdet(str(files / "tiny.py"), weights="random", short_side=64, device="cpu")
    return detector, Clip(str(files / "tiny_clip.json"), weights="random", device="cpu")


def row(tag: str, *include: dict, exclude: Sequence[dict] = ()) -> dict:
    """Make a row of a metadata file."""
    made: dict[str, Any] = {"tag": tag, "include": list(include)}
    if exclude:
        made["exclude"] = list(exclude)
    values = [tuple(clause.values()) for clause in include]
    return {**made, "prompt": f"a photo: {tag} {values}"}


def clause(name: str, count: int = 1, **more: object) -> dict:
    return {"class": name, "count": count, **more}


ROWS = [
    row("single_object", clause("cat")),
    row("two_object", clause("dog"), clause("cup")),
    row("single_object", clause("zebra")),
    row("colors", clause("car", color="red")),
    row("counting", clause("bird", 2), exclude=[clause("bird", 3)]),
]


def write(path: Path, rows: Sequence[dict]) -> str:
    """Write a metadata file; returns its path."""
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


class Idle:
    """A detector and a color classifier for tests that ask for nothing."""

    id = "idle"
    random = False

    def load(self) -> None:
        raise AssertionError("nothing is to be loaded")

    detect = scores = load


def idle(**options: Any) -> GenEval:
    """Make a benchmark that judges nothing."""
    return GenEval(Idle(), Idle(), **options)  # type: ignore[arg-type]


# --- prompts --------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not SHARED.is_file(), reason="GenEval's metadata file is not beside the repository"
)
def test_the_official_file_is_known_by_its_hash(tmp_path: Path) -> None:
    official = idle(metadata=str(SHARED))
    assert (official.version, len(official.prompts()), official.images) == ("af4902f", 553, 4)
    assert official.prompts()[179].id == "geneval/00179"
    assert idle(metadata=str(SHARED), options={"threshold": 0.2}).version == "af4902f+threshold=0.2"
    assert len(idle(metadata=str(SHARED), prompts=60).prompts()) == 60
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(SHARED.read_bytes() + b" \n")
    with pytest.raises(
        UserError,
        match=r"changed\.jsonl has sha256 \w{64}, GenEval's metadata at af4902f has 5c48e08",
    ):
        idle(metadata=str(changed))
    assert idle(metadata=str(changed), allow_other_version=True).version.startswith("other-")


def test_the_download_is_pinned_and_a_copy_in_the_cache_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copy = tmp_path / "visual-ar-tts/downloads/geneval/evaluation_metadata.jsonl"
    copy.parent.mkdir(parents=True)
    if SHARED.is_file():
        shutil.copyfile(SHARED, copy)
        assert idle().version == "af4902f"
    write(copy, ROWS)
    with pytest.raises(UserError, match=r"not 5c48e0813e81\w+: delete it"):
        idle()


def test_classes_leave_prompts_out_and_say_so(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"metadata": str(files / "metadata.jsonl"), "allow_other_version": True}
    some = idle(**options, classes=["cat", "dog", "cup"])
    assert [prompt.id for prompt in some.prompts()] == ["geneval/00000", "geneval/00001"]
    assert "3 of 5 prompts left out: they name 3 classes beside benchmark.classes" in caplog.text
    with pytest.raises(
        UserError, match=r"each of its 5 prompts names a class beside benchmark\.classes"
    ):
        idle(**options, classes=["giraffe"])
    with pytest.raises(UserError, match=r"benchmark\.images=0"):
        idle(**options, images=0)


# --- verdicts -------------------------------------------------------------------------------------


def make_cases(image: np.ndarray, detector: Mmdet, colors: Clip) -> list[tuple[dict, bool]]:
    """Look at an image first, then make rows of which it is known whether the image is right."""
    (found,) = detector.detect([image], LOW["threshold"])
    best = max(found, key=lambda one: one.score)
    (scores,) = colors.scores([ColorQuestion(image, best)])
    color = COLORS[int(np.argmax(scores))]
    other = COLORS[int(np.argmin(scores))]
    names = [one.name for one in found]
    name = best.name
    count = min(16, names.count(name))
    absent = next(one for one in ("cat", "dog", "bus") if one not in names)
    one_more = clause(name, count + 1)
    return [
        (row("single_object", clause(name)), True),
        (row("two_object", clause(name), clause(absent)), False),
        (row("colors", clause(name, color=color)), True),
        (row("colors", clause(name, color=other)), False),
        (row("counting", clause(name, count), exclude=[one_more]), True),
        (row("counting", one_more), False),
    ]


def test_images_are_judged_by_what_the_networks_see(
    judges: tuple[Mmdet, Clip], tmp_path: Path
) -> None:
    """The benchmark judges all images together, the expectation is made one by one."""
    detector, colors = judges
    rows = []
    expected = []
    paths = []
    for seed in range(4):
        image = picture(seed)
        for made, right in make_cases(image, detector, colors):
            rows.append({**made, "prompt": f"{seed}: {made['prompt']}"})
            expected.append(float(right))
            path = tmp_path / f"{len(rows)}" / "0.png"
            path.parent.mkdir()
            Image.fromarray(image).save(path)
            paths.append(path)

    metadata = write(tmp_path / "rows.jsonl", rows)
    benchmark = GenEval(detector, colors, metadata, allow_other_version=True, images=1, options=LOW)
    scores = list(benchmark.score(zip(benchmark.prompts(), paths, strict=True)))
    assert [score.value for score in scores] == expected
    assert {score.judge for score in scores} == {f"geneval-{detector.id}+{colors.id}"}
    assert scores == [Score.from_json(score.to_json()) for score in scores]
    assert scores[3].detail["reasons"][0].startswith("expected ")
    assert [len(look) for look in scores[2].detail["colors"].values()] == [10]

    summary = benchmark.summarise(scores)
    assert "Total images: 24" in summary
    assert "colors           = 50.00% (4 / 8)" in summary
    assert "PARTIAL: no image of position, color_attr" in summary
    assert summary[-1].startswith("NOT FOR A LEADERBOARD: ")


def test_what_cannot_be_read_is_unjudged_and_spoils_nothing(
    judges: tuple[Mmdet, Clip], files: Path
) -> None:
    benchmark = tiny(judges, files)
    torn, good, missing = (files / f"{i}.png" for i in range(3))
    Image.fromarray(picture(0)).save(good)
    torn.write_bytes(good.read_bytes()[:200])
    prompt = benchmark.prompts()[0]
    scores = list(benchmark.score([(prompt, torn), (prompt, good), (prompt, missing)]))
    assert [score.value is None for score in scores] == [True, False, True]
    assert "cannot be read" in scores[0].detail["unjudged"]
    assert scores[2].detail["unjudged"] == "2.png is missing"

    (line,) = benchmark.files(scores[:1], files)["results.jsonl"].splitlines()
    result = json.loads(line)
    assert (result["correct"], result["details"]) == (False, "{}")
    assert result["reason"].startswith("unjudged: 0.png cannot be read")
    assert benchmark.summarise([]) == ["no image was scored"]


def test_an_odd_picture_is_unjudged_with_its_reason_and_spoils_nothing(
    judges: tuple[Mmdet, Clip], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of 8,000 pixels: the detector's resizing raises, or its network does."""
    benchmark = tiny(judges, files)
    prompt = benchmark.prompts()[0]
    good, odd, other = (files / f"{i}.png" for i in (10, 11, 12))
    for file, seed in ((good, 0), (other, 1)):
        Image.fromarray(picture(seed)).save(file)
    Image.new("RGB", (8000, 1)).save(odd)
    expected = list(benchmark.score([(prompt, good), (prompt, other)]))
    scores = list(benchmark.score([(prompt, good), (prompt, odd), (prompt, other)]))
    assert [scores[0], scores[2]] == expected
    assert scores[1].value is None
    assert scores[1].detail["unjudged"]


def test_gray_of_16_bits_is_narrowed_and_not_cut_to_white(tmp_path: Path) -> None:
    gray = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(gray).save(tmp_path / "0.png")
    (pixels,) = read_images([tmp_path / "0.png"])
    assert isinstance(pixels, np.ndarray)
    assert (pixels == (gray // 257)[..., None]).all()
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8


def tiny(judges: tuple[Mmdet, Clip], files: Path, **options: Any) -> GenEval:
    """Make a benchmark over ROWS with the tiny networks."""
    return GenEval(
        *judges,
        str(files / "metadata.jsonl"),
        allow_other_version=True,
        **{"images": 2, "options": LOW, **options},
    )


# --- runs -----------------------------------------------------------------------------------------


def arguments(files: Path, *more: str) -> list[str]:
    """Write the command of a run over ROWS with the tiny networks."""
    return [
        "model=pictogram_16",
        "benchmark=geneval",
        "method=plain",
        "device=cpu",
        "benchmark.images=2",
        "benchmark.classes=model",
        f"benchmark.metadata={files / 'metadata.jsonl'}",
        "benchmark.allow_other_version=true",
        f"benchmark.detector.config={files / 'tiny.py'}",
        "benchmark.detector.weights=random",
        "benchmark.detector.short_side=64",
        f"benchmark.colors.model={files / 'tiny_clip.json'}",
        "benchmark.colors.weights=random",
        *(f"benchmark.options.{name}={value}" for name, value in LOW.items()),
        *more,
    ]


@pytest.fixture(scope="module")
def run(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of the embedded model."""
    cwd = tmp_path_factory.mktemp("run")
    code, output = harness(cwd, *arguments(files))
    assert code == 0, output
    assert "1 of 5 prompts left out: they name 1 classes beside benchmark.classes (zebra)" in output
    assert "random weights test the path" in output
    (folder,) = folders(cwd)
    return folder


def test_a_run_leaves_the_references_files_and_stays_off_the_leaderboard(run: Path) -> None:
    results = read_results(run / "results.jsonl")
    assert [result.tag for result in results] == [tag for tag in TAGS for _ in range(2)]
    assert all(Path(result.filename).name in ("0.png", "1.png") for result in results)
    assert json.loads(results[0].metadata) == ROWS[0]
    summary = (run / "summary.txt").read_text()
    assert summary.startswith("\n".join(summarize(results).lines()))
    assert "PARTIAL: 4 of 5 prompts" in summary
    assert (run.parents[2] / "leaderboard.csv").read_text().count("\n") == 1  # the header


def test_scoring_resumes_where_it_was_killed(run: Path, files: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parents[2], tmp_path / "results")
    (folder,) = folders(tmp_path)
    scores = folder / "scores.jsonl"
    summary = folder / "summary.txt"
    whole = (scores.read_text(), summary.read_text())
    lines = whole[0].splitlines(keepends=True)
    scores.write_text("".join(lines[:3]) + lines[3][:50])
    (folder / "results.jsonl").unlink()

    code, output = harness(tmp_path, *arguments(files, "stages=[score]"))
    assert code == 0, output
    assert (scores.read_text(), summary.read_text()) == whole
    assert len(read_results(folder / "results.jsonl")) == 8

    before = scores.stat().st_mtime_ns
    harness(tmp_path, *arguments(files, "stages=[score]"))
    assert scores.stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def exported(run: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the run in the reference's layout."""
    folder = tmp_path_factory.mktemp("exported") / "official images"
    metadata = str(files / "metadata.jsonl")
    assert main(["export", str(run), str(folder), "--metadata", metadata]) == 0
    return folder


def import_arguments(files: Path, folder: Path) -> list[str]:
    """Write the command that scores the images of a folder; the stages are left to choose."""
    command = [one for one in arguments(files) if one != "benchmark.classes=model"]
    return [*command, "benchmark.classes=[cat,dog,cup,car,bird]", f"benchmark.images={folder}"]


def read_scores(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]


def test_an_export_has_the_references_layout(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "out"
    export = ["export", str(run), str(folder), "--metadata", str(files / "metadata.jsonl")]
    assert main(export) == 0
    assert f"{folder}: 8 images" in capsys.readouterr().out
    assert json.loads((folder / "00003/metadata.jsonl").read_text()) == ROWS[3]
    copy = (folder / "00003/samples/0001.png").read_bytes()
    assert copy == (run / "images/00003/1.png").read_bytes()
    assert main(export) == 2
    assert "is not empty" in capsys.readouterr().err


def test_an_exported_run_scores_the_same_when_it_is_imported(
    run: Path, exported: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = shutil.copytree(exported, tmp_path / "official images")
    command = import_arguments(files, folder)
    code, output = harness(tmp_path, *command, "stages=[score]")
    assert code == 0, output
    assert "Parsing model" not in output  # open_clip's logging
    assert "2 images a prompt where the reference has 4" in output
    (made,) = folders(tmp_path)
    assert made.parent.name == "official_images"
    assert read_scores(made) == read_scores(run)
    names = [result.filename for result in read_results(made / "results.jsonl")]
    assert names[0] == str(folder / "00000/samples/0000.png")

    code, output = harness(tmp_path, *command, "stages=[score,report]")
    assert (code, len(folders(tmp_path))) == (0, 1)
    code, output = harness(tmp_path, "run", str(made), module="harness.check")
    assert (code, output) == (0, "9 passed, 0 failed\n")
    capsys.readouterr()
    assert main(["summary", str(made / "results.jsonl")]) == 0
    assert capsys.readouterr().out.startswith("Summary\n=======\nTotal images: 8")

    Image.fromarray(picture(0)).save(folder / "00000/samples/0000.png")
    code, output = harness(tmp_path, *command, "stages=[score]")
    assert (code, len(folders(tmp_path))) == (0, 2)  # other images are another run
    assert "images of several sizes: 7 of 48 x 48, 1 of 64 x 64" in output


def test_images_that_cannot_be_imported_are_refused(
    exported: Path, files: Path, tmp_path: Path
) -> None:
    command = import_arguments(files, exported)
    code, output = harness(tmp_path, *command)
    assert (code, "set stages=[score]" in output) == (2, True)
    code, output = harness(tmp_path, *command[:-1], "benchmark.images=four")
    assert (code, "benchmark.images=four: neither a number nor a folder" in output) == (2, True)
    pictogram = ("benchmark=pictogram", f"benchmark.images={exported}", "stages=[score]")
    code, output = harness(tmp_path, *pictogram)
    assert (code, "benchmark=pictogram has no folder layout" in output) == (2, True)
    assert "whose prompts the images are of (coco, geneval, " in output
    assert not folders(tmp_path)


# --- imported folders -----------------------------------------------------------------------------


def write_images(folder: Path, images: dict[int, Sequence[str]]) -> Path:
    """Write a folder of the reference's layout: images of these names, by the row's number."""
    for number, names in images.items():
        samples = folder / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(ROWS[number], indent=1))
        for name in names:
            Image.fromarray(picture(number)).save(samples / name, format="PNG")
    return folder


def read(folder: Path, files: Path, **options: Any) -> GenEval:
    """Make a benchmark over ROWS that imports a folder's images."""
    options = {"metadata": str(files / "metadata.jsonl"), "allow_other_version": True, **options}
    return idle(**options, images=str(folder))


def test_images_are_found_as_the_reference_finds_them(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    four = ["00000.png", "00001.png", "00002.png", "00010.png"]
    folder = write_images(tmp_path / "images", {0: four, 1: four[::-1], 3: four[:3]})
    (folder / "00000/samples/grid.png").touch()
    (folder / "00000/grid.png").touch()
    (folder / "notes").mkdir()
    (folder / "00001").rename(folder / "77")  # the row counts, not the number
    benchmark = read(folder, files)
    assert benchmark.images == 4
    assert benchmark.found["geneval/00001", 3] == folder / "77/samples/00010.png"
    assert len(benchmark.found) == 11
    assert (
        "9 of 20 images are missing, from 3 prompts (geneval/00002, geneval/00003, geneval/00004)"
        in caplog.text
    )
    assert benchmark.excluded == "images made elsewhere: what they cost is not known"
    only = read(folder, files, classes=["cat"])
    assert list(only.found) == [("geneval/00000", i) for i in range(4)]


def with_metadata(*rows: object) -> Callable[[Path], None]:
    """Replace the folder's row by these lines."""

    def replace_row(folder: Path) -> None:
        text = "".join(json.dumps(one) + "\n" for one in rows)
        (folder / "00000/metadata.jsonl").write_text(text)

    return replace_row


def without_metadata(folder: Path) -> None:
    (folder / "00000/metadata.jsonl").unlink()


def without_images(folder: Path) -> None:
    (folder / "00000/samples/0000.png").unlink()


def with_a_row_twice(folder: Path) -> None:
    shutil.copytree(folder / "00000", folder / "00001")


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (shutil.rmtree, "a number of images per prompt, or a folder of GenEval's layout"),
        (without_images, "no image; GenEval's layout is"),
        (without_metadata, "00000/metadata.jsonl: no metadata row"),
        (with_metadata(*ROWS), "no metadata row"),
        (with_metadata([]), "expected one JSON object, found list"),
        (
            with_metadata({**ROWS[0], "prompt": "other"}),
            "'other' is no row of the benchmark's metadata; set benchmark.metadata to the file",
        ),
        (with_a_row_twice, "another folder has the same row"),
    ],
)
def test_a_folder_of_another_layout_is_refused(
    break_it: Callable[[Path], None], problem: str, files: Path, tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "images", {0: ["0000.png"]})
    break_it(folder)
    with pytest.raises(UserError) as caught:
        read(folder, files)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_the_prompts_asked_for_is_refused(files: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", {0: ["0000.png"]})
    with pytest.raises(UserError, match="no image of the 1 prompts asked for"):
        read(folder, files, classes=["zebra"])


def test_a_run_of_another_metadata_file_is_not_exported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = write(tmp_path / "other.jsonl", ROWS[::-1])
    assert main(["export", str(run), str(tmp_path / "out"), "--metadata", other]) == 2
    assert "line 1: 'geneval/00000' is no row of the metadata file" in capsys.readouterr().err
