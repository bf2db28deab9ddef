"""What methods gain and cost: places by passes, by seconds, and by what choosing took."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from runs import harness
from written_runs import write_run

from harness.costs import (
    Bench,
    compose_options,
    describe_bench,
    describe_choices,
    describe_costs,
    find_line,
    lay_out,
    read_bench,
)
from harness.results.leaderboard import protocols
from harness.results.rows import RESOLVED
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


def published() -> pd.DataFrame:
    """Return the rows of the published board."""
    return protocols(pd.read_csv(ROOT / "results/board/leaderboard.csv"))[0]


def split(lines: list[str]) -> tuple[dict[str, dict[str, str]], str]:
    """Return the cells of a table, and the text below it."""
    end = next((i for i, line in enumerate(lines) if line.endswith(".")), len(lines))
    return cells(lines[:end]), " ".join(lines[end:])


def test_places_by_passes_and_by_seconds_are_those_of_the_published_board() -> None:
    rows = published()
    shown, below = split(lay_out(describe_costs(rows)))
    assert shown.keys() == set(rows["label"])
    by_label = rows.set_index("label")
    passes = by_label["target_passes"].round(9).rank(method="min")
    spent = (by_label["device_s"] + by_label["judge_s"]).round(9).rank(method="min")
    for label, row in shown.items():
        assert int(row["by passes"]) == passes[label]
        assert int(row["by seconds"]) == spent[label]
    assert passes["SJD"] < passes["Plain"]
    assert spent["SJD"] > spent["Plain"]  # fewer passes are not fewer seconds
    assert shown["SJD"]["vs plain"] == "(-0.014 [-0.039, +0.011] a)"
    assert "In brackets: not resolved. a p is 0.05 or more" in below
    assert shown["Plain"]["vs plain"] == ""


def test_differences_stand_in_brackets_unless_resolved() -> None:
    rows = published()
    resolved = rows.set_index("label")["vs_plain_verdict"] == RESOLVED
    shown, _ = split(lay_out(describe_costs(rows)))
    for label, row in shown.items():
        if row["vs plain"]:
            assert row["vs plain"].startswith("(") != resolved[label], label
    assert resolved.any()


def test_places_by_the_benchs_seconds_are_beside_those_by_passes() -> None:
    rows = published()
    named = rows.set_index("label")["fingerprint"]
    seconds = {named["SJD"]: {1: 0.5, 16: 0.25}, named["Plain"]: {1: 0.4, 16: 0.1}}
    shown, below = split(lay_out(describe_bench(rows, seconds)))
    assert shown.keys() == {"SJD", "Plain"}
    assert (shown["SJD"]["time at 1"], shown["SJD"]["time at 16"]) == ("0.500", "0.250")
    assert (shown["SJD"]["by passes"], shown["SJD"]["by time at 1"]) == ("1", "2")
    assert "time at 4" not in shown["SJD"]
    others = set(rows["label"]) - shown.keys()
    assert below.startswith("Left out, the bench has no line with their model, method and options:")
    assert all(label in below for label in others)


def test_a_bench_is_beside_runs_of_the_same_model_and_options_only(tmp_path: Path) -> None:
    values = {"colors/0": [1.0], "colors/1": [0.0]}
    for n in (2, 8):
        options = compose_options(f"best_of_n method.n={n}")
        write_run(tmp_path, values, "best_of_n", fingerprint=f"0000000{n}", options=options)
    write_run(tmp_path, values, "sjd", fingerprint="00000009", options=compose_options("sjd"))
    write_run(tmp_path, values, "zipar", fingerprint="00000010", options=compose_options("zipar"))
    entries = ("best_of_n method.n=8", "sjd method.window=8", "none")
    lines: dict[tuple[str, str], dict[int, float]] = {("toy", entry): {} for entry in entries}
    lines["another", "zipar"] = {}
    bench = Bench("cpu", lines)
    found = {run.fingerprint: find_line(run, bench) for run in read_runs(tmp_path).runs}
    best = ("toy", "best_of_n method.n=8")
    assert found == {"00000002": None, "00000008": best, "00000009": None, "00000010": None}


def test_of_a_benchs_file_the_newest_lines_of_the_last_machine_count(tmp_path: Path) -> None:
    file = tmp_path / "bench.csv"
    file.write_text(
        "batch,method,model,speedup,device,machine\n"
        "1,plain,toy,9.0,cpu a,\n"
        "4,plain,toy,9.0,cpu a,\n"
        "1,plain,toy,0.2,cpu a,one\n"
        "1,sjd,toy,0.5,cpu a,one\n"
        "1,plain,toy,1.0,cpu a,one\n"
    )
    bench = read_bench(file)
    assert bench == Bench("cpu a", {("toy", "plain"): {1: 1.0}, ("toy", "sjd"): {1: 2.0}})


def choosing_runs() -> pd.DataFrame:
    """Return rows of two runs that choose, and two that do not."""
    return pd.DataFrame(
        {
            "label": ["looks often", "looks once", "looks in vain", "Plain", "drafts"],
            "vs_plain": [0.3, 0.2, 0.01, None, -0.1],
            "vs_plain_verdict": [RESOLVED, RESOLVED, "not resolved: p 0.6", "", RESOLVED],
            "candidates": [4, 4, 4, 1, None],
            "visual_tokens": [576.0, 576.0, 576.0, 144.0, 144.0],
            "renders": [100.0, 4.0, 4.0, 1.0, 1.0],
            "judge_calls": [100.0, 4.0, 4.0, 0.0, 0.0],
            "device_s": [1.3, 0.34, 0.2, 0.1, 0.1],
            "render_s": [1.0, 0.04, 0.04, 0.01, 0.01],
            "judge_s": [0.2, 0.01, 0.01, 0.0, 0.0],
        }
    )


def test_renders_and_rewards_change_the_order_of_those_who_choose() -> None:
    """A hundred renders cost what drawing saved: the order by tokens turns around."""
    _, *lines = lay_out(describe_choices(choosing_runs()))
    shown, below = split(lines)
    often = shown["looks often"]
    assert (often["by tokens"], often["by drawing"], often["by all seconds"]) == ("1", "1", "2")
    assert often["s drawing"] == "0.300"
    assert "Left out, one candidate, and no judge is asked: Plain; drafts." in below


def test_a_gain_that_is_not_resolved_has_no_place() -> None:
    _, *lines = lay_out(describe_choices(choosing_runs()))
    in_vain = split(lines)[0]["looks in vain"]
    assert in_vain["gain"] == "(+0.010 a)"
    assert (in_vain["by tokens"], in_vain["by drawing"], in_vain["by all seconds"]) == ("", "", "")


def test_runs_without_plain_are_named_where_they_are_left_out() -> None:
    rows = choosing_runs().assign(vs_plain=None, vs_plain_verdict="")
    text = " ".join(lay_out(describe_choices(rows)))
    why = "Left out, there is no scored plain run to compare with"
    assert f"{why}: looks often; looks once; looks in vain." in text
    assert describe_choices(rows[rows["judge_calls"] == 0].assign(candidates=None)) == []


def test_tables_in_markdown_have_the_same_cells() -> None:
    parts = describe_choices(choosing_runs())
    title, _, head, ruler, *rows = lay_out(parts, markdown=True)
    assert title.endswith(":")
    columns = [cell.strip() for cell in head.split("|")[1:-1]]
    assert ruler == f"| --- |{' ---: |' * (len(columns) - 1)}"
    _, *lines = lay_out(parts)
    shown, _ = split(lines)
    for row in rows[: len(shown)]:
        first, *cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert dict(zip(columns[1:], cells, strict=True)) == shown[first]


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
    assert "In the bench, and no run here: " in output
    assert "gridar on pictogram_80" in output
    other = tmp_path / "other.csv"
    other.write_text("batch,method,model,device\n1,plain,toy,cpu\n")
    for bad, words in (
        (("absent",), "absent"),
        ((str(tmp_path), "--bench", "absent.csv"), "no such file"),
        ((str(tmp_path), "--bench", str(other)), "no column speedup"),
    ):
        code, output = harness(tmp_path, *bad, module="harness.costs")
        assert code == 2
        assert words in output
