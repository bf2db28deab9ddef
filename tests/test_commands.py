"""R9: each command answers mistakes with exit code 2 and one line, and `--help` with help."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from runs import TOY, folders, harness

from harness import training

TRAININGS = (
    *("train_tokenizer", "train_detector", "train_generator", "train_draft", "train_eagle"),
    "train_editor",
)
COMMANDS = (
    "harness.board",
    "harness.compare",
    "harness.costs",
    "harness.power",
    "harness.sweep",
    "harness.tuning",
    "harness.check",
    "harness.bench",
    "benchmarks.geneval",
    *(
        f"harness.training.{path.stem}"
        for path in sorted(Path(training.__file__).parent.glob("*.py"))
        if "__main__" in path.read_text()
    ),
)

ABSENT = (
    ("harness.board", "pack", "absent", "target"),
    ("harness.board", "pages", "absent"),
    ("harness.compare", "a", "b", "--results", "absent"),
    ("harness.compare", "absent", "--seeds", "0", "1"),
    ("harness.costs", "absent"),
    ("harness.power", "a", "b", "--results", "absent"),
    ("harness.sweep", "status", "absent"),
    ("harness.tuning", "absent", "--evaluation", "absent"),
    ("harness.check", "run", "absent"),
    ("harness.check", "geneval", "absent"),
    ("harness.check", "acceptance", "absent"),
    ("harness.check", "tiif", "absent"),
    ("harness.check", "parity", "absent"),
    ("harness.check", "gpu", "--table", "absent"),
    ("harness.check", "repeat", "method=absent"),
    ("harness.check", "memory", "model=absent"),
    ("harness.bench", "absent"),
    ("harness.bench", "sampler", "peer=absent"),
    ("harness.bench", "judges", "judges=[absent]"),
    ("harness.bench", "methods", "methods=[absent]"),
    ("benchmarks.geneval", "summary", "absent"),
    ("benchmarks.geneval", "export", "absent", "target", "--metadata", "absent"),
    ("harness.training.verify", "--weights", "absent"),
    ("harness.training.verify", "--metadata", "absent", "--parts", "natural"),
    ("harness.training.measure_draft", "--weights", "absent", "--out", "out.json"),
    ("harness.training.train_eagle", "--model", "absent"),
    ("harness.training.train_eagle", "embedded=absent"),
    ("harness.training.train_eagle", "absent=3"),
    ("harness.training.train_eagle", "absent"),
    ("harness.training.train_eagle", "--captions", "absent"),
    ("harness.training.train_eagle", "--warm", "absent"),
    ("harness.training.train_eagle", "--device", "absent"),
    ("harness.training.train_generator", "--work", "absent"),
    ("harness.training.export", "--warm", "absent", "--to", "absent", "--unpack"),
    ("harness.training.contact_sheet", "--run", "absent"),
    ("harness.training.contact_sheet", "--weights", "absent"),
)
"""Commands about something that is not there."""

NUMBERS = (
    ("harness.power", "--rate"),
    ("harness.power", "--rate", "0.5", "--difference"),
    ("harness.power", "--rate", "0.5", "--power"),
    ("harness.power", "--rate", "0.5", "--prompts"),
    ("harness.power", "--rate", "0.5", "--correlation"),
    ("harness.power", "--rate", "0.5", "--pairing"),
    ("harness.check", "run", "absent", "--again"),
    ("harness.check", "memory", "--cards"),
    ("harness.check", "gpu", "--minutes"),
    ("harness.training.measure_draft", "--out", "x", "--prompts"),
    ("harness.training.measure_draft", "--out", "x", "--images"),
    ("harness.training.measure_draft", "--out", "x", "--plain"),
    ("harness.training.train_eagle", "--batch"),
    ("harness.training.train_eagle", "--samples"),
    ("harness.training.train_tokenizer", "--decoder-minutes"),
    ("harness.training.train_generator", "--enough"),
    ("harness.training.train_detector", "--samples"),
    ("harness.training.train_detector", "--broken"),
    ("harness.training.train_draft", "--rate"),
    ("harness.training.train_draft", "--overlap"),
    ("harness.training.train_draft", "--layers"),
    ("harness.training.train_draft", "--kept"),
    *((f"harness.training.{name}", "--seed") for name in TRAININGS),
    *((f"harness.training.{name}", "--cpu-minutes") for name in TRAININGS),
)
"""Commands that a number follows."""


def expect_refusal(cwd: Path, command: Sequence[str], value: str) -> None:
    """Run a command in this process, which fails for a traceback, and look at what it says."""
    code, said = harness(cwd, *command[1:], module=command[0])
    lines = [line for line in said.splitlines() if "error:" in line]
    assert code == 2, (command, said)
    assert len(lines) == 1, (command, said)
    assert lines[0] == said.splitlines()[-1], said
    assert value in lines[0], (command, said)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, tmp_path: Path) -> None:
    code, said = harness(tmp_path, "--help", module=command)
    assert code == 0
    assert len(said.splitlines()) > 2


@pytest.mark.parametrize("command", ABSENT, ids=" ".join)
def test_what_is_not_there_is_named(command: tuple[str, ...], tmp_path: Path) -> None:
    expect_refusal(tmp_path, command, "absent")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".csv")]


@pytest.mark.parametrize("bad", ["abc", "nan", "-1", "-inf"])
@pytest.mark.parametrize("command", NUMBERS, ids=" ".join)
def test_what_is_no_number_of_its_kind_is_named(
    command: tuple[str, ...], bad: str, tmp_path: Path
) -> None:
    if command[-1] == "--pairing" and bad == "-1":
        return  # a correlation
    *most, option = command
    expect_refusal(tmp_path, (*most, f"{option}={bad}"), option.removeprefix("--"))


@pytest.mark.parametrize(
    "command",
    [
        ("harness.board", "pack", ".", "target"),
        ("harness.compare", ".", "."),
        ("harness.power", ".", "."),
        ("harness.check", "run", "."),
        ("harness.check", "parity", "."),
        ("harness.check", "geneval", "."),
        ("harness.check", "gpu", "--table", "."),
        ("benchmarks.geneval", "summary", "."),
        ("benchmarks.geneval", "export", ".", "target"),
        ("harness.training.contact_sheet", "--run", "."),
        ("harness.training.verify", "--weights", "."),
    ],
    ids=" ".join,
)
def test_a_folder_of_nothing_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    expect_refusal(tmp_path, command, "")


@pytest.mark.parametrize(
    "option",
    ["batch=abc", "batch=[0]", "batch=[2.5]", "batch=[]", "blocks=-1", "blocks=nan", "warm_up=-1"],
)
@pytest.mark.parametrize("bench", ["sampler", "methods", "judges"])
def test_a_bench_refuses_odd_sizes(bench: str, option: str, tmp_path: Path) -> None:
    expect_refusal(tmp_path, ("harness.bench", bench, option), option.partition("=")[0])


@pytest.mark.parametrize(
    "option",
    [
        "most_bookkeeping=abc", "most_excess=nan", "queue=0", "slots_for=2.5", "kept_light=3",
        "terminating=[absent]", "against=3",
    ],
)  # fmt: skip
def test_the_bench_of_methods_refuses_odd_bars(option: str, tmp_path: Path) -> None:
    expect_refusal(tmp_path, ("harness.bench", "methods", option), option.partition("=")[0])


@pytest.mark.parametrize("option", ["bars=abc", "bars=[[1]]", "bars=[[1,nan]]", "gpu_bars=3"])
def test_the_bench_of_the_sampler_refuses_odd_bars(option: str, tmp_path: Path) -> None:
    expect_refusal(tmp_path, ("harness.bench", "sampler", option), option.partition("=")[0])


def test_runs_of_one_prompt_are_compared_and_planned_in_words(tmp_path: Path) -> None:
    code, said = harness(tmp_path, "-m", *TOY, "method=plain,toy_best", "benchmark.prompts=1")
    assert code == 0, said
    a, b = (str(folder) for folder in folders(tmp_path))
    code, said = harness(tmp_path, a, b, module="harness.compare")
    assert code == 0, said
    assert "single prompt" in said
    expect_refusal(tmp_path, ("harness.power", a, b), "single prompt")


def test_a_damaged_journal_stops_commands_with_its_file_and_line(tmp_path: Path) -> None:
    code, said = harness(tmp_path, "-m", *TOY, "seed=1,2", "benchmark.prompts=2")
    assert code == 0, said
    a, b = (str(folder) for folder in folders(tmp_path))
    journal = Path(a) / "records-0.jsonl"
    first, *rest = journal.read_text().splitlines()
    row = json.loads(first)
    row["usage"]["wall_s"] = -1.0
    journal.write_text("\n".join([json.dumps(row), *rest, ""]))
    for command in (("harness.compare", a, b), ("harness.check", "run", a)):
        expect_refusal(tmp_path, command, "records-0.jsonl")
