"use strict";
// The view that compares two runs: differences by prompt, and the images of wins and losses.
// All statistics come from the data files; the signs of prompts' differences are all that is found here.

const MORE = 12; // prompts of a list that are shown at a time

function showCompare(view) {
  const one = board();
  const [a, b] = chosenPair(one);
  view.append(h("section", { class: "head" }, h("h1", { text: "Compare two runs" }), a && b ? pairPicker(one, a, b) : ""));
  if (!a || !b) {
    view.append(h("p", { class: "empty", text: "There is one run only: nothing to compare it with yet." }));
    return null;
  }
  const body = h("div", { class: "compared" }, h("p", { class: "empty", text: "Loading …" }));
  view.append(body);
  let undo = null;
  Promise.all([withGallery(), load(`data/pairs-${state.board}.js`)]).then(
    ([gallery]) => {
      if (!body.isConnected) return;
      body.replaceChildren();
      undo = a.scored && b.scored ? drawComparison(body, gallery, a, b) : drawUnscored(body, gallery, a, b);
    },
    (error) => body.replaceChildren(h("p", { class: "empty", text: error.message })),
  );
  return () => undo && undo();
}

/** Return the two runs that the address names; else the best one and its plain run, or the first two. */
function chosenPair(one) {
  const best = one.runs.find((run) => run.plain !== run.id) || one.runs[0];
  const a = runOf(state.a) || best;
  const others = one.runs.filter((run) => run !== a);
  const b = others.find((run) => run.id === state.b) || others.find((run) => run.id === a.plain) || others[0];
  return [a, b];
}

function pairPicker(one, a, b) {
  const choose = (pair) => {
    setState({ a: pair.a.id, b: pair.b.id }, true);
    show();
  };
  const select = (name, run, other, pick) => {
    const options = one.runs.map((each) => h("option", { value: each.id, text: each.label, disabled: each === other }));
    const node = h("select", { id: `pick-${name}` }, options);
    node.value = run.id;
    node.addEventListener("change", () => choose(pick(runOf(node.value))));
    return h("label", { class: "pick" }, h("i", { class: "dot", style: `background:${colour(run)}` }), h("span", { text: name.toUpperCase() }), node);
  };
  return h("div", { class: "pickers" },
    select("a", a, b, (run) => ({ a: run, b })),
    h("button", { class: "plainly", text: "⇄", title: "Exchange A and B", "aria-label": "Exchange A and B", onclick: () => choose({ a: b, b: a }) }),
    select("b", b, a, (run) => ({ a, b: run })));
}

// ---- numbers

/** Return the comparison of two runs, whichever of them comes first in the data; undefined without one. */
function pairOf(a, b) {
  const found = report.pairs[state.board][`${a.id} ${b.id}`];
  if (found) return found;
  const mirrored = report.pairs[state.board][`${b.id} ${a.id}`];
  if (!mirrored) return undefined;
  const minus = (value) => (value === null ? null : 0 - value);
  const categories = {};
  for (const [name, [value, low, high, wins, ties, losses]] of Object.entries(mirrored.categories))
    categories[name] = [minus(value), minus(high), minus(low), losses, ties, wins];
  return { ...mirrored, value: minus(mirrored.value), low: minus(mirrored.high), high: minus(mirrored.low), categories };
}

function drawComparison(body, gallery, a, b) {
  const pair = pairOf(a, b);
  const prompts = differencesOf(gallery, a, b);
  if (pair) body.append(h("section", { class: "cards" }, summaryCard(pair, a, b), categoryCard(pair)));
  else body.append(h("p", { class: "empty", text: `This board has too many runs to compare each with each. This compares these two: python -m harness.compare ${a.fingerprint} ${b.fingerprint}` }));
  const undo = plotCards(body, [["differences", "Prompts, from wins to losses",
    "Mean score of a prompt's images, A − B; a bar for each prompt. The dashed line is the difference of the scores, the band its 95 % interval. Select a bar to see its images.",
    (node) => drawDifferences(node, gallery, prompts, pair, [a, b]), "whole"]]);
  body.append(
    imagesOf(gallery, prompts.filter((each) => each.value > 0), [a, b], "Wins of A", `${a.label} is better than ${b.label}`),
    imagesOf(gallery, prompts.filter((each) => each.value < 0).reverse(), [a, b], "Losses of A", `${a.label} is worse than ${b.label}`));
  return undo;
}

/** Return the difference of every prompt's mean, the largest first; of equal ones those with images. */
function differencesOf(gallery, a, b) {
  const of = (run) => gallery.runs[run.id].mean;
  const prompts = gallery.prompts.map(([id, wording, category], prompt) => ({ prompt, id, wording, category, value: of(a)[prompt] - of(b)[prompt] }));
  const pictured = (each) => gallery.runs[a.id].thumb[tellingEntry(gallery, each, [a, b])] !== "";
  return prompts.sort((one, other) => other.value - one.value || pictured(other) - pictured(one) || one.prompt - other.prompt);
}

const totals = (pair) => Object.values(pair.categories).reduce((sum, [, , , ...counts]) => sum.map((count, i) => count + counts[i]), [0, 0, 0]);

function summaryCard(pair, a, b) {
  const [wins, ties, losses] = totals(pair);
  const verdict = pair.resolved ? (pair.value > 0 ? "better" : "worse") : "quiet";
  const known = pair.low !== null;
  const p = pair.p < 0.001 ? "p below 0.001" : `p ${pair.p.toPrecision(2)}`;
  const detail = pair.resolved
    ? `Resolved: ${p} (${pair.test}), and the difference is as large as these prompts find in 80 % of repeats (${score(pair.detectable)}).`
    : !known
      ? "Not resolved: the error is not known, as a category has a single prompt."
      : pair.p >= 0.05
        ? `Not resolved: ${p} (${pair.test}).`
        : `Not resolved: ${p} (${pair.test}), but it is smaller than what these prompts find in 80 % of repeats (${score(pair.detectable)}).`;
  const row = (name, show, key) => h("tr", {}, h("th", { scope: "row", text: name }), [a, b].map((run) => h("td", { class: "number", text: show(run[key]) })));
  return h("article", { class: "card" },
    h("h2", { text: "A − B" }),
    h("p", { class: `headline difference ${verdict}` }, h("b", { text: signed(pair.value) }), " ", h("span", { text: interval(pair.low, pair.high, signed) })),
    h("p", { text: `${detail} p is that of this comparison alone: among many pairs some differ by chance.` }),
    h("p", { class: "counts", text: `A wins ${whole(wins)}, ties ${whole(ties)}, loses ${whole(losses)} of ${whole(wins + ties + losses)} prompts.` }),
    outcomeBar(wins, ties, losses),
    h("div", { class: "scroll" }, h("table", { class: "plainly" },
      h("thead", {}, h("tr", {}, h("th", {}), ["A", "B"].map((text) => h("th", { scope: "col", class: "number", text })))),
      h("tbody", {}, row("score", score, "score"), row("visual tokens", whole, "visual_tokens"), row("target passes", (v) => fixed(v, 1), "target_passes"), row("seconds", (v) => fixed(v, 3), "seconds")))));
}

function categoryCard(pair) {
  const head = ["Category", "A − B", "Wins", "Ties", "Losses"];
  return h("article", { class: "card" }, h("h2", { text: "By category" }),
    h("p", { text: "Differences with their 95 % intervals, and the prompts on which A wins, ties and loses." }),
    h("div", { class: "scroll" }, h("table", { class: "plainly" },
      h("thead", {}, h("tr", {}, head.map((text, i) => h("th", { scope: "col", class: i ? "number" : "", text })), h("th", {}))),
      h("tbody", {}, Object.entries(pair.categories).map(([name, [value, low, high, ...counts]]) => h("tr", {},
        h("th", { scope: "row", text: words(name) }),
        h("td", { class: "number difference" }, h("b", { text: signed(value) }), h("span", { class: "interval", text: interval(low, high, signed) })),
        counts.map((count) => h("td", { class: "number", text: whole(count) })),
        h("td", { class: "outcomes" }, outcomeBar(...counts))))))));
}

function outcomeBar(wins, ties, losses) {
  const part = (name, count) => count > 0 && h("i", { class: name, style: `flex:${count}` });
  return h("div", { class: "outcome", role: "img", "aria-label": `${wins} wins, ${ties} ties, ${losses} losses` }, part("win", wins), part("tie", ties), part("loss", losses));
}

function drawDifferences(node, gallery, prompts, pair, runs) {
  const color = (value) => style(value > 0 ? "--right" : value < 0 ? "--wrong" : "--faint");
  const band = pair && pair.low !== null ? [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: pair.low, y1: pair.high, fillcolor: faded(style("--ink"), 0.12), line: { width: 0 } }] : [];
  const line = pair ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: pair.value, y1: pair.value, line: { color: style("--ink"), width: 1.5, dash: "dash" } }] : [];
  const ties = prompts.map((each, i) => [each, i]).filter(([each]) => each.value === 0).map(([, i]) => i);
  return plot(node, [
    { type: "bar", x: prompts.map((_, i) => i + 1), y: prompts.map((each) => each.value), marker: { color: prompts.map((each) => color(each.value)), line: { width: 0 } }, hovertemplate: prompts.map((each) => `${escaped(each.wording.slice(0, 90))}<br>A − B ${signed(each.value)}<extra></extra>`) },
    { mode: "lines", x: ties.map((i) => i + 1), y: ties.map(() => 0), line: { color: style("--faint"), width: 3 }, hoverinfo: "skip" },
  ], { bargap: 0, showlegend: false, shapes: [...band, ...line], xaxis: { title: "prompts, in the order of their difference", range: [0, prompts.length + 1] }, yaxis: { title: "A − B, mean score of a prompt", range: [-1.05, 1.05] } }).then(() => {
    node.removeAllListeners("plotly_click");
    node.on("plotly_click", ({ points }) => openPrompt(gallery, prompts[points[0].pointIndex], runs, prompts));
  });
}

// ---- images

/** Return the image of a prompt on which two runs differ most in the direction of the prompt's difference. */
function tellingEntry(gallery, each, [a, b]) {
  const value = (run, entry) => gallery.runs[run.id].value[entry] ?? 0;
  const sign = Math.sign(each.value || 0);
  const entries = Array.from({ length: gallery.images }, (_, image) => each.prompt * gallery.images + image);
  const gain = (entry) => sign * (value(a, entry) - value(b, entry));
  const pictured = (entry) => gallery.runs[a.id].thumb[entry] !== "";
  return entries.sort((one, other) => gain(other) - gain(one) || pictured(other) - pictured(one) || one - other)[0];
}

function openPrompt(gallery, each, runs, among) {
  const entries = among.map((other) => tellingEntry(gallery, other, runs));
  openDetail(tellingEntry(gallery, each, runs), runs[0].id, gallery, { entries, runs });
}

/** List prompts with an image of each run, some at a time. */
function imagesOf(gallery, prompts, runs, title, about) {
  const list = h("div", { class: "sides" });
  const more = h("button", { class: "more", onclick: () => add() });
  let shown = 0;
  const add = () => {
    for (const each of prompts.slice(shown, shown + MORE)) list.append(sideBySide(gallery, each, runs, prompts));
    shown = Math.min(prompts.length, shown + MORE);
    more.hidden = shown === prompts.length;
    more.textContent = `${Math.min(MORE, prompts.length - shown)} more of ${whole(prompts.length - shown)}`;
  };
  add();
  return h("section", { class: "pairs" }, h("h2", { text: `${title}: ${whole(prompts.length)} ${prompts.length === 1 ? "prompt" : "prompts"}` }), h("p", { class: "quiet", text: about }), list, more);
}

function sideBySide(gallery, each, runs, among) {
  const entry = tellingEntry(gallery, each, runs), image = entry % gallery.images;
  const open = () => openPrompt(gallery, each, runs, among);
  return h("article", { class: "card side" },
    h("p", { class: "asked", text: each.wording, title: each.wording }),
    h("small", { text: [each.value ? `A − B ${signed(each.value)}` : "", words(each.category), gallery.images > 1 ? `image ${image}` : ""].filter(Boolean).join(" · ") }),
    h("div", { class: "two" }, runs.map((run, i) => h("div", {},
      h("small", { class: "whose", title: run.label }, h("i", { class: "dot", style: `background:${colour(run)}` }), `${"AB"[i]} ${run.title}`),
      shotOf(gallery, run, entry, open)))));
}

function drawUnscored(body, gallery, a, b) {
  body.append(h("p", { class: "lead aside", text: "No judge has scored both of these runs, so there is no difference to state: here are their images." }));
  const prompts = gallery.prompts.map(([id, wording, category], prompt) => ({ prompt, id, wording, category, value: 0 }));
  body.append(imagesOf(gallery, prompts, [a, b], "Side by side", `${a.label} beside ${b.label}`));
  return null;
}
