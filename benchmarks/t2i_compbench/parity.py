"""Compare our BLIP VQA with the arrays that the reference's own code returned.

Shapes: Q questions, each about a picture of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.t2i_compbench.blip_network import (
    BlipSpec,
    answer_logits,
    build_network,
    encode_pictures,
    encode_questions,
    load_checkpoint,
    prepare_picture,
)
from benchmarks.t2i_compbench.questions import round_answer, yes_probability
from harness.parity.fixture import Fixture, Quantity
from harness.records import UserError

EXPECTED = "expected.safetensors"
WRONG = ("wrong_padding_attended", "wrong_cls_kept")
"""What the usual mistakes give; an implementation that returns them makes them."""


@torch.no_grad()
def parity(fixture: Fixture, device: torch.device) -> Iterator[Quantity]:
    """Compare every array of the fixture, one question at a time as the reference has it."""
    # 1. Load the network as the released one is.
    spec = read_spec(fixture.manifest["config"])
    network = build_network(spec)
    load_checkpoint(network, _find_checkpoint(fixture))
    network.to(device)

    # 2. Prepare and encode the pictures.
    inputs = fixture.read_tensors("inputs.safetensors")
    ids_QW = inputs["input_ids"]
    mask_QW = inputs["attention_mask"]
    pictures = [inputs[f"image_{index}"].numpy() for index in range(len(ids_QW))]
    pixels = torch.stack([prepare_picture(picture, spec.image_size) for picture in pictures])
    picture_QPD = encode_pictures(network, pixels.to(device))

    # 3. Ask.
    question_QWD = torch.zeros(*ids_QW.shape, spec.text_width)
    logits = []
    for row, length in enumerate(mask_QW.sum(1).tolist()):
        ids_1W = ids_QW[row : row + 1, :length].to(device)
        states_1WD = encode_questions(network, ids_1W, picture_QPD[row : row + 1])
        question_QWD[row, :length] = states_1WD[0].cpu()
        logits.append(answer_logits(network, states_1WD)[0].cpu())
    logits_Q2 = torch.stack(logits)
    probabilities = [yes_probability(*pair) for pair in logits_Q2.double().tolist()]

    # 4. Compare.
    got = {
        "pixel_values": pixels,
        "image_states": picture_QPD,
        "question_states": question_QWD,
        "yes_logit": logits_Q2[:, 0],
        "no_logit": logits_Q2[:, 1],
        "probability": torch.tensor(probabilities),
    }
    yield from fixture.compare_all(got, EXPECTED, device)
    rounded = [round_answer(probability) for probability in probabilities]
    wrong = sum(a != b for a, b in zip(rounded, fixture.manifest["answers_rounded"], strict=True))
    yield Quantity("answers_rounded", "exact", float(wrong), wrong == 0)
    yield from _expect_no_mistake(fixture, got["probability"])


def read_spec(config: Mapping[str, Any]) -> BlipSpec:
    """Read the sizes of a network from a fixture's manifest."""
    vision = config["vision"]
    text = config["text"]
    return BlipSpec(
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        vision_width=vision["embed_dim"],
        vision_layers=vision["depth"],
        vision_heads=vision["num_heads"],
        vocabulary=text["vocab_size"],
        text_width=text["hidden_size"],
        text_layers=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        text_inner=text["intermediate_size"],
        text_positions=text["max_position_embeddings"],
        text_epsilon=text["layer_norm_eps"],
    )


def _find_checkpoint(fixture: Fixture) -> Any:
    files = sorted((fixture.folder / "checkpoints").glob("*.pth"))
    if len(files) != 1:
        raise UserError(f"{fixture.folder}/checkpoints has {len(files)} .pth files, not one")
    return files[0]


def _expect_no_mistake(fixture: Fixture, got_Q: Tensor) -> Iterator[Quantity]:
    """Expect that no mistake was made: where its answers differ, ours are not those."""
    expected = fixture.read_tensors(EXPECTED)
    for name in WRONG:
        mistake = float((expected[name] - expected["probability"]).abs().max())
        distance = float((got_Q - expected[name]).abs().max())
        yield Quantity(f"{name} (not matched)", "distance", distance, distance > 0.5 * mistake)
