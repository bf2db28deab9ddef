"""What evaluators make of embeddings and raw outputs: one function each, without a network.

Papers print the same score in different units, and some cut it; a convention is part of a metric's
name. Sources: MLPerf's inference/text_to_image at b66003e1, LANTERN's evaluation at 3a56e451,
ImageReward at c1392c6d, HPSv2 at 866735ec, PickScore at f79607ff, torchmetrics 1.9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.records import UserError

CONVENTIONS = ("cosine", "percent", "clipscore", "torchmetrics")
"""Units of the CLIP score: cosine; times 100; 2.5 times, cut at 0; times 100, the mean cut at 0."""
END = 49407
"""CLIP's token that ends a text."""
LENGTH = 77
"""Tokens that CLIP reads."""

REWARD_MEAN = 0.16717362830052426
REWARD_DEVIATION = 1.0333394966054072
"""ImageReward's raw outputs are standardised by these."""

MLPERF_CLIP = (31.68631873, 31.81331801)
MLPERF_FID = (23.01085758, 23.95007626)
"""What MLPerf accepts of SDXL, both ends included; better is outside, too."""


def cosine(image_ND: np.ndarray, text_ND: np.ndarray) -> np.ndarray:
    """Return the cosine of each image and its text, [N]; nan where an embedding has no length."""
    image_ND = np.asarray(image_ND, dtype=np.float64)
    text_ND = np.asarray(text_ND, dtype=np.float64)
    lengths_N = np.linalg.norm(image_ND, axis=-1) * np.linalg.norm(text_ND, axis=-1)
    products_N = (image_ND * text_ND).sum(-1)
    return np.divide(
        products_N, lengths_N, out=np.full(len(products_N), np.nan), where=lengths_N > 0
    )


def clip_scores(
    image_ND: np.ndarray, text_ND: np.ndarray, convention: str = "cosine"
) -> tuple[np.ndarray, float]:
    """Return the CLIP score of each image [N] in a convention, and the set's mean.

    The mean is nan where one image has no score. Raises UserError for another convention.
    """
    cosine_N = cosine(image_ND, text_ND)
    if convention == "cosine":
        return cosine_N, float(cosine_N.mean())
    if convention == "percent":
        return 100 * cosine_N, float(100 * cosine_N.mean())
    if convention == "clipscore":
        cut_N = 2.5 * np.maximum(cosine_N, 0)
        return cut_N, float(cut_N.mean())
    if convention == "torchmetrics":
        return 100 * cosine_N, float(np.maximum(100 * cosine_N.mean(), 0))
    raise UserError(f"CLIP convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")


def put_prefix(tokens: Sequence[int], prefix: Sequence[int]) -> list[int]:
    """Put tokens behind the start token of a padded row, as LANTERN's evaluation does.

    The row is cut at 77; its last token ends the text unless it is padding.
    """
    row = [tokens[0], *prefix, *tokens[1:]][:LENGTH]
    if row[-1] != 0:
        row[-1] = END
    return row


def image_reward_head(
    feature_ND: np.ndarray, layers: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Return ImageReward's raw outputs [N]: affine layers, without activations between them."""
    x_ND = np.asarray(feature_ND, dtype=np.float64)
    for weight_ED, bias_E in layers:
        x_ND = x_ND @ np.asarray(weight_ED, dtype=np.float64).T + np.asarray(bias_E)
    return x_ND[:, 0]


def standardise_reward(raw_N: np.ndarray) -> np.ndarray:
    """Return ImageReward's scores from its raw outputs."""
    return (np.asarray(raw_N, dtype=np.float64) - REWARD_MEAN) / REWARD_DEVIATION


def pick_scores(
    image_ND: np.ndarray, text_D: np.ndarray, logit_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return PickScore [N] of images of one text, and their probabilities of being picked."""
    texts_ND = np.broadcast_to(np.asarray(text_D, dtype=np.float64), np.shape(image_ND))
    score_N = np.exp(logit_scale) * cosine(image_ND, texts_ND)
    weight_N = np.exp(score_N - score_N.max())
    return score_N, weight_N / weight_N.sum()


def is_inside_mlperf(clip: float, fid: float) -> tuple[bool, bool]:
    """Tell whether CLIP (times 100) and FID are in MLPerf's windows."""
    is_clip = MLPERF_CLIP[0] <= clip <= MLPERF_CLIP[1]
    is_fid = MLPERF_FID[0] <= fid <= MLPERF_FID[1]
    return is_clip, is_fid
