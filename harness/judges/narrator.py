"""Narrators describe an image while it is drawn, layer by layer, and judge what is drawn (TwiG).

An image is drawn in horizontal layers. A narrator says in a sentence what the next one shows, and
scores the last one. It answers in words, which the method reads. What it is told is a JSON text of
`prompt`, `previous` (the sentences before) and `thought` (the layer's sentence).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Protocol

from harness.engine.session import Judge
from harness.judges.verifier import Chat, Questioner
from harness.records import digest


class Narrator(Protocol):
    """Judges that write and criticise the description of an image's layers, counted from 1.

    Optional member: `ready()`, as in `Judge`.
    """

    id: str

    def thought(self, layer: int, layers: int) -> Judge:
        """Return the judge that says in a sentence what a layer shows.

        It is told `prompt` and `previous`, and shown the layers before; before the first one, a
        blank picture.
        """
        ...

    def critic(self, layer: int, layers: int) -> Judge:
        """Return the judge that scores a layer from 0 to 100, and writes a better sentence.

        It is told `prompt`, `previous` and `thought`, and shown the layers up to this one. It
        answers in two lines, "SCORE: 83" and "IMPROVED_DESCRIPTION: ...".
        """
        ...


# --- questions (TwiG, arXiv 2511.16671; the content of the released prompts in other words) -------

PARTS_OF_THREE = ("top", "middle", "bottom")


def name_part(layer: int, layers: int) -> str:
    """Name a layer in words."""
    if layers == len(PARTS_OF_THREE):
        return f"{PARTS_OF_THREE[layer - 1]} third"
    return f"part {layer} of {layers} from the top"


def thought_question(layer: int, layers: int, text: str) -> str:
    """Ask what the next layer shows."""
    given = json.loads(text)
    part = name_part(layer, layers)
    intro = (
        f'An image of the prompt "{given["prompt"]}" is painted from top to bottom, in {layers} '
        f"horizontal parts, each described by one sentence.\n"
    )
    rules = (
        "Use what the prompt says or implies only: no new objects, details or backgrounds. Be "
        "short and literal, name no part by its position, and reply with the sentence alone."
    )
    if layer == 1:
        return f"{intro}Write the sentence for the {part}. {rules}"
    return (
        f'{intro}The parts so far are described as: "{given["previous"]}"\n'
        f"The picture shows what is painted above a flat placeholder. Write the sentence for "
        f"the {part}: only what naturally continues the picture, without repeating what is there. "
        f"Where the picture and the description disagree, follow the picture. {rules}"
    )


def critic_question(layer: int, layers: int, text: str) -> str:
    """Ask how good a layer is, and for a better sentence."""
    given = json.loads(text)
    part = name_part(layer, layers)
    earlier = f'The parts before: "{given["previous"]}"\n' if given["previous"] else ""
    rest = "" if layer == layers else " Ignore the flat placeholder below it."
    return (
        f'An image of the prompt "{given["prompt"]}" is painted from top to bottom, in {layers} '
        f'horizontal parts.\n{earlier}The {part} is meant to show: "{given["thought"]}"\n'
        f"Look at the {part} of the picture.{rest}\n"
        "1. Give an integer from 0 to 100 for how well this part fits the prompt and its sentence: "
        "colours, completeness, detail, spatial relations, coherence. An object that is cut off at "
        "its lower edge is fine. Use the whole scale, do not round to fives; 95 and more are for "
        "perfection only.\n"
        "2. Write a better sentence for this part alone: precise and literal, mending what you "
        "found, true to the prompt, leaving no object of it out, in harmony with the other parts, "
        "and without naming positions.\n"
        "Reply with exactly two lines:\nSCORE: <integer>\nIMPROVED_DESCRIPTION: <sentence>"
    )


_LayerQuestion = Callable[[int, int, str], str]


class ChatNarrator:
    """A vision-language model as narrator."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        samples = [
            question(layer, 3, _SAMPLE)
            for question in (thought_question, critic_question)
            for layer in (1, 2, 3)
        ]
        self.id = f"{chat.id}-narrator-{digest(' '.join(samples).encode(), 8)}"

    def ready(self) -> None:
        """Test the chat. Raises UserError if no question can be answered."""
        self._chat.ready()

    def thought(self, layer: int, layers: int) -> Questioner:
        """Return the judge that writes a layer's sentence."""
        return self._ask(thought_question, layer, layers)

    def critic(self, layer: int, layers: int) -> Questioner:
        """Return the judge that scores a layer."""
        return self._ask(critic_question, layer, layers)

    def _ask(self, question: _LayerQuestion, layer: int, layers: int) -> Questioner:
        return Questioner(self._chat, partial(question, layer, layers), text_of_id=_SAMPLE)


_SAMPLE = json.dumps({"prompt": "{prompt}", "previous": "{previous}", "thought": "{thought}"})
"""Stands for what is told, where a question is part of an id."""
