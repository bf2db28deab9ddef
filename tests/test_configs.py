"""Every configuration composes and builds; what is listed in the demo is what the project has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.utils import instantiate
from omegaconf import OmegaConf
from runs import harness as run_harness

import harness.cli
from harness.records import UserError
from harness.results.claims import read_claims
from harness.runs.read import Run
from harness.runs.spec import build_run_spec

CONF = Path(__file__).parent.parent / "conf"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    harness.cli.enable_plugins()
    Plugins.instance()
    with initialize_config_module("conf", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("method", options("method"))
@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_method_builds_on_every_sampler(method: str, sampler: str) -> None:
    point = build_run_spec(compose("config", [f"method={method}", f"sampler={sampler}"]), choices(method))
    assert point.sampler_sizes["slots"] >= point.method.rows * point.method.branches
    assert point.method.tokens_per_step == point.sampler_sizes["tokens_per_step"]
    assert len(point.fingerprint) == 8


@pytest.mark.parametrize("benchmark", options("benchmark"))
def test_every_benchmark_builds_or_says_which_files_it_lacks(
    benchmark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", nobody)
    config = compose("config", [f"benchmark={benchmark}"])
    if "pictogram" in benchmark:
        assert build_run_spec(config, choices("plain")).plan.jobs
        return
    with pytest.raises(UserError, match=r"set benchmark\.metadata=PATH") as error:
        build_run_spec(config, choices("plain"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", options("model"))
def test_every_model_builds_or_says_which_weights_it_lacks(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = compose("config", [f"model={model}"])
    if "pictogram" in config.model._target_:
        assert build_run_spec(config, choices("plain")).plan.jobs
        return
    with pytest.raises(
        UserError, match=r"set model.checkpoint=PATH|model.weights=random is for measuring"
    ) as error:
        build_run_spec(config, choices("plain"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in ("detector", "colors") for o in options(g)]
)
def test_every_part_of_an_evaluator_mounts_and_has_a_name(group: str, option: str) -> None:
    config = compose(
        "config", ["benchmark=geneval", f"{group}@benchmark.{group}={option}", "device=cpu"]
    )
    if "revision" in config.benchmark[group]:
        config.benchmark[group].revision = "0123456789"  # else the hub is asked for the newest
    made = instantiate(config.benchmark[group])
    assert made.id.startswith(f"{option}-")
    assert not made.random


@pytest.mark.parametrize("judge", options("judge"))
def test_every_judge_mounts_where_judges_go(judge: str) -> None:
    config = compose(
        "config",
        ["method=best_of_n", f"judge@method.reward={judge}", f"judge@benchmark.judge={judge}"],
    )
    assert config.method.reward == config.benchmark.judge


def test_the_demo_leaves_no_method_out() -> None:
    """Every method's class is shown; of its presets one is enough."""
    points = compose("config", ["experiment=demo"], return_hydra_config=True).hydra.sweeper.points
    shown = {
        override.split("=")[1]
        for point in points
        for override in point
        if override.startswith("method=")
    }
    classes = {
        name: compose("config", [f"method={name}"]).method._target_ for name in options("method")
    }
    assert {classes[name] for name in shown} == set(classes.values())


def test_each_result_relevant_change_changes_the_fingerprint() -> None:
    changes = [
        "seed=1",
        "method=best_of_n",
        "benchmark.prompts=6",
        "model.sampling.scale=3",
        "sampler.slots=32",
    ]
    fingerprints = [
        build_run_spec(compose("config", [change]), choices("plain")).fingerprint
        for change in ["seed=0", *changes]
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    same = build_run_spec(
        compose("config", ["results=x", "stages=[score]", "device=cpu"]), choices("plain")
    ).fingerprint
    assert same == fingerprints[0]


def test_a_part_that_is_switched_off_shows_in_the_leaderboard() -> None:
    point = build_run_spec(
        compose("config", ["method=gridar", "method.stages.quarter=null"]), choices("gridar")
    )
    assert point.describe()["run"]["params"] == "stages.quarter=None"


def choices(method: str) -> dict[str, str]:
    return {"method": method, "benchmark": "pictogram"}


TABLES = [
    name
    for name in options("experiment")
    if "claims:" in (CONF / "experiment" / f"{name}.yaml").read_text()
]


@pytest.mark.parametrize("experiment", TABLES)
def test_a_papers_table_measures_every_claim_that_this_project_can(experiment: str) -> None:
    """Each published number of its sources has a point of the same model, method and options."""
    sweeper = compose(
        "config", [f"experiment={experiment}"], return_hydra_config=True
    ).hydra.sweeper
    claims = [claim for claim in read_claims() if claim.source in sweeper.claims]
    assert {claim.source for claim in claims} == set(sweeper.claims)
    runs = [_planned(experiment, list(point)) for point in sweeper.points]
    here = [
        claim
        for claim in claims
        if claim.model in options("model")
        and claim.method in options("method")
        and claim.benchmark in ("", *options("benchmark"))
    ]
    assert here
    assert [claim for claim in here if not any(claim.about(run) for run in runs)] == []


def _planned(experiment: str, point: list[str]) -> Run:
    """What a claim looks at of the run that a point would be."""
    config = compose("config", [f"experiment={experiment}", *point], return_hydra_config=True)
    chosen = config.hydra.runtime.choices
    method = OmegaConf.to_container(config.method)
    about = {"model": config.model.name, "method": chosen.method, "benchmark": chosen.benchmark}
    return Run(Path(), {"method": method}, about, {}, {}, {}, frozenset(), {}, "")


def rehearse(experiment: str, cwd: Path, *more: str) -> None:
    GlobalHydra.instance().clear()
    code, said = run_harness(
        cwd, "-m", f"experiment={experiment}", "hydra/sweeper=rehearsal", *more
    )
    assert code == 0, said


def test_a_papers_table_can_be_rehearsed_on_the_embedded_model(tmp_path: Path) -> None:
    rehearse("scalingar_table1", tmp_path, "stages=[generate,score]")


@pytest.mark.long
@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_can_be_rehearsed(experiment: str, tmp_path: Path) -> None:
    rehearse(experiment, tmp_path)


@pytest.mark.parametrize("launcher", options("hydra/launcher"))
def test_every_launcher_builds(launcher: str) -> None:
    config = compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    assert isinstance(instantiate(config.hydra.launcher), Launcher)


@pytest.mark.parametrize("sweeper", options("hydra/sweeper"))
def test_every_sweeper_builds(sweeper: str) -> None:
    config = compose("config", [f"hydra/sweeper={sweeper}"], return_hydra_config=True)
    assert instantiate(config.hydra.sweeper).points == [[]]
