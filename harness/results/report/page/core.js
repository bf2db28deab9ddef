"use strict";
// What all views share: data, elements, numbers, colours, and the state that the address carries.

const report = { boards: [], first: 0, galleries: null, details: {}, figures: [], pairs: [], palette: {} };

// ---- elements: text is set as text, never as markup

function element(make, tag, properties, children) {
  const node = make(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
const h = (tag, properties, ...children) => element((t) => document.createElement(t), tag, properties, children);
const svg = (tag, properties, ...children) =>
  element((t) => document.createElementNS("http://www.w3.org/2000/svg", t), tag, properties, children);

// ---- numbers: a missing one is a dash

const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const signed = (value, digits = 3) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
const whole = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));
const milliseconds = (value) => (value === null ? "–" : value < 10 ? `${value.toFixed(1)} ms` : value < 10000 ? `${whole(value)} ms` : `${(value / 1000).toFixed(1)} s`);
const interval = (low, high, show) => (low === null || low === undefined ? "" : `[${show(low)}, ${show(high)}]`);
const score = (value) => fixed(value, 3);
const words = (name) => String(name).replaceAll("_", " ");

// ---- data files: a page opened from a disk may load scripts, and nothing else

const loading = {};
function load(file) {
  loading[file] ??= new Promise((resolve, reject) => {
    const script = h("script", { src: file });
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${file} is not there`));
    document.head.append(script);
  });
  return loading[file];
}

// ---- theme

function stored(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name);
  } catch {
    return null; // a browser may keep no storage for files
  }
}
const theme = () => document.documentElement.dataset.theme;
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.dispatchEvent(new Event("theme"));
}
setTheme(
  new URLSearchParams(location.search).get("theme") || stored("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"),
);
const colour = (run) => run.color[theme()];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- state: all of it stands in the address, so that every view has a permanent link

const VIEWS = { results: () => showResults, compare: () => showCompare, budgets: () => showBudgets, inside: () => showInside, gallery: () => showGallery };
const DEFAULTS = { view: "results", board: "0", task: "", vs: "", runs: "", image: "", q: "", at: "", run: "", boxes: "", a: "", b: "", axis: "tokens" };
const state = { ...DEFAULTS };

function readAddress() {
  const [view, query] = location.hash.slice(1).split("?");
  Object.assign(state, DEFAULTS, Object.fromEntries(new URLSearchParams(query || "")));
  state.view = view in VIEWS ? view : "results";
  if (!location.hash) state.board = String(report.first);
  if (!report.boards[state.board]) state.board = "0";
  if (!viewsOf(board()).includes(state.view)) state.view = "results";
}
function address(changes) {
  const next = { ...state, ...changes };
  const query = new URLSearchParams(Object.entries(next).filter(([k, v]) => k !== "view" && v && v !== DEFAULTS[k]));
  return `#${next.view}${String(query) && `?${query}`}`;
}
function setState(changes, push = false) {
  const hash = address(changes);
  Object.assign(state, changes);
  if (hash !== location.hash) history[push ? "pushState" : "replaceState"](null, "", hash);
}
/** Return the views that a board has something to show in. */
const viewsOf = (one) => Object.keys(VIEWS).filter((view) => view !== "budgets" || (one && Object.values(one.budgets).some((families) => families.length)));
const board = () => report.boards[state.board];
const runOf = (id) => board().runs.find((run) => run.id === id);

// ---- tables that can be sorted

/** Order numbers and texts; what is missing stands last, whatever the direction. */
function compare(a, b, down) {
  const missing = (value) => value === null || value === undefined || value === "";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return down ? -order : order;
}

/**
 * Make a table whose heads sort it.
 * A column has key, title, value(row) and cell(row); further about, name (a class) and down (largest first).
 */
function sortedTable(name, columns, rows, { by, label, rowClass = () => null }) {
  let sorted = { key: by, down: columns.find((column) => column.key === by).down };
  const table = h("table", { class: name });
  const head = (column) => h("th", {
    scope: "col", title: column.about, class: column.name || "number",
    "aria-sort": column.key === sorted.key ? (sorted.down ? "descending" : "ascending") : null,
  }, h("button", { text: column.title, onclick: () => sort(column) }), column.key === "score" && column.scale);
  function sort(column) {
    sorted = { key: column.key, down: column.key === sorted.key ? !sorted.down : column.down };
    draw();
    table.querySelector("th[aria-sort] button").focus();
  }
  function draw() {
    const { value } = columns.find((column) => column.key === sorted.key);
    const ordered = [...rows].sort((a, b) => compare(value(a), value(b), sorted.down));
    table.replaceChildren(
      h("thead", {}, h("tr", {}, columns.map(head))),
      h("tbody", {}, ordered.map((row) => h("tr", { class: rowClass(row) }, columns.map((column) => column.cell(row))))),
    );
  }
  draw();
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, table);
}
