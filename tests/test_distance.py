"""`harness.distance`: images of one law are not told apart, those of another are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run

from harness.distance import describe_distances, expect_same_prompts, main
from harness.judges.features import PictogramFeatures
from harness.records import UserError
from harness.runs.folder import encode_png
from harness.runs.read import Run, read_run


class Means:
    """Mean of each colour channel in each quarter of a picture."""

    identity = "means"
    dim = 12

    def features(self, images: list[np.ndarray]) -> np.ndarray:
        quarters = [image.reshape(2, 8, 2, 8, 3).mean((1, 3)).ravel() for image in images]
        return np.array(quarters, np.float32)


def drawn(folder: Path, method: str, seed: int, *, light: int = 0, noise: int = 0) -> Run:
    """A run of 40 prompts whose pictures are noise, the lighter the more `light` is added."""
    path = make_run(folder / str(seed), method, prompts=40, images=2, seed=seed)
    run = read_run(path)
    for key, record in run.done.items():
        prompt = run.prompts[key[0]]
        content = np.random.default_rng(len(prompt.text)).integers(60, 120, 3)
        own = np.random.default_rng([noise or seed, *key[0].encode(), key[1]])
        pixels = own.integers(0, 100, (16, 16, 3)) + content + light
        file = run.path / record.path
        file.write_bytes(encode_png(pixels.clip(0, 255).astype(np.uint8)))
    return run


def test_equals_are_not_told_apart_and_unlike_ones_are(tmp_path: Path) -> None:
    plain = drawn(tmp_path, "plain", 1)
    equal = drawn(tmp_path, "speculative", 2)
    unlike = drawn(tmp_path, "gridar", 3, light=4)
    other = drawn(tmp_path, "plain", 4)
    lines = describe_distances([equal, plain, other], Means())
    assert "40 prompts, 80 images a run, features means" in lines[0]
    assert "no difference found with 40 prompts (p = " in lines[1]
    assert "no difference found with 40 prompts (p = " in lines[3]
    assert "the images differ (p < 0.001)" in describe_distances([unlike, plain], Means())[1]


def test_common_seeds_have_no_test_and_the_same_images_are_identical(tmp_path: Path) -> None:
    plain = drawn(tmp_path, "plain", 1)
    same = drawn(tmp_path, "gridar", 2, noise=1)
    assert describe_distances([same, plain], Means())[1].endswith("identical images")
    common = drawn(tmp_path / "again", "speculative", 1, noise=9)
    found = describe_distances([common, plain], Means())[1]
    assert "no test: both runs have seed 1" in found


def test_runs_that_cannot_be_compared_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = drawn(tmp_path, "plain", 1)
    with pytest.raises(UserError, match="a run stands twice"):
        expect_same_prompts([plain, plain])
    fewer = read_run(make_run(tmp_path / "fewer", "gridar", prompts=12))
    with pytest.raises(UserError, match="have different prompts"):
        expect_same_prompts([fewer, plain])
    other = drawn(tmp_path, "gridar", 2)
    (other.path / other.done[next(iter(other.done))].path).unlink()
    with pytest.raises(UserError, match=r"image \d of made/\d+ is not in the folder"):
        describe_distances([other, plain], Means())
    # Pictures of 16 pixels are none of the embedded world.
    assert main([str(drawn(tmp_path, "speculative", 5).path), str(plain.path)]) == 2
    assert "describe pictures of other models by clip" in capsys.readouterr().err


def test_the_embedded_features_do_not_depend_on_the_other_pictures() -> None:
    extractor = PictogramFeatures()
    pictures = list(np.random.default_rng(0).integers(0, 256, (20, 48, 48, 3), np.uint8))
    together = extractor.features(pictures)
    assert together.shape == (20, 88)
    assert np.array_equal(extractor.features(pictures[18:]), together[18:])
    assert extractor.features([]).shape == (0, 88)
