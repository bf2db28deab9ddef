"""Verifiers look at unfinished images for a method; chats are the language models behind some.

A verifier is given prompts and pictures and answers in words, which the method reads. A chat
(`vlm`, `local_vlm`) answers questions about images. A new kind of verifier has `id`, `select` and
`rewrite`; a new language model has `id`, `tokens`, `ready`, `reply` and `yes`. Whoever cannot
answer a question says so (`Answer`): no method decides anything from that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from harness.engine.rendering import Image
from harness.engine.session import Judge
from harness.judges.replies import is_refusal
from harness.records import Answer, UserError, digest


class Verifier(Protocol):
    """Two judges that look at unfinished images and answer in words.

    Optional member: `ready()`, as in `Judge`.
    """

    id: str

    @property
    def rewrite(self) -> Judge:
        """Return the judge that rewrites a prompt so that it describes what is drawn already.

        A picture is one candidate, black where nothing is drawn yet.
        """
        ...

    def select(self, strips: int) -> Judge:
        """Return the judge that answers "possible" or "impossible" for each of `strips` candidates.

        A picture is a stack of the candidates' tops.
        """
        ...


HELPFUL = "You are a helpful assistant."
"""The usual system message."""


AnswerForm = Literal["reply", "yes"]
"""What a chat is asked for: words, or the probability of yes."""


Shown = Image | tuple[Image, ...]
"""What a chat is shown with a question: a picture, or several in order."""


def list_pictures(shown: Shown) -> tuple[Image, ...]:
    """List the pictures that are shown with a question."""
    return shown if isinstance(shown, tuple) else (shown,)


class Chat(Protocol):
    """A vision-language model. `tokens` counts what it read and wrote for each last question."""

    id: str
    tokens: Sequence[int]

    def ready(self, form: AnswerForm = "reply") -> None:
        """Raise UserError if it is known before a run that no question can be answered."""
        ...

    def reply(
        self, questions: Sequence[str], images: Sequence[Shown], system: str = HELPFUL
    ) -> list[Answer]:
        """Answer each question about its image, or its images, in words."""
        ...

    def yes(self, questions: Sequence[str], images: Sequence[Shown]) -> list[Answer]:
        """Answer each question by the probability of yes, 0 to 1."""
        ...


# --- questions (GridAR, arXiv 2511.21185; the content of the released prompts in other words) -----

_STRIP_SHARES = {2: "half", 3: "third", 4: "quarter"}
_NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}


def select_question(prompt: str, strips: int) -> str:
    """Ask which strips of a stack can still become a picture of the prompt."""
    share = _STRIP_SHARES.get(strips, f"1/{strips}")
    hidden = f"the bottom {share}" if strips == 2 else "everything below it"
    count = _NUMBER_WORDS.get(strips, str(strips))
    example = ", ".join(("possible", "impossible")[i % 2] for i in range(strips))
    return (
        f"An image generator paints from top to bottom. It began {count} different images of the "
        f'prompt "{prompt}".\n'
        f"The picture stacks {count} strips, divided by black lines. Each strip is the top {share} "
        f"of another image; {hidden} is hidden, so objects may still be absent, or cut off at the "
        "strip's lower edge.\n"
        "Decide for each strip whether its image can still be completed so that it satisfies the "
        "prompt. Look at colours, shapes, counts and spatial relations.\n"
        "- impossible: only when you are certain, because there are already too many objects, "
        "because a colour or a shape is wrong, or because no natural completion could match the "
        "prompt.\n"
        "- possible: whenever any reasonable way to complete it is left.\n"
        f"Reply with exactly {count} lower-case words, each possible or impossible, separated by "
        "commas, from the top strip to the bottom one, and nothing else. "
        f"The form is: {example}"
    )


def rewrite_question(prompt: str) -> str:
    """Ask for a prompt that describes what is drawn already."""
    return (
        "An image generator paints from top to bottom. This is its unfinished image of the prompt "
        f'"{prompt}"; the black part is not painted yet.\n'
        "Rewrite the prompt so that it describes the layout of the finished image, with the right "
        "total count and the right attributes, and so helps to complete the rest. Rules:\n"
        "- The same kinds of object and the same total count: add, remove and change nothing.\n"
        "- No new attributes.\n"
        "- Keep the original prompt, word for word, at the beginning; append only a short clause "
        "after a comma.\n"
        "- If all that is asked for can be seen already, even unfinished, leave the prompt as it "
        "is; but if the empty part invites extra objects, append a minimal clause that fixes the "
        "objects that are there as all there are.\n"
        "- When in doubt, return the original prompt.\n"
        "Examples:\n"
        "- six lemons, two of them visible: six lemons, two at the top and four at the bottom\n"
        "- a white horse, its head visible: a white horse\n"
        "- a kite and a bench, the kite visible: a kite and a bench, the kite at the top and the "
        "bench at the bottom\n"
        "- three candles, all three in a row with empty space below: three candles, all in a "
        "single row at the top\n"
        "Reply with the one sentence of the new prompt and nothing else."
    )


def orm_question(prompt: str) -> str:
    """Ask whether the finished image shows what the prompt says."""
    return (
        f'This image was generated from the prompt "{prompt}". Does it represent the prompt '
        "accurately? Answer yes or no, without an explanation."
    )


# --- language models as verifier and as reward ----------------------------------------------------

_Ask = Callable[[Sequence[str], Sequence[Image]], Sequence[Answer]]


class Questioner:
    """A judge that puts a question about each text to a chat.

    `question` makes the question of a text. `answer` says what the judge answers with: "reply", the
    chat's words, or "yes", its probability of yes. The question of `text_of_id` names the judge.
    Words that begin as refusals do are refused, unless the text begins so itself. Raises UserError
    for another `answer`.
    """

    def __init__(
        self,
        chat: Chat,
        question: Callable[[str], str],
        answer: str = "reply",
        text_of_id: str = "{prompt}",
    ) -> None:
        self._chat = chat
        self._question = question
        self._form = _read_form(answer)
        self._ask: _Ask = chat.yes if self._form == "yes" else chat.reply
        self.id = f"{chat.id}-{digest(question(text_of_id).encode(), 8)}"
        self.tokens: Sequence[int] = ()

    def ready(self) -> None:
        """Test the chat. Raises UserError if no question can be answered."""
        self._chat.ready(self._form)

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> Sequence[Answer]:
        questions = [self._question(text) for text in texts]
        answers = self._ask(questions, images)
        self.tokens = self._chat.tokens
        return [find_refusal(text, answer) for text, answer in zip(texts, answers, strict=True)]


def _read_form(answer: str) -> AnswerForm:
    if answer == "reply":
        return "reply"
    if answer == "yes":
        return "yes"
    raise UserError(f"answer={answer}: choose reply or yes")


def find_refusal(text: str, answer: Answer) -> Answer:
    """Type words that refuse as refused, unless the text begins so itself."""
    words = answer.value
    if isinstance(words, str) and is_refusal(words) and not is_refusal(text):
        return Answer("refused", text=answer.text, reason="the model refuses")
    return answer


class ChatVerifier:
    """A vision-language model as verifier."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self.rewrite = Questioner(chat, rewrite_question)
        asked = [self.select(strips).id for strips in _STRIP_SHARES]
        asked.append(self.rewrite.id)
        self.id = f"{chat.id}-{digest(' '.join(asked).encode(), 8)}"

    def ready(self) -> None:
        """Test the chat. Raises UserError if no question can be answered."""
        self._chat.ready()

    def select(self, strips: int) -> Questioner:
        """Return the judge of stacks of `strips` candidates' tops."""
        return Questioner(self._chat, lambda prompt: select_question(prompt, strips))


class ChatReward(Questioner):
    """A vision-language model as outcome reward: its probability of yes."""

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat, orm_question, "yes")
