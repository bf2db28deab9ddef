"use strict";
// The dialog of one image: large, with boxes, reasons, costs, and what its method noted.

const dialog = document.getElementById("detail");
let opened = null; // { entry, id, gallery, entries, runs }

/** Show an entry in the dialog; the arrow keys walk over the entries and runs in `among`. */
function openDetail(entry, id, gallery, among) {
  const { entries, runs } = among || { entries: gallery.prompts.flatMap((_, p) => Array.from({ length: gallery.images }, (_, i) => p * gallery.images + i)), runs: shownRuns() };
  opened = { entry, id, gallery, entries, runs };
  setState({ at: placeOf(gallery, entry), run: id });
  drawDetail();
  if (!dialog.open) dialog.showModal();
}

/** Open the dialog if the address names an image. */
function showDetail() {
  if (!state.run || !runOf(state.run)) return dialog.open && dialog.close();
  return withGallery().then((gallery) => {
    const entry = entryAt(gallery, state.at);
    if (entry >= 0 && !dialog.open) openDetail(entry, state.run, gallery, state.view === "gallery" ? report.shown : null);
  }, () => null);
}

dialog.addEventListener("close", () => {
  opened = null;
  setState({ at: "", run: "" });
});
dialog.addEventListener("keydown", (event) => {
  if (!opened || event.ctrlKey || event.metaKey || event.altKey) return;
  const { entry, id, gallery, entries, runs } = opened;
  const row = entries.indexOf(entry), column = runs.findIndex((run) => run.id === id);
  const [down, across] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] || [0, 0];
  if (down || across) openDetail(entries[clamp(row + down, entries.length)], runs[clamp(column + across, runs.length)].id, gallery, { entries, runs });
  else if (event.key === "b") toggleBoxes();
  else return;
  event.preventDefault();
});

function toggleBoxes() {
  setState({ boxes: state.boxes === "1" ? "" : "1" });
  drawDetail();
}

function drawDetail() {
  const { entry, id, gallery, runs } = opened, one = board(), run = runOf(id), column = gallery.runs[id];
  const [promptId, wording, category] = gallery.prompts[Math.floor(entry / gallery.images)], image = entry % gallery.images;
  const [mark, name] = verdict(column, entry), reason = gallery.reasons[column.reason[entry]];
  const frame = h("div", { class: "frame" }, picture(column, entry)), notes = h("div", { class: "noted" });
  const facts = h("dl", { class: "facts" });
  const boxes = h("input", { type: "checkbox", onchange: toggleBoxes });
  boxes.checked = state.boxes === "1";
  dialog.replaceChildren(
    h("form", { method: "dialog", class: "close" }, h("button", { text: "✕", "aria-label": "Close" })),
    h("div", { class: "look" },
      h("div", { class: `large ${name}` }, frame, one.scored && h("label", { class: "toggle" }, boxes, "boxes that the judge kept")),
      h("div", { class: "said" },
        h("p", { class: "wording", text: wording, tabindex: -1, autofocus: true }),
        h("p", { class: "quiet", text: `${words(category)} · ${promptId} · image ${image} · seed ${run.seed}/${image}` }),
        h("h2", {}, h("i", { class: "dot", style: `background:${colour(run)}` }), run.label),
        one.scored && h("p", { class: `verdict ${name}` }, h("b", { text: mark }), reason || name),
        facts)),
    h("div", { class: "strip" }, hasSources(gallery) && sourceOf(gallery, entry), runs.map((each) => {
      const [sign, outcome] = verdict(gallery.runs[each.id], entry);
      return h("button", { class: `shot ${outcome}`, title: each.label, "aria-label": `${each.label}: ${outcome}`, "aria-current": each.id === id, onclick: () => openDetail(entry, each.id, gallery, opened) },
        h("div", { class: "frame" }, picture(gallery.runs[each.id], entry)), h("small", {}, one.scored && h("b", { text: `${sign} ` }), each.title));
    })),
    notes);
  detailOf(gallery, id, entry).then((detail) => {
    if (!opened || opened.entry !== entry || opened.id !== id) return;
    if (detail.path) addLarge(frame, `../${run.folder}/${detail.path}`, wording);
    if (state.boxes === "1") overlay(frame, detail, column.size, true);
    const rows = { ...detail.costs, ...Object.fromEntries(Object.entries(detail.said || {}).map(([k, v]) => [words(k), typeof v === "object" ? JSON.stringify(v) : v])) };
    facts.append(...Object.entries(rows).filter(([, v]) => v !== 0).flatMap(([term, value]) => [h("dt", { text: term }), h("dd", { text: typeof value === "number" ? value.toLocaleString("en") : String(value) })]));
    drawNotes(notes, detail.notes || {}).catch((error) => notes.append(h("p", { class: "quiet", text: error.message })));
  }, (error) => facts.append(h("dt", { text: error.message })));
}

/** Replace a thumbnail by the image itself, if its file still exists. */
function addLarge(frame, source, alt) {
  const large = new Image();
  large.alt = alt;
  large.onload = () => frame.firstElementChild?.replaceWith(large);
  large.src = source;
}

// ---- notes of a method about one image

async function drawNotes(node, notes) {
  const parts = [];
  if (notes.scores) parts.push(candidatesOf(notes));
  if (notes.stages) parts.push(...notes.stages.map(stopOf));
  if (notes.accepted) parts.push(countsOf("Decode steps by draft tokens accepted", notes.accepted));
  if (notes.skips && notes.skips.some(Boolean)) parts.push(countsOf("Decode steps by tokens committed unseen", notes.skips));
  if (notes.trace) parts.push(await traceOf(notes));
  node.replaceChildren(...parts);
}

function candidatesOf(notes) {
  const known = notes.scores.filter((score) => score !== null), low = Math.min(0, ...known), high = Math.max(...known, low + 1e-9);
  return h("section", {}, h("h3", { text: "Candidates, by the score that chose among them" }),
    h("ol", { class: "meters" }, notes.scores.map((score, i) => h("li", { class: i === notes.chosen ? "chosen" : "" },
      h("span", { text: i }), h("i", { style: `width:${score === null ? 0 : Math.max(1, (100 * (score - low)) / (high - low)).toFixed(1)}%` }), h("span", { text: score === null ? "no score" : score.toFixed(3) })))));
}

function countsOf(title, counts) {
  const most = Math.max(...counts, 1);
  return h("section", {}, h("h3", { text: title }), h("ol", { class: "meters" }, counts.map((count, i) =>
    h("li", {}, h("span", { text: i }), h("i", { style: `width:${((100 * count) / most).toFixed(1)}%` }), h("span", { text: count })))));
}

function stopOf(stop) {
  return h("section", {}, h("h3", { text: `Stop: ${stop.stage}` }),
    h("div", { class: "examples" }, composites(stop)),
    stop.texts && h("ol", { class: "texts" }, stop.texts.map((text) => h("li", { text }))));
}

async function traceOf(notes) {
  const threshold = await unpack(notes.trace.threshold), steps = threshold.length, side = Number.isInteger(Math.sqrt(steps)) ? Math.sqrt(steps) : steps;
  const last = notes.terminated_at.map((step) => step ?? steps - 1);
  const packed = await unpack(notes.trace.confidence), series = last.map(() => new Array(steps).fill(null));
  for (let t = 0, at = 0; t < steps; t++) last.forEach((end, i) => { if (t <= end) series[i][t] = packed[at++]; });
  const [low, high] = extent(...series);
  return h("section", {}, h("h3", { text: "Confidence of each candidate over the image, until it ends" }),
    h("div", { class: "maps" }, series.map((values, i) => h("figure", { class: i === notes.chosen ? "chosen" : "" }, heatMap(values, side, low, high),
      h("figcaption", { text: `${i}${i === notes.chosen ? " delivered" : notes.terminated_at[i] === null ? "" : ` ended at ${notes.terminated_at[i]}`}` }))), scaleBar(low, high)),
    timeline(series, threshold, notes, low, high));
}

function timeline(series, threshold, notes, low, high) {
  const width = 600, height = 150, steps = threshold.length;
  const x = (t) => (t / (steps - 1)) * width, y = (value) => height - ((value - low) / (high - low || 1)) * height;
  const path = (values) => values.reduce((d, value, t) => (value === null || Number.isNaN(value) ? d : `${d}${d && values[t - 1] !== null && !Number.isNaN(values[t - 1]) ? "L" : "M"}${x(t).toFixed(1)} ${y(Math.max(low, Math.min(high, value))).toFixed(1)}`), "");
  return svg("svg", { class: "timeline", viewBox: `-4 -6 ${width + 8} ${height + 12}` },
    series.map((values, i) => svg("path", { d: path(values), class: i === notes.chosen ? "chosen" : "" })),
    svg("path", { d: path([...threshold]), class: "threshold" }),
    series.map((values, i) => notes.terminated_at[i] !== null && svg("text", { x: x(notes.terminated_at[i]), y: y(values[notes.terminated_at[i]]) + 4, "text-anchor": "middle", text: "×" })));
}

/** Unpack a series of numbers (harness/runs/trace_codec.py); NaN for a missing one. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(inflated).arrayBuffer()), half = planes.length / 2;
  return Array.from({ length: half }, (_, i) => planes[i] + 256 * planes[half + i]).map((n) => (n === 65535 ? NaN : n / 1000));
}
