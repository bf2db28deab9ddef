"""EAGLE: a drafter that continues the target's own features by one decoder layer (arXiv 2401.15077, 2406.16858).

A feature is the target's hidden state after its final norm, what its head reads. Pair j of a stream is the embedding
that enters the target at position j + 1 and the feature of position j; from it the layer guesses the feature of
position j + 1, and the target's head makes a law of the guess. It has the rotary phase of position j + 1 and lies in
the drafter's cache at j.

Shapes: B rows, W columns, D width of the target, R canvases, Q streams of theirs, S slots, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.models.trunk import Attend, Attention, FeedForward, RMSNorm, TrunkSpec


class Layer(nn.Module):
    """Pairs to guessed features: a projection, then attention without a norm before it, then a gated feed-forward."""

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.fc = nn.Linear(2 * spec.dim, spec.dim)
        self.attention = Attention(spec)
        self.ffn_norm = RMSNorm(spec.dim, spec.norm_eps)
        self.feed_forward = FeedForward(spec)

    def forward(self, x_BWD: Tensor, feature_BWD: Tensor, rotary_BW2: Tensor, attend: Attend) -> Tensor:
        z_BWD = self.fc(torch.cat((x_BWD, feature_BWD), -1))
        u_BWD = z_BWD + self.attention(z_BWD, rotary_BW2, 0, attend)
        return u_BWD + self.feed_forward(self.ffn_norm(u_BWD))
