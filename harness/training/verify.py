"""Measure the gates of a shipped weight set: `python -m harness.training.verify [--quick]`.

Samples are of generated prompts, or of GenEval's with `--metadata evaluation_metadata.jsonl`. One
line is printed for each gate: what was measured, what is asked, "pass" or by how much it is missed.
`--quick` measures fewer prompts and scenes, `--parts natural` only whether relaxed methods find
what they rest on. `--write` puts the table on the set's card; the exit code is 1 if the measurement
contradicts the card.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from harness.arguments import explain_mistakes
from harness.drafters.model import DraftModel
from harness.engine.acceptance import exact
from harness.judges.pictogram_verifier import PictogramVerifier, View, find_faults
from harness.models.pictogram import grammar, world
from harness.models.pictogram import weights as files
from harness.models.pictogram.detector import Detector
from harness.models.pictogram.editor import PART
from harness.models.pictogram.generator import draw_tokens
from harness.models.pictogram.grammar import COLORS, NUMBERS, RELATIONS, TASKS, Spec
from harness.records import UserError
from harness.results.gates import Gate, objections, platform, summarise
from harness.results.stats import auc, auc_within, macro_mean, paired_difference
from harness.runs.instantiate import build_object
from harness.training import train_detector
from harness.training.card import Card, write_card
from harness.training.edit_gates import measure_editor
from harness.training.natural_gates import natural_gates
from harness.training.samples import (
    FEW,
    MANY,
    SCALE,
    Bench,
    Drawn,
    Signals,
    Study,
    draw,
    near_codes,
    pair,
    picked,
    table,
)
from harness.training.train_tokenizer import decibel


@explain_mistakes
def main() -> None:
    """Measure, print and perhaps write the gates; exit with 1 if they contradict the card."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.training.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--weights", default=grammar.DEFAULT, help="a shipped set, or the folder of one"
    )
    parser.add_argument("--quick", action="store_true", help="fewer prompts and scenes")
    parser.add_argument("--metadata", help="an official GenEval file: samples are of its prompts")
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all"
    )
    parser.add_argument("--write", action="store_true", help="put the table on the card")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    path = files.find_set(arguments.weights) / "card.json"
    kind = ("quick" if arguments.quick else "full") + (" official" if arguments.metadata else "")
    card: Card = json.loads(path.read_text())
    measured = card.get("measured", {}).get(kind)
    if arguments.write:
        expect_same_platform(measured, arguments.parts, kind)

    study = Study(Bench(arguments.weights, arguments.metadata), FEW if arguments.quick else MANY)
    gates = measure(study, arguments.parts, lambda gate: print(gate, flush=True))
    print(summarise(gates))

    if arguments.write:
        measured = replace_gates(measured, gates)
        card.setdefault("measured", {})[kind] = measured
        write_card(path.parent, card)
    sys.exit("\n".join(objections(gates, measured)) or 0)


def measure(
    study: Study, parts: Iterable[str], report: Callable[[Gate], None] = lambda gate: None
) -> list[Gate]:
    """Measure the gates of some parts; `report` gets each of them as soon as it is known."""
    gates: list[Gate] = []
    for part in parts:
        for gate in PARTS[part](study):
            report(gate)
            gates.append(gate)
    return gates


def expect_same_platform(measured: dict[str, Any] | None, parts: Sequence[str], kind: str) -> None:
    """Raise UserError where some parts of a table would be of another platform than the others."""
    if measured and measured["on"] != platform() and set(parts) != set(PARTS):
        raise UserError(
            f"the card's {kind} gates were measured on {measured['on']}, and this is {platform()}: "
            "measure all parts"
        )


def replace_gates(measured: dict[str, Any] | None, gates: Sequence[Gate]) -> dict[str, Any]:
    """Return the card's table with these gates in the places of those of their names.

    What is new stands behind the others. A table of another platform is left: see
    `expect_same_platform`.
    """
    former = measured["gates"] if measured and measured["on"] == platform() else []
    rows = {row["name"]: row for row in former}
    rows |= {gate.name: gate.to_row() for gate in gates}
    return {"on": platform(), "gates": list(rows.values())}


# --- tokenizer and detectors ----------------------------------------------------------------------


def tokenizer_gates(study: Study) -> list[Gate]:
    """Measure how well pictures survive the tokenizer."""
    bench = study.bench
    specs, samples, again = bench.scenes(study.size.scenes)
    pairs = zip(samples, again, strict=True)
    decibels = [decibel(sample.pixels, picture) for sample, picture in pairs]
    passed = bench.correct(pair(specs, again))
    tags = np.array([spec["tag"] for spec in specs])
    per_task = {task: float(passed[tags == task].mean()) for task in TASKS}
    return [
        Gate("tokenizer: held-out PSNR, dB", float(np.mean(decibels)), least=27),
        Gate("true scenes pass after reconstruction", float(passed.mean()), least=0.95),
        *(Gate(f"true scenes pass: {task}", share, least=0.90) for task, share in per_task.items()),
        *swap_gates(bench, specs, samples),
    ]


def swap_gates(bench: Bench, specs: Sequence[Spec], samples: Sequence[world.Sample]) -> list[Gate]:
    """Measure the loss of right verdicts when 30 % of the object tokens are swapped.

    They become one of the ten nearest codes, or any code.
    """
    rng = torch.Generator().manual_seed(0)
    codes = torch.cat(bench.encode(np.stack([sample.pixels for sample in samples])))

    # 1. Choose the tokens and what they become.
    nearest = near_codes(bench.model.codebook, 10)
    near = nearest[codes, torch.randint(1, 11, codes.shape, generator=rng) - 1]
    other = torch.randint(0, bench.model.vocab, codes.shape, generator=rng)
    is_chosen = torch.rand(codes.shape, generator=rng) < 0.3
    is_swapped = is_chosen & torch.from_numpy(_object_tokens(samples))

    # 2. Judge the pictures of all three.
    shares = []
    for replaced in (codes, near, other):
        swapped = torch.where(is_swapped, replaced, codes)
        pictures = bench.decode(swapped.split(32))
        shares.append(float(bench.correct(pair(specs, pictures)).mean()))
    return [
        Gate("loss by swapping object tokens: 10 nearest", shares[0] - shares[1], most=0.05),
        Gate("loss by swapping object tokens: any", shares[0] - shares[2], least=0.40),
    ]


def _object_tokens(samples: Sequence[world.Sample]) -> np.ndarray:
    """Tell which tokens show an object, bool [samples, N]."""
    cells = world.SIDE // world.LATTICE
    inside = np.zeros((len(samples), cells, cells), bool)
    for b, sample in enumerate(samples):
        for placed in sample.placed:
            x1, y1, x2, y2 = placed.box
            inside[b, y1 // 4 : (y2 + 3) // 4, x1 // 4 : (x2 + 3) // 4] = True
    return inside.reshape(len(samples), -1)


def detector_gates(study: Study) -> list[Gate]:
    """Measure both detectors on renders and reconstructions, and what the judge lets pass."""
    bench = study.bench
    rng = random.Random("verify detectors")
    scenes = [train_detector.one_scene(rng, bench.classes) for _ in range(study.size.scenes)]
    pictures = np.stack([pixels for pixels, _ in scenes])
    again = bench.reconstructed(pictures)
    gates = []
    for part in ("judge", "reward"):
        detector, _ = Detector.load(bench.weights, part)
        for kind, shown, least in (("renders", pictures, 0.98), ("reconstructions", again, 0.96)):
            precision, recall, color = train_detector.accuracy(detector, list(shown), scenes)
            gates.append(Gate(f"{part}: precision on {kind}", precision, least=least))
            gates.append(Gate(f"{part}: recall on {kind}", recall, least=least))
            gates.append(Gate(f"{part}: colour on {kind}", color, least=0.97))
    return [*gates, *false_accepts(bench, study.size.scenes)]


def false_accepts(bench: Bench, scenes: int) -> list[Gate]:
    """Measure how often pictures of another prompt pass, and pictures with a broken object."""
    specs, samples, again = bench.scenes(scenes)
    rng = random.Random("verify near misses")
    others = [near_miss(spec, bench.classes, rng) for spec in specs]

    shuffled = [sample.pixels.copy() for sample in samples]
    for sample, pixels in zip(samples, shuffled, strict=True):
        x1, y1, x2, y2 = sample.placed[0].box
        train_detector.shuffle_blocks(pixels[y1:y2, x1:x2], rng)
    broken = bench.reconstructed(np.stack(shuffled))

    missed_share = float(bench.correct(pair(others, again)).mean())
    broken_share = float(bench.correct(pair(specs, broken)).mean())
    return [
        Gate("false accepts of near-miss prompts", missed_share, most=0.02),
        Gate("shuffled objects accepted", broken_share, most=0.03),
    ]


def near_miss(spec: Spec, classes: Sequence[str], rng: random.Random) -> Spec:
    """Change a spec in one class, count, colour or relation, or exchange its colours."""
    is_relation = spec["tag"] == "position"
    clauses = spec["include"][::-1] if is_relation else spec["include"]
    names = [clause["class"] for clause in clauses]
    count = clauses[0]["count"]
    colors = [clause["color"] for clause in clauses if "color" in clause]
    relation = str(clauses[0].get("position", [None])[0]) if is_relation else None

    is_possible = {
        "class": True,
        "color": bool(colors),
        "count": count > 1,
        "relation": bool(relation),
        "exchange": len(colors) == 2,
    }
    way = rng.choice([way for way, possible in is_possible.items() if possible])
    if way == "class":
        names[0] = rng.choice([name for name in classes if name not in names])
    elif way == "color":
        colors[0] = rng.choice([color for color in COLORS if color not in colors])
    elif way == "count":
        count = rng.choice([n for n in NUMBERS if n > 1 and abs(n - count) == 1])
    elif way == "relation":
        relation = rng.choice([other for other in RELATIONS if other != relation])
    else:
        colors.reverse()
    return grammar.make_spec(names, count=count, colors=colors, relation=relation)


# --- generated images -----------------------------------------------------------------------------


def sample_gates(study: Study) -> list[Gate]:
    """Measure samples of the generator, of its draft, and what methods can gain from them."""
    bench = study.bench
    size = study.size
    drawn = study.drawn
    unguided = draw(bench, size.prompts, max(2, size.images // 4), 1.0)
    plain = table(drawn.rows, drawn.right)
    tasks = plain.groupby("category")["value"].mean()
    signals = study.signals
    gain = macro_mean(plain) - macro_mean(table(unguided.rows, unguided.right))
    return [
        Gate("plain: overall", macro_mean(plain), least=0.35, most=0.70),
        *(Gate(f"plain: {task}", float(tasks[task]), least=0.05, most=0.95) for task in TASKS),
        Gate("judge and reward agree", study.agreement, least=0.88),
        *best_of(drawn, signals),
        Gate("guidance 2 against 1", gain, least=0.08),
        *entropy_gates(drawn, signals),
        *half_image_gates(bench, drawn, size.prefixes),
        Gate("draft: acceptance per token", signals.acceptance, least=0.50),
        Gate("draft: tokens per target pass at k=4", signals.tokens_per_pass),
        *lantern_gates(bench, size.relaxed),
    ]


def best_of(drawn: Drawn, signals: Signals) -> list[Gate]:
    """Measure the gains of Best-of-N, paired by prompt, and the oracle that no reward can beat."""
    plain = table(drawn.rows, drawn.right)
    images = drawn.right.shape[1]
    gates = []
    for n, least in ((4, 0.15), (8, 0.20)):
        if n > images:
            continue
        gain, low, _ = paired_difference(picked(drawn, signals.reward, n), plain)
        gates += [
            Gate(f"best of {n} by reward: gain", gain, least=least),
            Gate(f"best of {n}: 95 % from", low, least=0),
        ]
    oracle = macro_mean(table(drawn.rows, drawn.right.max(1, keepdims=True)))
    chosen = macro_mean(picked(drawn, signals.reward, images))
    gates += [
        Gate(f"oracle of {images}", oracle),
        Gate(f"oracle above best of {images}", oracle - chosen, least=0),
    ]
    gain, _, _ = paired_difference(picked(drawn, signals.likelihood, 4), plain)
    return [*gates, Gate("best of 4 by likelihood: gain", gain, least=-0.02)]


def entropy_gates(drawn: Drawn, signals: Signals) -> list[Gate]:
    """Measure how well a low entropy tells right samples from wrong ones."""
    sure = -signals.entropy.reshape(-1)
    right = drawn.right.reshape(-1)
    prompts = np.repeat(np.arange(len(drawn.rows)), drawn.right.shape[1])
    within, _ = auc_within(sure, right, prompts.tolist())
    peak = auc(-signals.peak_entropy.reshape(-1), right)
    return [
        Gate("entropy AUC: pooled", auc(sure, right), least=0.68),
        Gate("entropy AUC: within prompts", within, least=0.55),
        Gate("entropy AUC: 16 least certain tokens, pooled", peak),
    ]


def half_image_gates(
    bench: Bench, drawn: Drawn, prompts: int, *, prefixes: int = 4, endings: int = 4
) -> Iterator[Gate]:
    """Measure what the first half of the tokens decides, and what choosing by it gains.

    Some samples of some prompts are cut at half and completed anew several times. The first gate is
    an intraclass correlation: one-way analysis of variance, success by half image, pooled over
    prompts. The second chooses the half in which the verifier sees the fewest faults, and then the
    most of what was asked for.
    """
    every = len(drawn.rows) // prompts
    half = bench.model.num_tokens // 2
    rows = drawn.rows[::every][:prompts]
    kept_PJ = drawn.tokens[::every][:prompts, :prefixes, :half]
    verifier = PictogramVerifier(bench.weights)
    right = []
    chosen = []
    for i, row in enumerate(rows):
        # 1. Complete each half several times, and judge the pictures.
        prefix = kept_PJ[i].repeat_interleave(endings, 0)
        texts = [row["prompt"]] * len(prefix)
        tokens = draw_tokens(bench.model.gpt, texts, scale=SCALE, seed=i, prefix_BP=prefix)
        pictures = bench.model.decode(tokens).numpy()
        verdicts = bench.correct([(row, picture) for picture in pictures])
        right.append(verdicts.reshape(prefixes, endings))

        # 2. Choose a half by its top of the picture.
        tops = [picture[: world.SIDE // 2] for picture in pictures[::endings]]
        promises = [promise(row, view) for view in verifier.read_views(tops)]
        chosen.append(int(np.argmax(promises)))

    success_PJE = np.array(right, float)
    mean_PJ = success_PJE.mean(-1)
    gains_P = mean_PJ[np.arange(len(rows)), chosen] - mean_PJ.mean(-1)
    correlation = correlate_endings(success_PJE)
    yield Gate("half image: intraclass correlation", correlation, least=0.3)
    yield Gate("half image: picking 1 of 4 prefixes gains", float(gains_P.mean()), least=0.05)


def correlate_endings(success_PJE: np.ndarray) -> float:
    """Return the intraclass correlation of the endings of a half, pooled over prompts.

    One-way analysis of variance: P prompts, J halves of each, E endings of a half.
    """
    prompts, prefixes, endings = success_PJE.shape
    mean_PJ = success_PJE.mean(-1)
    between_squares = np.square(mean_PJ - mean_PJ.mean(-1, keepdims=True)).sum()
    between = endings * between_squares / (prompts * (prefixes - 1))
    within_squares = np.square(success_PJE - mean_PJ[..., None]).sum()
    within = within_squares / (mean_PJ.size * (endings - 1))
    return (between - within) / (between + (endings - 1) * within)


def promise(spec: Spec, view: View) -> float:
    """Rate how well the top of a picture begins what is asked for.

    It counts the sure objects that are wanted; each fault outweighs them all.
    """
    wanted = [name for name, _ in grammar.objects(spec)]
    known = [one.name for one in view.known]
    found = sum(min(wanted.count(name), known.count(name)) for name in set(wanted))
    faults = sum(1 for _ in find_faults(spec, view))
    return found - (1 + len(wanted)) * faults


def lantern_gates(bench: Bench, prompts: int) -> Iterator[Gate]:
    """Measure what LANTERN's relaxed rule gains over the exact one with the draft, and costs.

    It has 10 neighbours and a bound of 0.2.
    """
    lantern = {"_target_": "methods.lantern.Lantern", "k": 10, "delta": 0.2, "residual": "optimal"}
    speculative = {"_target_": "methods.speculative.Speculative"}
    tables = {}
    accepted = {}
    for name, rule in (("exact", exact), ("lantern", build_object(lantern))):
        drafter = DraftModel(model=lambda **_: bench.draft, guided=False)
        method = build_object(speculative, drafter=drafter, gamma=4, rule=rule)
        drawn = draw(bench, prompts, 2, SCALE, method)
        tables[name] = table(drawn.rows, drawn.right)
        steps_by_accepted = np.sum([note["accepted"] for note in drawn.notes], 0)
        lengths = np.arange(len(steps_by_accepted))
        accepted[name] = float(steps_by_accepted @ lengths / steps_by_accepted.sum())

    loss, _, high = paired_difference(tables["exact"], tables["lantern"])
    more = accepted["lantern"] / accepted["exact"] - 1
    yield Gate("draft: accepted of 4, exact", accepted["exact"])
    yield Gate("LANTERN: accepted above exact's, share", more, least=0.20)
    yield Gate("LANTERN: loss of accuracy", loss, most=0.05)
    yield Gate("LANTERN: loss of accuracy, 95 % to", high)


def file_gates(study: Study) -> list[Gate]:
    """Measure the files: their size, and that judge and reward are different detectors.

    Parts that not every set has are measured by their own gates.
    """
    folder = files.find_set(study.bench.weights)
    total = sum((folder / f"{part}.safetensors").stat().st_size for part in files.PARTS)
    apart = files.hash_file(folder / "judge.safetensors") != files.hash_file(
        folder / "reward.safetensors"
    )
    return [
        Gate("weights, MB", total / 1e6, most=20),
        Gate("judge and reward differ", float(apart), least=1),
    ]


def editor_gates(study: Study) -> Iterable[Gate]:
    """Measure the editor of a set that has one."""
    if not files.has_part(study.bench.weights, PART):
        return ()
    return measure_editor(study.bench.weights, study.size.edits)


PARTS: dict[str, Callable[[Study], Iterable[Gate]]] = {
    "tokenizer": tokenizer_gates,
    "detectors": detector_gates,
    "samples": sample_gates,
    "natural": natural_gates,
    "files": file_gates,
    "editor": editor_gates,
}
"""What can be measured, in its order on the card."""


if __name__ == "__main__":
    sys.exit(main())
