"""The trunk's matrices as they are loaded, and as inference multiplies by them."""

from __future__ import annotations

import pytest
import torch

from harness.models.linear import Linear, can_pack
from harness.models.trunk import RMSNorm, Rotation, Trunk, TrunkSpec, causal, prepare, rotate

SPEC = TrunkSpec(layers=2, dim=48, heads=3, hidden=72)
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("dtype", CLOSE)
@torch.no_grad()
def test_a_fused_trunk_computes_the_same_from_the_same_memory(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    trunk = Trunk(SPEC).to(dtype)
    x_BWD = torch.randn(3, 5, SPEC.dim, dtype=dtype)
    rotary_BW2 = torch.randn(3, 5, SPEC.head_dim // 2, 2)
    apart = trunk(x_BWD, rotary_BW2, causal)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}

    prepare(trunk)
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


needs_packing = pytest.mark.skipif(
    not can_pack(torch.zeros(1, dtype=torch.bfloat16)), reason="oneDNN multiplies no bfloat16 here"
)


@needs_packing
@pytest.mark.parametrize("rows", [2, 3, 16, 33])
@torch.no_grad()
def test_a_packed_trunk_computes_the_same_bits_from_the_same_weights(rows: int) -> None:
    torch.manual_seed(0)
    trunk = Trunk(SPEC).bfloat16()
    x_BWD = torch.randn(rows, 1, SPEC.dim).bfloat16()
    rotary_BW2 = torch.randn(rows, 1, SPEC.head_dim // 2, 2)
    plain = trunk(x_BWD, rotary_BW2, causal)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    held = sum(parameter.nbytes for parameter in trunk.parameters())

    prepare(trunk)
    assert torch.equal(trunk(x_BWD, rotary_BW2, causal), plain)
    after = trunk.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.shape == before[name].shape
        whole = tensor.to_dense() if tensor.is_mkldnn else tensor
        assert torch.equal(whole, before[name])
    assert all(part.weight.is_mkldnn for part in trunk.modules() if isinstance(part, Linear))
    assert sum(tensor.nbytes for tensor in (*trunk.parameters(), *trunk.buffers())) == held


@needs_packing
@pytest.mark.parametrize("rows", [2, 5, 16, 40])
@torch.no_grad()
def test_a_packed_product_treats_its_rows_alike(rows: int) -> None:
    """A row has the same bits at each index, and whatever the other rows are."""
    torch.manual_seed(0)
    layer = Linear(96, 160, bias=False).bfloat16()
    layer.pack()
    row_1K = torch.randn(1, 96).bfloat16()
    expected = layer(row_1K.expand(rows, -1).contiguous())
    assert torch.equal(expected, expected[:1].expand(rows, -1))
    for index in range(rows):
        x_RK = torch.randn(rows, 96).bfloat16()
        x_RK[index] = row_1K
        assert torch.equal(layer(x_RK)[index], expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pairs_are_rotated_as_llamagen_does(dtype: torch.dtype) -> None:
    """Bit by bit, wherever the pair stands: no product is fused with a sum."""
    torch.manual_seed(0)
    x_BHWd = torch.randn(3, 2, 5, 12).to(dtype)
    rotary_BW2 = torch.randn(3, 5, 6, 2)
    cos, sin = rotary_BW2.unsqueeze(1).unbind(-1)
    even, odd = (
        x_BHWd.to(torch.promote_types(dtype, torch.float32)).unflatten(-1, (-1, 2)).unbind(-1)
    )
    pairs = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    assert torch.equal(rotate(x_BHWd, Rotation.of(rotary_BW2)), pairs.flatten(-2).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_norm_is_cast_back_before_the_weight(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(48, 1e-5).to(dtype)
    norm.weight.data.normal_()
    x = (3 * torch.randn(5, 1, 48)).to(dtype)
    wide = x.to(torch.promote_types(dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    assert torch.equal(norm(x), normed.to(dtype) * norm.weight)
