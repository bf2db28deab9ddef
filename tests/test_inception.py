"""Features of FID's network: pooled, resized and laid out as its ports have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_evaluator import picture

from harness.judges import known_pictures
from harness.judges.inception import InceptionFeatures, build_inception, compute_pool3
from harness.judges.known_pictures import check_extractor, draw_known_pictures
from harness.judges.resize import (
    crop_to_square,
    normalise_clean,
    normalise_tensorflow,
    normalise_torch,
    resize_clean,
)
from harness.records import UserError

PICTURES = [picture(0), picture(1, 90, 60), picture(2, 400, 320)]


@pytest.fixture(scope="module")
def random_features() -> InceptionFeatures:
    extractor = InceptionFeatures(weights="random", device="cpu")
    extractor.ready()
    return extractor


# ------------------------------------------------------------------ resizing


def test_a_square_is_cut_out_of_the_middle() -> None:
    image = np.zeros((100, 301, 3), np.uint8)
    image[:, 100:200] = 255
    assert (crop_to_square(image, 256) == 255).all()
    tall = image.transpose(1, 0, 2)
    assert np.array_equal(crop_to_square(tall, 64), crop_to_square(image, 64).transpose(1, 0, 2))
    small = picture(3, 256, 256)
    assert np.array_equal(crop_to_square(small), small)


def test_clean_resizing_filters_each_channel_and_does_not_round() -> None:
    image = PICTURES[2]
    resized = resize_clean(image)
    assert (resized.shape, resized.dtype) == ((299, 299, 3), np.float32)
    assert not np.array_equal(resized, resized.round())
    assert resized.min() >= 0 and resized.max() <= 255
    alone = image.copy()
    alone[..., 1:] = 0
    assert np.array_equal(resize_clean(alone)[..., 0], resized[..., 0])
    fine = np.indices((598, 598)).sum(0) % 2 * 255  # every second pixel: shrunk, it is even grey
    grey = resize_clean(np.repeat(fine[..., None], 3, -1).astype(np.uint8))
    assert np.abs(grey[8:-8, 8:-8] - 127.5).max() < 1


def test_other_ways_do_not_filter_when_they_shrink() -> None:
    fine = np.indices((598, 598)).sum(0) % 2 * 255
    image = np.repeat(fine[..., None], 3, -1).astype(np.uint8)
    assert torch.equal(normalise_tensorflow(image), torch.full((3, 299, 299), -1.0))
    assert normalise_torch(image).abs().max() < 1e-6  # of four neighbours the mean
    assert normalise_clean(image)[:, 8:-8, 8:-8].abs().max() < 0.01


def test_a_picture_of_the_right_size_stays_what_it_is() -> None:
    image = picture(4, 299, 299)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    for normalise in (normalise_clean, normalise_tensorflow):
        assert torch.equal(normalise(image), (pixels - 128) / 128)
    torch.testing.assert_close(normalise_torch(image), (pixels - 127.5) / 127.5)


# ------------------------------------------------------------------ the network


def test_pooling_leaves_the_padding_out_and_takes_the_largest_at_the_end() -> None:
    network = build_inception().eval()
    with torch.inference_mode():
        for name, channels, kind in (
            ("Mixed_5b", 192, "mean"),
            ("Mixed_6e", 768, "mean"),
            ("Mixed_7b", 1280, "mean"),
            ("Mixed_7c", 2048, "max"),
        ):
            block = getattr(network, name)
            x = torch.randn(1, channels, 5, 5)
            padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=float("nan"))
            windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
            if kind == "mean":
                pooled = windows.nanmean(-1)
            else:
                pooled = windows.nan_to_num(nan=float("-inf")).amax(-1)
            expected = block.branch_pool.bn(block.branch_pool.conv(pooled)).relu()
            found = block(x)[:, -expected.shape[1] :]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_features_are_those_of_torch_fidelity(
    random_features: InceptionFeatures, tmp_path: Path
) -> None:
    library = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="pip install torch-fidelity"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = build_inception().state_dict()
    torch.save(state, tmp_path / "weights.pth")
    theirs = library.FeatureExtractorInceptionV3("fid", ["2048"], str(tmp_path / "weights.pth"))
    ours = InceptionFeatures(str(tmp_path / "weights.pth"), "tf299", device="cpu")
    for image in PICTURES:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        expected = theirs(pixels)[0].numpy()
        assert expected.max() > 0.1  # features that could differ
        error = np.abs(ours.features([image]) - expected).max()
        assert error < 1e-4 * expected.max()


def test_features_do_not_depend_on_the_other_pictures(random_features: InceptionFeatures) -> None:
    together = random_features.features(PICTURES)
    assert (together.shape, together.dtype) == ((3, 2048), np.float32)
    assert (together >= 0).all()
    assert together.std(0).mean() > 0.01
    alone = [random_features.features([image])[0] for image in PICTURES]
    assert np.array_equal(together, alone)
    assert random_features.features([]).shape == (0, 2048)
    assert random_features.identity == "inception-random-clean299"


def test_a_file_in_the_ports_layout_is_read_and_another_one_refused(tmp_path: Path) -> None:
    state = build_inception().state_dict()
    released = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "weights.pth"
    torch.save(released, path)
    extractor = InceptionFeatures(str(path), device="cpu")
    network = build_inception().eval()
    network.load_state_dict(state)
    with torch.inference_mode():
        expected = compute_pool3(network, normalise_clean(PICTURES[0])[None]).numpy()
    assert np.array_equal(extractor.features(PICTURES[:1]), expected)

    del released["fc.bias"]
    torch.save(released, path)
    with pytest.raises(UserError, match=r"no checkpoint of FID's Inception: it lacks fc\.bias"):
        InceptionFeatures(str(path), device="cpu").ready()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resize": "224"}, "choose from clean299, torch299, tf299"),
        ({"weights": "imagenet"}, "choose published or random"),
        ({"weights": "random", "checkpoint": "x"}, "exclude each other"),
        ({"batch": 0}, "at least one picture"),
        ({"checkpoint": "nowhere.pth"}, "nowhere.pth: cannot be read"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        InceptionFeatures(device="cpu", **options)  # type: ignore[arg-type]


def test_missing_weights_are_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError, match=r"inception-2015-12-05.*or set checkpoint=PATH"):
        InceptionFeatures(device="cpu").ready()


# ------------------------------------------------------------------ known pictures


class Means:
    """Means of channels, with a fault."""

    identity = "means"
    dim = 3

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        found = np.array([image.mean((0, 1)) for image in images], np.float32)
        if self.fault == "together":
            found += len(images)
        elif self.fault == "same":
            found[:] = found[0]
        elif self.fault == "nan":
            found[0] = np.nan
        elif self.fault == "shape":
            return found[:, :2]
        elif self.fault == "far":
            found *= 1.01
        return found


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("together", "depend on which pictures come together"),
        ("same", "the same features for unlike pictures"),
        ("nan", "gives no finite numbers"),
        ("shape", r"gives float32 \(3, 2\)"),
        ("far", "gives features up to 0.01 away from those of the CPU"),
    ],
)
def test_a_faulty_extractor_is_found_out(fault: str, words: str) -> None:
    check_extractor(Means(), reference=Means())
    with pytest.raises(UserError, match=words):
        check_extractor(Means(fault), reference=Means())


def test_recorded_features_are_those_of_today(
    random_features: InceptionFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = known_pictures.read_recorded()
    assert random_features.identity in recorded
    found = random_features.features(draw_known_pictures())
    known = np.array(recorded[random_features.identity])
    assert known.max() > 0.1
    assert np.abs(found[:, : known.shape[1]] - known).max() < 1e-3 * known.max()
    monkeypatch.setattr(known_pictures, "read_recorded", lambda: {"means": [[1.0]] * 3})
    with pytest.raises(UserError, match="away from those recorded"):
        check_extractor(Means())
