"""The page's figures as vector PDF, one column of a paper wide, in colours that colour-blind
readers tell apart.

Equal journals give equal files: nothing of the clock or of the machine is written.
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
    Dot,
    Panel,
    Shown,
    acceptance,
    confidence,
    curves,
    dots,
    spent,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.35
HEIGHT = 2.3
"""Inches: one column."""
PALETTE = (
    *("#6f6b64", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#3a9bd9"),
    *("#882255", "#2a9d8f", "#7d7d1f", "#332288", "#e69f00", "#9e4fbf", "#4b7a4b"),
    *("#a0522d", "#5f6fb5", "#c2456a", "#007a87", "#647687"),
)
"""Grey for plain, then one for each method; the page has the same (core.js)."""
MARKERS = "osD^PX*v"
LETTERS = 28
"""Longest label of a legend in two columns."""
GREY = "#b9b4aa"
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
UNDATED: dict[str, Any] = {"pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}}


def write_figures(
    panels: Sequence[Panel],
    folder: Path,
    *,
    only: Collection[str] = (),
    kind: Literal["pdf", "svg"] = "pdf",
) -> list[str]:
    """Write every figure that the panels have data for; returns their names, "<number of the
    panel>-<figure>".

    `only` names some figures: "scaling", "pareto_tokens", ...
    """
    import matplotlib
    from matplotlib.figure import Figure

    logging.getLogger("fontTools").setLevel(
        logging.WARNING
    )  # it lists each font table that it leaves out
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    with matplotlib.rc_context(STYLE):
        for i, panel in enumerate(panels):
            for name, draw in (
                (name, draw) for name, draw in _figures(panel) if not only or name in only
            ):
                figure = Figure(figsize=(WIDTH, HEIGHT))
                draw(figure)
                figure.savefig(folder / f"{i}-{name}.{kind}", metadata=UNDATED[kind])
                names.append(f"{i}-{name}")
    return names


def _figures(panel: Panel) -> Iterator[tuple[str, Callable[[Figure], object]]]:
    """The figures of a panel, by the names that the page knows them by."""
    tokens = dots(panel, "tokens")
    seconds = dots(panel, "seconds")
    if len(tokens) > 1:
        yield "scaling", partial(_scaling, panel=panel)
        yield (
            "pareto_tokens",
            partial(_front, found=tokens, cost="visual tokens, relative to plain"),
        )
    if len(seconds) > 1:
        yield (
            "pareto_seconds",
            partial(_front, found=seconds, cost="device and judge seconds, relative to plain"),
        )
    if any(one.seconds > 0 for one in panel.shown):
        yield "bubbles", partial(_bubbles, panel=panel)
    if any(map(spent, panel.shown)):
        yield "spent", partial(_spent, panel=panel)
    for name, title in (
        ("accepted", "draft tokens accepted"),
        ("skips", "tokens committed unseen"),
    ):
        found = [(one, counts[name]) for one in panel.shown if name in (counts := acceptance(one))]
        if found:
            yield (
                {"accepted": "acceptance"}.get(name, name),
                partial(_histogram, found=found, title=title),
            )
    for one in panel.shown:
        if confidence(one) is not None:
            yield f"confidence-{one.id}", partial(_maps, one=one)
            yield f"pruning-{one.id}", partial(_timeline, one=one)


def _scaling(figure: Figure, panel: Panel) -> None:
    axes = figure.subplots()
    inside = set()
    for family, some in curves(panel):
        color, marker = _look(some[-1].one)
        cost, score, low, high = np.array(
            [(dot.cost, dot.score, dot.low, dot.high) for dot in some]
        ).T
        axes.fill_between(cost, low, high, color=color, alpha=0.14, linewidth=0)
        axes.plot(cost, score, color=color, marker=marker, label=family)
        inside |= {dot.one.id for dot in some}
    for dot in dots(panel, "tokens"):
        if dot.one.id not in inside:
            _point(axes, dot, label=dot.one.label)
    _doubling(axes, [dot.cost for dot in dots(panel, "tokens")])
    axes.set(xlabel="budget: visual tokens, plain = 1", ylabel="score")
    _legend(figure)


def _front(figure: Figure, found: Sequence[Dot], cost: str) -> None:
    axes = figure.subplots()
    best = [dot for dot in found if dot.efficient]
    for dot in found:
        _point(axes, dot, color=None if dot.efficient else GREY)
    middle = math.sqrt(found[0].cost * found[-1].cost)
    for dot, after in zip_longest(best, best[1:]):
        left = dot.cost > middle and not (
            after and after.cost < 1.6 * dot.cost
        )  # a near neighbour needs that place
        place: Any = {"xytext": (-4, 4) if left else (4, -9), "ha": "right" if left else "left"}
        axes.annotate(
            dot.one.label, (dot.cost, dot.score), textcoords="offset points", fontsize=6.5, **place
        )
    axes.step(
        [d.cost for d in best],
        [d.score for d in best],
        where="post",
        color="#6f6b64",
        ls=":",
        lw=0.8,
        zorder=1,
    )
    _doubling(axes, [dot.cost for dot in found])
    axes.set(xlabel=cost, ylabel="score")


def _bubbles(figure: Figure, panel: Panel) -> None:
    axes = figure.subplots()
    memory = [float(one.run.about.get("memory_gb") or 0) for one in panel.shown]
    most = max(memory)
    for one, gb in zip(panel.shown, memory, strict=True):
        if one.seconds > 0:
            size = 20 + 200 * gb / most if most else 30
            color, _ = _look(one)
            axes.scatter(
                one.seconds,
                one.row["score"],
                s=size,
                color=color,
                alpha=0.65,
                lw=0.8,
                label=one.label,
            )
    axes.set_xscale("log")
    axes.set(
        xlabel="device and judge seconds an image" + ("; area: memory" if most else ""),
        ylabel="score",
    )
    _plain_ticks(axes, [one.seconds for one in panel.shown if one.seconds > 0])
    _legend(figure, size=20)


def _spent(figure: Figure, panel: Panel) -> None:
    axes = figure.subplots()
    shown = [(one, found) for one in panel.shown[::-1] if (found := spent(one))]
    stages = [stage for stage in shown[0][1] if any(found.get(stage) for _, found in shown)]
    stages += (
        ["host"] if any("host" in found for _, found in shown) and "host" not in stages else []
    )
    before = np.zeros(len(shown))
    for stage, color in zip(stages, PALETTE[1:], strict=False):
        seconds = np.array([found.get(stage, 0.0) for _, found in shown])
        axes.barh(
            [one.label for one, _ in shown],
            seconds,
            left=before,
            height=0.7,
            color=color,
            label=stage,
        )
        before += seconds
    axes.set(xlabel="seconds an image")
    axes.grid(visible=False, axis="y")
    _legend(figure)
    figure.set_size_inches(WIDTH, figure.get_figheight() + 0.14 * max(0, len(shown) - 8))


def _histogram(figure: Figure, found: Sequence[tuple[Shown, list[int]]], title: str) -> None:
    axes = figure.subplots()
    width = 0.8 / len(found)
    for i, (one, counts) in enumerate(found):
        total = sum(counts)
        mean = sum(j * count for j, count in enumerate(counts)) / total
        at = np.arange(len(counts)) + (i - (len(found) - 1) / 2) * width
        axes.bar(
            at,
            np.array(counts) / total,
            0.9 * width,
            color=_look(one)[0],
            label=f"{one.label} ({mean:.2f})",
        )
    axes.set_xticks(range(max(len(counts) for _, counts in found)))
    axes.set(xlabel=f"{title} in a round", ylabel="share of rounds")
    _legend(figure)


def _maps(figure: Figure, one: Shown) -> None:
    found = confidence(one)
    assert found is not None
    every = {
        "right images": found.right_T,
        "wrong images": found.wrong_T,
        "ended early": found.ended_T,
    }
    maps = {name: values_T for name, values_T in every.items() if not np.isnan(values_T).all()}
    figure.set_size_inches(WIDTH, WIDTH / 3 + 0.25)
    values = np.concatenate(list(maps.values()))
    limits: dict[str, Any] = {"vmin": np.nanmin(values), "vmax": np.nanmax(values)}
    grid = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (name, values_T) in zip(grid, maps.items(), strict=True):
        image = axes.imshow(values_T.reshape(-1, found.side), cmap="viridis", **limits)
        axes.set_title(name)
        axes.set_axis_off()
    figure.colorbar(image, ax=list(grid), shrink=0.8, label="confidence")


def _timeline(figure: Figure, one: Shown) -> None:
    found = confidence(one)
    assert found is not None
    color, _ = _look(one)
    axes = figure.subplots()
    alive = axes.twinx()
    alive.fill_between(
        range(len(found.alive_T)), found.alive_T, step="post", color=color, alpha=0.16, linewidth=0
    )
    alive.set(ylabel="candidates alive", ylim=(0, 1.02 * found.alive_T.max()))
    alive.grid(visible=False)
    alive.spines["right"].set_visible(True)
    axes.set_zorder(2)
    axes.patch.set_visible(False)
    axes.plot(found.delivered_T, color=color, label="delivered")
    axes.plot(found.ended_T, color="#6f6b64", label="end early")
    axes.plot(found.threshold_T, color="#b8431b", ls=":", label="threshold")
    axes.set(xlabel="token", ylabel="confidence")
    _legend(figure)


# --- parts of figures -----------------------------------------------------------------------------


def _look(one: Shown) -> tuple[str, str]:
    return PALETTE[one.color % len(PALETTE)], MARKERS[one.symbol % len(MARKERS)]


def _point(axes: Axes, dot: Dot, color: str | None = None, label: str | None = None) -> None:
    own, marker = _look(dot.one)
    error = None if math.isnan(dot.low) else [[dot.score - dot.low], [dot.high - dot.score]]
    axes.errorbar(
        dot.cost,
        dot.score,
        yerr=error,
        color=color or own,
        marker=marker,
        ls="",
        elinewidth=0.7,
        label=label,
    )


def _doubling(axes: Axes, costs: Sequence[float]) -> None:
    """A log2 axis with a tick at each power of two."""
    axes.set_xscale("log", base=2)
    low = math.floor(math.log2(min(costs)) + 0.01)
    high = math.ceil(math.log2(max(costs)) - 0.01)
    ticks = [2.0**power for power in range(low, high + 1)]
    axes.set_xticks(ticks, [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
    axes.minorticks_off()


def _plain_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at 1, 2 and 5 times powers of ten on a log axis."""
    low = min(values) / 1.4
    high = max(values) * 1.4
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [
        tick
        for power in powers
        for digit in (1, 2, 5)
        if low <= (tick := digit * 10.0**power) <= high
    ]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _legend(figure: Figure, size: float | None = None) -> None:
    """Below the axes, which grows the figure where the legend needs several rows."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels), default=0) <= LETTERS else 1
    figure.set_size_inches(WIDTH, HEIGHT + 0.13 * math.ceil(len(labels) / columns))
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        columnspacing=1,
        handletextpad=0.4,
    )
    for handle in legend.legend_handles if size else ():
        handle.set_sizes([size])  # type: ignore[union-attr]
