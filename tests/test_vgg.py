"""Features of VGG-16 are those of the layer that evaluations of precision and recall take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_evaluator import picture

from harness.judges.vgg import VggFeatures
from harness.records import UserError

PICTURES = [picture(0), picture(1, 90, 60)]


def test_features_are_the_second_linear_layers_before_they_are_cut() -> None:
    extractor = VggFeatures(weights="random", device="cpu")
    assert extractor.identity == "vgg16-random-squeeze224"
    found = extractor.features(PICTURES)
    assert (found.shape, found.dtype) == ((2, 4096), np.float32)
    assert (found < 0).mean() > 0.1

    given = []
    network = extractor._load()
    # The next layer cuts them at 0 in their place, so they are copied.
    network.classifier[3].register_forward_hook(lambda *call: given.append(call[2].clone()))
    pixels = torch.stack([extractor.prepare(image) for image in PICTURES])
    assert pixels.shape == (2, 3, 224, 224)
    with torch.inference_mode():
        network(pixels)  # torchvision's own path
    assert np.allclose(given[0].numpy(), found, atol=1e-4 * np.abs(found).max())


@pytest.mark.parametrize("options", [{"weights": "imagenet"}, {"batch": 0}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        VggFeatures(device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.long
def test_a_file_of_weights_is_read_and_another_one_refused(tmp_path: Path) -> None:
    made = VggFeatures(weights="random", device="cpu")
    state = made._load().state_dict()
    path = tmp_path / "vgg16.pth"
    torch.save(state, path)
    extractor = VggFeatures(str(path), device="cpu")
    extractor.ready()
    assert np.array_equal(extractor.features(PICTURES), made.features(PICTURES))
    del state["classifier.3.bias"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"no checkpoint of VGG-16: it lacks classifier\.3\.bias"):
        VggFeatures(str(path), device="cpu").ready()
