"""TwiG, without training: a sentence before each layer of the image, and a critic behind it.

Guo et al., "Thinking-while-Generating: Interleaving Textual Reasoning throughout Visual
Generation", arXiv 2511.16671, after the released code (ZiyuGuo99/Thinking-while-Generating).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness import Canvas, Count, Image, Narrator, Natural, Session, UserError, cfg

PLACEHOLDERS = ("zero", "model")
PASSES = 100
"""Score of a review that says none, in the released code."""
BLANK = np.full((64, 64, 3), 255, dtype=np.uint8)
"""What a narrator is shown before anything is drawn."""

_SCORE = re.compile(r"SCORE\s*:\D*?(\d+)", re.IGNORECASE)
_SENTENCE = re.compile(r"IMPROVED_DESCRIPTION\s*:(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Review:
    """What a critic said of a layer: its score, and a better sentence, empty if there is none."""

    score: int
    sentence: str


class TwiG:
    """Draw the image in `layers`; think before each, and draw one again that the critic dislikes.

    Before a layer, the narrator writes a sentence about it; the sentences so far are the whole
    prompt of the layer (`keep_prompt` puts the prompt itself in front; without `join` the last
    sentence alone is the prompt, for narrators whose sentences are whole prompts). Behind a layer,
    the critic scores it from 0 to 100. Below `theta` the layer is drawn again with the critic's
    better sentence and fresh noise, at most `redraws` times. The null prompt stays that of the
    prompt. `think` False keeps the prompt, for critic and redraws alone.

    The critic sees undrawn tokens as token 0 (`placeholder: zero`) or as the model shows them.
    Where the narrator does not answer, the image fails; `released_fallback` goes on as the released
    code does where it refuses or cannot be read: the layer passes, and the sentences stay as they
    are.

    A layer that is drawn again goes on in another canvas: the ledger's discarded tokens are those
    that the delivered canvas did not draw itself. Raises UserError for values out of range, and for
    a grid that the layers do not divide.
    """

    branches = 2
    tokens_per_step = 1
    needs_guidance = True

    def __init__(
        self,
        narrator: Narrator,
        layers: Count = 3,
        theta: Natural = 90,
        redraws: Natural = 1,
        think: bool = True,
        keep_prompt: bool = False,
        join: bool = True,
        placeholder: str = "zero",
        released_fallback: bool = False,
    ) -> None:
        if layers < 1:
            raise UserError(f"method.layers={layers}: must be at least 1")
        if redraws < 0:
            raise UserError(f"method.redraws={redraws}: must be 0 (no critic) or positive")
        if placeholder not in PLACEHOLDERS:
            raise UserError(
                f"method.placeholder={placeholder}: choose from {', '.join(PLACEHOLDERS)}"
            )
        self.narrator = narrator
        self.layers = layers
        self.theta = theta
        self.redraws = redraws
        self.think = think
        self.keep_prompt = keep_prompt
        self.join = join
        self.placeholder = placeholder
        self.released_fallback = released_fallback
        self.rewrites_prompts = think or redraws > 0
        self.rows = 2 if redraws else 1
        self._thoughts = [narrator.thought(k, layers) for k in range(1, 1 + layers)]
        self._critics = [narrator.critic(k, layers) for k in range(1, 1 + layers)]

    def expect_grid(self, grid: tuple[int, int]) -> None:
        """Raise UserError if the layers are no whole rows of tokens."""
        if grid[0] % self.layers:
            raise UserError(
                f"method.layers={self.layers}: the image has {grid[0]} rows of tokens; choose a "
                "number of layers that divides them"
            )

    async def generate(self, prompt: str, s: Session) -> Canvas:
        canvas, *spares = s.open(self.rows)
        spare = spares[0] if spares else None
        sentences: list[str] = [prompt] if self.keep_prompt or not self.think else []
        facts: list[dict[str, Any]] = []
        for layer in range(self.layers):
            # 1. Think: one more sentence, and the prompt that the sentences make.
            before = list(sentences)
            thought = prompt
            if self.think:
                thought = await self._think(layer, prompt, sentences, canvas, s)
                sentences = self._extend(before, thought)
            self._condition(canvas, sentences or [prompt], s)

            # 2. Draw.
            first = canvas.length
            until = s.raster.places_of_rows(s.grid[0] * (layer + 1) // self.layers)
            await s.run([canvas], until=until)

            # 3. Draw it again while the critic dislikes it.
            reviews: list[Review] = []
            for _ in range(self.redraws):
                assert spare is not None
                review = await self._review(layer, prompt, before, thought, canvas, s)
                reviews.append(review)
                if review.score >= self.theta or not review.sentence:
                    break
                sentences = self._extend(before, review.sentence)
                thought = review.sentence
                s.fork(canvas, over=spare)
                s.truncate(spare, first)
                self._condition(spare, sentences, s)
                await s.run([spare], until=until)
                canvas, spare = spare, canvas
            scores = [review.score for review in reviews]
            facts.append({"text": self._join(sentences or [prompt]), "scores": scores})
        s.note(layers=facts)
        return canvas

    async def _think(
        self, layer: int, prompt: str, sentences: list[str], canvas: Canvas, s: Session
    ) -> str:
        """Ask for the sentence of a layer; the last one stays where there is no answer."""
        picture = BLANK
        if layer:
            (picture,) = await self._render(canvas, s)
        text = json.dumps({"prompt": prompt, "previous": self._join(sentences)})
        (sentence,) = await s.ask(
            self._thoughts[layer],
            text,
            [picture],
            read=read_sentence,
            allow_silence=self.released_fallback,
        )
        return sentence or ""

    async def _review(
        self,
        layer: int,
        prompt: str,
        before: list[str],
        thought: str,
        canvas: Canvas,
        s: Session,
    ) -> Review:
        """Ask the critic about a layer; it passes where there is no answer."""
        pictures = await self._render(canvas, s)
        text = json.dumps({"prompt": prompt, "previous": self._join(before), "thought": thought})
        (reply,) = await s.ask(
            self._critics[layer],
            text,
            pictures,
            read=None if self.released_fallback else read_review,
            allow_silence=self.released_fallback,
        )
        return Review(PASSES, "") if reply is None else parse_review(reply)

    async def _render(self, canvas: Canvas, s: Session) -> list[Image]:
        """Decode what is drawn, with the placeholder below it."""
        missing = s.raster.count_codes(canvas.length, s.num_tokens)
        shown = [0] * missing if self.placeholder == "zero" else []
        return await s.render([canvas], [shown])

    def _condition(self, canvas: Canvas, sentences: list[str], s: Session) -> None:
        s.condition(canvas, (None, self._join(sentences)), cfg)

    def _extend(self, sentences: list[str], sentence: str) -> list[str]:
        """Add a sentence to those before; an empty one changes nothing."""
        if not sentence:
            return list(sentences)
        return [*sentences, sentence] if self.join else [sentence]

    def _join(self, sentences: list[str]) -> str:
        return " ".join(sentences)


def read_sentence(reply: str) -> str:
    """Read a reply that is a sentence. Raises ValueError for one without words."""
    sentence = " ".join(reply.split())
    if not any(character.isalpha() for character in sentence):
        raise ValueError("it holds no sentence")
    return sentence


def read_review(reply: str) -> str:
    """Check that a reply has a score and a sentence. Raises ValueError for another."""
    if not _SCORE.search(reply) or not parse_review(reply).sentence:
        raise ValueError("it does not hold SCORE and IMPROVED_DESCRIPTION")
    return reply


def parse_review(reply: str) -> Review:
    """Read a review as the released code does: no score, or no sentence, passes."""
    sentence = _SENTENCE.search(reply)
    words = " ".join(sentence.group(1).split()) if sentence else ""
    score = _SCORE.search(reply)
    if not words or not score:
        return Review(PASSES, words)
    return Review(int(score.group(1)), words)
