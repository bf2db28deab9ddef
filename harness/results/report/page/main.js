"use strict";
// Shows the view that the address names; keys and buttons that all views share.

let leave = null; // removes the listeners of the shown view

function show() {
  readAddress();
  if (leave) leave();
  const view = document.getElementById("view");
  view.className = state.view;
  view.replaceChildren();
  for (const link of document.querySelectorAll("nav a")) {
    link.hidden = !viewsOf(board()).includes(link.dataset.view);
    link.href = `#${link.dataset.view}${state.board === "0" ? "" : `?board=${state.board}`}`;
    link.toggleAttribute("aria-current", link.dataset.view === state.view);
  }
  if (!report.boards.length) {
    leave = null;
    view.append(h("p", { class: "empty", text: "No run has been reported yet: the results folder is empty." }));
    return;
  }
  document.title = { results: words(board().title), compare: "Compare two runs", budgets: "Budgets", inside: "Inside the methods", gallery: "Gallery" }[state.view];
  leave = VIEWS[state.view]()(view) || null;
  showDetail();
}

function go(view) {
  setState({ ...DEFAULTS, board: state.board, view }, true);
  show();
  scrollTo(0, 0);
}

function toggleTheme() {
  setTheme(theme() === "dark" ? "light" : "dark");
  stored("theme", theme());
}

const boards = document.getElementById("boards");
const judges = new Set(report.boards.map((one) => one.judge)).size;
boards.hidden = report.boards.length < 2;
boards.append(...report.boards.map((one, i) => h("option", { value: i, text: `${words(one.title)}, ${one.prompts} × ${one.images}${judges > 1 ? `, ${one.judge}` : ""}` })));
readAddress();
boards.value = state.board;
boards.addEventListener("change", () => {
  setState({ ...DEFAULTS, view: state.view, board: boards.value }, true);
  show();
});
document.getElementById("theme").addEventListener("click", toggleTheme);
document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());
for (const dialog of document.querySelectorAll("dialog"))
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const view = Object.keys(VIEWS)[event.key - 1];
  if (view && viewsOf(board()).includes(view) && !document.querySelector("dialog[open]")) go(view);
  else if (event.key === "t") toggleTheme();
  else if (event.key === "?") document.getElementById("keys").showModal();
  else if (event.key === "/" && document.getElementById("search")) document.getElementById("search").focus();
  else return;
  event.preventDefault();
});
addEventListener("popstate", show);
addEventListener("hashchange", () => location.hash !== address({}) && show());

show();
requestAnimationFrame(() => setTimeout(() => (document.documentElement.dataset.painted = Math.round(performance.now()))));
