"""Step 6: batch invariance of full-size models, in every bit.

A job's rows stand at other places of a forward, among other rows, each time that it is drawn. Its
logits must be the same bits nevertheless, whether one position of a row is fed, a chain, or as many
as a draft tree has. Where the matrix library does not treat rows alike, the sampler takes products
that do; the figures say for how many shapes it had to.

Shapes: R canvases, K branches, T places, V vocabulary, N outer width and K inner width of products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.check.gpu.configured import MODELS
from harness.check.gpu.finding import Finding, Part, Setting
from harness.check.gpu.subjects import Tap, build_subject, open_canvases
from harness.engine.acceptance import Draft, exact
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.kernels import why_unused
from harness.kernels.noise import derive

WIDTHS = (1, 5, 61)
"""Positions of a row that are fed in one forward."""
IMAGES = 8
LONGEST = 40
"""Tokens that an image has already, at most."""
MULTIPLIED = ("trunk.", "output.weight", "gen_head.")
"""Parts of the names of what every forward multiplies by: the trunk, and heads."""
STEPS = 3
"""Forwards whose logits are compared."""


def list_parts(_setting: Setting) -> Sequence[Part]:
    """List a part for each model and width."""
    return [
        Part(f"{name}, W {width}", partial(compare_rows, name, width), 60)
        for name in MODELS
        for width in WIDTHS
    ]


def compare_rows(name: str, width: int, setting: Setting) -> Finding:
    """Compare the logits of images drawn together with those drawn in every other way."""
    model, sampling = build_subject(name, setting)
    if not setting.is_full:
        width = min(width, 18)
    drawing = _Drawing(model, sampling, width)
    together = drawing.logits(range(IMAGES))
    ways = {
        "again": drawing.logits(range(IMAGES)),
        "backwards": drawing.logits(range(IMAGES - 1, -1, -1)),
        "alone": {image: drawing.logits([image])[image] for image in range(IMAGES)},
        "interrupted": {
            **drawing.logits(range(IMAGES // 2)),
            **drawing.logits(range(IMAGES // 2, IMAGES)),
        },
    }
    failures = []
    equal = {}
    for way, logits in ways.items():
        differing = [n for n in range(IMAGES) if not torch.equal(logits[n], together[n])]
        equal[way] = IMAGES - len(differing)
        if differing:
            n = differing[0]
            far = float((logits[n] - together[n]).abs().max())
            failures.append(f"{way}: {len(differing)} of {IMAGES} differ, image {n} by {far:.2g}")

    products = judge_products(model, drawing.slots * width)
    figures: dict[str, Any] = {"width": width, "images": IMAGES, "equal": equal, **products}
    return Finding(_headline(equal, products), figures, failures)


def _headline(equal: Mapping[str, int], products: Mapping[str, Any]) -> str:
    headline = ", ".join(f"{way} {count}/{IMAGES}" for way, count in equal.items())
    uneven = products["uneven_in_library"]
    shapes = products["shapes"]
    if not uneven:
        return f"{headline}; the library treats rows alike in {shapes} of {shapes} products"
    remedied = products["remedied"]
    return (
        f"{headline}; the library does not treat rows alike in {len(uneven)} of {shapes} products, "
        f"ours do in {remedied} of these"
    )


class _Drawing:
    """Feeds rows of a width, and keeps all logits; every call takes a sampler of its own."""

    def __init__(self, model: Any, sampling: Sampling, width: int) -> None:
        self._model = model
        self._sampling = sampling
        self._width = width
        self.slots = IMAGES * (1 if sampling.scale == 1 else 2)

    @torch.no_grad()
    def logits(self, images: Sequence[int]) -> dict[int, Tensor]:
        """Return the logits [steps, K, T, V] of images, which stand in slots in that order."""
        sampler = Sampler(
            self._model,
            self._sampling,
            slots=self.slots,
            tokens_per_step=self._width,
            prefill=(self.slots, 32),
        )
        taps: list[Tap] = []

        def wrap(guide: Any) -> Tap:
            taps.append(Tap(guide))
            return taps[-1]

        canvases = open_canvases(sampler, images, wrap)
        for image, canvas in zip(images, canvases, strict=True):
            sampler.commit(canvas, self._tokens(image, 0, _length_of(image)))
        for step in range(1, STEPS + 1):
            drafts = [self._draft(image, step) for image in images]
            sampler.forward(canvases, drafts)
            sampler.draw(canvases, drafts, exact)
            for image, canvas in zip(images, canvases, strict=True):
                sampler.truncate(canvas, _length_of(image))
                sampler.commit(canvas, self._tokens(image, step, 1))
        (tap,) = taps
        kept_SRKTV = torch.stack(tap.logits)
        return {image: kept_SRKTV[:, row] for row, image in enumerate(images)}

    def _draft(self, image: int, step: int) -> Draft | None:
        if self._width == 1:
            return None
        tokens = self._tokens(image, 100 + step, self._width - 1)
        return Draft(torch.tensor(tokens, device=self._model.device))

    def _tokens(self, image: int, step: int, count: int) -> list[int]:
        """Return tokens that depend on the image and the step alone."""
        generator = torch.Generator().manual_seed(derive("rows", image, step) >> 1)
        return torch.randint(self._model.vocab, (count,), generator=generator).tolist()


def _length_of(image: int) -> int:
    """Return how many tokens an image begins with: each another number."""
    return 1 + image * 13 % LONGEST


# ------------------------------------------------------------------ the products of a forward


def judge_products(model: Any, rows: int) -> dict[str, Any]:
    """Try the library's products of a model's shapes with so many rows, and ours where they fail.

    Each shape of a weight is tried once, on the device and in the type of the model.
    """
    from harness.kernels.rows import find_row_dependence

    uneven: list[str] = []
    remedied = 0
    weights = _list_weights(model)
    for (outer, inner), weight_NK in weights.items():
        dependence = find_row_dependence(F.linear, rows, weight_NK)
        if dependence:
            uneven.append(f"[{rows} x {inner}] x [{inner} x {outer}]: {dependence}")
            remedied += _is_remedied(rows, weight_NK)
    return {
        "rows": rows,
        "shapes": len(weights),
        "uneven_in_library": uneven,
        "remedied": remedied,
    }


def _is_remedied(rows: int, weight_NK: Tensor) -> bool:
    from harness.kernels.rows import find_row_dependence

    if why_unused(weight_NK.device):
        return False
    from harness.kernels.products import multiply

    return not find_row_dependence(multiply, rows, weight_NK)


def _list_weights(model: Any) -> dict[tuple[int, ...], Tensor]:
    """List one weight of each shape that a forward multiplies by: those of the trunk, and fused."""
    modules = [part for part in vars(model).values() if isinstance(part, nn.Module)]
    weights = {}
    for module in modules:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            is_multiplied = any(part in name for part in MULTIPLIED)
            is_fused = name.endswith((".w1.weight", ".w3.weight"))
            if is_multiplied and not is_fused and tensor.ndim == 2:
                weights[tuple(tensor.shape)] = tensor.detach()
    return weights
