"""Train the draft: `python -m harness.training.train_draft --set pictogram_80 --samples 100000`.

The draft is a small model over the same tokens, taught by the generator: on samples of the
generator and on encoded scenes it learns the generator's guided distribution at every position, so
that it needs no guidance when it drafts. It may begin with the generator's first layers. A
checkpoint is written every two minutes, with the samples that are learned from; a training that was
killed continues from it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.arguments import count, explain_mistakes, not_negative
from harness.models.pictogram import grammar
from harness.models.pictogram.generator import GPT, GPTSpec, draw_with_probs
from harness.models.trunk import causal
from harness.models.vq import VQ
from harness.records import UserError
from harness.training import loop as training
from harness.training.train_detector import expect_trained_vq
from harness.training.train_generator import SPECS as TEACHERS
from harness.training.train_generator import one_sample
from harness.training.train_tokenizer import to_pixels

SPEC = GPTSpec(layers=2, dim=96, heads=3, hidden=256)
BATCH = 64
SCALE = 2.0
DRAWN = 48
"""Samples of the generator that are drawn at a time; drawing is the expensive part."""
SCENES = 16
"""Encoded scenes that are added to them."""
FIRST = 6
"""Times that fresh samples are added before the first step."""
HELD_OUT = 96
"""Samples of the generator on which acceptance is measured, none of them learned from."""


Lessons = tuple[Tensor, Tensor, Tensor]
"""Word ids [B, 32], tokens [B, N], and the generator's guided distributions [B, N, V]."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained, and on what."""

    spec: GPTSpec = SPEC
    from_generator: bool = False  # begin with the generator's embeddings, first layers and head
    fresh_every: int = 4  # steps between two additions of fresh samples
    kept: int = 4096  # samples to learn from, the latest
    rate: float = 1.0  # factor of the learning rates
    overlap: float = 0.0  # weight of the rejected share beside the cross entropy


@explain_mistakes
def main() -> None:
    parser = training.parser("train_draft", __doc__ or "", cpu_minutes=8)
    training.add_samples(parser)
    add_recipe(parser)
    arguments = parser.parse_args()
    train(training.options(arguments), read_recipe(arguments))


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the options of a recipe."""
    usual = Recipe()
    for name, what in (("layers", "layers"), ("dim", "width"), ("heads", "attention heads")):
        size = getattr(SPEC, name)
        parser.add_argument(f"--{name}", type=count, default=size, help=what)
    parser.add_argument("--hidden", type=count, default=SPEC.hidden, help="units of a feed-forward")
    parser.add_argument(
        "--from-generator",
        action="store_true",
        help="begin with the generator's embeddings, first layers and head; needs its width",
    )
    parser.add_argument(
        "--fresh-every",
        type=count,
        default=usual.fresh_every,
        help=f"steps between two additions of {DRAWN} samples and {SCENES} scenes",
    )
    parser.add_argument(
        "--kept",
        type=count,
        default=usual.kept,
        help="samples and scenes to learn from, the latest",
    )
    parser.add_argument(
        "--rate", type=not_negative, default=usual.rate, help="factor of the peak learning rates"
    )
    parser.add_argument(
        "--overlap",
        type=not_negative,
        default=usual.overlap,
        help="weight of the share of drafts that are rejected, beside the cross entropy",
    )


def read_recipe(arguments: argparse.Namespace) -> Recipe:
    """Collect the options of a recipe."""
    spec = GPTSpec(arguments.layers, arguments.dim, arguments.heads, arguments.hidden)
    return Recipe(
        spec,
        arguments.from_generator,
        arguments.fresh_every,
        arguments.kept,
        arguments.rate,
        arguments.overlap,
    )


def train(options: training.Options, recipe: Recipe = Recipe()) -> GPT:
    """Train until the budget is spent; return the running average of the weights.

    Raises UserError for a checkpoint of another shape, and for a shape that cannot begin with the
    generator's layers.
    """
    # 1. Begin, or continue from the checkpoint.
    teacher = trained_generator(options)
    draft = GPT(recipe.spec)
    average = GPT(recipe.spec)
    path = options.checkpoint("draft")
    progress, states = training.resume(path)
    optimisers = training.muon_adamw(draft, 0.02, 3e-3)
    if states:
        expect_shape(states.get("spec", asdict(SPEC)), recipe.spec, path)
        draft.load_state_dict(states["model"])
        training.restore(optimisers, states["optimisers"])
    elif recipe.from_generator:
        adopt_layers(draft, teacher)
    else:
        training.warm(options, "draft", draft)
    average.load_state_dict(states.get("average", draft.state_dict()))
    pool = Pool(teacher, options, recipe.kept)
    pool.restore(states.get("pool", []))
    held_out = draw_held_out(teacher, options)
    loss_of = training.compile_if_possible(loss_of_batch)
    alarm = training.Alarm()

    while (share := progress.share(options.cpu_minutes, options.samples)) < 1:
        # 2. Let the generator draw now and then, and take a batch.
        training.set_rate(optimisers, recipe.rate * training.decay(share))
        rng = training.step_rng(options.seed, "draft", progress.step)
        if progress.step % recipe.fresh_every == 0 or not len(pool):
            for _ in range(1 if len(pool) else FIRST):
                pool.add_fresh(rng)
        words, tokens, probs = pool.choose(BATCH, rng)

        # 3. Learn the generator's distributions.
        loss = loss_of(draft, words, tokens, probs, recipe.overlap)
        training.descend(loss, draft, optimisers)
        decay = min(0.998, progress.step / (progress.step + 10))
        training.update_average(average, draft, decay)
        progress.tick(BATCH)

        # 4. Measure and save.
        if progress.step % 100 == 0:
            progress.note(loss=loss.item(), acceptance=acceptance(average, *held_out))
        if alarm.rings():
            save(path, progress, draft, optimisers, average, pool)

    progress.note(acceptance=acceptance(average, *held_out))
    save(path, progress, draft, optimisers, average, pool)
    return average


def save(
    path: Path,
    progress: training.Progress,
    draft: GPT,
    optimisers: list[torch.optim.Optimizer],
    average: GPT,
    pool: Pool,
) -> None:
    """Write a checkpoint from which the same training goes on."""
    more = {"average": average.state_dict(), "spec": asdict(draft.spec), "pool": pool.state()}
    training.save(path, progress, draft, optimisers, **more)


def expect_shape(found: dict[str, int], asked: GPTSpec, path: Path) -> None:
    """Raise UserError unless a checkpoint has the dimensions that are asked for."""
    for field in fields(GPTSpec):
        have = found[field.name]
        want = getattr(asked, field.name)
        if have != want:
            raise UserError(
                f"--{field.name} {want}: {path} has {have}; give its shape, or another --work"
            )


def adopt_layers(draft: GPT, teacher: GPT) -> None:
    """Copy the generator's embeddings, first layers, last norm and head into a draft.

    A draft with fewer hidden units takes the first ones. Raises UserError where width, heads or
    layers do not fit.
    """
    small = draft.spec
    large = teacher.spec
    if (small.dim, small.heads) != (large.dim, large.heads):
        raise UserError(
            f"--dim {small.dim} --heads {small.heads}: to begin with the generator's layers, "
            f"give its --dim {large.dim} --heads {large.heads}"
        )
    if small.layers > large.layers or small.hidden > large.hidden:
        raise UserError(
            f"--layers {small.layers} --hidden {small.hidden}: the generator has only "
            f"{large.layers} layers of {large.hidden} hidden units to begin with"
        )
    source = teacher.state_dict()
    for name, target in draft.state_dict().items():
        corner = tuple(map(slice, target.shape))
        target.copy_(source[name][corner])


def trained_generator(options: training.Options) -> GPT:
    """Load the running average of this set's generator."""
    _, states = training.resume(options.checkpoint("generator"))
    gpt = GPT(TEACHERS[options.set])
    gpt.load_state_dict(states["average"])
    return gpt.eval().requires_grad_(False)


# --- what is learned from -------------------------------------------------------------------------


class Pool:
    """The latest samples and scenes, with the generator's guided distribution at every position.

    The distributions are known from drawing, so that a sample can be learned from several times
    without asking the generator again.
    """

    def __init__(self, teacher: GPT, options: training.Options, kept: int) -> None:
        vq = expect_trained_vq(options)
        self._vq = vq
        self._teacher = teacher
        self._options = options
        self._most_parts = max(1, kept // (DRAWN + SCENES))
        self._parts: list[Lessons] = []  # each of DRAWN samples and SCENES scenes

    def __len__(self) -> int:
        return len(self._parts) * (DRAWN + SCENES)

    def state(self) -> list[Lessons]:
        """Return what a checkpoint keeps."""
        return self._parts

    def restore(self, parts: Sequence[Lessons]) -> None:
        """Continue with the samples of a checkpoint."""
        self._parts = list(parts)

    def add_fresh(self, rng: random.Random) -> None:
        """Add samples of the generator and encoded scenes; the oldest leave."""
        drawn = draw_samples(self._teacher, self._options, rng, DRAWN)
        scenes = encode_scenes(self._teacher, self._vq, self._options, rng, SCENES)
        words, tokens, probs = (torch.cat(both) for both in zip(drawn, scenes, strict=True))
        self._parts = [*self._parts, (words, tokens, probs.half())][-self._most_parts :]

    def choose(self, count: int, rng: random.Random) -> Lessons:
        """Choose a batch of samples and scenes."""
        chosen = []
        for _ in range(count):
            part = rng.choice(self._parts)
            row = rng.randrange(DRAWN + SCENES)
            chosen.append([tensor[row] for tensor in part])
        words, tokens, probs = (torch.stack(rows) for rows in zip(*chosen, strict=True))
        return words, tokens, probs.float()


def draw_samples(
    teacher: GPT, options: training.Options, rng: random.Random, count: int
) -> Lessons:
    """Let the generator draw for prompts of the whole grammar."""
    texts = [one_sample(options.classes, rng).text for _ in range(count)]
    seed = rng.getrandbits(32)
    tokens, probs = draw_with_probs(teacher, texts, scale=SCALE, seed=seed)
    return torch.tensor([grammar.encode(text) for text in texts]), tokens, probs


def draw_held_out(teacher: GPT, options: training.Options) -> Lessons:
    """Draw the samples on which acceptance is measured, the same whenever a training continues."""
    rng = training.step_rng(options.seed, "draft, held out", 0)
    return draw_samples(teacher, options, rng, HELD_OUT)


def encode_scenes(
    teacher: GPT, vq: VQ, options: training.Options, rng: random.Random, count: int
) -> Lessons:
    """Encode fresh scenes, and ask the generator for its distributions on them."""
    scenes = [one_sample(options.classes, rng) for _ in range(count)]
    pixels = np.stack([scene.pixels for scene in scenes])
    with torch.no_grad(), training.autocast():
        tokens = vq.encode(to_pixels(pixels))
    words = torch.tensor([grammar.encode(scene.text) for scene in scenes])
    return words, tokens, guided_probs(teacher, words, tokens)


@torch.no_grad()
def guided_probs(teacher: GPT, word_B32: Tensor, token_BN: Tensor) -> Tensor:
    """Return the generator's distribution at every position under guidance, [B, N, V]."""
    words = torch.cat((word_B32, torch.zeros_like(word_B32)))
    logits = teacher.forward_train(words, token_BN.repeat(2, 1), causal)
    text, null = logits.float().chunk(2)
    return F.softmax(null + SCALE * (text - null), -1)


# --- loss -----------------------------------------------------------------------------------------


def loss_of_batch(
    draft: GPT, word_B32: Tensor, token_BN: Tensor, probs_BNV: Tensor, overlap: float = 0.0
) -> Tensor:
    """Return the mean cross entropy of the generator's distributions.

    The mean chance that the exact rule rejects a drafted token is added, times `overlap`.
    """
    with training.autocast():
        logits = draft.forward_train(word_B32, token_BN, training.attend_causally)
    guess_BNV = F.log_softmax(logits.float(), -1)
    loss = -(probs_BNV * guess_BNV).sum(-1).mean()
    if overlap:
        accepted_BN = torch.minimum(guess_BNV.exp(), probs_BNV).sum(-1)
        loss = loss + overlap * (1 - accepted_BN.mean())
    return loss


@torch.no_grad()
def acceptance(draft: GPT, word_B32: Tensor, token_BN: Tensor, probs_BNV: Tensor) -> float:
    """Measure the mean chance that the exact rule accepts a drafted token.

    It is 1 minus the total variation.
    """
    proposed_BNV = F.softmax(draft.forward_train(word_B32, token_BN, causal), -1)
    return float(torch.minimum(proposed_BNV, probs_BNV).sum(-1).mean())


if __name__ == "__main__":
    sys.exit(main())
