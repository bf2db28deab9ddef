"""The report: a pure projection of journals into a page that works from disk, and the same figures
as PDF.
"""

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
    acceptance,
    boxes,
    confidence,
    curves,
    dots,
    panels,
    stages,
)

PAGE = Path(figures.__file__).parent / "page"
HOSTILE = {
    0: "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">",
    1: "猫が三匹いる写真, ein Foto für Bär 🐻",
    2: "a very long prompt " * 200,
}


def data(results: Path, name: str) -> Any:
    """What a data file assigns."""
    text = (results / f"report/data/{name}.js").read_text(encoding="ascii")
    return json.loads(text.partition("=")[2].removesuffix(";\n"))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------- what is collected


def test_equal_journals_give_an_equal_report_to_the_last_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_board(tmp_path / name)
        write_report(tmp_path / name, build(tmp_path / name), figures=False)
    first = files(tmp_path / "a/report")
    assert first == files(tmp_path / "b/report")
    write_report(tmp_path / "a", build(tmp_path / "a"), figures=False)
    assert files(tmp_path / "a/report") == first


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_pdf_figures_are_one_column_wide_and_do_not_name_the_hour(
    tmp_path: Path, every: bool
) -> None:
    """Letters stay letters, and equal journals give equal files."""
    for name in ("a", "b"):
        make_board(tmp_path / name) if every else make_run(tmp_path / name)
        write_report(tmp_path / name, build(tmp_path / name))
    pdfs = files(tmp_path / "a/report/figures")
    assert pdfs == files(tmp_path / "b/report/figures")
    assert sorted(pdfs) == sorted(f"{name}.pdf" for name in data(tmp_path / "a", "figures"))
    assert len(pdfs) == (8 if every else 2)
    for name, pdf in pdfs.items():
        (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ", pdf)
        assert float(width) == pytest.approx(72 * 3.35), name
        assert b"CreationDate" not in pdf and b"/FontType 3" not in pdf, name


def test_every_figure_has_what_the_page_shows(tmp_path: Path) -> None:
    make_board(tmp_path)
    (panel,) = panels(build(tmp_path))
    drawn = {}
    for name, draw in figures._figures(panel):
        drawn[name.split("-")[0]] = figure = Figure()
        draw(figure)
    assert list(drawn) == [
        *(
            "scaling",
            "pareto_tokens",
            "pareto_seconds",
            "bubbles",
            "spent",
            "acceptance",
            "confidence",
            "pruning",
        )
    ]
    curve = drawn["scaling"].axes[0].lines[0]
    assert curve.get_xdata().tolist() == [1.0, 2.0, 4.0]
    scores = {one.label: one.row["score"] for one in panel.shown}
    assert curve.get_ydata().tolist() == [
        scores[label] for label in ("plain", "best of n (n=2)", "best of n (n=4)")
    ]
    assert len(drawn["bubbles"].axes[0].collections) == 6
    ends = [bar.get_x() + bar.get_width() for bar in drawn["spent"].axes[0].patches[-6:]]
    assert ends == pytest.approx([one.row["device_s"] + 0.002 for one in panel.shown[::-1]])
    bars = [bar.get_height() for bar in drawn["acceptance"].axes[0].patches]
    assert bars == [30 / 45, 10 / 45, 5 / 45]
    assert [axes.get_title() for axes in drawn["confidence"].axes[:3]] == [
        "right images",
        "wrong images",
        "ended early",
    ]
    assert drawn["pruning"].axes[0].lines[0].get_ydata() == pytest.approx(
        0.5 + 0.01 * np.arange(16), abs=6e-4
    )


def test_the_page_says_what_the_leaderboard_says(tmp_path: Path) -> None:
    make_board(tmp_path)
    board = build(tmp_path)
    write_report(tmp_path, board, figures=False)
    (shown,) = data(tmp_path, "board")
    rows = {row["fingerprint"]: row for _, row in board.frame.iterrows()}
    assert {run["id"] for run in shown["runs"]} == set(rows)
    assert [run["score"] for run in shown["runs"]] == sorted(
        (row["score"] for row in rows.values()), reverse=True
    )
    for run in shown["runs"]:
        for name in (
            "score",
            "ci_low",
            "ci_high",
            "visual_tokens",
            "tie_group",
            "vs_plain",
            "vs_plain_low",
            "colors",
        ):
            value = rows[run["id"]][name]
            assert run[name] == (None if value is None or np.isnan(value) else value), name
    for front, column in (("tokens", "budget"), ("seconds", "budget_s")):
        assert [dot["cost"] for dot in shown["fronts"][front]] == sorted(board.frame[column])
        best = {dot["id"] for dot in shown["fronts"][front] if dot["efficient"]}
        assert best == {id_ for id_, row in rows.items() if row[f"front_{front}"] == "yes"}
    (curve,) = shown["curves"]
    assert [dot["cost"] for dot in curve["dots"]] == [1.0, 2.0, 4.0]


def test_an_image_is_shown_with_verdict_reason_cost_and_boxes(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "plain", prompts=20, drop=[3])
    write_report(tmp_path, build(tmp_path), figures=False)
    (gallery,) = data(tmp_path, "gallery")
    (run,) = gallery["runs"].values()
    assert (run["drawn"][2], run["drawn"][3], run["value"][3], run["thumb"][3]) == (1, 0, None, "")
    assert gallery["reasons"][run["reason"][3]] == "not drawn yet"
    wrong = run["value"].index(0.0)
    assert gallery["reasons"][run["reason"][wrong]] == "expected thing>=2, found 1"
    assert (run["tokens"][2], 100 < run["ms"][2] < 102, run["size"]) == (144, True, [16, 16])
    assert (tmp_path / "report/thumbs" / run["thumb"][2]).read_bytes() == (
        folder / "images/00001/0.png"
    ).read_bytes()
    first, second = (data(tmp_path, f"{folder.name.split('-')[1]}-{part}") for part in (0, 1))
    assert (len(first), len(second)) == (32, 8)
    assert first[2]["boxes"] == [["thing", 2.0, 3.0, 9.0, 12.0, 0.9, "red"]]
    assert first[3] == {}


def test_boxes_are_read_from_what_looks_like_boxes() -> None:
    detail = {
        "kept": {"dog": [[1, 2, 3, 4], [1, 2, 3, 4, 0.5], ["x", 2, 3, 4], [1, 2]], "said": "yes"}
    }
    assert boxes(Score("p", 0, "j", 1.0, detail)) == [
        ["dog", 1, 2, 3, 4, None, ""],
        ["dog", 1, 2, 3, 4, 0.5, ""],
    ]
    assert boxes(Score("p", 0, "j", 1.0, {"kept": 3})) == boxes(None) == []


def test_what_methods_noted_is_summed_over_a_run(tmp_path: Path) -> None:
    make_board(tmp_path)
    (panel,) = panels(build(tmp_path))
    shown = {one.label: one for one in panel.shown}
    assert list(shown) == [one["label"] for one in data_of(tmp_path)]
    assert acceptance(shown["speculative"]) == {"accepted": [24 * 30, 24 * 10, 24 * 5]}
    assert acceptance(shown["plain"]) == {}
    found = confidence(shown["scalingar (n=3)"])
    assert found is not None and found.side == 4
    assert found.alive_T.tolist() == [3.0] * 6 + [2.0] * 3 + [1.0] * 7
    assert found.terminated_T.tolist() == [0] * 5 + [24, 0, 0, 24] + [0] * 7
    np.testing.assert_allclose(found.delivered_T, 0.5 + 0.01 * np.arange(16), atol=6e-4)
    np.testing.assert_allclose(found.ended_T[[0, 5, 6, 8]], [0.65, 0.7, 0.76, 0.78], atol=6e-4)
    assert np.isnan(found.ended_T[9:]).all()
    (stop,) = stages(shown["gridar (n=4)"])
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


def data_of(results: Path) -> list[dict[str, Any]]:
    write_report(results, build(results), figures=False)
    runs: list[dict[str, Any]] = data(results, "board")[0]["runs"]
    return runs


def test_curves_join_the_budgets_of_a_family_from_plain_on(tmp_path: Path) -> None:
    make_board(tmp_path)
    (panel,) = panels(build(tmp_path))
    ((family, points),) = curves(panel)
    assert (family, [dot.one.label for dot in points]) == (
        "best of n",
        ["plain", "best of n (n=2)", "best of n (n=4)"],
    )
    assert {dot.one.label for dot in dots(panel, "tokens")} == {one.label for one in panel.shown}


# ---------------------------------------------------------------- files


def test_the_report_needs_no_image_and_keeps_the_thumbnails_it_has(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "plain")
    write_report(tmp_path, build(tmp_path), figures=False)
    before = files(tmp_path / "report/thumbs")
    assert len(before) == 24
    shutil.rmtree(folder / "images")
    write_report(tmp_path, build(tmp_path), figures=False)
    assert files(tmp_path / "report/thumbs") == before
    shutil.rmtree(tmp_path / "report")
    write_report(tmp_path, build(tmp_path), figures=False)
    (gallery,) = data(tmp_path, "gallery")
    (run,) = gallery["runs"].values()
    assert (set(run["thumb"]), run["size"], set(run["drawn"])) == ({""}, None, {1})


def test_large_images_get_small_thumbnails_and_stale_files_go(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "plain", pixels=300, prompts=3)
    write_report(tmp_path, build(tmp_path))
    thumbs = list((tmp_path / "report/thumbs").iterdir())
    assert {thumb.suffix for thumb in thumbs} == {".webp"}
    assert max(Image.open(thumbs[0]).size) == 192
    assert list((tmp_path / "report/figures").iterdir())
    shutil.rmtree(folder)
    write_report(tmp_path, build(tmp_path), figures=False)
    left = {name for name in files(tmp_path / "report") if "/" in name}
    assert left == {f"data/{name}.js" for name in ("board", "claims", "figures", "gallery")}


def test_names_in_journals_cannot_reach_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(
        (make_run(tmp_path / "r", "plain") / "images/00000/0.png").read_bytes()
    )
    (folder,) = (tmp_path / "r/made/small").iterdir()
    journal = folder / "records-0.jsonl"
    outside = "../../../../secret.png"
    journal.write_text(
        journal.read_text()
        .replace("images/00000/0.png", outside)
        .replace('image_sha":"', 'image_sha":"../../x')
    )
    config = folder / "config.yaml"
    config.write_text(re.sub("fingerprint: .*", "fingerprint: ../../../up", config.read_text()))
    before = {path for path in tmp_path.rglob("*") if path.is_file() and "report" not in path.parts}
    write_report(tmp_path / "r", build(tmp_path / "r"), figures=False)
    (gallery,) = data(tmp_path / "r", "gallery")
    (run,) = gallery["runs"].values()
    assert run["thumb"][0] == "" != run["thumb"][1]
    after = {path for path in tmp_path.rglob("*") if path.is_file() and "report" not in path.parts}
    assert {path.suffix for path in after - before} == {".csv"}


def test_page_and_figures_have_the_same_colours() -> None:
    light = re.search(r"light: \[(.*?)\]", (PAGE / "core.js").read_text(), re.DOTALL)
    assert light and tuple(json.loads(f"[{light[1]}]")) == figures.PALETTE


# ---------------------------------------------------------------- bad input


def test_an_empty_folder_has_an_empty_report(tmp_path: Path) -> None:
    write_report(tmp_path, build(tmp_path))
    assert (data(tmp_path, "board"), data(tmp_path, "gallery"), data(tmp_path, "figures")) == (
        [],
        [],
        [],
    )
    with pytest.raises(UserError, match="no such results folder"):
        build(tmp_path / "nowhere")


def test_runs_of_mixed_protocols_stand_on_boards_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path, "plain")
    make_run(tmp_path, "best_of_n", n=4)
    make_run(tmp_path, "plain", images=1)
    make_run(tmp_path, "plain", benchmark="other")
    write_report(tmp_path, build(tmp_path), figures=False)
    shown = data(tmp_path, "board")
    assert [(one["title"], one["images"], len(one["runs"])) for one in shown] == [
        ("made on small", 2, 2),
        ("made on small", 1, 1),
        ("other on small", 2, 1),
    ]
    assert [one["baseline"] is not None for one in shown] == [True, True, True]


def test_a_torn_line_is_a_missing_image_and_a_newer_schema_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "plain")
    journal = folder / "records-0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    write_report(tmp_path, build(tmp_path), figures=False)
    (shown,) = data(tmp_path, "board")
    assert (shown["runs"][0]["images"], shown["runs"][0]["missing"]) == (23, 1)
    make_run(tmp_path, "best_of_n", schema=99)
    with pytest.raises(UserError, match="schema 99"):
        build(tmp_path)


def test_data_files_are_ascii_and_cannot_end_a_script(tmp_path: Path) -> None:
    make_board(tmp_path, texts=HOSTILE)
    write_report(tmp_path, build(tmp_path), figures=False)
    for name, content in files(tmp_path / "report/data").items():
        assert content.isascii() and b"</" not in content, name
    (gallery,) = data(tmp_path, "gallery")
    assert [text for _, text, _ in gallery["prompts"][:3]] == list(HOSTILE.values())


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    make_board(results, texts=HOSTILE, prompts=40)
    return write_report(results, build(results), figures=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@needs_chromium
def test_the_page_works_from_disk(page: Path, browser: Browser) -> None:
    """Leaderboard, figures, gallery, filters, keys, permanent links, boxes, themes; hostile prompts
    stay text.
    """
    browser.open(page)
    assert browser.evaluate("document.querySelectorAll('table.board tbody tr').length") == 6
    assert (
        browser.wait("document.querySelectorAll('#plot-scaling .scatterlayer .trace').length") >= 5
    )
    browser.evaluate("document.querySelector('.claims details').open = true")
    assert browser.wait("document.querySelectorAll('.claims tbody tr').length") == len(
        data(page.parent.parent, "claims")
    )
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(paper)
    browser.press("t")
    assert browser.evaluate(paper) != light

    browser.press("3")
    assert browser.wait("document.querySelectorAll('.row').length") < 20  # of 80
    assert browser.evaluate("document.querySelector('.row p').textContent") == HOSTILE[0]
    assert browser.evaluate("document.title") == "Gallery"
    loaded = "[...document.querySelectorAll('.row:nth-child(2) img')].filter(i => i.naturalWidth === 16).length"
    assert browser.wait(loaded) == 6
    browser.press("b")
    assert browser.wait("document.querySelectorAll('.shot .boxes rect').length") >= 6

    browser.press("ArrowDown")
    browser.press("ArrowRight")
    browser.press("Enter")
    browser.wait("document.querySelector('#detail[open] .facts dd')")
    address = browser.evaluate("location.hash")
    assert "at=made%2F00000%2F1" in address and "boxes=1" in address
    browser.press("ArrowRight")
    assert browser.evaluate("location.hash") != address
    browser.press("Escape")
    browser.wait("!document.querySelector('#detail[open]') && !location.hash.includes('at=')")

    browser.open(page, address)
    browser.wait("document.querySelector('#detail[open] .facts dd')")
    assert browser.evaluate("document.querySelector('#detail .wording').textContent") == HOSTILE[0]

    (gallery,) = data(page.parent.parent, "gallery")
    ids = {run["label"]: run["id"] for run in data(page.parent.parent, "board")[0]["runs"]}
    plain, best = (gallery["runs"][ids[label]]["value"] for label in ("plain", "best of n (n=4)"))
    wins = sum(a < b for a, b in zip(plain, best, strict=True))
    browser.open(page, f"#gallery?vs=wins&runs={ids['best of n (n=4)']}")
    assert (
        browser.wait("document.querySelector('.filters output').textContent")
        == f"{wins} of 80 rows"
    )
    assert browser.evaluate("document.querySelectorAll('.names .name').length") == 2

    noted = {
        "scalingar (n=3)": ".maps .map",
        "gridar (n=4)": ".composite img",
        "best of n (n=4)": ".meters .chosen",
    }
    for label, sight in noted.items():
        browser.open(page, f"#gallery?at=made/00002/0&run={ids[label]}")
        assert browser.wait(f"document.querySelectorAll('#detail .noted {sight}').length") >= 1, (
            label
        )
    browser.open(page, "#inside")
    assert browser.wait("document.querySelectorAll('.map').length") == 3
    assert browser.wait("document.querySelectorAll('#plot-acceptance .bars path').length") == 3
    assert browser.errors == []


@needs_chromium
def test_an_empty_report_and_a_gone_image_say_so(tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "empty").mkdir()
    browser.open(write_report(tmp_path / "empty", build(tmp_path / "empty"), figures=False))
    assert "empty" in browser.evaluate("document.querySelector('.empty').textContent")
    make_run(tmp_path / "one", "plain", pictures=False)
    browser.open(write_report(tmp_path / "one", build(tmp_path / "one"), figures=False), "#gallery")
    assert browser.wait("document.querySelector('.row .gone').textContent") == "image not kept"
    browser.open(tmp_path / "one/report/index.html")
    assert "nothing to compare" in browser.evaluate("document.querySelector('.notes').textContent")
    assert browser.errors == []


@pytest.mark.long
@needs_chromium
def test_ten_thousand_images_are_painted_within_two_seconds(
    tmp_path: Path, browser: Browser
) -> None:
    for method, n in (
        ("plain", None),
        ("best_of_n", 4),
        ("gridar", 4),
        ("scalingar", 3),
        ("speculative", None),
    ):
        make_run(tmp_path, method, n=n, prompts=500, images=4)
    page = write_report(tmp_path, build(tmp_path), figures=False)
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    for address, sight in (("", "table.board tbody tr"), ("#gallery", ".row img")):
        painted = []
        for _ in range(3):
            browser.open(page, address)
            browser.wait(f"document.querySelectorAll('{sight}').length")
            painted.append((browser.evaluate(paint), browser.evaluate("performance.now()")))
        print(f"{address or '#results'}: first paint and content at {sorted(painted)[1]} ms")
        assert sorted(painted)[1][0] < 2000
