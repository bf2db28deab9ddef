"use strict";
// The view of what methods noted: accepted drafts, ScalingAR's confidence, GridAR's stops.

function showInside(view) {
  const one = board();
  view.append(h("section", { class: "head" }, h("h1", { text: "Inside the methods" }), h("p", { class: "lead", text: "What the methods wrote into their journals while they drew." })));
  const cards = [];
  if (one.acceptance.length) cards.push(["acceptance", "Accepted draft tokens", "Share of the decode steps that accepted so many draft tokens; the mean stands in brackets.", drawAcceptance, "whole"]);
  const skipping = one.acceptance.filter((run) => run.skips);
  if (skipping.length) cards.push(["skips", "Committed unseen", "Share of the skipping decode steps that committed so many tokens without asking the target.", (node) => drawHistogram(node, skipping, "skips", "tokens committed unseen in a decode step"), "whole"]);
  const undo = cards.length ? plotCards(view, cards) : null;
  const more = one.confidence.map((found) => confidenceCard(view, found));
  for (const found of one.stages) stagesCard(view, found);
  if (!cards.length && !one.confidence.length && !one.stages.length)
    view.append(h("p", { class: "empty", text: one.noted ? "Nothing noted that this page draws; `harness.load(...).images` has all notes." : "None of these runs noted anything about itself." }));
  return () => [undo, ...more].forEach((each) => each && each());
}

// ---- speculative decoding

const drawAcceptance = (node) => drawHistogram(node, board().acceptance.filter((run) => run.accepted), "accepted", "draft tokens accepted in a decode step");

function drawHistogram(node, found, name, title) {
  plot(node, found.map((each) => {
    const run = runOf(each.id), counts = each[name], total = counts.reduce((a, b) => a + b, 0);
    const mean = counts.reduce((sum, count, i) => sum + i * count, 0) / total;
    return { type: "bar", x: counts.map((_, i) => i), y: counts.map((count) => count / total), name: `${escaped(run.label)} (${mean.toFixed(2)})`, marker: { color: colour(run) }, hovertemplate: `<b>${escaped(run.label)}</b><br>%{x} tokens: %{y:.1%} of ${whole(total)} decode steps<extra></extra>` };
  }), { barmode: "group", bargap: 0.25, bargroupgap: 0.08, xaxis: { title, dtick: 1 }, yaxis: { title: "share of decode steps", tickformat: ".0%" } });
}

// ---- ScalingAR

const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

function shade(share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (SCALE.length - 1), i = Math.floor(at);
  return SCALE[i].map((value, channel) => Math.round(value + (SCALE[i + 1][channel] - value) * (at - i)));
}

/** Draw values in raster order as a map on a canvas; missing values are transparent. */
function heatMap(values, side, low, high) {
  const rows = Math.ceil(values.length / side), canvas = h("canvas", { class: "map", width: side, height: rows });
  const pixels = new ImageData(side, rows);
  values.forEach((value, i) => {
    if (value === null || Number.isNaN(value)) return;
    pixels.data.set([...shade((value - low) / (high - low || 1)), 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

const extent = (...series) => {
  const known = series.flat().filter((value) => value !== null && !Number.isNaN(value));
  return [Math.min(...known), Math.max(...known)];
};

function confidenceCard(view, found) {
  const run = runOf(found.id), [low, high] = extent(found.right, found.wrong, found.ended);
  const maps = [["right images", found.right], ["wrong images", found.wrong], ["candidates that ended early", found.ended]].filter(([, map]) => map.some((v) => v !== null));
  view.append(h("section", { class: "cards" }, h("article", { class: "card whole" },
    h("h2", { text: `${run.label}: confidence over the image` }),
    h("p", { text: "Mean confidence when each token was drawn, in raster order; bright is confident. Candidates that ended early have no tokens below." }),
    h("div", { class: "maps" }, maps.map(([name, map]) => h("figure", {}, heatMap(map, found.side, low, high), h("figcaption", { text: name }))), scaleBar(low, high)))));
  return plotCards(view, [[`pruning-${found.id}`, `${run.label}: pruning timeline`, "Mean number of candidates alive (area), and mean confidence of the delivered candidate, of those that end, and the threshold.", (node) => drawTimeline(node, found), "whole"]]);
}

function scaleBar(low, high) {
  const canvas = heatMap(Array.from({ length: 64 }, (_, i) => 63 - i), 1, 0, 63);
  canvas.className = "ramp";
  return h("figure", { class: "scale" }, h("div", {}, canvas, h("span", { text: high.toFixed(2) }), h("span", { text: low.toFixed(2) })));
}

function drawTimeline(node, found) {
  const x = found.alive.map((_, i) => i), color = colour(runOf(found.id));
  const line = (y, name, extra) => ({ x, y, name, mode: "lines", line: { width: 2, ...extra }, hovertemplate: `step %{x}: %{y:.3f}<extra>${name}</extra>` });
  plot(node, [
    { x, y: found.alive, name: "candidates alive", mode: "lines", line: { width: 0, shape: "hv" }, fill: "tozeroy", fillcolor: faded(color, 0.16), yaxis: "y2", hovertemplate: "step %{x}: %{y:.2f} alive<extra></extra>" },
    line(found.delivered, "delivered", { color }),
    line(found.ended, "end early", { color: style("--quiet") }),
    line(found.threshold, "threshold", { color: style("--wrong"), dash: "dot" }),
  ], { xaxis: { title: "token" }, yaxis: { title: "confidence" }, yaxis2: { title: "candidates alive", overlaying: "y", side: "right", range: [0, 1.02 * Math.max(...found.alive)], dtick: Math.ceil(Math.max(...found.alive) / 8), showgrid: false } });
}

// ---- GridAR

function stagesCard(view, found) {
  const run = runOf(found.id), percent = (count, of) => (of ? `${((100 * count) / of).toFixed(1)} %` : "–");
  const head = ["Stop", "Candidates seen", "Impossible", "Replaced", "Reworded", "Unanswered", "Malformed"];
  view.append(h("section", { class: "cards" }, h("article", { class: "card whole" },
    h("h2", { text: `${run.label}: stops` }),
    h("p", { text: "What the verifier answered when a part of the image was drawn." }),
    h("div", { class: "scroll" }, h("table", { class: "plainly" },
      h("thead", {}, h("tr", {}, head.map((text, i) => h("th", { text, class: i ? "number" : "" })))),
      h("tbody", {}, found.stages.map((stop) => h("tr", {}, h("th", { scope: "row", text: stop.stage }),
        [whole(stop.candidates), percent(stop.impossible, stop.candidates), percent(stop.replaced, stop.candidates), percent(stop.reworded, stop.candidates), whole(stop.unanswered), whole(stop.malformed)].map((text) => h("td", { class: "number", text }))))))),
    found.examples.length > 0 && h("p", { class: "above", text: "Images in which it replaced candidates, with what it was shown and what it answered. Select one to see it whole." }),
    h("div", { class: "examples" }, found.examples.map((example) => exampleFigure(run, example))))));
}

function exampleFigure(run, example) {
  const link = h("a", { class: "example", href: "#gallery" }, example.stages.flatMap((stop) => composites(stop)));
  link.addEventListener("click", (event) => {
    event.preventDefault();
    withGallery().then((gallery) => openDetail(example.entry, run.id, gallery));
  });
  return link;
}

/** Show the pictures of a stop, each with the verdicts on its strips from top to bottom. */
function composites(stop) {
  const pictures = stop.pictures || [], possible = stop.possible || [];
  const strips = pictures.length ? possible.length / pictures.length : 0;
  return pictures.map((picture, i) => h("figure", { class: "composite" },
    h("div", {}, h("img", { src: `data:image/webp;base64,${picture}`, alt: "" }),
      h("div", { class: "verdicts" }, possible.slice(i * strips, (i + 1) * strips).map((fine, j) => verdictOf(fine, i * strips + j, stop)))),
    h("figcaption", { text: stop.stage })));
}

function verdictOf(fine, candidate, stop) {
  const source = (stop.source || [])[candidate], copied = source !== undefined && source !== candidate;
  const text = fine ? "possible" : copied ? `↻ ${source}` : "impossible";
  return h("span", { class: fine ? "right" : "wrong", text: `${candidate} ${fine ? "✓" : "✗"}${copied ? ` → ${source}` : ""}`, title: copied ? `${text}: becomes a copy of candidate ${source}` : text });
}
