"""Labels: a run is called by its title, its budget and what tells it from its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from written_runs import write_run

from harness.records import UserError
from harness.results.labels import label_runs, title_with_budget
from harness.results.leaderboard import build
from harness.runs.options import expect_options
from harness.runs.read import Run, read_run
from harness.runs.spec import build_run_spec

CONF = Path(__file__).parent.parent / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
VALUES = {"a/0": [1.0, 0.0], "a/1": [0.0, 1.0]}


@pytest.fixture(scope="module")
def hydra() -> Iterator[None]:
    Plugins.instance()
    with initialize_config_module("conf", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def make_run(
    results: Path, number: int, method: str, options: Mapping[str, Any], **given: Any
) -> Run:
    """Write a run whose fingerprint is made of `number`."""
    fingerprint = f"{number:08d}"
    return read_run(
        write_run(results, VALUES, method, fingerprint=fingerprint, options=options, **given)
    )


def texts(*runs: Run) -> list[str]:
    labels = label_runs(runs)
    return [str(labels[run.path]) for run in runs]


# ------------------------------------------------------------------ titles


@pytest.mark.usefixtures("hydra")
def test_every_method_has_a_title_of_its_own() -> None:
    titles = [compose("config", [f"method={name}"]).method.title for name in METHODS]
    assert len(set(titles)) == len(METHODS)
    made_of_old_runs = []
    for name in METHODS:
        about = {"method": name}
        run = Run(Path(), {}, about, {}, {}, {}, frozenset(), {}, "")
        made_of_old_runs.append(run.title)
    assert made_of_old_runs == titles


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("method", ["best_of_n", "best_of_n_speculative"])
def test_a_title_names_no_result_and_is_recorded(method: str) -> None:
    choices = {"method": method, "benchmark": "pictogram"}
    config = compose("config", [f"method={method}"])
    renamed = compose("config", [f"method={method}", "method.title=Mine"])
    expect_options(renamed)
    specs = [build_run_spec(one, choices) for one in (config, renamed)]
    assert len({spec.fingerprint for spec in specs}) == 1
    described = [spec.describe() for spec in specs]
    assert described[1]["run"]["title"] == "Mine"
    for description in described:
        assert description["run"]["params"] == ""
        assert "title" not in str(description["method"])
    with pytest.raises(UserError, match=r"method\.title=5"):
        expect_options(compose("config", [f"method={method}", "method.title=5"]))


def test_a_plug_in_without_a_title_has_the_name_of_its_configuration(tmp_path: Path) -> None:
    named = make_run(tmp_path, 1, "mine", {"n": 2})
    titled = make_run(tmp_path, 2, "mine_too", {"n": 2}, title="Best of my N")
    assert texts(named, titled) == ["mine, N = 2", "Best of my 2"]


def test_the_budget_stands_where_the_title_has_it() -> None:
    assert title_with_budget("Best-of-N", 4) == "Best-of-4"
    assert title_with_budget("Best-of-N by likelihood", 16) == "Best-of-16 by likelihood"
    assert title_with_budget("GridAR", 4) == "GridAR, N = 4"


# ------------------------------------------------------------------ options


def test_a_swept_option_is_shown_at_its_default_too(tmp_path: Path) -> None:
    runs = []
    for number, keep in enumerate((1, 2)):
        for share in (0.5, 0.25):
            params = [f"keep={keep}"] * (keep != 1) + [f"share={share}"] * (share != 0.5)
            options = {"n": 4, "keep": keep, "share": share, "calm": True}
            name = 2 * number + (share == 0.5)
            runs.append(make_run(tmp_path, name, "mine", options, params=", ".join(params)))
    other = make_run(tmp_path, 9, "plain", {})
    assert texts(*runs, other) == [
        "mine, N = 4 (keep=1, share=0.5)",
        "mine, N = 4 (keep=1, share=0.25)",
        "mine, N = 4 (keep=2, share=0.5)",
        "mine, N = 4 (keep=2, share=0.25)",
        "Plain",
    ]
    frame = build(tmp_path).frame
    of_mine = frame[frame["method"] == "mine"]
    assert set(of_mine["params"]) == {
        "n=4, keep=1, share=0.5",
        "n=4, keep=1, share=0.25",
        "n=4, keep=2, share=0.5",
        "n=4, keep=2, share=0.25",
    }


def test_a_changed_option_is_shown_though_no_other_run_has_it(tmp_path: Path) -> None:
    options = {"stages": {"quarter": None, "half": {"share": 0.5}}, "n": 4}
    run = make_run(tmp_path, 1, "gridar", options, params="stages.quarter=None")
    assert texts(run) == ["GridAR, N = 4 (stages.quarter=None)"]
    assert label_runs([run])[run.path].family == "GridAR (stages.quarter=None)"


def test_an_option_whose_value_has_commas_is_one_option(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1, "mine", {"sizes": [1, 2], "b": 2}, params="b=2, sizes=[1, 2]")
    assert texts(run) == ["mine (b=2, sizes=[1, 2])"]


def test_a_part_of_another_class_is_named_by_what_it_is(tmp_path: Path) -> None:
    reward = {"_target_": "judges.Asked", "prompt": "Is it right?" * 20}
    params = f"reward._target_=judges.Asked, reward.prompt={reward['prompt']}"
    asked = make_run(
        tmp_path, 1, "best_of_n", {"n": 4, "reward": reward}, params=params, asked={"reward": "vlm"}
    )
    default = {"n": 4, "reward": {"_target_": "judges.Default"}}
    assert texts(asked, make_run(tmp_path, 2, "best_of_n", default)) == [
        "Best-of-4 (reward=vlm)",
        "Best-of-4 (reward=Default)",
    ]


def test_a_long_value_is_cut_and_still_tells_runs_apart(tmp_path: Path) -> None:
    runs = []
    for number, end in enumerate("xy"):
        prompt = "word " * 50 + end
        params = f"prompt={prompt}"
        runs.append(make_run(tmp_path, number, "mine", {"prompt": prompt}, params=params))
    first, second = texts(*runs)
    assert first != second
    assert max(len(first), len(second)) < 60


# ------------------------------------------------------------------ what else differs


def test_seed_and_concurrency_are_shown_where_they_differ(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, 1, "plain", {}, seed=0),
        make_run(tmp_path, 2, "plain", {}, seed=1),
        make_run(tmp_path, 3, "zipar", {}, seed=1, concurrency=1),
    ]
    assert texts(*runs) == ["Plain (seed 0)", "Plain (seed 1)", "ZipAR (seed 1, one at a time)"]
    assert texts(runs[0]) == ["Plain"]


def test_two_runs_are_never_called_the_same(tmp_path: Path) -> None:
    one = make_run(tmp_path, 1, "plain", {})
    cooler = replace(
        one,
        path=tmp_path / "b/m/plain-00000002",
        config={**one.config, "model": {"sampling": {"temperature": 0.7}}},
        about={**one.about, "fingerprint": "00000002"},
    )
    namesake = make_run(tmp_path, 3, "mine", {}, title="Plain")
    fresh = replace(one, path=tmp_path / "x/y/plain-1", about={**one.about, "fingerprint": "1"})
    copied = replace(one, path=tmp_path / "x/y/plain-copy")
    labels = texts(one, cooler, namesake, fresh, copied)
    assert len(set(labels)) == 5
    assert "model.sampling.temperature=0.7" in labels[1]
    assert labels[2] == "Plain (mine)"


def test_runs_of_other_protocols_change_no_label(tmp_path: Path) -> None:
    one = make_run(tmp_path, 1, "mine", {"keep": 1})
    elsewhere = make_run(tmp_path, 2, "mine", {"keep": 2}, params="keep=2", prompts_sha="b" * 16)
    assert texts(one, elsewhere) == ["mine", "mine (keep=2)"]
