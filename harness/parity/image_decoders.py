"""Compare the image decoders of SimpleAR, Lumina-mGPT and Emu3 with the arrays of a fixture folder.

Shapes: B images, N codes of an image, V codes, d code width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.models import chameleon_vq, cosmos, emu3_vq
from harness.models import checkpoint as checkpoints
from harness.models.cosmos import CosmosSpec
from harness.models.vq import look_up, round_to_uint8, truncate_to_uint8
from harness.parity.fixture import Fixture, Quantity
from harness.records import UserError

ToBytes = Callable[[Tensor], Tensor]

_FILE = "expected_vq.safetensors"


@torch.no_grad()
def compare_decoder(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Compare every array of the fixture's tokenizer, once for each stored layout of it."""
    for layout, decoder, codebook_Vd, to_uint8 in _load_decoders(fixture):
        decoder.to(device).for_rendering()
        got = _compute(fixture, decoder, codebook_Vd.to(device), to_uint8, device)
        stated = fixture.manifest["tensors"][_FILE]
        missing = {name: entry["kind"] for name, entry in stated.items() if name not in got}
        present = {name: value for name, value in got.items() if name in stated}
        for quantity in fixture.compare_all(present, _FILE, device):
            yield replace(quantity, name=f"{layout}: {quantity.name}")
        for name, kind in missing.items():
            yield Quantity(f"{layout}: {name} (not computed)", kind, float("inf"), False)


def _compute(
    fixture: Fixture, decoder: Any, codebook_Vd: Tensor, to_uint8: ToBytes, device: torch.device
) -> dict[str, Tensor]:
    """Compute all that a fixture may have expected values of."""
    codes_BN = fixture.read_tensors("inputs.safetensors")["decode_codes"].to(device)
    greedy_BN = fixture.read_tensors("expected_llm.safetensors")["greedy_codes"][:1].to(device)
    grid = _grid(fixture.manifest["config"]["image"])
    vectors = look_up(codes_BN.unflatten(1, grid), codebook_Vd)
    greedy_pixels = decoder.decode(greedy_BN, grid)
    return {
        "code_vectors": vectors,
        "codebook_entries": vectors,
        "all_code_vectors": codebook_Vd,
        "decoded_pixels": decoder.decode(codes_BN, grid),
        "decoded_pixels_greedy_prompt0": greedy_pixels,
        "uint8_greedy_prompt0": to_uint8(greedy_pixels),
    }


def _grid(image: Mapping[str, int]) -> tuple[int, int]:
    """Rows and columns of codes; a manifest may state the side of a square."""
    side = image.get("grid", 0)
    return image.get("rows", side), image.get("columns", side)


def _load_decoders(fixture: Fixture) -> Iterator[tuple[str, Any, Tensor, ToBytes]]:
    """Yield each stored layout's name, decoder, code vectors, and rule for 8 bits."""
    folder = fixture.folder / "checkpoints"
    if fixture.family.startswith("SimpleAR"):
        config = fixture.manifest["config"]["vq"]
        spec = CosmosSpec(
            levels=tuple(config["levels"]),
            width=config["channels"],
            multipliers=tuple(config["channels_mult"]),
            blocks=config["num_res_blocks"],
            latent=config["z_channels"],
        )
        decoder = cosmos.load(folder / "cosmos", spec)
        yield "cosmos", decoder, decoder.codebook, round_to_uint8
    elif fixture.family.startswith("Lumina"):
        vq = chameleon_vq.load(folder / "chameleon_tokenizer")
        yield "chameleon_tokenizer", vq, vq.quantize.rows(), truncate_to_uint8
    elif fixture.family.startswith("Emu3"):
        for name, prefix in (("original_vision_tokenizer", None), ("hf", "vqmodel.")):
            path = folder / name
            config = checkpoints.read_config(path)
            spec_of_vq = emu3_vq.read_spec(config.get("vq_config", config), path)
            state = checkpoints.read_weights(path)
            emu3 = emu3_vq.load(state, path, spec_of_vq, prefix)
            yield name, emu3, emu3.codebook, truncate_to_uint8
    else:
        raise UserError(f"{fixture.folder}: {fixture.family} has no image decoder of these")
