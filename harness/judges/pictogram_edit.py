"""Judge and reward of edits of the embedded model's world.

The judge decides by an answer key and the detections of detector A (`judge_edit`). The reward reads
the instruction, and what detector B finds in source and result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.engine.memory_need import takes_nothing
from harness.models.pictogram import edits
from harness.models.pictogram.detector import Detection, Detector, read_box_colors
from harness.models.pictogram.edit_reading import judge_edit, soft_scores

__all__ = ["Detection", "PictogramEditReward", "judge_edit", "read_box_colors"]


class PictogramEditReward:
    """Score how likely a picture is the edit of its source that an instruction asks for.

    It is the chance that the edit was made times the chance that the rest was kept. The score of a
    text that is no instruction of this world is None. `weights` is a shipped set or the folder of
    one.
    """

    sees_source = True

    def __init__(self, weights: str = "pictogram_16", part: str = "reward") -> None:
        self._detector, sha = Detector.load(weights, part)
        self.id = f"pictogram-edit-{part}-{sha[:12]}"

    memory_need = takes_nothing  # it runs on the CPU

    def __call__(
        self,
        texts: Sequence[str],
        images: Sequence[np.ndarray],
        sources: Sequence[np.ndarray | None],
    ) -> list[float | None]:
        seen = self._detector.detect([*images, *(one for one in sources if one is not None)])
        results = seen[: len(images)]
        before = iter(seen[len(images) :])
        scores: list[float | None] = []
        for text, found, source in zip(texts, results, sources, strict=True):
            request = edits.parse(text)
            present = [] if source is None else next(before)
            if request is None or source is None:
                scores.append(None)
                continue
            done, kept = soft_scores(request, present, found)
            scores.append(done * kept)
        return scores
