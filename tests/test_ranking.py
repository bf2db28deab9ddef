"""Runs compared: budgets, equal budgets, families of tests, bounds, protocols, words and claims."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from written_runs import JUDGE, prompts_of, write_run

from harness import compare, power
from harness.records import Job, Prompt, UserError
from harness.results.claims import compare_with_claims, decide_verdict, read_claims
from harness.results.columns import CLAIMED
from harness.results.exports import to_eval_results, to_latex, to_markdown
from harness.results.leaderboard import Board, build, excluded_line, project_runs
from harness.results.ranking import RankedGroup
from harness.results.stats import latency_percentile, samples_for
from harness.results.terminal_table import render_table
from harness.runs.folder import RunFolder
from harness.runs.read import find_runs, read_run

rng = np.random.default_rng(0)
CHANCE = {f"{category}/{i}": rng.random() for category in ("a", "b") for i in range(40)}
"""Each prompt's chance that plain sampling draws it right."""


def draw_values(gain: float, images: int = 4, seed: int = 1) -> dict[str, list[float]]:
    """Draw images that are right with each prompt's chance plus `gain`.

    Random numbers are common to all calls with one seed.
    """
    common = np.random.default_rng(seed)
    values = {}
    for prompt, chance in CHANCE.items():
        values[prompt] = [float(u < chance + gain) for u in common.random(images)]
    return values


TOKENS = 10**8
"""Tokens of a plain image: so many that a budget of 2 sqrt 2 is a whole number of them."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a plain run, and runs that are better, equal and worse at several budgets."""
    folder = tmp_path_factory.mktemp("results")
    plain = draw_values(0.0)
    write_run(folder, plain, usage={"sampled": TOKENS})
    for n, gain in ((2, 0.1), (4, 0.2)):
        write_run(
            folder,
            draw_values(gain),
            "best_of_n",
            fingerprint=f"0000000{n}",
            params=f"n={n}",
            options={"n": n},
            usage={"sampled": TOKENS * n, "device_s": 1.5 * n, "judge_calls": n},
            asked={"reward": "judge-2"},
        )
    write_run(
        folder,
        draw_values(0.25),
        "clever",
        fingerprint="00000005",
        options={"n": 4},
        usage={"sampled": round(TOKENS * 2**1.5), "device_s": 2.0},
    )
    quick = {"sampled": TOKENS, "target_passes": 40, "drafted_positions": 90, "device_s": 0.5}
    write_run(
        folder,
        plain,
        "exact",
        fingerprint="00000006",
        usage=quick,
        notes={"accepted": [1, 2, 1]},
        asked={"drafter": JUDGE},
    )
    write_run(folder, draw_values(-0.2), "lossy", fingerprint="00000007", usage=quick)
    write_run(
        folder,
        draw_values(0.0, images=8, seed=5),
        fingerprint="00000008",
        usage={"sampled": TOKENS},
    )
    return folder


@pytest.fixture(scope="module")
def board(results: Path) -> Board:
    return build(results)


def row(board: Board, fingerprint: str) -> pd.Series:
    """Return a run's row of the leaderboard."""
    return board.frame[board.frame["fingerprint"] == fingerprint].iloc[0]


def test_equal_budget_lies_between_two_n(board: Board) -> None:
    """At 2 sqrt 2 plain images, Best-of-N is half way between 2 and 4 of them, prompt by prompt."""
    clever, two, four = (row(board, f"0000000{i}") for i in (5, 2, 4))
    assert clever["budget"] == pytest.approx(2**1.5)
    assert clever["vs_bon"] == pytest.approx(clever["score"] - (two["score"] + four["score"]) / 2)
    assert clever["vs_bon_low"] < clever["vs_bon"] < clever["vs_bon_high"]
    assert clever["budget_s"] == 2
    # In seconds it lies between plain's 1 s and 3 s for n=2.
    assert clever["vs_bon_s_low"] < clever["vs_bon_s"] < clever["vs_bon_s_high"]
    for one in (two, four, row(board, "00000006")):
        assert pd.isna(one["vs_bon"])  # Best-of-N itself, or no dearer than plain


def test_each_family_is_corrected_by_itself(board: Board) -> None:
    ranked = board.frame[board.frame["images_per_prompt"] == 4]
    p = ranked["vs_plain_p"].dropna()
    assert len(p) == 5
    clever = row(board, "00000005")
    assert clever["vs_plain_p_holm"] == pytest.approx(5 * p.min(), abs=1e-4)
    assert clever["vs_bon_p_holm"] == clever["vs_bon_p"]  # a family of one
    assert row(board, "00000006")["vs_plain_p_holm"] == 1


def test_accelerations_state_what_they_may_have_lost(board: Board) -> None:
    exact = row(board, "00000006")
    lossy = row(board, "00000007")
    clever = row(board, "00000005")
    assert (exact["worse_at_most"], exact["worst_task_bound"]) == (0, 0)
    assert exact["non_inferior"] == "yes"
    assert lossy["non_inferior"] == "no"
    assert lossy["worst_task_bound"] <= lossy["worse_at_most"] < lossy["vs_plain"] < 0
    assert lossy["vs_plain_low"] < lossy["worse_at_most"]  # one-sided
    assert pd.isna(clever["worse_at_most"])
    assert exact["speedup"] == pytest.approx(2)
    assert exact["pass_saving"] == pytest.approx(101 / 40)
    assert exact["accepted"] == pytest.approx(1)


def test_the_best_lead_and_equals_are_tied(board: Board) -> None:
    ranked = board.frame[board.frame["images_per_prompt"] == 4].set_index("fingerprint")
    assert ranked.loc["00000005", "tie_group"] == 1
    assert ranked.loc["00000001", "tie_group"] == ranked.loc["00000006", "tie_group"]
    assert ranked["tie_group"].idxmax() == "00000007"
    assert (ranked["rank_low"] <= ranked["rank_high"]).all()
    assert ranked.loc["00000007", "rank_low"] == 6
    on_front = set(ranked.index[ranked["front_tokens"] == "yes"])
    assert on_front == {"00000001", "00000002", "00000005", "00000006"}


def test_the_oracle_comes_from_plain_images_of_the_same_prompts(
    board: Board, results: Path
) -> None:
    def best_of_2(values: pd.Series) -> float:
        wrong = int(8 - values.sum())
        return 1 - math.comb(wrong, 2) / math.comb(8, 2)

    pool = read_run(results / "made/toy/plain-00000008").table
    best = pool.groupby(["category", "prompt_id"])["value"].apply(best_of_2)
    two = row(board, "00000002")
    assert two["oracle"] == pytest.approx(best.groupby("category").mean().mean())
    single = pool["value"].mean()
    efficiency = (two["score"] - single) / (two["oracle"] - single)
    assert two["selection_efficiency"] == pytest.approx(efficiency)
    assert two["selection_low"] < two["selection_efficiency"] < two["selection_high"]


def test_protocols_are_never_ranked_together(board: Board, results: Path, tmp_path: Path) -> None:
    assert board.frame["protocol"].nunique() == 2  # other numbers of images per prompt
    lone = row(board, "00000008")
    assert pd.isna(lone["tie_group"])
    assert pd.isna(lone["vs_plain"])
    others = (
        {},
        {"judge": "judge-9"},
        {"version": "2"},
        {"prompts_sha": "b" * 16},
        {"numerics": "fast"},
        {"model": "m"},
    )
    for i, other in enumerate(others):
        write_run(tmp_path, draw_values(0.0), fingerprint=f"1000000{i}", **other)
    frame = build(tmp_path).frame
    assert frame["protocol"].nunique() == 6
    assert frame["tie_group"].isna().all()
    text = render_table(frame)
    assert text.count("made on toy, 80 prompts x 4 images (protocol ") == 5
    assert max(map(len, text.splitlines())) <= 140


def test_rows_of_one_protocol_must_agree_in_their_prompts(tmp_path: Path) -> None:
    write_run(tmp_path, draw_values(0.0))
    other = dict(list(draw_values(0.0).items())[1:])
    write_run(tmp_path, other, fingerprint="00000002")
    board = build(tmp_path)
    (problem,) = board.problems
    assert "claim the same prompts, but their jobs differ" in problem
    assert len(board.runs) == 1


def test_seeds_and_concurrency_choose_the_plain_run(tmp_path: Path) -> None:
    values = draw_values(0.0)
    for i, (seed, concurrency) in enumerate(((0, None), (0, 1), (1, None))):
        for method, prefix, wall_s in (("plain", "0", 10.0), ("m", "1", 5.0)):
            write_run(
                tmp_path,
                values,
                method,
                fingerprint=f"{prefix}000000{i}",
                seed=seed,
                concurrency=concurrency,
                usage={"device_s": 1.0 + i, "wall_s": wall_s},
            )
    group = RankedGroup([read_run(folder) for folder in find_runs(tmp_path)])
    run_of = {run.fingerprint: run for run in group.runs}
    for i in range(3):
        assert group.plain_of(run_of[f"1000000{i}"]) is run_of[f"0000000{i}"]
    one_at_a_time = group.saving(run_of["10000001"], "seconds")
    many_at_once = group.saving(run_of["10000000"], "seconds")
    assert one_at_a_time.ratio == pytest.approx(2)  # of wall clocks
    assert many_at_once.ratio == pytest.approx(1)  # of device seconds
    frame = build(tmp_path).frame.set_index("fingerprint")
    assert frame.loc["00000001", "latency_p50_s"] == 10
    assert frame.loc["00000001", "latency_p90_s"] == 10
    assert pd.isna(frame.loc["00000000", "latency_p50_s"])


def test_percentiles_need_samples() -> None:
    """MLPerf's early stopping."""
    assert [samples_for(q) for q in (0.5, 0.9, 0.95, 0.99)] == [11, 64, 130, 662]
    assert math.isnan(latency_percentile([1.0] * 10, 0.5))
    assert latency_percentile(list(range(11)), 0.5) == 5
    assert math.isnan(latency_percentile([1.0] * 63, 0.9))


def test_incomplete_runs_are_no_baseline(tmp_path: Path) -> None:
    folder = write_run(tmp_path, draw_values(0.0))
    journal = folder / "records-0.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    write_run(tmp_path, draw_values(0.1), "m", fingerprint="00000002")
    board = build(tmp_path)
    assert board.frame["vs_plain"].isna().all()
    assert "(1 images missing)" in to_markdown(board)


def test_excluded_runs_are_counted_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, draw_values(0.0))
    write_run(
        tmp_path,
        draw_values(0.1),
        "m",
        fingerprint="00000002",
        excluded="detector of other weights",
    )
    board = build(tmp_path)
    assert [run.fingerprint for run in board.runs] == ["00000001"]
    assert excluded_line(board) == "1 excluded: detector of other weights"
    assert "1 excluded: detector of other weights" in to_markdown(board)


def test_one_run_alone_compares_with_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, draw_values(0.0))
    board = build(tmp_path)
    assert board.frame[["tie_group", "vs_plain", "vs_bon", "worse_at_most"]].isna().all(axis=None)
    assert board.curves.empty
    assert "vs plain" not in render_table(board.frame)


def test_single_prompts_are_stated_without_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_run(tmp_path, {"a/0": [1.0, 0.0], "b/0": [0.0, 1.0]})
    better = {"a/0": [1.0, 0.0], "b/0": [1.0, 1.0]}
    other = write_run(tmp_path, better, "m", fingerprint="00000002")
    board = build(tmp_path)
    assert list(board.frame["score"]) == [0.75, 0.5]  # m, plain
    unknown = ["ci_low", "tie_group", "vs_plain_low", "worse_at_most", "speedup_low"]
    assert board.frame[unknown].isna().all(axis=None)
    assert "0.750 [-, -]" in to_markdown(board)
    assert "[    -,     -]" in render_table(board.frame)
    code, text = run_command(capsys, compare, str(plain), str(other))
    assert (code, "no error can be stated, so nothing is resolved" in text) == (0, True)


def test_aggregates_weights_and_clusters_come_from_the_journals(tmp_path: Path) -> None:
    values = draw_values(0.0)
    prompts = []
    for prompt in prompts_of(values):
        number = prompt.id[2:]
        weight = 1.0 + int(number) % 3 if prompt.category == "a" else 1.0
        prompts.append(replace(prompt, weight=weight, cluster=number))
    aggregates = {"score": {"a": 0.25, "b": 0.75}, "only_a": {"a": 1.0}}
    folder = write_run(tmp_path, values, prompts=prompts, aggregates=aggregates)
    run = read_run(folder)
    assert list(run.aggregates) == ["score", "only_a"]
    assert RankedGroup([run]).design.num_clusters == 40
    board = build(tmp_path)
    weights = [p.weight for p in prompts[:40]]
    means_a = [np.mean(values[f"a/{i}"]) for i in range(40)]
    means_b = [np.mean(values[f"b/{i}"]) for i in range(40)]
    a = np.average(means_a, weights=weights)
    b = np.mean(means_b)
    line = board.frame.iloc[0]
    assert (line["a"], line["only_a"], line["score"]) == pytest.approx((a, a, a / 4 + b * 3 / 4))
    long = board.metrics.set_index("metric")
    assert long.loc["quality/only_a", "ci_low"] < a < long.loc["quality/only_a", "ci_high"]


def test_weights_and_clusters_go_through_jobs(tmp_path: Path) -> None:
    prompts = [Prompt("a/0", "x", "a"), Prompt("a/1", "y", "a", weight=2.5, cluster="scene")]
    assert [p.extra_fields for p in prompts] == [
        {},
        {"weight": 2.5, "cluster": "scene"},
    ]  # fingerprints of others stay
    about = dict.fromkeys(("benchmark", "model", "method", "params", "fingerprint"), "x")
    config = {"run": {**about, "seed": 0, "planned": 2}}
    with RunFolder(tmp_path / "run", config, [Job(prompt, 0) for prompt in prompts]):
        pass
    assert list(read_run(tmp_path / "run").prompts.values()) == prompts
    assert "weight" not in (tmp_path / "run/jobs.jsonl").read_text().splitlines()[0]
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match=r"prompt a/0: weight .* is not a positive number"):
            Prompt("a/0", "x", "a", weight=weight)


def test_packed_and_sharded_journals_read_alike(results: Path, tmp_path: Path) -> None:
    source = results / "made/toy/plain-00000001"
    packed = tmp_path / "made/toy/plain-00000001"
    packed.mkdir(parents=True)
    (packed / "config.yaml").write_bytes((source / "config.yaml").read_bytes())
    for name in ("jobs.jsonl", "scores.jsonl"):
        (packed / f"{name}.gz").write_bytes(gzip.compress((source / name).read_bytes(), mtime=0))
    lines = (source / "records-0.jsonl").read_bytes().splitlines(keepends=True)
    (packed / "records-0.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:100]), mtime=0))
    (packed / "records-1.jsonl").write_bytes(b"".join(lines[100:]) + b'{"torn')
    tables = [project_runs([read_run(folder)]).frame for folder in (packed, source)]
    assert tables[0].equals(tables[1])
    (packed / "records-0.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:100]))[:-20])
    with pytest.raises(UserError, match=r"records-0\.jsonl\.gz: cannot be read"):
        read_run(packed)


def test_newer_folders_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, draw_values(0.0), schema=99)
    with pytest.raises(
        UserError, match="written in schema 99, this version reads up to 1: update it"
    ):
        read_run(folder)


def test_texts_of_any_script_and_length_are_kept(tmp_path: Path) -> None:
    values = {f"a/{i}": [1.0, 0.0] for i in range(3)}
    texts = ["写真 — naïve Ω", "long " * 4000, "<script>alert('|&%$#_{}')</script>"]
    prompts = [Prompt(f"a/{i}", text, "a") for i, text in enumerate(texts)]
    folder = write_run(tmp_path, values, prompts=prompts, params="名=é, x_y=50%|{}")
    assert [p.text for p in read_run(folder).prompts.values()] == texts
    board = build(tmp_path)
    assert r"x\_y=50\%|\{\}, 名=é" in to_latex(board)
    assert r"x_y=50%\|{}, 名=é" in to_markdown(board)
    assert "名=é" in (tmp_path / "leaderboard.csv").read_text(encoding="utf-8")


def test_tables_say_the_same_in_every_form(board: Board) -> None:
    from huggingface_hub import parse_eval_result_entries

    text = to_markdown(board)
    tex = to_latex(board)
    best = f"{row(board, '00000005')['score']:.3f}"
    assert f"**{best} [" in text
    assert rf"\textbf{{{best} [" in tex
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 2
    i = next(i for i, run in enumerate(board.runs) if run.fingerprint == "00000005")
    entries = yaml.safe_load(to_eval_results(board, i))
    assert entries[0]["dataset"] == {"id": "made", "task_id": "score"}
    assert f"{entries[0]['value']:.3f}" == best
    assert {entry["dataset"]["task_id"] for entry in entries} == {"score", "a", "b"}
    assert "run 00000005" in entries[0]["notes"]
    read_back = [entry.value for entry in parse_eval_result_entries(entries)]
    assert read_back == [entry["value"] for entry in entries]


def test_long_metrics_agree_with_the_wide_table(board: Board) -> None:
    long = board.metrics.set_index(["fingerprint", "metric"])["value"]
    for _, line in board.frame.iterrows():
        assert long[line["fingerprint"], "quality/score"] == line["score"]
        assert long[line["fingerprint"], "cost/visual_tokens"] == line["visual_tokens"]
    assert long["00000005", "compare/vs_bon"] == row(board, "00000005")["vs_bon"]
    scores = board.metrics[board.metrics["metric"] == "quality/score"]
    assert (scores["ci_low"] < scores["value"]).all()
    assert (scores["value"] < scores["ci_high"]).all()


def test_curves_start_at_plain(board: Board) -> None:
    tokens = board.curves[board.curves["currency"] == "visual_tokens"].set_index("method")
    best = tokens.loc["best_of_n"]
    assert best["budgets"] == "1 2 4"
    assert best["quality_at_1"] == pytest.approx(row(board, "00000001")["score"])
    assert best["quality_at_4"] == pytest.approx(row(board, "00000004")["score"])
    assert math.isnan(best["quality_at_8"])
    assert best["ausc_low"] < best["ausc"] < best["ausc_high"]
    assert set(tokens.index) == {"best_of_n", "clever"}


def test_a_reward_that_was_never_asked_is_not_flagged(tmp_path: Path) -> None:
    values = {f"a/{i}": [1.0, 0.0] for i in range(3)}
    for number, calls in enumerate((0, 2)):
        write_run(
            tmp_path,
            values,
            "best_of_n",
            fingerprint=f"{number:08d}",
            options={"n": 1 + number},
            usage={"judge_calls": calls},
            asked={"reward": JUDGE},
        )
    frame = build(tmp_path).frame.set_index("candidates")
    assert frame["reward_is_judge"].to_dict() == {1: "", 2: "same"}


def test_verifiers_of_the_judge_and_its_family_are_flagged(board: Board) -> None:
    assert row(board, "00000002")["reward_is_judge"] == "family"
    assert row(board, "00000006")["reward_is_judge"] == ""  # a drafter judges nothing
    assert row(board, "00000001")["reward_is_judge"] == ""


# --- comparisons in words, plans, claims ----------------------------------------------------------


def run_command(
    capsys: pytest.CaptureFixture[str], module: object, *arguments: str
) -> tuple[int, str]:
    """Run a module's main; returns exit code and output."""
    code = module.main(list(arguments))  # type: ignore[attr-defined]
    output = capsys.readouterr()
    return code, output.out + output.err


def test_a_comparison_in_words(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run_command(capsys, compare, "00000005", "00000001", "--results", str(results))
    assert code == 0
    assert "Resolved: A is better than B." in text
    assert "p = < 0.001" not in text
    assert "p < 0.001 (sign-flip)" in text
    assert all(line.endswith("q < 0.001") for line in text.splitlines() if line.startswith("  "))
    code, text = run_command(capsys, compare, "00000001", "00000006", "--results", str(results))
    assert "A - B = +0.000, 95 % interval" in text
    assert "Not resolved. A is at most 0.000 worse than B, with 95 % confidence." in text
    names = ("lossy-00000007", "plain-00000001")
    folders = [str(results / "made/toy" / name) for name in names]
    said = run_command(capsys, compare, *folders)[1]
    assert "Resolved: A is worse than B." in said
    assert run_command(capsys, compare, *names, "--results", str(results)) == (0, said)


@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        ("00000001", "00000001", "are one run: name two"),
        ("00000001", "00000008", "different protocols: images_per_prompt 4 and 8"),
        ("00000001", "ffff", "ffff: 0 runs below"),
        ("0000000", "00000001", "0000000: 7 runs below"),
        ("", "00000001", ": 0 runs below"),
        ("plain-00000007", "00000001", "plain-00000007: 0 runs below"),
        ("lossy-", "00000001", "lossy-: 0 runs below"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    results: Path, capsys: pytest.CaptureFixture[str], a: str, b: str, problem: str
) -> None:
    code, text = run_command(capsys, compare, a, b, "--results", str(results))
    assert code == 2
    assert problem in text
    assert text.count("\n") == 1


def test_plans_name_fewer_prompts_for_more_images(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ("00000002", "00000001", "--results", str(results))
    code, text = run_command(capsys, power, *runs, "--difference", "3")
    assert code == 0
    assert "prompts for 3 points" in text
    code, text = run_command(capsys, power, "--rate", "0.8", "--prompts", "100")
    assert "100 prompts detect" in text
    needed = [int(line.split()[1]) for line in text.splitlines()[2:]]
    assert needed == sorted(needed, reverse=True)
    for arguments, problem in (
        ([], "0 runs are given"),
        (["--rate", "1.2"], "--rate 1.2"),
        (["--rate", "0.8", "--difference", "0"], "--difference 0"),
        (["--rate", "0.8", "--power", "1"], "--power 1"),
        (["--rate", "0.8", "--prompts", "1"], "--prompts 1"),
    ):
        code, text = run_command(capsys, power, *arguments)
        assert (code, problem in text) == (2, True)


def test_a_plan_from_single_prompts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One prompt a category says nothing about the variance between prompts."""
    values = {"colors/0": [1.0, 0.0], "counting/0": [0.0, 1.0]}
    for method in ("plain", "best_of_n"):
        write_run(tmp_path, values, method)
    runs = [str(path.parent) for path in sorted(tmp_path.glob("*/*/*/config.yaml"))]
    code, text = run_command(capsys, power, *runs, "--results", str(tmp_path))
    assert code == 2
    assert "single prompt" in text
    assert "--rate" in text
    assert text.count("\n") == 1


def test_claims_name_their_source_and_are_matched_by_model(tmp_path: Path) -> None:
    claims = read_claims()
    assert all(claim.source and claim.metric for claim in claims)
    of_gridar = [c for c in claims if (c.model, c.method) == ("janus_pro_7b", "gridar")]
    gain = next(claim for claim in of_gridar if claim.metric == "vs_plain")
    assert gain.value == pytest.approx(0.09)
    about = {"benchmark": "geneval", "model": "janus_pro_7b"}
    write_run(tmp_path, draw_values(0.0), **about)
    write_run(
        tmp_path, draw_values(0.1), "gridar", fingerprint="00000002", options={"n": 8}, **about
    )
    found = compare_with_claims(build(tmp_path))
    assert tuple(found.columns) == CLAIMED.names
    mine = found[found["fingerprint"] == "00000002"].set_index("metric")
    assert set(mine.index) == {"score", "vs_plain"}
    assert mine.loc["score", "claimed"] == 0.88
    assert mine.loc["score", "verdict"] == "refuted"
    assert mine.loc["vs_plain", "verdict"] == "not resolved"
    assert (found[found["model"] == "llamagen_xl_512"]["verdict"] == "not measured").all()
    assert json.loads(found.to_json())  # plain values


def test_verdicts_need_a_fine_interval() -> None:
    assert decide_verdict("score", 0.80, 0.81, 0.80, 0.82) == "reproduced"
    assert decide_verdict("score", 0.80, 0.70, 0.69, 0.71) == "refuted"
    assert decide_verdict("score", 0.80, 0.75, 0.65, 0.85) == "not resolved"
    assert decide_verdict("speedup", 1.8, 1.75, 1.70, 1.80) == "reproduced"
    assert decide_verdict("score", 0.80, 0.80, math.nan, math.nan) == "not resolved"
