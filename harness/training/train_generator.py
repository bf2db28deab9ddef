"""Train the generator: `python -m harness.training.train_generator --cpu-minutes 60`.

Fresh scenes are encoded on the fly. A tenth of the captions is dropped and some are wrong, so that
guidance has work to do, as it has on captions from the web. Every few hundred steps the running
average of the weights is sampled and judged. Training ends when the budget is spent or the model is
good enough: if plain sampling were perfect, no method could be better.

`--noise 0.03 --swap 0.06` lets it know alternatives: with sensor noise on the pictures many codes
are right at a place, and with near codes in the context it learns to go on from slight mistakes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.arguments import explain_mistakes, not_negative, share
from harness.models.pictogram import grammar, world
from harness.models.pictogram.detector import Detector, new_network
from harness.models.pictogram.generator import GPT, GPTSpec, draw_tokens
from harness.models.pictogram.reading import holds
from harness.models.vq import VQ, to_uint8
from harness.training import loop as training
from harness.training.train_detector import expect_trained_vq
from harness.training.train_tokenizer import GRID, swap_for_near, to_pixels

SPECS = {
    "pictogram_16": GPTSpec(layers=4, dim=160, heads=5, hidden=512),
    "pictogram_80": GPTSpec(layers=4, dim=160, heads=5, hidden=1152),
}
BATCH = 64
TASKS = (
    *("single_object", "two_object", "two_object", "counting", "counting"),
    *("position", "position", "position", "colors", "colors", "colors", *["color_attr"] * 5),
)
"""How often each task is practised; tinted pairs are the hard ones."""
NULL = 0.10
"""Share of the captions that are dropped."""
WRONG = 0.05
"""Share of the captions that are those of another picture."""
AVERAGE = 0.998
"""Decay of the running average of the weights."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What differs between trainings of the generator."""

    noise: float = 0.0  # standard deviation of a pixel's noise, black to white being 1
    swap: float = 0.0  # mean share of the context that is replaced by near codes
    rate: float = 1.0  # factor of the learning rates


@explain_mistakes
def main() -> None:
    parser = training.parser("train_generator", __doc__ or "", cpu_minutes=60)
    parser.add_argument(
        "--enough",
        type=not_negative,
        default=0.62,
        help="stop when the monitor's mean over the tasks is above",
    )
    usual = Recipe()
    parser.add_argument(
        "--noise",
        type=share,
        default=usual.noise,
        help="standard deviation of the noise on encoded pictures, black to white being 1",
    )
    parser.add_argument(
        "--swap",
        type=share,
        default=usual.swap,
        help="mean share of the context that is replaced by one of the five nearest codes",
    )
    parser.add_argument(
        "--rate", type=share, default=usual.rate, help="factor of the learning rates"
    )
    arguments = parser.parse_args()
    recipe = Recipe(arguments.noise, arguments.swap, arguments.rate)
    train(training.options(arguments), arguments.enough, recipe)


def train(options: training.Options, enough: float, recipe: Recipe = Recipe()) -> GPT:
    """Train until the budget is spent, or the mean score is above `enough`.

    Returns the running average of the weights. Raises UserError where the checkpoint to continue
    is of another recipe.
    """
    vq = expect_trained_vq(options)
    gpt = GPT(SPECS[options.set])
    average = GPT(SPECS[options.set])
    path = options.checkpoint("generator")
    progress, states = training.resume(path)
    optimisers = training.muon_adamw(gpt, 0.02 * recipe.rate, 3e-3 * recipe.rate)
    if not states:
        training.warm(options, "generator", gpt)
    else:
        training.expect_recipe(states.get("recipe"), asdict(recipe), asdict(Recipe()), path)
        gpt.load_state_dict(states["model"])
        training.restore(optimisers, states["optimisers"])
    average.load_state_dict(states.get("average", gpt.state_dict()))
    loss_of = training.compile_if_possible(loss_of_batch)
    encode = training.compile_if_possible(vq.encode)
    losses: list[float] = []

    def save() -> None:
        states = {"average": average.state_dict(), "recipe": asdict(recipe)}
        training.save(path, progress, gpt, optimisers, **states)

    while (share := progress.share(options.cpu_minutes)) < 1:
        # 1. Draw fresh scenes and encode them.
        training.set_rate(optimisers, training.decay(share))
        rng = training.step_rng(options.seed, "generator", progress.step)
        words, tokens = batch(options, rng, encode, noise=recipe.noise)
        context = tokens
        if recipe.swap:
            noise = np.random.default_rng(rng.getrandbits(64))
            context = swap_for_near(tokens, vq, noise, recipe.swap)

        # 2. Learn to predict their tokens.
        loss = loss_of(gpt, words, tokens, context)
        training.descend(loss, gpt, optimisers)
        decay = min(AVERAGE, progress.step / (progress.step + 10))
        training.update_average(average, gpt, decay)
        losses.append(loss.item())
        progress.tick(BATCH)

        # 3. Save, and measure now and then.
        if progress.step % 50 == 0:
            save()
        if progress.step % 100 == 0:
            score = watch(average, vq, options) if progress.step % 300 == 0 else {}
            progress.note(loss=float(np.mean(losses[-100:])), **score)
            if score.get("mean", 0.0) > enough:
                break

    if losses:  # else the budget was spent before
        progress.note(loss=float(np.mean(losses[-100:])), **watch(average, vq, options))
        save()
    return average


def loss_of_batch(gpt: GPT, word_B32: Tensor, token_BN: Tensor, context_BN: Tensor) -> Tensor:
    """Return the mean cross entropy of the tokens, given those of the context before them."""
    with training.autocast():
        logits = gpt.forward_train(word_B32, context_BN, training.attend_causally)
    return F.cross_entropy(logits.float().flatten(0, 1), token_BN.flatten())


def batch(
    options: training.Options, rng: random.Random, encode: training.Encode, *, noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw fresh scenes; return their word ids [B, 32] and codes [B, N].

    `noise` is the standard deviation of what is added to pixels, black to white being 1. Some
    captions are dropped, and some are those of another scene.
    """
    samples = [one_sample(options.classes, rng) for _ in range(BATCH)]
    pixels_B3HW = to_pixels(np.stack([sample.pixels for sample in samples]))
    if noise:
        normal = np.random.default_rng(rng.getrandbits(64)).standard_normal(pixels_B3HW.shape)
        pixels_B3HW = pixels_B3HW + 2 * noise * torch.from_numpy(normal).float()
    with torch.no_grad(), training.autocast():
        tokens = encode(pixels_B3HW)

    texts: list[str | None] = [sample.text for sample in samples]
    for i in range(BATCH):
        luck = rng.random()
        if luck < NULL:
            texts[i] = None
        elif luck < NULL + WRONG:
            texts[i] = samples[i - 1].text
    return torch.tensor([grammar.encode(text) for text in texts]), tokens


def one_sample(classes: Sequence[str], rng: random.Random) -> world.Sample:
    """Draw a scene: 60 % GenEval's templates, 25 % with layout clauses, 15 % TIIF-like wordings."""
    luck = rng.random()
    if luck < 0.60:
        return world.draw_sample(rng, classes, tasks=TASKS, style="geneval", layout_share=0.0)
    if luck < 0.85:
        style: world.Style = "geneval" if luck < 0.80 else "short"
        return world.draw_sample(rng, classes, tasks=TASKS, style=style, layout_share=1.0)
    style = "short" if luck < 0.925 else "long"
    return world.draw_sample(rng, classes, tasks=TASKS, style=style, layout_share=0.0)


def trained_detector(options: training.Options, part: str = "judge") -> Detector | None:
    """Load the detector of this set's checkpoint; None where it is not trained yet."""
    _, states = training.resume(options.checkpoint(part))
    if not states:
        return None
    network = new_network(states["architecture"], len(options.classes))
    network.load_state_dict(states["model"])
    return Detector(network, options.classes)


def watch(
    gpt: GPT, vq: VQ, options: training.Options, *, count: int = 96, scale: float = 2.0
) -> dict[str, float]:
    """Measure the share of right pictures of each task, and their mean, on fresh prompts.

    Returns nothing while there is no detector.
    """
    judge = trained_detector(options)
    if judge is None:
        return {}
    rows = grammar.generate_prompts(options.classes, count, seed=1234)
    tokens = draw_tokens(gpt, [row["prompt"] for row in rows], scale=scale, seed=0)
    with torch.no_grad():
        pictures = to_uint8(vq.decode(tokens, GRID)).numpy()

    verdicts: dict[str, list[bool]] = {task: [] for task in grammar.TASKS}
    for row, found in zip(rows, judge.detect(list(pictures)), strict=True):
        verdicts[row["tag"]].append(holds(row, found))
    shares = {task: float(np.mean(right)) for task, right in verdicts.items()}
    return {"mean": float(np.mean(list(shares.values()))), **shares}


if __name__ == "__main__":
    sys.exit(main())
