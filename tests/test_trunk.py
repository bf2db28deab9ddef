"""The trunk's feed-forward matrices, apart and fused."""

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
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}

    trunk.fuse()
    difference = (trunk(x_BWD, rotary_BW2, causal) - apart).abs().max()
    assert difference <= CLOSE[dtype] * apart.abs().max()
    after = trunk.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())

    trunk.load_state_dict({name: 2 * tensor for name, tensor in before.items()})
    for layer in trunk.layers:
        module = layer.feed_forward
        apart = torch.cat((module.w1.weight, module.w3.weight))
        assert torch.equal(module.fused_w1_w3, apart), "one memory for both"
