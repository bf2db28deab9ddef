"""T2I-CompBench++: our rules are the reference's, parses belong to the official prompts, and what
an evaluator has not said yet is no score."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_runs import make_run
from PIL import Image

import benchmarks.t2i_compbench.prompts as prompts_module
from benchmarks.boxes import Found
from benchmarks.compbench_pictogram import CompbenchPictogram
from benchmarks.t2i_compbench import depth, open_vocabulary
from benchmarks.t2i_compbench.benchmark import NEEDS, T2ICompBench
from benchmarks.t2i_compbench.blip import BlipVqa
from benchmarks.t2i_compbench.blip_network import (
    BlipSpec,
    answer_logits,
    build_network,
    encode_pictures,
    encode_questions,
    load_checkpoint,
)
from benchmarks.t2i_compbench.boxes import resized_sides
from benchmarks.t2i_compbench.clip import ClipScore
from benchmarks.t2i_compbench.conformance import KINDS, conformance
from benchmarks.t2i_compbench.depth import DptDepth
from benchmarks.t2i_compbench.evaluators import Picture
from benchmarks.t2i_compbench.imported_detections import RESULTS, ImportedDetections
from benchmarks.t2i_compbench.layout import export_run
from benchmarks.t2i_compbench.numeracy import class_of, find_counts
from benchmarks.t2i_compbench.open_vocabulary import OpenVocabulary
from benchmarks.t2i_compbench.parser import ParsedText, Parser, derive_parse
from benchmarks.t2i_compbench.prompts import (
    CATEGORIES,
    are_findable,
    can_be_found,
    derive_key,
    load_parses,
    read_own_prompts,
    read_prompts,
)
from benchmarks.t2i_compbench.spatial import find_complex_objects
from harness.check.originals import check_parity
from harness.engine.memory_need import SamplerShape, count_weights, list_declared
from harness.judges.pictogram import PictogramDetector
from harness.models.pictogram import world
from harness.models.pictogram.grammar import PROMPT_POSITIONS, parse, words
from harness.records import MemoryPart, Prompt, UserError
from harness.results.leaderboard import build
from harness.results.report.collect import panels
from harness.results.report.data import describe_panel

SHARED = Path(__file__).parents[2] / "shared"
LISTS = SHARED / "data" / "t2i_compbench"
FIXTURE = SHARED / "fixtures" / "blip_vqa_tiny"
needs_lists = pytest.mark.skipif(not LISTS.is_dir(), reason="the prompt lists are not here")


# ------------------------------------------------------------------ the reference's answers


@needs_lists
def test_every_recorded_answer_of_the_reference_is_ours() -> None:
    passed, failed, messages = conformance(LISTS / "conformance.jsonl")
    assert (passed, failed, messages) == (241, 0, [])


@needs_lists
def test_a_wrong_answer_of_every_kind_is_noticed(tmp_path: Path) -> None:
    """Each kind of case fails once its expected numbers, texts or lists are others."""
    cases = map(json.loads, filter(str.strip, (LISTS / "conformance.jsonl").open()))
    altered: dict[str, dict[str, Any]] = {}
    for case in cases:
        if case["kind"] not in altered:
            expected = {name: _alter(value) for name, value in case["expected"].items()}
            altered[case["kind"]] = {**case, "expected": expected}
    file = tmp_path / "altered.jsonl"
    file.write_text("".join(json.dumps(case) + "\n" for case in altered.values()))
    assert set(altered) == set(KINDS)
    assert conformance(file)[:2] == (0, len(KINDS))


def _alter(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, value[0]]
    return value + "x" if isinstance(value, str) else value + 0.01


@pytest.mark.skipif(not FIXTURE.is_dir(), reason="the parity fixture is not here")
def test_blip_answers_as_the_reference_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_parity(FIXTURE, "cpu") == 0
    assert "9 passed, 0 failed" in capsys.readouterr().out


# ------------------------------------------------------------------ prompts and their parses


@needs_lists
def test_every_official_prompt_has_its_parse_and_no_other_has_one() -> None:
    prompts, version = read_prompts(CATEGORIES, "current", str(LISTS))
    assert Counter(prompt.category for prompt in prompts) == dict.fromkeys(CATEGORIES, 300)
    assert version == "1b709499+parses-3.8"
    assert {name: len(rows) for name, rows in load_parses().items()} == dict.fromkeys(
        CATEGORIES, 300
    )
    with pytest.raises(UserError, match="no official prompt of category color"):
        derive_key("color", "a green bench and a bowl of my own")


@needs_lists
def test_parses_are_those_that_were_recorded() -> None:
    rows = map(json.loads, filter(str.strip, (LISTS / "parses.jsonl").open()))
    for row in rows:
        key = derive_key(row["category"], row["prompt"])
        assert key.get("phrases") == row.get("phrases")
        assert key.get("relation") == row.get("relation")
        if row["category"] == "numeracy":
            counts = find_counts(row["prompt"].replace(",", " ,").split())
            assert [noun for noun, _ in counts] == row["words"]
            assert key["counts"] == [[class_of(noun), count] for noun, count in counts]
        elif row.get("objects"):
            assert key.get("objects", [None, None]) == row["objects"]
        if row["category"] == "complex":
            assert key["clip_text"] == row["clip_text"]


@needs_lists
def test_a_third_of_the_positions_cannot_be_reached() -> None:
    prompts, _ = read_prompts(["spatial", "3d_spatial"], "current", str(LISTS))
    lost = Counter(prompt.category for prompt in prompts if not can_be_found(prompt))
    assert lost == {"spatial": 100, "3d_spatial": 20}


@needs_lists
def test_complex_prompts_are_averaged_as_their_lists_say() -> None:
    prompts, _ = read_prompts(["complex"], "current", str(LISTS))
    kinds = Counter(prompt.spec["kind"] for prompt in prompts)
    assert kinds == {"spatial": 58, "action": 212, "both": 30}


@needs_lists
@pytest.mark.parametrize("problem", ["hash", "missing", "category", "color_list"])
def test_another_list_is_refused_with_the_remedy(problem: str, tmp_path: Path) -> None:
    given = {"categories": ["color"], "color_list": "current", "metadata": str(tmp_path)}
    expected = "color_val.txt is not there; set benchmark.metadata=PATH"
    if problem == "hash":
        (tmp_path / "color_val.txt").write_text("a green bench\n")
        expected = "has sha256 .* the list of 1b709499 has 1634"
    elif problem == "category":
        given["categories"] = ["colour"]
        expected = "'colour' is none of color, shape"
    elif problem == "color_list":
        given["color_list"] = "new"
        expected = "benchmark.color_list=new: choose from current, older"
    with pytest.raises(UserError, match=expected):
        read_prompts(**given)  # type: ignore[arg-type]


# ------------------------------------------------------------------ prompts of one's own


def words_of(**parts: str) -> tuple[tuple[str, str], ...]:
    """Words with their parts of speech, such as DET="the"; more of a part are numbered: DET2."""
    return tuple((word, name.rstrip("0123456789")) for name, word in parts.items())


@dataclass
class SpokenParser:
    """A parser that was told what to say; the real one is spaCy, an extra."""

    said: ParsedText
    id: str = "spacy-3.8.7-en_core_web_sm-3.8.0"

    def parse(self, text: str) -> ParsedText:
        return self.said


def test_prompts_of_ones_own_are_parsed_as_the_official_ones_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = words_of(DET="a", NOUN="cat", ADP="on", DET2="the", NOUN2="left", ADP2="of")
    said = ParsedText(("a cat", "the left", "a zebrafish"), (*tokens, ("zebrafish", "NOUN")))
    monkeypatch.setattr(prompts_module, "Parser", lambda: SpokenParser(said))
    text = "a cat on the left of a zebrafish"
    for category in ("color", "spatial"):
        (tmp_path / f"{category}_val.txt").write_text(f"{text}\n")
    prompts, version = read_own_prompts(None, str(tmp_path))
    assert [prompt.spec for prompt in prompts] == [
        {"phrases": ["a cat", "a zebrafish"]},
        {"objects": ["cat", "zebrafish"], "findable": False, "relation": "on the left of"},
    ]
    assert version.startswith("own-")
    assert version.endswith("+spacy-3.8.7-en_core_web_sm-3.8.0")

    benchmark = T2ICompBench(Said(), Said(), Said(), Said(), metadata=str(tmp_path), own=True)
    assert benchmark.version == version
    assert "spatial: 1 of 1 prompts name an object" in "\n".join(benchmark.summarise([]))


@pytest.mark.parametrize(
    ("category", "text", "problem"),
    [
        ("color", "a red_ball", "take out '_' and '/'"),
        ("color", "running", "no noun phrase to ask about"),
        ("spatial", "a cat under a dog", "none of the relations on side of, next to"),
        ("numeracy", "cats", "names no number"),
    ],
)
def test_a_prompt_of_ones_own_that_cannot_be_scored_is_named(
    category: str, text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ParsedText((), words_of(NOUN=text))
    monkeypatch.setattr(prompts_module, "Parser", lambda: SpokenParser(said))
    (tmp_path / f"{category}_val.txt").write_text(f"{text}\n")
    with pytest.raises(UserError, match=f"prompt 1, .*{problem}"):
        read_own_prompts([category], str(tmp_path))


def test_without_spacy_the_command_to_type_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.optional.find_spec", lambda _: None)
    (tmp_path / "color_val.txt").write_text("a red ball\n")
    with pytest.raises(UserError, match=r"pip install 'visual-ar-tts\[t2i_compbench\]'"):
        read_own_prompts(None, str(tmp_path))
    with pytest.raises(UserError, match=r"no list is there, such as color_val\.txt"):
        read_own_prompts(None, str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"set benchmark\.metadata=PATH to a folder"):
        read_own_prompts(None, None)


def test_a_color_that_the_parser_takes_for_a_name_is_no_object() -> None:
    """As in "next to the white lamp", both words proper nouns to the parser."""
    before = words_of(NOUN="plant", ADP="next", ADP2="to", DET="the")
    assert find_complex_objects((*before, ("white", "PROPN"), ("lamp", "PROPN"))) == (
        "plant",
        "lamp",
    )
    longer = (("white", "PROPN"), ("satin", "PROPN"), ("ribbon", "NOUN"), ("shop", "NOUN"))
    assert find_complex_objects((*before, *longer)) == ("plant", "ribbon")


@needs_lists
def test_shipped_parses_know_which_objects_have_a_class() -> None:
    prompts, _ = read_prompts(["spatial", "3d_spatial", "complex"], "current", str(LISTS))
    with_objects = [prompt for prompt in prompts if "objects" in prompt.spec]
    for prompt in with_objects:
        found = are_findable(prompt.category, prompt.spec["objects"])
        assert found == prompt.spec["findable"], prompt


@needs_lists
def test_spacy_parses_the_official_prompts_as_they_are_shipped() -> None:
    pytest.importorskip("spacy", reason="spaCy is an extra: it parses prompts of one's own")
    parser = Parser()
    prompts, _ = read_prompts(CATEGORIES, "current", str(LISTS))
    for prompt in prompts[::40]:
        parse = derive_parse(prompt.category, prompt.text, parser.parse(prompt.text))
        assert {**parse, "kind": ""} == {
            **{name: prompt.spec[name] for name in parse},
            "kind": "",
        }


# ------------------------------------------------------------------ the benchmark's seams


@dataclass
class Said:
    """An evaluator that says what it is given, and counts what it is asked."""

    id: str = "said"
    random: bool = False
    missing: str = ""
    protocol: str = ""
    chance: float = 0.5
    cosine: float = 0.25
    found: Sequence[Found] | None = ()
    asked: list[object] = field(default_factory=list)

    def load(self) -> None:
        self.asked.append("load")

    def answer(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[float]:
        self.asked += [question for _, question in asked]
        return [self.chance] * len(asked)

    def detect(self, pictures: Sequence[Picture]) -> list[list[Found] | None]:
        self.asked += [picture.names for picture in pictures]
        return [None if self.found is None else list(self.found) for _ in pictures]

    def estimate(self, pictures: Sequence[Picture]) -> list[np.ndarray | None]:
        return [np.ones((479, 479), np.float32) for _ in pictures]

    def compare(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[tuple[float, bool]]:
        self.asked += [text for _, text in asked]
        return [(self.cosine, False)] * len(asked)


def make_benchmark(**options: Any) -> T2ICompBench:
    parts = {name: options.pop(name, Said()) for name in ("blip", "detector", "depth", "clip")}
    return T2ICompBench(**parts, metadata=str(LISTS), **options)


def draw_images(folder: Path, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Path]]:
    items = []
    for prompt in prompts:
        path = folder / prompt.id / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(path)
        items.append((prompt, path))
    return items


@needs_lists
def test_each_category_is_scored_by_its_rule(tmp_path: Path) -> None:
    found = [Found("giraffe", (0, 0, 10, 10), 0.8), Found("lamp", (20, 0, 30, 10), 0.6)]
    blip = Said(chance=0.5)
    benchmark = make_benchmark(blip=blip, detector=Said(found=found), prompts=8, images=1)
    scores = list(benchmark.score(draw_images(tmp_path, benchmark.prompts())))
    value = {score.prompt_id.split("/")[1]: score.value for score in scores}
    assert value["color"] == 0.25  # two phrases, each with a chance of one half
    assert value["spatial"] == pytest.approx(0.25 * 0.8 + 0.25 * 0.6 + 0.5)
    assert value["non_spatial"] == 0.25
    assert value["complex"] == pytest.approx((0 + 0.25) / 2)  # its objects were not found
    assert "a green bench?" in blip.asked
    assert {score.judge for score in scores} == {benchmark.judge.id}


@needs_lists
def test_an_image_without_detections_waits_and_a_broken_file_is_unjudged(tmp_path: Path) -> None:
    benchmark = make_benchmark(
        detector=Said(found=None), categories=["color", "numeracy"], prompts=4, images=1
    )
    items = draw_images(tmp_path, benchmark.prompts())
    items[0][1].write_bytes(b"no picture")
    scores = list(benchmark.score(items))
    assert [score.prompt_id.split("/")[1] for score in scores] == ["color", "color"]
    assert [score.value for score in scores] == [None, 0.25]


@needs_lists
def test_a_cosine_below_zero_is_no_score_but_stays_in_the_result_file(tmp_path: Path) -> None:
    benchmark = make_benchmark(clip=Said(cosine=-0.1), categories=["non_spatial"], prompts=1)
    (score,) = benchmark.score(draw_images(tmp_path, benchmark.prompts()))
    assert score.value == 0
    (text,) = benchmark.files([score], tmp_path).values()
    assert json.loads(text) == [{"question_id": 0, "answer": -0.1}]


@needs_lists
def test_versions_tell_protocols_apart() -> None:
    assert make_benchmark().version == "1b709499+parses-3.8"
    substitute = make_benchmark(detector=Said(protocol="detector=other"), images=4)
    assert substitute.version == "1b709499+parses-3.8+detector=other+images=4"
    without = make_benchmark(detector=Said(protocol="detector=other"), categories=["color"])
    assert without.version == "1b709499+parses-3.8"  # nobody asks it


@needs_lists
def test_what_is_missing_is_named_before_anything_is_drawn() -> None:
    with pytest.raises(UserError, match=r"color, shape, texture, complex cannot be judged: set "):
        make_benchmark(blip=BlipVqa())
    make_benchmark(blip=BlipVqa(), categories=["numeracy"])
    excluded = make_benchmark(blip=Said(id="blip-random", random=True)).excluded
    assert excluded.startswith("blip-random: random weights")


@needs_lists
def test_the_summary_says_what_cannot_be_reached(tmp_path: Path) -> None:
    benchmark = make_benchmark(categories=["spatial"], images=2)
    scores = list(benchmark.score(draw_images(tmp_path, benchmark.prompts()[:2])))
    lines = "\n".join(benchmark.summarise(scores))
    assert "spatial: 100 of 300 prompts name an object that no class" in lines
    assert "MARKED: 2 images a prompt where the papers have 10" in lines
    assert "PARTIAL: 2 of 600 images" in lines
    assert "both objects found in 0.0 % of images" in lines


@needs_lists
def test_a_substitute_is_never_ranked_with_the_reference(tmp_path: Path) -> None:
    """They are on boards of their own, and only the reference's says what it cannot reach."""
    for method, n, detector in (
        ("plain", None, Said()),
        ("best_of_n", 4, Said()),
        ("gridar", 4, Said(protocol="detector=other")),
    ):
        made = make_benchmark(detector=detector, categories=["spatial"])
        about = {"version": made.version} | ({"remark": made.remark} if made.remark else {})
        make_run(tmp_path, method, n=n, benchmark="t2i_compbench", **about)
    board = build(tmp_path)
    reference, substitute = sorted(panels(board), key=lambda panel: panel.protocol.version)
    assert [one.run.about["method"] for one in substitute.shown] == ["gridar"]
    assert substitute.shown[0].plain is None
    assert "detector=other" in substitute.protocol.version
    assert len(reference.shown) == 2
    assert (substitute.remark, "100 of 300" in reference.remark) == ("", True)
    assert describe_panel(reference, tmp_path)["remark"] == reference.remark


@needs_lists
def test_a_run_exported_is_found_again_by_its_names(tmp_path: Path) -> None:
    run = tmp_path / "run"
    benchmark = make_benchmark(categories=["color", "numeracy"], prompts=4, images=2)
    jobs = []
    for prompt in benchmark.prompts():
        category, index = prompt.id.split("/")[1:]
        for image in range(2):
            path = run / "images" / category / index / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (int(index), image, len(category))).save(path)
        jobs.append({"prompt_id": prompt.id, "text": prompt.text, "images": 2})
    (run / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    assert export_run(run, tmp_path / "out") == (8, 0)

    imported = make_benchmark(
        categories=["color", "numeracy"], prompts=4, images=str(tmp_path / "out")
    )
    assert imported.images == 2
    assert len(imported.found) == 8
    for (prompt_id, image), path in imported.found.items():
        source = run / "images" / prompt_id.removeprefix("t2i_compbench/") / f"{image}.png"
        assert path.read_bytes() == source.read_bytes()
    assert imported.excluded.startswith("images made elsewhere")


@needs_lists
def test_every_category_names_its_evaluators() -> None:
    assert tuple(NEEDS) == CATEGORIES


# ------------------------------------------------------------------ detections made elsewhere


def write_rows(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROW = {"category": "spatial", "index": 3, "image": 1, "detections": []}


def test_detections_are_those_of_the_image(tmp_path: Path) -> None:
    Image.new("L", (10, 5), 51).save(tmp_path / "depth.png")
    cat = {"class": "cat", "box": [1, 2, 3, 4], "score": 0.5}
    row = {**ROW, "detections": [cat], "depth": "depth.png"}
    imported = ImportedDetections(write_rows(tmp_path / "found.jsonl", row))
    pixels = np.zeros((100, 200, 3), np.uint8)
    known = Picture("t2i_compbench/spatial/3", 1, pixels)
    unknown = Picture("t2i_compbench/spatial/3", 0, pixels)
    assert imported.detect([known, unknown]) == [[Found("cat", (1, 2, 3, 4), 0.5)], None]
    depth, none = imported.estimate([known, unknown])
    assert none is None
    assert depth is not None
    assert depth.shape == (240, 480)
    assert np.allclose(depth, 0.2)


def write_scores(folder: Path, category: str, *answers: tuple[int, object]) -> None:
    path = folder / RESULTS[category]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"question_id": i, "answer": value} for i, value in answers]))


@needs_lists
def test_the_references_own_scores_are_those_of_the_run(tmp_path: Path) -> None:
    """By the running number of an exported image; an image that was not judged waits."""
    write_scores(tmp_path, "spatial", (0, 0.75), (1, 0.5))
    write_scores(tmp_path, "3d_spatial", (0, "0.25"))
    write_scores(tmp_path, "complex", (0, 0.5))
    benchmark = make_benchmark(
        detector=ImportedDetections(str(tmp_path)),
        depth=ImportedDetections(),
        categories=["spatial", "3d_spatial", "numeracy", "complex"],
        images=1,
        prompts=8,
    )
    benchmark.ready()
    scores = list(benchmark.score(draw_images(tmp_path / "drawn", benchmark.prompts())))
    value = {score.prompt_id.removeprefix("t2i_compbench/"): score.value for score in scores}
    assert {name: value[name] for name in ("spatial/0", "spatial/1", "3d_spatial/0")} == {
        "spatial/0": 0.75,
        "spatial/1": 0.5,
        "3d_spatial/0": 0.25,
    }
    key = benchmark.prompts()[-2].spec
    assert key["kind"] == "spatial"  # half the position, half the attributes
    attribute = 0.5 ** len(key["phrases"])
    assert value["complex/0"] == pytest.approx((0.5 + attribute) / 2, abs=1e-4)
    assert len(value) == 4  # nobody judged the others


@needs_lists
def test_scores_of_the_reference_are_of_depth_maps_as_it_reads_them(tmp_path: Path) -> None:
    write_scores(tmp_path, "3d_spatial", (0, 0.25))
    upright = make_benchmark(
        detector=ImportedDetections(str(tmp_path)), categories=["3d_spatial"], upright=True
    )
    with pytest.raises(UserError, match="leave upright out"):
        upright.ready()


@pytest.mark.parametrize("answer", [1.5, "nan", "yes", None])
def test_a_result_file_with_another_answer_is_refused(answer: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the reference has judged nothing there"):
        ImportedDetections(str(tmp_path)).load()
    write_scores(tmp_path, "numeracy", (0, answer))
    with pytest.raises(UserError, match=r"vqa_result\.json: no result file"):
        ImportedDetections(str(tmp_path)).load()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"depth": 3}, "'depth' must be the name of a picture"),
        ({"index": -1}, "'index' must be a whole number from 0, found -1"),
        ({"category": None}, "'category' must be a name"),
        ({"detections": {}}, "'detections' must be a list"),
        ({"detections": [{"class": "cat", "box": [1, 2, 3], "score": 1}]}, "four numbers"),
        ({"detections": [{"class": "cat", "box": [1, 2, 3, 4], "score": None}]}, "four numbers"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "found.jsonl", {**ROW, "index": 7}, {**ROW, **change})
    with pytest.raises(UserError, match=f"found.jsonl, line 2: .*{problem}"):
        ImportedDetections(file).load()


def test_an_image_has_one_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2: a second row of image 1"):
        ImportedDetections(write_rows(tmp_path / "found.jsonl", ROW, ROW)).load()


def test_pictures_are_resized_as_the_reference_does() -> None:
    assert resized_sides(512, 512) == (479, 479)
    assert resized_sides(200, 100) == (480, 240)


# ------------------------------------------------------------------ networks


def test_every_network_declares_what_it_takes_of_the_device() -> None:
    """Weights are counted on a network without memory; batches count by what is in them."""
    parts: dict[str, MemoryPart] = {}
    of_one = make_networks(batch=1)
    for evaluator in of_one:
        for part in evaluator.memory_need(None, ON_CPU):
            parts[part.name] = part
            assert (part.held, part.device) == (0, "cpu")
    with torch.device("meta"):
        sizes = {
            "BLIP VQA": count_weights(build_network(BlipSpec())),
            "DPT": count_weights(depth.build_network()),
            "OWLv2": count_weights(open_vocabulary.build_network()),
        }
    for name, size in sizes.items():
        assert parts[name].fixed == pytest.approx(size, rel=0.01)
        assert parts[f"{name}'s pictures"].fixed > 1e8
    assert parts["CLIP"].fixed == 4 * 151_000_000  # of ViT-B/32, not of GenEval's ViT-L/14
    for one, three in zip(of_one, make_networks(batch=3), strict=True):
        ratio = 1 if isinstance(one, OpenVocabulary | DptDepth) else 3
        many = three.memory_need(None, ON_CPU)[1].fixed
        assert many == ratio * one.memory_need(None, ON_CPU)[1].fixed


ON_CPU = SamplerShape(torch.device("cpu"), 1, (1, 1), 1)


def make_networks(batch: int) -> tuple[BlipVqa, OpenVocabulary, DptDepth, ClipScore]:
    return (
        BlipVqa(weights="random", device="cpu", batch=batch),
        OpenVocabulary(weights="random", device="cpu"),
        DptDepth(weights="random", device="cpu"),
        ClipScore("ViT-B-32-quickgelu", "random", device="cpu", batch=batch),
    )


@needs_lists
def test_a_run_counts_the_memory_of_the_evaluators_that_it_needs() -> None:
    blip, detector, of_depth, clip = make_networks(batch=1)
    evaluators = {"blip": blip, "detector": detector, "depth": of_depth, "clip": clip}
    for categories, names in (
        (None, {"BLIP VQA", "OWLv2", "DPT", "CLIP"}),
        (["numeracy"], {"OWLv2"}),
    ):
        benchmark = make_benchmark(**evaluators, categories=categories)
        found = list_declared([benchmark.judge], None, ON_CPU)  # type: ignore[arg-type]
        assert {part.name for part in found if "'s" not in part.name} == names
        assert all(part.is_declared for part in found)


def test_the_depth_network_has_the_neck_of_the_published_one() -> None:
    """Two stages are the convolutional network's own, two are the transformer's, at 1/16 and 1/32.

    The default neck of the library resizes all four, and has other maps.
    """
    maps: list[torch.Tensor] = []
    with torch.device("meta"), torch.inference_mode():
        network = depth.build_network().eval()
        network.neck.reassemble_stage.register_forward_hook(lambda *made: maps.extend(made[-1]))
        found = network(pixel_values=torch.zeros(1, 3, 384, 384)).predicted_depth
    assert found.shape == (1, 384, 384)
    shapes = [tuple(one.shape[1:]) for one in maps]
    assert shapes == [(256, 96, 96), (512, 48, 48), (768, 24, 24), (768, 12, 12)]


TINY = BlipSpec(
    image_size=32,
    vision_width=8,
    vision_layers=1,
    vision_heads=2,
    text_width=8,
    text_layers=1,
    text_heads=2,
    text_inner=16,
    text_positions=40,
)


def test_questions_of_one_length_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network = build_network(TINY)
    picture_BPD = encode_pictures(network, torch.randn(3, 3, 32, 32))
    ids_QW = torch.randint(1000, 2000, (3, 5))
    together = answer_logits(network, encode_questions(network, ids_QW, picture_BPD))
    for row in range(3):
        one = encode_questions(network, ids_QW[row : row + 1], picture_BPD[row : row + 1])
        torch.testing.assert_close(answer_logits(network, one)[0], together[row])


@pytest.mark.parametrize("problem", ["file", "tensor", "shape", "unknown"])
def test_another_checkpoint_is_refused(problem: str, tmp_path: Path) -> None:
    path = tmp_path / "blip.pth"
    released = {"visual_encoder.pos_embed": torch.zeros(1, 5, 8)}
    expected = "lacks the tensor"
    if problem == "file":
        path.write_bytes(b"PK no checkpoint")
        expected = "is no checkpoint of BLIP's VQA network"
    elif problem == "shape":
        released["visual_encoder.cls_token"] = torch.zeros(1, 1, 9)
        expected = r"class_embedding has shape \(1, 1, 9\)"
    if problem != "file":
        torch.save({"model": released} if problem != "unknown" else released, path)
    if problem == "unknown":
        expected = "is no checkpoint of BLIP's VQA network"
    with pytest.raises(UserError, match=expected):
        load_checkpoint(build_network(TINY), path)


# ------------------------------------------------------------------ the embedded twin


@pytest.fixture(scope="module")
def twin() -> CompbenchPictogram:
    return CompbenchPictogram(PictogramDetector(), total=80)


def test_prompts_are_of_the_models_grammar_and_a_smaller_number_is_a_subset(
    twin: CompbenchPictogram,
) -> None:
    prompts = twin.prompts()
    assert Counter(prompt.category for prompt in prompts) == dict.fromkeys(
        ("color", "spatial", "numeracy", "complex"), 20
    )
    assert all(parse(prompt.text) for prompt in prompts)
    assert max(len(words(prompt.text)) for prompt in prompts) <= PROMPT_POSITIONS
    fewer = CompbenchPictogram(twin.judge, total=80, prompts=12).prompts()
    assert [prompt for prompt in prompts if prompt in fewer] == fewer
    smaller = CompbenchPictogram(twin.judge, total=8).prompts()
    assert all(prompt in prompts for prompt in smaller)


def test_true_pictures_score_high_and_pictures_of_other_prompts_low(
    twin: CompbenchPictogram, tmp_path: Path
) -> None:
    prompts = twin.prompts()
    items = []
    for prompt in prompts:
        spec = parse(prompt.text)
        assert spec is not None
        picture, _ = world.draw_scene(spec, random.Random(prompt.id))
        path = tmp_path / prompt.id / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(picture).save(path)
        items.append((prompt, path))
    right = [score.value or 0.0 for score in twin.score(items)]
    turned = [(items[i][0], items[i - 1][1]) for i in range(len(items))]
    wrong = [score.value or 0.0 for score in twin.score(turned)]
    for category in ("color", "spatial", "numeracy", "complex"):
        rows = [i for i, prompt in enumerate(prompts) if prompt.category == category]
        assert np.mean([right[i] for i in rows]) > 0.75
        assert np.mean([wrong[i] for i in rows]) < 0.2


def test_the_twin_names_what_it_leaves_out(twin: CompbenchPictogram) -> None:
    assert "3d_spatial, non_spatial" in list(twin.summarise([]))[-1]


@pytest.mark.parametrize("options", [{"images": 0}, {"total": 0}, {"prompts": 81}])
def test_what_the_twin_cannot_have_is_refused(
    twin: CompbenchPictogram, options: dict[str, int]
) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        CompbenchPictogram(twin.judge, **{"total": 80, **options})
