"""Language models as verifier and as reward of edits (GridAR, arXiv 2511.21185, on EditAR).

Each question shows two pictures, the source and what was made of it. A selection judges each strip
twice, and its reply is turned into the words of a verifier of prompts, so that methods read both
alike. The questions have the content of the released ones in other words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial

from harness.engine.rendering import Image
from harness.judges.verifier import Chat, Shown, find_refusal
from harness.records import Answer, digest

KEYS = ("instruction_following", "source_preservation")
"""What is judged of each strip; one survives that passes in both."""
SHARES = {2: "half", 3: "third", 4: "quarter"}


def edit_select_question(instruction: str, strips: int) -> str:
    """Ask of each strip whether the edit can still be made, and whether the rest is kept."""
    share = SHARES.get(strips, f"1/{strips}")
    example = ", ".join(("pass", "fail")[i % 2] for i in range(strips))
    return (
        f'The first picture is a source. An image editor was told: "{instruction}". It paints from '
        f"top to bottom, and has begun {strips} results. The second picture stacks the top {share} "
        "of each, divided by black lines. Everything below is hidden, so that something absent "
        "proves nothing.\n"
        "Judge each strip, from top to bottom, in two ways that do not depend on each other:\n"
        f"- {KEYS[0]}: can the instruction still be fulfilled? fail only if what can be seen rules "
        "it out.\n"
        f"- {KEYS[1]}: is everything that the instruction does not concern consistent with the "
        "source? fail only for a clear break, such as another identity, a replaced background, or "
        "heavy artefacts.\n"
        f"Reply with JSON in one line and nothing else; each value is exactly {strips} words, pass "
        f'or fail, separated by commas: {{"{KEYS[0]}": "{example}", "{KEYS[1]}": "{example}"}}'
    )


def edit_rewrite_question(instruction: str) -> str:
    """Ask for a short command that finishes the edit in the part that is not painted yet."""
    return (
        "The first picture is a source. The second one is an unfinished edit of it by the "
        f'instruction "{instruction}"; the black part is not painted yet.\n'
        "Write a command of 3 to 7 words, in the imperative, that finishes the edit in the black "
        "part, judged from what is painted. If nothing is left to do there, repeat the "
        "instruction. Reply with the one sentence and nothing else."
    )


def edit_orm_question(instruction: str) -> str:
    """Ask whether an edit was made, and everything else kept."""
    return (
        "The first picture is a source, the second one an edit of it by the instruction "
        f'"{instruction}". Was the instruction carried out, and everything else kept as it was? '
        "Answer yes or no, without an explanation."
    )


def read_flags(reply: str, strips: int) -> str:
    """Turn a reply into one word a strip, "possible" where it passes in both.

    Lists are cut, or filled with fails, to the number of strips. Raises ValueError for a reply that
    is no JSON object with both keys.
    """
    found = re.search(r"\{.*?\}", reply.lower(), re.DOTALL)
    if found is None:
        raise ValueError("it holds no JSON object")
    values = json.loads(found[0])
    passes = [True] * strips
    for key in KEYS:
        if not isinstance(values.get(key), str):
            raise ValueError(f"its JSON has no list {key}")
        words = [word.strip() for word in values[key].split(",")]
        words += ["fail"] * strips
        passes = [passed and word == "pass" for passed, word in zip(passes, words, strict=False)]
    return ", ".join("possible" if passed else "impossible" for passed in passes)


class EditQuestioner:
    """A judge that puts a question about each instruction to a chat, with source and result.

    With `read` a reply in words is turned into the answer; what it cannot read is unreadable. A
    picture without a source gets no answer.
    """

    sees_source = True

    def __init__(
        self,
        chat: Chat,
        question: Callable[[str], str],
        *,
        wants_chance: bool = False,
        read: Callable[[str], str] | None = None,
    ) -> None:
        self._chat = chat
        self._question = question
        self._wants_chance = wants_chance
        self._read = read
        self.id = f"{chat.id}-{digest(question('{instruction}').encode(), 8)}"
        self.tokens: Sequence[int] = ()

    def ready(self) -> None:
        """Test the chat. Raises UserError if no question can be answered."""
        self._chat.ready("yes" if self._wants_chance else "reply")

    def __call__(
        self,
        texts: Sequence[str],
        images: Sequence[Image],
        sources: Sequence[Image | None],
    ) -> list[Answer]:
        # 1. Ask about those that have a source.
        asked = [i for i, source in enumerate(sources) if source is not None]
        questions = [self._question(texts[i]) for i in asked]
        shown: list[Shown] = []
        for i in asked:
            source = sources[i]
            assert source is not None
            shown.append((source, images[i]))
        ask = self._chat.yes if self._wants_chance else self._chat.reply
        answers = ask(questions, shown)

        # 2. Put answers and counts where they belong.
        found = [Answer("unreadable", reason="there is no source")] * len(texts)
        tokens = [0] * len(texts)
        for i, answer, count in zip(asked, answers, self._chat.tokens, strict=True):
            found[i] = self._type(find_refusal(texts[i], answer))
            tokens[i] = count
        self.tokens = tokens
        return found

    def _type(self, answer: Answer) -> Answer:
        if self._read is None or not answer.answered:
            return answer
        try:
            return Answer("answered", self._read(answer.value), answer.text)
        except ValueError as error:
            return Answer("unreadable", text=answer.text, reason=str(error))


class ChatEditVerifier:
    """A vision-language model as verifier of edits."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self.rewrite = EditQuestioner(chat, edit_rewrite_question)
        asked = [self.select(strips).id for strips in SHARES]
        asked.append(self.rewrite.id)
        self.id = f"{chat.id}-{digest(' '.join(asked).encode(), 8)}"

    def ready(self) -> None:
        """Test the chat. Raises UserError if no question can be answered."""
        self._chat.ready()

    def select(self, strips: int) -> EditQuestioner:
        """Return the judge of stacks of `strips` candidates' tops."""
        question = partial(edit_select_question, strips=strips)
        return EditQuestioner(self._chat, question, read=partial(read_flags, strips=strips))


class ChatEditReward(EditQuestioner):
    """A vision-language model as outcome reward of edits: its probability of yes."""

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat, edit_orm_question, wants_chance=True)
