"""Language models that draw images: parity with originals and transformers, loading, grouping."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_language import TRUNK, Greys, HashedPrompts, tiny, to_levels
from torch import Tensor

from harness.check.originals import compare_with_original
from harness.engine.memory_need import count_weights, estimate_need
from harness.models.kv_cache import KVCache, TreeMask
from harness.models.language_checkpoint import (
    CHAMELEON,
    EMU3,
    QWEN2,
    Family,
    load_net,
    prefix_of,
    read_spec,
)
from harness.models.language_model import (
    ImageTokenizer,
    ImageWords,
    LanguageModel,
    LanguageNet,
    LanguageSpec,
)
from harness.models.trunk import Trunk, TrunkSpec, causal, running_rotary, to_adjacent_pairs
from harness.parity.fixture import Fixture
from harness.records import UserError

FIXTURES = Path(__file__).parent.parent.parent / "shared" / "fixtures"
CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 90,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
IMAGE = ImageWords(40, 50)
CODES = slice(40, 90)


# ------------------------------------------------------------------ originals


@pytest.mark.parametrize(
    "name", [pytest.param("simplear_tiny", marks=pytest.mark.long), "lumina_tiny", "emu3_tiny"]
)
def test_a_fixture_is_met(name: str) -> None:
    """Logits, laws, what is fed and drawn where, greedy codes by the sampler, and pixels."""
    folder = FIXTURES / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    wrong = [str(one) for one in compare_with_original(Fixture(folder), CPU) if not one.passed]
    assert wrong == []


# ------------------------------------------------------------------ transformers' classes


def qwen2() -> tuple[Any, Any]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, rope_theta=1e6, tie_word_embeddings=True))
    return model, lambda ids: model(ids).logits


def chameleon() -> tuple[Any, Any]:
    """Its head masks image tokens, so it is called by hand."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration
    from transformers import ChameleonVQVAEConfig as VQConfig

    vq = VQConfig(
        embed_dim=8, num_embeddings=50, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, latent_channels=8, resolution=32,
    )  # fmt: skip
    names = {f"w{n}": n for n in range(39)} | {"<image>": 39}
    for code in range(50):
        letters = "".join(chr(ord("A") + int(digit)) for digit in str(code))
        names[f"IMGIMG{letters}Z"] = 40 + code
    config = ChameleonConfig(**SIZES, vq_config=vq, vocabulary_map=names)
    model = ChameleonForConditionalGeneration(config)
    return model, lambda ids: model.lm_head(model.model(ids).last_hidden_state)


def emu3() -> tuple[Any, Any]:
    from transformers import Emu3ForCausalLM
    from transformers.models.emu3.configuration_emu3 import Emu3TextConfig

    model = Emu3ForCausalLM(Emu3TextConfig(**SIZES, rope_parameters={
        "rope_type": "default", "rope_theta": 1e6,
    }))  # fmt: skip
    return model, lambda ids: model(ids).logits


CASES = {"qwen2": (qwen2, QWEN2), "chameleon": (chameleon, CHAMELEON), "emu3": (emu3, EMU3)}


@pytest.mark.parametrize("name", CASES)
def test_a_trunk_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    """Saved by transformers, read by us: the same logits, biases and norms of heads included."""
    make, family = CASES[name]
    torch.manual_seed(0)
    original, compute = make()
    original.eval()
    for tensor in original.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape) * 0.3)
    original.save_pretrained(tmp_path)
    if name == "emu3":
        set_config(tmp_path, model_type="emu3")
    ids = torch.tensor([[3, 1, 7, 60, 45, 89, 40]])
    with torch.no_grad():
        expected = compute(ids)[..., CODES]
        assert float(expected.std()) > 0.3
        net, words, spec = read(tmp_path, family)
        found = run(net, spec, words(ids))
        assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()
        assert torch.equal(net.image_words.weight, words.weight[CODES])


def set_config(folder: Path, **changes: object) -> None:
    """Change entries of a configuration."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | changes))


def read(folder: Path, family: Family, image: ImageWords = IMAGE) -> tuple[Any, Any, LanguageSpec]:
    config = json.loads((folder / "config.json").read_text())
    spec = read_spec(folder, config, family)
    prefix = prefix_of(config)
    net, words = load_net(folder, spec, image, prefix=prefix, dtype=torch.float32, device=CPU)
    return net, words, spec


def run(net: LanguageNet, spec: LanguageSpec, x_BWD: Tensor) -> Tensor:
    """Logits of a whole sequence, without a cache."""
    positions = torch.arange(x_BWD.shape[1]).unsqueeze(0)
    rotary = running_rotary(positions, spec.trunk.head_dim, spec.rope_base)
    return net.head(net.trunk(x_BWD, rotary, causal))


# ------------------------------------------------------------------ what is refused


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, _ = qwen2()
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "model_type 'llama'; Qwen2 has qwen2"),
        ({"use_sliding_window": True}, "has a use_sliding_window that is not supported"),
        ({"rope_scaling": {"type": "yarn"}}, "has a rope_scaling that is not supported"),
        ({"hidden_act": "gelu"}, "has a hidden_act that is not supported"),
        ({"num_key_value_heads": 3}, "4 query heads do not share 3 heads"),
        ({"hidden_size": "wide"}, "does not describe a language model"),
        (
            {"vocab_size": 91},
            r"model.embed_tokens.weight is \(90, 32\), the model needs \(91, 32\)",
        ),
    ],
)
def test_another_models_configuration_is_refused(
    saved: Path, changes: dict[str, object], said: str
) -> None:
    set_config(saved, **changes)
    with pytest.raises(UserError, match=said):
        read(saved, QWEN2)


def test_image_tokens_outside_the_vocabulary_are_refused(saved: Path) -> None:
    with pytest.raises(UserError, match="image tokens 41 to 90 are not among the model's 90 words"):
        read(saved, QWEN2, ImageWords(41, 50))


def test_a_missing_tensor_is_named_as_the_checkpoint_would(saved: Path) -> None:
    change_weights(saved, lambda state: state.pop("model.layers.1.self_attn.k_proj.bias"))
    with pytest.raises(UserError, match=r"lacks tensor model\.layers\.1\.self_attn\.k_proj\.bias"):
        read(saved, QWEN2)


def test_an_unknown_tensor_is_reported(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_weights(saved, lambda state: state.update(other=torch.zeros(2)))
    read(saved, QWEN2)
    assert "1 tensors are not known and not used, the first is other" in caplog.text


def test_a_head_of_its_own_is_taken_where_there_is_one(saved: Path) -> None:
    head = torch.randn(90, 32)
    change_weights(saved, lambda state: state.update({"lm_head.weight": head}))
    net, words, _ = read(saved, QWEN2)
    assert torch.equal(net.head.weight, head[CODES])
    assert not torch.equal(net.head.weight, words.weight[CODES])


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    state = dict(load_file(file))
    change(state)
    save_file(state, file, {"format": "pt"})


@pytest.mark.parametrize(("max_context", "said"), [(0, "1 to 184 fit"), (185, "1 to 184 fit")])
def test_prompts_fit_into_the_positions_that_a_model_is_for(max_context: int, said: str) -> None:
    model = tiny("simplear")
    with pytest.raises(UserError, match=said):
        rebuild(model, max_context)


def test_a_prompt_that_is_too_long_is_refused() -> None:
    model = rebuild(tiny("simplear"), 4)
    with pytest.raises(UserError, match=r"the null prompt has 5 positions: set model.max_context"):
        model.context(None, "a")
    assert len(model.context("a b c", "")) == 4


def rebuild(model: LanguageModel, max_context: int) -> LanguageModel:
    return LanguageModel(
        model.net,
        model.words,
        ImageTokenizer(Greys(), model.codebook, to_levels),
        HashedPrompts(),
        spec=model.spec,
        image=ImageWords(20, 32),
        grid=(4, 4),
        name="tiny",
        revision="random",
        max_context=max_context,
        dtype=torch.float32,
        device="cpu",
    )


# ------------------------------------------------------------------ grouped queries


GROUPED = replace(TRUNK, groups=2)


def spread(spec: TrunkSpec) -> tuple[Trunk, Trunk]:
    """A trunk with grouped queries, and the same with a copy of keys and values for each head."""
    torch.manual_seed(1)
    grouped = Trunk(spec)
    whole = Trunk(replace(spec, groups=None))
    state = dict(grouped.state_dict())
    for name, rows in grouped.state_dict().items():
        if "wqkv" in name:
            q, k, v = rows.unflatten(0, (-1, spec.head_dim)).split((4, 2, 2))
            state[name] = torch.cat((q, *(one.repeat_interleave(2, 0) for one in (k, v)))).flatten(
                0, 1
            )
    whole.load_state_dict(state)
    return grouped, whole


def attend_cached(trunk: Trunk, x_BWD: Tensor, pos_BW: Tensor, mask: TreeMask | None) -> Tensor:
    cache = KVCache(trunk.spec, 3, 20, torch.float32, CPU)
    rotary = running_rotary(pos_BW, trunk.spec.head_dim)
    first = trunk(x_BWD, rotary, cache.attend_all(pos_BW))
    return trunk(first, rotary, cache.attend_all(pos_BW + 5, mask))


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_grouped_queries_see_the_keys_of_their_group(bias: bool) -> None:
    """Folding groups into the width is the same as a copy of keys and values for each head."""
    grouped, whole = spread(replace(GROUPED, bias=bias))
    x_BWD = torch.randn(3, 5, 32)
    pos_BW = torch.arange(5).expand(3, -1)
    sees_BWG = torch.eye(5, dtype=torch.bool).expand(3, -1, -1)
    mask = TreeMask(torch.full((3,), 5), sees_BWG)
    for one in (None, mask):
        found = attend_cached(grouped, x_BWD, pos_BW, one)
        assert torch.allclose(found, attend_cached(whole, x_BWD, pos_BW, one), atol=1e-5)
    rotary = running_rotary(pos_BW, 8)
    assert torch.allclose(grouped(x_BWD, rotary, causal), whole(x_BWD, rotary, causal), atol=1e-5)


@torch.no_grad()
def test_a_cache_of_groups_is_smaller() -> None:
    whole = KVCache(TRUNK, 2, 30, torch.float32, CPU)
    assert 2 * KVCache(GROUPED, 2, 30, torch.float32, CPU).slot_bytes == whole.slot_bytes
    need = estimate_need(tiny("emu3"), tokens_per_step=1, prefill=(2, 4), render_batch=1)
    more = estimate_need(tiny("lumina"), tokens_per_step=1, prefill=(2, 4), render_batch=1)
    assert need.per_slot < more.per_slot


def test_a_word_table_on_another_device_takes_nothing_of_the_models() -> None:
    model = tiny("simplear")
    table = model.words.weight.nbytes
    on_cpu = count_weights(model)
    model.words.to("meta")
    assert count_weights(model) == on_cpu - table
    model.device = torch.device("meta")
    assert count_weights(model) == table


def test_the_permutation_of_rotary_pairs_moves_biases_and_norms_alike() -> None:
    weight = torch.randn(16, 5)
    bias = weight[:, 0].clone()
    assert torch.equal(to_adjacent_pairs(weight, 2)[:, 0], to_adjacent_pairs(bias, 2))
    assert to_adjacent_pairs(torch.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
