"""The report follows from journals alone: a page that works from disk, and its figures as PDF."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, needs_chromium
from made_runs import make_board, make_run
from matplotlib.figure import Figure
from PIL import Image

from harness.records import Score, UserError
from harness.results.leaderboard import build
from harness.results.report import figures, write_report
from harness.results.report.collect import (
    Panel,
    Shown,
    acceptance,
    boxes,
    confidence,
    curves,
    dots,
    panels,
    stages,
)

HOSTILE = {
    0: "</script><script>document.title='taken'</script>"
    "<img src=x onerror=\"document.title='taken'\">",
    1: "猫が三匹いる写真, ein Foto für Bär 🐻",
    2: "a very long prompt " * 200,
}


def report(results: Path, *, pdf: bool = False) -> Path:
    """Write the tables and the report of a results folder; returns the page."""
    return write_report(results, build(results), figures=pdf)


def data(results: Path, name: str) -> Any:
    """Return what a data file assigns."""
    text = (results / f"report/data/{name}.js").read_text(encoding="ascii")
    return json.loads(text.partition("=")[2].removesuffix(";\n"))


def only_run(results: Path) -> dict[str, Any]:
    """Return the gallery's columns of the only run of a report."""
    (gallery,) = data(results, "gallery")
    (run,) = gallery["runs"].values()
    columns: dict[str, Any] = run
    return columns


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by its place."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def only_panel(results: Path) -> Panel:
    (panel,) = panels(build(results))
    return panel


def by_label(panel: Panel) -> dict[str, Shown]:
    return {one.label: one for one in panel.shown}


# --- what is collected ----------------------------------------------------------------------------


def test_equal_journals_give_an_equal_report_to_the_last_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_board(tmp_path / name)
        report(tmp_path / name)
    first = files(tmp_path / "a/report")
    assert first == files(tmp_path / "b/report")
    report(tmp_path / "a")
    assert files(tmp_path / "a/report") == first


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_pdf_figures_are_one_column_wide_and_do_not_name_the_hour(
    tmp_path: Path, every: bool
) -> None:
    """Equal journals give equal files, in which letters stay letters."""
    for name in ("a", "b"):
        make = make_board if every else make_run
        make(tmp_path / name)
        report(tmp_path / name, pdf=True)
    pdfs = files(tmp_path / "a/report/figures")
    assert pdfs == files(tmp_path / "b/report/figures")
    assert sorted(pdfs) == sorted(f"{name}.pdf" for name in data(tmp_path / "a", "figures"))
    assert len(pdfs) == (8 if every else 2)
    for name, pdf in pdfs.items():
        (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ", pdf)
        assert float(width) == pytest.approx(72 * 3.35), name
        assert b"CreationDate" not in pdf, name
        assert b"/FontType 3" not in pdf, name


FIGURES = (
    "scaling",
    "pareto_tokens",
    "pareto_seconds",
    "bubbles",
    "spent",
    "acceptance",
    "confidence",
    "pruning",
)


def test_every_figure_has_what_the_page_shows(tmp_path: Path) -> None:
    make_board(tmp_path)
    panel = only_panel(tmp_path)
    drawn = {}
    for name, draw in figures.list_figures(panel):
        figure = Figure()
        draw(figure)
        drawn[name.split("-")[0]] = figure.axes
    assert tuple(drawn) == FIGURES

    curve = drawn["scaling"][0].lines[0]
    shown = by_label(panel)
    members = ("Plain", "Best-of-2", "Best-of-4")
    assert curve.get_xdata().tolist() == [1.0, 2.0, 4.0]
    assert curve.get_ydata().tolist() == [shown[label].row["score"] for label in members]
    assert len(drawn["bubbles"][0].collections) == 6

    bars = drawn["spent"][0].patches[-6:]
    seconds = [one.row["device_s"] + 0.002 for one in panel.shown[::-1]]
    assert [bar.get_x() + bar.get_width() for bar in bars] == pytest.approx(seconds)
    shares = [bar.get_height() for bar in drawn["acceptance"][0].patches]
    assert shares == [30 / 45, 10 / 45, 5 / 45]

    titles = [axes.get_title() for axes in drawn["confidence"][:3]]
    assert titles == ["right images", "wrong images", "ended early"]
    delivered = drawn["pruning"][0].lines[0].get_ydata()
    assert delivered == pytest.approx(0.5 + 0.01 * np.arange(16), abs=6e-4)


SHOWN_COLUMNS = (
    "score",
    "ci_low",
    "ci_high",
    "visual_tokens",
    "tie_group",
    "vs_plain",
    "vs_plain_low",
    "colors",
)


def test_the_page_says_what_the_leaderboard_says(tmp_path: Path) -> None:
    make_board(tmp_path)
    board = build(tmp_path)
    write_report(tmp_path, board, figures=False)
    (shown,) = data(tmp_path, "board")
    rows = {row["fingerprint"]: row for _, row in board.frame.iterrows()}
    assert {run["id"] for run in shown["runs"]} == set(rows)

    scores = [run["score"] for run in shown["runs"]]
    assert scores == sorted((row["score"] for row in rows.values()), reverse=True)
    for run in shown["runs"]:
        for name in SHOWN_COLUMNS:
            value = rows[run["id"]][name]
            is_known = value is not None and not np.isnan(value)
            assert run[name] == (value if is_known else None), name

    for front, column in (("tokens", "budget"), ("seconds", "budget_s")):
        front_dots = shown["fronts"][front]
        assert [dot["cost"] for dot in front_dots] == sorted(board.frame[column])
        best = {dot["id"] for dot in front_dots if dot["efficient"]}
        assert best == {id_ for id_, row in rows.items() if row[f"front_{front}"] == "yes"}

    (curve,) = shown["curves"]
    assert [dot["cost"] for dot in curve["dots"]] == [1.0, 2.0, 4.0]


def test_an_image_is_shown_with_verdict_reason_cost_and_boxes(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "plain", prompts=20, drop=[3])
    report(tmp_path)
    (gallery,) = data(tmp_path, "gallery")
    run = only_run(tmp_path)
    missing = 3
    assert run["drawn"][missing] == 0
    assert run["value"][missing] is None
    assert run["thumb"][missing] == ""
    assert gallery["reasons"][run["reason"][missing]] == "not drawn yet"

    wrong = run["value"].index(0.0)
    assert gallery["reasons"][run["reason"][wrong]] == "expected at least 2 thing, found 1"

    assert run["drawn"][2] == 1
    assert run["tokens"][2] == 144
    assert 100 < run["ms"][2] < 102
    assert run["size"] == [16, 16]
    thumbnail = tmp_path / "report/thumbs" / run["thumb"][2]
    assert thumbnail.read_bytes() == (folder / "images/00001/0.png").read_bytes()

    fingerprint = folder.name.split("-")[1]
    first = data(tmp_path, f"{fingerprint}-0")
    second = data(tmp_path, f"{fingerprint}-1")
    assert (len(first), len(second)) == (32, 8)
    assert first[2]["boxes"] == [["thing", 2.0, 3.0, 9.0, 12.0, 0.9, "red"]]
    assert first[missing] == {}


def test_boxes_are_read_from_what_looks_like_boxes() -> None:
    dogs = [[1, 2, 3, 4], [1, 2, 3, 4, 0.5], ["x", 2, 3, 4], [1, 2]]
    score = Score("p", 0, "j", 1.0, {"kept": {"dog": dogs, "said": "yes"}})
    assert boxes(score) == [["dog", 1, 2, 3, 4, None, ""], ["dog", 1, 2, 3, 4, 0.5, ""]]
    assert boxes(Score("p", 0, "j", 1.0, {"kept": 3})) == []
    assert boxes(None) == []


def test_runs_stand_in_the_page_in_the_order_of_their_panel(tmp_path: Path) -> None:
    make_board(tmp_path)
    report(tmp_path)
    (board,) = data(tmp_path, "board")
    assert [run["label"] for run in board["runs"]] == list(by_label(only_panel(tmp_path)))


def test_accepted_tokens_are_summed_over_a_run(tmp_path: Path) -> None:
    make_board(tmp_path)
    shown = by_label(only_panel(tmp_path))
    assert acceptance(shown["Speculative"]) == {"accepted": [24 * 30, 24 * 10, 24 * 5]}
    assert acceptance(shown["Plain"]) == {}


def test_confidence_is_averaged_over_the_candidates_that_are_alive(tmp_path: Path) -> None:
    make_board(tmp_path)
    found = confidence(by_label(only_panel(tmp_path))["ScalingAR, N = 3"])
    assert found is not None
    assert found.side == 4
    assert found.alive_T.tolist() == [3.0] * 6 + [2.0] * 3 + [1.0] * 7
    assert found.terminated_T.tolist() == [0] * 5 + [24, 0, 0, 24] + [0] * 7
    np.testing.assert_allclose(found.delivered_T, 0.5 + 0.01 * np.arange(16), atol=6e-4)
    np.testing.assert_allclose(found.ended_T[[0, 5, 6, 8]], [0.65, 0.7, 0.76, 0.78], atol=6e-4)
    assert np.isnan(found.ended_T[9:]).all()


def test_stops_are_summed_over_a_run(tmp_path: Path) -> None:
    make_board(tmp_path)
    (stop,) = stages(by_label(only_panel(tmp_path))["GridAR, N = 4"])
    assert stop | {"stage": ""} == {
        "stage": "",
        "images": 24,
        "candidates": 96,
        "impossible": 24,
        "replaced": 24,
        "reworded": 96,
        "unanswered": 0,
        "malformed": 0,
    }


def test_curves_join_the_budgets_of_a_family_from_plain_on(tmp_path: Path) -> None:
    make_board(tmp_path)
    panel = only_panel(tmp_path)
    ((family, members),) = curves(panel)
    assert family == "Best-of-N"
    labels = [dot.one.label for dot in members]
    assert labels == ["Plain", "Best-of-2", "Best-of-4"]
    assert {dot.one.label for dot in dots(panel, "tokens")} == set(by_label(panel))


# --- files ----------------------------------------------------------------------------------------


def test_the_report_needs_no_image_and_keeps_the_thumbnails_it_has(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "plain")
    report(tmp_path)
    before = files(tmp_path / "report/thumbs")
    assert len(before) == 24
    shutil.rmtree(folder / "images")
    report(tmp_path)
    assert files(tmp_path / "report/thumbs") == before
    shutil.rmtree(tmp_path / "report")
    report(tmp_path)
    run = only_run(tmp_path)
    assert set(run["thumb"]) == {""}
    assert run["size"] is None
    assert set(run["drawn"]) == {1}


def test_large_images_get_small_thumbnails_and_stale_files_go(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "plain", pixels=300, prompts=3)
    report(tmp_path, pdf=True)
    thumbs = list((tmp_path / "report/thumbs").iterdir())
    assert {thumb.suffix for thumb in thumbs} == {".webp"}
    assert max(Image.open(thumbs[0]).size) == 192
    assert list((tmp_path / "report/figures").iterdir())
    shutil.rmtree(folder)
    report(tmp_path)
    names = ("board", "claims", "figures", "first", "gallery", "palette")
    in_folders = {name for name in files(tmp_path / "report") if "/" in name}
    assert in_folders == {f"data/{name}.js" for name in names}


def test_names_in_journals_cannot_reach_outside(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", "plain")
    secret = (folder / "images/00000/0.png").read_bytes()
    (tmp_path / "secret.png").write_bytes(secret)

    journal = folder / "records-0.jsonl"
    records = journal.read_text()
    records = records.replace("images/00000/0.png", "../../../../secret.png")
    records = records.replace('image_sha":"', 'image_sha":"../../x')
    journal.write_text(records)
    config = folder / "config.yaml"
    config.write_text(re.sub("fingerprint: .*", "fingerprint: ../../../up", config.read_text()))

    before = files_outside_reports(tmp_path)
    report(tmp_path / "r")
    written = files_outside_reports(tmp_path) - before
    assert {path.suffix for path in written} == {".csv"}
    run = only_run(tmp_path / "r")
    assert run["thumb"][0] == ""
    assert run["thumb"][1] != ""


def files_outside_reports(folder: Path) -> set[Path]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path for path in paths if "report" not in path.parts}


# --- bad input ------------------------------------------------------------------------------------


def test_an_empty_folder_has_an_empty_report(tmp_path: Path) -> None:
    report(tmp_path, pdf=True)
    for name in ("board", "gallery", "figures"):
        assert data(tmp_path, name) == []
    with pytest.raises(UserError, match="no such results folder"):
        build(tmp_path / "nowhere")


def test_runs_of_mixed_protocols_stand_on_boards_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path, "plain")
    make_run(tmp_path, "best_of_n", n=4)
    make_run(tmp_path, "plain", images=1)
    make_run(tmp_path, "plain", benchmark="other")
    report(tmp_path)
    shown = data(tmp_path, "board")
    sizes = [(board["title"], board["images"], len(board["runs"])) for board in shown]
    assert sizes == [
        ("made on small", 2, 2),
        ("made on small", 1, 1),
        ("other on small", 2, 1),
    ]
    assert all(board["baseline"] is not None for board in shown)


def test_a_torn_line_is_a_missing_image_and_a_newer_schema_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "plain")
    journal = folder / "records-0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    report(tmp_path)
    (shown,) = data(tmp_path, "board")
    (run,) = shown["runs"]
    assert run["images"] == 23
    assert run["missing"] == 1
    make_run(tmp_path, "best_of_n", schema=99)
    (problem,) = build(tmp_path).problems
    assert "schema 99" in problem


def test_data_files_are_ascii_and_cannot_end_a_script(tmp_path: Path) -> None:
    make_board(tmp_path, texts=HOSTILE)
    report(tmp_path)
    for name, content in files(tmp_path / "report/data").items():
        assert content.isascii(), name
        assert b"</" not in content, name
    (gallery,) = data(tmp_path, "gallery")
    texts = [text for _, text, _ in gallery["prompts"][:3]]
    assert texts == list(HOSTILE.values())


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    make_board(results, texts=HOSTILE, prompts=40)
    return report(results)


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.fixture
def browser(one_browser: Browser) -> Browser:
    """Return the browser without what another test's page left in it."""
    one_browser.leave()
    return one_browser


def test_a_task_may_be_called_as_what_the_page_draws(tmp_path: Path) -> None:
    """Tasks stand by themselves: "color" is one of edits, and what a run is drawn in."""
    folder = make_run(tmp_path)
    for file in folder.glob("*.jsonl"):
        text = file.read_text().replace('"colors"', '"color"').replace('"position"', '"title"')
        file.write_text(text)
    report(tmp_path)
    (run,) = data(tmp_path, "board")[0]["runs"]
    assert sorted(run["tasks"]) == ["color", "counting", "title"]
    assert all(0 <= share <= 1 for share in run["tasks"].values())
    assert sorted(run["color"]) == ["dark", "light"]
    assert run["title"] == "Plain"


def test_a_label_in_a_figure_keeps_its_title() -> None:
    label = "GridAR, N = 4 (pad=zero, reward=a-reward-of-edits, verifier=a-verifier)"
    assert figures.shorten(label) == "GridAR, N = 4 (pad=zero, ...)"
    assert figures.shorten("Best-of-4") == "Best-of-4"


def count(selector: str) -> str:
    """Return an expression for the number of elements that match."""
    return f"document.querySelectorAll('{selector}').length"


def text(selector: str) -> str:
    """Return an expression for the text of the first element that matches."""
    return f"document.querySelector('{selector}').textContent"


DETAIL_IS_SHOWN = "document.querySelector('#detail[open] .facts dd')"
DETAIL_IS_CLOSED = "!document.querySelector('#detail[open]') && !location.hash.includes('at=')"
PAPER = "getComputedStyle(document.body).backgroundColor"
IMAGES_OF_A_ROW = "[...document.querySelectorAll('.row:nth-child(2) img')]"
LOADED_IMAGES = f"{IMAGES_OF_A_ROW}.filter(i => i.naturalWidth === 16).length"


@needs_chromium
def test_the_page_works_from_disk(page: Path, browser: Browser) -> None:
    """Walk through all views; hostile prompts stay text, and the page complains of nothing."""
    results = page.parent.parent
    (gallery,) = data(results, "gallery")
    runs = data(results, "board")[0]["runs"]
    ids = {run["label"]: run["id"] for run in runs}

    # 1. The leaderboard, its figures, published numbers, themes.
    browser.open(page)
    assert browser.evaluate(count("table.board tbody tr")) == 6
    assert browser.wait(count("#plot-scaling .scatterlayer .trace")) >= 5
    browser.evaluate("document.querySelector('.claims details').open = true")
    assert browser.wait(count(".claims tbody tr")) == len(data(results, "claims"))
    light = browser.evaluate(PAPER)
    browser.press("t")
    assert browser.evaluate(PAPER) != light

    # 2. The gallery: only the rows in sight, thumbnails, boxes.
    browser.press("5")
    assert browser.wait(count(".row")) < 20  # of 80
    assert browser.evaluate(text(".row p")) == HOSTILE[0]
    assert browser.evaluate("document.title") == "Gallery"
    assert browser.wait(LOADED_IMAGES) == 6
    browser.press("b")
    assert browser.wait(count(".shot .boxes rect")) >= 6

    # 3. An image, by keys and by its permanent link.
    browser.press("ArrowDown")
    browser.press("ArrowRight")
    browser.press("Enter")
    browser.wait(DETAIL_IS_SHOWN)
    address = browser.evaluate("location.hash")
    assert "at=made%2F00000%2F1" in address
    assert "boxes=1" in address
    browser.press("ArrowRight")
    assert browser.evaluate("location.hash") != address
    browser.press("Escape")
    browser.wait(DETAIL_IS_CLOSED)
    browser.open(page, address)
    browser.wait(DETAIL_IS_SHOWN)
    assert browser.evaluate(text("#detail .wording")) == HOSTILE[0]

    # 4. Filters.
    best_of_4 = ids["Best-of-4"]
    plain_values = gallery["runs"][ids["Plain"]]["value"]
    best_values = gallery["runs"][best_of_4]["value"]
    wins = sum(a < b for a, b in zip(plain_values, best_values, strict=True))
    browser.open(page, f"#gallery?vs=wins&runs={best_of_4}")
    assert browser.wait(text(".filters output")) == f"{wins} of 80 rows"
    assert browser.evaluate(count(".names .name")) == 2

    # 5. What methods noted, about an image and over a run.
    noted = {
        "ScalingAR, N = 3": ".maps .map",
        "GridAR, N = 4": ".composite img",
        "Best-of-4": ".meters .chosen",
    }
    for label, selector in noted.items():
        browser.open(page, f"#gallery?at=made/00002/0&run={ids[label]}")
        assert browser.wait(count(f"#detail .noted {selector}")) >= 1, label
    browser.open(page, "#inside")
    assert browser.wait(count(".map")) == 3
    assert browser.wait(count("#plot-acceptance .bars path")) == 3
    assert browser.errors == []


@needs_chromium
def test_an_empty_report_and_a_gone_image_say_so(tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "empty").mkdir()
    browser.open(report(tmp_path / "empty"))
    assert "empty" in browser.evaluate(text(".empty"))

    make_run(tmp_path / "one", "plain", pictures=False)
    page = report(tmp_path / "one")
    browser.open(page, "#gallery")
    assert browser.wait(text(".row .gone")) == "image not kept"
    browser.open(page)
    assert "nothing to compare" in browser.evaluate(text(".notes"))
    assert browser.errors == []


LARGE_BOARD = {"plain": None, "best_of_n": 4, "gridar": 4, "scalingar": 3, "speculative": None}
"""Methods with their numbers of candidates."""


@pytest.mark.long
@needs_chromium
def test_ten_thousand_images_are_painted_within_two_seconds(
    tmp_path: Path, browser: Browser
) -> None:
    for method, n in LARGE_BOARD.items():
        make_run(tmp_path, method, n=n, prompts=500, images=4)
    page = report(tmp_path)
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    for address, sight in (("", "table.board tbody tr"), ("#gallery", ".row img")):
        measured = []
        for _ in range(3):
            browser.open(page, address)
            browser.wait(count(sight))
            first_paint = browser.evaluate(paint)
            content = browser.evaluate("performance.now()")
            measured.append((first_paint, content))
        median_paint, median_content = sorted(measured)[1]
        where = address or "#results"
        print(f"{where}: first paint {median_paint} ms, content {median_content} ms")
        assert median_paint < 2000
