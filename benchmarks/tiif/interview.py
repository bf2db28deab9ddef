"""The judge's side of TIIF-Bench: all questions about an image in one message, and what came back.

The reference draws one of three templates at random, at temperature 1, and repeats without an end
until a reply can be read (eval/eval_with_gpt4o.py). Here the prompt's id chooses the template, the
chat is greedy, the next attempt takes the next template, and attempts end. The templates say what
the reference's say, in other words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.tiif.answers import READING, read_fairly, refused
from harness.records import UserError, digest, dump

SYSTEM = "You are a professional critic of images."
TEMPLATES = (
    "Study the image carefully, then answer these yes/no questions about it:\n"
    "{questions}\n\n"
    "Rules:\n"
    "1. Every answer begins with yes or no; its reason follows.\n"
    "2. Every answer has a line of its own.\n"
    "3. The answers are in the order of the questions.\n"
    "4. Every question gets one answer; write nothing besides the answers, and as many of them as there are questions.",
    "Study the image carefully, then answer these yes/no questions about it:\n"
    "{questions}\n\n"
    "Begin every answer with yes or no and let its reason follow. Give every answer a line of its own. Keep the order "
    "of the questions. Give one answer to each question, a single one where there is a single question, and write "
    "nothing besides the answers: as many as there are questions.",
    "Study the image carefully, then answer these yes/no questions about it:\n"
    "{questions}\n\n"
    "Rules:\n"
    "1. Every answer begins with yes or no; a brief reason follows.\n"
    "2. Every answer has a line of its own.\n"
    "3. The answers are in the order of the questions.\n"
    "4. Every question gets one answer; write nothing besides the answers, and as many of them as there are questions.",
)


class Witness(Protocol):
    """Who looks at the images: a chat (harness/judges: vlm, local_vlm), or anything that answers in
    words.

    `tokens` counts what it read and wrote for each question of the last call, `served` names who
    answered each.
    """

    id: str
    tokens: Sequence[int]
    served: Sequence[str]

    def ready(self) -> None:
        """Raises UserError where it is known beforehand that no question can be answered."""
        ...

    def reply(
        self, questions: Sequence[str], images: Sequence[np.ndarray], system: str
    ) -> list[str | None]:
        """The reply to each question about its image; None where there was none."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """An image and the questions about it; `key` names the prompt."""

    key: str
    questions: Sequence[str]
    image: np.ndarray


@dataclass(frozen=True, slots=True)
class Heard:
    """What came back: `answers` are None where no reply could be read, `replies` are empty where
    there was none.
    """

    answers: tuple[str, ...] | None
    replies: tuple[str, ...]  # of each attempt, as they came; the last one was read
    served: str  # who replied last, as the service says
    tokens: int

    @property
    def problem(self) -> str:
        """Why there are no answers."""
        if not self.replies:
            return "no reply"
        return "refused" if refused(self.replies[-1]) else "unreadable"


class Interview:
    """A witness as the judge of a questionnaire; an unreadable reply is asked for again, `attempts`
    times in all.
    """

    def __init__(self, chat: Witness, attempts: int = 3) -> None:
        if attempts < 1:
            raise UserError(f"benchmark.judge.attempts={attempts}: at least one is needed")
        self.chat = chat
        self.attempts = attempts
        self.id = f"{chat.id}-{digest(dump([SYSTEM, TEMPLATES, READING]).encode(), 8)}"

    def ready(self) -> None:
        """Raises UserError where it is known beforehand that no question can be answered."""
        self.chat.ready()

    def ask(self, asked: Sequence[Asked]) -> list[Heard]:
        """The answers about each image."""
        heard = [Heard(None, (), "", 0)] * len(asked)
        waiting = list(range(len(asked)))
        for attempt in range(self.attempts):
            if not waiting:
                break
            texts = [message(asked[i].key, asked[i].questions, attempt) for i in waiting]
            replies = self.chat.reply(texts, [asked[i].image for i in waiting], SYSTEM)
            for i, reply, served, tokens in zip(
                waiting, replies, self.chat.served, self.chat.tokens, strict=True
            ):
                if reply is not None:
                    answers = read_fairly(reply, len(asked[i].questions))
                    heard[i] = Heard(
                        answers, (*heard[i].replies, reply), served, heard[i].tokens + tokens
                    )
            answered = dict(zip(waiting, replies, strict=True))
            waiting = [i for i in waiting if answered[i] is not None and heard[i].answers is None]
        return heard


def message(key: str, questions: Sequence[str], attempt: int = 0) -> str:
    """The text of a call: the template that the prompt's id chooses, on later attempts the next
    ones.
    """
    template = TEMPLATES[(int(digest(key.encode(), 8), 16) + attempt) % len(TEMPLATES)]
    return template.format(questions="\n".join(question.strip() for question in questions))
