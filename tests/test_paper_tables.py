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
from runs import TESTS, harness
from safetensors.torch import save_file
from test_geneval_benchmark import files
from test_janus import derivative, library, oracle, original
from test_llamagen import SIZE, TOKENIZER, released
from test_vlm import tiny

from benchmarks.geneval.colors import Clip
from benchmarks.geneval.mmdet_backend import Mmdet

__all__ = ["derivative", "files", "library", "oracle", "original", "tiny"]  # fixtures

TABLES = ("after_rl", "scalingar_table3", "jacobi_tables")
SHORT = (
    ("after_rl", ["model=ar_grpo", "method=scalingar_paper"]),
    ("scalingar_table3", ["model=simplear_1_5b", "method=scalingar_paper"]),
    ("jacobi_tables", ["model=emu3_gen", "method=sjd"]),
)
"""A point of each table that is run every time, on a benchmark of no cost."""
COSMOS = "{_target_: harness.models.cosmos.CosmosSpec, levels: [4, 3, 3], width: 4, latent: 4}"
LANGUAGE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "simplear_1_5b": ("simplear", {"image": 48, "+tokenizer": COSMOS}),
    "lumina_mgpt_768": ("lumina", {"height": 64, "width": 96, "sampling.top_k": 20}),
    "emu3_gen": ("emu3", {"ratio": "'4:3'", "area": 1024, "sampling.top_k": 20}),
}
"""The kind and the sizes of each stand-in for a language model."""
Options = Mapping[str, Any]


# --- stand-ins ------------------------------------------------------------------------------------


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


class StandIns:
    """Tiny checkpoints for the models of tables, each made when it is first asked for."""

    def __init__(self, root: Path, request: pytest.FixtureRequest) -> None:
        self._root = root
        self._request = request
        self._made: dict[str, Options] = {}

    def options(self, model: str) -> Options:
        """Return a model's options: where the files of its stand-in are, and its sizes."""
        if model not in self._made:
            self._made[model] = self._make(model)
        return self._made[model]

    def _make(self, model: str) -> Options:
        if model in LANGUAGE:
            kind, sizes = LANGUAGE[model]
            folder = language.write_checkpoint(kind, self._root / kind)
            common = {"size": "null", "dtype": "float32", "max_context": 250}
            return {**common, "checkpoint": folder, "tokenizer_checkpoint": folder, **sizes}
        if model in ("llamagen_xl_256", "ar_grpo"):
            return write_llamagen(self._root / "llamagen")
        layout = "library" if model.startswith("janus_pro_1b") else "derivative"
        folder = self._request.getfixturevalue(layout)
        return {"size": "null", "dtype": "float32", "max_context": 200, "checkpoint": folder}


@pytest.fixture(scope="module")
def stand_ins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    return StandIns(tmp_path_factory.mktemp("models"), request)


def write_llamagen(folder: Path) -> Options:
    """Write a checkpoint of LlamaGen's layout; returns the options that load it."""
    size = {**SIZE, "condition": reference.CONDITION}
    captions = {
        "_target_": "harness.models.captions.WordFeatures",
        "width": reference.WIDTH,
        "length": reference.CONDITION,
    }
    return {
        "checkpoint": released(folder) / "gpt.pt",
        "size": flow(size),
        "image": 8,
        "+tokenizer": flow(TOKENIZER),
        "dtype": "float32",
        "~captions": None,
        "+captions": flow(captions),
    }


def flow(values: Options) -> str:
    """Write a mapping as an override has it."""
    return "{" + ",".join(f"{name}:{value}" for name, value in values.items()) + "}"


def stand_in(point: Sequence[str], models: StandIns, chat: Path | None) -> list[str]:
    """Return a point with tiny weights in place of the published ones."""
    chosen = dict(override.partition("=")[::2] for override in point)
    given = list(point)
    for name, value in models.options(chosen["model"]).items():
        sign = name[0] if name[0] in "+~" else ""
        option = f"{sign}model.{name.removeprefix(sign)}"
        given.append(option if value is None else f"{option}={value}")
    for role in ("reward", "verifier"):
        if f"judge@method.{role}" in chosen:
            part = f"method.{role}.chat"
            given += [f"{part}.model={chat}", f"{part}.self_test=false", f"{part}.dtype=float32"]
    if chosen["method"] == "gridar":  # words of random weights are no verdicts
        given.append("method.released_fallback=true")
    if chosen["method"] in ("sjd", "sjd_maximal", "gsd"):  # images are of 15 tokens and more
        given.append(f"method.window={int(chosen.get('method.window', 16)) // 4}")
    if "method.rule.size" in chosen:
        given.append("method.rule.size=5")
    return given


# --- runs -----------------------------------------------------------------------------------------


def list_points(table: str) -> list[list[str]]:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", [f"experiment={table}"], return_hydra_config=True)
    GlobalHydra.instance().clear()
    return [list(point) for point in config.hydra.sweeper.points]


def run_points(
    cwd: Path, table: str, points: Sequence[Sequence[str]], *more: str
) -> list[dict[str, str]]:
    """Run a table with other points; returns the rows of its leaderboard."""
    code, said = harness(
        cwd,
        *("-m", f"experiment={table}", f"hydra.sweeper.points={json.dumps(points)}"),
        *("device=cpu", "benchmark.images=1", "sampler.slots=null", "sampler.memory_gb=2.5"),
        *more,
    )
    assert code == 0, said
    assert (cwd / "results/report/index.html").is_file()
    with (cwd / "results/leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def expect_whole(
    rows: Sequence[Mapping[str, str]], points: Sequence[Sequence[str]], images: int
) -> None:
    """Expect a row for each point, with all images drawn and judged."""
    asked = []
    for point in points:
        chosen = dict(override.partition("=")[::2] for override in point)
        asked.append((chosen["model"], chosen["method"]))
    assert sorted((row["model"], row["method"]) for row in rows) == sorted(asked)
    for row in rows:
        assert int(row["images"]) == images
        assert [row[gap] for gap in ("failed", "missing", "unjudged")] == ["0", "0", "0"]
        assert 0 <= float(row["score"]) <= 1
        assert float(row["target_passes"]) > 1


@pytest.mark.parametrize(("table", "point"), SHORT)
def test_a_point_of_each_papers_table_runs_on_a_checkpoint_of_its_layout(
    table: str, point: list[str], stand_ins: StandIns, tmp_path: Path
) -> None:
    assert point in list_points(table)
    toy = ("--config-dir", str(TESTS / "toy_conf"), "benchmark=toy", "benchmark.prompts=2")
    rows = run_points(tmp_path, table, [stand_in(point, stand_ins, None)], *toy)
    expect_whole(rows, [point], images=2)


@pytest.mark.long
@pytest.mark.parametrize("table", TABLES)
def test_every_point_of_a_papers_table_runs_on_a_checkpoint_of_its_layout(
    table: str, stand_ins: StandIns, evaluator: Sequence[str], tiny: Path, tmp_path: Path
) -> None:
    points = list_points(table)
    given = [stand_in(point, stand_ins, tiny) for point in points]
    rows = run_points(tmp_path, table, given, "benchmark.prompts=4", *evaluator)
    expect_whole(rows, points, images=4)
