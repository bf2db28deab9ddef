"""Draw the page's figures as vector PDF, one column of a paper wide.

Colours are told apart by colour-blind readers too. Equal journals give equal files: neither the
time nor the machine is written.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.results.report.collect import (
    Confidence,
    Dot,
    Panel,
    Shown,
    acceptance,
    confidence,
    curves,
    dots,
    spent,
)
from harness.results.report.colors import list_stage_colors, run_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.35
"""Inches: one column."""
HEIGHT = 2.3
"""Inches, without the legend."""
MARKERS = "osD^PX*v"
"""The page has the same (SYMBOLS in figures.js)."""
LARGEST_AREA = 220
"""Square points of the widest circle."""
LETTERS = 28
"""Longest label of a legend in two columns."""
MOST_LETTERS = 44
"""Longest label in a figure; of a longer one the last options are left out."""
GREY = "#b9b4aa"
"""Runs that are off the front."""
INK = "#6f6b64"
"""Lines that belong to no method."""
THRESHOLD = "#b8431b"
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#e6e2da",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # letters stay letters
    "svg.hashsalt": "figures",  # names inside the file are drawn from it
}
UNDATED: dict[str, Any] = {
    "pdf": {"CreationDate": None, "Producer": None},
    "svg": {"Date": None},
}
"""Metadata for each kind of file: None keeps the time and the program's version out."""

Draw = Callable[["Figure"], object]
"""Draws into an empty figure."""


def write_figures(
    panels: Sequence[Panel],
    folder: Path,
    *,
    only: Collection[str] = (),
    kind: Literal["pdf", "svg"] = "pdf",
) -> list[str]:
    """Write every figure that the panels have data for; returns their names.

    A name is "<number of the panel>-<figure>". `only` chooses figures: "scaling", "pareto_tokens",
    ... See `list_figures` for all of them.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # fontTools logs each font table that it leaves out
    logging.getLogger("fontTools").setLevel(logging.WARNING)

    folder.mkdir(parents=True, exist_ok=True)
    names = []
    with matplotlib.rc_context(STYLE):
        for i, panel in enumerate(panels):
            for name, draw in list_figures(panel):
                if only and name not in only:
                    continue
                figure = Figure(figsize=(WIDTH, HEIGHT))
                draw(figure)
                file_name = f"{i}-{name}"
                figure.savefig(folder / f"{file_name}.{kind}", metadata=UNDATED[kind])
                names.append(file_name)
    return names


def list_figures(panel: Panel) -> Iterator[tuple[str, Draw]]:
    """Yield the figures of a panel, by the names that the page knows them by."""
    yield from _list_cost_figures(panel)
    yield from _list_histograms(panel)
    for one in panel.shown:
        found = confidence(one)
        if found is not None:
            yield f"confidence-{one.id}", partial(_draw_maps, found=found)
            yield f"pruning-{one.id}", partial(_draw_timeline, one=one, found=found)


def _list_cost_figures(panel: Panel) -> Iterator[tuple[str, Draw]]:
    tokens = dots(panel, "tokens")
    if len(tokens) > 1:
        cost = "visual tokens, relative to plain"
        yield "scaling", partial(_draw_scaling, panel=panel)
        yield "pareto_tokens", partial(_draw_front, found=tokens, cost=cost)

    seconds = dots(panel, "seconds")
    if len(seconds) > 1:
        cost = "device and judge seconds, relative to plain"
        yield "pareto_seconds", partial(_draw_front, found=seconds, cost=cost)

    if panel.is_scored and any(one.seconds > 0 for one in panel.shown):
        yield "bubbles", partial(_draw_bubbles, panel=panel)
    if any(spent(one) for one in panel.shown):
        yield "spent", partial(_draw_spent, panel=panel)


def _list_histograms(panel: Panel) -> Iterator[tuple[str, Draw]]:
    histograms = (
        ("accepted", "acceptance", "draft tokens accepted"),
        ("skips", "skips", "tokens committed unseen"),
    )
    for counted, name, title in histograms:
        found = []
        for one in panel.shown:
            counts = acceptance(one)
            if counted in counts:
                found.append((one, counts[counted]))
        if found:
            yield name, partial(_draw_histogram, found=found, title=title)


# --- cost and quality -----------------------------------------------------------------------------


def _draw_scaling(figure: Figure, panel: Panel) -> None:
    """Draw score over visual tokens: a line for each family, a dot for each run that is in none."""
    axes = figure.subplots()
    in_curves = set()
    for family, members in curves(panel):
        color, marker = _look(members[-1].one)
        cost = np.array([dot.cost for dot in members])
        score = np.array([dot.score for dot in members])
        low = np.array([dot.low for dot in members])
        high = np.array([dot.high for dot in members])
        axes.fill_between(cost, low, high, color=color, alpha=0.14, linewidth=0)
        axes.plot(cost, score, color=color, marker=marker, label=shorten(family))
        in_curves |= {dot.one.id for dot in members}

    every = dots(panel, "tokens")
    for dot in every:
        if dot.one.id not in in_curves:
            _draw_dot(axes, dot, label=shorten(dot.one.label))

    _set_doubling_axis(axes, [dot.cost for dot in every])
    axes.set(xlabel="budget: visual tokens, plain = 1", ylabel="score")
    _add_legend(figure)


def _draw_front(figure: Figure, found: Sequence[Dot], cost: str) -> None:
    """Draw score over cost: efficient runs in colour on a dotted line, the others in grey."""
    axes = figure.subplots()
    for dot in found:
        _draw_dot(axes, dot, color=None if dot.efficient else GREY)

    best = [dot for dot in found if dot.efficient]
    middle = math.sqrt(found[0].cost * found[-1].cost)
    for dot, following in zip_longest(best, best[1:]):
        # labels of the dearer half stand on the left, unless a near neighbour needs that place
        is_crowded = following is not None and following.cost < 1.6 * dot.cost
        _label_dot(axes, dot, on_left=dot.cost > middle and not is_crowded)

    costs = [dot.cost for dot in best]
    scores = [dot.score for dot in best]
    axes.step(costs, scores, where="post", color=INK, ls=":", lw=0.8, zorder=1)
    _set_doubling_axis(axes, [dot.cost for dot in found])
    axes.set(xlabel=cost, ylabel="score")


def _label_dot(axes: Axes, dot: Dot, *, on_left: bool) -> None:
    place: Any = {"xytext": (4, -9), "ha": "left"}
    if on_left:
        place = {"xytext": (-4, 4), "ha": "right"}
    at = (dot.cost, dot.score)
    axes.annotate(shorten(dot.one.label), at, textcoords="offset points", fontsize=6.5, **place)


def _draw_bubbles(figure: Figure, panel: Panel) -> None:
    """Draw score over seconds; areas are proportional to the memory of an image, if that differs.

    It is what the target needs; the x axis says which memory the largest area is.
    """
    axes = figure.subplots()
    memory = [float(one.run.about.get("memory_gb") or 0) for one in panel.shown]
    most = max(memory)
    are_sized = len(set(memory)) > 1
    for one, gb in zip(panel.shown, memory, strict=True):
        if one.seconds > 0:
            size = LARGEST_AREA * gb / most if are_sized else 30
            color, _ = _look(one)
            look: Any = {"s": size, "color": color, "alpha": 0.65, "lw": 0.8}
            axes.scatter(one.seconds, one.row["score"], label=shorten(one.label), **look)

    memory_note = f"\narea: memory, the largest {most:.2g} GB" if are_sized else ""
    axes.set_xscale("log")
    axes.set(xlabel=f"device and judge seconds an image{memory_note}", ylabel="score")
    _set_decimal_ticks(axes, [one.seconds for one in panel.shown if one.seconds > 0])
    _add_legend(figure, size=20)


def _draw_spent(figure: Figure, panel: Panel) -> None:
    """Draw a stacked bar for each run: its mean seconds of an image by stage."""
    axes = figure.subplots()
    labels = []
    found = []
    for one in reversed(panel.shown):
        seconds = spent(one)
        if seconds:
            labels.append(shorten(one.label))
            found.append(seconds)

    before = np.zeros(len(found))
    places = np.arange(len(found))
    for stage, color in zip(_used_stages(found), list_stage_colors("light"), strict=False):
        values = np.array([seconds.get(stage, 0.0) for seconds in found])
        axes.barh(places, values, left=before, height=0.7, color=color, label=stage)
        before += values

    axes.set_yticks(places, labels)
    axes.set(xlabel="seconds an image")
    axes.grid(visible=False, axis="y")
    _add_legend(figure)
    extra_rows = max(0, len(found) - 8)
    figure.set_size_inches(WIDTH, figure.get_figheight() + 0.14 * extra_rows)


def _used_stages(found: Sequence[dict[str, float]]) -> list[str]:
    """Return the stages in which any run spent time, `host` last."""
    stages = []
    for stage in found[0]:
        if any(seconds.get(stage) for seconds in found):
            stages.append(stage)
    if "host" not in stages and any("host" in seconds for seconds in found):
        stages.append("host")
    return stages


# --- what methods noted ---------------------------------------------------------------------------


def _draw_histogram(figure: Figure, found: Sequence[tuple[Shown, list[int]]], title: str) -> None:
    """Draw, side by side, what share of each run's decode steps had 0, 1, 2, ... such tokens."""
    axes = figure.subplots()
    width = 0.8 / len(found)
    for i, (one, counts) in enumerate(found):
        total = sum(counts)
        mean = sum(tokens * count for tokens, count in enumerate(counts)) / total
        offset = (i - (len(found) - 1) / 2) * width
        color, _ = _look(one)
        axes.bar(
            np.arange(len(counts)) + offset,
            np.array(counts) / total,
            0.9 * width,
            color=color,
            label=f"{shorten(one.label)} ({mean:.2f})",
        )
    longest = max(len(counts) for _, counts in found)
    axes.set_xticks(range(longest))
    axes.set(xlabel=f"{title} in a decode step", ylabel="share of decode steps")
    _add_legend(figure)


def _draw_maps(figure: Figure, found: Confidence) -> None:
    """Draw the mean confidence at each place of the image, for right, wrong and ended ones."""
    every = {
        "right images": found.right_T,
        "wrong images": found.wrong_T,
        "ended early": found.ended_T,
    }
    maps = {}
    for name, values_T in every.items():
        if not np.isnan(values_T).all():
            maps[name] = values_T
    values = np.concatenate(list(maps.values()))
    limits: dict[str, Any] = {"vmin": np.nanmin(values), "vmax": np.nanmax(values)}

    figure.set_size_inches(WIDTH, WIDTH / 3 + 0.25)
    grid = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (name, values_T) in zip(grid, maps.items(), strict=True):
        image = axes.imshow(values_T.reshape(-1, found.side), cmap="viridis", **limits)
        axes.set_title(name)
        axes.set_axis_off()
    figure.colorbar(image, ax=list(grid), shrink=0.8, label="confidence")


def _draw_timeline(figure: Figure, one: Shown, found: Confidence) -> None:
    """Draw candidates alive as an area, and confidence and threshold as lines, over the tokens."""
    color, _ = _look(one)
    axes = figure.subplots()

    alive = axes.twinx()
    steps = range(len(found.alive_T))
    area: Any = {"step": "post", "color": color, "alpha": 0.16, "linewidth": 0}
    alive.fill_between(steps, found.alive_T, **area)
    alive.set(ylabel="candidates alive", ylim=(0, 1.02 * found.alive_T.max()))
    alive.grid(visible=False)
    alive.spines["right"].set_visible(True)

    axes.set_zorder(2)  # lines above the area
    axes.patch.set_visible(False)
    axes.plot(found.delivered_T, color=color, label="delivered")
    axes.plot(found.ended_T, color=INK, label="end early")
    axes.plot(found.threshold_T, color=THRESHOLD, ls=":", label="threshold")
    axes.set(xlabel="token", ylabel="confidence")
    _add_legend(figure)


# --- parts of figures -----------------------------------------------------------------------------


def _look(one: Shown) -> tuple[str, str]:
    """Return a run's colour and marker."""
    color = run_color(one.color, one.shade, "light")
    marker = MARKERS[one.symbol % len(MARKERS)]
    return color, marker


def shorten(label: str) -> str:
    """Leave the last options of a label out where it is too long for a figure."""
    title, _, options = label.partition(" (")
    kept = options.removesuffix(")").split(", ")
    while len(label) > MOST_LETTERS and kept:
        kept.pop()
        label = f"{title} ({', '.join([*kept, '...'])})"
    return label


def _draw_dot(axes: Axes, dot: Dot, color: str | None = None, label: str | None = None) -> None:
    """Draw a run with its interval, in the colour of its method unless another is given."""
    method_color, marker = _look(dot.one)
    error = None
    if not math.isnan(dot.low):
        below = dot.score - dot.low
        above = dot.high - dot.score
        error = [[below], [above]]
    axes.errorbar(
        dot.cost,
        dot.score,
        yerr=error,
        color=color or method_color,
        marker=marker,
        ls="",
        elinewidth=0.7,
        label=label,
    )


def _set_doubling_axis(axes: Axes, costs: Sequence[float]) -> None:
    """Make the x axis log2, with a tick at each power of two."""
    low = math.floor(math.log2(min(costs)) + 0.01)
    high = math.ceil(math.log2(max(costs)) - 0.01)
    ticks = [2.0**power for power in range(low, high + 1)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [_fraction(tick) for tick in ticks])
    axes.minorticks_off()


def _fraction(value: float) -> str:
    """Format a power of two: 1/2, 1, 2, ..."""
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def _set_decimal_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Set ticks at 1, 2 and 5 times powers of ten on a log axis."""
    low = min(values) / 1.4
    high = max(values) * 1.4
    lowest = math.floor(math.log10(low))
    highest = math.ceil(math.log10(high))
    ticks = []
    for power in range(lowest, highest + 1):
        for digit in (1, 2, 5):
            tick = digit * 10.0**power
            if low <= tick <= high:
                ticks.append(tick)
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _add_legend(figure: Figure, size: float | None = None) -> None:
    """Put a legend below the axes; the figure grows by its rows. `size`: area of its markers."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels), default=0) <= LETTERS else 1
    rows = math.ceil(len(labels) / columns)
    figure.set_size_inches(WIDTH, HEIGHT + 0.13 * rows)
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        columnspacing=1,
        handletextpad=0.4,
    )
    if size is not None:
        for handle in legend.legend_handles:
            handle.set_sizes([size])  # type: ignore[union-attr]
