"""Only finite numbers: an image whose numbers are not is a failed one, and spoils no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import TEXTS, PixelSum, ToyModel, jobs

from harness.drafters.jacobi import Jacobi
from harness.drafters.model import DraftModel
from harness.engine.draft_trees import Proactive
from harness.engine.guidance import Sampling, warp
from harness.engine.method_spec import MethodSpec
from harness.engine.rendering import Renderer
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.models import checkpoint
from harness.records import NotFiniteError, UserError
from methods.best_of_n import BestOfN
from methods.pjd import PJD
from methods.plain import Plain
from methods.scalingar import ScalingAR
from methods.sjd import SJD
from methods.speculative import Speculative
from methods.zipar import ZipAR

BAD = TEXTS[1]
"""The prompt whose logits are bad."""
METHODS: dict[str, Callable[[], object]] = {
    "plain": Plain,
    "best of n": lambda: BestOfN(2, PixelSum()),
    "scalingar": lambda: ScalingAR(2),
    "speculative": lambda: Speculative(DraftModel(lambda device="cpu": ToyModel()), 3),
    "sjd": lambda: SJD(Jacobi(), 4),
    "sjd_pac": lambda: Speculative(Jacobi("uniform", "maximal"), Proactive(2, 2, 6)),
    "zipar": lambda: ZipAR(2, 3),
    "pjd": lambda: PJD(Jacobi("random", "maximal"), 2, 3, 3),
}


class PoisonedModel(ToyModel):
    """The toy, whose features of one prompt are no numbers."""

    def context(self, text: str | None, like: str) -> Tensor:
        context_PD = super().context(text, like)
        return context_PD * torch.nan if text == BAD else context_PD


def draw(model: ToyModel, method: object, sampling: Sampling, slots: int) -> dict[str, Delivery]:
    """Draw an image of each of four prompts, two at a time."""
    spec = MethodSpec.of(method)
    for _, part in spec.parts:
        if hasattr(part, "expect_target"):
            part.expect_target(model)
    sampler = Sampler(model, sampling, slots=slots, **spec.sampler_sizes())
    done: dict[str, Delivery] = {}
    scheduler = Scheduler(method, sampler, seed=0)
    scheduler.run(jobs(TEXTS[:4]), lambda one: done.update({one.job.prompt.text: one}))
    assert sampler.free == slots
    return done


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_one_image_with_bad_probabilities_fails_alone(name: str, temperature: float) -> None:
    """The others, which take its slots afterwards, are what they are without it."""
    make = METHODS[name]
    sampling = Sampling(scale=2.0, temperature=temperature)
    slots = 2 * MethodSpec.of(make()).slots
    good = draw(ToyModel(), make(), sampling, slots)
    found = draw(PoisonedModel(), make(), sampling, slots)
    assert "probabilities are not finite at token" in found[BAD].error
    assert found[BAD].image is None
    for text in set(good) - {BAD}:
        assert not found[text].error
        assert found[text].tokens == good[text].tokens


def test_a_temperature_that_no_number_survives_fails_every_image() -> None:
    model = ToyModel(dtype=torch.float32)
    found = draw(model, Plain(), Sampling(scale=2.0, temperature=1e-39), 4)
    for delivery in found.values():
        assert "not finite at token 0 (model.sampling.temperature=1e-39, scale=2, float32)" in (
            delivery.error
        )


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.0), Sampling(top_k=3), Sampling(top_p=0.5)],
    ids=["plain", "greedy", "top_k", "top_p"],
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_probabilities_of_bad_logits_are_no_numbers(sampling: Sampling, bad: float) -> None:
    logits_RV = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    logits_RV[0, 3] = bad
    logits_RV[1, 3] = -torch.inf  # a token that cannot be drawn is none of these
    probs_RV = warp(logits_RV, sampling)
    assert probs_RV[0].isnan().all()
    assert not probs_RV[1].isnan().any()


def test_pixels_that_are_not_finite_fail_their_image_alone() -> None:
    class Dark(ToyModel):
        """Its decoder overflows for images that begin with token 1."""

        def pixels(self, token_BN: Tensor) -> Tensor:
            x_B3HW = torch.zeros(len(token_BN), 3, 2, 2)
            return x_B3HW.masked_fill((token_BN[:, 0] == 1)[:, None, None, None], torch.nan)

        def decode(self, token_BN: Tensor) -> Tensor:
            from harness.models.vq import to_uint8

            return to_uint8(self.pixels(token_BN))

    good, bad = Renderer(Dark(), 1).decode([[0]])[0], Renderer(Dark(), 1).decode([[1]])[0]
    assert good.image().dtype == np.uint8
    with pytest.raises(NotFiniteError, match="pixels are not finite"):
        bad.image()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (torch.tensor([1.0, torch.nan]), "not finite"),
        (torch.tensor([1.0, torch.inf], dtype=torch.float16), "not finite"),
        (torch.tensor([1, 2]), "no floating-point numbers"),
    ],
)
def test_weights_are_checked_when_they_are_loaded(value: Tensor, problem: str) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(UserError, match=rf"weights\.pt: tensor weight .*{problem}"):
        checkpoint.fill(module, {"weight": value}, Path("weights.pt"))
    checkpoint.fill(module, {"weight": torch.ones(2, dtype=torch.bfloat16)}, Path("weights.pt"))
