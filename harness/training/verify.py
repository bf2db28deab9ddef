"""Measure the gates of a shipped weight set: `python -m harness.training.verify [--quick]`.

Samples are of generated prompts, or of GenEval's with `--metadata evaluation_metadata.jsonl`. One
line is printed for each gate: what was measured, what is asked, whether it holds. `--write` puts
the table on the set's card; the exit code is 1 if the measurement contradicts the card. `--only`
measures some groups of gates, and replaces their rows alone. The benchmark and the methods are
named by their `_target_`, since they are plug-ins.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor

from harness.arguments import explain_mistakes
from harness.drafters.model import DraftModel
from harness.engine.acceptance import exact
from harness.judges.pictogram import PictogramDetector, PictogramReward
from harness.judges.pictogram_verifier import PictogramVerifier, View, find_faults
from harness.models.pictogram import grammar, world
from harness.models.pictogram import weights as files
from harness.models.pictogram.detector import Detector
from harness.models.pictogram.editor import PART
from harness.models.pictogram.generator import Pictogram, draw_tokens
from harness.models.pictogram.grammar import COLORS, NUMBERS, RELATIONS, TASKS, Spec
from harness.models.trunk import causal
from harness.records import Job, Prompt, Usage, UserError
from harness.results.stats import auc, auc_within, macro_mean, paired_difference
from harness.training import train_detector
from harness.training.card import Card, write_card
from harness.training.edit_gates import measure_editor
from harness.training.gates import PLAIN, Gate, deliver, pick_best, tabulate
from harness.training.train_tokenizer import decibel, to_pixels

SCALE = 2.0
"""Guidance scale of the samples."""
MANY = {"prompts": 120, "images": 8, "scenes": 600, "prefixes": 60, "relaxed": 120, "edits": 240}
FEW = {"prompts": 30, "images": 4, "scenes": 120, "prefixes": 10, "relaxed": 6, "edits": 24}


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
    parser.add_argument("--write", action="store_true", help="put the table on the card")
    parser.add_argument(
        "--only", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="groups of gates"
    )
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    bench = Bench(arguments.weights, arguments.metadata)
    gates = measure(
        bench,
        quick=arguments.quick,
        only=arguments.only,
        report=lambda gate: print(gate, flush=True),
    )

    path = files.find_set(arguments.weights) / "card.json"
    kind = ("quick" if arguments.quick else "full") + (" official" if arguments.metadata else "")
    card: Card = json.loads(path.read_text())
    if arguments.write:
        measured = card.setdefault("measured", {})
        others = measured.get(kind) if arguments.only != list(GROUPS) else None
        measured[kind] = enter(gates, others)
        write_card(path.parent, card)
    sys.exit("\n".join(objections(gates, card.get("measured", {}).get(kind))) or 0)


def enter(gates: Sequence[Gate], others: dict[str, Any] | None) -> dict[str, Any]:
    """Return a card's entry of measured gates; `others` is one whose remaining gates are kept.

    Raises UserError if those were measured on another platform.
    """
    on = platform()
    if others and others["on"] != on:
        raise UserError(
            f"--only on {on}: the card was measured on {others['on']}; measure all gates"
        )
    rows = {row["name"]: row for row in others["gates"]} if others else {}
    for gate in gates:
        rows[gate.name] = {**asdict(gate), "holds": gate.holds}
    return {"on": on, "gates": list(rows.values())}


def objections(gates: Sequence[Gate], measured: dict[str, Any] | None) -> list[str]:
    """List what contradicts the card: other numbers, or a short gate that the card does not admit.

    Where the card was measured on the same kind of processor and the same torch the numbers must be
    equal. On another one rounding leads to other samples, and only a large difference counts (0.1,
    or a decibel).
    """
    rows = measured["gates"] if measured else []
    stated = {row["name"]: row for row in rows}
    found = []
    for gate in gates:
        is_admitted = gate.name in stated and not stated[gate.name]["holds"]
        if not gate.holds and not is_admitted:
            found.append(f"{gate.name} is short and the card does not say so")

    for gate in gates:
        if gate.name not in stated or not measured:
            continue
        value = stated[gate.name]["value"]
        allowed = 1.0 if "PSNR" in gate.name else 0.1
        if measured["on"] == platform():
            allowed = 1e-6
        if abs(gate.value - value) > allowed:
            found.append(f"{gate.name} is {gate.value:.3f}, the card says {value:.3f}")
    return found


def platform() -> str:
    """Name what decides how sums are rounded: the processor's instruction set and torch."""
    return f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def measure(
    bench: Bench,
    *,
    quick: bool,
    only: Sequence[str] | None = None,
    report: Callable[[Gate], None] = lambda gate: None,
) -> list[Gate]:
    """Measure the gates of a set, or some groups; `report` gets each as soon as it is known."""
    size = FEW if quick else MANY
    gates: list[Gate] = []
    for name in only or GROUPS:
        for gate in GROUPS[name](bench, size):
            report(gate)
            gates.append(gate)
    return gates


class Bench:
    """The models of a weight set, and the benchmark that gives verdicts with its judge.

    `metadata` is an official GenEval file whose prompts replace generated ones; those of unknown
    classes are left out.
    """

    def __init__(self, weights: str, metadata: str | None = None) -> None:
        self.weights = weights
        self.metadata = metadata
        self.model = Pictogram(weights)
        self.draft = Pictogram(weights, part="draft")
        self.judge = PictogramDetector(weights)
        self.reward = PictogramReward(weights)
        self.classes = self.model.classes

    def correct(self, asked: Sequence[tuple[Spec, np.ndarray]]) -> np.ndarray:
        """Return the benchmark's verdicts on pictures for specs, bool [pictures]."""
        return judge_pictures(self.judge, asked)

    def benchmark(self, **options: Any) -> Any:
        """Build the benchmark with the set's judge."""
        return new_benchmark(self.judge, **options)

    def rows(self, prompts: int) -> list[grammar.Row]:
        """Return so many prompts, spread evenly over the tasks."""
        if self.metadata is None:
            return grammar.generate_prompts(self.classes, prompts, seed=77)
        official = self.benchmark(metadata=self.metadata, prompts=prompts).prompts()
        return [cast(grammar.Row, {**prompt.spec, "prompt": prompt.text}) for prompt in official]

    def encode(self, pixels: np.ndarray) -> list[Tensor]:
        """Encode pictures uint8 [B, H, W, 3] in parts of 32; return the codes [32, N] of each."""
        with torch.no_grad():
            return [self.model.vq.encode(part) for part in to_pixels(pixels).split(32)]

    def decode(self, parts: Iterable[Tensor]) -> np.ndarray:
        """Decode parts of codes; return pictures, uint8 [B, H, W, 3]."""
        with torch.no_grad():
            return np.concatenate([self.model.decode(part).numpy() for part in parts])

    def reconstructed(self, pixels: np.ndarray) -> np.ndarray:
        """Encode and decode pictures."""
        return self.decode(self.encode(pixels))

    def scenes(self, count: int) -> tuple[list[Spec], list[world.Sample], np.ndarray]:
        """Draw held-out scenes, evenly over the tasks; return them with their reconstructions."""
        rng = random.Random("verify scenes")
        samples = []
        for i in range(count):
            task = TASKS[i % len(TASKS)]
            sample = world.draw_sample(
                rng, self.classes, tasks=[task], style="geneval", layout_share=0.0
            )
            samples.append(sample)
        pixels = np.stack([sample.pixels for sample in samples])
        return [sample.spec for sample in samples], samples, self.reconstructed(pixels)


def new_benchmark(judge: PictogramDetector, **options: Any) -> Any:
    """Build the embedded benchmark."""
    return instantiate({"_target_": "benchmarks.pictogram.Pictogram"}, judge=judge, **options)


def judge_pictures(
    judge: PictogramDetector, asked: Sequence[tuple[Spec, np.ndarray]]
) -> np.ndarray:
    """Return the benchmark's verdicts, by a judge, on pictures for specs, bool [pictures]."""
    benchmark = new_benchmark(judge, total=6)
    with tempfile.TemporaryDirectory() as folder:
        items = []
        for i, (spec, pixels) in enumerate(asked):
            path = Path(folder) / f"{i}.png"
            Image.fromarray(pixels).save(path)
            items.append((Prompt(f"verify/{i}", "", spec["tag"], dict(spec)), path))
        values = [score.value or 0.0 for score in benchmark.score(items)]
    return np.array(values) > 0.5


def pair(specs: Sequence[Spec], pictures: Iterable[np.ndarray]) -> list[tuple[Spec, np.ndarray]]:
    """Pair each spec with its picture."""
    return list(zip(specs, pictures, strict=True))


# --- tokenizer and detectors ----------------------------------------------------------------------


def tokenizer_gates(bench: Bench, size: dict[str, int]) -> list[Gate]:
    """Measure how well pictures survive the tokenizer."""
    specs, samples, again = bench.scenes(size["scenes"])
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
    rows = bench.model.codebook
    nearest = (rows @ rows.T).topk(11, dim=-1).indices
    near = nearest[codes, torch.randint(1, 11, codes.shape, generator=rng)]
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


def detector_gates(bench: Bench, size: dict[str, int]) -> list[Gate]:
    """Measure both detectors on renders and reconstructions, and what the judge lets pass."""
    rng = random.Random("verify detectors")
    scenes = [train_detector.one_scene(rng, bench.classes) for _ in range(size["scenes"])]
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
    return [*gates, *false_accepts(bench, size)]


def false_accepts(bench: Bench, size: dict[str, int]) -> list[Gate]:
    """Measure how often pictures of another prompt pass, and pictures with a broken object."""
    specs, samples, again = bench.scenes(size["scenes"])
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


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples of every prompt, prompt by prompt: [prompts, images, ...]."""

    rows: list[grammar.Row]
    tokens: Tensor
    pictures: np.ndarray
    right: np.ndarray
    notes: list[dict[str, Any]]  # what the method noted of each image
    usages: list[Usage]  # what each image cost


def draw(bench: Bench, prompts: int, images: int, scale: float, method: Any = PLAIN) -> Drawn:
    """Draw samples of a method with the harness's sampler, and let the benchmark judge them."""
    rows = bench.rows(prompts)
    method = instantiate(method) if isinstance(method, dict) else method
    jobs = [
        Job(Prompt(f"verify/{i:05d}", row["prompt"], row["tag"]), image)
        for i, row in enumerate(rows)
        for image in range(images)
    ]
    ordered = deliver(bench.model, jobs, method, scale)
    tokens = torch.tensor([delivery.tokens for delivery in ordered])
    pictures = np.stack([np.asarray(delivery.image) for delivery in ordered])
    right = bench.correct(pair(repeat_rows(rows, images), pictures))
    return Drawn(
        rows=rows,
        tokens=tokens.unflatten(0, (prompts, images)),
        pictures=pictures.reshape(prompts, images, *pictures.shape[1:]),
        right=right.reshape(prompts, images),
        notes=[delivery.notes for delivery in ordered],
        usages=[delivery.usage for delivery in ordered],
    )


def repeat_rows(rows: Sequence[grammar.Row], images: int) -> list[grammar.Row]:
    """List the row of each image, prompt by prompt."""
    return [row for row in rows for _ in range(images)]


def sample_gates(bench: Bench, size: dict[str, int]) -> list[Gate]:
    """Measure samples of the generator, of its draft, and what methods can gain from them."""
    drawn = draw(bench, size["prompts"], size["images"], SCALE)
    unguided = draw(bench, size["prompts"], max(2, size["images"] // 4), 1.0)
    plain = table(drawn.rows, drawn.right)
    tasks = plain.groupby("category")["value"].mean()
    signals = Signals.of(bench, drawn)
    agree = measure_agreement(bench, drawn)
    gain = macro_mean(plain) - macro_mean(table(unguided.rows, unguided.right))
    return [
        Gate("plain: overall", macro_mean(plain), least=0.35, most=0.70),
        *(Gate(f"plain: {task}", float(tasks[task]), least=0.05, most=0.95) for task in TASKS),
        Gate("judge and reward agree", agree, least=0.88),
        *best_of(drawn, signals),
        Gate("guidance 2 against 1", gain, least=0.08),
        *entropy_gates(drawn, signals),
        *half_image_gates(bench, drawn, size["prefixes"]),
        Gate("draft: acceptance per token", signals.acceptance, least=0.50),
        Gate("draft: tokens per target pass at k=4", signals.tokens_per_pass),
        *lantern_gates(bench, size),
    ]


def table(rows: Sequence[grammar.Row], right_PI: np.ndarray) -> pd.DataFrame:
    """Arrange verdicts [prompts, images] as the statistics want them: a row for each image."""
    return tabulate([row["tag"] for row in rows], right_PI)


def measure_agreement(bench: Bench, drawn: Drawn) -> float:
    """Measure how often judge and reward give generated pictures the same verdict."""
    other = PictogramDetector(bench.weights, part="reward")
    rows = repeat_rows(drawn.rows, drawn.right.shape[1])
    pictures = drawn.pictures.reshape(-1, *drawn.pictures.shape[2:])
    theirs = judge_pictures(other, pair(rows, pictures))
    return float((theirs == drawn.right.reshape(-1)).mean())


@dataclass(frozen=True, slots=True)
class Signals:
    """What model, draft and reward say of the samples: [prompts, images]."""

    reward: np.ndarray
    likelihood: np.ndarray
    entropy: np.ndarray
    peak_entropy: np.ndarray  # mean over the sixteen least certain tokens
    acceptance: float
    tokens_per_pass: float

    @classmethod
    def of(cls, bench: Bench, drawn: Drawn) -> Signals:
        """Compute them from the samples."""
        images = drawn.right.shape[1]
        texts = [row["prompt"] for row in repeat_rows(drawn.rows, images)]
        pictures = list(drawn.pictures.reshape(-1, *drawn.pictures.shape[2:]))
        rewards = [0.0 if value is None else value for value in bench.reward(texts, pictures)]

        # 1. Forward the samples in parts, without keeping all distributions.
        tokens = drawn.tokens.flatten(0, 1)
        likelihoods = []
        entropies = []
        overlaps = []
        for start in range(0, len(texts), 32):
            some_texts = texts[start : start + 32]
            part = tokens[start : start + 32]
            probs = teacher_forced(bench.model, some_texts, part, SCALE)
            proposed = teacher_forced(bench.draft, some_texts, part, 1.0)
            token_probs = probs.gather(-1, part.unsqueeze(-1))
            likelihoods.append(token_probs.clamp(min=1e-30).log().mean((1, 2)))
            entropies.append(torch.special.entr(probs).sum(-1))
            overlaps.append(torch.minimum(probs, proposed).sum(-1))

        # 2. Chances that drafted tokens are accepted: each, and chains of up to four.
        chance_BN = torch.cat(overlaps)
        chains_BC4 = chance_BN.unfold(1, 4, 1).cumprod(-1)
        accepted = sum(chains_BC4.mean((0, 1)).tolist())

        # 3. Signals of each sample.
        entropy_BN = torch.cat(entropies)
        likelihood_B = torch.cat(likelihoods)
        peak_B = entropy_BN.topk(16).values.mean(-1)
        shape = drawn.right.shape
        return cls(
            reward=np.array(rewards).reshape(shape),
            likelihood=likelihood_B.numpy().reshape(shape),
            entropy=entropy_BN.mean(-1).numpy().reshape(shape),
            peak_entropy=peak_B.numpy().reshape(shape),
            acceptance=float(chance_BN.mean()),
            tokens_per_pass=1 + accepted,
        )


@torch.no_grad()
def teacher_forced(
    model: Pictogram, texts: Sequence[str], token_BN: Tensor, scale: float
) -> Tensor:
    """Return the guided distribution at every position of given images, [B, N, V]."""
    words = torch.tensor([grammar.encode(text) for text in texts])
    text = model.gpt.forward_train(words, token_BN, causal).float()
    null = text
    if scale != 1:
        null = model.gpt.forward_train(torch.zeros_like(words), token_BN, causal).float()
    return F.softmax(null + scale * (text - null), -1)


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


def picked(drawn: Drawn, signal_PI: np.ndarray, n: int) -> pd.DataFrame:
    """Tabulate the verdicts of the best of each group of `n` samples, by a signal."""
    return table(drawn.rows, pick_best(drawn.right, signal_PI, n))


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


def lantern_gates(bench: Bench, size: dict[str, int]) -> Iterator[Gate]:
    """Measure what LANTERN's relaxed rule gains over the exact one with the draft, and costs.

    It has 10 neighbours and a bound of 0.2.
    """
    lantern = {"_target_": "methods.lantern.Lantern", "k": 10, "delta": 0.2, "residual": "optimal"}
    speculative = {"_target_": "methods.speculative.Speculative"}
    tables = {}
    accepted = {}
    for name, rule in (("exact", exact), ("lantern", instantiate(lantern))):
        drafter = DraftModel(model=lambda **_: bench.draft, guided=False)
        method = instantiate(speculative, drafter=drafter, gamma=4, rule=rule)
        drawn = draw(bench, size["relaxed"], 2, SCALE, method)
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


def file_gates(bench: Bench, size: dict[str, int]) -> list[Gate]:
    """Measure the files: their size, and that judge and reward are different detectors.

    Parts that not every set has are measured by their own gates.
    """
    folder = files.find_set(bench.weights)
    total = sum((folder / f"{part}.safetensors").stat().st_size for part in files.PARTS)
    apart = files.hash_file(folder / "judge.safetensors") != files.hash_file(
        folder / "reward.safetensors"
    )
    return [
        Gate("weights, MB", total / 1e6, most=20),
        Gate("judge and reward differ", float(apart), least=1),
    ]


def editor_gates(bench: Bench, size: dict[str, int]) -> Iterable[Gate]:
    """Measure the editor of a set that has one."""
    if not files.has_part(bench.weights, PART):
        return ()
    return measure_editor(bench.weights, size["edits"])


GROUPS: dict[str, Callable[[Bench, dict[str, int]], Iterable[Gate]]] = {
    "tokenizer": tokenizer_gates,
    "detectors": detector_gates,
    "samples": sample_gates,
    "files": file_gates,
    "editor": editor_gates,
}
"""Groups of gates, in the order in which they are measured."""


if __name__ == "__main__":
    sys.exit(main())
