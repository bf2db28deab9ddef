"""The embedded model's narrator: the grammar and the verifier's rules in place of a language model.

Its sentences are whole prompts with the layout clause that fits what is drawn, since the embedded
model knows no others. It takes every branch of a method that thinks while it draws; what it gains
says nothing about such methods on other models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from harness.engine.memory_need import takes_nothing
from harness.judges.pictogram_verifier import (
    PictogramVerifier,
    View,
    find_faults,
    infer_layout,
)
from harness.models.pictogram.grammar import DEFAULT, layout_clause, parse_layout
from harness.models.pictogram.world import Pixels

SCORES = (100, 50)
"""Of a picture without faults, and with one; it is 0 with more."""


class PictogramNarrator:
    """Describe and judge unfinished pictures of the embedded model (harness/judges/narrator.py).

    Prompts outside the grammar get no answer.
    """

    def __init__(self, weights: str = DEFAULT, part: str = "reward") -> None:
        self._verifier = PictogramVerifier(weights, part)
        self.id = f"{self._verifier.id}-narrator"

    memory_need = takes_nothing  # it runs on the CPU

    def thought(self, layer: int, layers: int) -> _Narration:
        """Return the judge that continues the prompt by what is drawn."""
        return _Narration(self._verifier, (layer - 1) / layers, is_critic=False)

    def critic(self, layer: int, layers: int) -> _Narration:
        """Return the judge that counts what cannot be mended any more."""
        return _Narration(self._verifier, layer / layers, is_critic=True)


class _Narration:
    """A judge of pictures whose top `share` is drawn."""

    def __init__(self, verifier: PictogramVerifier, share: float, *, is_critic: bool) -> None:
        self._verifier = verifier
        self._share = share
        self._is_critic = is_critic
        kind = "critic" if is_critic else "thought"
        self.id = f"{verifier.id}-{kind}-{share:g}"

    def __call__(self, texts: Sequence[str], images: Sequence[Pixels]) -> list[str | None]:
        tops = [image[: round(self._share * len(image))] for image in images]
        views = [View(0, ())] * len(tops)
        if self._share > 0:
            views = self._verifier.read_views(tops)
        return [self._reply(text, view) for text, view in zip(texts, views, strict=True)]

    def _reply(self, text: str, view: View) -> str | None:
        prompt = json.loads(text)["prompt"]
        parsed = parse_layout(prompt)
        if parsed is None:
            return None
        spec, stated = parsed
        sentence = prompt if stated else prompt + layout_clause(spec, infer_layout(spec, view))
        if not self._is_critic:
            return sentence
        faults = sum(1 for _ in find_faults(spec, view))
        score = SCORES[faults] if faults < len(SCORES) else 0
        return f"SCORE: {score}\nIMPROVED_DESCRIPTION: {sentence}"
