"""What methods gain and cost: places by passes, by seconds, and by what choosing took."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from runs import harness
from written_runs import write_run

from harness.costs import compose_options, describe_choices, describe_costs, find_seconds
from harness.results.leaderboard import protocols
from harness.runs.read import read_runs

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "results/bench/methods-pictogram_80-cpu.csv"


def cells(lines: list[str]) -> dict[str, dict[str, str]]:
    """Read aligned lines by their headings: the run's name -> heading -> cell."""
    heading, *rows = lines
    names = [name for name in heading.split("  ") if name]
    ends = []
    for name in names:
        ends.append(heading.index(name) + len(name))
    read = {}
    for row in rows:
        values = []
        first = row.split("  ")[0]
        begin = len(first)
        for end in ends[1:]:
            values.append(row[begin:end].strip())
            begin = end
        read[first] = dict(zip([name.strip() for name in names[1:]], values, strict=True))
    return read


def test_places_by_passes_and_by_seconds_are_those_of_the_published_board() -> None:
    rows = protocols(pd.read_csv(ROOT / "results/board/leaderboard.csv"))[0]
    seconds = {rows.query("label == 'SJD'")["fingerprint"].iloc[0]: {1: 0.5, 16: 0.25}}
    shown = cells(describe_costs(rows, seconds))
    assert (shown["SJD"]["s at 1"], shown["SJD"]["s at 16"]) == ("0.500", "0.250")
    assert shown["Plain"]["s at 1"] == ""
    assert shown.keys() == set(rows["label"])
    by_label = rows.set_index("label")
    passes = by_label["target_passes"].round(9).rank(method="min")
    spent = (by_label["device_s"] + by_label["judge_s"]).round(9).rank(method="min")
    for label, row in shown.items():
        assert int(row["by passes"]) == passes[label]
        assert int(row["by seconds"]) == spent[label]
    assert passes["SJD"] < passes["Plain"]
    assert spent["SJD"] > spent["Plain"]  # fewer passes are not fewer seconds
    assert shown["SJD"]["vs plain"] == "-0.014 [-0.039, +0.011]"
    assert shown["Plain"]["vs plain"] == ""


def test_a_bench_is_beside_runs_of_the_same_options_only(tmp_path: Path) -> None:
    values = {"colors/0": [1.0], "colors/1": [0.0]}
    for n in (2, 8):
        options = compose_options(f"best_of_n method.n={n}")
        write_run(tmp_path, values, "best_of_n", fingerprint=f"0000000{n}", options=options)
    write_run(tmp_path, values, "sjd", fingerprint="00000009", options=compose_options("sjd"))
    bench = {"best_of_n method.n=8": {1: 2.0}, "sjd method.window=8": {1: 5.0}, "none": {1: 9.0}}
    found = {run.fingerprint: find_seconds(run, bench) for run in read_runs(tmp_path).runs}
    assert found == {"00000002": {}, "00000008": {1: 2.0}, "00000009": {}}


def test_renders_and_rewards_change_the_order_of_those_who_choose() -> None:
    """A hundred renders cost what drawing saved: the order by tokens turns around."""
    rows = pd.DataFrame(
        {
            "label": ["looks often", "looks once"],
            "vs_plain": [0.3, 0.2],
            "visual_tokens": [576.0, 576.0],
            "renders": [100.0, 4.0],
            "judge_calls": [100.0, 4.0],
            "device_s": [1.3, 0.34],
            "render_s": [1.0, 0.04],
            "judge_s": [0.2, 0.01],
        }
    )
    shown = cells(describe_choices(rows))
    often = shown["looks often"]
    assert (often["by tokens"], often["by drawing"], often["by all seconds"]) == ("1", "1", "2")
    assert often["s drawing"] == "0.300"


def test_the_command_prints_both_tables_and_refuses_other_files(tmp_path: Path) -> None:
    values = {f"colors/{i}": [float(i % 2), 1.0] for i in range(6)}
    write_run(tmp_path, values)
    for n in (2, 4):
        usage = {"judge_calls": n, "renders": n, "sampled": 100 * n, "device_s": float(n)}
        write_run(
            tmp_path,
            values,
            "best_of_n",
            fingerprint=f"0000000{n}",
            options={"n": n},
            usage=usage,
        )
    code, output = harness(tmp_path, str(tmp_path), "--bench", str(BENCH), module="harness.costs")
    assert code == 0, output
    assert "made on toy, 6 prompts x 2 images" in output
    assert "by passes" in output
    assert "by all seconds" in output
    other = tmp_path / "other.csv"
    other.write_text("batch,method\n1,plain\n")
    for bad, words in (
        (("absent",), "absent"),
        ((str(tmp_path), "--bench", "absent.csv"), "no such file"),
        ((str(tmp_path), "--bench", str(other)), "no column seconds_per_image"),
    ):
        code, output = harness(tmp_path, *bad, module="harness.costs")
        assert code == 2
        assert words in output
