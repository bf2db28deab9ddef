"use strict";
// The view of results: the leaderboard, and the figures below it.

function showResults(view) {
  const one = board();
  view.append(
    h("section", { class: "head" }, h("h1", { text: words(one.title) }), h("p", { class: "lead", text: lead(one) })),
    h("section", { class: "wide" }, leaderboard(one)),
    legendOf(one) || "",
    remarksOf(one) || "",
  );
  const undo = showFigures(view, one);
  if (one.scored) view.append(claims());
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
  const over = `${runs} over the same ${whole(one.prompts)} ${one.prompts === 1 ? "prompt" : "prompts"} × ${one.images} ${one.images === 1 ? "image" : "images"}`;
  if (!one.scored) return `${over}. No judge has scored them: here is what they cost; the gallery has the images.`;
  return `${over}, judged by ${one.judge}. Scores are between 0 and 1. Lines are 95 % intervals over prompts; the dashed line is plain sampling.`;
}

function remarksOf(one) {
  const remarks = one.remark ? [`${one.remark}.`] : [];
  if (one.runs.length === 1) remarks.push("One run only: there is nothing to compare it with yet.");
  else if (one.scored && !one.baseline) remarks.push("There is no plain run on this board, so nothing is compared with plain, and budgets are not known.");
  const marked = new Map();
  for (const run of one.runs) {
    const counted = run.scored ? ", counted as wrong" : "";
    for (const name of ["failed", "missing", ...(run.scored ? ["unjudged"] : [])])
      if (run[name]) remarks.push(`${run.label}: ${run[name]} ${run[name] === 1 ? "image" : "images"} ${name}${counted}.`);
    if (run.unanswered) remarks.push(`${run.label}: ${run.unanswered} ${run.unanswered === 1 ? "question" : "questions"} unanswered.`);
    for (const mark of run.marks) marked.set(mark, [...(marked.get(mark) || []), run.label]);
  }
  for (const [mark, labels] of marked) {
    const all = labels.length > 1 && labels.length === one.runs.length;
    remarks.push(`${all ? `All ${labels.length} runs` : labels.join("; ")}: ${mark}.`);
  }
  remarks.push(...one.remarks);
  return remarks.length > 0 && h("section", {}, h("ul", { class: "notes" }, remarks.map((text) => h("li", { text }))));
}

// ---- leaderboard

const SHORT = { single_object: "single", two_object: "two", counting: "count", color_attr: "attr" };
const LETTERS = "abcdefgh";

/** Return the reasons for which differences of a board are grey; a cell names its own by a letter. */
function reasonsOf(one) {
  const names = ["vs_plain", "vs_bon", ...one.metrics.map((metric) => `${metric.name}_vs_plain`)];
  const found = one.runs.flatMap((run) => names.map((name) => run[`${name}_reason`])).filter(Boolean);
  return [...new Set(found)].sort();
}

function columns(one) {
  const reasons = reasonsOf(one);
  const number = (key, title, show, about) => ({ key, title, about, down: false, value: (run) => run[key], cell: (run) => h("td", { class: "number", text: show(run[key]) }) });
  const difference = (key, title, about) => ({ key, title, about, down: true, value: (run) => run[key], cell: (run) => differenceCell(run, key, reasons) });
  const known = (name) => one.runs.some((run) => typeof run[name] === "number");
  const tasks = one.categories.filter((name) => one.runs.some((run) => typeof run.tasks[name] === "number"));
  return [
    known("tie_group") && { key: "tie_group", title: "Tie", name: "tie_group", about: "Runs with the same number cannot be told apart by these prompts; each pair is tested by itself", down: false, value: (run) => run.tie_group, cell: tieCell },
    { key: "label", title: "Method", name: "label", down: false, value: (run) => run.label, cell: (run) => nameCell(run, one) },
    one.scored && { key: "score", title: "Score", name: "score", about: "0 to 1, with its 95 % interval over prompts", down: true, value: (run) => run.score, cell: (run) => scoreCell(run, one), scale: scaleOf(one) },
    known("vs_plain") && difference("vs_plain", "Against plain", "Difference of the scores, paired by prompt. Grey: not resolved, see the letters below the table"),
    known("vs_bon") && difference("vs_bon", "Against Best-of-N", "The same, against Best-of-N with as many visual tokens"),
    ...tasks.map((name) => ({ key: name, title: SHORT[name] || words(name), about: `Score on ${words(name)}, 0 to 1`, down: true, value: (run) => run.tasks[name], cell: (run) => taskCell(run, name, one) })),
    ...one.metrics.filter((metric) => known(metric.name)).flatMap((metric) => metricColumns(metric, known, reasons)),
    known("fd_plain") && { key: "fd_plain", title: "Distance to plain", about: "Fréchet distance to plain sampling's own images, and in brackets that of another plain run: how far apart equals are; lower is better", down: false, value: (run) => run.fd_plain, cell: distanceCell },
    number("visual_tokens", "Tokens", whole, "Visual tokens drawn for each delivered image, discarded candidates included"),
    number("target_passes", "Passes", (v) => fixed(v, 1), "Sequential forwards of the target model for each delivered image"),
    number("seconds", "Seconds", (v) => fixed(v, 3), "Device and judge seconds for each delivered image"),
  ].filter(Boolean);
}

/** Return the columns of a metric of images: its mean, and its difference from plain sampling. */
function metricColumns(metric, known, reasons) {
  const { name, unit, better, digits } = metric, difference = `${name}_vs_plain`, down = better === "higher";
  const show = (value) => fixed(value, digits);
  const mean = (run) => h("td", { class: "number", title: run[`${name}_by`] }, h("b", { text: show(run[name]) }), h("span", { class: "interval", text: interval(run[`${name}_low`], run[`${name}_high`], show) }));
  return [
    { key: name, title: words(name), about: `${unit}, mean over prompts with its 95 % interval; ${better} is better`, down, value: (run) => run[name], cell: mean },
    known(difference) && { key: difference, title: `${words(name)} against plain`, about: "Difference of the means, paired by prompt. Grey: not resolved, see the letters below the table", down, value: (run) => run[difference], cell: (run) => differenceCell(run, difference, reasons, metric) },
  ].filter(Boolean);
}

/** Show a run's distance to plain sampling's images, how far apart equals are, and p; grey where nothing was found. */
function distanceCell(run) {
  if (typeof run.fd_plain !== "number") return h("td", { class: "number quiet", text: "–" });
  const differs = (run.fd_plain_verdict || "").startsWith("differs");
  const p = typeof run.fd_plain_p === "number" ? `, p ${fixed(run.fd_plain_p, 3)}` : "";
  return h("td", { class: `number difference ${differs ? "worse" : "quiet"}`, title: run.fd_plain_verdict || null }, h("b", { text: fixed(run.fd_plain, 3) }),
    h("span", { class: "interval", text: `[${fixed(run.fd_plain_null, 3)}]${p}` }));
}

function leaderboard(one) {
  const by = one.scored ? "score" : "label";
  return sortedTable("board", columns(one), one.runs, { by, label: "Leaderboard", rowClass: (run) => (run.plain === run.id ? "baseline" : null) });
}

/** Explain colours and letters of the differences. */
function legendOf(one) {
  const reasons = reasonsOf(one);
  if (!one.runs.some((run) => typeof run.vs_plain === "number")) return false;
  return h("section", {}, h("p", { class: "legend" },
    h("b", { class: "right", text: "better" }), " and ", h("b", { class: "wrong", text: "worse" }), " than the other run, resolved. ",
    reasons.length > 0 && ["Grey: not resolved; ", reasons.map((reason, i) => [i ? "; " : "", h("sup", { text: LETTERS[i] }), ` ${reason}`]), "."]));
}

function nameCell(run, one) {
  const link = h("a", { href: address({ ...DEFAULTS, board: state.board, view: "gallery", runs: run.id === one.baseline ? "" : run.id }), title: `${run.label}\n${run.folder}\nseed ${run.seed}, commit ${run.commit || "?"}, ${run.device || "?"}` });
  link.append(h("i", { class: "dot", style: `background:${colour(run)}` }), h("div", {}, h("span", { text: run.title }), h("small", { text: run.options })));
  return h("th", { scope: "row" }, link);
}

const BAR = 108; // pixels

/** Return the lowest and the highest end of the intervals of a board, and the place of a score between them. */
function spanOf(one) {
  const known = one.runs.flatMap((run) => [run.ci_low ?? run.score, run.ci_high ?? run.score]).filter((value) => value !== null && value !== undefined);
  const low = Math.min(...known), high = Math.max(...known);
  return { low, high, x: (value) => (4 + ((value - low) / (high - low || 1)) * (BAR - 8)).toFixed(1) };
}

/** Name the ends of the bars in the column's head. */
function scaleOf(one) {
  const { low, high } = spanOf(one);
  return Number.isFinite(low) && h("span", { class: "ends", "aria-hidden": "true" }, h("span", { text: fixed(low, 2) }), h("span", { text: fixed(high, 2) }));
}

function scoreCell(run, one) {
  if (!run.scored || run.score === null) return h("td", { class: "score quiet", text: "not scored" });
  const { x } = spanOf(one), plain = runOf(one.baseline);
  const bar = svg("svg", { class: "bar", viewBox: `0 0 ${BAR} 16`, width: BAR, height: 16, role: "img", "aria-label": `between ${score(run.ci_low)} and ${score(run.ci_high)}` },
    plain && plain.score !== null && svg("line", { class: "plain", x1: x(plain.score), x2: x(plain.score), y1: 0, y2: 16 }),
    run.ci_low !== null && svg("line", { class: "range", x1: x(run.ci_low), x2: x(run.ci_high), y1: 8, y2: 8, stroke: colour(run) }),
    svg("circle", { cx: x(run.score), cy: 8, r: 3, fill: colour(run) }));
  return h("td", { class: "score" }, h("div", {}, h("span", { class: "value" }, h("b", { text: score(run.score) }), h("span", { class: "interval", text: interval(run.ci_low, run.ci_high, score) })), bar));
}

function tieCell(run) {
  return h("td", { class: "tie", text: run.tie_group ?? "–", title: run.rank_low ? `rank ${run.rank_low} to ${run.rank_high}` : null });
}

/** Show a difference; of a metric of images in its digits, and better where its values are meant to go. */
function differenceCell(run, name, reasons, metric = { better: "higher", digits: 3 }) {
  const value = run[name], show = (number) => signed(number, metric.digits);
  if (typeof value !== "number") return h("td", { class: "number quiet", text: "–" });
  const shown = show(value);
  const resolved = run[`${name}_resolved`], bound = name === "vs_plain" ? run.worse_at_most : null;
  const against = name === "vs_plain" ? run.plain : null;
  const letter = LETTERS[reasons.indexOf(run[`${name}_reason`])];
  const about = [
    resolved ? null : run[`${name}_verdict`],
    typeof bound === "number" ? `at most ${Math.max(0, -bound).toFixed(3)} worse (95 %)` : null,
  ].filter(Boolean);
  return h("td", { class: `number difference ${resolved ? (value > 0 === (metric.better === "higher") ? "better" : "worse") : "quiet"}`, title: about.join("\n") || null },
    h("b", {}, against ? h("a", { href: address({ ...DEFAULTS, board: state.board, view: "compare", a: run.id, b: against }), text: shown, "aria-label": `${shown}: compare with plain` }) : shown), !resolved && letter && h("sup", { text: letter }),
    h("span", { class: "interval", text: interval(run[`${name}_low`], run[`${name}_high`], show) }));
}

function taskCell(run, name, one) {
  const value = run.tasks[name];
  if (typeof value !== "number") return h("td", { class: "number quiet", text: "–" });
  const best = Math.max(...one.runs.map((other) => other.tasks[name] ?? 0));
  return h("td", { class: `number task${value === best ? " best" : ""}`, style: `--share:${value}`, text: fixed(value, 2) });
}
