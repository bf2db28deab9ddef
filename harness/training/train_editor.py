"""Train the embedded editor: `python -m harness.training.train_editor --cpu-minutes 60`.

It begins with the shipped generator of the same classes and the shipped tokenizer. Fresh pairs of
scenes are encoded on the fly; cells that an edit leaves alone keep the source's tokens; the loss is
that of the target's tokens alone. A tenth of the instructions is dropped, and some with their
source, so that guidance has work to do; a tenth asks to finish what the edit draws, which is what a
rewriter may ask for later. In the first part of the budget some edits ask for the colour that a
thing has: copying is learned from them. Every few hundred steps the running average of the weights
edits fresh pictures, and the judge counts edits that were made, kept the rest, and did both.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.arguments import explain_mistakes
from harness.models.pictogram import edits
from harness.models.pictogram.detector import Detector, read_box_colors
from harness.models.pictogram.edit_reading import Verdict, judge_edit
from harness.models.pictogram.editor import (
    PART,
    EditorGPT,
    PictogramEditor,
    begin_with_generator,
    editor_spec,
)
from harness.models.pictogram.generator import load_gpt, load_tokenizer
from harness.models.vq import VQ
from harness.records import Job, Prompt, SourceImage
from harness.runs.instantiate import build_object
from harness.training import loop as training
from harness.training.samples import PLAIN, deliver
from harness.training.train_tokenizer import to_pixels

BATCH = 32
NO_TEXT = 0.10
"""Share of the samples without an instruction."""
NOTHING = 0.03
"""Share of the samples without instruction and source."""
FINISH = 0.10
"""Share of the instructions that ask to finish what the edit draws."""
COPIES = 0.30
"""Share of the edits that change nothing, during the warm-up."""
WARM_UP = 0.15
"""Share of the budget that the warm-up takes."""
AVERAGE = 0.99
"""Decay of the running average of the weights."""
WATCH_EVERY = 400
"""Steps between two looks at what the editor does."""
SCALE = 2.0
"""Guidance scale of these looks."""


@explain_mistakes
def main() -> None:
    """Train within the options' budget."""
    parser = training.parser("train_editor", __doc__ or "", cpu_minutes=60)
    training.add_samples(parser)
    train(training.options(parser.parse_args()))


def train(options: training.Options) -> EditorGPT:
    """Train until the budget is spent; returns the running average of the weights."""
    # 1. The networks, from the shipped ones or from the checkpoint.
    generator, _, _ = load_gpt(options.set, "generator")
    vq, _ = load_tokenizer(options.set)
    vq.eval().requires_grad_(False)
    gpt = EditorGPT(editor_spec(generator.spec))
    average = EditorGPT(gpt.spec)
    path = options.checkpoint(PART)
    progress, states = training.resume(path)
    optimisers = training.muon_adamw(gpt, 0.02, 3e-3)
    if states:
        gpt.load_state_dict(states["model"])
        training.restore(optimisers, states["optimisers"])
    else:
        begin_with_generator(gpt, generator)
    average.load_state_dict(states.get("average", gpt.state_dict()))
    loss_of = training.compile_if_possible(loss_of_batch)
    encode = training.compile_if_possible(vq.encode)
    alarm = training.Alarm()
    losses: list[float] = []

    def save() -> None:
        training.save(path, progress, gpt, optimisers, average=average.state_dict())

    while (share := progress.share(options.cpu_minutes, options.samples)) < 1:
        # 2. Draw fresh edits and encode them.
        training.set_rate(optimisers, training.decay(share))
        rng = training.step_rng(options.seed, PART, progress.step)
        copies = COPIES if share < WARM_UP else 0.0
        source_BN, is_empty_B, word_B32, target_BN = draw_batch(
            options.classes, rng, encode, copies
        )

        # 3. Learn to predict the targets.
        loss = loss_of(gpt, source_BN, is_empty_B, word_B32, target_BN)
        training.descend(loss, gpt, optimisers)
        training.update_average(average, gpt, AVERAGE)
        losses.append(float(loss.detach()))
        progress.tick(BATCH)

        # 4. Save, and look at what it does.
        if progress.step % WATCH_EVERY == 0:
            progress.note(loss=float(np.mean(losses[-100:])), **watch(average, vq, options))
            save()
        elif alarm.rings():
            save()

    if losses:  # else the budget was spent before
        progress.note(loss=float(np.mean(losses[-100:])), **watch(average, vq, options))
        save()
    return average


def loss_of_batch(
    gpt: EditorGPT, source_BN: Tensor, is_empty_B: Tensor, word_B32: Tensor, target_BN: Tensor
) -> Tensor:
    """Return the mean cross entropy of the target's tokens."""
    with training.autocast():
        logits = gpt.forward_edits(
            source_BN, is_empty_B, word_B32, target_BN, training.attend_causally
        )
    return F.cross_entropy(logits.float().flatten(0, 1), target_BN.flatten())


def draw_batch(
    classes: Sequence[str], rng: random.Random, encode: training.Encode, copies: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw fresh edits: source codes [B, N], which are empty [B], word ids [B, 32], target codes.

    `copies` is the share of edits that change nothing.
    """
    samples = [_draw_sample(classes, rng, copies) for _ in range(BATCH)]
    source_BHWC = np.stack([edit.source.draw()[0] for edit in samples])
    target_BHWC = np.stack([edit.target.draw()[0] for edit in samples])
    with torch.no_grad():  # in float32, as sources are encoded when an edit is drawn
        encoded_BN = encode(to_pixels(np.concatenate((source_BHWC, target_BHWC))))
    source_BN, target_BN = encoded_BN.chunk(2)
    is_touched_BN = find_touched_cells(source_BHWC, target_BHWC, source_BN.shape[1])
    target_BN = torch.where(is_touched_BN, target_BN, source_BN)

    texts: list[str | None] = []
    is_empty = []
    for edit in samples:
        luck = rng.random()
        is_empty.append(luck < NOTHING)
        if luck < NOTHING + NO_TEXT:
            texts.append(None)
        elif edit.kind != "remove" and rng.random() < FINISH:
            texts.append(edits.write_finish(edit))
        else:
            texts.append(edit.text)
    word_B32 = torch.tensor([edits.encode(text) for text in texts])
    return source_BN, torch.tensor(is_empty), word_B32, target_BN


def find_touched_cells(source_BHWC: np.ndarray, target_BHWC: np.ndarray, cells: int) -> Tensor:
    """Find the cells in which two pictures differ, bool [B, N].

    The tokenizer normalises over the whole picture, so an edit changes tokens far away from it, to
    others that look alike: 55 % of all tokens, where 21 % of the cells have other pixels. With the
    source's tokens in the untouched cells the decoded picture is the same (44 dB), and copying is
    what an editor has to learn.
    """
    differs_BHW = torch.from_numpy((source_BHWC != target_BHWC).any(-1))
    size = differs_BHW.shape[1] // math.isqrt(cells)
    touched_BRC = F.max_pool2d(differs_BHW.float(), size)
    return touched_BRC.flatten(1) > 0


def _draw_sample(classes: Sequence[str], rng: random.Random, copies: float) -> edits.Edit:
    if rng.random() < copies:
        return edits.draw_identity(rng, classes)
    return edits.draw_edit(rng, classes, rng.choice(edits.KINDS), read_box_colors)


def watch(
    gpt: EditorGPT, vq: VQ, options: training.Options, *, count: int = 64
) -> dict[str, float]:
    """Measure the shares of fresh edits that were made, kept the rest, and did both."""
    network = EditorGPT(gpt.spec)  # inference packs its weights
    network.load_state_dict(gpt.state_dict())
    model = PictogramEditor.of_networks(network, vq, options.classes)
    asked = edits.generate_edits(options.classes, count, 1234, read_box_colors)
    judge, _ = Detector.load(options.set, "judge")
    verdicts = judge_pictures(judge, asked, list(draw_edits(model, asked, 1, SCALE)[:, 0]))
    measured = {
        "done": float(np.mean([one.done for one in verdicts])),
        "kept": float(np.mean([one.kept for one in verdicts])),
        "both": float(np.mean([one.correct for one in verdicts])),
    }
    for kind in edits.KINDS:
        own = [one.correct for edit, one in zip(asked, verdicts, strict=True) if edit.kind == kind]
        measured[kind] = float(np.mean(own))
    return measured


def draw_edits(
    model: PictogramEditor, asked: Sequence[edits.Edit], images: int, scale: float
) -> np.ndarray:
    """Draw images of each edit without any method, uint8 [edits, images, H, W, 3]."""
    jobs = []
    for number, edit in enumerate(asked):
        source = SourceImage.of_pixels(edit.source.draw()[0])
        prompt = Prompt(f"edits/{number:05d}", edit.text, edit.kind, source=source)
        jobs += [Job(prompt, image) for image in range(images)]
    drawn = deliver(model, jobs, build_object(PLAIN), scale)
    pictures = np.stack([np.asarray(delivery.image) for delivery in drawn])
    return pictures.reshape(len(asked), images, *pictures.shape[1:])


def judge_pictures(
    judge: Detector, asked: Sequence[edits.Edit], pictures: Sequence[np.ndarray]
) -> list[Verdict]:
    """Judge a picture of each edit by its answer key."""
    return [
        judge_edit(edits.describe(edit), found)
        for edit, found in zip(asked, judge.detect(pictures), strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
