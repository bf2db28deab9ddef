"""Draw and judge what the gates of a weight set are measured on.

The benchmark and the methods are named by their `_target_`, since they are plug-ins.

Legend of suffixes: P prompts, I images of each, B images, N tokens, V codes, G groups of n.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from harness.engine.guidance import Sampling
from harness.engine.method_spec import MethodSpec
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.judges.pictogram import PictogramDetector, PictogramReward
from harness.models import ImageModel
from harness.models.pictogram import grammar, world
from harness.models.pictogram.generator import Pictogram, draw_tokens
from harness.models.pictogram.grammar import TASKS, Spec
from harness.models.trunk import causal
from harness.records import Job, Prompt, Usage
from harness.runs.instantiate import build_object
from harness.training.train_tokenizer import to_pixels

SCALE = 2.0
"""Guidance scale of the samples."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    prompts: int
    images: int  # plain samples of each prompt
    scenes: int
    prefixes: int  # prompts whose half images are completed anew
    relaxed: int  # prompts of LANTERN's older gates
    by_method: int  # images of each prompt that a decoding method draws
    edits: int  # of the editor's gates


MANY = Size(prompts=120, images=8, scenes=600, prefixes=60, relaxed=120, by_method=4, edits=240)
FEW = Size(prompts=30, images=4, scenes=120, prefixes=10, relaxed=6, by_method=2, edits=24)


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
    return build_object({"_target_": "benchmarks.pictogram.Pictogram"}, judge=judge, **options)


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


# --- drawing --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples of every prompt, prompt by prompt: [prompts, images, ...]."""

    rows: list[grammar.Row]
    tokens: Tensor
    pictures: np.ndarray
    right: np.ndarray
    notes: list[dict[str, Any]]  # what the method noted of each image
    usages: list[Usage]  # what each image cost


PLAIN = {"_target_": "methods.plain.Plain"}


def draw(bench: Bench, prompts: int, images: int, scale: float, method: Any = PLAIN) -> Drawn:
    """Draw samples of a method with the harness's sampler, and let the benchmark judge them."""
    rows = bench.rows(prompts)
    method = build_object(method) if isinstance(method, dict) else method
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


def table(rows: Sequence[grammar.Row], right_PI: np.ndarray) -> pd.DataFrame:
    """Arrange verdicts [prompts, images] as the statistics want them: a row for each image."""
    return tabulate([row["tag"] for row in rows], right_PI)


def deliver(model: ImageModel, jobs: Sequence[Job], method: Any, scale: float) -> list[Delivery]:
    """Draw jobs by a method, under guidance of `scale`; returns what was drawn in their order."""
    done: dict[tuple[str, int], Delivery] = {}
    sampler = Sampler(
        model,
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
    errors = [delivery.error for delivery in ordered if delivery.error]
    assert not errors, errors[0]
    return ordered


def tabulate(categories: Sequence[str], right_PI: np.ndarray) -> pd.DataFrame:
    """Arrange verdicts of prompts of some categories as `table` does."""
    verdicts = []
    for i, (category, values) in enumerate(zip(categories, right_PI, strict=True)):
        for image, value in enumerate(values):
            verdict = {"prompt_id": i, "category": category, "image": image}
            verdicts.append({**verdict, "value": float(value)})
    return pd.DataFrame(verdicts)


# --- what is read off samples ---------------------------------------------------------------------


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
    entropy: np.ndarray  # mean over the tokens, nats, of the guided probabilities
    top_1: np.ndarray  # mean over the tokens of the largest guided probability
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
        largest = []
        overlaps = []
        for start in range(0, len(texts), 32):
            some_texts = texts[start : start + 32]
            part = tokens[start : start + 32]
            probs = teacher_forced(bench.model, some_texts, part, SCALE)
            proposed = teacher_forced(bench.draft, some_texts, part, 1.0)
            token_probs = probs.gather(-1, part.unsqueeze(-1))
            likelihoods.append(token_probs.clamp(min=1e-30).log().mean((1, 2)))
            entropies.append(torch.special.entr(probs).sum(-1))
            largest.append(probs.amax(-1).mean(-1))
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
            top_1=torch.cat(largest).numpy().reshape(shape),
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


def picked(drawn: Drawn, signal_PI: np.ndarray, n: int) -> pd.DataFrame:
    """Tabulate the verdicts of the best of each group of `n` samples, by a signal."""
    return table(drawn.rows, pick_best(drawn.right, signal_PI, n))


def pick_best(right_PI: np.ndarray, signal_PI: np.ndarray, n: int) -> np.ndarray:
    """Return the verdicts of the best of each group of `n` samples by a signal, [P, G]."""
    prompts, images = signal_PI.shape
    count = images // n * n
    signal_PGn = signal_PI[:, :count].reshape(prompts, -1, n)
    right_PGn = right_PI[:, :count].reshape(prompts, -1, n)
    best_PG1 = signal_PGn.argmax(-1)[..., None]
    picked_PG1: np.ndarray = np.take_along_axis(right_PGn, best_PG1, -1)
    return picked_PG1[..., 0]


# --- all of one set -------------------------------------------------------------------------------


class Study:
    """The samples of a weight set at one size; each kind is drawn when it is first asked for."""

    def __init__(self, bench: Bench, size: Size) -> None:
        self.bench = bench
        self.size = size

    @cached_property
    def drawn(self) -> Drawn:
        """Plain samples."""
        return draw(self.bench, self.size.prompts, self.size.images, SCALE)

    @cached_property
    def signals(self) -> Signals:
        """What model, draft and reward say of the plain samples."""
        return Signals.of(self.bench, self.drawn)

    @cached_property
    def agreement(self) -> float:
        """How often judge and reward give the plain samples the same verdict."""
        return measure_agreement(self.bench, self.drawn)

    def draw_by(self, method: Any) -> Drawn:
        """Draw the same prompts by a method."""
        return draw(self.bench, self.size.prompts, self.size.by_method, SCALE, method)

    def draw_swapped(self, share: float) -> np.ndarray:
        """Draw the same prompts while a share of the tokens becomes near codes; bool [P, I].

        Equal noise for every share, so that results are paired.
        """
        rows = self.bench.rows(self.size.prompts)
        asked = repeat_rows(rows, self.size.by_method)
        texts = [row["prompt"] for row in asked]
        swap = NearSwap(self.bench.model.codebook, share)
        pictures = []
        for seed, start in enumerate(range(0, len(texts), 32)):
            part = texts[start : start + 32]
            tokens = draw_tokens(self.bench.model.gpt, part, scale=SCALE, seed=seed, swap=swap)
            pictures.append(self.bench.decode([tokens]))
        right = self.bench.correct(pair(asked, np.concatenate(pictures)))
        return right.reshape(len(rows), self.size.by_method)


class NearSwap:
    """Replace a share of drawn codes by one of their five nearest in the codebook."""

    def __init__(self, codebook_Vd: Tensor, share: float) -> None:
        self._near_V5 = near_codes(codebook_Vd, 5)
        self._share = share
        self._rng = torch.Generator().manual_seed(0)

    def __call__(self, token_B1: Tensor) -> Tensor:
        """Return the codes [B, 1], some of them replaced."""
        is_swapped = torch.rand(token_B1.shape, generator=self._rng) < self._share
        rank_B1 = torch.randint(0, 5, token_B1.shape, generator=self._rng)
        return torch.where(is_swapped, self._near_V5[token_B1, rank_B1], token_B1)


def near_codes(codebook_Vd: Tensor, count: int) -> Tensor:
    """Return the `count` codes that are nearest to each code, itself left out, [V, count]."""
    return (codebook_Vd @ codebook_Vd.T).topk(1 + count, dim=-1).indices[:, 1:]
