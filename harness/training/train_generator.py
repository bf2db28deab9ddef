"""Train the generator: `python -m harness.training.train_generator --set pictogram_16 --cpu-minutes
60`.

Fresh scenes are encoded on the fly. A tenth of the captions is dropped and some are wrong, so that
guidance has work to do, as it has on captions from the web. Every few hundred steps the running
average of the weights is sampled and judged; training ends when the budget is spent or the model is
good enough: methods need room above plain sampling.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.pictogram import grammar, world
from harness.models.pictogram.detector import Detector, new_network
from harness.models.pictogram.generator import GPT, GPTSpec, draw_tokens
from harness.models.pictogram.reading import holds
from harness.models.vq import VQ, to_uint8
from harness.training import loop as training
from harness.training.train_detector import trained_vq
from harness.training.train_tokenizer import GRID, to_pixels

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
WRONG = 0.05
AVERAGE = 0.998


def main() -> None:
    parser = training.parser(__doc__ or "", cpu_minutes=60)
    parser.add_argument(
        "--enough",
        type=float,
        default=0.62,
        help="stop when the monitor's mean over the tasks is above",
    )
    arguments = parser.parse_args()
    train(training.options(arguments), arguments.enough)


def train(options: training.Options, enough: float) -> GPT:
    gpt = GPT(SPECS[options.set])
    average = GPT(SPECS[options.set])
    path = options.checkpoint("generator")
    progress, states = training.resume(path)
    optimisers = training.muon_adamw(gpt, 0.02, 3e-3)
    if not states:
        training.warm(options, "generator", gpt)
    else:
        gpt.load_state_dict(states["model"])
        training.restore(optimisers, states["optimisers"])
    average.load_state_dict(states.get("average", gpt.state_dict()))
    vq = trained_vq(options)
    assert vq is not None, "train the tokenizer first"
    loss_of = training.compiled(loss_of_batch)
    encode = training.compiled(vq.encode)
    losses: list[float] = []
    while (share := progress.share(options.cpu_minutes)) < 1:
        training.set_rate(optimisers, training.decay(share))
        words, tokens = batch(
            options, training.stream(options.seed, "generator", progress.step), encode
        )
        loss = loss_of(gpt, words, tokens)
        training.descend(loss, gpt, optimisers)
        training.follow(average, gpt, min(AVERAGE, progress.step / (progress.step + 10)))
        losses.append(loss.item())
        progress.tick(BATCH)
        if progress.step % 50 == 0:
            training.save(path, progress, gpt, optimisers, average=average.state_dict())
        if progress.step % 100 == 0:
            score = watch(average, vq, options) if progress.step % 300 == 0 else {}
            progress.note(loss=float(np.mean(losses[-100:])), **score)
            if score.get("mean", 0.0) > enough:
                break
    progress.note(loss=float(np.mean(losses[-100:])), **watch(average, vq, options))
    training.save(path, progress, gpt, optimisers, average=average.state_dict())
    return average


def loss_of_batch(gpt: GPT, word_B32: Tensor, token_BN: Tensor) -> Tensor:
    with training.autocast():
        logits = gpt.forward_train(word_B32, token_BN, training.attend_causally)
    return F.cross_entropy(logits.float().flatten(0, 1), token_BN.flatten())


def batch(
    options: training.Options, rng: random.Random, encode: training.Encode
) -> tuple[Tensor, Tensor]:
    """Word ids [B, 32] and codes [B, N] of fresh scenes, some captions dropped or exchanged."""
    samples = [one_sample(options.classes, rng) for _ in range(BATCH)]
    with torch.no_grad(), training.autocast():
        tokens = encode(to_pixels(np.stack([sample.pixels for sample in samples])))
    texts: list[str | None] = [sample.text for sample in samples]
    for i in range(BATCH):
        luck = rng.random()
        if luck < NULL:
            texts[i] = None
        elif luck < NULL + WRONG:
            texts[i] = samples[i - 1].text
    return torch.tensor([grammar.encode(text) for text in texts]), tokens


def one_sample(classes: Sequence[str], rng: random.Random) -> world.Sample:
    """GenEval's templates 60 %, with layout clauses 25 %, TIIF-like wordings 15 %."""
    luck = rng.random()
    if luck < 0.60:
        return world.draw_sample(rng, classes, tasks=TASKS, style="geneval", layout_share=0.0)
    if luck < 0.85:
        return world.draw_sample(
            rng, classes, tasks=TASKS, style="geneval" if luck < 0.80 else "short", layout_share=1.0
        )
    return world.draw_sample(
        rng, classes, tasks=TASKS, style="short" if luck < 0.925 else "long", layout_share=0.0
    )


def trained_detector(options: training.Options, part: str = "judge") -> Detector | None:
    _, states = training.resume(options.checkpoint(part))
    if not states:
        return None
    network = new_network(states["architecture"], len(options.classes))
    network.load_state_dict(states["model"])
    return Detector(network, options.classes)


def watch(
    gpt: GPT, vq: VQ, options: training.Options, *, count: int = 96, scale: float = 2.0
) -> dict[str, float]:
    """Share of right pictures per task, and their mean, on fresh prompts; nothing while there is no
    detector.
    """
    judge = trained_detector(options)
    if judge is None:
        return {}
    rows = grammar.generate_prompts(options.classes, count, seed=1234)
    tokens = draw_tokens(gpt, [row["prompt"] for row in rows], scale=scale, seed=0)
    with torch.no_grad():
        pictures = to_uint8(vq.decode(tokens, GRID)).numpy()
    right = [
        holds(row, found) for row, found in zip(rows, judge.detect(list(pictures)), strict=True)
    ]
    tasks = {
        task: float(
            np.mean([ok for ok, row in zip(right, rows, strict=True) if row["tag"] == task])
        )
        for task in grammar.TASKS
    }
    return {"mean": float(np.mean(list(tasks.values()))), **tasks}


if __name__ == "__main__":
    main()
