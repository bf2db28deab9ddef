"""Turn the logits of a canvas's branches into one distribution: guidance, then temperature and
filters.

Shapes: R canvases, K branches (the null branch first, where there is one), T places, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.records import Natural, NotNegative, Positive, Share, UserError

Guide = Callable[[Tensor, Tensor], Tensor]
"""(logits_RKTV, scale_R) -> logits_RTV: combine the branches of a canvas into one prediction."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How logits become a distribution, for target and drafter alike.

    `scale` is the usual guidance scale, null + scale * (text - null); 1 switches guidance off.
    `image_scale` guides by a source image, see `ImageGuide`; 1 switches that off.
    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep everything. `interval` k >= 0 guides the
    first k + 2 tokens only and uses scale 1 for the others (LlamaGen `generate.py`, cfg_interval);
    -1 guides all.

    With an `entropy_gain`, the temperature of a place is multiplied by gain * exp(-H / alpha) +
    theta, where H is the entropy of its distribution at temperature 1, in nats: plain regions are
    drawn hotter, structure cooler (arXiv 2510.09012). `entropy_low` and `entropy_high` bound that
    factor; H is measured behind top-k (LlamaGen), or before with `entropy_full` (Lumina-mGPT).
    Published gain, alpha and theta: 2.5, 3, 0.6 (LlamaGen-XL); 1.5, 2.5, 0.7, in 0.7 to 2, full
    (Lumina-mGPT-7B). Raises UserError for values out of range.
    """

    scale: Positive = 1.0
    image_scale: Positive = 1.0
    temperature: NotNegative = 1.0
    top_k: Natural = 0
    top_p: Share = 1.0
    interval: int = -1
    entropy_gain: float = 0.0
    entropy_alpha: float = 3.0
    entropy_theta: float = 1.0
    entropy_low: float = 0.0
    entropy_high: float = math.inf
    entropy_full: bool = False

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise UserError(
                f"model.sampling.scale={self.scale}: guidance scales start at 1 (no guidance)"
            )
        if not 0 < self.image_scale < math.inf:
            raise UserError(
                f"model.sampling.image_scale={self.image_scale}: must be positive; 1 is no "
                "guidance by the source image"
            )
        if self.temperature < 0:
            raise UserError(
                f"model.sampling.temperature={self.temperature}: must be 0 (greedy) or positive"
            )
        if self.top_k < 0:
            raise UserError(
                f"model.sampling.top_k={self.top_k}: must be 0 (all tokens) or positive"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"model.sampling.top_p={self.top_p}: must be in (0, 1]")
        if self.interval < -1:
            raise UserError(
                f"model.sampling.interval={self.interval}: "
                "must be -1 (guide always) or the last guided step"
            )
        self._expect_entropy()

    @property
    def guides_by_image(self) -> bool:
        """Tell whether a canvas has a branch of its own for the empty image."""
        return self.image_scale != 1

    @property
    def follows_entropy(self) -> bool:
        """Tell whether the temperature of a place depends on its entropy."""
        return self.entropy_gain > 0 or self.entropy_theta != 1

    def _expect_entropy(self) -> None:
        """Raise UserError for settings of the entropy's temperature that cannot be."""
        if not 0 <= self.entropy_gain < math.inf:
            raise UserError(
                f"model.sampling.entropy_gain={self.entropy_gain}: must be 0 (off) or positive"
            )
        for name in ("entropy_alpha", "entropy_theta"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UserError(f"model.sampling.{name}={value}: must be positive")
        if not 0 <= self.entropy_low < self.entropy_high:
            raise UserError(
                f"model.sampling.entropy_low={self.entropy_low}, entropy_high={self.entropy_high}: "
                "must rise from 0"
            )
        if self.follows_entropy and (self.temperature == 0 or self.top_p < 1):
            raise UserError(
                f"model.sampling.temperature={self.temperature:g}, top_p={self.top_p:g}: a "
                "temperature that follows the entropy needs one above 0 and top_p=1; use top_k to "
                "filter"
            )


def unguided(logits_RKTV: Tensor, _scale_R: Tensor) -> Tensor:
    """Return the logits of the first branch as they are: the `Guide` of one branch."""
    return logits_RKTV[:, 0]


def cfg(logits_RKTV: Tensor, scale_R: Tensor) -> Tensor:
    """Apply classifier-free guidance to the branches (null, text): null + scale * (text - null)."""
    null_RTV, text_RTV = logits_RKTV.unbind(1)
    scale_R11 = scale_R.to(null_RTV.dtype)[:, None, None]
    return null_RTV + scale_R11 * (text_RTV - null_RTV)


@dataclass(frozen=True, slots=True)
class ImageGuide:
    """Guide by a source image, too: the `Guide` of branches (empty image, source, ...).

    The first branch sees neither image nor text, the second the image alone, and those from it on
    are what `inner` guides: with (empty, image, image and text) and `cfg` the prediction is
    empty + image_scale * (image - empty) + scale * (text - image) (InstructPix2Pix, arXiv
    2211.09800, eq. 3).
    """

    inner: Guide
    image_scale: float

    def __call__(self, logits_RKTV: Tensor, scale_R: Tensor) -> Tensor:
        empty_RTV = logits_RKTV[:, 0]
        image_RTV = logits_RKTV[:, 1]
        text_part_RTV = self.inner(logits_RKTV[:, 1:], scale_R) - image_RTV
        return empty_RTV + self.image_scale * (image_RTV - empty_RTV) + text_part_RTV


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Turn logits into probabilities over the last axis, as `sampling` says.

    Temperature, top-k, top-p and softmax, in this order; temperature 0 gives all the mass to the
    likeliest token. Where a logit is no number or infinitely large, all probabilities are NaN.
    """
    if sampling.temperature == 0:
        probs = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        is_bad = (logits.isnan() | logits.isposinf()).any(-1, keepdim=True)
        return probs.masked_fill(is_bad, torch.nan)
    if sampling.follows_entropy:
        return _warp_by_entropy(logits, sampling)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _mask_below_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = _mask_outside_top_p(logits, sampling.top_p)
    return logits.softmax(-1)


def _warp_by_entropy(logits: Tensor, sampling: Sampling) -> Tensor:
    """Do as `warp`, with a temperature that follows the entropy of each place."""
    kept = logits
    if 0 < sampling.top_k < logits.shape[-1]:
        kept = _mask_below_top_k(logits, sampling.top_k)
    measured = logits if sampling.entropy_full else kept
    factor = temperature_of_entropy(measure_entropy(measured.softmax(-1)), sampling)
    divisor = (sampling.temperature * factor).to(logits.dtype).unsqueeze(-1)
    return (kept / divisor).softmax(-1)


def measure_entropy(probs: Tensor) -> Tensor:
    """Return the entropy over the last axis in nats, in float64."""
    return torch.special.entr(probs.double()).sum(-1)


def temperature_of_entropy(entropy: Tensor, sampling: Sampling) -> Tensor:
    """Return the factor gain * exp(-H / alpha) + theta, within its bounds."""
    decay = torch.exp(-entropy / sampling.entropy_alpha)
    factor = sampling.entropy_gain * decay + sampling.entropy_theta
    return factor.clamp(sampling.entropy_low, sampling.entropy_high)


def _mask_below_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Mask all logits below the k-th largest with -inf; ties at the k-th survive."""
    largest = logits.topk(top_k, dim=-1, sorted=False).values
    kth = largest.amin(-1, keepdim=True)
    return logits.masked_fill(logits < kth, -torch.inf)


def _mask_outside_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Mask with -inf all but the smallest set of likeliest tokens whose mass exceeds `top_p`.

    The token that crosses the bound is kept (LlamaGen `generate.py`, top_k_top_p_filtering).
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
    mass_before[..., 0] = 0.0
    nothing = torch.zeros_like(logits, dtype=torch.bool)
    dropped = nothing.scatter(-1, order, mass_before > top_p)
    return logits.masked_fill(dropped, -torch.inf)
