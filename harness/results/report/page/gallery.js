"use strict";
// The gallery: a row for each prompt and image, with a column for each run. Only the rows in sight exist.

const withGallery = () => load("data/gallery.js").then(() => report.galleries[state.board]);
const OUTCOMES = { "": "any outcome", wins: "wins against plain", losses: "losses against plain", nobody: "right for nobody", everybody: "right for all", open: "failed or unjudged" };
const HEAD = 58; // pixels of the row of names

const right = (value) => (value === null ? null : value >= 0.5);

function showGallery(view) {
  view.append(h("p", { class: "empty", text: "Loading …" }));
  let undo = null;
  withGallery().then(
    (gallery) => { if (state.view === "gallery") undo = drawGallery(view, gallery); },
    (error) => view.replaceChildren(h("p", { class: "empty", text: error.message })),
  );
  return () => undo && undo();
}

function shownRuns() {
  const one = board(), wanted = new Set(state.runs ? state.runs.split(",") : one.runs.map((run) => run.id));
  const runs = one.runs.filter((run) => wanted.has(run.id) || run.id === one.baseline);
  return runs.sort((a, b) => (b.id === one.baseline) - (a.id === one.baseline));
}

/** Return the entries that the filters select, in order. */
function entriesOf(gallery, runs) {
  const one = board(), columns = runs.map((run) => gallery.runs[run.id]), plain = gallery.runs[one.baseline];
  const others = runs.filter((run) => run.id !== one.baseline).map((run) => gallery.runs[run.id]);
  const value = (column, entry) => column.value[entry] ?? 0;
  const passes = {
    "": () => true,
    wins: (e) => plain && others.some((column) => value(column, e) > value(plain, e)),
    losses: (e) => plain && others.some((column) => value(column, e) < value(plain, e)),
    nobody: (e) => columns.every((column) => !right(value(column, e))),
    everybody: (e) => columns.every((column) => right(value(column, e))),
    open: (e) => columns.some((column) => column.value[e] === null),
  }[state.vs] || (() => true);
  const text = state.q.trim().toLowerCase(), found = [];
  gallery.prompts.forEach(([, wording, category], prompt) => {
    if ((state.task && category !== state.task) || (text && !wording.toLowerCase().includes(text))) return;
    for (let image = 0; image < gallery.images; image++) {
      const entry = prompt * gallery.images + image;
      if ((state.image === "" || Number(state.image) === image) && passes(entry)) found.push(entry);
    }
  });
  return found;
}

function drawGallery(view, gallery) {
  const one = board();
  let runs = shownRuns(), entries = entriesOf(gallery, runs), active = { row: 0, column: 0 };
  const count = h("output", {}), names = h("div", { class: "names" }), body = h("div", { class: "rows" });
  const pane = h("div", { class: "pane" }, names, body);
  const rows = new Map();
  let height = 0;

  const select = (name, label, options) => {
    const node = h("select", { "aria-label": label }, Object.entries(options).map(([value, text]) => h("option", { value, text })));
    node.value = state[name];
    node.addEventListener("change", () => filter({ [name]: node.value }));
    return node;
  };
  const search = h("input", { id: "search", type: "search", placeholder: "Search prompts", "aria-label": "Search prompts", value: state.q, oninput: () => filter({ q: search.value }) });
  const boxes = h("input", { type: "checkbox", onchange: () => showBoxes(boxes.checked) });
  boxes.checked = state.boxes === "1";
  const images = Object.fromEntries([["", "all images"], ...Array.from({ length: gallery.images }, (_, i) => [String(i), `image ${i}`])]);
  view.replaceChildren(
    h("div", { class: "filters" },
      search,
      select("task", "Task", Object.fromEntries([["", "all tasks"], ...one.categories.map((name) => [name, words(name)])])),
      one.scored && select("vs", "Outcome", one.baseline ? OUTCOMES : { "": OUTCOMES[""], nobody: OUTCOMES.nobody, everybody: OUTCOMES.everybody, open: OUTCOMES.open }),
      gallery.images > 1 ? select("image", "Image", images) : "",
      methodPicker(one, (ids) => { state.runs = ids; runs = shownRuns(); filter({ runs: ids }); }),
      one.scored && h("label", { class: "toggle" }, boxes, "boxes"),
      count),
    pane);

  function filter(changes) {
    setState(changes);
    entries = entriesOf(gallery, runs);
    active = { row: 0, column: 0 };
    pane.scrollTop = 0;
    restart();
  }
  function restart() {
    count.textContent = `${whole(entries.length)} of ${whole(gallery.prompts.length * gallery.images)} rows`;
    names.replaceChildren(h("div", { class: "prompt" }), hasSources(gallery) ? h("div", { class: "name", text: "source" }) : "", ...runs.map((run) => h("div", { class: "name", title: run.label }, h("i", { class: "dot", style: `background:${colour(run)}` }), h("span", { text: run.title }), h("small", { text: run.options || "\u00a0" }))));
    rows.forEach((row) => row.remove());
    rows.clear();
    body.replaceChildren(entries.length ? "" : h("p", { class: "empty", text: "Nothing passes these filters." }));
    height = Number(style("--row"));
    body.style.height = `${entries.length * height}px`;
    draw();
  }
  function draw() {
    const first = Math.max(0, Math.floor((pane.scrollTop - HEAD) / height) - 3);
    const last = Math.min(entries.length, Math.ceil((pane.scrollTop + pane.clientHeight) / height) + 3);
    for (const [at, row] of rows) if (at < first || at >= last) { row.remove(); rows.delete(at); }
    for (let at = first; at < last; at++) {
      if (rows.has(at)) continue;
      const row = rowOf(gallery, runs, entries[at], (run) => open(at, run));
      row.style.transform = `translateY(${at * height}px)`;
      rows.set(at, row);
      body.append(row);
      if (state.boxes === "1") overlayRow(row, gallery, runs, entries[at]);
    }
    mark();
  }
  function mark(focus = false) {
    for (const [at, row] of rows)
      [...row.querySelectorAll("button")].forEach((button, column) => {
        const chosen = at === active.row && column === active.column;
        button.tabIndex = chosen ? 0 : -1;
        if (chosen && focus) button.focus({ preventScroll: true });
      });
  }
  function move(down, across) {
    active = { row: clamp(active.row + down, entries.length), column: clamp(active.column + across, runs.length) };
    const top = active.row * height;
    if (top < pane.scrollTop) pane.scrollTop = top;
    else if (top + height + HEAD > pane.scrollTop + pane.clientHeight) pane.scrollTop = top + height + HEAD - pane.clientHeight;
    draw();
    mark(true);
    rows.get(active.row)?.querySelectorAll("button")[active.column]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  function open(row, run) {
    active = { row, column: runs.findIndex((each) => each.id === run.id) };
    mark();
    openDetail(entries[row], run.id, gallery, { entries, runs });
  }
  function showBoxes(on) {
    boxes.checked = on;
    setState({ boxes: on ? "1" : "" });
    rows.forEach((row, at) => (on ? overlayRow(row, gallery, runs, entries[at]) : row.querySelectorAll(".boxes").forEach((layer) => layer.remove())));
  }
  const keys = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, summary") || document.querySelector("dialog[open]")) return;
    const step = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1], PageDown: [4, 0], PageUp: [-4, 0] }[event.key];
    if (step) move(...step);
    else if (event.key === "b") showBoxes(state.boxes !== "1");
    else return;
    event.preventDefault();
  };
  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
  pane.addEventListener("scroll", later, { passive: true });
  const sizes = new ResizeObserver(() => (Number(style("--row")) === height ? later() : restart()));
  sizes.observe(pane);
  document.addEventListener("keydown", keys);
  document.addEventListener("theme", restart);
  restart();
  const at = entries.indexOf(entryAt(gallery, state.at));
  if (at > 0) { pane.scrollTop = at * height; draw(); }
  report.shown = { entries, runs };
  return () => {
    sizes.disconnect();
    document.removeEventListener("keydown", keys);
    document.removeEventListener("theme", restart);
  };
}

const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));

function methodPicker(one, change) {
  const chosen = new Set(shownRuns().map((run) => run.id));
  const summary = h("summary", {});
  const showCount = () => (summary.textContent = chosen.size === one.runs.length ? "all methods" : `${chosen.size} of ${one.runs.length} methods`);
  const inputs = [];
  const apply = () => {
    inputs.forEach(([input, run]) => (input.checked = chosen.has(run.id)));
    showCount();
    change(chosen.size === one.runs.length ? "" : [...chosen].join(","));
  };
  const options = one.runs.map((run) => {
    const input = h("input", { type: "checkbox", disabled: run.id === one.baseline, onchange: () => { chosen[input.checked ? "add" : "delete"](run.id); apply(); } });
    input.checked = chosen.has(run.id);
    inputs.push([input, run]);
    const only = run.id === one.baseline ? "" : h("button", { text: "only", onclick: () => { chosen.clear(); [run.id, one.baseline].forEach((id) => id && chosen.add(id)); apply(); } });
    return h("div", { class: "choice" }, h("label", {}, input, h("i", { class: "dot", style: `background:${colour(run)}` }), run.label), only);
  });
  const everything = h("button", { text: "all", onclick: () => { one.runs.forEach((run) => chosen.add(run.id)); apply(); } });
  showCount();
  const picker = h("details", { class: "picker" }, summary, h("div", { class: "menu" }, everything, options));
  picker.addEventListener("keydown", (event) => event.key === "Escape" && (picker.open = false));
  picker.addEventListener("focusout", (event) => !picker.contains(event.relatedTarget) && event.relatedTarget && (picker.open = false));
  return picker;
}

// ---- a row

function rowOf(gallery, runs, entry, open) {
  const [, wording, category] = gallery.prompts[Math.floor(entry / gallery.images)], image = entry % gallery.images;
  return h("div", { class: "row" },
    h("div", { class: "prompt" }, h("p", { text: wording, title: wording }), h("small", { text: `${words(category)}${gallery.images > 1 ? ` · image ${image}` : ""}` })),
    hasSources(gallery) && sourceOf(gallery, entry),
    runs.map((run) => shotOf(gallery, run, entry, () => open(run))));
}

const hasSources = (gallery) => (gallery.sources || []).length > 0;

/** Show the image that a prompt asks to edit. */
function sourceOf(gallery, entry) {
  const thumb = gallery.sources[Math.floor(entry / gallery.images)];
  return h("div", { class: "shot source" }, h("div", { class: "frame" }, thumb ? h("img", { src: `thumbs/${thumb}`, alt: "source", loading: "lazy", decoding: "async" }) : h("span", { class: "gone", text: "no source" })), h("small", { text: "source" }));
}

function shotOf(gallery, run, entry, open) {
  const column = gallery.runs[run.id], reason = gallery.reasons[column.reason[entry]], [mark, name] = verdict(column, entry);
  const judged = board().scored || !column.drawn[entry], outcome = judged ? `${name}${reason ? `, ${reason}` : ""}` : `image ${entry % gallery.images}`;
  return h("button", { class: `shot ${judged ? name : ""}`, onclick: open, title: judged ? reason || null : null, "aria-label": `${run.label}: ${outcome}` },
    h("div", { class: "frame" }, picture(column, entry)),
    judged && h("span", { class: "verdict" }, h("b", { text: mark }), reason || name),
    h("small", { text: column.drawn[entry] ? `${whole(column.tokens[entry])} tok · ${milliseconds(column.ms[entry])}` : "" }),
    h("small", { text: `seed ${run.seed}/${entry % gallery.images}` }));
}

function verdict(column, entry) {
  if (!column.drawn[entry]) return ["–", "missing"];
  const value = column.value[entry];
  if (value === null) return ["?", "unjudged"];
  if (value > 0 && value < 1) return [value.toFixed(2), value >= 0.5 ? "right" : "wrong"];
  return value ? ["✓", "right"] : ["✗", "wrong"];
}

/** Show the thumbnail, or a placeholder if the image is gone. */
function picture(column, entry) {
  const gone = () => h("span", { class: "gone", text: column.drawn[entry] ? "image not kept" : "no image" });
  if (!column.thumb[entry]) return gone();
  const image = h("img", { src: `thumbs/${column.thumb[entry]}`, alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(gone()));
  return image;
}

// ---- boxes

const detailOf = (gallery, id, entry) => {
  const size = gallery.part * gallery.images, name = `${id}-${Math.floor(entry / size)}`;
  return load(`data/${name}.js`).then(() => report.details[name][entry % size]);
};

function overlayRow(row, gallery, runs, entry) {
  row.querySelectorAll("button .frame").forEach((frame, i) =>
    detailOf(gallery, runs[i].id, entry).then((detail) => row.isConnected && state.boxes === "1" && overlay(frame, detail, gallery.runs[runs[i].id].size), () => null));
}

/** Draw the boxes that the judge kept over an image; without its `size`, over the area that they span. */
function overlay(frame, detail, size, labels = false) {
  frame.querySelectorAll(".boxes").forEach((layer) => layer.remove());
  const found = detail.boxes || [];
  if (!found.length) return;
  const [width, height] = size || [Math.max(...found.map((b) => b[3])), Math.max(...found.map((b) => b[4]))];
  const line = Math.max(width, height) / (labels ? 200 : 80);
  frame.append(svg("svg", { class: "boxes", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMid meet" },
    found.map(([name, x1, y1, x2, y2, confidence, color]) => [
      svg("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, "stroke-width": line }),
      labels && svg("text", { x: x1 + line, y: Math.max(line * 5, y1 - line), "font-size": line * 6, text: [color, name, confidence === null ? "" : confidence.toFixed(2)].filter(Boolean).join(" ") }),
    ])));
}

const placeOf = (gallery, entry) => `${gallery.prompts[Math.floor(entry / gallery.images)][0]}/${entry % gallery.images}`;
function entryAt(gallery, place) {
  const cut = place.lastIndexOf("/"), prompt = gallery.prompts.findIndex(([id]) => id === place.slice(0, cut));
  return prompt < 0 ? -1 : prompt * gallery.images + Number(place.slice(cut + 1));
}
