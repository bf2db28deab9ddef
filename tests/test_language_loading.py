"""SimpleAR, Lumina-mGPT, Anole and Emu3 load from files as published, and have their prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import image_decoder_references as references
import pytest
import torch
import yaml
from runs import harness
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from toy import TEXTS, draw, jobs

from harness.check.capacity import measure_capacity
from harness.engine.guidance import Sampling
from harness.models import chameleon_prompt, emu3, emu3_prompt, lumina, simplear, simplear_prompt
from harness.models.cosmos import CosmosSpec
from harness.models.emu3_vq import Emu3VQ
from harness.models.language_checkpoint import CHAMELEON, EMU3, QWEN2, Family
from harness.models.language_model import LanguageModel
from harness.models.raster import raster_of
from harness.models.vq import VQ, VQSpec
from harness.models.words import find_run
from harness.records import UserError
from methods.plain import Plain

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
CONF = Path(__file__).parents[1] / "conf" / "model"
COSMOS = CosmosSpec(levels=(4, 3, 3), width=4, latent=4)
CHAMELEON_VQ = VQSpec(40, 8, 32, (1, 1, 1, 1, 1), 1, 16, unit_length=False, lowest_attention=False)
EMU3_VQ = VQSpec(48, 4, 32, (1, 1, 1, 1), 1, 4, unit_length=False)

NAMES = {
    "simplear": "simplear_0_5b",
    "lumina": "lumina_mgpt_768",
    "anole": "anole",
    "emu3": "emu3_gen",
}
"""A configuration of each kind."""


# --- tiny checkpoints in the published layouts ----------------------------------------------------


def name_chameleon_codes(count: int) -> list[str]:
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    return [f"IMGIMG{str(code).translate(letters)}Z" for code in range(count)]


SPECIAL = {
    "simplear": (["<|t2i|>", "<|i2t|>", "<|soi|>"], []),
    "lumina": (
        ["<racm3:break>", "<eoss>", "<reserved08706>", "<reserved08799>"]
        + [f"<reserved{8800 + n:05d}>" for n in range(4)],
        name_chameleon_codes(CHAMELEON_VQ.codes),
    ),
    "emu3": (
        ["<|extra_200|>", "<|extra_203|>", "<image>", "<|image start|>"],
        [f"<|visual token {code:06d}|>" for code in range(EMU3_VQ.codes)],
    ),
}
SPECIAL["anole"] = SPECIAL["lumina"]
FAMILIES: dict[str, Family] = {
    "simplear": QWEN2,
    "lumina": CHAMELEON,
    "anole": CHAMELEON,
    "emu3": EMU3,
}


def write_tokenizer(kind: str, folder: Path) -> dict[str, int]:
    """A tokenizer of bytes with a model's tokens behind them; returns its vocabulary."""
    special, codes = SPECIAL[kind]
    letters = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", *special])
    tokenizer.add_special_tokens(codes)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab()


def write_language(kind: str, folder: Path, words: int, **more: Any) -> None:
    """A language model of a layer, in float32, under the names of its layout."""
    dim, hidden, heads, groups = 32, 48, 2, 1 if kind == "emu3" else 2
    generator = torch.Generator().manual_seed(1)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    layer = "model.layers.0."
    rows = groups * dim // heads
    state = {
        "model.embed_tokens.weight": made(words, dim),
        "model.norm.weight": made(dim) + 1,
        f"{layer}self_attn.q_proj.weight": made(dim, dim),
        f"{layer}self_attn.k_proj.weight": made(rows, dim),
        f"{layer}self_attn.v_proj.weight": made(rows, dim),
        f"{layer}self_attn.o_proj.weight": made(dim, dim),
        f"{layer}mlp.gate_proj.weight": made(hidden, dim),
        f"{layer}mlp.up_proj.weight": made(hidden, dim),
        f"{layer}mlp.down_proj.weight": made(dim, hidden),
        f"{layer}input_layernorm.weight": made(dim) + 1,
        f"{layer}post_attention_layernorm.weight": made(dim) + 1,
    }
    if kind == "simplear":
        for part, count in (("q", dim), ("k", rows), ("v", rows)):
            state[f"{layer}self_attn.{part}_proj.bias"] = made(count)
    else:
        state["lm_head.weight"] = made(words, dim)
    if kind in ("lumina", "anole"):
        for part in "qk":
            state[f"{layer}self_attn.{part}_norm.weight"] = made(1, dim // heads) + 1
            state[f"{layer}self_attn.{part}_norm.bias"] = made(1, dim // heads)
    config = {
        "model_type": FAMILIES[kind].kinds[-1],
        "vocab_size": words,
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 600,
    }
    if kind == "emu3":
        state = {f"text_model.{name}": tensor for name, tensor in state.items()}
        state |= {f"vqmodel.{name}": tensor for name, tensor in emu3_decoder_state().items()}
        config = {"model_type": "emu3", "text_config": config, "vq_config": EMU3_CONFIG}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, **more}))


EMU3_CONFIG = {
    "codebook_size": EMU3_VQ.codes,
    "embed_dim": 4,
    "latent_channels": 4,
    "base_channels": EMU3_VQ.width,
    "channel_multiplier": list(EMU3_VQ.multipliers),
    "num_res_blocks": EMU3_VQ.blocks,
    "attn_resolutions": [3],
    "temporal_downsample_factor": 4,
}


def emu3_decoder_state() -> dict[str, Tensor]:
    """Random weights of Emu3's decoder under the library's names, temporal kernels included."""
    from harness.models.emu3_vq import library_layout

    vq = Emu3VQ(EMU3_VQ)
    references.spread_out(vq, seed=2)
    layout = library_layout(4, "")
    state = {}
    for name, tensor in vq.state_dict().items():
        stored = layout.stored_name(name)
        if tensor.ndim == 4 and "_proj." in stored:
            tensor = tensor[:, :, 0, 0]
        elif tensor.ndim == 4 and (".conv.weight" in stored and "upsample" not in stored):
            tensor = tensor.unsqueeze(2).repeat(1, 1, 3, 1, 1)
        state[stored] = tensor.contiguous()
    return state


def write_chameleon_tokenizer(folder: Path) -> None:
    vq = VQ(CHAMELEON_VQ)
    references.spread_out(vq, seed=3)
    from harness.models.chameleon_vq import layout

    names = layout(len(CHAMELEON_VQ.multipliers))
    state = {names.stored_name(name): tensor for name, tensor in vq.state_dict().items()}
    torch.save({"state_dict": state}, folder / "vqgan.ckpt")


def write_checkpoint(kind: str, folder: Path) -> Path:
    """All files of a tiny model, in one folder."""
    folder.mkdir(exist_ok=True)
    vocabulary = write_tokenizer(kind, folder)
    if kind == "simplear":
        write_language(kind, folder, len(vocabulary) + COSMOS.codes)
        network = references.CosmosTokenizer(COSMOS.levels, COSMOS.width, COSMOS.latent)
        references.spread_out(network, seed=1)
        save_file(network.state_dict(), folder / "decoder.safetensors")
    elif kind == "emu3":
        write_language(kind, folder, len(vocabulary), vocabulary_map=vocabulary)
    else:
        write_language(kind, folder, len(vocabulary), vocabulary_map=vocabulary)
        write_chameleon_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: write_checkpoint(kind, root / kind) for kind in NAMES}


SMALL: dict[str, dict[str, Any]] = {
    "simplear": {"image": 48, "tokenizer": COSMOS},
    "lumina": {"height": 64, "width": 96},
    "anole": {"height": 48, "width": 64},
    "emu3": {"ratio": "4:3", "area": 1024},
}
"""Options of images of a few codes."""
GRIDS = {"simplear": (3, 3), "lumina": (4, 6), "anole": (3, 4), "emu3": (3, 5)}


def load(kind: str, folder: Path, **options: Any) -> LanguageModel:
    """A tiny model as its configuration makes it, but for what is of another size."""
    config = yaml.safe_load((CONF / f"{NAMES[kind]}.yaml").read_text())
    del config["sampling"]
    loaders = {"simplear": simplear.load, "emu3": emu3.load}
    loader = loaders.get(kind, lumina.load)
    assert config.pop("_target_") == f"{loader.__module__}.load"
    changes = {
        "checkpoint": str(folder),
        "tokenizer_checkpoint": str(folder),
        "size": None,
        "dtype": "float32",
        "max_context": 250,
    }
    made: LanguageModel = loader(**{**config, **changes, **SMALL[kind], **options})
    return made


# --- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_a_published_layout_loads_and_draws(kind: str, checkpoint: Mapping[str, Path]) -> None:
    model = load(kind, checkpoint[kind])
    assert model.name == NAMES[kind]
    assert model.grid == GRIDS[kind]
    sampling = Sampling(scale=3.0)
    drawn = draw(Plain(), jobs(TEXTS[:2]), model=model, sampling=sampling, slots=4)
    raster = raster_of(model)
    pixels_per_code = 8 if kind == "emu3" else 16
    for delivery in drawn.values():
        assert not delivery.error
        assert delivery.image is not None
        rows, columns = model.grid
        assert delivery.image.shape == (rows * pixels_per_code, columns * pixels_per_code, 3)
        assert len(raster.pick_codes(delivery.tokens)) == rows * columns
        assert delivery.image.std() > 1
    assert len({delivery.tokens for delivery in drawn.values()}) > 1


def save_chameleon(folder: Path) -> Any:
    """Save Anole as its conversion has it, by transformers' own class; returns that model."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration
    from transformers import ChameleonVQVAEConfig as VQConfig

    folder.mkdir()
    vocabulary = write_tokenizer("anole", folder)
    write_chameleon_tokenizer(folder)
    vq = VQConfig(
        embed_dim=8, num_embeddings=CHAMELEON_VQ.codes, base_channels=32,
        channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=8, resolution=32,
    )  # fmt: skip
    config = ChameleonConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=600, vocab_size=len(vocabulary),
        vocabulary_map={**vocabulary, "<image>": vocabulary["<racm3:break>"]}, vq_config=vq,
    )  # fmt: skip
    torch.manual_seed(5)
    network = ChameleonForConditionalGeneration(config).eval()
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(torch.randn(tensor.shape) * 0.3)
    network.save_pretrained(folder)
    return network


def test_anole_draws_the_librarys_guided_greedy_codes(tmp_path: Path) -> None:
    """LANTERN's form: u + 3 (f - u) over the codes alone, and nothing is fed between rows."""
    network = save_chameleon(tmp_path / "anole")
    model = load("anole", tmp_path / "anole")
    words = chameleon_prompt.read_words(tmp_path / "anole", network.config.vocab_size)
    assert words is not None
    asked = chameleon_prompt.AnolePrompts(words)
    first = words.vocabulary[name_chameleon_codes(1)[0]]
    assert raster_of(model).forced == ()

    for number, text in enumerate(TEXTS[:2]):
        rows = [list(asked(None)), list(asked(text))]
        codes = []
        for _ in range(model.num_tokens):
            with torch.no_grad():
                null_V, text_V = (
                    network.lm_head(network.model(torch.tensor([row])).last_hidden_state)[0, -1]
                    for row in rows
                )
            guided_V = null_V + 3.0 * (text_V - null_V)
            codes.append(int(guided_V[first : first + CHAMELEON_VQ.codes].argmax()))
            for row in rows:
                row.append(first + codes[-1])
        sampling = Sampling(scale=3.0, temperature=0.0)
        drawn = draw(Plain(), jobs(TEXTS[:2]), model=model, sampling=sampling)  # type: ignore[arg-type]
        assert drawn[f"toy/{number:05d}", 0].tokens == tuple(codes)
        assert len(set(codes)) > 3


@pytest.mark.parametrize("kind", NAMES)
def test_types_are_converted_and_weights_have_a_revision(
    kind: str, checkpoint: Mapping[str, Path], tmp_path: Path
) -> None:
    model = load(kind, checkpoint[kind], dtype="bfloat16", render_dtype="bfloat16")
    assert {tensor.dtype for tensor in model.net.parameters()} == {torch.bfloat16}
    assert model.codebook.dtype == torch.float32
    folder = write_checkpoint(kind, tmp_path / kind)
    assert load(kind, folder).revision == model.revision
    if kind == "simplear":
        state = load_file(folder / "decoder.safetensors")
        save_file({**state, "extra": torch.zeros(1)}, folder / "decoder.safetensors")
        assert load(kind, folder).revision != model.revision


def test_emu3s_original_layout_is_the_librarys(
    checkpoint: Mapping[str, Path], tmp_path: Path
) -> None:
    """The image tokenizer is another repository's there, and the configuration is flat."""
    library = checkpoint["emu3"]
    config = json.loads((library / "config.json").read_text())
    state = load_file(library / "model.safetensors")
    original = tmp_path / "model"
    original.mkdir()
    flat = {**config["text_config"], "model_type": "Emu3"}
    (original / "config.json").write_text(json.dumps(flat))
    (original / "tokenizer.json").write_bytes((library / "tokenizer.json").read_bytes())
    words = {n.removeprefix("text_model."): t for n, t in state.items() if n[:5] == "text_"}
    save_file(words, original / "model.safetensors")

    from harness.models.emu3_vq import library_layout, original_layout

    ours = Emu3VQ(EMU3_VQ).state_dict()
    stored = {}
    for name in ours:
        tensor = state[library_layout(4, "vqmodel.").stored_name(name)]
        if tensor.ndim == 2 and name != "quantize.embedding.weight":
            tensor = tensor[:, :, None, None]
        stored[original_layout(4).stored_name(name)] = tensor.contiguous()
    vision = tmp_path / "vision"
    vision.mkdir()
    renamed = {
        "codebook_size": EMU3_VQ.codes,
        "embed_dim": 4,
        "z_channels": 4,
        "ch": EMU3_VQ.width,
        "ch_mult": list(EMU3_VQ.multipliers),
        "num_res_blocks": EMU3_VQ.blocks,
        "attn_resolutions": [3],
        "temporal_downsample_factor": 4,
    }
    (vision / "config.json").write_text(json.dumps(renamed))
    save_file(stored, vision / "model.safetensors")

    other = load("emu3", original, tokenizer_checkpoint=str(vision))
    model = load("emu3", library)
    tokens = torch.randint(0, 48, (1, model.num_tokens), generator=torch.Generator().manual_seed(1))
    assert torch.equal(other.decode(tokens), model.decode(tokens))
    assert torch.equal(other.context("a cat", ""), model.context("a cat", ""))
    for name, tensor in model.net.state_dict().items():
        assert torch.equal(other.net.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", ["simplear_0_5b", "lumina_mgpt_768", "anole", "emu3_gen"])
def test_a_full_size_model_of_random_weights_fits_a_plan(name: str) -> None:
    capacity = measure_capacity([f"model={name}", "method=plain"])
    parts = {part.name: part for part in capacity.need.parts}
    gigabytes = {
        "simplear_0_5b": 1.163,
        "lumina_mgpt_768": 13.25,
        "anole": 13.25,
        "emu3_gen": 15.14,
    }
    assert parts["weights"].fixed / 1e9 == pytest.approx(gigabytes[name], rel=0.01)


@pytest.mark.parametrize(
    ("name", "option", "text"),
    [
        ("simplear_0_5b", "prefix", simplear_prompt.PREFIX),
        ("simplear_0_5b", "negative", simplear_prompt.NEGATIVE),
        ("simplear_1_5b", "prefix", simplear_prompt.PREFIX),
        ("simplear_1_5b", "negative", simplear_prompt.NEGATIVE),
        ("emu3_gen", "positive", emu3_prompt.POSITIVE),
        ("emu3_gen", "negative", emu3_prompt.NEGATIVE),
    ],
)
def test_configured_words_are_upstreams(name: str, option: str, text: str) -> None:
    assert yaml.safe_load((CONF / f"{name}.yaml").read_text())[option] == text


def test_a_qwen_tokenizer_in_its_older_files_is_read(tmp_path: Path) -> None:
    """Vocabulary and merges apart, and added tokens in the tokenizer's configuration."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "at"]
    vocabulary = {letter: n for n, letter in enumerate(letters)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    assert simplear_prompt.read_words(tmp_path, 296, 36) is None
    (tmp_path / "merges.txt").write_text("#version: 0.2\na t\n")
    flags = dict.fromkeys(("special", "lstrip", "rstrip", "normalized", "single_word"), False)
    added = {
        str(len(letters) + n): {"content": name, **flags}
        for n, name in enumerate(("<|endoftext|>", "<|t2i|>", "<|soi|>"))
    }
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    words = simplear_prompt.read_words(tmp_path, 296, 36)
    assert words is not None
    ids = simplear_prompt.SimpleARPrompts(words, prefix="")("a cat")
    assert ids == [258, *(vocabulary[one] for one in ("a", "Ġ", "c", "at")), 259]
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(UserError, match=r"vocab\.json is no tokenizer"):
        simplear_prompt.read_words(tmp_path, 296, 36)


# --- prompts --------------------------------------------------------------------------------------


class Spelling:
    """A tokenizer of letters, so that ids can be read as a text again."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self.vocabulary = {name: 0x200000 + id for name, id in vocabulary.items()}

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def read(self, ids: list[int]) -> str:
        names = {id: name for name, id in self.vocabulary.items()}
        return "".join(names.get(id) or chr(id) for id in ids)


def test_simplears_prompts() -> None:
    words = Spelling({"<|t2i|>": 1, "<|soi|>": 2})
    asked = simplear_prompt.SimpleARPrompts(words)
    assert words.read(asked("  two cats ")) == (
        "<|t2i|>A highly realistic image of   two cats <|soi|>"
    )
    assert words.read(asked(None)) == (
        "<|t2i|>An image of aerial view, overexposed, low quality, deformation, a poor "
        "composition, bad hands, bad teeth, bad eyes, bad limbs, distortion<|soi|>"
    )
    plain = simplear_prompt.SimpleARPrompts(words, prefix="", negative="")
    assert words.read(plain("a cat")) == "<|t2i|>a cat<|soi|>"
    assert words.read(plain(None)) == "<|t2i|><|soi|>"


def test_luminas_prompts_name_the_width_first_and_the_height_first() -> None:
    names = [f"<reserved{8800 + n:05d}>" for n in range(40)]
    special = ["<s>", "<racm3:break>", "<reserved08706>", "<reserved08799>", *names]
    words = Spelling({name: n for n, name in enumerate(special)})
    asked = chameleon_prompt.LuminaPrompts(words, (64, 32))  # 1024 x 512 pixels
    head = "<racm3:break><reserved08832><reserved08816>"
    assert words.read(asked("two cats")) == (
        "<s>Generate an image of 512x1024 according to the following prompt:\ntwo cats"
        f"<reserved08706>{head}"
    )
    assert words.read(asked(None)) == head


def test_anoles_prompts() -> None:
    words = Spelling({"<s>": 0, "<racm3:break>": 1, "<reserved08706>": 2})
    asked = chameleon_prompt.AnolePrompts(words)
    assert words.read(asked("a cat")) == "<s>a cat<reserved08706><racm3:break>"
    assert words.read(asked(None)) == "<s><racm3:break>"


def test_emu3s_prompts() -> None:
    special = ["<|extra_200|>", "<|extra_203|>", "<|image start|>", "<|image token|>"]
    words = Spelling({name: n for n, name in enumerate(special)})
    asked = emu3_prompt.Emu3Prompts(words, (68, 120))
    assert words.read(asked("a cat")) == (
        "<|extra_203|>a cat masterpiece, film grained, best quality."
        "<|image start|>68*120<|image token|>"
    )
    assert words.read(asked(None)).startswith("<|extra_203|>lowres, bad anatomy, bad hands, text,")
    assert words.read(asked(None)).endswith("username, blurry.<|image start|>68*120<|image token|>")


@pytest.mark.parametrize("name", ["simplear", "lumina", "emu3"])
def test_prompts_are_upstreams(name: str) -> None:
    file = FIXTURES / f"{name}_tiny" / "prompt_templates.json"
    if not file.is_file():
        pytest.skip("the shared parity fixture is not on this machine")
    stated = json.loads(file.read_text())
    special = ["<|t2i|>", "<|soi|>", "<s>", "<racm3:break>", "<reserved08706>", "<reserved08799>"]
    special += ["<|extra_200|>", "<|extra_203|>", "<|image start|>", "<|image token|>"]
    special += [f"<reserved{8800 + n:05d}>" for n in range(40)]
    words = Spelling({name: n for n, name in enumerate(special)})
    if name == "simplear":
        asked = simplear_prompt.SimpleARPrompts(words)
        assert words.read(asked(None)) == stated["negative"]
        for case in stated["conditional"]:
            assert words.read(asked(case["prompt"])) == case["text"]
        return
    for case in stated:
        if name == "lumina":
            grid = (case["height"] // 16, case["width"] // 16)
            ids = chameleon_prompt.LuminaPrompts(words, grid)(case["prompt"])
            assert words.read(ids[1:-3]) == case["text"]
        else:
            width, height = case["ratio"].split(":")
            grid = emu3_prompt.compute_grid((int(width), int(height)), 518_400)
            assert grid == (case["height"], case["width"])
            asks = emu3_prompt.Emu3Prompts(words, grid)
            assert words.read(asks(case["prompt"])) == case["text"]
            assert words.read(asks(None)) == case["negative"]


@pytest.mark.parametrize("kind", NAMES)
def test_ids_are_those_of_the_whole_text(kind: str, checkpoint: Mapping[str, Path]) -> None:
    """Special tokens are put around the words' ids, which the tokenizer itself would find too."""
    texts = {
        "simplear": "<|t2i|>A highly realistic image of a <|i2t|> cat\n é<|soi|>",
        "lumina": "<s>Generate an image of 96x64 according to the following prompt:\n"
        "a <|i2t|> cat\n é<reserved08706><racm3:break><reserved08802><reserved08803>",
        "anole": "<s>a <|i2t|> cat\n é<reserved08706><racm3:break>",
        "emu3": "<|extra_203|>a <|i2t|> cat\n é masterpiece, film grained, best quality."
        "<|image start|>3*5<image>",
    }
    model = load(kind, checkpoint[kind])
    tokenizer = Tokenizer.from_file(str(checkpoint[kind] / "tokenizer.json"))
    ids = tokenizer.encode(texts[kind], add_special_tokens=False).ids
    assert torch.equal(model.context("a <|i2t|> cat\n é", ""), model.embed_words(ids))
    null = model.context(None, "a cat")
    assert torch.equal(null, model.context(None, "another"))


@pytest.mark.parametrize("kind", NAMES)
def test_random_weights_have_prompts_of_realistic_lengths(kind: str) -> None:
    words = {
        "simplear": simplear_prompt.hashed_words(215_672, 64_000),
        "lumina": chameleon_prompt.hashed_words(65_536),
        "anole": chameleon_prompt.hashed_words(65_536),
        "emu3": emu3_prompt.hashed_words(),
    }[kind]
    asked: Any = {
        "simplear": lambda: simplear_prompt.SimpleARPrompts(words),
        "lumina": lambda: chameleon_prompt.LuminaPrompts(words, (48, 48)),
        "anole": lambda: chameleon_prompt.AnolePrompts(words),
        "emu3": lambda: emu3_prompt.Emu3Prompts(words, (90, 90)),
    }[kind]()
    ids = asked("a photo of two cats")
    assert 7 <= len(ids) < 40
    assert len(asked(None)) >= 2
    codes = {
        "simplear": range(151_672, 215_672),
        "lumina": range(4, 8196),
        "anole": range(4, 8196),
        "emu3": range(151_854, 184_622),
    }[kind]
    for one in (*ids, *asked(None)):
        assert one not in codes
        assert 0 <= one < 215_672
    if kind == "lumina":
        assert ids[-3:] == [8197, 8828, 8828]
        assert asked(None) == [8197, 8828, 8828]
    if kind == "anole":
        assert ids[0] == 0
        assert ids[-2:] == [8710, 8197]
        assert asked(None) == [0, 8197]


# --- bad input ------------------------------------------------------------------------------------


def refused(match: str, kind: str, folder: Path, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(kind, folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", NAMES)
def test_bad_options_are_one_line(
    kind: str, checkpoint: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = checkpoint[kind]
    refused("choose published or random", kind, folder, weights="best")
    refused("model.weights=random needs model.size", kind, folder, weights="random")
    refused("model.size=3B: known sizes are", kind, folder, size="3B")
    size = {"simplear": "0.5B", "emu3": "8B"}.get(kind, "7B")
    refused("is 1 layers of width 32 .* as model.size says", kind, folder, size=size)
    refused("choose float32, bfloat16 or float16", kind, folder, dtype="int8")
    refused("choose float32, bfloat16 or float16", kind, folder, render_dtype="int8")
    refused("model.checkpoint=PATH", kind, folder, checkpoint=None)
    refused("there is no such file or folder", kind, folder, checkpoint="nowhere")
    refused("1 to .* fit", kind, folder, max_context=600)
    if kind != "emu3":
        refused(
            "tokenizer: .* set model.tokenizer_checkpoint=PATH",
            kind,
            folder,
            tokenizer_checkpoint=None,
        )
    with pytest.raises(UserError, match=r"a prompt has .* set model\.max_context to"):
        load(kind, folder).context("a cat" * 100, "")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("simplear", {"image": 50}, "model.image=50: must be a multiple of 16"),
        ("lumina", {"height": 50}, "model.height=50: must be a multiple of 16"),
        ("lumina", {"width": 48}, "no size token for 3 columns of codes"),
        ("lumina", {"width": 320}, "no size token for 20 columns of codes"),
        ("anole", {"family": "chameleon"}, "choose lumina or anole"),
        ("emu3", {"ratio": "wide"}, "model.ratio=wide: give width and height"),
        ("emu3", {"ratio": "0:1"}, "model.ratio=0:1: give width and height"),
        ("emu3", {"ratio": "1:500"}, "model.area=1024"),
    ],
)
def test_an_image_of_no_size_is_one_line(
    kind: str, options: dict[str, Any], message: str, checkpoint: Mapping[str, Path]
) -> None:
    refused(message, kind, checkpoint[kind], **options)


@pytest.mark.parametrize("kind", NAMES)
def test_bad_files_are_one_line(kind: str, tmp_path: Path) -> None:
    folder = write_checkpoint(kind, tmp_path / kind)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}

    def spoiled(match: str, name: str, content: bytes | None) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        refused(match, kind, folder)
        (folder / name).write_bytes(files[name])

    weights = files["model.safetensors"]
    for size in (0, 5, len(weights) // 2, len(weights) - 1):
        spoiled("it is damaged, download it again", "model.safetensors", weights[:size])
    spoiled("none of model.safetensors", "model.safetensors", None)
    spoiled("needs its config.json", "config.json", None)
    spoiled("needs its config.json", "config.json", b"{")
    spoiled("no JSON object", "config.json", b"[]")
    spoiled("says model_type 'llama'", "config.json", b'{"model_type": "llama"}')
    spoiled("no tokenizer.json", "tokenizer.json", None)
    spoiled("is no tokenizer", "tokenizer.json", b"{}")
    other = "emu3" if kind != "emu3" else "simplear"
    foreign = write_checkpoint(other, tmp_path / "foreign") / "tokenizer.json"
    spoiled("does not know", "tokenizer.json", foreign.read_bytes())
    if kind == "simplear":
        spoiled("has none of decoder.jit", "decoder.safetensors", None)
    elif kind != "emu3":
        spoiled("has no vqgan.ckpt", "vqgan.ckpt", None)


NO_SUCH_MODEL = "are no trunk|do not share|does not describe|has ids up to 304, the model -1 words"


@pytest.mark.parametrize(
    ("kind", "part", "changes"),
    [
        ("simplear", None, {"num_hidden_layers": 0}),
        ("simplear", None, {"num_attention_heads": 0}),
        ("simplear", None, {"num_attention_heads": 3}),
        ("lumina", None, {"intermediate_size": -1}),
        ("lumina", None, {"vocab_size": -1}),
        ("anole", None, {"text_config": None}),
        ("anole", None, {"hidden_size": "x"}),
        ("emu3", None, {"text_config": 1}),
        ("emu3", None, {"vq_config": None}),
        ("emu3", "text_config", {"num_key_value_heads": 3}),
        ("emu3", "vq_config", {"channel_multiplier": []}),
        ("emu3", "vq_config", {"base_channels": 0}),
        ("emu3", "vq_config", {"base_channels": 10}),
        ("emu3", "vq_config", {"num_res_blocks": -1}),
    ],
)
def test_sizes_that_no_model_has_are_one_line(
    kind: str, part: str | None, changes: dict[str, Any], checkpoint: Mapping[str, Path]
) -> None:
    """None is made of them, nor does anything but a UserError come of it."""
    file = checkpoint[kind] / "config.json"
    whole = file.read_text()
    config = json.loads(whole)
    (config if part is None else config[part]).update(changes)
    file.write_text(json.dumps(config))
    try:
        refused(NO_SUCH_MODEL, kind, checkpoint[kind])
    finally:
        file.write_text(whole)


@pytest.mark.parametrize("kind", NAMES)
def test_a_vocabulary_of_another_model_is_refused(kind: str, tmp_path: Path) -> None:
    folder = write_checkpoint(kind, tmp_path / kind)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if kind == "simplear":
        tokenizer.add_special_tokens(["<|t2v|>"])
        tokenizer.save(str(folder / "tokenizer.json"))
        refused("tokens, so 36 codes would end at|has ids up to", kind, folder)
        return
    vocabulary = config["vocabulary_map"]
    if kind != "emu3":
        first, second = SPECIAL[kind][1][:2]
        swapped = {**vocabulary, first: vocabulary[second], second: vocabulary[first]}
        stated = {**config, "vocabulary_map": swapped}
        (folder / "config.json").write_text(json.dumps(stated))
        refused("do not follow one another", kind, folder)
        moved = {name: number + 1 for name, number in vocabulary.items()}
        (folder / "config.json").write_text(json.dumps({**config, "vocabulary_map": moved}))
        refused("the files are of different models", kind, folder)
        for bad in ({}, [], {"a": "b"}, {"a": True}):
            (folder / "config.json").write_text(json.dumps({**config, "vocabulary_map": bad}))
            refused("no vocabulary_map|which is no id", kind, folder)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.add_special_tokens(["one more"])
    tokenizer.save(str(folder / "tokenizer.json"))
    refused("has ids up to", kind, folder)


def test_a_run_of_ids() -> None:
    path = Path("x")
    assert find_run({"a": 3, "b": 4, "c": 5}, ["a", "b", "c"], path) == range(3, 6)
    with pytest.raises(UserError, match="lacks 2 of 3 image tokens, the first is b"):
        find_run({"a": 3}, ["a", "b", "c"], path)
    with pytest.raises(UserError, match="b has id 6, not 4"):
        find_run({"a": 3, "b": 6}, ["a", "b"], path)


def test_a_checkpoint_on_disk_draws_a_benchmark(
    checkpoint: Mapping[str, Path], tmp_path: Path
) -> None:
    options = {
        "checkpoint": checkpoint["lumina"],
        "tokenizer_checkpoint": checkpoint["lumina"],
        "size": "null",
        "height": 64,
        "width": 64,
        "dtype": "float32",
        "max_context": 250,
        "sampling.top_k": 20,
    }
    given = [f"model.{name}={value}" for name, value in options.items()]
    toy = ("--config-dir", str(Path(__file__).parent / "toy_conf"), "benchmark=toy")
    code, output = harness(
        tmp_path,
        *(*toy, "benchmark.prompts=2", "model=lumina_mgpt_768", *given),
        *("sampler.slots=8", "device=cpu"),
    )
    assert code == 0, output
    (run,) = tmp_path.glob("results/toy/lumina_mgpt_768/*")
    assert len(list(run.rglob("*.png"))) == 4
