"""The embedded model's benchmark: which prompts it takes, and how it scores images."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.embedded import BATCH
from benchmarks.geneval.prompts import TASKS
from benchmarks.pictogram import Pictogram
from harness.download import cached_path
from harness.records import Prompt, Score, UserError

SHARED = Path(__file__).parents[2] / "shared" / "data" / "geneval"


@dataclass(frozen=True)
class Seen:
    name: str
    box: tuple[float, float, float, float]
    score: float
    color: str


class FakeDetector:
    """Sees as many red cats as the first pixel says; reads 4x4 pixels only."""

    id = "fake@1"
    classes = ("cat", "dog", "cup", "book")

    def __init__(self) -> None:
        self.calls: list[int] = []

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Seen]]:
        self.calls.append(len(images))
        if any(image.shape != (4, 4, 3) or image.dtype != np.uint8 for image in images):
            raise ValueError("not a picture of 4x4x3")
        cat = Seen("cat", (0, 0, 2.04, 2), 0.5, "red")
        return [[cat] * int(image[0, 0, 0]) for image in images]


CATS = Prompt("t/0", "", "counting", {"tag": "counting", "include": [{"class": "cat", "count": 2}]})


def picture(path: Path, cats: int, size: int = 4, mode: str = "RGB") -> Path:
    Image.new("RGB", (size, size), (cats, 0, 0)).convert(mode).save(path)
    return path


def test_prompts_are_seeded_distinct_and_of_all_tasks() -> None:
    first, again, other = (
        Pictogram(FakeDetector(), total=60, seed=seed).prompts() for seed in (0, 0, 1)
    )
    assert first == again != other
    assert {prompt.category for prompt in first} == set(TASKS)
    assert len({prompt.text for prompt in first}) == 60
    assert first[7].id == "pictogram/00007"


def test_fewer_prompts_are_an_even_subset_under_the_same_ids() -> None:
    full, some, fewer = (Pictogram(FakeDetector(), total=60, prompts=k) for k in (60, 20, 13))
    count = Counter(prompt.category for prompt in some.prompts())
    assert len(some.prompts()) == 20
    assert max(count.values()) - min(count.values()) == 1
    assert set(ids(fewer)) < set(ids(some)) < set(ids(full))
    assert ids(some) == sorted(ids(some))


def test_small_tasks_give_what_they_have() -> None:
    benchmark = Pictogram(FakeDetector(), total=120, prompts=60)
    count = Counter(prompt.category for prompt in benchmark.prompts())
    assert count["single_object"] == 4  # four classes are known
    assert sum(count.values()) == 60
    assert count["position"] - count["color_attr"] in (0, 1)


def ids(benchmark: Pictogram) -> list[str]:
    return [prompt.id for prompt in benchmark.prompts()]


def test_impossible_numbers_are_refused() -> None:
    for wanted in (0, 61):
        with pytest.raises(UserError, match=f"benchmark.prompts={wanted}: choose from 1 to the 60"):
            Pictogram(FakeDetector(), total=60, prompts=wanted)
    with pytest.raises(UserError, match=r"benchmark\.total=99999: 4 classes give"):
        Pictogram(FakeDetector(), total=99_999)
    with pytest.raises(UserError, match=r"benchmark\.images=0"):
        Pictogram(FakeDetector(), images=0)


def row(name: str) -> str:
    """Write a line of a metadata file: a prompt for one object."""
    include = [{"class": name, "count": 1}]
    return json.dumps({"tag": "single_object", "include": include, "prompt": name}) + "\n"


def test_official_prompts_of_unknown_classes_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text(row("cat") + row("wolf") + row("dog"))
    with caplog.at_level(logging.WARNING):
        benchmark = Pictogram(FakeDetector(), metadata=str(path))
    assert benchmark.left_out == 1
    assert ids(benchmark) == ["geneval/00000", "geneval/00002"]
    assert "1 of 3 prompts left out: they name 1 classes unknown to fake@1 (wolf)" in caplog.text
    path.write_text(row("wolf"))
    with pytest.raises(UserError, match="each of its 1 prompts names a class unknown"):
        Pictogram(FakeDetector(), metadata=str(path))


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="GenEval's data files are not beside the repository"
)
def test_the_official_file_is_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached_path("geneval").mkdir(parents=True)
    shutil.copy(SHARED / "evaluation_metadata.jsonl", cached_path("geneval"))
    benchmark = Pictogram(FakeDetector(), metadata="official")
    by_path = Pictogram(FakeDetector(), metadata=str(SHARED / "evaluation_metadata.jsonl"))
    assert ids(benchmark) == ids(by_path)
    assert len(benchmark.prompts()) + benchmark.left_out == 553
    clauses = [clause for prompt in benchmark.prompts() for clause in prompt.spec["include"]]
    assert {clause["class"] for clause in clauses} <= set(FakeDetector.classes)


def test_images_are_judged_in_order_and_in_batches(tmp_path: Path) -> None:
    detector = FakeDetector()
    paths = [picture(tmp_path / f"{i}.png", cats=i % 4) for i in range(BATCH + 3)]
    scores = list(Pictogram(detector, total=12).score((CATS, path) for path in paths))
    assert [score.image for score in scores] == list(range(BATCH + 3))
    assert [score.value for score in scores[:4]] == [0.0, 0.0, 1.0, 1.0]
    assert detector.calls == [BATCH, 3]
    assert scores[1].detail == {
        "reasons": ["expected cat>=2, found 1"],
        "kept": {"cat": [[0.0, 0.0, 2.0, 2.0, 0.5, "red"]]},
    }
    assert scores[2].judge == "fake@1"
    assert Score.from_json(scores[1].to_json()) == scores[1]


def test_the_threshold_holds_for_counting_too(tmp_path: Path) -> None:
    path = picture(tmp_path / "0.png", 2)
    values = []
    for threshold in (0.4, 0.5):
        benchmark = Pictogram(FakeDetector(), total=12, threshold=threshold)
        (score,) = benchmark.score([(CATS, path)])
        values.append(score.value)
    assert values == [1.0, 0.0]


def test_what_cannot_be_judged_has_no_value_and_spoils_nothing(tmp_path: Path) -> None:
    good = picture(tmp_path / "0.png", 2)
    transparent = picture(tmp_path / "1.png", 2, mode="RGBA")
    large = picture(tmp_path / "2.png", 2, size=5)
    missing = tmp_path / "3.png"
    torn = tmp_path / "4.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(torn)
    torn.write_bytes(torn.read_bytes()[:3000])
    empty = tmp_path / "5.png"
    empty.touch()

    items = [(CATS, path) for path in (good, transparent, large, missing, torn, empty)]
    scores = list(Pictogram(FakeDetector(), total=12).score(items))
    assert [score.value for score in scores] == [1.0, 1.0, None, None, None, None]
    assert scores[2].detail == {"unjudged": "not a picture of 4x4x3"}
    assert scores[3].detail == {"unjudged": "3.png is missing"}
    assert all("cannot be read" in score.detail["unjudged"] for score in scores[4:])
    assert all(str(tmp_path) not in score.to_json() for score in scores)
