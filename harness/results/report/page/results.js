"use strict";
// The view of results: the leaderboard, and the figures below it.

function showResults(view) {
  const one = board();
  view.append(
    h("section", { class: "head" }, h("h1", { text: words(one.title) }), h("p", { class: "lead", text: lead(one) })),
    h("section", { class: "wide" }, leaderboard(one)),
    remarksOf(one),
  );
  const undo = showFigures(view, one);
  view.append(claims());
  return undo;
}

/** Show published numbers, apart from measured ones; their file is loaded when they are opened. */
function claims() {
  const box = h("details", { class: "card" }, h("summary", {}, h("h2", { text: "Claimed elsewhere" }), " published numbers, not measured here"));
  box.addEventListener("toggle", () => load("data/claims.js").then(() => box.open && !box.querySelector("table") && box.append(claimsTable())));
  return h("section", { class: "claims" }, box);
}

function claimsTable() {
  const head = ["Source", "Benchmark", "Model", "Method", "Metric", "Claimed", "Measured here", "Verdict"];
  const measured = (row) => (row.measured === null ? "–" : `${fixed(row.measured, 3)}${row.ci_low === null ? "" : ` [${fixed(row.ci_low, 3)}, ${fixed(row.ci_high, 3)}]`}`);
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, head.map((text, i) => h("th", { text, class: i === 5 || i === 6 ? "number" : "" })))),
    h("tbody", {}, report.claims.map((row) => h("tr", {},
      [row.source, row.benchmark, words(row.model), `${words(row.method)}${row.n ? ` (n=${row.n})` : ""}`, row.metric].map((text) => h("td", { text })),
      h("td", { class: "number", text: row.claimed === null ? "–" : String(row.claimed) }),
      h("td", { class: "number", text: measured(row) }),
      h("td", { text: row.verdict || "" }))))));
}

function lead(one) {
  const runs = one.runs.length === 1 ? "One run" : `${one.runs.length} runs`;
  return `${runs} over the same ${whole(one.prompts)} prompts × ${one.images} ${one.images === 1 ? "image" : "images"}, ` +
    `judged by ${one.judge || "nobody yet"}. Lines are 95 % intervals over prompts; the dashed line is plain sampling.`;
}

function remarksOf(one) {
  const remarks = [];
  if (one.runs.length === 1) remarks.push("One run only: there is nothing to compare it with yet.");
  else if (!one.baseline) remarks.push("There is no plain run on this board, so nothing is compared with plain, and budgets are not known.");
  for (const run of one.runs)
    for (const name of ["failed", "missing", "unjudged", "unanswered"])
      if (run[name]) remarks.push(`${run.label}: ${run[name]} images ${name}, counted as wrong.`);
  for (const run of one.runs) for (const mark of run.marks) remarks.push(`${run.label}: ${mark}.`);
  for (const [overlap, words] of [["same", "the judge itself"], ["family", "a relative of the judge, which may share its blind spots"]]) {
    const some = one.runs.filter((run) => run.reward_is_judge === overlap);
    if (some.length) remarks.push(`Chosen by ${words}: ${some.map((run) => run.label).join("; ")}.`);
  }
  return remarks.length > 0 && h("section", {}, h("ul", { class: "notes" }, remarks.map((text) => h("li", { text }))));
}

// ---- leaderboard

const SHORT = { single_object: "single", two_object: "two", counting: "count", color_attr: "attr" };

function columns(one) {
  const number = (key, title, show, about) => ({ key, title, about, value: (run) => run[key], cell: (run) => h("td", { class: "number", text: show(run[key]) }) });
  const known = (name) => one.runs.some((run) => typeof run[name] === "number");
  return [
    known("tie_group") && { key: "tie_group", title: "Tie", about: "Runs with the same number cannot be told apart by these prompts", value: (run) => run.tie_group, cell: tieCell },
    { key: "label", title: "Method", value: (run) => run.label, cell: (run) => nameCell(run, one) },
    { key: "score", title: "Score", value: (run) => run.score, cell: (run) => scoreCell(run, one) },
    known("vs_plain") && { key: "vs_plain", title: "Against plain", about: "Difference of the scores, paired by prompt. Grey: not resolved, the reason is beside it", value: (run) => run.vs_plain, cell: (run) => differenceCell(run, "vs_plain") },
    known("vs_bon") && { key: "vs_bon", title: "Against Best-of-N", about: "The same, against Best-of-N with as many visual tokens", value: (run) => run.vs_bon, cell: (run) => differenceCell(run, "vs_bon") },
    ...one.categories.filter(known).map((name) => ({ key: name, title: SHORT[name] || words(name), value: (run) => run[name], cell: (run) => taskCell(run, name, one) })),
    number("visual_tokens", "Tokens", whole, "Visual tokens drawn for each delivered image, discarded candidates included"),
    number("target_passes", "Passes", (v) => fixed(v, 1), "Sequential forwards of the target model for each delivered image"),
    number("seconds", "Seconds", (v) => fixed(v, 3), "Device and judge seconds for each delivered image"),
  ].filter(Boolean);
}

function leaderboard(one) {
  const all = columns(one);
  let sorted = { key: "score", down: true };
  const table = h("table", { class: "board" });
  const draw = () => {
    const column = all.find((c) => c.key === sorted.key);
    const runs = [...one.runs].sort((a, b) => compare(column.value(a), column.value(b)) * (sorted.down ? -1 : 1));
    table.replaceChildren(
      h("thead", {}, h("tr", {}, all.map((c) => h("th", { scope: "col", title: c.about, class: ["label", "score", "tie_group"].includes(c.key) ? c.key : "number", "aria-sort": c.key === sorted.key ? (sorted.down ? "descending" : "ascending") : null },
        h("button", { text: c.title, onclick: () => { sorted = { key: c.key, down: c.key === sorted.key ? !sorted.down : c.key !== "label" }; draw(); } }))))),
      h("tbody", {}, runs.map((run) => h("tr", { class: run.plain === run.id ? "baseline" : null }, all.map((c) => c.cell(run))))),
    );
  };
  draw();
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Leaderboard" }, table);
}

function compare(a, b) {
  if (a === null || a === undefined) return -1;
  if (b === null || b === undefined) return 1;
  return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
}

function nameCell(run, one) {
  const link = h("a", { href: address({ ...DEFAULTS, board: state.board, view: "gallery", runs: run.id === one.baseline ? "" : run.id }), title: `${run.folder}\nseed ${run.seed}, commit ${run.commit || "?"}, ${run.device || "?"}` });
  link.append(h("i", { class: "dot", style: `background:${colour(run)}` }), h("div", {}, h("span", { text: words(run.method) }), h("small", { text: run.options })));
  return h("th", { scope: "row" }, link);
}

function scoreCell(run, one) {
  const known = one.runs.flatMap((r) => [r.ci_low ?? r.score, r.ci_high ?? r.score]).filter((v) => v !== null);
  const low = Math.min(...known), high = Math.max(...known), width = 140;
  const x = (value) => (4 + ((value - low) / (high - low || 1)) * (width - 8)).toFixed(1);
  const plain = runOf(one.baseline);
  const bar = run.score === null ? null : svg("svg", { class: "bar", viewBox: `0 0 ${width} 16`, width, height: 16, role: "img", "aria-label": `between ${fixed(run.ci_low, 3)} and ${fixed(run.ci_high, 3)}` },
    plain && plain.score !== null && svg("line", { class: "plain", x1: x(plain.score), x2: x(plain.score), y1: 0, y2: 16 }),
    run.ci_low !== null && svg("line", { class: "range", x1: x(run.ci_low), x2: x(run.ci_high), y1: 8, y2: 8, stroke: colour(run) }),
    svg("circle", { cx: x(run.score), cy: 8, r: 4, fill: colour(run) }));
  return h("td", { class: "score" }, h("div", {}, h("span", {}, h("b", { text: run.score === null ? "not scored" : fixed(run.score, 3) }), h("span", { class: "interval", text: run.ci_low === null ? "" : `[${fixed(run.ci_low, 3)}, ${fixed(run.ci_high, 3)}]` })), bar));
}

function tieCell(run) {
  return h("td", { class: "tie", text: run.tie_group ?? "–", title: run.rank_low ? `rank ${run.rank_low} to ${run.rank_high}` : null });
}

function differenceCell(run, name) {
  const value = run[name];
  if (typeof value !== "number") return h("td", { class: "number quiet", text: "–" });
  const resolved = run[`${name}_resolved`], bound = name === "vs_plain" ? run.worse_at_most : null;
  const about = [
    resolved ? null : run[`${name}_verdict`],
    typeof bound === "number" ? `at most ${Math.max(0, -bound).toFixed(3)} worse (95 %)` : null,
  ].filter(Boolean);
  return h("td", { class: `number difference ${resolved ? (value > 0 ? "better" : "worse") : "quiet"}`, title: about.join("\n") || null },
    h("b", { text: signed(value) }), run[`${name}_low`] !== null && h("span", { class: "interval", text: `[${signed(run[`${name}_low`])}, ${signed(run[`${name}_high`])}]` }));
}

function taskCell(run, name, one) {
  const value = run[name];
  if (typeof value !== "number") return h("td", { class: "number quiet", text: "–" });
  const best = Math.max(...one.runs.map((r) => r[name] ?? 0));
  return h("td", { class: `number task${value === best ? " best" : ""}`, style: `--share:${value}` , text: (100 * value).toFixed(0) });
}
