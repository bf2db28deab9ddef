"""The only object a method holds: everything it can do for its one prompt, and nothing more.

A session has no access to model, ledger, clock, batch, the answer key or other jobs. Its awaitable
calls are requests (`Op`); the scheduler carries out the requests of hundreds of sessions as one
batch.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from harness.engine.acceptance import Draft, Rule, exact
from harness.engine.canvas import Canvas, Context
from harness.engine.draft_trees import Tree
from harness.engine.guidance import Guide
from harness.engine.probes import Probe
from harness.engine.rendering import Image
from harness.engine.sampler import Sampler
from harness.kernels.noise import derive
from harness.records import JSON, Job, Usage


class Judge(Protocol):
    """Answers about images. `id` names weights or revision and prompt; answers are None where it
    cannot tell.

    A reward's answers are scores, larger is better; only images of the same text are compared.
    Called with the texts and images of many jobs at once; an answer must not depend on the others.
    A language model also keeps `tokens`: how many it read and wrote for each question of its last
    call.
    """

    id: str

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> Sequence[Any]: ...


class Drafter(Protocol):
    """Proposes tokens for many canvases at once; each `sibling` is another proposal from the same
    place.

    `n` is the length of a chain, or the shape of a tree; a drafter that grows trees says so by
    `trees = True`.
    """

    def propose(
        self, sampler: Sampler, rows: Sequence[Canvas], n: int | Tree, sibling: int = 0
    ) -> Sequence[Draft | None]: ...


class Decoding(Protocol):
    """How a method that holds several canvases lets them be finished, other than by
    `Session.run`.
    """

    tokens_per_step: int  # like a method's; with draft trees also `tree_capacity`

    async def finish(self, rows: Sequence[Canvas], s: Session) -> None: ...


class Method(Protocol):
    """One test-time method. `generate` is about one prompt and returns the canvas it likes best,
    finished.

    A method that makes no sense without guidance also declares `needs_guidance = True`; one that
    cannot draw on every grid has `expect_grid(grid)`, which raises UserError before anything is
    computed.
    """

    rows: int  # canvases alive at once, at most
    branches: int  # branches per canvas, at most (2 under guidance)
    tokens_per_step: (
        int  # positions per branch and forward (1; speculative methods 1 + draft length)
    )
    # tree_capacity: int, where drafts are trees: positions behind the image for their nodes

    async def generate(self, prompt: str, s: Session) -> Canvas: ...


@dataclass(eq=False, slots=True)
class Op:
    """A request that a coroutine waits on; the scheduler sends the answer."""

    def __await__(self) -> Generator[Op, Any, Any]:
        return (yield self)


@dataclass(eq=False, slots=True)
class Run(Op):
    rows: list[Canvas]
    until: int


@dataclass(eq=False, slots=True)
class Look(Op):
    rows: list[Canvas]
    probe: Probe


@dataclass(eq=False, slots=True)
class Step(Op):
    rows: list[Canvas]
    drafts: list[Draft | None]
    rule: Rule


@dataclass(eq=False, slots=True)
class DrawAt(Op):
    rows: list[Canvas]
    places: list[list[int]]


@dataclass(eq=False, slots=True)
class Propose(Op):
    rows: list[Canvas]
    drafter: Drafter
    n: int | Tree
    sibling: int


@dataclass(eq=False, slots=True)
class Render(Op):
    rows: list[Canvas]
    pads: list[tuple[int, ...]]


@dataclass(eq=False, slots=True)
class Ask(Op):
    judge: Judge
    text: str
    images: list[Image]


@dataclass(eq=False, slots=True)
class Session:
    """What a method may do. Created by the scheduler, one per job."""

    _sampler: Sampler
    _job: Job
    _seed: int
    _limit: int  # slots the job may hold; shrinks when a canvas is closed
    _branches: int  # branches reserved per canvas
    _usage: Usage = field(default_factory=Usage)
    _canvases: list[Canvas] = field(default_factory=list)
    _opened: int = 0
    _notes: dict[str, JSON] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens of a finished image."""
        return self._sampler.model.num_tokens

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self._sampler.model.grid

    @property
    def codebook(self) -> Tensor:
        """Code vectors [V, d] of the image tokenizer."""
        return self._sampler.model.codebook

    def rng(self, purpose: str) -> np.random.Generator:
        """Host randomness of this job, the same in every run; one branch per purpose."""
        return np.random.default_rng(
            derive(self._seed, self._job.prompt.id, self._job.image, "rng", purpose)
        )

    # ------------------------------------------------------------------ immediate

    def open(self, n: int = 1) -> list[Canvas]:
        """`n` fresh canvases for the job's prompt. Candidate i has the same noise in every
        method.
        """
        contexts, guide = self._sampler.contexts(self._job.prompt.text)
        return [self._open_one(contexts, guide) for _ in range(n)]

    def _open_one(self, contexts: list[Context], guide: Guide) -> Canvas:
        if (len(self._canvases) + 1) * self._branches > self._limit:
            raise RuntimeError(
                f"the method opened more canvases than its `rows` declares ({self._limit // self._branches} left to it)"
            )
        key = derive(self._seed, self._job.prompt.id, self._job.image, self._opened)
        canvas = self._sampler.open(contexts, guide, key, self._usage)
        self._opened += 1
        self._canvases.append(canvas)
        return canvas

    def close(self, canvas: Canvas) -> None:
        """Throw a canvas away; its slots go to other prompts at once, for good."""
        self._own(canvas)
        self._canvases.remove(canvas)
        self._limit -= self._branches
        self._sampler.close(canvas)

    def fork(self, src: Canvas, over: Canvas) -> None:
        """`over` becomes a copy of `src` and goes on with noise of its own."""
        self._own(src, over)
        self._sampler.fork(src, over)

    def condition(self, canvas: Canvas, texts: Sequence[str | None], guide: Guide) -> None:
        """Condition the branches on `texts` (None = the null prompt) from here on."""
        self._own(canvas)
        if len(texts) > self._branches:
            raise RuntimeError(
                f"{len(texts)} branches asked for: the method's `branches` declares {self._branches}"
            )
        like = self._job.prompt.text
        self._sampler.condition(
            canvas, [Context(text, like if text is None else text) for text in texts], guide
        )

    def truncate(self, canvas: Canvas, length: int) -> None:
        """Keep the first `length` tokens."""
        self._own(canvas)
        self._sampler.truncate(canvas, length)

    def commit(self, canvas: Canvas, tokens: Sequence[int]) -> None:
        """Append tokens without asking the target."""
        self._own(canvas)
        self._sampler.commit(canvas, tokens)

    def note(self, **facts: JSON) -> None:
        """Facts for the journal line of this image; a later note of the same name replaces the
        earlier.
        """
        self._notes.update(facts)

    # ------------------------------------------------------------------ awaitable

    async def run(self, rows: Sequence[Canvas], until: int | None = None) -> None:
        """Draw tokens until every row has `until` of them (default: all)."""
        self._own(*rows)
        await Run(list(rows), self.num_tokens if until is None else until)

    async def look(self, rows: Sequence[Canvas], probe: Probe) -> list[dict[str, float]]:
        """Signals of the next token's law, before it is drawn; the following `step` needs no
        forward.
        """
        self._own(*rows)
        return await Look(list(rows), probe)

    async def step(
        self,
        rows: Sequence[Canvas],
        drafts: Sequence[Draft | None] | None = None,
        rule: Rule = exact,
    ) -> list[int]:
        """Verify drafts by `rule` and draw one more token each; returns how many draft tokens were
        accepted.
        """
        self._own(*rows)
        return await Step(
            list(rows), list(drafts) if drafts is not None else [None] * len(rows), rule
        )

    async def draw_at(self, rows: Sequence[Canvas], places: Sequence[Sequence[int]]) -> None:
        """Draw the tokens of chosen places of every row in one forward, from the tokens that are
        there before them.

        A row's `tokens` end before its first gap; until its gaps are filled, nothing else can be
        done with it but truncating it.
        """
        self._own(*rows)
        await DrawAt(list(rows), [list(at) for at in places])

    async def draft(
        self, drafter: Drafter, rows: Sequence[Canvas], n: int | Tree, sibling: int = 0
    ) -> list[Draft | None]:
        """A chain of up to `n` tokens, or a tree, a row, cut so that one more token fits; None
        where none fits.

        Siblings 0, 1, ... are independent proposals from the same place.
        """
        self._own(*rows)
        return await Propose(list(rows), drafter, n, sibling)

    async def render(
        self, rows: Sequence[Canvas], pads: Sequence[Sequence[int]] | None = None
    ) -> list[Image]:
        """Images of canvases, partial ones included; `pads` are tokens to show behind each row's
        own, this once.
        """
        self._own(*rows)
        return await Render(
            list(rows), [tuple(pad) for pad in pads] if pads is not None else [()] * len(rows)
        )

    async def ask(self, judge: Judge, text: str, images: Sequence[Image]) -> list[Any]:
        """One answer per image."""
        return await Ask(judge, text, list(images))

    def _own(self, *canvases: Canvas) -> None:
        if any(canvas not in self._canvases for canvas in canvases):
            raise ValueError("the canvas is closed or belongs to another job")
