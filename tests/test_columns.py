"""Every column of every CSV file has a unit and a meaning, and no description lacks its column."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from written_runs import write_run

from harness.records import STAGES, TIMES, Usage
from harness.results import columns
from harness.results.columns import COSTS, LEADERBOARD, STAGE_SECONDS, TABLES, TIMED, Column, Table
from harness.results.exports import write_exports
from harness.results.leaderboard import build

ROOT = Path(__file__).parent.parent
FILES = [*ROOT.glob("results/board/**/*.csv"), *ROOT.glob("results/bench/**/*.csv")]


def header_of(file: Path) -> list[str]:
    with file.open(newline="", encoding="utf-8") as lines:
        return next(csv.reader(lines))


def table_of(file: Path) -> Table:
    """The description of a file: by its name below the results folder."""
    (found,) = (table for table in TABLES if file.match(table.file))
    return found


def fixed_columns(table: Table, *occasional: str) -> list[str]:
    """The header of a table whose runs have no other occasional columns (tasks of GenEval)."""
    return [name for name in table.names if name in occasional or name not in columns.OCCASIONAL]


def test_written_headers_are_the_described_columns(tmp_path: Path) -> None:
    values = {f"colors/{i}": [1.0, float(i % 2)] for i in range(4)}
    write_run(tmp_path, values)
    best_of_n = {"sampled": 200}
    write_run(tmp_path, values, "best_of_n", fingerprint="2" * 8, options={"n": 2}, usage=best_of_n)
    write_exports(build(tmp_path), tmp_path / "export")
    written = list(tmp_path.rglob("*.csv"))
    assert {table_of(file).file for file in written} == {
        table.file for table in TABLES if not table.file.startswith("bench/")
    }
    for file in written:
        assert header_of(file) == fixed_columns(table_of(file), "colors")


def test_a_benchmarks_own_categories_follow_the_fixed_columns(tmp_path: Path) -> None:
    write_run(tmp_path, {"texture/0": [1.0], "shape/0": [0.0]})
    frame = build(tmp_path).frame
    assert list(frame.columns) == [*fixed_columns(LEADERBOARD), "shape", "texture"]


def test_a_category_may_be_called_as_a_fixed_column(tmp_path: Path) -> None:
    """It does not take the place of the run's seed, images or model."""
    values = {"seed/0": [1.0], "images/0": [0.0], "model/0": [1.0]}
    write_run(tmp_path, values)
    (row,) = build(tmp_path).frame.to_dict("records")
    assert (row["model"], row["images"], row["seed"]) == ("toy", 3, 0)
    assert [row[f"category_{name}"] for name in ("seed", "images", "model")] == [1.0, 0.0, 1.0]
    assert row["score"] == pytest.approx(2 / 3)


def test_a_task_of_geneval_has_a_column_where_a_run_was_asked_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"texture/0": [1.0]})
    assert not set(columns.TASKS) & set(build(tmp_path).frame)
    write_run(tmp_path, {"counting/0": [1.0]}, fingerprint="2" * 8, prompts_sha="b" * 16)
    frame = build(tmp_path).frame
    assert set(columns.TASKS) & set(frame) == {"counting"}
    of_texture = frame[frame["fingerprint"] == run.name.rpartition("-")[2]]
    assert of_texture["counting"].isna().all()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_published_headers_are_the_described_columns(file: Path) -> None:
    header = header_of(file)
    assert header == fixed_columns(table_of(file), *columns.OCCASIONAL.intersection(header))


def test_columns_of_a_table_have_different_names() -> None:
    assert len(LEADERBOARD.names) == 108
    for table in TABLES:
        assert len(set(table.names)) == len(table.names)


def test_a_column_without_unit_or_meaning_cannot_be_made() -> None:
    column = LEADERBOARD.columns[0]
    for field in ("name", "unit", "meaning"):
        with pytest.raises(ValueError, match=f"its {field} is empty"):
            replace(column, **{field: ""})
    assert isinstance(columns.benchmark_column("texture"), Column)


def test_costs_and_stages_are_fields_of_usage() -> None:
    usage = Usage()
    assert all(hasattr(usage, name) for name in (*COSTS, *STAGE_SECONDS))
    assert {*STAGE_SECONDS, *COSTS} >= set(STAGES)
    assert set(TIMED) >= set(TIMES)


def test_every_description_is_a_sentence_that_markdown_can_show() -> None:
    for table in TABLES:
        for column in table.columns:
            assert column.meaning.endswith("."), column.name
            assert not set("|\n") & set(column.meaning + column.unit), column.name


def test_the_documentation_page_is_up_to_date() -> None:
    page = (ROOT / "docs/columns.md").read_text(encoding="utf-8")
    assert page == columns.to_markdown(), "python -m harness.results.columns > docs/columns.md"
    for table in TABLES:
        for name in table.names:
            assert f"| `{name}`" in page
