"""GenEval's evaluator for tests: the same networks, much smaller and with random weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

BASE = "mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py"
CONFIG = """
_base_ = [{base!r}]
attention = dict(embed_dims=32, num_heads=4)
model = dict(
    backbone=dict(embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], init_cfg=None),
    panoptic_head=dict(
        in_channels=[12, 24, 48, 96], feat_channels=32, out_channels=32, num_queries=20,
        pixel_decoder=dict(
            norm_cfg=dict(type="GN", num_groups=8),
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=32, num_heads=4),
                    ffn_cfg=dict(embed_dims=32, feedforward_channels=64))),
            positional_encoding=dict(num_feats=16)),
        positional_encoding=dict(num_feats=16),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=attention, cross_attn_cfg=attention,
                ffn_cfg=dict(embed_dims=32, feedforward_channels=64)))))
"""
CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def write_config(folder: Path, more: str = "", base: str = BASE) -> str:
    """Write a configuration of mmdet that inherits one of its own; returns its path."""
    spec = find_spec("mmdet")
    assert spec and spec.submodule_search_locations
    configs = Path(spec.submodule_search_locations[0]) / ".mim" / "configs" / "mask2former"
    path = folder / "tiny.py"
    path.write_text(CONFIG.format(base=str(configs / base)) + more)
    return str(path)


def write_clip(folder: Path) -> str:
    """Write the description of an open_clip model; returns its path."""
    path = folder / "tiny_clip.json"
    path.write_text(json.dumps(CLIP))
    return str(path)


def picture(seed: int, width: int = 64, height: int = 64) -> np.ndarray:
    """Draw colored shapes on a plain ground, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(rng.integers(150, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for shape in (draw.ellipse, draw.rectangle):
        x = rng.integers(0, width // 2)
        y = rng.integers(0, height // 2)
        box = (int(x), int(y), int(x + width // 3), int(y + height // 3))
        shape(box, fill=tuple(rng.integers(0, 255, 3).tolist()))
    return np.asarray(image)
