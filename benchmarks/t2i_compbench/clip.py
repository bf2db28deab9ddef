"""Compare images with texts by CLIP's cosine, as T2I-CompBench++ does for actions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.geneval.colors import CROPS, Clip
from harness.judges.placement import count_rows

OFFICIAL = "ViT-B-32-quickgelu"
WORDS = 77
"""Tokens of a text; the reference raises for a longer one, here it is cut and counted."""


class ClipScore(Clip):
    """Compare with a CLIP of open_clip; options are those of GenEval's color classifier."""

    option = "clip"
    missing = ""

    def compare(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[tuple[float, bool]]:
        """Return the cosine of each picture and text, and whether the text had to be cut."""
        import torch
        import torch.nn.functional as F
        from PIL import Image

        if not asked:
            return []
        self.load()
        size = count_rows(self._batch, self._device, CROPS)
        pictures = [self.preprocess(Image.fromarray(picture)) for picture, _ in asked]
        texts = [text for _, text in asked]
        pictures += pictures[-1:] * (-len(pictures) % size)
        texts += texts[-1:] * (-len(texts) % size)
        cosines: list[float] = []
        with torch.inference_mode(), self._mixed_precision():
            for first in range(0, len(texts), size):
                pixels_B3HW = torch.stack(pictures[first : first + size]).to(self._device)
                ids_BW = self._tokenizer(texts[first : first + size]).to(self._device)
                image_BD = F.normalize(self.network.encode_image(pixels_B3HW).float(), dim=-1)
                text_BD = F.normalize(self.network.encode_text(ids_BW).float(), dim=-1)
                cosines += (image_BD * text_BD).sum(-1).tolist()
        cut = [len(self._tokenizer.encode(text)) + 2 > WORDS for _, text in asked]
        return list(zip(cosines, cut, strict=False))
