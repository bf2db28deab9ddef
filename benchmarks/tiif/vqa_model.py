"""Judge images by a VQA model: ask it all questions about an image at once, read its reply.

VQA is visual question answering. The reference draws one of three templates at random, at
temperature 1, and repeats without an end until a reply can be read (eval/eval_with_gpt4o.py). Here
the prompt's id chooses the template, the model is greedy, the next attempt takes the next template,
and attempts end. The templates say what the reference's say, in other words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.tiif.answers import READING, is_refusal, read_fairly
from harness.records import Answer, Count, UserError, digest, dump

SYSTEM = "You are a professional critic of images."
TEMPLATES = (
    "Study the image carefully, then answer these yes/no questions about it:\n"
    "{questions}\n\n"
    "Rules:\n"
    "1. Every answer begins with yes or no; its reason follows.\n"
    "2. Every answer has a line of its own.\n"
    "3. The answers are in the order of the questions.\n"
    "4. Every question gets one answer; write nothing besides the answers, "
    "and as many of them as there are questions.",
    "Study the image carefully, then answer these yes/no questions about it:\n"
    "{questions}\n\n"
    "Begin every answer with yes or no and let its reason follow. "
    "Give every answer a line of its own. Keep the order of the questions. "
    "Give one answer to each question, a single one where there is a single question, "
    "and write nothing besides the answers: as many as there are questions.",
    "Study the image carefully, then answer these yes/no questions about it:\n"
    "{questions}\n\n"
    "Rules:\n"
    "1. Every answer begins with yes or no; a brief reason follows.\n"
    "2. Every answer has a line of its own.\n"
    "3. The answers are in the order of the questions.\n"
    "4. Every question gets one answer; write nothing besides the answers, "
    "and as many of them as there are questions.",
)
"""A judge's id holds a hash of these texts: a change of them makes another judge."""


class VQAModel(Protocol):
    """Anything that answers questions about images in words.

    It may be a chat with a vision-language model (harness/judges: vlm, local_vlm), or a detector
    (benchmarks/tiif_pictogram/detector_vqa.py). After a call, `tokens` counts what was read and
    written for each question, and `served` names who answered it.
    """

    id: str
    tokens: Sequence[int]
    served: Sequence[str]

    def ready(self) -> None:
        """Raise UserError if it is known beforehand that no question can be answered."""
        ...

    def reply(
        self, questions: Sequence[str], images: Sequence[np.ndarray], system: str
    ) -> Sequence[Answer | str | None]:
        """Reply to each question about its image; None where there was no reply.

        An `Answer` says why there is none, or which kind of reply it is.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImageQuestions:
    """Hold an image and the questions about it; `key` is the prompt's id."""

    key: str
    questions: Sequence[str]
    image: np.ndarray


@dataclass(frozen=True, slots=True)
class ImageAnswers:
    """Hold the answers about an image; they are None if no reply could be read."""

    answers: tuple[str, ...] | None
    replies: tuple[str, ...]  # of each attempt; the answers are the last one's
    served: str  # who replied last, as the service says
    tokens: int
    silence: Answer | None = None  # the last reply, if the model says itself that it is none

    @property
    def problem(self) -> str:
        """Why there are no answers."""
        if self.silence is not None:
            kind = "no reply" if self.silence.kind == "unreachable" else self.silence.kind
            return kind + (f": {self.silence.reason}" if self.silence.reason else "")
        return "refused" if is_refusal(self.replies[-1]) else "unreadable"


class VQAJudge:
    """Judge images by a VQA model, which is asked up to `attempts` times for a readable reply."""

    def __init__(self, chat: VQAModel, attempts: Count = 3) -> None:
        if attempts < 1:
            raise UserError(f"benchmark.judge.attempts={attempts}: at least one is needed")
        self.chat = chat
        self.attempts = attempts
        self.id = f"{chat.id}-{digest(dump([SYSTEM, TEMPLATES, READING]).encode(), 8)}"

    def ready(self) -> None:
        """Raise UserError if it is known beforehand that no question can be answered."""
        self.chat.ready()

    def ask(self, asked: Sequence[ImageQuestions]) -> list[ImageAnswers]:
        """Ask about each image; an unreadable reply is asked for again, a missing one is not.

        An image about which any attempt reached nobody has no replies: the judge may yet answer.
        """
        answered = [ImageAnswers(None, (), "", 0)] * len(asked)
        waiting = list(range(len(asked)))
        for attempt in range(self.attempts):
            if not waiting:
                break
            messages = [write_message(asked[i].key, asked[i].questions, attempt) for i in waiting]
            replies = self.chat.reply(messages, [asked[i].image for i in waiting], SYSTEM)

            unreadable = []
            for i, reply, served, tokens in zip(
                waiting, replies, self.chat.served, self.chat.tokens, strict=True
            ):
                said = Answer("unreachable") if reply is None else Answer.of(reply)
                before = answered[i]
                spent = before.tokens + tokens
                if said.kind == "unreachable":
                    answered[i] = ImageAnswers(None, (), served, spent, said)
                    continue
                answered[i] = _read_answers(asked[i], before, said, served, spent)
                if answered[i].answers is None:
                    unreadable.append(i)
            waiting = unreadable
        return answered


def _read_answers(
    asked: ImageQuestions, before: ImageAnswers, said: Answer, served: str, tokens: int
) -> ImageAnswers:
    """Read the answers to all questions out of a reply, and keep it behind the earlier ones."""
    if not said.answered:
        return ImageAnswers(None, (*before.replies, said.text), served, tokens, said)
    answers = read_fairly(said.value, len(asked.questions))
    return ImageAnswers(answers, (*before.replies, said.value), served, tokens)


def write_message(key: str, questions: Sequence[str], attempt: int = 0) -> str:
    """Write the message of a call.

    The prompt's id `key` chooses the template of the first attempt; the next attempts take the next
    ones.
    """
    first = int(digest(key.encode(), 8), 16)
    template = TEMPLATES[(first + attempt) % len(TEMPLATES)]
    return template.format(questions="\n".join(question.strip() for question in questions))
