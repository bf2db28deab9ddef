"""Every configuration composes and builds; what is listed in the demo is what the project has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from runs import harness as run_harness

from harness.records import UserError
from harness.results.claims import read_claims
from harness.runs.read import Run
from harness.runs.spec import RunSpec, build_run_spec

CONF = Path(__file__).parent.parent / "conf"
EXPERIMENT = "experiment"


def options(group: str) -> list[str]:
    """The options of a group of configurations."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def build_spec(*overrides: str, method: str = "plain") -> RunSpec:
    """Build a run whose method is called `method`, of the embedded benchmark."""
    config = compose("config", list(overrides))
    return build_run_spec(config, {"method": method, "benchmark": "pictogram"})


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    Plugins.instance()
    with initialize_config_module("conf", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


# ------------------------------------------------------------------ parts of a run


def list_pairs() -> list[Any]:
    """Every method on every sampler; quick is each method on one, in turn, and plain on all."""
    samplers = options("sampler")
    pairs = []
    for number, method in enumerate(options("method")):
        for turn, sampler in enumerate(samplers):
            is_quick = method == "plain" or number % len(samplers) == turn
            marks = [] if is_quick else [pytest.mark.long]
            pairs.append(pytest.param(method, sampler, marks=marks, id=f"{method}-{sampler}"))
    return pairs


@pytest.mark.parametrize(("method", "sampler"), list_pairs())
def test_every_method_builds_on_every_sampler(method: str, sampler: str) -> None:
    edits = ("model=pictogram_edit", "benchmark=edit_pictogram") if method == "gridar_edit" else ()
    spec = build_spec(f"method={method}", f"sampler={sampler}", *edits, method=method)
    assert spec.sampler_sizes["slots"] >= spec.method.rows * spec.method.branches
    assert spec.method.tokens_per_step == spec.sampler_sizes["tokens_per_step"]
    assert len(spec.fingerprint) == 8


@pytest.mark.parametrize("benchmark", options("benchmark"))
def test_every_benchmark_builds_or_says_which_files_it_lacks(
    benchmark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    if benchmark == "edit_pictogram":
        with pytest.raises(UserError, match=r"as 240 prompts .* model=pictogram_edit$"):
            build_spec(f"benchmark={benchmark}")
        return
    if "pictogram" in benchmark:
        assert build_spec(f"benchmark={benchmark}").plan.jobs
        return
    with pytest.raises(
        UserError, match=r"set benchmark\.(metadata|file|coco)=(PATH|FOLDER)"
    ) as error:
        build_spec(f"benchmark={benchmark}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", options("model"))
def test_every_model_builds_or_says_which_weights_it_lacks(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = compose("config", [f"model={model}"])
    if model == "pictogram_edit":
        with pytest.raises(UserError, match=r"edits images, and .* benchmark=edit_pictogram"):
            build_spec(f"model={model}")
        assert build_spec(f"model={model}", "benchmark=edit_pictogram").plan.jobs
        return
    if "pictogram" in config.model._target_:
        assert build_spec(f"model={model}").plan.jobs
        return
    words = r"set model.checkpoint=PATH|model.weights=random is for measuring"
    with pytest.raises(UserError, match=words) as error:
        build_spec(f"model={model}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in ("detector", "colors") for o in options(g)]
)
def test_every_part_of_an_evaluator_mounts_and_has_a_name(group: str, option: str) -> None:
    chosen = f"{group}@benchmark.{group}={option}"
    config = compose("config", ["benchmark=geneval", chosen, "device=cpu"])
    if "revision" in config.benchmark[group]:
        config.benchmark[group].revision = "0123456789"  # else the hub is asked for the newest
    made = instantiate(config.benchmark[group])
    assert made.id.startswith(f"{option}-")
    assert not made.random


@pytest.mark.parametrize("judge", options("judge"))
def test_every_judge_mounts_where_judges_go(judge: str) -> None:
    mounted = [f"judge@{place}={judge}" for place in ("method.reward", "benchmark.judge")]
    config = compose("config", ["method=best_of_n", *mounted])
    assert config.method.reward == config.benchmark.judge


# ------------------------------------------------------------------ what names a run


def test_each_result_relevant_change_changes_the_fingerprint() -> None:
    changes = [
        "seed=0",
        "seed=1",
        "method=best_of_n",
        "benchmark.prompts=6",
        "model.sampling.scale=3",
        "sampler.slots=32",
    ]
    fingerprints = [build_spec(change).fingerprint for change in changes]
    assert len(set(fingerprints)) == len(fingerprints)
    same = build_spec("results=x", "stages=[score]", "device=cpu")
    assert same.fingerprint == fingerprints[0]


def test_a_part_that_is_switched_off_shows_in_the_leaderboard() -> None:
    spec = build_spec("method=gridar", "method.stages.quarter=null", method="gridar")
    assert spec.describe()["run"]["params"] == "stages.quarter=None"


# ------------------------------------------------------------------ experiments


def has_claims(experiment: str) -> bool:
    """Whether an experiment is compared with published tables."""
    return "claims:" in (CONF / EXPERIMENT / f"{experiment}.yaml").read_text()


@cache
def compose_experiment(experiment: str, *overrides: str) -> DictConfig:
    command = [f"{EXPERIMENT}={experiment}", *overrides]
    return compose("config", command, return_hydra_config=True)


def test_the_demo_leaves_no_method_out() -> None:
    """Every method's class is shown; of its presets one is enough."""
    classes = {
        name: compose("config", [f"method={name}"]).method._target_ for name in options("method")
    }
    shown = set()
    for point in compose_experiment("demo").hydra.sweeper.points:
        for override in point:
            group, _, option = override.partition("=")
            if group == "method":
                shown.add(classes[option])
    assert shown == set(classes.values())


def test_the_demo_stays_short() -> None:
    """Candidates are what it costs: 1,600 take about four minutes on two cores."""
    drawn = 0
    for point in compose_experiment("demo").hydra.sweeper.points:
        spec = build_spec("experiment=demo", *point)
        drawn += len(spec.plan.jobs) * spec.method.rows
    assert drawn <= 1600


@pytest.mark.parametrize("experiment", filter(has_claims, options(EXPERIMENT)))
def test_a_papers_table_measures_every_claim_that_this_project_can(experiment: str) -> None:
    """Each published number of its sources has a point of the same model, method and options."""
    sweeper = compose_experiment(experiment).hydra.sweeper
    claims = [claim for claim in read_claims() if claim.source in sweeper.claims]
    assert {claim.source for claim in claims} == set(sweeper.claims)
    measurable = [
        claim
        for claim in claims
        if claim.model in options("model")
        and claim.method in options("method")
        and claim.benchmark in ("", *options("benchmark"))
    ]
    assert measurable
    runs = []
    for other in filter(has_claims, options(EXPERIMENT)):
        points = compose_experiment(other).hydra.sweeper
        if set(points.claims) & set(sweeper.claims):  # a paper's benchmarks have one table each
            runs += [plan_run(other, list(point)) for point in points.points]
    for claim in measurable:
        assert any(claim.describes(run) for run in runs), claim


def plan_run(experiment: str, point: list[str]) -> Run:
    """What a claim looks at of the run that a point would be."""
    config = compose_experiment(experiment, *point)
    chosen = config.hydra.runtime.choices
    method = OmegaConf.to_container(config.method)
    about = {"model": config.model.name, "method": chosen.method, "benchmark": chosen.benchmark}
    return Run(Path(), {"method": method}, about, {}, {}, {}, frozenset(), {}, "")


def rehearse(experiment: str, cwd: Path, *more: str) -> None:
    """Run a sweep on the embedded model, with few prompts."""
    GlobalHydra.instance().clear()
    command = ("-m", f"{EXPERIMENT}={experiment}", "hydra/sweeper=rehearsal", *more)
    code, said = run_harness(cwd, *command)
    assert code == 0, said


def test_a_papers_table_can_be_rehearsed_on_the_embedded_model(tmp_path: Path) -> None:
    rehearse("scalingar_table1", tmp_path, "stages=[generate,score]")


@pytest.mark.long
@pytest.mark.parametrize("experiment", options(EXPERIMENT))
def test_every_experiment_can_be_rehearsed(experiment: str, tmp_path: Path) -> None:
    rehearse(experiment, tmp_path)


# ------------------------------------------------------------------ plugins


@pytest.mark.parametrize("launcher", options("hydra/launcher"))
def test_every_launcher_builds(launcher: str) -> None:
    config = compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    assert isinstance(instantiate(config.hydra.launcher), Launcher)


@pytest.mark.parametrize("sweeper", options("hydra/sweeper"))
def test_every_sweeper_builds(sweeper: str) -> None:
    config = compose("config", [f"hydra/sweeper={sweeper}"], return_hydra_config=True)
    assert instantiate(config.hydra.sweeper).points == [[]]
