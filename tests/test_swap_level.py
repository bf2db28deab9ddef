"""The test of two runs holds its level: on images drawn from the project's own noise, p is uniform.

Whether two samplers have one distribution for each caption is tested by exchanging their images of
a caption. That is exact if images of other captions, seeds and numbers are drawn independently.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import kstest

from harness.engine.job_state import JobState
from harness.kernels.noise import DRAW, Noise, derive, words
from harness.records import Job, Prompt
from harness.results.stats.distances import swap_test
from harness.results.stats.set_metrics import scale_features

CAPTIONS = 48
STRUCTURES = 6
"""Captions of one structure have one distribution, as many captions of the grammar nearly have."""
TOKENS = 12
VOCABULARY = 16

DeriveKey = Callable[[int, int, int], int]
"""The key of an image: of a seed, the number of its caption, and its own number."""


def derive_own(seed: int, caption: int, image: int) -> int:
    """The key that the engine gives the first canvas of an image."""
    job = Job(Prompt(f"coco/{caption:05d}", f"caption {caption}", "coco"), image)
    return JobState(job, seed=seed, branches=1, reserved_slots=1).derive_key(0)


def draw_features(seeds: int, images: int, derive_key: DeriveKey) -> np.ndarray:
    """Draw images token by token and describe them, [seeds, captions x images, features].

    A token's distribution depends on the one before and on the caption's structure. Features are
    what a caption shares, and the tokens' counts, of which some vary ten times as much as others.
    """
    shape = (seeds, CAPTIONS, images)
    keys = [words(derive_key(*place)) for place in np.ndindex(shape)]
    structure_R = torch.from_numpy(np.indices(shape)[1].ravel() % STRUCTURES)
    rng = np.random.default_rng(0)
    probs_SVV = rng.dirichlet([0.3] * VOCABULARY, (STRUCTURES, VOCABULARY))
    key_R2 = torch.tensor(keys)
    token_R = torch.zeros(len(keys), dtype=torch.int64)
    count_RV = np.zeros((len(keys), VOCABULARY))
    for position in range(TOKENS):
        noise = Noise(key_R2, torch.full((len(keys), 1), position))
        probs_R1V = torch.from_numpy(probs_SVV)[structure_R, token_R].unsqueeze(1)
        token_R = noise.race(DRAW, probs_R1V)[:, 0]
        count_RV[np.arange(len(keys)), token_R.numpy()] += 1
    content_CV = rng.standard_normal((CAPTIONS, VOCABULARY)) * 3
    caption_R = np.indices(shape)[1].ravel()
    described_RV = content_CV[caption_R] + count_RV * np.geomspace(0.3, 3, VOCABULARY)
    return described_RV.reshape(seeds, CAPTIONS * images, VOCABULARY)


def compare_pairs(pairs: int, images: int, derive_key: DeriveKey) -> list[float]:
    """Return p of pairs of equal runs, each pair of two seeds of its own."""
    group_N = np.arange(CAPTIONS).repeat(images)
    p = []
    runs_SND = draw_features(2 * pairs, images, derive_key)
    for x_ND, y_ND in zip(runs_SND[::2], runs_SND[1::2], strict=True):
        pair = scale_features([x_ND, y_ND])
        p.append(swap_test(*pair, group_N=group_N, draws=499).p)
    return p


def test_the_p_of_equal_runs_is_uniform() -> None:
    p = compare_pairs(400, 1, derive_own)
    assert kstest(p, "uniform").pvalue > 0.01
    # 400 tests: 20 and 4 are expected below 5 % and 1 %; more than these have probability 0.001.
    assert sum(one < 0.05 for one in p) <= 34
    assert sum(one < 0.01 for one in p) <= 12


def test_the_p_of_equal_runs_of_several_images_is_uniform() -> None:
    assert kstest(compare_pairs(150, 2, derive_own), "uniform").pvalue > 0.01


def test_noise_that_captions_of_a_run_share_would_be_seen() -> None:
    """Without the caption in the key, images of a run depend on each other: p is far too small."""
    p = compare_pairs(100, 1, lambda seed, caption, image: derive(seed, image, 0))
    assert kstest(p, "uniform").pvalue < 1e-6
    assert sum(one < 0.05 for one in p) > 15


def test_no_two_images_share_noise() -> None:
    """Neighbours in seed, caption, number and candidate have streams without any correlation."""
    keys = []
    for seed, caption, image in np.ndindex(8, 6, 4):
        job = Job(Prompt(f"coco/{caption:05d}", "", "coco"), image)
        state = JobState(job, seed=seed, branches=1, reserved_slots=1)
        keys += [state.derive_key(canvas) for canvas in range(3)]
    assert len(set(keys)) == len(keys) == 576

    key_R2 = torch.tensor([words(key) for key in keys])
    noise = Noise(key_R2, torch.arange(16).expand(len(keys), 16))
    uniform_RN = noise.uniform(DRAW, 64).reshape(len(keys), -1).numpy()
    z_RR = np.corrcoef(uniform_RN) * uniform_RN.shape[1] ** 0.5
    z = z_RR[np.triu_indices(len(keys), 1)]
    # 165,600 pairs: their correlations are those of independent streams, one by one and together.
    assert abs(z).max() < 5.5
    assert abs(np.square(z).mean() - 1) < 0.02
    # A stream is no other's of another position either.
    moved_RN = np.roll(uniform_RN.reshape(len(keys), 16, 64), 1, axis=1).reshape(len(keys), -1)
    z = np.corrcoef(uniform_RN, moved_RN)[: len(keys), len(keys) :] * uniform_RN.shape[1] ** 0.5
    assert abs(z).max() < 5.8
