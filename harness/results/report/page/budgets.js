"use strict";
// The view of budgets: what each method buys for so many times plain sampling's cost. Every number
// is that of a run; nothing between two runs is made up.

const LEVELS = [1, 2, 4, 8]; // harness/results/report/budgets.py
const AXES = {
  tokens: ["visual tokens", "Visual tokens drawn for an image, discarded candidates included."],
  passes: ["target passes", "Sequential forwards of the target model: what a fast enough device waits for."],
  seconds: ["seconds", "Device and judge seconds of an image; with one image at a time, seconds on the wall."],
};

function showBudgets(view) {
  const one = board();
  const axes = Object.keys(AXES).filter((axis) => one.budgets[axis].length);
  const axis = axes.includes(state.axis) ? state.axis : axes[0];
  const [unit, about] = AXES[axis];
  const choose = (name) => {
    setState({ axis: name }, true);
    show();
    document.querySelector(".axes [aria-pressed=true]").focus();
  };
  view.append(
    h("section", { class: "head" }, h("h1", { text: "What a budget buys" }),
      h("p", { class: "lead", text: `${about} Plain sampling costs 1. A budget buys the run whose cost is the nearest at or below it: which one that is stands under its score. Nothing is interpolated.` }),
      h("div", { class: "axes", role: "group", "aria-label": "Counted in" }, axes.map((name) =>
        h("button", { text: AXES[name][0], "aria-pressed": String(name === axis), onclick: () => choose(name) })))),
    h("section", { class: "wide" }, budgetTable(one, axis)));
  return plotCards(view, [[`budgets-${axis}`, `Score over ${unit}`, "A dot for each run, at what it costs, with its 95 % interval. The line from a dot to the right is what that run buys until a dearer one can be had.", (node) => drawBudgets(node, one.budgets[axis], unit), "whole"]]);
}

const costOf = (family, id) => family.offers.find((offer) => offer.id === id).cost;
const times = (cost) => `${cost < 0.1 ? cost.toPrecision(1) : cost.toFixed(2)}×`;

function budgetTable(one, axis) {
  const families = one.budgets[axis];
  const bought = (family, level) => (family.bought[level] === null ? null : runOf(family.bought[level]));
  const levels = LEVELS.map((times_, level) => ({
    key: `level${level}`, title: `${times_}×`, about: `The dearest run of a method that costs at most ${times_} times plain sampling; of equal ones the best`, down: true,
    value: (family) => bought(family, level)?.score, cell: (family) => boughtCell(family, level, bought),
  }));
  const name = { key: "name", title: "Method", name: "label", down: false, value: (family) => family.name, cell: familyCell };
  return sortedTable("board budgets", [name, ...levels], families, { by: "level3", label: "What a budget buys" });
}

function familyCell(family) {
  const run = runOf(family.offers.at(-1).id);
  return h("th", { scope: "row" }, h("span", { class: "named" }, h("i", { class: "dot", style: `background:${colour(run)}` }), h("span", { text: family.name })));
}

function boughtCell(family, level, bought) {
  const run = bought(family, level);
  if (!run) return h("td", { class: "number quiet", text: "–", title: `its cheapest run costs ${times(family.offers[0].cost)}` });
  const same = level > 0 && bought(family, level - 1) === run;
  return h("td", { class: `number difference${same ? " same" : ""}`, title: same ? "the same run as for the smaller budget" : null },
    h("b", { text: score(run.score) }),
    h("span", { class: "interval", text: interval(run.ci_low, run.ci_high, score) }),
    h("span", { class: "interval", text: `${run.title} at ${times(costOf(family, run.id))}` }));
}

function drawBudgets(node, families, unit) {
  const costs = families.flatMap((family) => family.offers.map((offer) => offer.cost));
  const end = Math.max(LEVELS.at(-1), ...costs);
  const traces = families.flatMap((family) => {
    const runs = family.offers.map((offer) => runOf(offer.id)), x = family.offers.map((offer) => offer.cost);
    const last = runs.at(-1), color = colour(last), y = runs.map((run) => run.score);
    const dots = runs.map((run, i) => ({ label: run.label, score: run.score, low: run.ci_low, high: run.ci_high, cost: x[i] }));
    return [
      { x: [...x, end], y: [...y, y.at(-1)], mode: "lines", line: { color, width: 1.5, shape: "hv" }, opacity: 0.55, hoverinfo: "skip", showlegend: false, legendgroup: family.name },
      { x: [...x].reverse(), y: [...y].reverse(), mode: "markers", name: escaped(family.name), legendgroup: family.name, marker: { color: runs.map(colour).reverse(), size: 9, symbol: symbolOf(last) }, error_y: errors([...dots].reverse(), faded(color, 0.6)), hovertemplate: dots.map(about).reverse() },
    ];
  });
  const axis = doubling([...costs, ...LEVELS], `budget: ${unit}, plain = 1 (log2)`);
  const shapes = LEVELS.map((level) => ({ type: "line", yref: "paper", x0: level, x1: level, y0: 0, y1: 1, line: { color: style("--faint"), width: 1, dash: "dot" } }));
  plot(node, traces, { xaxis: axis, yaxis: { title: "score" }, shapes });
}
