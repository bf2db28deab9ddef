"""Pages say what the board says: marks are filled by script, and nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from written_runs import write_run

from harness import board
from harness.costs import compose_options
from harness.records import UserError
from harness.results.gates import Gate
from harness.results.leaderboard import project_runs
from harness.results.pages import CARD, PAGES, Shown, fill
from harness.runs.read import read_runs

PROMPTS = [f"{category}/{i}" for category in "ab" for i in range(6)]


def values_of(right: int, images: int = 2) -> dict[str, list[float]]:
    return {name: [float(int(name[-1]) < right)] * images for name in PROMPTS}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Plain is right for 3 of 6 prompts, Best-of-4 for 5, ZipAR for 2, LANTERN for 1 and 3."""
    folder = tmp_path / "results"
    write_run(folder, values_of(3))
    write_run(folder, values_of(0), fingerprint="00000009", seed=1)
    write_run(
        folder,
        values_of(5),
        "best_of_n",
        fingerprint="00000002",
        params="n=4",
        options={"n": 4},
        usage={"sampled": 400},
        title="Best-of-N",
    )
    cheap = {"target_passes": 57}
    write_run(folder, values_of(2), "zipar", fingerprint="00000003", usage=cheap)
    write_run(folder, values_of(1), "lantern", fingerprint="00000004", usage=cheap)
    tuned = {"params": "rule.k=5", "options": {"rule": {"k": 5}}}
    write_run(folder, values_of(3), "lantern", fingerprint="00000005", usage=cheap, **tuned)
    write_run(folder, values_of(6, 1), fingerprint="00000006")
    return folder


@pytest.fixture
def shown(results: Path, tmp_path: Path) -> Shown:
    return Shown(project_runs(read_runs(results).runs), tmp_path)


def test_numbers_in_sentences_are_those_of_the_runs(shown: Shown) -> None:
    """The lowest seed of the protocol with the most images."""
    text = (
        "<!-- board: size -->9 prompts<!-- /board -->: "
        "<!-- board: score best_of_n n=4 -->0<!-- /board -->, "
        "<!-- board: gain-share zipar / best_of_n n=4 -->0<!-- /board -->, "
        "<!-- board: token-share plain / best_of_n n=4 -->0<!-- /board -->."
    )
    assert fill(text, shown, "page") == (
        "<!-- board: size -->12 prompts x 2 images<!-- /board -->: "
        "<!-- board: score best_of_n n=4 -->0.833<!-- /board -->, "
        "<!-- board: gain-share zipar / best_of_n n=4 -->-50 %<!-- /board -->, "
        "<!-- board: token-share plain / best_of_n n=4 -->25 %<!-- /board -->."
    )


def test_a_table_keeps_its_words_and_gets_its_numbers(shown: Shown) -> None:
    text = (
        "a\n<!-- board: rows score visual_tokens target_passes -->\n"
        "| method | what | score | tokens | passes |\n|---|---|---|---|---|\n"
        "| `zipar` | rows, ([x](y)) <!-- zipar --> | 9 | 9 | 9 |\n<!-- /board -->\nb"
    )
    filled = fill(text, shown, "page")
    row = next(line for line in filled.splitlines() if "zipar" in line)
    assert row.startswith("| `zipar` | rows, ([x](y)) <!-- zipar --> | 0.333 [")
    assert row.endswith("] | 100 | 57 |")
    assert fill(filled, shown, "page") == filled
    assert filled.startswith("a\n<!-- board: rows")
    assert filled.endswith("<!-- /board -->\nb")


def test_tables_hold_the_runs_that_belong_there(shown: Shown) -> None:
    def methods(name: str) -> list[str]:
        filled = fill(f"<!-- board: {name} --><!-- /board -->", shown, "page")
        rows = [line for line in filled.splitlines() if line.startswith("| ")]
        return [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]]

    assert methods("choosing") == ["Plain (seed 0)", "Best-of-4 (seed 0)"]
    assert methods("decoding") == [
        "Plain (seed 0)",
        "LANTERN (seed 0)",
        "LANTERN (rule.k=5, seed 0)",
        "ZipAR (seed 0)",
    ]
    assert methods("others") == []  # nothing to compare plain sampling with


def test_the_runs_of_a_benchmark_stand_in_the_order_of_their_scores(
    results: Path, tmp_path: Path
) -> None:
    write_run(results, values_of(2), fingerprint="00000011", benchmark="toy")
    better = {"fingerprint": "00000012", "benchmark": "toy", "title": "ZipAR"}
    write_run(results, values_of(6), "zipar", **better)
    shown = Shown(project_runs(read_runs(results).runs), tmp_path)

    filled = fill(
        "<!-- board: benchmark toy score a against-plain --><!-- /board -->", shown, "page"
    )
    rows = [line for line in filled.splitlines() if line.startswith("| ")]
    assert rows[0] == "| 2 images a prompt | score | a | against plain |"
    assert rows[2].startswith("| ZipAR | 1.000 ")
    assert "] | 1.000 | +0.667 [" in rows[2]
    assert rows[3].startswith("| Plain | 0.333 ")

    text = "<!-- board: benchmark made/1 score --><!-- /board -->"
    assert "| 1 images a prompt | score |" in fill(text, shown, "page")

    text = "<!-- board: difference toy zipar / plain --><!-- /board -->"
    assert "-->+0.667 [" in fill(text, shown, "page")
    text = "<!-- board: difference toy plain / zipar --><!-- /board -->"
    assert "-->-0.667 [-" in fill(text, shown, "page")


def test_a_claim_holds_or_is_refuted_where_the_board_resolves_it(tmp_path: Path) -> None:
    """Of 40 prompts Best-of-4 is right for 30 and plain for 20; ZipAR for 19, at 57 passes."""

    def first(right: int) -> dict[str, list[float]]:
        return {f"{name}/{i}": [float(i < right)] for name in "ab" for i in range(20)}

    write_run(tmp_path, first(10))
    four = {"params": "n=4", "options": {"n": 4}, "usage": {"sampled": 400}}
    write_run(tmp_path, first(15), "best_of_n", fingerprint="00000002", **four)
    zipar = first(10) | {"a/0": [0.0]}
    write_run(tmp_path, zipar, "zipar", fingerprint="00000003", usage={"target_passes": 57})
    shown = Shown(project_runs(read_runs(tmp_path).runs), tmp_path)

    def verdict(claim: str) -> str:
        table = f"| claim | verdict |\n| words <!-- {claim} --> |  |"
        text = f"<!-- board: claims -->\n{table}\n<!-- /board -->"
        (row,) = (line for line in fill(text, shown, "page").splitlines() if "words" in line)
        return row.removeprefix(f"| words <!-- {claim} --> | ")

    held = verdict("best_of_n n=4 above plain")
    assert held.startswith("+0.250 [")
    assert held.endswith("] | 4.00 | 1.00 | holds |")
    assert verdict("plain above best_of_n n=4").endswith("| 0.25 | 1.00 | **refuted** |")
    assert verdict("zipar above plain on made").endswith("| 1.00 | 0.56 | not resolved |")
    assert verdict("zipar within 0.9 of plain").endswith("| holds |")
    assert verdict("plain within 0.01 of best_of_n n=4").endswith("| **refuted** |")
    with pytest.raises(UserError, match="'zipar < plain': write RUN above OTHER"):
        verdict("zipar < plain")


def test_two_seeds_of_the_main_table_are_compared(results: Path, tmp_path: Path) -> None:
    """Plain falls below ZipAR and LANTERN in seed 1; of LANTERN's other setting there is no run."""
    for number, (method, right) in enumerate({"zipar": 2, "lantern": 1}.items()):
        again = {"seed": 1, "fingerprint": f"0000002{number}", "usage": {"target_passes": 57}}
        write_run(results, values_of(right), method, **again)
    shown = Shown(project_runs(read_runs(results).runs), tmp_path)
    found = shown.seeds
    assert sorted(found.score_b) == [0, 1 / 6, 1 / 3]
    text = (
        "<!-- board: tau --><!-- /board --> <!-- board: tau resolved --><!-- /board --> "
        "<!-- board: contradictions --><!-- /board -->"
    )
    written = [part.split("<!--")[0] for part in fill(text, shown, "page").split("-->")[1::2]]
    assert written[:2] == [f"{found.tau:.3f}", f"{found.tau_resolved:.3f}"]
    assert written[2].endswith(f" of {found.alike + found.once} resolved pairs")


def test_gates_are_those_of_the_card(shown: Shown) -> None:
    card = shown.root / CARD
    card.parent.mkdir(parents=True)
    gates = [Gate("natural: plain", 0.5, 0.35, 0.7), Gate("natural: loss", 0.1, most=0.05)]
    rows = [gate.to_row() for gate in (*gates, Gate("judge and reward agree", 0.925))]
    card.write_text(json.dumps({"measured": {"full official": {"gates": rows}}}))
    filled = fill("<!-- board: gates natural: --><!-- /board -->", shown, "page")
    assert filled.splitlines()[2:-2] == [
        "| gate | measured | asked | |",
        "|---|---|---|---|",
        "| natural: plain | 0.500 | ≥ 0.35 ≤ 0.7 | pass |",
        "| natural: loss | 0.100 | ≤ 0.05 | **missed by 0.05** |",
    ]
    with pytest.raises(UserError, match="begins with 'absent'"):
        fill("<!-- board: gates absent --><!-- /board -->", shown, "page")
    text = "<!-- board: agreement --><!-- /board -->"
    assert "-->92 %<" in fill(text, shown, "page")


def test_published_and_tuned_settings_stand_side_by_side(shown: Shown) -> None:
    filled = fill("<!-- board: tuned --><!-- /board -->", shown, "page")
    rows = [line for line in filled.splitlines() if line.startswith("| `")]
    assert rows[0].startswith("| `lantern` | published | 0.167 ")
    assert rows[1].startswith("| `lantern` | tuned: rule.k=5 | 0.500 ")
    assert rows[-1] == "| `zipar` | no other setting run |  |  |  |  |"


def test_the_command_writes_the_pages_and_says_so(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "repository"
    for name in PAGES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("no mark\n")
    readme = root / "README.md"
    readme.write_text("<!-- board: size -->?<!-- /board -->\n")
    command = ["pages", str(results), "--root", str(root)]
    assert board.main(command) == 0
    assert readme.read_text() == "<!-- board: size -->12 prompts x 2 images<!-- /board -->\n"
    assert capsys.readouterr().out == f"{readme}: written\n"
    assert board.main(command) == 0
    assert capsys.readouterr().out == f"{readme}: as it was\n"


@pytest.mark.parametrize(
    ("mark", "problem"),
    [
        ("sise", "README.md: unknown mark 'sise'; there are agreement, bench, "),
        ("score gridar", "gridar: 0 runs of the board's main table are called so"),
        ("gain-share zipar", "name two runs, RUN / OTHER"),
        ("benchmark tiif score", "tiif: no run of the board is of this benchmark"),
        ("difference", "no run of the board is of this benchmark"),
        ("benchmark made absent", "the leaderboard has no column 'absent'"),
        ("bench absent", "absent: there is no "),
        ("gates natural:", "there is no harness/models/pictogram/weights/"),
        ("latency", "the board has no run of one image at a time"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_refused(
    mark: str, problem: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in PAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<!-- board: {mark} -->old<!-- /board -->\n")
    assert board.main(["pages", str(results), "--root", str(tmp_path)]) == 2
    assert problem in capsys.readouterr().err
    assert "old" in (tmp_path / "README.md").read_text()


def test_places_by_passes_stand_beside_those_by_time(tmp_path: Path) -> None:
    bench = tmp_path / "results" / "bench" / "newest.csv"
    bench.parent.mkdir(parents=True)
    bench.write_text(
        "device,machine,model,batch,method,speedup\n"
        "cpu,here,toy,1,plain,1.0\n"
        "cpu,here,toy,1,zipar,2.0\n"
    )
    results = tmp_path / "timed"
    write_run(results, values_of(3), options=compose_options("plain"))
    write_run(
        results,
        values_of(2),
        "zipar",
        fingerprint="00000003",
        usage={"target_passes": 57},
        options=compose_options("zipar"),
        title="ZipAR",
    )
    some = Shown(project_runs(read_runs(results).runs), tmp_path)
    filled = fill("<!-- board: times newest --><!-- /board -->", some, "page", board.FRAGMENTS)
    assert "| ZipAR | 57.0 | 0.500 | 1 | 1 |" in filled
    with pytest.raises(UserError, match=r"absent\.csv: no such file"):
        fill("<!-- board: times absent --><!-- /board -->", some, "page", board.FRAGMENTS)


def test_every_opened_mark_of_a_page_is_closed() -> None:
    root = Path(__file__).parent.parent
    for name in PAGES:
        text = (root / name).read_text()
        assert text.count("<!-- board: ") == text.count("<!-- /board -->"), name
