"use strict";
// Figures of the results: scaling curves, fronts, bubbles and stages, drawn when they come into sight.

const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"];
const symbolOf = (run) => SYMBOLS[run.symbol % SYMBOLS.length];

function showFigures(view, one) {
  const cards = [
    one.fronts.tokens.length > 1 && ["scaling", "Scaling curves", "Score over budget: visual tokens drawn for an image, plain sampling being 1. Bands are 95 % intervals.", drawScaling, "whole"],
    one.fronts.tokens.length > 1 && ["pareto_tokens", "At equal visual tokens", "Runs that no other beats with as few tokens stand on the line; the rest is grey.", (n) => drawFront(n, one.fronts.tokens, "visual tokens, relative to plain")],
    one.fronts.seconds.length > 1 && ["pareto_seconds", "At equal seconds", "The same over device and judge seconds: a verifier costs seconds, not tokens.", (n) => drawFront(n, one.fronts.seconds, "device and judge seconds, relative to plain")],
    one.scored && ["bubbles", hasSizes(one) ? "Quality, seconds and memory" : "Quality and seconds", memoryCaption(one), drawBubbles, "whole"],
    one.runs.some((run) => run.spent.decode) && ["spent", "Where the seconds go", "Mean seconds of an image by stage. With one image at a time (SingleStream) the bar is the whole latency; with many (Offline) it is the image's share of the device.", drawSpent, "whole"],
  ].filter(Boolean);
  return plotCards(view, cards);
}

function memoryCaption(one) {
  if (hasSizes(one)) return "Score over seconds an image. The area of a circle is the memory that the target needs for one image, judges and drafters apart; the grey ones are the scale.";
  const gb = one.runs[0].memory_gb;
  return gb && one.runs.every((run) => run.memory_gb === gb) ? `Score over seconds an image. All of these runs need ${gb.toPrecision(2)} GB of memory for one image.` : "Score over seconds an image.";
}

/** True if the runs say how much memory they need, and it differs, so that areas say something. */
const hasSizes = (one) => new Set(one.runs.map((run) => run.memory_gb || 0)).size > 1;

/** Add cards whose plots are drawn when they come near the window; returns a function that removes the plots. */
function plotCards(view, cards) {
  const grid = h("section", { class: "cards" });
  view.append(grid);
  const drawn = new Map();
  const draw = (node, make) => load("plotly.min.js").then(() => node.isConnected && make(node)).catch((error) => node.replaceChildren(h("p", { class: "empty", text: error.message })));
  const watch = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      if (!isIntersecting) continue;
      watch.unobserve(target);
      drawn.set(target, target.make);
      draw(target, target.make);
    }
  }, { rootMargin: "400px" });
  for (const [name, title, caption, make, size] of cards) {
    const plot = h("div", { class: "plot", id: `plot-${name}` });
    plot.make = make;
    grid.append(h("article", { class: `card ${size || ""}` }, h("h2", { text: title }), h("p", {}, caption, report.figures.includes(`${state.board}-${name}`) ? h("a", { class: "pdf", href: `figures/${state.board}-${name}.pdf`, text: "PDF" }) : ""), plot));
    watch.observe(plot);
  }
  const redraw = () => drawn.forEach((make, node) => draw(node, make));
  document.addEventListener("theme", redraw);
  return () => {
    watch.disconnect();
    document.removeEventListener("theme", redraw);
    drawn.forEach((_, node) => window.Plotly && Plotly.purge(node));
  };
}

// ---- plotly in the page's colours

const escaped = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function plot(node, traces, layout) {
  const ink = style("--ink"), quiet = style("--quiet"), rule = style("--rule");
  const axis = { gridcolor: rule, linecolor: rule, zeroline: false, tickfont: { color: quiet }, title: { font: { color: quiet, size: 12 }, standoff: 12 }, automargin: true };
  const merged = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: style("--font"), size: 12, color: ink },
    margin: { l: 48, r: 16, t: 8, b: 44 }, hoverlabel: { bgcolor: style("--card"), bordercolor: rule, font: { color: ink, family: style("--font") } },
    legend: { orientation: "h", y: -0.22, font: { color: ink }, itemclick: "toggleothers" }, ...layout,
  };
  for (const name of Object.keys(merged).filter((key) => /^[xy]axis/.test(key)))
    merged[name] = { ...axis, ...merged[name], title: { ...axis.title, text: merged[name].title || "" } };
  makeRoomForLegend(node, traces, merged);
  return Plotly.react(node, traces, merged, { displayModeBar: false, responsive: true });
}

/** On a phone a legend has a row for each trace: the figure grows by it, and it stands clear of the axis. */
function makeRoomForLegend(node, traces, layout) {
  const rows = traces.filter((trace) => trace.name && trace.showlegend !== false).length;
  if (innerWidth > 760 || layout.showlegend === false || rows < 2 || layout.legend.y > 0) return;
  node.style.height = `${320 + 20 * rows}px`;
  layout.legend = { ...layout.legend, y: -0.32 };
}

function doubling(costs, title) {
  const low = Math.floor(Math.log2(Math.min(...costs)) + 0.01), high = Math.ceil(Math.log2(Math.max(...costs)) - 0.01);
  const ticks = Array.from({ length: high - low + 1 }, (_, i) => 2 ** (low + i));
  return { type: "log", tickvals: ticks, ticktext: ticks.map((v) => (v < 1 ? `1/${1 / v}` : String(v))), title, range: [Math.log10(2 ** (low - 0.25)), Math.log10(2 ** (high + 0.35))] };
}

function decades(values) {
  const low = Math.min(...values), high = Math.max(...values), ticks = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.log10(high) + 1; power++) ticks.push(...[1, 2, 5].map((digit) => digit * 10 ** power));
  return { tickvals: ticks, ticktext: ticks.map((tick) => String(Number(tick.toPrecision(1)))), range: [Math.log10(low / 1.35), Math.log10(high * 1.35)] };
}

const faded = (hex, alpha) => `${hex}${Math.round(255 * alpha).toString(16).padStart(2, "0")}`;
const about = (dot) => `<b>${escaped(dot.label)}</b><br>score ${fixed(dot.score, 3)}${dot.low === null ? "" : ` [${fixed(dot.low, 3)}, ${fixed(dot.high, 3)}]`}<br>cost ${dot.cost.toPrecision(3)}<extra></extra>`;
const errors = (dots, color) => ({ type: "data", symmetric: false, array: dots.map((d) => (d.high ?? d.score) - d.score), arrayminus: dots.map((d) => d.score - (d.low ?? d.score)), color, thickness: 1.2, width: 0 });

function drawScaling(node) {
  const one = board(), traces = [];
  const inCurves = new Set(one.curves.flatMap((curve) => curve.dots.map((dot) => dot.id)));
  for (const curve of one.curves) {
    const last = runOf(curve.dots.at(-1).id), color = colour(last), known = curve.dots.filter((dot) => dot.low !== null);
    traces.push({ x: [...known.map((d) => d.cost), ...known.map((d) => d.cost).reverse()], y: [...known.map((d) => d.high), ...known.map((d) => d.low).reverse()], fill: "toself", fillcolor: faded(color, 0.13), line: { width: 0 }, hoverinfo: "skip", showlegend: false, mode: "lines" });
    traces.push({ x: curve.dots.map((d) => d.cost), y: curve.dots.map((d) => d.score), name: escaped(curve.family), mode: "lines+markers", line: { color, width: 2 }, marker: { color, size: 8, symbol: symbolOf(last) }, hovertemplate: curve.dots.map(about) });
  }
  for (const dot of one.fronts.tokens.filter((d) => !inCurves.has(d.id))) {
    const color = colour(runOf(dot.id));
    traces.push({ x: [dot.cost], y: [dot.score], name: escaped(dot.label), mode: "markers", marker: { color, size: 8, symbol: symbolOf(runOf(dot.id)) }, error_y: errors([dot], faded(color, 0.5)), hovertemplate: about(dot) });
  }
  plot(node, traces, { xaxis: doubling(one.fronts.tokens.map((d) => d.cost), "budget: visual tokens, plain = 1 (log2)"), yaxis: { title: "score" } });
}

function drawFront(node, dots, title) {
  const best = dots.filter((d) => d.efficient), rest = dots.filter((d) => !d.efficient), grey = style("--faint");
  plot(node, [
    { x: rest.map((d) => d.cost), y: rest.map((d) => d.score), mode: "markers", marker: { color: grey, size: 8, symbol: rest.map((d) => symbolOf(runOf(d.id))) }, error_y: errors(rest, faded(grey, 0.5)), hovertemplate: rest.map(about) },
    { x: best.map((d) => d.cost), y: best.map((d) => d.score), mode: "lines", line: { color: style("--quiet"), width: 1, dash: "dot", shape: "hv" }, hoverinfo: "skip" },
    { x: best.map((d) => d.cost), y: best.map((d) => d.score), mode: "markers+text", text: namesAt(best).map(escaped), textposition: best.map((d, i) => (labelLeft(d, best[i + 1], dots) ? "top left" : "bottom right")), textfont: { size: 11 }, marker: { size: 10, color: best.map((d) => colour(runOf(d.id))), symbol: best.map((d) => symbolOf(runOf(d.id))) }, error_y: errors(best, style("--quiet")), hovertemplate: best.map(about) },
  ], { xaxis: doubling(dots.map((d) => d.cost), `${title} (log2)`), yaxis: { title: "score" }, showlegend: false });
}

/** Return a label for each dot; dots in one place share that of the first. */
function namesAt(dots) {
  const near = (one, other) => Math.abs(Math.log(one.cost / other.cost)) < 0.05 && Math.abs(one.score - other.score) < 0.02;
  const firstOf = dots.map((dot) => dots.findIndex((other) => near(dot, other)));
  return dots.map((_, i) => dots.filter((_other, j) => firstOf[j] === i).map((dot) => dot.label).join(", "));
}

/** True for labels of the dearer half, unless the next point is near and needs that place. */
const labelLeft = (dot, next, dots) => dot.cost ** 2 > dots[0].cost * dots.at(-1).cost && !(next && next.cost < 1.6 * dot.cost);

const LARGEST = 44; // pixels of the widest circle

function drawBubbles(node) {
  const one = board(), runs = one.runs.filter((run) => run.seconds > 0 && run.score !== null);
  const most = Math.max(...runs.map((run) => run.memory_gb || 0)), sized = hasSizes(one);
  const width = (gb) => (sized ? LARGEST * Math.sqrt(gb / most) : 11);
  plot(node, runs.map((run) => ({
    x: [run.seconds], y: [run.score], name: escaped(run.label), mode: "markers",
    marker: { color: faded(colour(run), 0.65), size: Math.max(3, width(run.memory_gb || 0)), symbol: sized ? "circle" : symbolOf(run), line: { color: colour(run), width: 1.5 } },
    hovertemplate: `<b>${escaped(run.label)}</b><br>score ${score(run.score)}<br>${fixed(run.seconds, 3)} s an image${run.memory_gb ? `<br>${run.memory_gb.toPrecision(3)} GB` : ""}<extra></extra>`,
  })), { xaxis: { type: "log", title: "device and judge seconds an image (log)", ...decades(runs.map((run) => run.seconds)) }, yaxis: { title: "score" } });
  node.parentNode.querySelector(".sizes")?.remove();
  if (sized) node.before(sizeLegend([most / 4, most], width));
}

/** Show what some areas mean. */
function sizeLegend(sizes, width) {
  return h("div", { class: "sizes" }, "area: memory", sizes.map((gb) => {
    const across = width(gb), side = Math.ceil(across) + 2;
    return h("span", {}, svg("svg", { width: side, height: side, "aria-hidden": "true" }, svg("circle", { cx: side / 2, cy: side / 2, r: across / 2 })), `${Number(gb.toPrecision(2))} GB`);
  }));
}

function drawSpent(node) {
  const runs = board().runs.filter((run) => run.spent.decode).reverse(), colours = report.palette[theme()].stages;
  const stages = [...new Set(runs.flatMap((run) => Object.keys(run.spent)))].filter((stage) => runs.some((run) => run.spent[stage] > 0));
  node.style.height = `${96 + 24 * runs.length}px`;
  plot(node, stages.map((stage, i) => ({
    y: runs.map((run) => escaped(run.label)), x: runs.map((run) => run.spent[stage] || 0), name: stage, type: "bar", orientation: "h", marker: { color: colours[i] },
    hovertemplate: runs.map((run) => `<b>${escaped(run.label)}</b>, ${run.scenario}<br>${stage} ${fixed(run.spent[stage] || 0, 4)} s<extra></extra>`),
  })), { barmode: "stack", legend: { orientation: "h", y: 1, yanchor: "bottom", font: { color: style("--ink") }, itemclick: "toggleothers" }, xaxis: { title: "seconds an image", ticksuffix: " s" }, yaxis: {} });
}
