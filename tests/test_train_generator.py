"""Training of the generator on noisy pictures and on contexts with near codes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.models.pictogram import weights as files
from harness.models.pictogram.generator import GPTSpec, load_tokenizer
from harness.models.vq import VQ
from harness.records import UserError
from harness.training import loop as training
from harness.training import train_generator
from harness.training.train_tokenizer import swap_for_near

SET = "pictogram_16"
RECIPE = train_generator.Recipe(noise=0.03, swap=0.1, rate=0.5)


@pytest.fixture(scope="module")
def vq() -> VQ:
    return load_tokenizer(SET)[0]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vq: VQ) -> training.Options:
    """A tiny generator, batches of 4, and the shipped tokenizer's checkpoint."""
    monkeypatch.setitem(train_generator.SPECS, SET, GPTSpec(layers=1, dim=32, heads=2, hidden=32))
    monkeypatch.setattr(training, "compile_if_possible", lambda function: function)
    monkeypatch.setattr(train_generator, "BATCH", 4)
    made = training.Options(SET, cpu_minutes=1e-9, seed=3, work=tmp_path)
    training.write(
        made.checkpoint("tokenizer"),
        {
            "progress": training.Progress().state(),
            "model": files.read_part(SET, "tokenizer")[0],
            "optimisers": [],
            "seed": 0,
        },
    )
    return made


def encoded(options: training.Options, vq: VQ, noise: float) -> torch.Tensor:
    """Codes of the same scenes, whatever the noise."""
    return train_generator.batch(options, random.Random(1), vq.encode, noise=noise)[1]


def test_noise_changes_codes_the_more_the_stronger(options: training.Options, vq: VQ) -> None:
    clean = encoded(options, vq, 0.0)
    assert torch.equal(clean, encoded(options, vq, 0.0))
    shares = [float((encoded(options, vq, sigma) != clean).float().mean()) for sigma in (0.01, 0.1)]
    assert 0 < shares[0] < shares[1]


def test_codes_are_replaced_by_near_ones_and_as_many_as_asked(vq: VQ) -> None:
    codes = torch.arange(512).repeat(60, 1)
    rng = np.random.default_rng(0)
    swapped = swap_for_near(codes, vq, rng, 0.1)
    changed = swapped != codes
    assert float(changed.float().mean()) == pytest.approx(0.1, abs=0.03)
    assert {round(float(share), 1) for share in changed.float().mean(1)} == {0.0, 0.1, 0.2}
    rows = vq.quantize.rows()
    nearest = (rows @ rows.T).topk(6, dim=-1).indices
    is_near = (nearest[codes[changed]] == swapped[changed, None]).any(-1)
    assert bool(is_near.all())
    assert torch.equal(swap_for_near(codes, vq, rng, 0.0), codes)


def test_the_context_is_swapped_and_the_targets_are_not(
    options: training.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss_of_batch = train_generator.loss_of_batch

    def watch_loss(gpt, words, tokens, context):  # type: ignore[no-untyped-def]
        seen.append((tokens, context))
        return loss_of_batch(gpt, words, tokens, context)

    monkeypatch.setattr(train_generator, "loss_of_batch", watch_loss)
    swapped = replace(RECIPE, swap=0.4)
    train_generator.train(options, 1.0, swapped)
    options.checkpoint("generator").unlink()
    train_generator.train(options, 1.0, replace(RECIPE, swap=0.0))
    (tokens, context), (same_tokens, same_context) = seen[0], seen[-1]
    assert torch.equal(tokens, same_tokens)
    assert torch.equal(same_context, same_tokens)
    assert not torch.equal(context, tokens)


def test_a_training_goes_on_by_its_own_recipe_only(options: training.Options) -> None:
    train_generator.train(options, 1.0, RECIPE)
    train_generator.train(options, 1.0, RECIPE)
    with pytest.raises(UserError, match=r"--noise 0.0: .*generator.pt was trained with 0.03"):
        train_generator.train(options, 1.0)
