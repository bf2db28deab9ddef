"""Draw one token a canvas from the logits of its branches."""

from __future__ import annotations

import torch
from torch import Tensor

from harness import kernels
from harness.engine.guidance import Guide, Sampling, cfg, unguided, warp
from harness.kernels.noise import DRAW, Noise

# ------------------------------------------------------------------ laws and draws


def guided_probs(
    guide: Guide,
    sampling: Sampling,
    logits_RKTV: Tensor,
    scale_R: Tensor,
    place_RT: Tensor | None = None,
) -> Tensor:
    """The laws [R, T, V] that the branches' logits make at places of the image, which guidance may
    depend on.
    """
    probs_RTV = guide(logits_RKTV, scale_R)
    if sampling.interval >= 0:
        assert place_RT is not None
        late_RT1 = (place_RT >= sampling.interval + 2).unsqueeze(-1)
        probs_RTV = torch.where(late_RT1, guide(logits_RKTV, torch.ones_like(scale_R)), probs_RTV)
    return warp(probs_RTV, sampling)


def draw_one(
    guide: Guide,
    sampling: Sampling,
    logits_SV: Tensor,
    slot_RK: Tensor,
    scale_R: Tensor,
    key_R2: Tensor,
    place_R: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token per canvas, int64 [R], and its log-probability, float64 [R]: by a kernel where
    there is one.
    """
    kernel = None
    if sampling.interval < 0 and guide in (cfg, unguided):
        kernel = kernels.guided_draw(logits_SV.device, logits_SV.shape[-1], sampling.top_p)
    if kernel is not None:
        row_RK = slot_RK if guide is cfg else slot_RK[:, :1]
        drawn = kernel(
            logits_SV,
            row_RK,
            scale_R,
            key_R2,
            place_R,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
        )
        return drawn[0], drawn[1]
    place_R1 = place_R.unsqueeze(1)
    probs_R1V = guided_probs(guide, sampling, logits_SV[slot_RK].unsqueeze(2), scale_R, place_R1)
    token_R1 = Noise(key_R2, place_R1).race(DRAW, probs_R1V)
    return token_R1[:, 0], probs_R1V[:, 0].gather(1, token_R1)[:, 0].double().log()
