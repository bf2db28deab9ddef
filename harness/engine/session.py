"""The whole interface of a method: what it declares, what it is made of, and what it may do.

`Method` is what a test-time method looks like. It may be made of judges, drafters and another
method's decoding (`Judge`, `Drafter`, `Decoding`). The only object it is given is a `Session`: all
that it can do for its one prompt, and nothing more. A session gives no access to model, ledger,
clock, batch, the answer key or other jobs. Its awaitable calls are requests (at the end of this
file); the scheduler carries out the requests of hundreds of sessions as one batch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor

from harness.engine.acceptance import Draft, Front, Rule, exact
from harness.engine.author_errors import StartedCall, expect_rows
from harness.engine.canvas import Canvas, Context
from harness.engine.draft_trees import Tree
from harness.engine.guidance import Guide
from harness.engine.job_state import JobState
from harness.engine.probes import Probe
from harness.engine.rendering import Image
from harness.engine.sampler import Sampler
from harness.models import HasPromptLimit
from harness.models.raster import Raster
from harness.records import JSON, PROMPT_CUT, Answer, UnansweredError, describe_silence, dump

# ------------------------------------------------------------------ methods and their parts


class Method(Protocol):
    """One test-time method: a class with some declarations and a coroutine about one prompt.

        class BestOfTwo:
            rows = 2
            branches = 2
            tokens_per_step = 1

            async def generate(self, prompt: str, s: Session) -> Canvas:
                first, second = s.open(2)
                await s.run([first, second])
                better = math.fsum(first.log_probs) >= math.fsum(second.log_probs)
                return first if better else second

    One object serves all prompts of a run, many of them at once: what belongs to one prompt lives
    in local variables of `generate`. It awaits calls of its session only, and returns one of its
    canvases, finished. What it raises fails this image alone; a UserError ends the run.

    Judges, drafters, rules and a decoding are attributes of the object. The `id` of each becomes
    part of the run's fingerprint; one that depends on the model checks it in
    `expect_target(model: ImageModel)`, which raises UserError before anything is computed.

    Optional members: `tree_capacity`, the nodes of the largest draft tree (default 0: drafts are
    chains). `needs_guidance = True` refuses a run without guidance. `rewrites_prompts = True` keeps
    the model's text encoder on the device, for texts that come up while images are drawn.
    `expect_grid(grid)` raises UserError for (rows, columns) of tokens on which the method cannot
    draw.
    """

    rows: int
    """Canvases that `generate` opens for one prompt; closing one does not allow another."""
    branches: int
    """Branches of one canvas at most: 2 under guidance (null prompt and prompt)."""
    tokens_per_step: int
    """Tokens of one branch in one forward at most: 1, or 1 + the tokens of the longest draft."""

    async def generate(self, prompt: str, s: Session) -> Canvas:
        """Draw one image for `prompt` and return its canvas, finished."""
        ...


class Decoding(Protocol):
    """A way to finish canvases other than `Session.run`, for methods that hold several of them.

    Such a method keeps it as an attribute and declares at least the decoding's `tokens_per_step`
    and `tree_capacity` as its own. They count what a method's do; `tree_capacity` is 0 without
    draft trees.
    """

    tokens_per_step: int
    tree_capacity: int

    async def finish(self, rows: Sequence[Canvas], s: Session) -> None:
        """Draw every row to its end."""
        ...


class Drafter(Protocol):
    """A source of drafts: tokens that the target model then verifies.

    Optional members: `trees = True` says that it drafts trees, too. `hidden = True` asks for a
    sampler that keeps the hidden state of every position. `expect_target(model: ImageModel)` raises
    UserError for a model that it cannot draft for. `memory_need` says what it takes of the device
    (`harness.engine.memory_need`), and `release()` lets go of all that it holds for a sampler: the
    next `propose` makes it anew.
    """

    def propose(
        self, sampler: Sampler, rows: Sequence[Canvas], n: int | Tree, sibling: int = 0
    ) -> Sequence[Draft | None]:
        """Propose one draft for each row, None where none fits; rows of many jobs come together.

        `n` is the length of a chain, or the shape of a tree. Drafts are cut at the end of the
        image, so that one more token fits. Each `sibling` (0, 1, ...) is an independent proposal
        from the same place. A row's draft must not depend on the other rows.
        """
        ...


@runtime_checkable
class FrontDrafter(Protocol):
    """A drafter that also proposes chains at several places of an image at once."""

    def propose_at(
        self,
        sampler: Sampler,
        rows: Sequence[Canvas],
        spans: Sequence[Sequence[tuple[int, int]]],
    ) -> Sequence[Sequence[Draft | None]]:
        """Propose a chain for each span of each row, a place and a length; None for length 0.

        A span's draft must not depend on the other rows.
        """
        ...


class Judge(Protocol):
    """A judge of images, or a reward. `id` names weights or revision, and the question's wording.

    The texts and images of many jobs come at once; an answer must not depend on the others.

    Optional members: `ready()` is called before anything is drawn, and raises UserError if it is
    known by then that no question can be answered; `memory_need` says what it takes of the device
    (`harness.engine.memory_need`).
    """

    id: str

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> Sequence[Any]:
        """Answer once for each pair of text and image.

        An answer is a value, None where the judge cannot tell, or an `Answer`, which says why there
        is none. A reward's values are scores, larger is better; only images of one text are
        compared. Raises UserError where no question can be answered any more: it ends the run.
        """
        ...


@runtime_checkable
class TokenCountingJudge(Judge, Protocol):
    """A judge that is a language model, and counts what it reads and writes."""

    tokens: Sequence[int]
    """Tokens read and written for each question of the last call."""


@runtime_checkable
class EditJudge(Protocol):
    """A judge of edits: it is given the image that each one was made from, too.

    `sees_source = True` says so. Texts are instructions. Everything else is as in `Judge`.
    """

    id: str
    sees_source: bool

    def __call__(
        self, texts: Sequence[str], images: Sequence[Image], sources: Sequence[Image | None]
    ) -> Sequence[Any]:
        """Answer once for each text, image and source; the source is None where there is none."""
        ...


# ------------------------------------------------------------------ the session

_Options = ParamSpec("_Options")
_Result = TypeVar("_Result")
_Call = Callable[Concatenate["Session", _Options], Coroutine[Any, Any, _Result]]


def _awaited(call: _Call[_Options, _Result]) -> _Call[_Options, _Result]:
    """Note each call of a session that has to be awaited, so that a forgotten await is found."""

    @functools.wraps(call)
    def start(
        self: Session, *args: _Options.args, **options: _Options.kwargs
    ) -> Coroutine[Any, Any, _Result]:
        coroutine = call(self, *args, **options)
        self._state.note_call(StartedCall.of(call.__name__, coroutine, inspect.currentframe()))
        return coroutine

    return start


@dataclass(eq=False, slots=True)
class Session:
    """What a method may do for one prompt. The scheduler makes one for each job.

    Calls that are not awaited take effect at once; awaited ones are answered by the scheduler,
    together with those of other jobs. All of them raise ValueError for a canvas that is closed or
    belongs to another job.
    """

    _sampler: Sampler
    _state: JobState

    @property
    def num_tokens(self) -> int:
        """Count the tokens of a finished image, those of forced places included."""
        return self._sampler.model.num_tokens

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of codes."""
        return self._sampler.model.grid

    @property
    def raster(self) -> Raster:
        """Return the places of an image: how rows follow one another, and which are forced.

        At a forced place nothing is drawn: a canvas holds token 0 there, for sure, and the model is
        fed what belongs there, such as the end of a row.
        """
        return self._sampler.raster

    @property
    def codebook(self) -> Tensor:
        """Code vectors [V, d] of the image tokenizer."""
        return self._sampler.model.codebook

    def rng(self, purpose: str) -> np.random.Generator:
        """Make a generator of random numbers for the host: the same numbers in every run.

        They depend on seed, prompt, image and `purpose` alone.
        """
        return np.random.default_rng(self._state.derive_key("rng", purpose))

    # -------------------------------------------------------------- immediate

    def open(self, n: int = 1) -> list[Canvas]:
        """Open `n` fresh canvases for the prompt. Candidate i has the same noise in every method.

        Raises RuntimeError for more canvases than the method's `rows`.
        """
        prompt = self._state.job.prompt
        contexts, guide = self._sampler.contexts(prompt.text, prompt.source)
        return [self._open_canvas(contexts, guide) for _ in range(n)]

    def _open_canvas(self, contexts: list[Context], guide: Guide) -> Canvas:
        self._state.expect_free_slots()
        key = self._state.derive_key(self._state.opened)
        canvas = self._sampler.open(contexts, guide, key, self._state.usage)
        self._state.add_canvas(canvas)
        return canvas

    def close(self, canvas: Canvas) -> None:
        """Throw a canvas away. Its slots go to other prompts at once, for good."""
        self._state.expect_open(canvas)
        self._state.give_up_canvas(canvas)
        self._sampler.close(canvas)

    def fork(self, src: Canvas, over: Canvas) -> None:
        """Turn `over` into a copy of `src` that goes on with noise of its own."""
        self._state.expect_open(src, over)
        self._sampler.fork(src, over)

    def condition(self, canvas: Canvas, texts: Sequence[str | None], guide: Guide) -> None:
        """Condition the branches on `texts` (None = the null prompt) from here on.

        `guide` makes one prediction of their logits. Raises RuntimeError for more texts than the
        method's `branches`.
        """
        self._state.expect_open(canvas)
        prompt = self._state.job.prompt
        contexts = [
            Context(text, prompt.text if text is None else text, prompt.source) for text in texts
        ]
        contexts, guide = self._sampler.guide_by_image(contexts, guide)
        branches = self._state.branches
        if len(contexts) > branches:
            raise RuntimeError(
                f"{len(contexts)} branches asked for: the method's `branches` declares {branches}"
            )
        self._sampler.condition(canvas, contexts, guide)
        for text in texts:
            self._note_cut(text)

    def _note_cut(self, text: str | None) -> None:
        """Note how many positions of a text's end the model does not read, if that is the most."""
        model = self._sampler.model
        if text is None or not isinstance(model, HasPromptLimit):
            return
        if cut := model.count_cut(text):
            before = self._state.notes.get(PROMPT_CUT, 0)
            assert isinstance(before, int)
            self._state.notes[PROMPT_CUT] = max(before, cut)

    def truncate(self, canvas: Canvas, length: int) -> None:
        """Keep the first `length` tokens. Drawing on gives the same tokens again."""
        self._state.expect_open(canvas)
        self._sampler.truncate(canvas, length)

    def commit(self, canvas: Canvas, tokens: Sequence[int]) -> None:
        """Append tokens that the target model has not verified."""
        self._state.expect_open(canvas)
        self._sampler.commit(canvas, tokens)

    def note(self, **facts: JSON) -> None:
        """Record facts in the journal line of this image; a later one replaces its namesake.

        Raises ValueError for numbers that are not finite and TypeError for what JSON cannot hold:
        the image fails.
        """
        for name, fact in facts.items():
            expect_json(name, fact)
        self._state.notes.update(facts)

    # -------------------------------------------------------------- awaitable

    @_awaited
    async def run(self, rows: Sequence[Canvas], until: int | None = None) -> None:
        """Draw tokens until every row has `until` of them (default: all)."""
        self._expect_rows(rows, "run")
        await RunRequest(list(rows), self.num_tokens if until is None else until)

    @_awaited
    async def look(self, rows: Sequence[Canvas], probe: Probe) -> list[dict[str, float]]:
        """Read signals of each row's next-token distribution before the token is drawn.

        The `step` that follows needs no forward.
        """
        self._expect_rows(rows, "look")
        signals = await LookRequest(list(rows), [None] * len(rows), probe)
        return [places[0] for places in signals]

    @_awaited
    async def look_along(
        self, rows: Sequence[Canvas], drafts: Sequence[Draft | None], probe: Probe
    ) -> list[list[dict[str, float]]]:
        """Read signals at the next place of every row, and behind each token of its draft.

        Those behind a token that is then rejected belong to no place. The `step` that follows with
        the same drafts needs no forward.
        """
        self._expect_rows(rows, "look_along")
        return await LookRequest(list(rows), list(drafts), probe)

    @_awaited
    async def step(
        self,
        rows: Sequence[Canvas],
        drafts: Sequence[Draft | None] | None = None,
        rule: Rule = exact,
    ) -> list[int]:
        """Verify each row's draft by `rule` and draw one more token.

        Returns how many draft tokens of each row were accepted.
        """
        self._expect_rows(rows, "step")
        if drafts is None:
            drafts = [None] * len(rows)
        return await StepRequest(list(rows), list(drafts), rule)

    @_awaited
    async def draw_at(self, rows: Sequence[Canvas], places: Sequence[Sequence[int]]) -> None:
        """Draw the tokens at chosen places of every row in one forward.

        Each is drawn from the tokens that exist before it in the raster. A row's `tokens` end
        before its first gap; until its gaps are filled, it can only be drawn at places, or
        truncated.
        """
        self._expect_rows(rows, "draw_at")
        fronts = [[Front(place) for place in places_of_row] for places_of_row in places]
        await StepAtRequest(list(rows), fronts, exact)

    @_awaited
    async def step_at(
        self,
        rows: Sequence[Canvas],
        fronts: Sequence[Sequence[Front]],
        rule: Rule = exact,
    ) -> list[list[int]]:
        """Verify the drafts at some fronts of every row, and draw a token behind each.

        One forward serves all fronts; they lie in different rows of the image, and a draft is
        unseen by the other fronts. As with `draw_at`, a row's `tokens` end before its first gap.
        Returns how many tokens of each front's draft were accepted.
        """
        self._expect_rows(rows, "step_at")
        return await StepAtRequest(list(rows), [list(some) for some in fronts], rule)

    @_awaited
    async def draft(
        self, drafter: Drafter, rows: Sequence[Canvas], n: int | Tree, sibling: int = 0
    ) -> list[Draft | None]:
        """Let a drafter propose a chain of up to `n` tokens, or a tree, for each row.

        Drafts are cut so that one more token fits; None where none fits. Siblings 0, 1, ... are
        independent proposals from the same place.
        """
        self._expect_rows(rows, "draft")
        return await ProposeRequest(list(rows), drafter, n, sibling)

    @_awaited
    async def draft_at(
        self,
        drafter: FrontDrafter,
        rows: Sequence[Canvas],
        spans: Sequence[Sequence[tuple[int, int]]],
    ) -> list[list[Draft | None]]:
        """Let a drafter propose chains at fronts of every row, for `step_at`.

        Each span is a place and how many tokens the chain there has; None where that is 0.
        """
        self._expect_rows(rows, "draft_at")
        return await ProposeAtRequest(list(rows), drafter, [list(some) for some in spans])

    @_awaited
    async def render(
        self, rows: Sequence[Canvas], pads: Sequence[Sequence[int]] | None = None
    ) -> list[Image]:
        """Decode the images of canvases, partial ones included.

        `pads` are codes to show behind each row's, in this image only; forced places take none.
        """
        self._expect_rows(rows, "render")
        if pads is None:
            pads = [()] * len(rows)
        return await RenderRequest(list(rows), [tuple(pad) for pad in pads])

    @_awaited
    async def ask(
        self,
        judge: Judge,
        text: str,
        images: Sequence[Image],
        *,
        read: Callable[[Any], Any] | None = None,
        allow_silence: bool = False,
    ) -> list[Any]:
        """Ask a judge about each image; returns one value per image.

        `read` turns an answer into the value that the method needs, and raises ValueError, with the
        reason, for one that says something else. Raises UnansweredError, which fails this image, if
        any question has no answer: the same command draws the image again.

        With `allow_silence` a refused or unreadable answer is None instead: only for a fallback
        that an option of the method switches on. A judge that is unreachable never is a choice.
        """
        answers = await AskRequest(judge, text, list(images), read)
        for answer in answers:
            may_be_silent = allow_silence and answer.kind != "unreachable"
            if not answer.answered and not may_be_silent:
                raise UnansweredError(describe_silence(judge.id, answers))
        return [answer.value for answer in answers]

    def _expect_rows(self, rows: Sequence[Canvas], call: str) -> None:
        expect_rows(rows, call)
        self._state.expect_open(*rows)


def expect_json(name: str, fact: object) -> None:
    """Raise ValueError or TypeError, with the note's name, for what a journal cannot hold."""
    try:
        dump(fact)
    except (TypeError, ValueError, RecursionError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"the note {name!r} cannot be written ({error}): give plain values, finite numbers, "
            "and null where there is none"
        ) from None


# ------------------------------------------------------------------ requests, for the scheduler

_Answer = TypeVar("_Answer")


@dataclass(eq=False, slots=True)
class Request(Generic[_Answer]):
    """What a coroutine awaits; the scheduler sends the answer into the coroutine."""

    def __await__(self) -> Generator[Request[_Answer], _Answer, _Answer]:
        return (yield self)


@dataclass(eq=False, slots=True)
class RunRequest(Request[None]):
    """Draw every row until it has `until` tokens."""

    rows: list[Canvas]
    until: int

    def unfinished_rows(self) -> list[Canvas]:
        """Return the rows that still lack tokens."""
        return [canvas for canvas in self.rows if canvas.length < self.until]


@dataclass(eq=False, slots=True)
class LookRequest(Request[list[list[dict[str, float]]]]):
    """Read the signals of a probe at the next place of every row, and along its draft."""

    rows: list[Canvas]
    drafts: list[Draft | None]
    probe: Probe


@dataclass(eq=False, slots=True)
class StepRequest(Request[list[int]]):
    """Verify a draft (or none) of every row and draw one more token."""

    rows: list[Canvas]
    drafts: list[Draft | None]
    rule: Rule


@dataclass(eq=False, slots=True)
class StepAtRequest(Request[list[list[int]]]):
    """Verify the drafts at fronts of every row and draw one more token behind each."""

    rows: list[Canvas]
    fronts: list[list[Front]]
    rule: Rule


@dataclass(eq=False, slots=True)
class ProposeRequest(Request[list[Draft | None]]):
    """Let a drafter propose a draft for every row."""

    rows: list[Canvas]
    drafter: Drafter
    n: int | Tree
    sibling: int


@dataclass(eq=False, slots=True)
class ProposeAtRequest(Request[list[list[Draft | None]]]):
    """Let a drafter propose a chain at each front of every row."""

    rows: list[Canvas]
    drafter: FrontDrafter
    spans: list[list[tuple[int, int]]]


@dataclass(eq=False, slots=True)
class RenderRequest(Request[list[Image]]):
    """Decode every row's image, with some tokens behind its tokens."""

    rows: list[Canvas]
    pads: list[tuple[int, ...]]


@dataclass(eq=False, slots=True)
class AskRequest(Request[list[Answer]]):
    """Put images of one text to a judge; `read` reads each answer."""

    judge: Judge
    text: str
    images: list[Image]
    read: Callable[[Any], Any] | None

    def type_answer(self, said: object) -> Answer:
        """Type what the judge returned about one image, and read it."""
        answer = Answer.of(said)
        if not answer.answered or self.read is None:
            return answer
        try:
            return Answer("answered", self.read(answer.value), answer.text)
        except ValueError as error:
            return Answer("unreadable", text=answer.text, reason=str(error))
