"""The embedded TIIF-style benchmark.

Its texts are of the model's grammar, the judge understands its questions, and its answers are true
of what is drawn.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import get_class
from PIL import Image
from runs import folders, harness

from benchmarks.tiif.vqa_model import ImageAnswers, ImageQuestions, VQAJudge, write_message
from benchmarks.tiif_pictogram import GROUPS, TiifPictogram
from benchmarks.tiif_pictogram.detector_vqa import DetectorVQA
from harness.judges.pictogram import PictogramDetector
from harness.models.pictogram import world
from harness.models.pictogram.grammar import (
    CLASS_SETS,
    PROMPT_POSITIONS,
    parse_layout,
    vocabulary,
    words,
)
from harness.records import Prompt, UserError

CLASSES = CLASS_SETS["pictogram_80"]
EMPTY = np.zeros((48, 48, 3), np.uint8)


@dataclass(frozen=True)
class Seen:
    name: str
    box: tuple[float, float, float, float]
    color: str
    score: float = 0.9


class Perfect:
    """A detector that knows by a picture's bytes what was drawn; it finds nothing in any other."""

    id = "perfect"
    classes = CLASSES

    def __init__(self) -> None:
        self.drawn: dict[bytes, list[Seen]] = {}

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Seen]]:
        if any(image.shape != (48, 48, 3) for image in images):
            raise ValueError("not a picture of 48x48x3")
        return [self.drawn.get(image.tobytes(), []) for image in images]


@cache
def prompts(scenes: int = 90, seed: int = 0) -> list[Prompt]:
    judge = VQAJudge(DetectorVQA(Perfect()))
    return TiifPictogram(judge, scenes=scenes, seed=seed).prompts()


def draw_scene(prompt: Prompt, detector: Perfect) -> np.ndarray:
    """Draw what a prompt says, and tell the detector."""
    found = parse_layout(prompt.text)
    assert found is not None
    pixels, placed = world.draw_scene(found[0], random.Random(prompt.id), found[1])
    detector.drawn[pixels.tobytes()] = [
        Seen(one.name, one.box, one.color or "plain") for one in placed
    ]
    return pixels


def questions_of(prompt: Prompt, picture: np.ndarray) -> ImageQuestions:
    return ImageQuestions(prompt.id, prompt.spec["questions"], picture)


def test_prompts_are_pairs_of_six_dimensions_in_the_models_own_words() -> None:
    categories = [f"{n}/{d}" for n in ("short", "long") for d in GROUPS.dimensions]
    assert Counter(p.category for p in prompts()) == dict.fromkeys(categories, 15)
    assert len({p.text for p in prompts()}) == len({p.id for p in prompts()}) == 180
    for short, long in zip(prompts()[::2], prompts()[1::2], strict=True):
        assert (short.cluster, short.spec, short.weight) == (long.cluster, long.spec, long.weight)
        assert parse_layout(short.text) == parse_layout(long.text) is not None
        assert len(words(short.text)) < len(words(long.text)) <= PROMPT_POSITIONS
        assert set(words(long.text)) <= set(vocabulary())
        assert short.weight == len(short.spec["questions"]) == len(set(short.spec["questions"]))
        assert set(short.spec["answers"]) == {"yes", "no"}
    keys = Counter(answer for p in prompts() for answer in p.spec["answers"])
    assert 0.2 < keys["no"] / keys.total() < 0.3


def test_prompts_are_seeded_and_a_smaller_set_is_part_of_a_larger_one() -> None:
    assert [p.id for p in prompts(30)] != [p.id for p in prompts()]
    by_id = {p.id: p for p in prompts()}
    assert all(by_id[p.id] == p for p in prompts(30))
    assert not {p.text for p in prompts(6, seed=1)} & {p.text for p in prompts(6)}
    with pytest.raises(UserError, match=r"benchmark\.scenes=5: at least one for each of the 6"):
        prompts(5)
    with pytest.raises(UserError, match="different scenes of dimension numeracy cannot be had"):
        prompts(6 * 300)
    with pytest.raises(UserError, match=r"benchmark\.classes=birds: choose from pictogram_16"):
        TiifPictogram(VQAJudge(DetectorVQA(Perfect())), classes="birds")


def is_right(answered: ImageAnswers, prompt: Prompt) -> bool:
    return answered.answers == tuple(prompt.spec["answers"])


def test_the_right_answers_are_those_about_a_true_picture_only() -> None:
    detector = Perfect()
    judge = VQAJudge(DetectorVQA(detector))
    asked = [questions_of(p, draw_scene(p, detector)) for p in prompts()]
    for prompt, answered in zip(prompts(), judge.ask(asked), strict=True):
        assert is_right(answered, prompt), (prompt, answered)

    swapped = [ImageQuestions(a.key, a.questions, b.image) for a, b in pairwise(asked)]
    about_others = judge.ask(swapped)
    assert all(answered.answers for answered in about_others)
    right = [is_right(*pair) for pair in zip(about_others, prompts(), strict=False)]
    assert sum(right) < 0.55 * len(right)  # the two wordings of a scene show the same

    about_empty = judge.ask([questions_of(p, EMPTY) for p in prompts()])
    words_of_empty = {word for answered in about_empty for word in answered.answers or ()}
    assert words_of_empty == {"no"}


def test_the_shipped_judge_sees_what_is_drawn() -> None:
    detector = Perfect()
    some = prompts(36)
    judge = VQAJudge(DetectorVQA(PictogramDetector()))
    answered = judge.ask([questions_of(p, draw_scene(p, detector)) for p in some])
    right = []
    for one, prompt in zip(answered, some, strict=True):
        pairs = zip(one.answers or (), prompt.spec["answers"], strict=True)
        right += [answer == expected for answer, expected in pairs]
    assert np.mean(right) > 0.97
    assert judge.id.startswith("pictogram-judge-") and "-eyes-0.4-" in judge.id


def test_each_kind_of_question_is_answered_by_what_is_seen() -> None:
    detector = Perfect()
    picture = np.ones((48, 48, 3), np.uint8)
    detector.drawn[picture.tobytes()] = [
        Seen("bus", (2, 2, 18, 18), "red"),
        Seen("bus", (4, 28, 20, 44), "red"),
        Seen("cat", (30, 4, 46, 20), "white"),
        Seen("bus", (30, 28, 46, 44), "blue", score=0.3),  # below the threshold
    ]
    asked = {
        "Is there a bus in the image?": "yes: red bus 0.90, red bus 0.90",
        "Are there buses in the image?": "yes: red bus 0.90, red bus 0.90",
        "Is there an apple in the image?": "no: nothing",
        "Is the number of buses 2?": "yes: red bus 0.90, red bus 0.90",
        "Is the number of buses on the top 1?": "yes: red bus 0.90",
        "Is the number of buses on the right 0?": "yes: nothing",
        "Are the buses red?": "yes: red bus 0.90, red bus 0.90",
        "Is the cat black?": "no: white cat 0.90",
        "Is the dog black?": "no: nothing",
        "Is the bus left of the cat?": "yes: red bus 0.90, white cat 0.90, left of",
        "Is the bus right of the cat?": "no: red bus 0.90, white cat 0.90, left of",
        "Is the bus below the dog?": "no: red bus 0.90, nothing, no relation",
    }
    model = DetectorVQA(detector)
    (reply,) = model.reply([write_message("any", list(asked))], [picture], "")
    assert reply is not None and reply.splitlines() == list(asked.values())
    (reply,) = model.reply(["Is it art?"], [picture], "")
    assert reply == "Unknown: no question that a detector understands"
    small = np.zeros((9, 9, 3), np.uint8)
    replies = model.reply(["Is there a bus in the image?"] * 2, [picture, small], "")
    assert replies == ["yes: red bus 0.90, red bus 0.90", "Unreadable: not a picture of 48x48x3"]


def test_configurations_of_older_runs_still_name_the_judge() -> None:
    assert get_class("benchmarks.tiif.interview.Interview") is VQAJudge
    assert get_class("benchmarks.tiif_pictogram.looking.Eyes") is DetectorVQA


def test_a_run_of_the_embedded_model_is_summed_up(tmp_path: Path) -> None:
    command = ("benchmark=tiif_pictogram", "benchmark.prompts=12", "sampler.slots=24")
    code, output = harness(tmp_path, *command, "stages=[generate,score]")
    assert code == 0, output
    (folder,) = folders(tmp_path)
    summary = (folder / "summary.txt").read_text()
    cells = dict(re.findall(r"^(\S+) +(\d\S+ / \d\S+)$", summary, re.MULTILINE))
    assert set(cells) == {*GROUPS.dimensions, "basic", "advanced", "overall"}

    overall = []
    for side in (0, 1):
        found = {name: float(cell.split(" / ")[side]) for name, cell in cells.items()}
        basic = np.mean([found[dimension] for dimension in GROUPS.dimensions[:3]])
        assert found["basic"] == pytest.approx(basic, abs=0.02)
        both = (found["basic"] + found["advanced"]) / 2
        assert found["overall"] == pytest.approx(both, abs=0.02)
        overall.append(found["overall"])
    score = float(summary.partition(", score ")[2].split()[0])
    assert 10 < score < 100 and score == pytest.approx(np.mean(overall), abs=0.02)

    picture = next(folder.rglob("images/numeracy/long/0/0.png"))
    assert Image.open(picture).size == (48, 48)
    before = (folder / "scores.jsonl").read_bytes()
    assert harness(tmp_path, *command, "stages=[score]")[0] == 0
    assert (folder / "scores.jsonl").read_bytes() == before
