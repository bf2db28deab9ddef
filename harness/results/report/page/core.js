"use strict";
// What all views share: data, elements, numbers, colours, and the state that the address carries.

const report = { boards: [], galleries: null, details: {}, figures: [] };

const PALETTES = {
  light: ["#6f6b64", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#3a9bd9", "#882255", "#2a9d8f", "#7d7d1f", "#332288",
    "#e69f00", "#9e4fbf", "#4b7a4b", "#a0522d", "#5f6fb5", "#c2456a", "#007a87", "#647687"],
  dark: ["#a8a39a", "#4aa3df", "#ff8a4c", "#2fcf9f", "#e39cc6", "#f2b632", "#8accf2", "#e07aa8", "#6fd0be", "#c4c45a", "#9f95f0",
    "#ffc04d", "#c98be6", "#8fc48f", "#d98f6a", "#9aa8e8", "#f08aa8", "#4fc3cf", "#a3b4c4"],
};

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
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
const whole = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));
const milliseconds = (value) => (value === null ? "–" : value < 10 ? `${value.toFixed(1)} ms` : value < 10000 ? `${whole(value)} ms` : `${(value / 1000).toFixed(1)} s`);
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
const colour = (run) => PALETTES[theme()][run.color % PALETTES.light.length];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- state: all of it stands in the address, so that every view has a permanent link

const DEFAULTS = { view: "results", board: "0", task: "", vs: "", runs: "", image: "", q: "", at: "", run: "", boxes: "" };
const state = { ...DEFAULTS };

function readAddress() {
  const [view, query] = location.hash.slice(1).split("?");
  Object.assign(state, DEFAULTS, Object.fromEntries(new URLSearchParams(query || "")));
  state.view = ["results", "inside", "gallery"].includes(view) ? view : "results";
  if (!report.boards[state.board]) state.board = "0";
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
const board = () => report.boards[state.board];
const runOf = (id) => board().runs.find((run) => run.id === id);
