"""`harness.load`: frames that agree with the leaderboard, in types that can be computed with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from made_runs import make_run
from written_runs import write_run

import harness
from harness.records import UserError
from harness.results.columns import IMAGES, PROMPTS
from harness.results.leaderboard import build
from harness.results.load import Results

VALUES = {"a/0": [1.0, 0.0], "b/0": [None, 1.0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    make_run(results, "plain", drop=[3])
    make_run(results, "best_of_n", n=4, drop=[3])
    make_run(results, "speculative", drop=[3])
    return results


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Results:
    return harness.load(folder)


def test_runs_are_the_leaderboards_rows(folder: Path, loaded: Results) -> None:
    frame = build(folder).frame
    for name in frame:
        of_file = pd.Series(list(frame[name]), dtype=object)
        if name in ("front_tokens", "front_seconds", "non_inferior"):
            of_file = of_file.map({"yes": True, "no": False, "": False}).astype(object)
        of_load = pd.Series(list(loaded.runs[name]), dtype=object)
        pd.testing.assert_series_equal(of_load[of_load.notna()], of_file[of_file.notna()])


def test_means_of_images_are_the_runs_scores_and_costs(loaded: Results) -> None:
    """Prompts have as many images each, and categories as many prompts: means of means agree."""
    runs = loaded.runs.set_index("fingerprint")
    assert len(loaded.images) == len(runs) * 12 * 2
    for fingerprint, images in loaded.images.groupby("fingerprint"):
        run = runs.loc[fingerprint]
        assert images["score"].fillna(0).mean() == pytest.approx(run["score"])
        assert (images["status"] == "done").sum() == run["images"] == 23
        assert (images["status"] == "missing").sum() == run["missing"] == 1
        assert set(images["label"]) == {run["label"]}
        for cost in ("visual_tokens", "device_s", "render_s"):
            assert images[cost].mean() == pytest.approx(run[cost])


def test_an_image_that_is_not_there_has_neither_score_nor_cost(loaded: Results) -> None:
    images = loaded.images
    absent = images[images["status"] == "missing"]
    assert len(absent) == len(loaded.runs)
    assert absent[["score", "visual_tokens", "device_s"]].isna().all(axis=None)
    assert set(absent["reason"]) == {"not drawn yet"}
    assert set(absent["file"]) == {""}
    assert all(Path(file).is_file() for file in images[images["status"] == "done"]["file"])


def test_columns_have_types_to_compute_with(loaded: Results) -> None:
    types = loaded.runs.dtypes.astype(str)
    assert types["label"] == types["vs_plain_verdict"] == "string"
    assert types["score"] == types["judge_calls"] == types["visual_tokens"] == "float64"
    assert types["images"] == types["seed"] == types["tie_group"] == types["method.n"] == "Int64"
    assert types["front_tokens"] == "boolean"
    types = loaded.images.dtypes.astype(str)
    assert types["score"] == types["device_s"] == "float64"
    assert types["visual_tokens"] == types["image"] == types["notes.chosen"] == "Int64"
    assert list(loaded.images.columns[: len(IMAGES.names)]) == list(IMAGES.names)
    assert list(loaded.prompts.columns) == list(PROMPTS.names)


def test_options_of_methods_are_columns(tmp_path: Path) -> None:
    options = {"n": 2, "share": 0.5, "rule": {"_target_": "rules.Mine", "k": 3}, "calm": True}
    write_run(tmp_path, VALUES, "mine", options=options)
    write_run(tmp_path, VALUES, "plain", fingerprint="00000002")
    runs = harness.load(tmp_path).runs.set_index("method")
    mine = runs.loc["mine"]
    assert (mine["method.n"], mine["method.share"], mine["method.rule.k"]) == (2, 0.5, 3)
    assert mine["method.rule._target_"] == "rules.Mine"
    assert mine["method.calm"] is True or bool(mine["method.calm"])
    assert runs.loc["plain"].filter(like="method.").isna().all()
    assert runs["method.share"].dtype == "float64"


def test_notes_and_the_judges_words_are_joined(loaded: Results) -> None:
    images = loaded.images
    accepted = images[images["method"] == "speculative"]["notes.accepted"].dropna()
    assert list(accepted.iloc[0]) == [30, 10, 5, 0]
    wrong = images[images["score"] == 0]
    assert set(wrong["reason"]) == {"expected at least 2 thing, found 1"}
    assert wrong["detail"].iloc[0]["reasons"] == ["expected thing>=2, found 1"]


def test_prompts_are_listed_once(loaded: Results) -> None:
    assert len(loaded.prompts) == loaded.prompts["prompt_id"].nunique() == 12


def test_a_single_run_folder_is_loaded(folder: Path, loaded: Results) -> None:
    run = loaded.runs.iloc[0]
    alone = harness.load(str(run["folder"]))
    assert list(alone.runs["fingerprint"]) == [run["fingerprint"]]
    assert alone.runs["score"][0] == run["score"]
    assert len(alone.images) == 24


def test_a_bad_run_is_named_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, VALUES)
    bad = write_run(tmp_path, VALUES, fingerprint="00000002")
    (bad / "records-0.jsonl").write_text("no journal\n")
    write_run(tmp_path, VALUES, fingerprint="00000003", excluded="drawn by hand")
    with pytest.warns(UserWarning, match="1 runs are left out"):
        loaded = harness.load(tmp_path)
    assert list(loaded.runs["fingerprint"]) == ["00000001"]
    assert len(loaded.problems) == 1 and str(bad) in loaded.problems[0]
    assert len(loaded.excluded) == 1 and "drawn by hand" in loaded.excluded[0]
    assert repr(loaded) == "<Results: 1 runs, 4 images, 2 prompts, 2 runs left out>"
    with pytest.raises(UserError, match=r"records-0\.jsonl"):
        harness.load(bad)


def test_what_is_not_judged_is_missing_and_not_zero(tmp_path: Path) -> None:
    write_run(tmp_path, {prompt: [None, None] for prompt in VALUES})
    loaded = harness.load(tmp_path)
    assert loaded.images["score"].isna().all()
    assert loaded.runs["score"].isna().all()


def test_a_folder_without_a_run_is_empty_and_one_that_is_not_there_is_refused(
    tmp_path: Path,
) -> None:
    empty = harness.load(tmp_path)
    assert len(empty.runs) == len(empty.images) == len(empty.prompts) == 0
    assert list(empty.images.columns) == list(IMAGES.names)
    with pytest.raises(UserError, match="no such results folder"):
        harness.load(tmp_path / "none")
