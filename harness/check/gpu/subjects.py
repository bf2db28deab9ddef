"""The models that are examined in full size, with random weights; and tiny ones for a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.bench.sampler import TEXTS
from harness.check.gpu.configured import build_model
from harness.check.gpu.finding import NotRunError, Setting
from harness.engine.acceptance import Draft, exact
from harness.engine.canvas import Canvas
from harness.engine.guidance import Guide, Sampling
from harness.engine.memory import short_of_memory
from harness.engine.sampler import Sampler
from harness.kernels.noise import derive
from harness.models.janus import Janus
from harness.models.janus_checkpoint import JanusSpec
from harness.models.linear import copy_unpacked
from harness.models.llamagen import LlamaGen
from harness.models.trunk import TrunkSpec
from harness.models.vq import VQSpec
from harness.records import Usage

_TINY_TOKENIZER = VQSpec(40, 8, 32, (1, 1, 2), 1, 32)
TINY_LLAMAGEN: dict[str, Any] = {
    "size": {
        "layers": 2,
        "dim": 32,
        "heads": 2,
        "hidden": 48,
        "condition": 12,
        "caption_dim": 16,
    },
    "image": 32,
    "tokenizer": {
        "codes": 40,
        "code_dim": 8,
        "width": 32,
        "multipliers": [1, 1, 2],
        "blocks": 1,
        "latent": 32,
    },
}
TINY_JANUS: dict[str, Any] = {
    "size": JanusSpec(
        TrunkSpec(2, 32, 2, 48, norm_eps=1e-6),
        words=300,
        side=8,
        vq=_TINY_TOKENIZER,
        positions=256,
    ),
    "max_context": 48,
}
"""Options that make the configured models small enough for a CPU; prompts stay the same."""


def build_subject(name: str, setting: Setting, **options: Any) -> tuple[Any, Sampling]:
    """Build a model and its sampling on the device of a setting.

    Raises NotRunError where the model does not fit there.
    """
    tiny = {}
    if not setting.is_full:
        tiny = TINY_JANUS if name.startswith("janus") else TINY_LLAMAGEN
    try:
        return build_model(name, setting.device, **tiny, **options)
    except RuntimeError as error:
        if not short_of_memory(error):
            raise
        raise NotRunError(f"the device has no memory for {name}") from error


def widen(model: Any) -> Any:
    """Return the same model in float32: the same weights, to which bfloat16 is held."""
    if isinstance(model, LlamaGen):
        return LlamaGen(
            copy_unpacked(model.gpt),
            model.vq,
            model.captions,
            name=model.name,
            padding=model.padding,
            collapse=model.collapse,
            dtype=torch.float32,
            device=model.device,
        )
    assert isinstance(model, Janus)
    wide = copy.copy(model)
    wide.net = copy_unpacked(model.net).float()
    wide.dtype = torch.float32
    return wide


# ------------------------------------------------------------------ drawing without a method


class Tap:
    """A guide that keeps the logits which it combines, [R, K, T, V], on the host."""

    def __init__(self, guide: Guide) -> None:
        self._guide = guide
        self.logits: list[Tensor] = []

    def __call__(self, logits_RKTV: Tensor, scale_R: Tensor) -> Tensor:
        self.logits.append(logits_RKTV.cpu())
        return self._guide(logits_RKTV, scale_R)


def open_canvases(
    sampler: Sampler, images: Sequence[int], wrap: Callable[[Guide], Guide] | None = None
) -> list[Canvas]:
    """Open canvases for images by their number, which is their text and their key.

    `wrap` makes a guide around theirs, which all of them share.
    """
    canvases = []
    wrapped: Guide | None = None
    for image in images:
        contexts, guide = sampler.contexts(TEXTS[image % len(TEXTS)])
        if wrap is not None:
            wrapped = guide = wrapped or wrap(guide)
        key = derive("check", image)
        canvases.append(sampler.open(contexts, guide, key=key, usage=Usage()))
    return canvases


def draw_tokens(sampler: Sampler, canvases: Sequence[Canvas], count: int) -> None:
    """Draw until each canvas has `count` tokens: by bursts, as a run does."""
    nothing: list[Draft | None] = [None] * len(canvases)
    while (missing := count - canvases[0].length) > 0:
        if not sampler.burst(canvases, missing):
            sampler.forward(canvases, nothing)
            sampler.draw(canvases, nothing, exact)


def probe_logits(sampler: Sampler, canvases: Sequence[Canvas]) -> Tensor:
    """Compute the logits of the next token, float32 [R, K, V] on the host; draw nothing."""
    kept: list[Tensor] = []

    def keep(logits_RKTV: Tensor, _probs: Callable[[], Tensor]) -> dict[str, Tensor]:
        kept.append(logits_RKTV[:, :, 0].float().cpu())
        return {"kept": logits_RKTV[:, 0, 0, 0]}

    sampler.forward(canvases, [None] * len(canvases))
    sampler.probe(canvases, keep)
    return torch.cat(kept)


def count_equal(one: Sequence[object], other: Sequence[object]) -> int:
    """Count the places at which two sequences agree."""
    return sum(mine == theirs for mine, theirs in zip(one, other, strict=True))
