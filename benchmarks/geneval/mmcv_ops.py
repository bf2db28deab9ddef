"""mmcv without compiled operators: the few that Mask2Former needs at inference, from torchvision
and plain torch.

`mmcv-lite` has no `mmcv._ext`, which mmdet imports. `install` puts a module of that name in its
place; where a compiled mmcv is installed it wins. Every other operator raises when it is called.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.records import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOLERANCE = 1e-3
"""Between an operator and its formula, for values of about 1 in float32."""


class _Extension(types.ModuleType):
    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: object, **__: object) -> Any:
            raise NotImplementedError(f"mmcv's operator {name!r} needs a compiled mmcv")

        return absent


def install() -> bool:
    """Make mmdet importable; call it before that. False where a compiled mmcv, or an earlier call,
    already did.
    """
    try:
        importlib.import_module("mmcv._ext")
        return False
    except ImportError:
        pass
    extension = _Extension("mmcv._ext")
    extension.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)  # mmengine asks for it
    vars(extension).update(nms=_nms, ms_deform_attn_forward=_attention)
    sys.modules["mmcv._ext"] = extension
    return True


def expect_sound_attention(device: torch.device) -> None:
    """Compare mmcv's deformable attention on `device` with its formula, on random input.

    A mmcv that was compiled for other GPUs prints an error and returns garbage, which only shows in
    low scores (djghosh13/geneval, issue 12). Raises UserError for such a one.
    """
    import torch
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    random = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[8, 8], [4, 4]])
    start = torch.tensor([0, 64])
    value = torch.rand(2, 80, 4, 8, generator=random).to(device)
    where = torch.rand(2, 10, 4, 2, 4, 2, generator=random).to(device)
    weight = torch.rand(2, 10, 4, 2, 4, generator=random).to(device)
    shapes_here = shapes.to(device)
    with torch.inference_mode():
        got = MultiScaleDeformableAttnFunction.apply(
            value, shapes_here, start.to(device), where, weight, 64
        )
        wanted = multi_scale_deformable_attn_pytorch(value, shapes_here, where, weight)
    worst = float((got - wanted).abs().max())
    if not worst < TOLERANCE * float(wanted.abs().max()):
        raise UserError(
            f"mmcv's deformable attention is wrong on {device} (off by {worst:.2g}): its operators were compiled for "
            "another GPU; install mmcv-lite instead, or compile mmcv for this one"
        )


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    import torchvision

    return torchvision.ops.nms(boxes, scores, float(iou_threshold))


def _attention(
    value: Tensor, shapes: Tensor, start: Tensor, where: Tensor, weight: Tensor, im2col_step: int
) -> Tensor:
    """What the compiled operator computes, for tensors on a GPU; on the CPU mmcv takes the formula
    by itself.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, where, weight)
