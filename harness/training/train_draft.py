"""Train the draft: `python -m harness.training.train_draft --set pictogram_16 --cpu-minutes 8`.

The draft is a small model over the same tokens, taught by the generator: on samples of the
generator and on encoded scenes it learns the generator's guided distribution at every position, so
that it needs no guidance when it drafts.
"""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.pictogram import grammar
from harness.models.pictogram.generator import GPT, GPTSpec, draw_tokens
from harness.models.trunk import causal
from harness.models.vq import VQ
from harness.training import loop as training
from harness.training.train_detector import trained_vq
from harness.training.train_generator import SPECS as TEACHERS
from harness.training.train_generator import one_sample
from harness.training.train_tokenizer import to_pixels

SPEC = GPTSpec(layers=2, dim=96, heads=3, hidden=256)
BATCH = 64
SCALE = 2.0
FRESH_EVERY = 12
"""Steps between two batches of samples drawn from the generator; drawing is the expensive part."""
KEPT = 2048
"""Samples of the generator that are kept to learn from, the latest."""
Sample = tuple[list[int], Tensor]
"""Word ids of a prompt, and the tokens [N] that the generator draws for it."""


def main() -> None:
    train(training.options(training.parser(__doc__ or "", cpu_minutes=8).parse_args()))


def train(options: training.Options) -> GPT:
    """Train until the budget is spent; return the running average of the weights."""
    draft = GPT(SPEC)
    average = GPT(SPEC)
    path = options.checkpoint("draft")
    progress, states = training.resume(path)
    optimisers = training.muon_adamw(draft, 0.02, 3e-3)
    if not states:
        training.warm(options, "draft", draft)
    else:
        draft.load_state_dict(states["model"])
        training.restore(optimisers, states["optimisers"])
    average.load_state_dict(states.get("average", draft.state_dict()))
    vq = trained_vq(options)
    teacher = trained_generator(options)
    assert vq is not None, "train the tokenizer first"
    teach = training.compile_if_possible(guided_probs)
    loss_of = training.compile_if_possible(loss_of_batch)
    drawn: list[Sample] = []

    while (share := progress.share(options.cpu_minutes)) < 1:
        # 1. Let the generator draw now and then, and take a batch.
        training.set_rate(optimisers, training.decay(share))
        rng = training.step_rng(options.seed, "draft", progress.step)
        if progress.step % FRESH_EVERY == 0 or not drawn:
            drawn = (drawn + draw_samples(teacher, options, rng))[-KEPT:]
        words, tokens = batch(drawn, vq, options, rng)

        # 2. Learn the generator's distributions.
        with torch.no_grad():
            probs = teach(teacher, words, tokens)
        loss = loss_of(draft, words, tokens, probs)
        training.descend(loss, draft, optimisers)
        decay = min(0.998, progress.step / (progress.step + 10))
        training.update_average(average, draft, decay)
        progress.tick(BATCH)

        # 3. Measure and save.
        if progress.step % 100 == 0:
            progress.note(loss=loss.item(), acceptance=acceptance(average, probs, words, tokens))
            training.save(path, progress, draft, optimisers, average=average.state_dict())

    progress.note(acceptance=acceptance(average, probs, words, tokens))
    training.save(path, progress, draft, optimisers, average=average.state_dict())
    return average


def trained_generator(options: training.Options) -> GPT:
    """Load the running average of this set's generator."""
    _, states = training.resume(options.checkpoint("generator"))
    gpt = GPT(TEACHERS[options.set])
    gpt.load_state_dict(states["average"])
    return gpt.eval().requires_grad_(False)


def draw_samples(teacher: GPT, options: training.Options, rng: random.Random) -> list[Sample]:
    """Let the generator draw for prompts of the whole grammar."""
    texts = [one_sample(options.classes, rng).text for _ in range(BATCH)]
    tokens = draw_tokens(teacher, texts, scale=SCALE, seed=rng.getrandbits(32))
    return [(grammar.encode(text), row) for text, row in zip(texts, tokens, strict=True)]


def batch(
    drawn: list[Sample], vq: VQ, options: training.Options, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Choose a batch, three quarters samples of the generator, the rest encoded scenes.

    Returns word ids [B, 32] and tokens [B, N].
    """
    chosen = rng.choices(drawn, k=3 * BATCH // 4)
    scenes = [one_sample(options.classes, rng) for _ in range(BATCH - len(chosen))]
    pixels = np.stack([scene.pixels for scene in scenes])
    with torch.no_grad(), training.autocast():
        scene_tokens = vq.encode(to_pixels(pixels))

    words = [ids for ids, _ in chosen] + [grammar.encode(scene.text) for scene in scenes]
    drawn_tokens = torch.stack([tokens for _, tokens in chosen])
    return torch.tensor(words), torch.cat((drawn_tokens, scene_tokens))


def guided_probs(teacher: GPT, word_B32: Tensor, token_BN: Tensor) -> Tensor:
    """Return the generator's distribution at every position under guidance, [B, N, V]."""
    words = torch.cat((word_B32, torch.zeros_like(word_B32)))
    with training.autocast():
        logits = teacher.forward_train(words, token_BN.repeat(2, 1), training.attend_causally)
    text, null = logits.float().chunk(2)
    return F.softmax(null + SCALE * (text - null), -1)


def loss_of_batch(draft: GPT, word_B32: Tensor, token_BN: Tensor, probs_BNV: Tensor) -> Tensor:
    """Return the mean cross entropy of the generator's distributions."""
    with training.autocast():
        logits = draft.forward_train(word_B32, token_BN, training.attend_causally)
    return -(probs_BNV * F.log_softmax(logits.float(), -1)).sum(-1).mean()


@torch.no_grad()
def acceptance(draft: GPT, probs_BNV: Tensor, word_B32: Tensor, token_BN: Tensor) -> float:
    """Measure the mean chance that the exact rule accepts a drafted token.

    It is 1 minus the total variation, on the samples of the generator, which a batch begins with.
    """
    count = 3 * BATCH // 4
    proposed = F.softmax(draft.forward_train(word_B32, token_BN, causal), -1)
    overlap_BN = torch.minimum(proposed, probs_BNV)[:count].sum(-1)
    return float(overlap_BN.mean())


if __name__ == "__main__":
    main()
