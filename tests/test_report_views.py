"""Colours, comparisons of two runs, budgets, and pages of runs without scores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, needs_chromium
from made_runs import make_board, make_run
from PIL import Image, ImageFont
from test_report import count, data, report, text
from written_runs import write_run

from harness.results.contact_sheet import (
    GAP,
    LEGEND_HEIGHT,
    PITCH,
    PROMPT_WIDTH,
    RIGHT,
    RUN_NAME_HEIGHT,
    WRONG,
    wrap,
    write_contact_sheet,
)
from harness.results.leaderboard import build
from harness.results.remarks import list_remarks
from harness.results.report import colors, pairs, write_report
from harness.results.report.budgets import LEVELS, list_families
from harness.results.report.collect import Panel, panels
from harness.results.report.colors import (
    BACKGROUND,
    PALETTE,
    STAGES,
    THEMES,
    Theme,
    method_color,
    run_color,
)
from harness.results.report.figures import list_figures
from harness.results.report.pairs import compare_pairs, mean_by_prompt
from harness.runs.metrics import MetricAbout

CSS = (Path(colors.__file__).parent / "page" / "style.css").read_text()

# --- colours --------------------------------------------------------------------------------------

TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
"""Both from linear sRGB to OKLab (Ottosson 2020)."""
EYES = {
    "normal": np.eye(3),
    "protanopic": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopic": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopic": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
"""How they see linear sRGB (Machado, Oliveira and Fernandes, IEEE TVCG 15, 2009, severity 1)."""
LEAST_DISTANCE = {"normal": 0.1, "protanopic": 0.06, "deuteranopic": 0.06, "tritanopic": 0.06}
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def linear(color: str) -> np.ndarray:
    """Return #rrggbb as linear sRGB."""
    channels = np.array([int(color[first : first + 2], 16) for first in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def seen(color: str, eye: str) -> np.ndarray:
    """Return what an eye sees of a colour, in OKLab."""
    light = np.clip(EYES[eye] @ linear(color), 0, 1)
    return np.asarray(TO_LAB @ np.cbrt(TO_CONES @ light))


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    dark, bright = sorted(float(LUMINANCE @ linear(color)) for color in (one, other))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("theme", THEMES)
def test_any_two_methods_have_different_colours(theme: Theme, eye: str) -> None:
    views = {color: seen(color, eye) for color in PALETTE[theme]}
    assert len(views) == 19
    distances = {}
    for one, other in combinations(views, 2):
        distances[one, other] = float(np.linalg.norm(views[one] - views[other]))
    nearest = min(distances, key=lambda two: distances[two])
    assert distances[nearest] >= LEAST_DISTANCE[eye], nearest


@pytest.mark.parametrize("theme", THEMES)
def test_colours_stand_out_from_what_they_stand_on(theme: Theme) -> None:
    block = CSS if theme == "light" else CSS[CSS.index('[data-theme="dark"]') :]
    card = re.search("--card: (#......)", block)
    page = re.search("--page: (#......)", block)
    assert card and page
    assert card[1] == BACKGROUND[theme]
    for color in range(len(PALETTE[theme])):
        for ground in (card[1], page[1]):
            assert contrast(method_color(color, theme), ground) >= 3
        assert contrast(run_color(color, 0, theme), card[1]) >= 1.5


@pytest.mark.parametrize("theme", THEMES)
def test_budgets_of_a_method_are_shades_of_its_colour(theme: Theme) -> None:
    for color in range(len(PALETTE[theme])):
        shades = [run_color(color, shade, theme) for shade in (0, 0.5, 1)]
        assert shades[-1] == method_color(color, theme)
        small, middle, large = (seen(shade, "normal") for shade in shades)
        assert np.linalg.norm(small - middle) > 0.05
        assert np.linalg.norm(middle - large) > 0.05


def test_more_methods_than_colours_share_them_and_never_plains() -> None:
    many = [method_color(color, "light") for color in range(40)]
    assert many.count(PALETTE["light"][0]) == 1
    assert set(many) == set(PALETTE["light"])
    assert len(set(STAGES)) == len(STAGES)


# --- two runs compared ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    make_board(folder, prompts=40)
    report(folder)
    return folder


@pytest.fixture(scope="module")
def panel(results: Path) -> Panel:
    (only,) = panels(build(results))
    return only


def test_a_pair_says_what_the_leaderboard_says(results: Path, panel: Panel) -> None:
    (shown,) = data(results, "board")
    found = data(results, "pairs-0")
    assert len(found) == 6 * 5 / 2
    plain = next(run for run in shown["runs"] if run["label"] == "Plain")
    for run in shown["runs"]:
        pair = found.get(f"{run['id']} {plain['id']}")
        if run is not plain and pair is not None:
            for name, column in (("value", ""), ("low", "_low"), ("high", "_high"), ("p", "_p")):
                assert pair[name] == pytest.approx(run[f"vs_plain{column}"], abs=1e-12)


def test_outcomes_are_counted_over_the_prompts_of_a_category(results: Path, panel: Panel) -> None:
    (gallery,) = data(results, "gallery")
    for pair in compare_pairs(panel):
        means = [mean_by_prompt(one) for one in (pair.a, pair.b)]
        difference = {
            prompt.id: means[0][prompt.id] - means[1][prompt.id] for prompt in panel.prompts
        }
        for category, outcomes in pair.outcomes.items():
            ids = [prompt.id for prompt in panel.prompts if prompt.category == category]
            wins = sum(difference[id_] > 0 for id_ in ids)
            losses = sum(difference[id_] < 0 for id_ in ids)
            assert (outcomes.wins, outcomes.losses) == (wins, losses)
            assert outcomes.ties == len(ids) - wins - losses
        for one, mean in zip((pair.a, pair.b), means, strict=True):
            in_order = [mean[id_] for id_, _, _ in gallery["prompts"]]
            assert gallery["runs"][one.id]["mean"] == in_order


def test_of_many_runs_the_best_and_plain_are_compared(
    panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "MOST_RUNS", 2)
    compared = {one.label for pair in compare_pairs(panel) for one in (pair.a, pair.b)}
    assert compared == {panel.shown[0].label, panel.shown[1].label, "Plain"}


# --- budgets --------------------------------------------------------------------------------------


def test_a_budget_buys_the_dearest_run_at_or_below_it(panel: Panel) -> None:
    bought = {}
    for family in list_families(panel, "tokens"):
        offers = [family.bought_at(level) for level in LEVELS]
        bought[family.name] = [offer.one.label if offer else None for offer in offers]
    assert bought == {
        "Best-of-N": [None, "Best-of-2", "Best-of-4", "Best-of-4"],
        "GridAR": [None, None, "GridAR, N = 4", "GridAR, N = 4"],
        "ScalingAR": [None, None, "ScalingAR, N = 3", "ScalingAR, N = 3"],
        "Plain": ["Plain"] * 4,
        "Speculative": ["Speculative"] * 4,
    }


def test_budgets_are_counted_in_tokens_passes_and_seconds(panel: Panel) -> None:
    costs = {}
    for axis in ("tokens", "passes", "seconds"):
        families = {family.name: family for family in list_families(panel, axis)}
        costs[axis] = [offer.cost for offer in families["Best-of-N"].offers]
    assert costs["tokens"] == [2.0, 4.0]
    assert costs["passes"] == [1.0, 1.0]
    assert costs["seconds"] == pytest.approx([2.0, 4.0], rel=0.01)


def test_without_plain_sampling_no_budget_is_known(tmp_path: Path) -> None:
    make_run(tmp_path, "best_of_n", n=4)
    report(tmp_path)
    (shown,) = data(tmp_path, "board")
    assert shown["budgets"] == {"tokens": [], "passes": [], "seconds": []}


# --- reasons --------------------------------------------------------------------------------------


def test_a_grey_difference_has_a_reason(results: Path) -> None:
    (shown,) = data(results, "board")
    for run in shown["runs"]:
        verdict = run.get("vs_plain_verdict")
        if verdict:
            assert bool(run["vs_plain_reason"]) == (not run["vs_plain_resolved"])
    reasons = {run["label"]: run["vs_plain_reason"] for run in shown["runs"]}
    assert reasons["Speculative"] == "not significant: p is 5 % or more"
    assert reasons["Best-of-4"] == ""


# --- runs without scores --------------------------------------------------------------------------


def make_unscored(results: Path) -> None:
    """Make runs of one's own prompts, which no judge is asked about."""
    for method, n in (("plain", None), ("best_of_n", 4)):
        folder = make_run(results, method, n=n, judge="", benchmark="prompts")
        (folder / "scores.jsonl").unlink()


def test_unscored_runs_have_costs_and_images_but_no_empty_figure(tmp_path: Path) -> None:
    make_unscored(tmp_path)
    report(tmp_path)
    (shown,) = data(tmp_path, "board")
    assert not shown["scored"]
    assert [run["visual_tokens"] for run in shown["runs"]] == [576, 144]
    assert shown["fronts"] == {"tokens": [], "seconds": []}
    assert data(tmp_path, "pairs-0") == {}
    (panel,) = panels(build(tmp_path))
    assert [name for name, _ in list_figures(panel)] == ["spent"]


# --- contact sheet --------------------------------------------------------------------------------


def test_a_contact_sheet_says_what_its_frames_mean(tmp_path: Path) -> None:
    scored = make_run(tmp_path / "a", "plain")
    make_unscored(tmp_path / "b")
    unscored = [file.parent for file in (tmp_path / "b").glob("*/*/*/config.yaml")]
    found = []
    for folders in ([scored], unscored):
        path = write_contact_sheet(folders, tmp_path / "sheet.png")
        legend = np.asarray(Image.open(path).convert("RGB"))[-LEGEND_HEIGHT:]
        present = {f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in legend.reshape(-1, 3)}
        found.append({RIGHT, WRONG} & present)
    assert found == [{RIGHT, WRONG}, set()]


def test_a_label_is_broken_behind_its_marks_and_loses_no_letter() -> None:
    font = ImageFont.load_default(14)
    label = "gridar n=4 reward=pictogram_edit_reward verifier=pictogram_edit_verifier"
    lines = wrap(label, font, 100).split("\n")
    assert max(font.getlength(line) for line in lines) <= 100
    assert "".join(lines).replace(" ", "") == label.replace(" ", "")
    assert wrap("as it is", font, 100) == "as it is"


def test_a_contact_sheet_has_a_section_for_each_benchmark(tmp_path: Path) -> None:
    """Runs that share no prompt stand below each other; the later sections are half as long."""
    first = {f"colors/{number}": [1.0] for number in range(6)}
    second = {f"edits/{number}": [1.0] for number in range(6)}
    folders = [
        write_run(tmp_path / "a", first, "plain"),
        write_run(tmp_path / "b", second, "plain"),
        write_run(tmp_path / "a", first, "other", fingerprint="00000002"),
    ]
    path = write_contact_sheet(folders, tmp_path / "sheet.png", rows=4)
    head = RUN_NAME_HEIGHT + GAP
    with Image.open(path) as sheet:
        assert sheet.width == PROMPT_WIDTH + 2 * PITCH + GAP
        assert sheet.height == (head + 4 * PITCH) + (head + 2 * PITCH) + LEGEND_HEIGHT
        below = np.asarray(sheet.convert("L"))[head + 4 * PITCH + RUN_NAME_HEIGHT :]
    one, other = (PROMPT_WIDTH + column * PITCH for column in range(2))
    assert (below[1 : 2 * PITCH, one] < 255).mean() > 0.8  # the frames of the second benchmark
    assert (below[1 : 2 * PITCH, other] == 255).all()  # it has one run


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.fixture
def browser(one_browser: Browser) -> Browser:
    """Return the browser without what another test's page left in it."""
    one_browser.leave()
    return one_browser


def ids_by_label(results: Path) -> dict[str, str]:
    (shown,) = data(results, "board")
    return {run["label"]: run["id"] for run in shown["runs"]}


@needs_chromium
def test_two_runs_are_compared_in_both_orders(results: Path, browser: Browser) -> None:
    page = results / "report/index.html"
    ids = ids_by_label(results)
    best, plain = ids["Best-of-4"], ids["Plain"]
    pair = data(results, "pairs-0")[f"{best} {plain}"]
    wins, _, losses = np.sum([found[3:] for found in pair["categories"].values()], axis=0)
    headlines = []
    for a, b, of_a, of_b in ((best, plain, wins, losses), (plain, best, losses, wins)):
        browser.open(page, f"#compare?a={a}&b={b}")
        headlines.append(browser.wait(text(".headline b")))
        assert browser.evaluate(text(".counts")).startswith(f"A wins {of_a}, ")
        titles = browser.evaluate(
            "[...document.querySelectorAll('.pairs h2')].map(e => e.textContent)"
        )
        assert titles == [f"Wins of A: {of_a} prompts", f"Losses of A: {of_b} prompts"]
    assert headlines == [f"+{pair['value']:.3f}", f"−{pair['value']:.3f}"]
    assert browser.wait(count("#plot-differences .bars path")) >= wins

    browser.evaluate("document.querySelector('.side .shot').click()")
    assert browser.wait(text("#detail[open] .said h2")) == "Plain"
    browser.press("Escape")
    assert browser.errors == []


@needs_chromium
def test_budgets_change_their_axis(results: Path, browser: Browser) -> None:
    browser.open(results / "report/index.html", "#budgets")
    first = (
        "[...document.querySelectorAll('.budgets tbody tr:first-child td')].map(e => e.textContent)"
    )
    cells = browser.wait(first)
    assert cells[0] == "–"
    assert "Best-of-4 at 4.00×" in cells[2]
    browser.evaluate("document.querySelectorAll('.axes button')[1].click()")
    assert "Best-of-4 at 1.00×" in browser.wait(first)[0]
    assert browser.wait(count("#plot-budgets-passes .scatterlayer .trace")) == 10
    assert browser.errors == []


@needs_chromium
def test_missing_values_are_sorted_last_in_both_directions(results: Path, browser: Browser) -> None:
    browser.open(results / "report/index.html", "#budgets")
    cell = "document.querySelector('.budgets tbody tr:last-child td').textContent"
    for direction in ("descending", "ascending"):
        browser.evaluate("document.querySelector('.budgets thead th:nth-child(2) button').click()")
        head = "document.querySelector('.budgets thead th:nth-child(2)').getAttribute('aria-sort')"
        assert browser.evaluate(head) == direction
        assert browser.evaluate(cell) == "–"


@needs_chromium
def test_every_tab_is_on_a_phones_screen(results: Path, browser: Browser) -> None:
    browser.size(390, 800)
    try:
        for view in ("results", "compare", "budgets", "inside", "gallery"):
            browser.open(results / "report/index.html", f"#{view}")
            browser.wait("document.getElementById('view').children.length > 0")
            rights = browser.evaluate(
                "[...document.querySelectorAll('nav a')].map(e => e.getBoundingClientRect().right)"
            )
            assert len(rights) == 5
            assert max(rights) <= 390
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390, view
    finally:
        browser.size(1320, 900)


@needs_chromium
def test_a_page_without_scores_shows_no_empty_section(tmp_path: Path, browser: Browser) -> None:
    make_unscored(tmp_path)
    page = report(tmp_path)
    browser.open(page)
    heads = browser.evaluate(
        "[...document.querySelectorAll('.board thead th')].map(e => e.textContent)"
    )
    assert heads == ["Method", "Tokens", "Passes", "Seconds"]
    whole_text = browser.evaluate("document.getElementById('view').textContent")
    for word in ("false", "undefined", "NaN", "counted as wrong", "Claimed elsewhere"):
        assert word not in whole_text
    tabs = browser.evaluate(
        "[...document.querySelectorAll('nav a:not([hidden])')].map(e => e.textContent)"
    )
    assert tabs == ["Results", "Compare", "Inside", "Gallery"]
    browser.open(page, "#gallery")
    assert browser.wait(count(".row .shot")) > 0
    assert browser.evaluate(count(".row .verdict")) == 0
    browser.open(page, "#compare")
    assert browser.wait(count(".side")) == 12
    assert browser.errors == []


@needs_chromium
def test_a_reason_stands_in_the_legend_and_on_the_difference(
    tmp_path: Path, browser: Browser
) -> None:
    values = {f"{task}/{i}": [1.0, float(i % 2)] for i in range(6) for task in ("a", "b")}
    write_run(tmp_path, values)
    other = {name: [0.0, *value[1:]] if name == "a/0" else value for name, value in values.items()}
    write_run(tmp_path, other, "zipar", fingerprint="00000002")
    browser.open(report(tmp_path))
    assert "not significant: p is 5 % or more" in browser.wait(text(".legend"))
    letter = browser.evaluate(text(".difference sup"))
    assert letter == browser.evaluate(text(".legend sup"))
    title = browser.evaluate("document.querySelector('td.difference').title")
    assert title.startswith("not resolved: p ")


@needs_chromium
def test_the_page_counts_questions_and_admits_notes_that_it_cannot_draw(
    tmp_path: Path, browser: Browser
) -> None:
    values = {"a/0": [1.0], "a/1": [0.0]}
    half = "half of it cannot be reached"
    write_run(tmp_path, values, usage={"unanswered": 4}, notes={"mine": 1}, remark=half)
    page = report(tmp_path)
    browser.open(page)
    remarks = browser.evaluate("document.querySelector('.notes').textContent")
    assert "8 questions unanswered." in remarks
    assert "half of it cannot be reached." in remarks
    assert "wrong" not in remarks
    browser.open(page, "#inside")
    assert "has all notes" in browser.evaluate("document.querySelector('.empty').textContent")


@needs_chromium
def test_the_chooser_of_boards_names_what_differs_first(tmp_path: Path, browser: Browser) -> None:
    values = {"a/0": [1.0], "a/1": [0.0]}
    write_run(tmp_path, values)
    write_run(tmp_path, values, fingerprint="00000002", judge="another")
    write_run(tmp_path, {"a/0": [None]}, fingerprint="00000003", judge="", prompts_sha="b" * 16)
    browser.open(report(tmp_path))
    names = browser.evaluate("[...document.querySelectorAll('#boards option')].map(e => e.text)")
    assert len(names) == 3
    assert len({name[:14] for name in names}) == 3
    assert not any(name.endswith((",", " ")) for name in names)


def test_the_page_names_whom_a_metric_or_the_judge_chose(tmp_path: Path) -> None:
    make_board(tmp_path)
    board = build(tmp_path)
    about = {"taste": MetricAbout("taste-1", "cosine", "higher", 3)}
    rows = board.frame.assign(taste=0.5, taste_is_reward="same", reward_is_judge="family")
    remarks = list_remarks(rows, about)
    labels = "; ".join(map(str, rows["label"]))
    assert f"Chosen by taste itself, whose gain is partly its own error: {labels}." in remarks
    report(tmp_path)
    (shown,) = data(tmp_path, "board")
    assert shown["remarks"] == list_remarks(board.frame, {})


@needs_chromium
def test_the_page_opens_on_the_board_of_the_last_command(tmp_path: Path, browser: Browser) -> None:
    make_board(tmp_path)
    other = write_run(tmp_path, {"colors/0": [1.0], "colors/1": [0.0]})
    board = build(tmp_path)
    boards = {
        path: write_report(tmp_path, board, figures=False, made=path) for path in ((), (other,))
    }
    numbers = [
        place for place, panel in enumerate(panels(board)) if panel.shown[0].run.path == other
    ]
    page = boards[(other,)]
    assert data(tmp_path, "first") == numbers[0]
    chosen = "document.getElementById('boards').value"
    browser.open(page)
    assert browser.wait(f"{chosen} === '{numbers[0]}'")
    browser.open(page, "#results")
    assert browser.wait(f"{chosen} === '0'")  # the former page may answer first
    assert browser.errors == []


@needs_chromium
def test_the_leaderboard_uses_the_width_of_the_window(results: Path, browser: Browser) -> None:
    browser.size(1500, 900)
    try:
        browser.open(results / "report/index.html")
        width = browser.wait("document.querySelector('.wide .scroll').clientWidth")
        assert width > 1400
        table = browser.evaluate("document.querySelector('table.board').scrollWidth")
        assert table <= width
    finally:
        browser.size(1320, 900)
