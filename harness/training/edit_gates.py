"""Gates of an embedded editor: edits are made, the rest is kept, and choosing among four helps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from harness.judges.pictogram_edit import PictogramEditReward
from harness.models.pictogram import edits
from harness.models.pictogram import weights as files
from harness.models.pictogram.detector import Detector, read_box_colors
from harness.models.pictogram.editor import PART, PictogramEditor
from harness.models.pictogram.edits import Edit
from harness.results.gates import Gate
from harness.results.stats import macro_mean, paired_difference
from harness.training.samples import pick_best, tabulate
from harness.training.train_editor import SCALE, draw_edits, judge_pictures

IMAGES = 4
"""Images of each edit: one group for Best-of-4."""


def measure_editor(weights: str, total: int) -> Iterator[Gate]:
    """Measure the editor of a weight set on the first `total` edits of its benchmark."""
    editor = PictogramEditor(weights)
    judge, _ = Detector.load(weights, "judge")
    asked = edits.generate_edits(editor.classes, total, 0, read_box_colors)
    yield from _measure_judge(editor, judge, asked)
    yield from _measure_samples(weights, editor, judge, asked)
    size = (files.find_set(weights) / f"{PART}.safetensors").stat().st_size
    yield Gate("editor, MB", size / 1e6, most=6)


def _measure_judge(
    editor: PictogramEditor, judge: Detector, asked: Sequence[Edit]
) -> Iterator[Gate]:
    """Measure what the judge says of true edits and of untouched sources, both reconstructed."""
    shares = []
    for scenes in ([edit.target for edit in asked], [edit.source for edit in asked]):
        pictures = [editor.decode(editor.encode(scene.draw()[0]))[0].numpy() for scene in scenes]
        verdicts = judge_pictures(judge, asked, pictures)
        shares.append(float(np.mean([verdict.correct for verdict in verdicts])))
    yield Gate("edits: true ones accepted", shares[0], least=0.97)
    yield Gate("edits: untouched sources accepted", shares[1], most=0.02)


def _measure_samples(
    weights: str, editor: PictogramEditor, judge: Detector, asked: Sequence[Edit]
) -> Iterator[Gate]:
    """Measure plain samples, what choosing among them gains, and what guidance does."""
    # 1. Plain samples.
    kinds = [edit.kind for edit in asked]
    picture_EI = draw_edits(editor, asked, IMAGES, SCALE)
    repeated = [edit for edit in asked for _ in range(IMAGES)]
    pictures = [picture for row in picture_EI for picture in row]
    verdicts = judge_pictures(judge, repeated, pictures)
    shape = (len(asked), IMAGES)
    done_EI = np.array([verdict.done for verdict in verdicts]).reshape(shape)
    kept_EI = np.array([verdict.kept for verdict in verdicts]).reshape(shape)
    right_EI = done_EI & kept_EI
    plain = tabulate(kinds, right_EI)
    yield Gate("edits: done", macro_mean(tabulate(kinds, done_EI)))
    yield Gate("edits: kept", macro_mean(tabulate(kinds, kept_EI)))
    yield Gate("edits: done and kept", macro_mean(plain), least=0.20)
    for kind, share in plain.groupby("category")["value"].mean().items():
        yield Gate(f"edits: done and kept: {kind}", float(share))

    # 2. The best of four by the reward, and the best that any reward could choose.
    reward = PictogramEditReward(weights)
    sources = [edit.source.draw()[0] for edit in repeated]
    scores = reward([edit.text for edit in repeated], pictures, sources)
    reward_EI = np.array(scores, float).reshape(shape)
    best = tabulate(kinds, pick_best(right_EI, reward_EI, IMAGES))
    gain, low, _ = paired_difference(best, plain)
    yield Gate(f"edits: best of {IMAGES} by reward: gain", gain, least=0.10)
    yield Gate(f"edits: best of {IMAGES}: 95 % from", low, least=0)
    yield Gate(f"edits: oracle of {IMAGES}", macro_mean(tabulate(kinds, right_EI.max(1)[:, None])))

    # 3. The same without guidance.
    unguided = draw_edits(editor, asked, 1, 1.0)[:, 0]
    right_E = np.array([one.correct for one in judge_pictures(judge, asked, list(unguided))])
    loss = macro_mean(plain) - macro_mean(tabulate(kinds, right_E[:, None]))
    yield Gate(f"edits: guidance {SCALE:g} against 1", loss, least=0)
