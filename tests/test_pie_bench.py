"""PIE-Bench: masks, pixel metrics and means are the reference's, and what has no value says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import folders
from runs import harness as run_harness

from benchmarks.pie_bench.annotations import SIDE, TYPES, read_annotations
from benchmarks.pie_bench.benchmark import PieBench
from benchmarks.pie_bench.conformance import KINDS, conformance
from benchmarks.pie_bench.layout import crop_output, export_run
from benchmarks.pie_bench.masks import decode_mask
from benchmarks.pie_bench.metrics import METRICS
from benchmarks.pie_bench.networks import ClipSimilarity, DinoKeys, SqueezeLpips
from benchmarks.pie_bench.structure import measure_distance
from benchmarks.pie_bench.summary import compare_results
from harness.records import Score, UserError

CASES = Path(__file__).parents[2] / "shared" / "data" / "pie_bench" / "conformance.jsonl"
needs_cases = pytest.mark.skipif(not CASES.is_file(), reason="the reference's answers are not here")
RUNS = [SIDE * 100 + 100, 40, SIDE * 101 + 100, 40]
"""A mask of two rows."""


# ------------------------------------------------------------------ the reference's answers


@needs_cases
def test_every_recorded_answer_of_the_reference_is_ours() -> None:
    assert conformance(CASES) == (63, 0, [])


@needs_cases
def test_a_wrong_answer_of_every_kind_is_noticed(tmp_path: Path) -> None:
    """Each kind of case fails once its expected numbers, texts or lists are others."""
    altered: dict[str, dict[str, Any]] = {}
    for line in CASES.read_text().splitlines():
        case = json.loads(line)
        if case["kind"] not in altered:
            altered[case["kind"]] = {**case, "expected": _alter(case["expected"])}
    file = tmp_path / "altered.jsonl"
    file.write_text("".join(json.dumps(case) + "\n" for case in altered.values()))
    assert set(altered) == set(KINDS)
    assert conformance(file)[:2] == (0, len(KINDS))


def _alter(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _alter(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [*value, value[0]]
    return value + "x" if isinstance(value, str) else value + 0.05


def test_a_mask_has_its_border_and_is_cut_at_the_end() -> None:
    assert decode_mask([], 8, 8).sum() == 28
    assert decode_mask([60, 100, 70, 3], 8, 8).sum() == 28
    with pytest.raises(ValueError, match="pairs of start and length"):
        decode_mask([1, 2, 3], 8, 8)
    with pytest.raises(ValueError, match="none may be below 0"):
        decode_mask([-1, 2], 8, 8)


# ------------------------------------------------------------------ a folder of edits


def write_source(path: Path, seed: int, side: int = SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.NEAREST).save(path)


def write_folder(folder: Path, kinds: Sequence[int] = (0, 1)) -> dict[str, Any]:
    """Write a small PIE-Bench of some edit types; returns its mapping."""
    mapping = {}
    for number, kind in enumerate(kinds):
        image_id = f"{kind}{number:011d}"
        path = f"{kind}_kind/{image_id}.png"
        write_source(folder / "annotation_images" / path, number)
        mapping[image_id] = {
            "image_path": path,
            "original_prompt": f"a [red] cat {number}",
            "editing_prompt": f"a [blue] cat {number}",
            "editing_instruction": f"make the cat {number} blue",
            "editing_type_id": str(kind),
            "blended_word": "cat cat",
            "mask": RUNS,
        }
    (folder / "mapping_file.json").write_text(json.dumps(mapping))
    return mapping


@dataclass
class Said:
    """Networks that answer what they are given."""

    id: str = "said"
    missing: str = ""
    cosine: float = 0.25
    cut: bool = False
    asked: list[object] = field(default_factory=list)

    def load(self) -> None:
        self.asked.append("load")

    def read_keys(self, pixels: np.ndarray, *, antialias: bool) -> torch.Tensor:
        self.asked.append(antialias)
        return torch.from_numpy(pixels[::64, ::64].reshape(64, 3)).float() + 1

    def measure(self, source: np.ndarray, output: np.ndarray) -> float:
        return float(np.abs(np.int64(source) - output).mean() / 255)

    def compare(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[tuple[float, bool]]:
        self.asked += [text for _, text in asked]
        return [(self.cosine, self.cut) for _ in asked]


def make_benchmark(folder: Path, **options: Any) -> PieBench:
    parts = {name: options.pop(name, Said()) for name in ("structure", "lpips", "clip")}
    return PieBench(**parts, metadata=str(folder), **options)


def score_images(benchmark: PieBench, folder: Path, **pixels: np.ndarray) -> list[Score]:
    """Score an output for each prompt: by its number if given, else the source itself."""
    items = []
    for number, prompt in enumerate(benchmark.prompts()):
        assert prompt.source is not None
        path = folder / str(number) / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels.get(f"output{number}", prompt.source.pixels())).save(path)
        items.append((prompt, path))
    return list(benchmark.score(items))


def test_an_edit_has_its_instruction_and_a_source_that_names_it(tmp_path: Path) -> None:
    write_folder(tmp_path)
    benchmark = make_benchmark(tmp_path)
    first = benchmark.prompts()[0]
    assert (first.text, first.category) == ("make the cat 0 blue", "random")
    assert first.spec["target_prompt"] == "a blue cat 0"
    assert first.source is not None
    assert first.extra_fields == {"source": first.source.sha}
    shown = make_benchmark(tmp_path, protocol="gridar").prompts()[0]
    assert shown.spec["target_prompt"] == "a [blue] cat 0"
    assert benchmark.aggregates(["random", "change_object"])["score"] == {
        "random": 0.5,
        "change_object": 0.5,
    }


def test_an_untouched_output_keeps_all_and_its_infinite_psnr_is_in_no_mean(tmp_path: Path) -> None:
    write_folder(tmp_path)
    benchmark = make_benchmark(tmp_path)
    changed = np.zeros((SIDE, SIDE, 3), np.uint8)
    scores = score_images(benchmark, tmp_path / "out", output1=changed)
    untouched = scores[0].detail
    assert untouched["infinite"] == ["psnr_unedit_part"]
    assert untouched["metrics"]["structure_distance"] == 0
    assert untouched["metrics"]["ssim_unedit_part"] == pytest.approx(1, abs=3e-4)  # 32 bits
    assert scores[1].detail["metrics"]["mse_unedit_part"] > 0.1
    assert scores[0].value == 0.25
    lines = "\n".join(benchmark.summarise(scores))
    assert "1 outputs equal their source" in lines
    psnr = next(line for line in lines.splitlines() if line.startswith("PSNR"))
    assert "1 images" in psnr
    table = benchmark.files(scores, tmp_path / "plain-00")["pie_bench-results.csv"].splitlines()
    assert table[0].startswith("file_id,plain-00|structure_distance,plain-00|psnr_unedit_part")
    assert table[1].split(",")[2] == "inf"


def test_a_mask_of_everything_leaves_nothing_to_keep(tmp_path: Path) -> None:
    mapping = write_folder(tmp_path)
    for entry in mapping.values():
        entry["mask"] = [0, SIDE * SIDE]
    (tmp_path / "mapping_file.json").write_text(json.dumps(mapping))
    benchmark = make_benchmark(tmp_path)
    scores = score_images(benchmark, tmp_path / "out")
    assert scores[0].detail["metrics"]["psnr_unedit_part"] is None
    lines = list(benchmark.summarise(scores))
    assert any(line.startswith("SSIM outside") and "0 images" in line for line in lines)
    assert ",nan," in benchmark.files(scores, tmp_path)["pie_bench-results.csv"]


def test_an_output_of_another_size_is_unjudged_and_says_why(tmp_path: Path) -> None:
    write_folder(tmp_path)
    benchmark = make_benchmark(tmp_path)
    small = np.zeros((48, 48, 3), np.uint8)
    scores = score_images(benchmark, tmp_path / "out", output0=small)
    assert scores[0].value is None
    assert scores[0].detail["unjudged"] == (
        "the output is 48x48, its source 512x512: they must be equal"
    )
    assert scores[1].value == 0.25
    assert any("without metrics" in line for line in benchmark.summarise(scores))


def test_of_pictures_side_by_side_the_last_one_is_scored() -> None:
    strip = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
    strip[:, 2 * SIDE :] = 9
    assert (crop_output(strip) == 9).all()
    with pytest.raises(ValueError, match="no square of 512"):
        crop_output(strip[:100])


def test_protocols_differ_where_the_papers_do(tmp_path: Path) -> None:
    write_folder(tmp_path)
    structure = Said()
    clip = Said()
    ours = make_benchmark(tmp_path, structure=structure, clip=clip, protocol="gridar")
    score_images(ours, tmp_path / "out")
    assert set(structure.asked) == {True}
    assert clip.asked[:2] == ["a [blue] cat 0"] * 2
    reference = make_benchmark(tmp_path)
    assert reference.version != ours.version
    assert "ssim=cut" in reference.version
    assert "ssim=full" in make_benchmark(tmp_path, ssim_border="full").version


def _remove_mask(mapping: dict[str, Any]) -> None:
    del next(iter(mapping.values()))["mask"]


def _break_mask(mapping: dict[str, Any]) -> None:
    next(iter(mapping.values()))["mask"] = [1, 2, 3]


def _break_type(mapping: dict[str, Any]) -> None:
    next(iter(mapping.values()))["editing_type_id"] = "10"


def _break_path(mapping: dict[str, Any]) -> None:
    next(iter(mapping.values()))["image_path"] = "../mapping_file.json"


def _lose_image(mapping: dict[str, Any]) -> None:
    next(iter(mapping.values()))["image_path"] = "0_kind/none.png"


def _break_id(mapping: dict[str, Any]) -> None:
    mapping["12"] = next(iter(mapping.values()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove_mask, "'mask' is missing or no list"),
        (_break_mask, "a mask of 3 values"),
        (_break_type, "editing_type_id '10' is none of 0 to 9"),
        (_break_path, "leads out of annotation_images"),
        (_lose_image, "none.png is missing"),
        (_break_id, "ids have 12 digits"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_by_its_entry(
    spoil: Any, message: str, tmp_path: Path
) -> None:
    mapping = write_folder(tmp_path)
    spoil(mapping)
    (tmp_path / "mapping_file.json").write_text(json.dumps(mapping))
    with pytest.raises(UserError, match=message) as error:
        read_annotations(str(tmp_path), TYPES, brackets=False)
    assert "mapping_file.json, entry " in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metadata": None}, "set benchmark.metadata=PATH"),
        ({"types": ["style"]}, "'style' is none of random, change_object"),
        ({"types": []}, "name each one once"),
        ({"types": ["change_style"]}, "no image of the types change_style"),
        ({"protocol": "mine"}, "benchmark.protocol=mine: choose from reference, gridar"),
        ({"ssim_border": "half"}, "benchmark.ssim_border=half: choose from cut, full"),
        ({"prompts": 5}, "choose from 1 to the 2 prompts"),
        ({"images": 0}, "at least one image per edit"),
        ({"clip": Said(missing="benchmark.clip.revision=COMMIT")}, "set benchmark.clip.revision"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_folder(tmp_path)
    parts = {name: options.get(name, Said()) for name in ("structure", "lpips", "clip")}
    with pytest.raises(UserError, match=message):
        PieBench(**{"metadata": str(tmp_path), **parts, **options})


def test_a_source_of_another_size_or_no_image_is_refused(tmp_path: Path) -> None:
    mapping = write_folder(tmp_path)
    path = tmp_path / "annotation_images" / next(iter(mapping.values()))["image_path"]
    write_source(path, 0, side=256)
    with pytest.raises(UserError, match=r"is 256x256, its mask is of 512x512"):
        read_annotations(str(tmp_path), TYPES, brackets=False)
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        read_annotations(str(tmp_path), TYPES, brackets=False)


# ------------------------------------------------------------------ the networks, made small


def write_networks(folder: Path) -> dict[str, str]:
    """Write small networks of the right kinds; returns the options that name them."""
    from torchvision.models import squeezenet1_1
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
        ViTConfig,
        ViTModel,
    )

    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vit = ViTConfig(hidden_size=16, image_size=224, patch_size=32, **small)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "dino")

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789[]")
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>"]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|endoftext|>"])}
    end = len(vocabulary) - 1
    text = {"hidden_size": 16, "vocab_size": end + 1, "eos_token_id": end, "bos_token_id": end - 1}
    vision = {"hidden_size": 16, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(
        text_config={**text, "pad_token_id": end, **small},
        vision_config={**vision, **small},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder / "clip")
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    CLIPProcessor(CLIPImageProcessor(**sizes), tokenizer).save_pretrained(folder / "clip")

    torch.save(squeezenet1_1(weights=None).state_dict(), folder / "squeezenet.pth")
    return {
        "benchmark.structure.model": str(folder / "dino"),
        "benchmark.clip.model": str(folder / "clip"),
        "benchmark.lpips.checkpoint": str(folder / "squeezenet.pth"),
    }


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_networks(tmp_path_factory.mktemp("networks"))


def test_networks_find_equal_pictures_equal_and_others_not(networks: dict[str, str]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    other = 255 - picture
    lpips = SqueezeLpips(networks["benchmark.lpips.checkpoint"])
    assert lpips.measure(picture, picture) == 0
    assert lpips.measure(picture, other) > 0

    dino = DinoKeys(networks["benchmark.structure.model"])
    keys = dino.read_keys(picture, antialias=False)
    assert keys.shape == (1 + 7 * 7, 16)
    assert measure_distance(keys, keys) == 0
    assert measure_distance(keys, dino.read_keys(other, antialias=False)) > 0
    wide = dino.read_keys(picture[:256], antialias=False)
    assert len(wide) == 1 + 7 * 14

    clip = ClipSimilarity(networks["benchmark.clip.model"])
    long = "word " * 100
    first, second, cut = clip.compare([(picture, "a cat"), (picture, "a dog"), (picture, long)])
    assert first != second
    assert -1 <= first[0] <= 1
    assert (first[1], cut[1]) == (False, True)


def test_the_keys_are_those_of_the_last_block(networks: dict[str, str]) -> None:
    """The hook's numbers are the key projection of what enters the last block's attention."""
    from transformers import ViTModel

    from benchmarks.pie_bench.structure import prepare_input

    picture = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    folder = networks["benchmark.structure.model"]
    keys_TD = DinoKeys(folder).read_keys(picture, antialias=False)
    network: Any = ViTModel.from_pretrained(folder, layer_norm_eps=1e-6, add_pooling_layer=False)
    with torch.inference_mode():
        states = network(prepare_input(picture, antialias=False)[None], output_hidden_states=True)
        last = network.layers[-1] if hasattr(network, "layers") else network.encoder.layer[-1]
        normed_1TD = last.layernorm_before(states.hidden_states[-2])
        wanted_1TD = last.attention.k_proj(normed_1TD)
    assert torch.allclose(keys_TD, wanted_1TD[0], atol=1e-5)


def test_weights_that_cannot_be_had_are_told_with_the_remedy(tmp_path: Path) -> None:
    assert DinoKeys().missing.startswith("benchmark.structure.revision=COMMIT")
    assert ClipSimilarity(revision="abc").missing == ""
    file = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="no features of SqueezeNet"):
        SqueezeLpips(str(file)).load()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"benchmark.clip.model=.* cannot be had"):
        ClipSimilarity(str(tmp_path / "empty")).load()


# ------------------------------------------------------------------ whole commands


def test_images_made_elsewhere_are_scored_resumed_and_compared(
    tmp_path: Path, networks: dict[str, str]
) -> None:
    data = tmp_path / "data"
    mapping = write_folder(data, (0, 0, 1, 1))
    for method, number in (("mine", 50), ("theirs", 60)):
        for entry in mapping.values():
            write_source(tmp_path / method / entry["image_path"], number)
    options = [f"{name}={value}" for name, value in networks.items()]
    options += ["benchmark=pie_bench", f"benchmark.metadata={data}", "stages=[score,report]"]

    for method in ("mine", "theirs"):
        code, said = run_harness(tmp_path, *options, f"benchmark.images={tmp_path / method}")
        assert code == 0, said
    mine, theirs = sorted(folders(tmp_path))
    summary = (mine / "summary.txt").read_text()
    assert all(metric.title in summary for metric in METRICS)
    assert "NOT FOR A LEADERBOARD: images made elsewhere" in summary

    # A line that a kill has torn off is scored again, and no other.
    journal = mine / "scores.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))
    code, said = run_harness(tmp_path, *options, f"benchmark.images={tmp_path / 'mine'}")
    assert code == 0, said
    assert journal.read_text().splitlines(keepends=True) == lines

    code, said = run_harness(
        tmp_path, "compare", str(mine), str(theirs), module="benchmarks.pie_bench"
    )
    assert code == 0, said
    assert "paired by image, A - B" in said
    assert said.count("4 images") >= len(METRICS) - 1
    assert "edit done" not in said  # neither has a verdict

    code, said = run_harness(
        tmp_path, "export", str(mine), str(data), "copies", module="benchmarks.pie_bench"
    )
    assert "4 images copied to copies, 0 missing" in said
    assert len(list((tmp_path / "copies").rglob("*.png"))) == 4


def test_images_of_one_edit_are_no_edits_of_their_own(tmp_path: Path) -> None:
    """Ten images of each edit that are all alike say no more than one of each."""
    header = "file_id,a|done,a|psnr_unedit_part\n"
    for name, shift in (("one", 0), ("two", 1)):
        few = [f"{edit % 4}{edit:05d},{(edit + shift) % 2},{edit}.5" for edit in range(40)]
        many = []
        for row in few:
            file_id, _, values = row.partition(",")
            many += [row, *(f"{file_id}-{image},{values}" for image in range(1, 10))]
        (tmp_path / f"{name}_few.csv").write_text(header + "\n".join(few) + "\n")
        (tmp_path / f"{name}_many.csv").write_text(header + "\n".join(many) + "\n")
    said = {}
    for size in ("few", "many"):
        paths = [tmp_path / f"{name}_{size}.csv" for name in ("one", "two")]
        said[size] = list(compare_results(*paths))[1:]
    assert [line.replace("400 images", "40 images") for line in said["many"]] == said["few"]
    assert said["few"][0].startswith("edit done, %")


def test_export_refuses_other_runs_and_full_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    run = tmp_path / "run"
    run.mkdir()
    (run / "jobs.jsonl").write_text('{"prompt_id": "geneval/0"}\n')
    with pytest.raises(UserError, match=r"jobs\.jsonl, line 1: 'geneval/0' is no edit"):
        export_run(run, tmp_path / "data", tmp_path / "new")
    with pytest.raises(UserError, match="is not empty"):
        export_run(run, tmp_path / "data", tmp_path)


def test_a_folder_without_any_output_is_refused_with_the_layout(tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"no image of the 2 edits .*<id>_tgt_best\.png"):
        make_benchmark(tmp_path / "data", images=str(tmp_path / "none"))


def test_a_model_that_edits_nothing_is_refused_before_any_compute(
    tmp_path: Path, networks: dict[str, str]
) -> None:
    write_folder(tmp_path / "data")
    options = [f"{name}={value}" for name, value in networks.items()]
    options += ["benchmark=pie_bench", f"benchmark.metadata={tmp_path / 'data'}"]
    code, said = run_harness(tmp_path, *options)
    assert code == 2
    assert "draws from texts and edits no image" in said
    assert folders(tmp_path) == []
