"""Tables of published models run as they stand: composed, drawn, judged and reported, all points.

Tiny checkpoints in the published layouts stand in for the published ones, a tiny Qwen2.5-VL for
reward and verifier, and a tiny evaluator for GenEval's: who has the weights runs the same code.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llamagen_reference as reference
import pytest
import test_geneval_benchmark as geneval
import test_language_loading as language
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from runs import harness
from safetensors.torch import save_file
from test_geneval_benchmark import files
from test_janus import derivative, library, oracle, original
from test_llamagen import SIZE, TOKENIZER, released
from test_vlm import tiny

from benchmarks.geneval.colors import Clip
from benchmarks.geneval.mmdet_backend import Mmdet

__all__ = ["derivative", "files", "library", "oracle", "original", "tiny"]  # fixtures

TABLES = ("after_rl", "scalingar_table3", "jacobi_tables")
SHORT = {
    "after_rl": ("model=ar_grpo", "method=gridar"),
    "scalingar_table3": ("model=simplear_1_5b", "method=scalingar_paper"),
    "jacobi_tables": ("model=emu3_gen", "method=sjd"),
}
"""Of each table the point that is run every time; all are run where time does not matter."""
Options = Mapping[str, Any]


@pytest.fixture(scope="module")
def evaluator(files: Path) -> tuple[str, ...]:
    """Options of GenEval with tiny networks, whose checkpoints are files like any other."""
    config = str(files / "tiny.py")
    detector = Mmdet(config, weights="random", short_side=64, device="cpu").build()
    save_file(detector.state_dict(), files / "detector.safetensors")
    clip = Clip(str(files / "tiny_clip.json"), weights="random", device="cpu")
    clip.load()
    torch.save(clip.network.state_dict(), files / "clip.pt")
    return (
        f"benchmark.metadata={files / 'metadata.jsonl'}",
        "benchmark.allow_other_version=true",
        f"benchmark.detector.config={config}",
        f"benchmark.detector.checkpoint={files / 'detector.safetensors'}",
        "benchmark.detector.short_side=64",
        f"benchmark.colors.model={files / 'tiny_clip.json'}",
        f"benchmark.colors.checkpoint={files / 'clip.pt'}",
        *(f"benchmark.options.{name}={value}" for name, value in geneval.LOW.items()),
    )


@pytest.fixture(scope="module")
def models(
    library: Path, derivative: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Options]:
    """For each model the options of its stand-in: where its files are, and its sizes."""
    root = tmp_path_factory.mktemp("models")
    janus = {"size": "null", "dtype": "float32", "max_context": 200, "checkpoint": library}
    derived = {**janus, "checkpoint": derivative}
    captions = (
        f"{{_target_: harness.models.captions.WordFeatures, width: {reference.WIDTH}, "
        f"length: {reference.CONDITION}}}"
    )
    llamagen = {
        "checkpoint": released(root / "llamagen") / "gpt.pt",
        "size": "{" + ",".join(f"{key}:{value}" for key, value in llamagen_size().items()) + "}",
        "image": 8,
        "+tokenizer": "{" + ",".join(f"{key}:{value}" for key, value in TOKENIZER.items()) + "}",
        "dtype": "float32",
        "~captions": None,
        "+captions": captions,
    }
    cosmos = "{_target_: harness.models.cosmos.CosmosSpec, levels: [4, 3, 3], width: 4, latent: 4}"
    made = {
        **dict.fromkeys(("janus_pro_1b", "janus_pro_7b"), janus),
        **dict.fromkeys(("t2i_r1", "janus_pro_r1"), derived),
        **dict.fromkeys(("llamagen_xl_256", "ar_grpo"), llamagen),
        "simplear_1_5b": {"image": 48, "+tokenizer": cosmos},
        "lumina_mgpt_768": {"height": 64, "width": 96, "sampling.top_k": 20},
        "emu3_gen": {"ratio": "'4:3'", "area": 1024, "sampling.top_k": 20},
    }
    for name, kind in (
        ("simplear_1_5b", "simplear"),
        ("lumina_mgpt_768", "lumina"),
        ("emu3_gen", "emu3"),
    ):
        folder = language.write_checkpoint(kind, root / kind)
        common = {"size": "null", "dtype": "float32", "max_context": 250}
        made[name] = {
            **common, "checkpoint": folder, "tokenizer_checkpoint": folder, **made[name],
        }  # fmt: skip
    return made


def llamagen_size() -> Options:
    return {**SIZE, "condition": reference.CONDITION}


def stand_in(point: Sequence[str], models: Mapping[str, Options], chat: Path) -> list[str]:
    """Return a point with tiny weights in place of the published ones."""
    chosen = dict(override.partition("=")[::2] for override in point)
    given = list(point)
    for name, value in models[chosen["model"]].items():
        sign = name[0] if name[0] in "+~" else ""
        option = f"{sign}model.{name.removeprefix(sign)}"
        given.append(option if value is None else f"{option}={value}")
    for role in ("reward", "verifier"):
        if f"judge@method.{role}" in chosen:
            part = f"method.{role}.chat"
            given += [f"{part}.model={chat}", f"{part}.self_test=false", f"{part}.dtype=float32"]
    if chosen["method"] == "gridar":  # words of random weights are no verdicts
        given.append("method.released_fallback=true")
    if "method.rule.size" in chosen:  # of the tiny codebook
        given.append("method.rule.size=5")
    return given


def list_points(table: str) -> list[list[str]]:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", [f"experiment={table}"], return_hydra_config=True)
    GlobalHydra.instance().clear()
    return [list(point) for point in config.hydra.sweeper.points]


def run_points(
    cwd: Path, table: str, points: Sequence[Sequence[str]], evaluator: Sequence[str]
) -> list[dict[str, str]]:
    """Run a table with other points; returns the rows of its leaderboard."""
    code, said = harness(
        cwd,
        *("-m", f"experiment={table}", f"hydra.sweeper.points={json.dumps(points)}"),
        *("device=cpu", "benchmark.prompts=4", "benchmark.images=1", "sampler.slots=null"),
        *("sampler.memory_gb=0.01", *evaluator),
    )
    assert code == 0, said
    assert (cwd / "results/report/index.html").is_file()
    with (cwd / "results/leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def expect_whole(rows: Sequence[Mapping[str, str]], points: Sequence[Sequence[str]]) -> None:
    """Expect a row for each point, with all images drawn and judged."""
    asked = []
    for point in points:
        chosen = dict(override.partition("=")[::2] for override in point)
        asked.append((chosen["model"], chosen["method"]))
    assert sorted((row["model"], row["method"]) for row in rows) == sorted(asked)
    for row in rows:
        assert (row["images"], row["failed"], row["missing"], row["unjudged"]) == (
            "4",
            "0",
            "0",
            "0",
        )
        assert 0 <= float(row["score"]) <= 1
        assert float(row["target_passes"]) > 1


@pytest.mark.parametrize("table", TABLES)
def test_a_point_of_each_papers_table_runs_on_a_checkpoint_of_its_layout(
    table: str, models: Mapping[str, Options], evaluator: Sequence[str], tiny: Path, tmp_path: Path
) -> None:
    points = [point for point in list_points(table) if set(SHORT[table]) <= set(point)][:1]
    given = [stand_in(point, models, tiny) for point in points]
    expect_whole(run_points(tmp_path, table, given, evaluator), points)


@pytest.mark.long
@pytest.mark.parametrize("table", TABLES)
def test_every_point_of_a_papers_table_runs_on_a_checkpoint_of_its_layout(
    table: str, models: Mapping[str, Options], evaluator: Sequence[str], tiny: Path, tmp_path: Path
) -> None:
    points = list_points(table)
    given = [stand_in(point, models, tiny) for point in points]
    expect_whole(run_points(tmp_path, table, given, evaluator), points)
