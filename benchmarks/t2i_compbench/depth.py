"""Estimate depth with DPT-Hybrid of transformers, as T2I-CompBench++ does for 3-D relations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.networks import is_random, list_network_parts
from benchmarks.t2i_compbench.evaluators import Picture
from benchmarks.t2i_compbench.imported_detections import resize_depth
from harness.records import MemoryPart, UserError, one_line

MODEL = "Intel/dpt-hybrid-midas"
SIDE = 480
"""Pixels a side of the network's input."""
HYBRID: Mapping[str, Any] = {
    "is_hybrid": True,
    "readout_type": "project",
    "neck_hidden_sizes": [256, 512, 768, 768],
    "neck_ignore_stages": [0, 1],
    "reassemble_factors": [1, 1, 1, 0.5],
}
"""What the published network has other than the library's default."""

WEIGHT_BYTES = 4 * 122_400_000
"""Bytes of the network in float32."""
PICTURE_BYTES = 8 * 4 * 256 * 240 * 240
"""Bytes that a picture takes: eight copies of the neck's finest map, 256 channels of 240 x 240."""


class DptDepth:
    """Estimate with DPT-Hybrid: the published weights, or random ones of the same size.

    `model` is a hub id at a `revision`, or a folder. That its depths rank as the reference's do was
    not tried, so rows by it are marked. A picture is a forward of its own.
    """

    def __init__(
        self,
        model: str = MODEL,
        revision: str | None = None,
        weights: str = "published",
        device: str = "auto",
    ) -> None:
        self.random = is_random("depth", weights)
        self.protocol = "depth=dpt-hybrid-midas"
        self.missing = ""
        if not self.random and revision is None:
            self.missing = "benchmark.depth.revision=COMMIT, the version of its weights"
        self.id = f"dpt-hybrid-{'random' if self.random else str(revision)[:8]}"
        self._model = model
        self._revision = revision
        self._device_name = device
        self._network: Any = None

    def memory_need(self, _model: object, _shape: object) -> list[MemoryPart]:
        """List its weights, and what a forward over a picture takes."""
        return list_network_parts(
            "DPT",
            WEIGHT_BYTES,
            PICTURE_BYTES,
            is_loaded=self._network is not None,
            device=self._device_name,
        )

    def load(self) -> None:
        """Build the network; later calls do nothing."""
        if self._network is not None:
            return
        from harness.models.devices import device_named

        network = self._random_network() if self.random else self._published_network()
        # The reference's input is larger than the trained one; positions are interpolated.
        network.dpt.embeddings.image_size = (SIDE, SIDE)
        self._device = device_named(self._device_name)
        self._network = network.to(self._device).eval()

    def estimate(self, pictures: Sequence[Picture]) -> list[np.ndarray | None]:
        """Estimate the depth of each picture, float32 [h, w] in the detector's scale."""
        self.load()
        return [self._estimate_one(picture.pixels) for picture in pictures]

    def _estimate_one(self, pixels: np.ndarray) -> np.ndarray:
        import torch
        import torch.nn.functional as F
        from PIL import Image

        height, width = pixels.shape[:2]
        picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        values_HW3 = torch.from_numpy(np.asarray(picture, np.float32) / 255)
        input_13HW = ((values_HW3 - 0.5) / 0.5).permute(2, 0, 1)[None].to(self._device)
        with torch.inference_mode():
            depth_1HW = self._network(pixel_values=input_13HW).predicted_depth
            depth_HW = F.interpolate(
                depth_1HW[:, None].float(), (height, width), mode="bicubic", align_corners=False
            )[0, 0].cpu()
        span = float(depth_HW.max() - depth_HW.min())
        scaled = (depth_HW - depth_HW.min()) / span if span else torch.zeros_like(depth_HW)
        levels = (scaled * 255).round().to(torch.uint8).numpy()
        return resize_depth(Image.fromarray(levels), width, height)

    def _random_network(self) -> Any:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build_network()

    def _published_network(self) -> Any:
        import torch
        from transformers import DPTForDepthEstimation

        kind: Any = DPTForDepthEstimation
        try:
            return kind.from_pretrained(self._model, revision=self._revision, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"depth {self._model!r} cannot be had ({one_line(error)[:200]}): "
                "set benchmark.depth.model to a folder with its files"
            ) from None


def build_network() -> Any:
    """Build a network of the published one's shape, with random weights."""
    from transformers import DPTConfig, DPTForDepthEstimation

    return DPTForDepthEstimation(DPTConfig(**HYBRID))
