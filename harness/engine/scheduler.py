"""Runs many methods' coroutines at once and carries out what they wait for as batches.

A round: admit jobs whose slots fit, answer everything that unblocks rows without a forward
(renders, judges, drafts), then one forward for all that look or draw, then the looks, then the
draws. Methods with `run` sleep until their image is done; whoever waits for a picture sleeps while
the others go on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from harness.engine.acceptance import exact
from harness.engine.canvas import Canvas
from harness.engine.memory import short_of_memory
from harness.engine.method_spec import MethodSpec
from harness.engine.rendering import Image, Picture
from harness.engine.sampler import Sampler
from harness.engine.session import (
    Ask,
    DrawAt,
    Look,
    Method,
    Op,
    Propose,
    Render,
    Run,
    Session,
    Step,
)
from harness.records import JSON, Job, Usage, UserError


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a job: an image, or the error that its method or judge raised."""

    job: Job
    usage: Usage
    notes: dict[str, JSON]
    tokens: tuple[int, ...] = ()
    image: Image | None = None
    error: str = ""


@dataclass(eq=False, slots=True)
class _Live:
    """A job in flight: its coroutine and what it waits for."""

    session: Session
    coroutine: Coroutine[Op, Any, tuple[Canvas, Image]]
    began: float
    waits: Op | None = None
    pictures: list[Picture] | None = None  # what a Render waits for, once it was begun


@dataclass(eq=False, slots=True)
class _Last(Render):
    """The image to deliver: its canvas is not needed any more, so its slots go to others while it
    is decoded.
    """


_Kind = TypeVar("_Kind", bound=Op)


class Scheduler:
    """Draws the images of many jobs with one method over one sampler.

    Each job reserves `rows * branches` slots at admission; closing canvases only shrinks the
    reservation, so jobs cannot deadlock. `concurrency` bounds the jobs in flight (1 for latency).
    Raises UserError when the method does not fit the sampler.
    """

    def __init__(
        self, method: Method, sampler: Sampler, *, seed: int, concurrency: int | None = None
    ) -> None:
        shape = {
            "slots": sampler.slots,
            "tokens_per_step": sampler.tokens_per_step,
            "tree_capacity": sampler.tree_capacity,
        }
        self._spec = MethodSpec.of(method)
        self._spec.expect_fit(sampler.model, sampler.sampling, **shape, hidden=sampler.hidden)
        self._method = method
        self._sampler = sampler
        self._seed = seed
        self._concurrency = concurrency or sampler.slots
        self._live: list[_Live] = []

    @property
    def sampler(self) -> Sampler:
        return self._sampler

    def run(self, jobs: Iterable[Job], deliver: Callable[[Delivery], None]) -> None:
        """Carry out all jobs; `deliver` gets each one as it ends. What `deliver` raises ends the
        run.
        """
        queue = deque(jobs)
        try:
            while queue or self._live:
                self._admit(queue, deliver)
                self._round(deliver)
        finally:
            for live in self._live:
                live.coroutine.close()
                self._free(live.session)
            self._live.clear()

    # ------------------------------------------------------------------ jobs

    def _admit(self, queue: deque[Job], deliver: Callable[[Delivery], None]) -> None:
        need = self._spec.slots
        while queue and len(self._live) < self._concurrency:
            if self._sampler.slots - sum(live.session._limit for live in self._live) < need:
                return
            session = Session(self._sampler, queue.popleft(), self._seed, need, self._spec.branches)
            live = _Live(session, self._draw(session), time.perf_counter())
            self._live.append(live)
            self._resume(live, None, deliver)

    async def _draw(self, session: Session) -> tuple[Canvas, Image]:
        canvas = await self._method.generate(session._job.prompt.text, session)
        session._own(canvas)
        if not canvas.done:
            raise ValueError(
                f"the method returned a canvas with {canvas.length} of {session.num_tokens} tokens"
            )
        (image,) = await _Last([canvas], [()])
        return canvas, image

    def _resume(self, live: _Live, answer: object, deliver: Callable[[Delivery], None]) -> None:
        """Send an answer (or throw an exception) into a coroutine and note what it waits for
        next.
        """
        try:
            if isinstance(answer, Exception):
                live.waits = live.coroutine.throw(answer)
            else:
                live.waits = live.coroutine.send(answer)
            if not isinstance(live.waits, Op):
                raise TypeError(
                    f"the method awaited {live.waits!r}; only a session's requests can be awaited"
                )
        except StopIteration as stop:
            self._finish(live, deliver, *stop.value)
        except UserError:
            raise
        except Exception as error:
            if short_of_memory(error):
                raise  # the run's trouble, not the job's
            self._finish(live, deliver, error=f"{type(error).__name__}: {error}")

    def _finish(
        self,
        live: _Live,
        deliver: Callable[[Delivery], None],
        canvas: Canvas | None = None,
        image: Image | None = None,
        error: str = "",
    ) -> None:
        self._live.remove(live)
        session = live.session
        self._free(session)
        self._sampler.settle(session._usage)
        session._usage.wall_s = time.perf_counter() - live.began
        tokens = canvas.tokens if canvas is not None else ()
        deliver(Delivery(session._job, session._usage, session._notes, tokens, image, error))

    def _free(self, session: Session) -> None:
        for canvas in session._canvases:
            self._sampler.close(canvas)
        session._canvases.clear()

    # ------------------------------------------------------------------ rounds

    def _waiting(self, kind: type[_Kind]) -> list[tuple[_Live, _Kind]]:
        return [(live, live.waits) for live in self._live if isinstance(live.waits, kind)]

    def _round(self, deliver: Callable[[Delivery], None]) -> None:
        began = self._unblock(deliver)
        if not all(isinstance(live.waits, Render) for live in self._live):
            self._advance(deliver)
        elif (
            self._live and not began
        ):  # nothing to do but wait; what was just begun may have made room for other jobs
            for picture in self._live[0].pictures or ():
                picture.image()

    def _unblock(self, deliver: Callable[[Delivery], None]) -> bool:
        """Answer what needs no forward, images as far as they are there. Returns whether images
        were begun.
        """
        began = False
        while True:
            began |= self._begin_renders()
            shown = [
                live
                for live in self._live
                if live.pictures is not None and all(p.ready for p in live.pictures)
            ]
            if not shown and not any(isinstance(live.waits, Ask | Propose) for live in self._live):
                return began
            for live in shown:
                pictures = live.pictures or []
                live.pictures = None
                self._resume(live, [picture.image() for picture in pictures], deliver)
            self._answer(self._waiting(Ask), self._asks, deliver)
            self._answer(self._waiting(Propose), self._proposals, deliver)

    def _begin_renders(self) -> bool:
        """Begin the images that are waited for and not begun; canvases that only their image is
        wanted of end here.
        """
        fresh = [(live, op) for live, op in self._waiting(Render) if live.pictures is None]
        pads = [pad for _, op in fresh for pad in op.pads]
        pictures = iter(
            self._sampler.begin_render([canvas for _, op in fresh for canvas in op.rows], pads)
        )
        for live, op in fresh:
            live.pictures = [next(pictures) for _ in op.rows]
            if isinstance(op, _Last):
                live.session._canvases.remove(op.rows[0])
                self._sampler.release(op.rows[0])
                self._free(live.session)
                live.session._limit = 0
        return bool(fresh)

    def _answer(
        self,
        waiting: list[tuple[_Live, _Kind]],
        carry_out: Callable[[list[_Kind]], list[object]],
        deliver: Callable[[Delivery], None],
    ) -> None:
        for (live, _), answer in zip(waiting, carry_out([op for _, op in waiting]), strict=True):
            self._resume(live, answer, deliver)

    def _proposals(self, ops: list[Propose]) -> list[object]:
        answers: dict[Op, object] = {}
        for group in _groups(ops, lambda op: (id(op.drafter), op.n, op.sibling)):
            rows = [canvas for op in group for canvas in op.rows]
            drafts = iter(
                group[0].drafter.propose(self._sampler, rows, group[0].n, group[0].sibling)
            )
            answers |= {op: [next(drafts) for _ in op.rows] for op in group}
        return [answers[op] for op in ops]

    def _asks(self, ops: list[Ask]) -> list[object]:
        answers: dict[Op, object] = {}
        for group in _groups(ops, lambda op: id(op.judge)):
            try:
                answers |= self._ask(group)
            except Exception:  # one bad question must not fail the others: ask them one by one
                for op in group:
                    try:
                        answers |= self._ask([op])
                    except Exception as error:
                        answers[op] = error
        return [answers[op] for op in ops]

    def _ask(self, group: list[Ask]) -> dict[Op, object]:
        texts = [op.text for op in group for _ in op.images]
        began = time.perf_counter()
        replies = list(group[0].judge(texts, [image for op in group for image in op.images]))
        if len(replies) != len(texts):
            raise ValueError(
                f"judge {group[0].judge.id} gave {len(replies)} answers to {len(texts)} questions"
            )
        each_s = (time.perf_counter() - began) / max(1, len(texts))
        owner = {live.waits: live.session for live in self._live}
        reply = iter(replies)
        tokens = iter(getattr(group[0].judge, "tokens", ()))
        for op in group:
            owner[op]._usage.judge_calls += len(op.images)
            owner[op]._usage.judge_s += each_s * len(op.images)
            owner[op]._usage.judge_tokens += sum(islice(tokens, len(op.images)))
        return {op: [next(reply) for _ in op.images] for op in group}

    def _advance(self, deliver: Callable[[Delivery], None]) -> None:
        """One forward for all rows that wait for one; then looks, then draws. Or a burst, while all
        only draw.
        """
        if self._burst():
            self._resume_runs(deliver)
            return
        looks = self._waiting(Look)
        draws = [op for _, op in self._waiting(Step)]
        runs = [op for _, op in self._waiting(Run)]
        rows = [canvas for _, op in looks for canvas in op.rows]
        rows += [canvas for run in runs for canvas in _unfinished(run)]
        drafts = [None] * len(rows) + [draft for op in draws for draft in op.drafts]
        self._sampler.forward(rows + [canvas for op in draws for canvas in op.rows], drafts)

        for probe in {id(op.probe): op.probe for _, op in looks}.values():
            group = [(live, op) for live, op in looks if op.probe is probe]
            signals = iter(
                self._sampler.probe([canvas for _, op in group for canvas in op.rows], probe)
            )
            for live, op in group:
                self._resume(live, [next(signals) for _ in op.rows], deliver)

        self._draw_tokens(runs, deliver)
        self._draw_at(deliver)
        self._resume_runs(deliver)

    def _burst(self) -> int:
        """While every job only draws: as many rounds as it takes until one is done with that; how
        many there were.

        A job whose last image is being decoded waits for none of them.
        """
        runs = [op for _, op in self._waiting(Run)]
        busy = len(self._live) - len(self._waiting(_Last))
        if not runs or len(runs) < busy or not all(map(_unfinished, runs)):
            return 0
        left = {canvas: run.until - canvas.length for run in runs for canvas in _unfinished(run)}
        return self._sampler.burst(list(left), min(left.values()))

    def _resume_runs(self, deliver: Callable[[Delivery], None]) -> None:
        for live, run in self._waiting(Run):
            if not _unfinished(run):
                self._resume(live, None, deliver)

    def _draw_at(self, deliver: Callable[[Delivery], None]) -> None:
        """One forward for all that draw at places of their own choice."""
        waiting = self._waiting(DrawAt)
        if waiting:
            rows = [canvas for _, op in waiting for canvas in op.rows]
            self._sampler.draw_at(rows, [at for _, op in waiting for at in op.places])
        for live, _ in waiting:
            self._resume(live, None, deliver)

    def _draw_tokens(self, runs: list[Run], deliver: Callable[[Delivery], None]) -> None:
        """Draw for all whose logits are at hand: those just fed, and steps that follow a look of
        this round.
        """
        steps = [
            (live, op)
            for live, op in self._waiting(Step)
            if all(
                self._sampler.ready(canvas, draft)
                for canvas, draft in zip(op.rows, op.drafts, strict=True)
            )
        ]
        plain = [canvas for run in runs for canvas in _unfinished(run)]
        by_rule = {id(op.rule): op.rule for _, op in steps}
        if plain:
            by_rule[id(exact)] = exact
        answers: list[tuple[_Live, list[int]]] = []
        for rule in by_rule.values():
            group = [(live, op) for live, op in steps if op.rule is rule]
            rows = [canvas for _, op in group for canvas in op.rows]
            drafts = [draft for _, op in group for draft in op.drafts]
            extra = plain if rule is exact else []
            accepted = iter(self._sampler.draw(rows + extra, drafts + [None] * len(extra), rule))
            answers += [(live, [next(accepted) for _ in op.rows]) for live, op in group]
        for live, counts in answers:
            self._resume(live, counts, deliver)


def _unfinished(run: Run) -> list[Canvas]:
    return [canvas for canvas in run.rows if canvas.length < run.until]


def _groups(ops: list[Any], key: Callable[[Any], object]) -> list[list[Any]]:
    groups: dict[object, list[Any]] = {}
    for op in ops:
        groups.setdefault(key(op), []).append(op)
    return list(groups.values())
