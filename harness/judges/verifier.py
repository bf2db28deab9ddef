"""Verifiers: who looks at unfinished images for a method, and the dialogue with the language models
among them.

A verifier sees a prompt and a picture and answers in words, which the method reads; a chat (`vlm`,
`local_vlm`) is the language model behind one. A new kind of verifier has `id`, `select` and
`rewrite`; a new language model `id`, `reply` and `yes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from harness.engine.rendering import Image
from harness.engine.session import Judge
from harness.records import digest


class Verifier(Protocol):
    """Looks at unfinished images; its judges get prompts and pictures and answer in words, None
    where they cannot.
    """

    id: str

    @property
    def rewrite(self) -> Judge:
        """Pictures are single candidates with the undrawn part black; an answer is the rewritten
        prompt.
        """
        ...

    def select(self, strips: int) -> Judge:
        """Pictures are stacks of `strips` candidates' tops; an answer is "possible" or "impossible"
        for each.
        """
        ...


HELPFUL = "You are a helpful assistant."
"""The usual system message."""


class Chat(Protocol):
    """A language model that sees. `tokens` counts what it read and wrote for each question of the
    last call.
    """

    id: str
    tokens: Sequence[int]

    def reply(
        self, questions: Sequence[str], images: Sequence[Image], system: str = HELPFUL
    ) -> list[str | None]:
        """The reply to each question about its image; None where there was none."""
        ...

    def yes(self, questions: Sequence[str], images: Sequence[Image]) -> list[float | None]:
        """The probability of answering yes, 0 to 1; None where the answer was neither yes nor
        no.
        """
        ...


# --- questions (GridAR, arXiv 2511.21185; the content of the released prompts in other words) -----

_PIECES = {2: "half", 3: "third", 4: "quarter"}
_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}


def select_question(prompt: str, strips: int) -> str:
    """Which strips of a composite can still become a picture of the prompt?"""
    piece = _PIECES.get(strips, f"1/{strips}")
    hidden = f"the bottom {piece}" if strips == 2 else "everything below it"
    many = _COUNTS.get(strips, str(strips))
    words = ", ".join(("possible", "impossible")[i % 2] for i in range(strips))
    return (
        f'An image generator paints from top to bottom. It began {many} different images of the prompt "{prompt}".\n'
        f"The picture stacks {many} strips, divided by black lines. Each strip is the top {piece} of another image; "
        f"{hidden} is hidden, so objects may still be absent, or cut off at the strip's lower edge.\n"
        "Decide for each strip whether its image can still be completed so that it satisfies the prompt. "
        "Look at colours, shapes, counts and spatial relations.\n"
        "- impossible: only when you are certain, because there are already too many objects, because a colour or a "
        "shape is wrong, or because no natural completion could match the prompt.\n"
        "- possible: whenever any reasonable way to complete it is left.\n"
        f"Reply with exactly {many} lower-case words, each possible or impossible, separated by commas, from the top "
        f"strip to the bottom one, and nothing else. The form is: {words}"
    )


def rewrite_question(prompt: str) -> str:
    """What should the prompt say, given what is drawn already?"""
    return (
        f'An image generator paints from top to bottom. This is its unfinished image of the prompt "{prompt}"; '
        "the black part is not painted yet.\n"
        "Rewrite the prompt so that it describes the layout of the finished image, with the right total count and the "
        "right attributes, and so helps to complete the rest. Rules:\n"
        "- The same kinds of object and the same total count: add, remove and change nothing.\n"
        "- No new attributes.\n"
        "- Keep the original prompt, word for word, at the beginning; append only a short clause after a comma.\n"
        "- If all that is asked for can be seen already, even unfinished, leave the prompt as it is; but if the empty "
        "part invites extra objects, append a minimal clause that fixes the objects that are there as all there are.\n"
        "- When in doubt, return the original prompt.\n"
        "Examples:\n"
        "- six lemons, two of them visible: six lemons, two at the top and four at the bottom\n"
        "- a white horse, its head visible: a white horse\n"
        "- a kite and a bench, the kite visible: a kite and a bench, the kite at the top and the bench at the bottom\n"
        "- three candles, all three in a row with empty space below: three candles, all in a single row at the top\n"
        "Reply with the one sentence of the new prompt and nothing else."
    )


def orm_question(prompt: str) -> str:
    """Does the finished image show what the prompt says?"""
    return (
        f'This image was generated from the prompt "{prompt}". Does it represent the prompt accurately? '
        "Answer yes or no, without an explanation."
    )


# --- language models as verifier and as reward ----------------------------------------------------


class Questioner:
    """A judge that puts a question about each text to a chat."""

    def __init__(self, chat: Chat, question: Callable[[str], str], answer: str = "reply") -> None:
        self._chat = chat
        self._question = question
        self._answer: Callable[[Sequence[str], Sequence[Image]], list] = getattr(chat, answer)
        self.id = f"{chat.id}-{digest(question('{prompt}').encode(), 8)}"
        self.tokens: Sequence[int] = ()

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list:
        answers = self._answer([self._question(text) for text in texts], images)
        self.tokens = self._chat.tokens
        return answers


class ChatVerifier:
    """A vision-language model as verifier."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self.rewrite = Questioner(chat, rewrite_question)
        asked = [self.select(strips).id for strips in _PIECES] + [self.rewrite.id]
        self.id = f"{chat.id}-{digest(' '.join(asked).encode(), 8)}"

    def select(self, strips: int) -> Questioner:
        return Questioner(self._chat, lambda prompt: select_question(prompt, strips))


class ChatReward(Questioner):
    """A vision-language model as outcome reward: its probability of yes."""

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat, orm_question, "yes")
