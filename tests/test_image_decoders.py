"""Decoders of Cosmos, Chameleon and Emu3 compute what the originals do; bad files are one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_decoder_references as references
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.models import chameleon_vq, checkpoint, cosmos, emu3_vq
from harness.models.cosmos import CosmosSpec
from harness.models.torchscript import read_torchscript
from harness.models.vq import MISSING, VQ, VQSpec, round_to_uint8
from harness.records import UserError

NONE_OF_COSMOS = "lacks 172 of 172 tensors"
COSMOS = CosmosSpec(levels=(4, 3, 3), width=4, latent=4)
CHAMELEON = VQSpec(40, 8, 32, (1, 2, 1), 1, 16, unit_length=False, lowest_attention=False)
EMU3 = VQSpec(48, 4, 32, (1, 2), 1, 4, unit_length=False)
GRID = (2, 3)


def some_codes(count: int, rows: int = 2) -> Tensor:
    """Codes of images of `GRID`."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, count, (rows, GRID[0] * GRID[1]), generator=generator)


def expect_close(got: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.05
    torch.testing.assert_close(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


# --- Cosmos ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, references.CosmosTokenizer]:
    """A TorchScript archive of the network in three dimensions, in bfloat16 as the released one."""
    network = references.CosmosTokenizer(COSMOS.levels, COSMOS.width, COSMOS.latent).eval()
    references.spread_out(network, seed=1)
    network.bfloat16()
    traced = torch.jit.trace(network, torch.zeros(1, 3, 1, 2, 3, dtype=torch.bfloat16))
    folder = tmp_path_factory.mktemp("cosmos")
    torch.jit.save(traced, str(folder / "decoder.jit"))
    return folder, network.float()


def test_tensors_of_an_archive_are_those_that_torch_wrote(
    archive: tuple[Path, references.CosmosTokenizer],
) -> None:
    folder, network = archive
    read = read_torchscript(folder / "decoder.jit")
    stored = network.state_dict()
    assert read.keys() == stored.keys()
    for name, tensor in read.items():
        assert torch.equal(tensor.to(stored[name].dtype), stored[name]), name
        is_number = stored[name].is_floating_point()
        assert tensor.dtype == (torch.bfloat16 if is_number else torch.int64)


def test_a_scripted_module_of_all_types_is_read(tmp_path: Path) -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.arange(24.0).view(4, 6)
            self.register_buffer("turned", base.t())
            self.register_buffer("cut", base[1:3, 2:])
            self.register_buffer("empty", torch.zeros(0, 3))
            for dtype in (torch.float64, torch.float16, torch.int32, torch.uint8, torch.bool):
                self.register_buffer(str(dtype)[6:], torch.tensor([1, 0, 1]).to(dtype))
            self.sizes = [1, 2, 3]
            self.names = ["a", "b"]
            self.shares = [0.5]
            self.table = {"a": 1}

        def forward(self, x: Tensor) -> Tensor:
            return x + self.sizes[0] + self.shares[0] + len(self.names) + self.table["a"]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Part(), Part()])
            self.again = self.parts[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.parts[1](self.parts[0](x)))

    whole = Whole()
    torch.jit.save(torch.jit.script(whole), str(tmp_path / "whole.jit"))
    read = read_torchscript(tmp_path / "whole.jit")
    assert read.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


@torch.no_grad()
def test_cosmos_in_two_dimensions_is_cosmos_in_three(
    archive: tuple[Path, references.CosmosTokenizer],
) -> None:
    folder, network = archive
    decoder = cosmos.load(folder, COSMOS)
    codes = some_codes(COSMOS.codes)
    z = decoder.codebook[codes].unflatten(1, GRID).permute(0, 3, 1, 2)
    expected = network(z.unsqueeze(2))
    assert expected.shape == (2, 3, 1, 32, 48)
    expect_close(decoder.decode(codes, GRID), expected.squeeze(2))


def test_cosmos_codes_are_digits() -> None:
    table = cosmos.compute_vectors(torch.arange(36), (4, 3, 3))
    assert table.shape == (36, 3)
    assert table[0].tolist() == [-1, -1, -1]
    assert table[1].tolist() == [-0.5, -1, -1]  # the first digit counts first
    assert table[4 + 2 * 12].tolist() == [-1, 0, 1]
    assert len(table.unique(dim=0)) == 36
    assert torch.equal(table.bfloat16().float()[:, 0], table[:, 0])
    released = cosmos.compute_vectors(torch.arange(64_000), cosmos.RELEASED.levels)
    assert released.shape == (64_000, 6)
    assert released.min() == -1
    assert released[:, :3].max() == 0.75
    assert released[:, 3:].max() == 1


# --- Emu3 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emu3() -> Any:
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE, Emu3VQVAEConfig

    config = Emu3VQVAEConfig(
        codebook_size=EMU3.codes,
        base_channels=EMU3.width,
        channel_multiplier=list(EMU3.multipliers),
        num_res_blocks=EMU3.blocks,
        attn_resolutions=[1],
        hidden_size=EMU3.width * EMU3.multipliers[-1],
    )
    network = Emu3VQVAE(config).eval()
    references.spread_out(network, seed=2)
    return network


@torch.no_grad()
def test_emu3_decodes_as_the_library_does(emu3: Any) -> None:
    spec = emu3_vq.read_spec(emu3.config.to_dict(), Path("config.json"))
    assert spec == EMU3
    decoder = emu3_vq.load(emu3.state_dict(), Path("x"), spec, prefix="")
    codes = some_codes(EMU3.codes)
    expect_close(decoder.decode(codes, GRID), emu3.decode(codes.unflatten(1, GRID)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_resolutions": [0, 1]}, r"attn_resolutions \[0, 1\]"),
        ({"temporal_downsample_factor": 8}, "temporal_downsample_factor 8"),
        ({"codebook_size": "many"}, "does not describe Emu3's image tokenizer"),
        ({"embed_dim": None}, "does not describe Emu3's image tokenizer"),
    ],
)
def test_a_configuration_that_is_not_emu3s_is_refused(
    emu3: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        emu3_vq.read_spec({**emu3.config.to_dict(), **change}, Path("config.json"))
    with pytest.raises(UserError, match="does not describe"):
        emu3_vq.read_spec({}, Path("config.json"))


# --- Chameleon ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chameleon() -> tuple[Any, nn.Module]:
    """The library's tokenizer, which encodes, and a decoder of its blocks."""
    from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    config = ChameleonVQVAEConfig(
        embed_dim=CHAMELEON.code_dim,
        num_embeddings=CHAMELEON.codes,
        latent_channels=CHAMELEON.latent,
        base_channels=CHAMELEON.width,
        channel_multiplier=list(CHAMELEON.multipliers),
        num_res_blocks=CHAMELEON.blocks,
    )
    network = ChameleonVQVAE(config).eval()
    decoder = references.ChameleonDecoder(config).eval()
    references.spread_out(network, seed=3)
    references.spread_out(decoder, seed=4)
    return network, decoder


def chameleon_state(chameleon: tuple[Any, nn.Module]) -> dict[str, Tensor]:
    network, decoder = chameleon
    state = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    return {**network.state_dict(), **state, "loss.logvar": torch.zeros(())}


@pytest.fixture
def vqgan(chameleon: tuple[Any, nn.Module], tmp_path: Path) -> Path:
    """The file that the training program saved, in Anole's folder."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    torch.save({"state_dict": chameleon_state(chameleon), "epoch": 3}, folder / "vqgan.ckpt")
    return folder / "vqgan.ckpt"


@torch.no_grad()
def test_chameleon_encodes_and_decodes_as_the_library_does(
    chameleon: tuple[Any, nn.Module], vqgan: Path
) -> None:
    network, reference = chameleon
    vq = chameleon_vq.load(vqgan, encodes=True)
    assert vq.spec == CHAMELEON
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(2, 3, 8, 12, generator=generator) * 2 - 1
    codes = network.encode(pixels).image_tokens.view(2, 6)
    assert len(codes.unique()) > 3
    assert torch.equal(vq.encode(pixels), codes)

    z = network.quantize.embedding(codes).unflatten(1, GRID).permute(0, 3, 1, 2)
    expect_close(vq.decode(codes, GRID), reference(network.post_quant_conv(z)))
    torch.testing.assert_close(vq.quantize.rows(), network.quantize.embedding.weight)


def test_chameleons_file_is_found_in_anoles_folder(vqgan: Path) -> None:
    for path in (vqgan, vqgan.parent, vqgan.parent.parent):
        vq = chameleon_vq.load(path)
        assert vq.spec == CHAMELEON
        assert not hasattr(vq, "encoder")


def test_notes_of_the_training_program_are_read_as_nothing(
    chameleon: tuple[Any, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of PyTorch Lightning 1 names its callbacks by their classes."""
    import sys
    import types

    names = ("pytorch_lightning", "pytorch_lightning.callbacks")
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    state = {"state_dict": chameleon_state(chameleon), "callbacks": {callback: {"best": 1.0}}}
    with monkeypatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(state, tmp_path / "vqgan.ckpt")
    assert chameleon_vq.load(tmp_path).spec == CHAMELEON


# --- all of them ----------------------------------------------------------------------------------


def random_decoder(kind: str) -> tuple[Any, int]:
    """A decoder with random weights, and how many codes it knows."""
    makers: dict[str, Callable[[], Any]] = {
        "cosmos": lambda: cosmos.Cosmos(COSMOS),
        "emu3": lambda: emu3_vq.Emu3VQ(EMU3),
        "chameleon": lambda: VQ(CHAMELEON, encodes=False),
    }
    with torch.device("meta"):
        decoder = makers[kind]()
    checkpoint.randomise(decoder, "cpu")
    return decoder.eval().requires_grad_(False), decoder.spec.codes


KINDS = ("cosmos", "emu3", "chameleon")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_the_others_of_its_batch(kind: str) -> None:
    decoder, count = random_decoder(kind)
    codes = some_codes(count, rows=3)
    together = decoder.for_rendering().decode(codes, GRID)
    again = decoder.decode(codes[[2, 1, 0]], GRID)
    torch.testing.assert_close(together[0], again[2], atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_that_is_not_drawn_has_no_vector(kind: str) -> None:
    decoder, count = random_decoder(kind)
    codes = some_codes(count, rows=1)
    partial = codes.masked_fill(torch.arange(6) >= 4, MISSING)
    assert torch.isfinite(decoder.decode(partial, GRID)).all()
    other = codes.clone()
    other[:, 4:] = 0
    assert not torch.equal(decoder.decode(partial, GRID), decoder.decode(other, GRID))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_the_same_picture(kind: str) -> None:
    decoder, count = random_decoder(kind)
    codes = some_codes(count, rows=1)
    exact = decoder.decode(codes, GRID)
    rough = decoder.for_rendering(torch.bfloat16).decode(codes, GRID)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.std()
    assert decoder.decode_bytes(6) > 0


def test_released_sizes() -> None:
    """Parameters are the published ones; bytes of an image are those of five maps."""
    with torch.device("meta"):
        chameleon = VQ(chameleon_vq.RELEASED, encodes=False)
        networks = (
            (cosmos.Cosmos(), 4096, 54.5e6, 5 * 512 * 256**2 * 4),
            (emu3_vq.Emu3VQ(), 8100, 161e6, 5 * 512 * 720**2 * 4),
            (chameleon, 2304, 41.5e6, 5 * 128 * 768**2 * 4),
        )
    for network, codes, parameters, image_bytes in networks:
        count = sum(one.numel() for one in network.parameters())
        assert count == pytest.approx(parameters, rel=0.005)
        assert network.decode_bytes(codes) == image_bytes


def test_eight_bits_are_rounded() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.996, 1.0, 3.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert round_to_uint8(pixels)[0, 0, :, 0].tolist() == [0, 0, 128, 254, 255, 255]


# --- bad input ------------------------------------------------------------------------------------


def refused(match: str, path: Path) -> None:
    load = chameleon_vq.load if path.suffix == ".ckpt" else cosmos.load
    with pytest.raises(UserError, match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


class Touch:
    """What a malicious pickle does: run code when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def rewritten(archive: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """A copy of an archive with files replaced, by the ends of their names; None leaves out."""
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(target, "w") as copy:
        for name in whole.namelist():
            data: bytes | None = whole.read(name)
            for end, replacement in changes.items():
                if name.endswith(end):
                    data = replacement
            if data is not None:
                copy.writestr(name, data)
    return target


def test_a_damaged_archive_is_one_line(
    archive: tuple[Path, references.CosmosTokenizer], tmp_path: Path
) -> None:
    whole = archive[0] / "decoder.jit"
    cut = tmp_path / "decoder.jit"
    for size in (0, 10, 5000, whole.stat().st_size - 1):
        cut.write_bytes(whole.read_bytes()[:size])
        refused("cannot be read as a TorchScript archive .* download it again", cut)

    def changed(match: str, changes: dict[str, bytes | None]) -> None:
        refused(match, rewritten(whole, tmp_path / "changed.jit", changes))

    changed("no data.pkl of a module", {"/data.pkl": None})
    changed("another byte order", {"/byteorder": b"big"})
    changed("There is no item named", {"/data/0": None})
    changed(r"data/0 has 3 bytes, not \d+ numbers", {"/data/0": b"abc"})
    changed("holds a dict instead of a TorchScript module", {"/data.pkl": pickle.dumps({})})
    changed(NONE_OF_COSMOS, {"/data.pkl": pickle.dumps(stub(), protocol=2)})
    refused("there is no such file|has none of decoder.jit", tmp_path / "nowhere")


def stub() -> Any:
    """An object whose class is named as those of an archive are."""
    import sys
    import types

    module = types.ModuleType("__torch__")
    made = type("Empty", (), {"__module__": "__torch__"})
    module.Empty = made  # type: ignore[attr-defined]
    sys.modules["__torch__"] = module
    return made()


def test_an_archive_that_would_run_code_is_refused(
    archive: tuple[Path, references.CosmosTokenizer], tmp_path: Path
) -> None:
    whole = archive[0] / "decoder.jit"
    for protocol in (0, 2, 4):
        for n, trap in enumerate((Touch(tmp_path / "ran"), {"a": Touch(tmp_path / "ran")}, open)):
            data = {"/data.pkl": pickle.dumps(trap, protocol=protocol)}
            target = tmp_path / f"trap{protocol}{n}.jit"
            refused("which could run code", rewritten(whole, target, data))
    assert not (tmp_path / "ran").exists()


def test_any_byte_of_an_archives_pickle_may_be_wrong(
    archive: tuple[Path, references.CosmosTokenizer], tmp_path: Path
) -> None:
    """It is read, or refused in one line; nothing else is raised."""
    whole = archive[0] / "decoder.jit"
    with zipfile.ZipFile(whole) as opened:
        (name,) = [one for one in opened.namelist() if one.endswith("/data.pkl")]
        data = opened.read(name)
        files = {one: opened.read(one) for one in opened.namelist()}
    chance = random.Random(7)
    outcomes = set()
    for _ in range(150):
        spoiled = bytearray(data)
        spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as copy:
            for one, stored in files.items():
                copy.writestr(one, bytes(spoiled) if one == name else stored)
        target = tmp_path / "spoiled.jit"
        target.write_bytes(buffer.getvalue())
        try:
            read_torchscript(target)
            outcomes.add("read")
        except UserError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_an_archive_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "decoder.jit"))
    refused(f"{NONE_OF_COSMOS}, the first is decoder.conv_in.0", tmp_path / "decoder.jit")
    save_file({"a": torch.zeros(2)}, tmp_path / "decoder.safetensors")
    refused(NONE_OF_COSMOS, tmp_path / "decoder.safetensors")


def test_a_bad_vqgan_is_one_line(
    chameleon: tuple[Any, nn.Module], vqgan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = chameleon_state(chameleon)
    whole = vqgan.read_bytes()
    for size in (0, 100, len(whole) // 2):
        vqgan.write_bytes(whole[:size])
        refused("damaged", vqgan)
    vqgan.write_bytes(pickle.dumps({"state_dict": Touch(tmp_path / "ran")}, protocol=2))
    refused("not read because it could run code", vqgan)
    assert not (tmp_path / "ran").exists()

    def saved(match: str, **changes: Any) -> None:
        changed = {name: value for name, value in {**state, **changes}.items() if value is not None}
        torch.save({"state_dict": changed}, vqgan)
        refused(match, vqgan)

    saved("no decoder.up.0.block.0.conv1.weight", **{"decoder.up.0.block.0.conv1.weight": None})
    saved("has no quantize.embedding.weight", **{"quantize.embedding.weight": None})
    saved("has no quantize.embedding.weight", **{"quantize.embedding.weight": torch.zeros(())})
    saved("lacks 1 of 91 tensors", **{"decoder.up.1.upsample.conv.bias": None})
    saved(r"tensor decoder.conv_in.weight is \(3,\)", **{"decoder.conv_in.weight": torch.zeros(3)})
    saved("attends in the middle", **{"decoder.up.2.attn.0.norm.weight": torch.zeros(3)})
    odd = {"decoder.up.0.block.0.conv1.weight": torch.zeros(10, 32, 3, 3)}
    saved("a width of 10 is no multiple of 32 groups", **odd)
    odd = {"decoder.up.0.block.0.conv1.weight": torch.zeros(0, 32, 3, 3)}
    saved("sizes must be at least 1", **odd)
    saved("no tensors by name", **{"decoder.conv_in.weight": "text"})
    torch.save({"state_dict": {**state, "decoder.extra": torch.zeros(1)}}, vqgan)
    chameleon_vq.load(vqgan)
    assert "1 tensors are not known and not used, the first is decoder.extra" in caplog.text
    vqgan.unlink()
    refused("set model.tokenizer_checkpoint to Chameleon's vqgan.ckpt", vqgan.parent / "x.ckpt")


def test_a_configuration_of_many_megabytes_is_read(tmp_path: Path) -> None:
    """Emu3's holds the ids of all tokens by name, 6.6 MB."""
    names = {f"<|visual token number {code:06d}|>": 151854 + code for code in range(184_622)}
    (tmp_path / "config.json").write_text(json.dumps({"vocabulary_map": names}))
    assert (tmp_path / "config.json").stat().st_size > 6_600_000
    assert checkpoint.read_config(tmp_path)["vocabulary_map"] == names
