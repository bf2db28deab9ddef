"""No model is given a position that its tables lack, whatever pads a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_janus
import test_llamagen
import torch
from torch import Tensor
from toy import ToyModel

from harness.engine.acceptance import Draft
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.models import ImageModel
from harness.models.pictogram.generator import Pictogram
from harness.models.trunk import causal
from harness.records import Usage, UserError

MODELS: dict[str, Callable[[], Any]] = {
    "toy": ToyModel,
    "pictogram": Pictogram,
    "llamagen": test_llamagen.tiny,
    "llamagen, prompts not collapsed": lambda: test_llamagen.tiny(collapse=False),
    "janus": test_janus.tiny,
}

TREES: dict[str, tuple[int, ...]] = {
    "no draft": (),
    "one node": (-1,),
    "siblings": (-1,) * 6,
}
"""The parents of the nodes of a tree of depth 1."""


def longest_prompt(model: ImageModel) -> str:
    """A prompt whose context is as long as the model takes, or the longest that it can have."""
    text = "a cat"
    while len(model.context(text, text)) < model.max_context:
        longer = f"{text} cat"
        try:
            grows = len(model.context(longer, longer)) > len(model.context(text, text))
        except UserError:
            grows = False
        if not grows:
            break
        text = longer
    return text


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", MODELS)
def test_padding_lies_inside_the_image(
    name: str, tree: str, compact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tree at the image's end, in the last places of a slot, and beside an idle slot."""
    # 1. A model that says which positions it is given.
    model = MODELS[name]()
    forward = model.forward
    beyond: list[int] = []

    def watched(x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Any) -> Tensor:
        place_BW = pos_BW - start_B.unsqueeze(1)
        beyond.append(int(place_BW.max()) - (model.num_tokens - 1))
        assert int(pos_BW.min()) >= 0
        return forward(x_BWD, pos_BW, start_B, attend)

    monkeypatch.setattr(model, "forward", watched)

    # 2. A canvas that lacks two tokens, with a draft for one of them.
    parents = TREES[tree]
    nodes = len(parents)
    sampler = Sampler(
        model,
        Sampling(scale=2.0),
        slots=5,
        tokens_per_step=1 + nodes,
        tree_capacity=nodes,
        prefill=(3, 5),
        compact=compact,
    )
    text = longest_prompt(model)
    canvas = sampler.open(*sampler.contexts(text), key=1, usage=Usage())
    sampler.commit(canvas, [0] * (model.num_tokens - 2))
    draft = Draft(torch.zeros(nodes, dtype=torch.int64), None, parents) if nodes else None

    # 3. A look before, so that nothing but the draft is fed with it.
    sampler.forward([canvas], [None])
    sampler.forward([canvas], [draft])
    assert max(beyond) <= 0


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_model_knows_all_positions_of_the_longest_branch(name: str) -> None:
    model = MODELS[name]()
    for start in (0, model.max_context):
        pos_1W = torch.tensor([[0, start, start + model.num_tokens - 1]])
        x_1WD = torch.ones((1, 3, model.dim), dtype=model.dtype)
        hidden_1WD = model.forward(x_1WD, pos_1W, torch.tensor([start]), causal)
        assert hidden_1WD.isfinite().all()


@pytest.mark.parametrize(
    ("exact", "rounded"),
    [
        (Pictogram, lambda: Pictogram(dtype="bfloat16")),
        (test_llamagen.tiny, lambda: test_llamagen.tiny(dtype="bfloat16")),
    ],
)
def test_rotation_is_not_rounded_to_the_weights_type(
    exact: Callable[[], Any], rounded: Callable[[], Any]
) -> None:
    model = exact()
    start_1 = torch.tensor([model.max_context])
    pos_1W = torch.arange(model.max_context + model.num_tokens).unsqueeze(0)
    rotary_1W2 = rounded().rotary(pos_1W, start_1)
    assert torch.equal(rotary_1W2, model.rotary(pos_1W, start_1))


def test_the_toy_looks_positions_up_without_the_host() -> None:
    """Tensors of the meta device cannot be copied to the host, as in a captured graph."""
    model = ToyModel(device="meta")
    pos_1W = torch.arange(4, device="meta").unsqueeze(0)
    start_1 = torch.ones(1, dtype=torch.int64, device="meta")
    assert model.rotary(pos_1W, start_1).shape == (1, 4, 8, 2)
