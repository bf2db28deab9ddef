"""`benchmark=coco`: its files, protocols, references and images made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.plugins import Plugins
from PIL import Image as Pillow

from benchmarks.coco.__main__ import main as window
from benchmarks.coco.benchmark import Coco
from benchmarks.coco.caption_files import COLUMNS, read_captions, read_table
from benchmarks.coco.layout import find_images
from benchmarks.coco.reference import read_moments, write_reference
from harness.records import SET_METRICS, Prompt, Score, SetMetric, SetMetrics, UserError
from harness.results.claims import decide_verdict, read_claims
from harness.results.plain_distance import find_extractor
from harness.results.stats.set_metrics import Reference
from harness.runs.benchmark import BenchmarkSpec
from harness.runs.instantiate import build_object
from harness.runs.read import Run, read_run

IMAGES = 40
"""Images of the made caption file: more than the extractor below has features."""


class Corners:
    """Mean of each colour channel in each quarter of a picture."""

    identity = "corners-clean299"
    dim = 12

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        side = images[0].shape[0] // 2
        quarters = [i.reshape(2, side, 2, side, 3).mean((1, 3)).ravel() for i in images]
        return np.array(quarters, np.float32)


class Lightness:
    """How light a picture is, in the unit of a CLIP."""

    def __init__(self, unit: str = "cosine", scale: float = 1.0) -> None:
        self.id = f"clip-ViT-B-32-quickgelu-made-{unit}"
        self.unit = unit
        self.scale = scale

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float]:
        return [self.scale * float(image.mean() / 255) for image in images]


def picture(number: int, width: int = 48, height: int = 40) -> Pillow.Image:
    own = np.random.default_rng(number)
    pixels = own.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Pillow.fromarray(pixels).resize((width, height), Pillow.Resampling.NEAREST)


def write_captions(folder: Path, **changes: Any) -> Path:
    """A caption file of `IMAGES` images with two captions each; returns the folder of COCO."""
    images = [{"id": 7 + 3 * i} for i in range(IMAGES)]
    captions = []
    for i, image in enumerate(images):
        text = f"a {'very ' * (i % 3)}small  thing number {i}"
        captions.append({"image_id": image["id"], "id": 1000 + 2 * i, "caption": f"thing {i}"})
        captions.append({"image_id": image["id"], "id": 1001 + 2 * i, "caption": text})
    data = {"images": images, "annotations": captions, **changes}
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "annotations/captions_val2017.json").write_text(json.dumps(data))
    return folder


def write_photographs(folder: Path) -> None:
    (folder / "val2017").mkdir(parents=True, exist_ok=True)
    for i in range(IMAGES):
        picture(i, 60, 44).save(folder / f"val2017/{7 + 3 * i:012d}.jpg")


def build(folder: Path, **options: Any) -> Coco:
    parts: dict[str, Any] = {"extractor": Corners(), "clip": Lightness()}
    return Coco(**{**parts, "coco": str(folder), "allow_other_version": True, **options})


def compose_benchmark(*overrides: str) -> Any:
    """The configuration of a benchmark; plugins are found first, as in a command."""
    Plugins.instance()
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", [*overrides, "device=cpu"]).benchmark


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ------------------------------------------------------------------ captions


def test_prompts_are_one_caption_for_each_image(tmp_path: Path) -> None:
    coco = build(write_captions(tmp_path))
    prompts = coco.prompts()
    assert [prompt.id for prompt in prompts[:2]] == ["coco/000000000007", "coco/000000000010"]
    assert prompts[1].text == "a very small thing number 1"  # without the double blank
    assert prompts[1].spec == {
        "image_id": 10,
        "annotation_id": 1003,
        "caption": "a very small  thing number 1",
    }
    assert coco.version.startswith("other-")
    assert build(tmp_path, prompts=3).prompts() == prompts[:3]
    assert build(tmp_path, captions="first").prompts()[0].text == "thing 0"


def test_another_caption_file_is_refused_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has sha256 .*, captions_val2017\.json has afe3b30e"):
        read_captions("longest", str(write_captions(tmp_path)), allow_other_version=False)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"annotations": []}, "it has no list 'annotations'"),
        ({"images": [{"id": "7"}]}, r"images\[0\] has id '7': expected int"),
        ({"images": [{"id": 7}, {"id": 7}]}, "an image id stands twice"),
        ({"images": [{"id": 7}]}, "captions of image 10, which is not among the images"),
        (
            {"images": [{"id": 7}], "annotations": [{"image_id": 7, "id": 1, "caption": " \n"}]},
            "caption 1 of image 7 is blank",
        ),
        (
            {"images": [{"id": 7}], "annotations": [{"image_id": 7, "id": 1}]},
            r"annotations\[0\] has caption None: expected str",
        ),
    ],
)
def test_a_broken_caption_file_is_named(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=rf"captions_val2017\.json.*{complaint}"):
        build(write_captions(tmp_path, **changes))


def test_options_that_there_are_not_are_refused(tmp_path: Path) -> None:
    write_captions(tmp_path)
    for options, complaint in (
        ({"captions": "shortest"}, "choose from longest, sjd, first, last, mlperf"),
        ({"crop": "round"}, "choose from none, square256"),
        ({"prompts": 41}, "choose from 1 to the 40 captions"),
        ({"images": 0}, "at least one image"),
        ({"reference": str(tmp_path / "nowhere")}, "neither a folder of photographs"),
    ):
        with pytest.raises(UserError, match=complaint):
            build(tmp_path, **options)


def table(*rows: str) -> bytes:
    return "\n".join(["\t".join(COLUMNS), *rows, ""]).encode()


def test_mlperfs_table_is_read_as_a_table(tmp_path: Path) -> None:
    file = tmp_path / "captions_source.tsv"
    row = '5\t42\t"The ""Cheese Shop""  sign"\t480\t640\tx.jpg\thttp://x'
    file.write_bytes(table(row))
    (caption,) = read_table(file, expected=1)
    assert (caption.image, caption.annotation) == (42, 5)
    assert caption.raw == 'The "Cheese Shop"  sign'
    coco = Coco(
        extractor=Corners(),
        clip=Lightness(),
        captions="mlperf",
        coco=str(tmp_path),
        allow_other_version=True,
    )
    (prompt,) = coco.prompts()
    assert (prompt.id, prompt.text) == ("coco/5", 'The "Cheese Shop"  sign')
    for content, complaint in (
        (b"id\tcaption\n", "line 1: columns id, caption"),
        (table(row, row), "line 3: id 5 stands twice"),
        (table(row, "6\t43"), "line 3: 2 fields"),
        (table(row, row.replace("5\t42", "six\t42", 1)), "line 3: id 'six'"),
        (table(row) + b"\xff", "line 3: not UTF-8"),
        (table(row), "1 captions, expected 5000"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            read_table(file)


# ------------------------------------------------------------------ protocols


@pytest.mark.parametrize(
    ("benchmark", "protocol"),
    [
        ("coco", "clean"),
        ("coco_lantern", "lantern"),
        ("coco_sjd", "sjd"),
        ("coco_mlperf", "mlperf"),
    ],
)
def test_configurations_are_the_protocols_that_they_are_named_by(
    tmp_path: Path, benchmark: str, protocol: str
) -> None:
    place = write_captions(tmp_path)
    (tmp_path / "captions_source.tsv").write_bytes(
        table("5\t42\tA sign\t480\t640\tx.jpg\thttp://x")
    )
    options = [f"benchmark.coco={place}", "benchmark.allow_other_version=true"]
    config = compose_benchmark(f"benchmark={benchmark}", *options)
    own = compose_benchmark(f"benchmark={benchmark}", *options, "benchmark.crop=square256")
    other = compose_benchmark(f"benchmark={benchmark}", *options, "benchmark.captions=first")
    made = build_object(config)
    assert made.judge.id.startswith(f"coco-{protocol}-")
    assert made.judge.id.endswith(f"+{made.judge.scorers['clip'].id}")
    assert not made.excluded
    is_same = config.crop == "square256"
    found = build_object(own).judge.id
    assert found.startswith(f"coco-{protocol if is_same else 'own'}-")
    if protocol != "mlperf":  # whose captions are of another file
        assert build_object(other).judge.id.startswith("coco-own-")


def test_random_weights_enter_no_table(tmp_path: Path) -> None:
    options = [f"benchmark.coco={write_captions(tmp_path)}", "benchmark.allow_other_version=true"]
    options += ["benchmark.extractor.weights=random", "benchmark.clip.weights=tiny"]
    config = compose_benchmark("benchmark=coco", *options)
    assert build_object(config).excluded == "random weights"


def test_where_captions_and_photographs_lie_names_no_result() -> None:
    from harness.runs.fingerprint import drop_places

    settings = {
        "_target_": "benchmarks.coco.benchmark.Coco",
        "coco": "/somewhere",
        "reference": "/there",
        "crop": "none",
        "extractor": {"_target_": "x", "checkpoint": "/file", "resize": "clean299"},
    }
    assert drop_places(settings) == {
        "_target_": "benchmarks.coco.benchmark.Coco",
        "crop": "none",
        "extractor": {"_target_": "x", "resize": "clean299"},
    }


# ------------------------------------------------------------------ references


def score_all(coco: Coco, folder: Path) -> SetMetrics:
    """Put a picture for every caption into a folder, and score it: the metrics of the set."""
    from test_coco_pictogram import fill

    def draw(job: Any) -> np.ndarray:
        return np.asarray(picture(int(job.prompt.spec["image_id"]) + 500, 64, 64))

    return SetMetrics.from_json((fill(folder, coco, picture=draw) / SET_METRICS).read_bytes())


def test_photographs_are_described_once_and_named_by_names_and_sizes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photographs(write_captions(tmp_path))
    coco = build(tmp_path)
    first = score_all(coco, tmp_path / "one")
    assert set(first.metrics) == {"fid", "kid"}
    assert (first.metrics["fid"].n, first.metrics["fid"].m) == (IMAGES, IMAGES)
    assert first.metrics["fid"].reference.startswith("photos-")
    (kept,) = cache.rglob("photos-*.npz")

    again = build(tmp_path)
    monkeypatch.setattr("benchmarks.coco.reference.read_images", lambda _: pytest.fail("read"))
    assert score_all(again, tmp_path / "two").metrics["kid"] == first.metrics["kid"]
    # The file that was kept serves as a reference of its own.
    moments = build(tmp_path, reference=str(kept))
    assert moments.judge.id != coco.judge.id
    monkeypatch.undo()
    by_file = read_moments(kept, Corners(), "square256")
    assert by_file.count == IMAGES and by_file.id == first.metrics["fid"].reference


class Rows:
    """Mean of each row of a picture: a second extractor."""

    identity = "rows-squeeze"
    dim = 256

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([image.mean((1, 2)) for image in images], np.float32)


def test_precision_and_recall_have_an_extractor_of_their_own(tmp_path: Path) -> None:
    write_captions(tmp_path)
    without = build(tmp_path, neighbours=Rows())
    assert without.judge.id == build(tmp_path).judge.id  # there is nothing to be near to
    write_photographs(tmp_path)
    coco = build(tmp_path, neighbours=Rows())
    assert coco.judge.id != build(tmp_path).judge.id
    found = score_all(coco, tmp_path / "run").metrics
    assert {name: metric.extractor for name, metric in found.items()} == {
        "fid": "corners-clean299",
        "kid": "corners-clean299",
        "precision": "rows-squeeze",
        "recall": "rows-squeeze",
    }
    assert (found["recall"].unit, found["recall"].better) == ("share", "higher")
    assert 0 <= found["precision"].value <= 1
    (folder,) = (path.parent for path in (tmp_path / "run").rglob(SET_METRICS))
    assert {path.name for path in (folder / "features").iterdir()} == {
        "corners-clean299",
        "rows-squeeze",
    }
    assert find_extractor(read_run(folder)) == "corners-clean299"


def test_images_of_several_sizes_have_no_distance(tmp_path: Path) -> None:
    from test_coco_pictogram import fill

    write_photographs(write_captions(tmp_path))
    coco = build(tmp_path)

    def draw(job: Any) -> np.ndarray:
        number = int(job.prompt.spec["image_id"])
        return np.asarray(picture(number, 64, 32 if number == 10 else 64))

    folder = fill(tmp_path / "run", coco, picture=draw)
    sets = SetMetrics.from_json((folder / SET_METRICS).read_bytes())
    reason = (
        "1 of 40 images are not of 64 x 64 pixels, such as coco/000000000010 image 0 of 64 x 32"
    )
    assert (sets.metrics, sets.problem) == ({}, reason)
    assert find_extractor(read_run(folder)) == ""
    summary = (folder / "summary.txt").read_text()
    assert f"No distances: {reason}" in summary
    assert "1 images are not square: only their middles are seen" in summary


def test_without_reference_there_is_clip_alone(tmp_path: Path) -> None:
    coco = build(write_captions(tmp_path))
    assert coco.judge.reference is None
    assert list(BenchmarkSpec.of(coco).files([], tmp_path)) == []
    assert any("No reference images" in line for line in coco.summarise([]))


def test_fewer_photographs_are_no_reference(tmp_path: Path) -> None:
    write_photographs(write_captions(tmp_path))
    (tmp_path / "val2017/000000000010.jpg").unlink()
    (tmp_path / "val2017/000000000013.jpg").write_bytes(b"")
    secret = tmp_path.parent / "outside.jpg"
    picture(0).save(secret)
    (tmp_path / "val2017/000000000016.jpg").unlink()
    (tmp_path / "val2017/000000000016.jpg").symlink_to(secret)
    with pytest.raises(UserError, match=r"37 of 40 photographs; .*000000000010\.jpg, 0000000000"):
        build(tmp_path)


def test_a_photograph_that_is_no_image_stops_the_distance(tmp_path: Path) -> None:
    write_photographs(write_captions(tmp_path))
    (tmp_path / "val2017/000000000010.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"000000000010\.jpg cannot be read"):
        score_all(build(tmp_path), tmp_path / "run")


def moments(**changes: Any) -> dict[str, Any]:
    sound = {"mu": np.zeros(12), "sigma": np.eye(12)}
    return {key: value for key, value in {**sound, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sigma": None}, "no array 'sigma'"),
        ({"mu": np.zeros(11)}, r"mu is float64 \[11\]: expected \[12\]"),
        ({"mu": np.full(12, np.nan)}, "mu has numbers that are not finite"),
        ({"sigma": np.eye(12) + np.eye(12, k=1)}, "sigma is not symmetric"),
        ({"sigma": -np.eye(12)}, "sigma has a negative eigenvalue, -1"),
        ({"mu": np.array([None] * 12)}, "cannot be read"),
        ({"extractor": np.str_("other")}, "its extractor is other, this protocol's corners"),
        ({"crop": np.str_("none")}, "its crop is none, this protocol's square256"),
        ({"features": np.zeros((5, 3))}, r"features is float64 \[5, 3\]"),
    ],
)
def test_broken_moments_are_named(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    np.savez(tmp_path / "made.npz", **moments(**changes))
    with pytest.raises(UserError, match=complaint):
        build(write_captions(tmp_path), reference=str(tmp_path / "made.npz"))


def test_moments_alone_give_fid_and_no_kid(tmp_path: Path) -> None:
    np.savez(tmp_path / "made.npz", **moments())
    coco = build(write_captions(tmp_path), reference=str(tmp_path / "made.npz"))
    found = score_all(coco, tmp_path / "run").metrics
    assert set(found) == {"fid"}
    assert (found["fid"].m, found["fid"].bias) == (None, None)
    assert found["fid"].reference.startswith("npz-")


def test_a_written_reference_is_read_back(tmp_path: Path) -> None:
    features = Corners().features([np.asarray(picture(i, 40, 40)) for i in range(20)])
    written = Reference.of_features("made", features)
    write_reference(tmp_path / "made.npz", written, Corners(), "none")
    found = read_moments(tmp_path / "made.npz", Corners(), "none")
    assert (found.id, found.count) == ("made", 20)
    np.testing.assert_allclose(found.moments.covariance, written.moments.covariance)


def test_per_cent_and_cosine_are_one_score(tmp_path: Path) -> None:
    write_captions(tmp_path)
    picture(1, 64, 64).save(tmp_path / "0.png")
    found = []
    for clip in (Lightness(), Lightness("100 x cosine", 100.0)):
        coco = build(tmp_path, clip=clip)
        (score,) = coco.score([(coco.prompts()[0], tmp_path / "0.png")])
        found.append(score.score)
    assert found[0].value == pytest.approx(found[1].value)
    metrics = [score.detail["metrics"]["clip"] for score in found]
    assert metrics[1] == pytest.approx(100 * metrics[0])


# ------------------------------------------------------------------ images made elsewhere


def prompts() -> list[Prompt]:
    return [
        Prompt(
            f"coco/{7 + 3 * i:012d}",
            f"thing {i % 4}",
            "coco",
            {"image_id": 7 + 3 * i, "annotation_id": 1000 + i},
        )
        for i in range(5)
    ]


NAMES = {
    "image": ["000000000007.png", "000000000013.png"],
    "prompt": ["prompt_0.png", "prompt_2.png"],
    "annotation": ["1000.png", "1002.webp"],
    "line": ["0.png", "2.png"],
}


@pytest.mark.parametrize("layout", NAMES)
def test_images_are_paired_by_number_and_not_by_place(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in NAMES[layout]:
        (tmp_path / name).touch()
    if layout == "line":
        lines = [f"thing {i % 4}" for i in range(5)]
        (tmp_path / "captions.txt").write_text("\n".join(lines))
    found = find_images(tmp_path, prompts())
    assert {key: path.name for key, path in found.items()} == {
        ("coco/000000000007", 0): NAMES[layout][0],
        ("coco/000000000013", 0): NAMES[layout][1],
    }
    assert "3 of 5 images are missing" in caplog.text
    assert ("1 images are not PNG" in caplog.text) == (layout == "annotation")


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ([], "no image of the 5 captions"),
        (["cat.png"], "no image of the 5 captions"),
        (["prompt_0.png", "000000000007.png"], "two layouts fit"),
        (["prompt_0.png", "prompt_5.png", "dog.png"], "2 images are of no caption of the list"),
        (["prompt_0.png", "prompt_0.jpg"], r"1 captions have two images: prompt_0\.png"),
    ],
)
def test_folders_that_cannot_be_paired_are_refused(
    tmp_path: Path, names: list[str], complaint: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=complaint):
        find_images(tmp_path, prompts())


def test_lines_must_be_captions_of_the_list(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    (tmp_path / "captions.txt").write_text("thing 0\nsomething else\n")
    with pytest.raises(UserError, match="line 2: 'something else' is no caption of the list"):
        find_images(tmp_path, prompts())


# ------------------------------------------------------------------ a whole run


@pytest.mark.long
def test_images_made_elsewhere_are_scored_by_networks_of_full_size(tmp_path: Path) -> None:
    """Random weights: memory, path and resume, and no number that means anything."""
    from runs import harness

    place = write_captions(tmp_path / "coco")
    write_photographs(place)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(IMAGES):
        picture(i + 900, 96, 96).save(images / f"{7 + 3 * i:012d}.png")
    command = [
        *("benchmark=coco", f"benchmark.coco={place}", "benchmark.allow_other_version=true"),
        *("benchmark.extractor.weights=random", "benchmark.clip.weights=tiny"),
        *(f"benchmark.images={images}", "stages=[score]", "device=cpu"),
    ]
    code, output = harness(tmp_path, *command)
    assert code == 0, output
    (folder,) = (path.parent for path in tmp_path.rglob(SET_METRICS))
    before = (folder / SET_METRICS).read_bytes()
    found = SetMetrics.from_json(before)
    assert found.scored == IMAGES
    assert (
        found.metrics["fid"].note
        == "no interval: 40 images of 2048 features, it takes 2049 or more"
    )
    next(folder.rglob("*.npy")).unlink()
    assert harness(tmp_path, *command)[0] == 0
    assert (folder / SET_METRICS).read_bytes() == before


# ------------------------------------------------------------------ MLPerf's window, claims


def write_scored(folder: Path, clip: float, fid: float, judge: str = "coco-mlperf-1+clip") -> Path:
    """A run of two images as `stages=[score]` leaves it, as far as the window reads it."""
    folder.mkdir()
    made = SetMetric(fid, 2, None, "inception-6726825d-torch299", "npz-1")
    sets = SetMetrics(judge, 2, 2, metrics={"fid": made})
    (folder / SET_METRICS).write_text(sets.to_json())
    scores = [
        Score(f"coco/{i}", 0, judge, 0.3, {"metrics": {"clip": clip + delta}})
        for i, delta in enumerate((-1.0, 1.0))
    ]
    (folder / "scores.jsonl").write_text("".join(f"{score.to_json()}\n" for score in scores))
    return folder


def test_mlperfs_window_is_closed_on_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = write_scored(tmp_path / "inside", 31.75, 23.48)
    assert window(["window", str(inside)]) == 0
    assert "CLIP 31.75000: inside 31.68631873 to 31.81331801" in capsys.readouterr().out
    better = write_scored(tmp_path / "better", 31.75, 22.0)
    assert window(["window", str(better)]) == 1
    assert "FID 22.00000: outside" in capsys.readouterr().out
    other = write_scored(tmp_path / "other", 31.75, 23.48, judge="coco-clean-1+clip")
    assert window(["window", str(other)]) == 2
    assert "judged by coco-clean-1+clip, not as MLPerf does" in capsys.readouterr().err
    (inside / "scores.jsonl").write_text("")
    assert window(["window", str(inside)]) == 2
    assert "0 of 2 images have a CLIP score" in capsys.readouterr().err


def test_claims_are_put_beside_runs_of_their_protocol_alone() -> None:
    claims = [claim for claim in read_claims() if claim.protocol]
    assert {claim.protocol for claim in claims} == {"lantern", "sjd", "mlperf", "not stated"}
    of_vvs = [c for c in claims if c.benchmark == "coco_lantern" and c.method == "plain"]
    about = {"model": "llamagen_xl_256", "method": "plain", "benchmark": "coco_lantern"}
    described = {}
    for judge in ("coco-lantern-12345678+clip-x", "coco-own-12345678+clip-x"):
        run = Run(Path(), {"method": {}}, about, {}, {}, {}, frozenset(), {}, judge)
        described[judge] = {c.metric: c.value for c in of_vvs if c.describes(run)}
    printed = {"fid": 24.88, "clip": 0.322, "precision": 0.5084, "recall": 0.6684}
    assert list(described.values()) == [printed, {}]
    assert decide_verdict("fid", 24.88, 25.0, 24.6, 25.4) == "reproduced"
    assert decide_verdict("fid", 24.88, 25.0, 23.0, 27.0) == "not resolved"
    assert decide_verdict("clip", 0.322, 0.3221, 0.3215, 0.3227) == "reproduced"
