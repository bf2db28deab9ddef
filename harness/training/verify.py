"""Measure the gates of a shipped weight set: `python -m harness.training.verify [--quick]
[--write]`.

Samples are of generated prompts, or of GenEval's own with `--metadata evaluation_metadata.jsonl`.
Prints one line per gate: what was measured, what is asked, whether it holds. `--write` puts the
table on the set's card; the exit code is 1 when the measurement contradicts the card. A top layer
of the harness: the benchmark and the method come through their `_target_`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
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

from harness.drafters.model import DraftModel
from harness.engine.acceptance import exact
from harness.engine.guidance import Sampling
from harness.engine.method_spec import MethodSpec
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.judges.pictogram import PictogramDetector, PictogramReward
from harness.judges.pictogram_verifier import PictogramVerifier, View, find_faults
from harness.models.pictogram import grammar, world
from harness.models.pictogram import weights as files
from harness.models.pictogram.detector import Detector
from harness.models.pictogram.generator import Pictogram, draw_tokens
from harness.models.pictogram.grammar import COLORS, NUMBERS, RELATIONS, TASKS, Spec
from harness.models.trunk import causal
from harness.records import Job, Prompt
from harness.results.stats import auc, auc_within, macro_mean, paired_difference
from harness.training import train_detector
from harness.training.card import Card, write_card
from harness.training.train_tokenizer import decibel

SCALE = 2.0
MANY = {"prompts": 120, "images": 8, "scenes": 600, "prefixes": 60, "relaxed": 120}
FEW = {"prompts": 30, "images": 4, "scenes": 120, "prefixes": 10, "relaxed": 6}


@dataclass(frozen=True, slots=True)
class Gate:
    """One measured number and the least (or most) it should be; None asks nothing."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        return (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most
        )

    def __str__(self) -> str:
        asked = " ".join(
            f"{sign} {v:g}" for sign, v in ((">=", self.least), ("<=", self.most)) if v is not None
        )
        return f"{self.name:<46} {self.value:>8.3f}  {asked or 'report':<18} {'' if self.holds else 'SHORT'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights", default=grammar.DEFAULT, help="a shipped set, or the folder of one"
    )
    parser.add_argument("--quick", action="store_true", help="fewer prompts and scenes")
    parser.add_argument("--metadata", help="an official GenEval file: samples are of its prompts")
    parser.add_argument("--write", action="store_true", help="put the table on the card")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.weights, arguments.metadata)
    gates = measure(bench, quick=arguments.quick, report=lambda gate: print(gate, flush=True))
    path = files.find_set(arguments.weights) / "card.json"
    kind = ("quick" if arguments.quick else "full") + (" official" if arguments.metadata else "")
    card: Card = json.loads(path.read_text())
    if arguments.write:
        rows = [{**asdict(gate), "holds": gate.holds} for gate in gates]
        card.setdefault("measured", {})[kind] = {"on": platform(), "gates": rows}
        write_card(path.parent, card)
    sys.exit("\n".join(objections(gates, card.get("measured", {}).get(kind))) or 0)


def objections(gates: Sequence[Gate], measured: dict[str, Any] | None) -> list[str]:
    """What of a fresh measurement contradicts the card: other numbers, or a gate that is short
    without being admitted.

    Where the card was measured on the same kind of processor and the same torch the numbers must be
    equal; elsewhere rounding leads to other samples, and only a large difference (0.1; a decibel)
    counts.
    """
    stated = {row["name"]: row for row in measured["gates"]} if measured else {}
    found = [
        f"{g.name} is short and the card does not say so"
        for g in gates
        if not g.holds and _held(stated, g.name)
    ]
    for gate in gates:
        if gate.name in stated and measured:
            allowed = 1e-6 if measured["on"] == platform() else 1.0 if "PSNR" in gate.name else 0.1
            if abs(gate.value - stated[gate.name]["value"]) > allowed:
                found.append(
                    f"{gate.name} is {gate.value:.3f}, the card says {stated[gate.name]['value']:.3f}"
                )
    return found


def _held(stated: dict[str, dict[str, Any]], name: str) -> bool:
    return name not in stated or bool(stated[name]["holds"])


def platform() -> str:
    """What decides how sums are rounded: the processor's instruction set and torch's version."""
    return f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def measure(
    bench: Bench, *, quick: bool, report: Callable[[Gate], None] = lambda gate: None
) -> list[Gate]:
    """All gates of a set, in the order they are printed; each is also handed to `report` as soon as
    it is known.
    """
    size = FEW if quick else MANY
    gates: list[Gate] = []
    for part in (tokenizer_gates, detector_gates, sample_gates, file_gates):
        for gate in part(bench, size):
            report(gate)
            gates.append(gate)
    return gates


class Bench:
    """What every measurement needs: the model, the draft, both detectors and the benchmark that
    gives verdicts.

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
        """The benchmark's verdicts on pictures for specs, by judge A."""
        benchmark = self.benchmark(total=6)
        with tempfile.TemporaryDirectory() as folder:
            items = []
            for i, (spec, pixels) in enumerate(asked):
                path = Path(folder) / f"{i}.png"
                Image.fromarray(pixels).save(path)
                items.append((Prompt(f"verify/{i}", "", spec["tag"], dict(spec)), path))
            return np.array([score.value or 0.0 for score in benchmark.score(items)]) > 0.5

    def benchmark(self, **options: Any) -> Any:
        return instantiate(
            {"_target_": "benchmarks.pictogram.Pictogram"}, judge=self.judge, **options
        )

    def rows(self, prompts: int) -> list[grammar.Row]:
        """So many prompts, spread evenly over the tasks."""
        if self.metadata is None:
            return grammar.generate_prompts(self.classes, prompts, seed=77)
        official = self.benchmark(metadata=self.metadata, prompts=prompts).prompts()
        return [cast(grammar.Row, {**prompt.spec, "prompt": prompt.text}) for prompt in official]

    def reconstructed(self, pixels: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        with torch.no_grad():
            return np.concatenate(
                [self.model.decode(self.model.vq.encode(part)).numpy() for part in x.split(32)]
            )

    def scenes(self, count: int) -> tuple[list[Spec], list[world.Sample], np.ndarray]:
        """Held-out scenes, evenly over the tasks, and their reconstructions."""
        rng = random.Random("verify scenes")
        tasks = [TASKS[i % len(TASKS)] for i in range(count)]
        samples = [
            world.draw_sample(rng, self.classes, tasks=[t], style="geneval", layout_share=0.0)
            for t in tasks
        ]
        return (
            [one.spec for one in samples],
            samples,
            self.reconstructed(np.stack([one.pixels for one in samples])),
        )


# --- tokenizer and detectors ----------------------------------------------------------------------


def tokenizer_gates(bench: Bench, size: dict[str, int]) -> list[Gate]:
    specs, samples, again = bench.scenes(size["scenes"])
    decibels = [decibel(one.pixels, picture) for one, picture in zip(samples, again, strict=True)]
    passed = bench.correct(list(zip(specs, again, strict=True)))
    tags = np.array([spec["tag"] for spec in specs])
    per_task = {task: float(passed[tags == task].mean()) for task in TASKS}
    return [
        Gate("tokenizer: held-out PSNR, dB", float(np.mean(decibels)), least=27),
        Gate("true scenes pass after reconstruction", float(passed.mean()), least=0.95),
        *(Gate(f"true scenes pass: {task}", share, least=0.90) for task, share in per_task.items()),
        *swap_gates(bench, specs, samples),
    ]


def swap_gates(bench: Bench, specs: Sequence[Spec], samples: Sequence[world.Sample]) -> list[Gate]:
    """What happens to verdicts when 30 % of the object tokens become a near, or any, other code."""
    rng = torch.Generator().manual_seed(0)
    x = (
        torch.from_numpy(np.stack([one.pixels for one in samples]))
        .permute(0, 3, 1, 2)
        .float()
        .div(127.5)
        .sub(1)
    )
    with torch.no_grad():
        codes = torch.cat([bench.model.vq.encode(part) for part in x.split(32)])
    rows = bench.model.codebook
    near = (
        (rows @ rows.T)
        .topk(11, dim=-1)
        .indices[codes, torch.randint(1, 11, codes.shape, generator=rng)]
    )
    other = torch.randint(0, bench.model.vocab, codes.shape, generator=rng)
    swapped = (torch.rand(codes.shape, generator=rng) < 0.3) & torch.from_numpy(
        _object_tokens(samples)
    )
    shares = []
    for replaced in (codes, torch.where(swapped, near, codes), torch.where(swapped, other, codes)):
        with torch.no_grad():
            pictures = np.concatenate(
                [bench.model.decode(part).numpy() for part in replaced.split(32)]
            )
        shares.append(float(bench.correct(list(zip(specs, pictures, strict=True))).mean()))
    return [
        Gate("loss by swapping object tokens: 10 nearest", shares[0] - shares[1], most=0.05),
        Gate("loss by swapping object tokens: any", shares[0] - shares[2], least=0.40),
    ]


def _object_tokens(samples: Sequence[world.Sample]) -> np.ndarray:
    cells = world.SIDE // world.LATTICE
    inside = np.zeros((len(samples), cells, cells), bool)
    for b, one in enumerate(samples):
        for x1, y1, x2, y2 in (placed.box for placed in one.placed):
            inside[b, y1 // 4 : (y2 + 3) // 4, x1 // 4 : (x2 + 3) // 4] = True
    return inside.reshape(len(samples), -1)


def detector_gates(bench: Bench, size: dict[str, int]) -> list[Gate]:
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
    specs, samples, again = bench.scenes(size["scenes"])
    rng = random.Random("verify near misses")
    missed = [
        (near_miss(spec, bench.classes, rng), picture)
        for spec, picture in zip(specs, again, strict=True)
    ]
    shuffled = [one.pixels.copy() for one in samples]
    for one, pixels in zip(samples, shuffled, strict=True):
        x1, y1, x2, y2 = one.placed[0].box
        train_detector.shuffle_blocks(pixels[y1:y2, x1:x2], rng)
    broken = bench.reconstructed(np.stack(shuffled))
    return [
        Gate("false accepts of near-miss prompts", float(bench.correct(missed).mean()), most=0.02),
        Gate(
            "shuffled objects accepted",
            float(bench.correct(list(zip(specs, broken, strict=True))).mean()),
            most=0.03,
        ),
    ]


def near_miss(spec: Spec, classes: Sequence[str], rng: random.Random) -> Spec:
    """A spec that differs from `spec` in one class, count, colour or relation, or has its colours
    exchanged.
    """
    clauses = spec["include"][::-1] if spec["tag"] == "position" else spec["include"]
    names = [clause["class"] for clause in clauses]
    count = clauses[0]["count"]
    colors = [clause["color"] for clause in clauses if "color" in clause]
    relation = str(clauses[0].get("position", [None])[0]) if spec["tag"] == "position" else None
    ways = ["class", *(["color"] if colors else []), *(["count"] if count > 1 else [])]
    ways += [*(["relation"] if relation else []), *(["exchange"] if len(colors) == 2 else [])]
    way = rng.choice(ways)
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
    """Samples of every prompt, prompt by prompt: shapes [prompts, images, ...]."""

    rows: list[grammar.Row]
    tokens: Tensor
    pictures: np.ndarray
    right: np.ndarray
    notes: list[dict[str, Any]]  # what the method noted of each image


PLAIN = {"_target_": "methods.plain.Plain"}


def draw(bench: Bench, prompts: int, images: int, scale: float, method: Any = PLAIN) -> Drawn:
    """Samples of a method, plain ones if none is named, through the harness's own sampler, judged
    by the benchmark.
    """
    rows = bench.rows(prompts)
    method = instantiate(method) if isinstance(method, dict) else method
    jobs = [
        Job(Prompt(f"verify/{i:05d}", row["prompt"], row["tag"]), image)
        for i, row in enumerate(rows)
        for image in range(images)
    ]
    done: dict[tuple[str, int], Delivery] = {}
    sampler = Sampler(
        bench.model,
        Sampling(scale=scale),
        slots=64,
        **MethodSpec.of(method).sampler_sizes(),
        prefill=(16, 32),
        render_batch=16,
    )
    Scheduler(method, sampler, seed=0).run(
        jobs, lambda delivery: done.update({delivery.job.key: delivery})
    )
    ordered = [done[job.key] for job in jobs]
    assert not any(delivery.error for delivery in ordered), next(
        d.error for d in ordered if d.error
    )
    pictures = np.stack([np.asarray(delivery.image) for delivery in ordered])
    asked = [
        (row, picture)
        for row, picture in zip(np.repeat(np.array(rows, object), images), pictures, strict=True)
    ]
    return Drawn(
        rows,
        torch.tensor([delivery.tokens for delivery in ordered]).unflatten(0, (prompts, images)),
        pictures.reshape(prompts, images, *pictures.shape[1:]),
        bench.correct(asked).reshape(prompts, images),
        [delivery.notes for delivery in ordered],
    )


def sample_gates(bench: Bench, size: dict[str, int]) -> list[Gate]:
    drawn = draw(bench, size["prompts"], size["images"], SCALE)
    unguided = draw(bench, size["prompts"], max(2, size["images"] // 4), 1.0)
    plain = table(drawn.rows, drawn.right)
    tasks = plain.groupby("category")["value"].mean()
    signals = Signals.of(bench, drawn)
    agree = bench_agreement(bench, drawn)
    return [
        Gate("plain: overall", macro_mean(plain), least=0.35, most=0.70),
        *(Gate(f"plain: {task}", float(tasks[task]), least=0.05, most=0.95) for task in TASKS),
        Gate("judge and reward agree", agree, least=0.88),
        *best_of(drawn, signals),
        Gate(
            "guidance 2 against 1",
            macro_mean(plain) - macro_mean(table(unguided.rows, unguided.right)),
            least=0.08,
        ),
        *entropy_gates(drawn, signals),
        *half_image_gates(bench, drawn, size["prefixes"]),
        Gate("draft: acceptance per token", signals.acceptance, least=0.50),
        Gate("draft: tokens per target pass at k=4", signals.tokens_per_pass),
        *lantern_gates(bench, size),
    ]


def table(rows: Sequence[grammar.Row], right_PI: np.ndarray) -> pd.DataFrame:
    """Verdicts [prompts, images] as the statistics want them."""
    return pd.DataFrame(
        [
            {"prompt_id": i, "category": row["tag"], "image": image, "value": float(value)}
            for i, (row, values) in enumerate(zip(rows, right_PI, strict=True))
            for image, value in enumerate(values)
        ]
    )


def bench_agreement(bench: Bench, drawn: Drawn) -> float:
    """How often A's and B's verdicts on generated pictures are the same, by the same decision
    rule.
    """
    other = Bench.__new__(Bench)
    other.judge = PictogramDetector(bench.weights, part="reward")
    images = drawn.right.shape[1]
    rows = [row for row in drawn.rows for _ in range(images)]
    theirs = other.correct(
        list(zip(rows, drawn.pictures.reshape(-1, *drawn.pictures.shape[2:]), strict=True))
    )
    return float((theirs == drawn.right.reshape(-1)).mean())


@dataclass(frozen=True, slots=True)
class Signals:
    """What the model and the reward think of the samples: [prompts, images]."""

    reward: np.ndarray
    likelihood: np.ndarray
    entropy: np.ndarray
    peak_entropy: np.ndarray  # mean over the sixteen least certain tokens
    acceptance: float
    tokens_per_pass: float

    @classmethod
    def of(cls, bench: Bench, drawn: Drawn) -> Signals:
        images = drawn.right.shape[1]
        texts = [row["prompt"] for row in drawn.rows for _ in range(images)]
        pictures = list(drawn.pictures.reshape(-1, *drawn.pictures.shape[2:]))
        rewards = np.array(
            [value if value is not None else 0.0 for value in bench.reward(texts, pictures)]
        )
        tokens = drawn.tokens.flatten(0, 1)
        likelihood = []
        entropies = []
        accepted = []
        for start in range(0, len(texts), 32):
            part = tokens[start : start + 32]
            probs = teacher_forced(bench.model, texts[start : start + 32], part, SCALE)
            proposed = teacher_forced(bench.draft, texts[start : start + 32], part, 1.0)
            likelihood.append(
                probs.gather(-1, part.unsqueeze(-1)).clamp(min=1e-30).log().mean((1, 2))
            )
            entropies.append(torch.special.entr(probs).sum(-1))
            accepted.append(torch.minimum(probs, proposed).sum(-1))
        chance = torch.cat(accepted)
        entropy_BN = torch.cat(entropies)
        ahead = sum(chance.unfold(1, 4, 1).cumprod(-1).mean((0, 1)).tolist())
        shape = drawn.right.shape
        return cls(
            rewards.reshape(shape),
            torch.cat(likelihood).numpy().reshape(shape),
            entropy_BN.mean(-1).numpy().reshape(shape),
            entropy_BN.topk(16).values.mean(-1).numpy().reshape(shape),
            float(chance.mean()),
            1 + ahead,
        )


@torch.no_grad()
def teacher_forced(
    model: Pictogram, texts: Sequence[str], token_BN: Tensor, scale: float
) -> Tensor:
    """The guided law at every position of given images, [B, N, V]."""
    words = torch.tensor([grammar.encode(text) for text in texts])
    text = model.gpt.forward_train(words, token_BN, causal).float()
    null = (
        model.gpt.forward_train(torch.zeros_like(words), token_BN, causal).float()
        if scale != 1
        else text
    )
    return F.softmax(null + scale * (text - null), -1)


def best_of(drawn: Drawn, signals: Signals) -> list[Gate]:
    """Gains of Best-of-N over plain, paired by prompt, and the oracle that no reward can beat."""
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
    """Verdicts of the best of each group of `n` samples."""
    prompts, images = signal_PI.shape
    grouped = signal_PI[:, : images // n * n].reshape(prompts, -1, n)
    right = drawn.right[:, : images // n * n].reshape(prompts, -1, n)
    return table(drawn.rows, np.take_along_axis(right, grouped.argmax(-1)[..., None], -1)[..., 0])


def entropy_gates(drawn: Drawn, signals: Signals) -> list[Gate]:
    sure = -signals.entropy.reshape(-1)
    right = drawn.right.reshape(-1)
    prompts = np.repeat(np.arange(len(drawn.rows)), drawn.right.shape[1])
    within, _ = auc_within(sure, right, prompts.tolist())
    return [
        Gate("entropy AUC: pooled", auc(sure, right), least=0.68),
        Gate("entropy AUC: within prompts", within, least=0.55),
        Gate(
            "entropy AUC: 16 least certain tokens, pooled",
            auc(-signals.peak_entropy.reshape(-1), right),
        ),
    ]


def half_image_gates(
    bench: Bench, drawn: Drawn, prompts: int, *, prefixes: int = 4, endings: int = 4
) -> Iterator[Gate]:
    """How much of the success inside a prompt the first half of the tokens decides, and what
    choosing by it gains.

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
        prefix = kept_PJ[i].repeat_interleave(endings, 0)
        tokens = draw_tokens(
            bench.model.gpt, [row["prompt"]] * len(prefix), scale=SCALE, seed=i, prefix_BP=prefix
        )
        pictures = bench.model.decode(tokens).numpy()
        right.append(
            bench.correct([(row, picture) for picture in pictures]).reshape(prefixes, endings)
        )
        tops = [picture[: world.SIDE // 2] for picture in pictures[::endings]]
        chosen.append(int(np.argmax([promise(row, view) for view in verifier.read_views(tops)])))
    success_PJE = np.array(right, float)
    mean_PJ = success_PJE.mean(-1)
    between = (
        endings
        * np.square(mean_PJ - mean_PJ.mean(-1, keepdims=True)).sum()
        / (len(rows) * (prefixes - 1))
    )
    within = np.square(success_PJE - mean_PJ[..., None]).sum() / (mean_PJ.size * (endings - 1))
    correlation = (between - within) / (between + (endings - 1) * within)
    picked_P = mean_PJ[np.arange(len(rows)), chosen]
    yield Gate("half image: intraclass correlation", correlation, least=0.3)
    yield Gate(
        "half image: picking 1 of 4 prefixes gains",
        float((picked_P - mean_PJ.mean(-1)).mean()),
        least=0.05,
    )


def promise(spec: Spec, view: View) -> float:
    """How well the top of a picture begins what is asked for: sure objects, each fault outweighing
    them all.
    """
    wanted = [name for name, _ in grammar.objects(spec)]
    found = sum(
        min(wanted.count(name), [one.name for one in view.known].count(name))
        for name in set(wanted)
    )
    return found - (1 + len(wanted)) * sum(1 for _ in find_faults(spec, view))


def lantern_gates(bench: Bench, size: dict[str, int]) -> Iterator[Gate]:
    """What LANTERN's relaxed rule (10 neighbours, bound .2) gains over the exact one with the
    draft, and costs.
    """
    lantern = {"_target_": "methods.lantern.Lantern", "k": 10, "delta": 0.2, "residual": "optimal"}
    drawn = {}
    accepted = {}
    for name, rule in (("exact", exact), ("lantern", instantiate(lantern))):
        drafter = DraftModel(model=lambda **_: bench.draft, guided=False)
        method = instantiate(
            {"_target_": "methods.speculative.Speculative"}, drafter=drafter, gamma=4, rule=rule
        )
        drawn[name] = draw(bench, size["relaxed"], 2, SCALE, method)
        rounds = np.sum([note["accepted"] for note in drawn[name].notes], 0)
        accepted[name] = float(rounds @ np.arange(len(rounds)) / rounds.sum())
    loss, _, high = paired_difference(
        *(table(drawn[name].rows, drawn[name].right) for name in ("exact", "lantern"))
    )
    yield Gate("draft: accepted of 4, exact", accepted["exact"])
    yield Gate(
        "LANTERN: accepted above exact's, share",
        accepted["lantern"] / accepted["exact"] - 1,
        least=0.20,
    )
    yield Gate("LANTERN: loss of accuracy", loss, most=0.05)
    yield Gate("LANTERN: loss of accuracy, 95 % to", high)


def file_gates(bench: Bench, size: dict[str, int]) -> list[Gate]:
    folder = files.find_set(bench.weights)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    apart = files.hash_file(folder / "judge.safetensors") != files.hash_file(
        folder / "reward.safetensors"
    )
    return [
        Gate("weights, MB", total / 1e6, most=20),
        Gate("judge and reward differ", float(apart), least=1),
    ]


if __name__ == "__main__":
    main()
