"""Train the draft: `python -m harness.training.train_draft --set pictogram_16 --cpu-minutes 8`.

A small model over the same tokens, taught by the generator: on the generator's own samples and on
encoded scenes it learns the generator's guided law at every position, so that it needs no guidance
of its own when it drafts.
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


def main() -> None:
    train(training.options(training.parser(__doc__ or "", cpu_minutes=8).parse_args()))


def train(options: training.Options) -> GPT:
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
    teach = training.compiled(guided_probs)
    loss_of = training.compiled(loss_of_batch)
    own: list[tuple[list[int], Tensor]] = []
    while (share := progress.share(options.cpu_minutes)) < 1:
        training.set_rate(optimisers, training.decay(share))
        rng = training.stream(options.seed, "draft", progress.step)
        if progress.step % FRESH_EVERY == 0 or not own:
            own = (own + samples(teacher, options, rng))[-KEPT:]
        words, tokens = batch(own, vq, options, rng)
        with torch.no_grad():
            probs = teach(teacher, words, tokens)
        loss = loss_of(draft, words, tokens, probs)
        training.descend(loss, draft, optimisers)
        training.follow(average, draft, min(0.998, progress.step / (progress.step + 10)))
        progress.tick(BATCH)
        if progress.step % 100 == 0:
            progress.note(loss=loss.item(), acceptance=acceptance(average, probs, words, tokens))
            training.save(path, progress, draft, optimisers, average=average.state_dict())
    progress.note(acceptance=acceptance(average, probs, words, tokens))
    training.save(path, progress, draft, optimisers, average=average.state_dict())
    return average


def trained_generator(options: training.Options) -> GPT:
    _, states = training.resume(options.checkpoint("generator"))
    gpt = GPT(TEACHERS[options.set])
    gpt.load_state_dict(states["average"])
    return gpt.eval().requires_grad_(False)


def samples(
    teacher: GPT, options: training.Options, rng: random.Random
) -> list[tuple[list[int], Tensor]]:
    """Prompts of the whole grammar and what the generator draws for them."""
    texts = [one_sample(options.classes, rng).text for _ in range(BATCH)]
    tokens = draw_tokens(teacher, texts, scale=SCALE, seed=rng.getrandbits(32))
    return [(grammar.encode(text), row) for text, row in zip(texts, tokens, strict=True)]


def batch(
    own: list[tuple[list[int], Tensor]], vq: VQ, options: training.Options, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Three quarters own samples, the rest encoded scenes: word ids [B, 32] and tokens [B, N]."""
    drawn = rng.choices(own, k=3 * BATCH // 4)
    scenes = [one_sample(options.classes, rng) for _ in range(BATCH - len(drawn))]
    with torch.no_grad(), training.autocast():
        tokens = vq.encode(to_pixels(np.stack([scene.pixels for scene in scenes])))
    words = [ids for ids, _ in drawn] + [grammar.encode(scene.text) for scene in scenes]
    return torch.tensor(words), torch.cat((torch.stack([row for _, row in drawn]), tokens))


def guided_probs(teacher: GPT, word_B32: Tensor, token_BN: Tensor) -> Tensor:
    """The generator's law at every position under the default guidance, [B, N, V]."""
    words = torch.cat((word_B32, torch.zeros_like(word_B32)))
    with training.autocast():
        logits = teacher.forward_train(words, token_BN.repeat(2, 1), training.attend_causally)
    text, null = logits.float().chunk(2)
    return F.softmax(null + SCALE * (text - null), -1)


def loss_of_batch(draft: GPT, word_B32: Tensor, token_BN: Tensor, probs_BNV: Tensor) -> Tensor:
    with training.autocast():
        logits = draft.forward_train(word_B32, token_BN, training.attend_causally)
    return -(probs_BNV * F.log_softmax(logits.float(), -1)).sum(-1).mean()


@torch.no_grad()
def acceptance(draft: GPT, probs_BNV: Tensor, word_B32: Tensor, token_BN: Tensor) -> float:
    """Mean chance that the exact rule accepts a drafted token, 1 - total variation, on the
    generator's own samples.
    """
    own = 3 * BATCH // 4
    proposed = F.softmax(draft.forward_train(word_B32, token_BN, causal), -1)
    return float(torch.minimum(proposed, probs_BNV)[:own].sum(-1).mean())


if __name__ == "__main__":
    main()
