"""The trunk's products, apart and fused."""

from __future__ import annotations

import pytest
import torch

from harness.models.trunk import Trunk, TrunkSpec, causal

SPEC = TrunkSpec(layers=2, dim=48, heads=3, hidden=72)
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", CLOSE)
@torch.no_grad()
def test_a_fused_trunk_computes_the_same_from_the_same_memory(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    trunk = Trunk(SPEC).to(dtype)
    x_BWD = torch.randn(3, 5, SPEC.dim, dtype=dtype)
    rotary_BW2 = torch.randn(3, 5, SPEC.head_dim // 2, 2)
    apart = trunk(x_BWD, rotary_BW2, causal)
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    trunk.fuse()
    assert (trunk(x_BWD, rotary_BW2, causal) - apart).abs().max() <= CLOSE[
        dtype
    ] * apart.abs().max()
    assert trunk.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())
    trunk.load_state_dict({key: 2 * value for key, value in before.items()})
    for module in (layer.feed_forward for layer in trunk.layers):
        assert torch.equal(module.fused_w1_w3, torch.cat((module.w1.weight, module.w3.weight))), (
            "one memory for both"
        )
