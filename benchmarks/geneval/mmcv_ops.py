"""Run mmcv without compiled operators: those that Mask2Former needs, from torchvision and torch.

`mmcv-lite` has no `mmcv._ext`, which mmdet imports. `install` puts a module of that name in its
place; where a compiled mmcv is installed, that one is used. Every other operator raises when it is
called.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.optional import require
from harness.records import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOLERANCE = 1e-3
"""Largest difference between an operator and its formula, for values of about 1 in float32."""


class _Extension(types.ModuleType):
    """A module that has every operator; those that were not put into it raise when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing_operator(*_: object, **__: object) -> Any:
            raise NotImplementedError(f"mmcv's operator {name!r} needs a compiled mmcv")

        return missing_operator


def install() -> bool:
    """Make mmdet importable; call this first.

    Returns False if there is nothing to do: a compiled mmcv is there, or an earlier call did it.
    Raises UserError if mmcv is not installed at all.
    """
    require("mmcv", extra="geneval")
    try:
        importlib.import_module("mmcv._ext")
        return False
    except ImportError:
        pass
    extension = _Extension("mmcv._ext")
    extension.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)  # mmengine asks for it
    vars(extension).update(nms=_nms, ms_deform_attn_forward=_deformable_attention)
    sys.modules["mmcv._ext"] = extension
    return True


def expect_sound_attention(device: torch.device) -> None:
    """Compare mmcv's deformable attention on `device` with its formula, on random input.

    An mmcv that was compiled for other GPUs prints an error and returns garbage, which shows in
    nothing but low scores (djghosh13/geneval, issue 12). Raises UserError for such an mmcv.
    """
    import torch
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    random = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[8, 8], [4, 4]]).to(device)
    start = torch.tensor([0, 64]).to(device)
    value = torch.rand(2, 80, 4, 8, generator=random).to(device)
    where = torch.rand(2, 10, 4, 2, 4, 2, generator=random).to(device)
    weight = torch.rand(2, 10, 4, 2, 4, generator=random).to(device)
    with torch.inference_mode():
        got = MultiScaleDeformableAttnFunction.apply(value, shapes, start, where, weight, 64)
        wanted = multi_scale_deformable_attn_pytorch(value, shapes, where, weight)

    worst = float((got - wanted).abs().max())
    if not worst < TOLERANCE * float(wanted.abs().max()):  # NaN is wrong, too
        raise UserError(
            f"mmcv's deformable attention is wrong on {device} (off by {worst:.2g}): "
            "its operators were compiled for another GPU; install mmcv-lite instead, "
            "or compile mmcv for this one"
        )


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    import torchvision

    return torchvision.ops.nms(boxes, scores, float(iou_threshold))


def _deformable_attention(
    value: Tensor, shapes: Tensor, start: Tensor, where: Tensor, weight: Tensor, im2col_step: int
) -> Tensor:
    """Compute what the compiled operator computes; mmcv calls it for tensors on a GPU only.

    For tensors on the CPU mmcv takes the formula by itself.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, where, weight)
