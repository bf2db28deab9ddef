"""What is measured of a draft: where it is wrong, and what relaxed methods lose with it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.records import UserError
from harness.training import measure_draft, samples

LINE = torch.linspace(0, 1.5, 64)
CODES = torch.stack((LINE.cos(), LINE.sin()), -1)
"""Codes in a row: the nearest of one at the end are those that follow."""


def peaked(place: int, mass: float = 1.0) -> torch.Tensor:
    """A distribution [1, 1, 64] with so much mass on a code, and the rest on code 0."""
    probs = torch.zeros(1, 1, 64)
    probs[..., 0] = 1 - mass
    probs[..., place] += mass
    return probs


def test_ranks_follow_the_distance() -> None:
    rank_VV = measure_draft.code_ranks(CODES)
    assert rank_VV[0].tolist() == list(range(64))
    assert rank_VV[63].tolist() == list(range(63, -1, -1))
    assert rank_VV.diagonal().tolist() == [0] * 64


@pytest.mark.parametrize(
    ("place", "part"), [(10, "near"), (11, None), (50, None), (51, "far"), (0, None)]
)
def test_rejected_mass_is_counted_where_it_lies(place: int, part: str | None) -> None:
    """The target is sure of code 0; the draft puts .4 elsewhere."""
    rank_VV = measure_draft.code_ranks(CODES)
    found = measure_draft.place_rejections(peaked(0), peaked(place, 0.4), rank_VV)
    rejected = 0.4 if place else 0.0
    assert found["accepted"].item() == pytest.approx(1 - rejected)
    for name in ("near", "far", "likeliest"):
        expected = rejected if name == part else 0.0
        assert found[name].item() == pytest.approx(expected), name
    assert found["top_1"].item() == 1
    assert found["entropy"].item() == 0


def test_mass_on_the_likeliest_code_is_apart() -> None:
    """The target has .6 there, the draft all of it: .4 of it is rejected."""
    rank_VV = measure_draft.code_ranks(CODES)
    found = measure_draft.place_rejections(peaked(5, 0.4), peaked(0), rank_VV)
    assert found["likeliest"].item() == pytest.approx(0.4)
    assert found["near"].item() == found["far"].item() == 0
    assert found["top_1"].item() == pytest.approx(0.6)
    assert found["entropy"].item() == pytest.approx(-(0.6 * np.log(0.6) + 0.4 * np.log(0.4)))


def measured(right: list[list[int]], **counts: Any) -> dict[str, Any]:
    images = np.size(right)
    usual = {name: [0] * images for name in ("accepted", "verifications", "rescued")}
    return {"right": right, **usual, "target_passes": [145] * images, **counts}


def test_losses_are_against_all_images_of_exact_rules() -> None:
    """Pool: (3 + 1) of 4 right in one task, 0 of 4 in the other."""
    content = {
        "tags": ["counting", "colors"] * 2,
        "places": {},
        "drawn": {
            "plain": measured([[1, 1], [0, 0], [1, 0], [0, 0]]),
            "A exact": measured([[1], [0], [1], [0]]),
            "A lantern": measured(
                [[0], [0], [1], [0]],
                accepted=[4, 6, 4, 6],
                verifications=[2, 3, 2, 3],
                rescued=[1, 2, 3, 4],
                target_passes=[60, 62, 64, 66],
            ),
        },
    }
    assert len(measure_draft.pool_exact(content)) == 12
    lines = list(measure_draft.report(content))
    (pool,) = (line for line in lines if line.startswith("pool"))
    assert pool == "pool of exact rules: 0.417 (12 images)"
    (lantern,) = (line for line in lines if line.startswith("| A lantern"))
    cells = [cell.strip() for cell in lantern.strip("|").split("|")]
    assert cells[1:3] == ["4", "0.250"]
    assert cells[3].startswith("+0.167 [")
    assert cells[4:] == ["2.000", "2.5", "63.0"]


def test_counts_are_read_from_the_notes() -> None:
    found = measure_draft.drawn_counts({"accepted": [3, 2, 1], "rescued": 4.0})
    assert found == {"accepted": 4, "verifications": 6, "rescued": 4.0}
    assert measure_draft.drawn_counts({}) == {"accepted": 0, "verifications": 0, "rescued": 0}


@pytest.fixture(scope="module")
def bench() -> samples.Bench:
    return samples.Bench("pictogram_16")


def test_a_file_is_continued(
    tmp_path: Path, bench: samples.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds is not measured again; the rest is, with the settings of the method."""
    path = tmp_path / "found.json"
    first = measure_draft.Found(path, 6, bench)
    first.measure_plain(1)
    drafter = measure_draft.new_drafter("draft", bench)
    first.measure_place(drafter.id)
    first.measure_method(drafter, "vvs_exact_4_cap_1", 1)

    content = json.loads(path.read_text())
    (place,) = content["places"].values()
    assert 0 < np.mean(place["accepted"]) < 1
    capped = content["drawn"][f"{drafter.id} vvs_exact_4_cap_1"]
    assert sum(capped["skipped"]) > 0
    assert sum(capped["accepted"]) > 0

    again = measure_draft.Found(path, 6, bench)
    monkeypatch.setattr(samples, "draw", lambda *_: pytest.fail("drawn again"))
    monkeypatch.setattr(samples, "teacher_forced", lambda *_: pytest.fail("compared again"))
    again.measure_plain(1)
    again.measure_place(drafter.id)
    again.measure_method(drafter, "vvs_exact_4_cap_1", 1)
    assert again.content == content


def test_a_file_of_other_prompts_is_refused(tmp_path: Path, bench: samples.Bench) -> None:
    path = tmp_path / "found.json"
    other = {"target": bench.model.revision, "tags": ["counting"], "drawn": {}, "places": {}}
    path.write_text(json.dumps(other))
    with pytest.raises(UserError, match="name another file"):
        measure_draft.Found(path, 6, bench)


def test_both_kinds_of_drafter_are_made(bench: samples.Bench) -> None:
    of_80 = SimpleNamespace(weights="pictogram_80", draft=bench.draft)
    assert measure_draft.new_drafter("eagle", of_80).id.startswith("eagle-")  # type: ignore
    assert measure_draft.new_drafter("draft", bench).id.startswith("pictogram_16-")
