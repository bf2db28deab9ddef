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

/** Name a board by its parts: first those in which boards differ, which a narrow chooser still shows. */
function boardName(one) {
  const partsOf = (each) => [words(each.benchmark), `on ${words(each.model)}`, `${each.prompts} × ${each.images}`, each.judge || "no judge", `version ${each.version}`, `${each.numerics} numerics`];
  const all = report.boards.map(partsOf), parts = partsOf(one);
  const differs = parts.map((_, i) => new Set(all.map((each) => each[i])).size > 1);
  return [...parts.filter((_, i) => differs[i]), ...parts.filter((_, i) => !differs[i] && i < 3)].join(", ");
}

const boards = document.getElementById("boards");
boards.hidden = report.boards.length < 2;
boards.append(...report.boards.map((one, i) => h("option", { value: i, text: boardName(one), title: boardName(one) })));
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
