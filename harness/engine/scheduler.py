"""Run the coroutines of many jobs at once, and carry out what they wait for as batches.

A job reserves slots and runs its method's coroutine until that awaits a request of its session; it
then sleeps until the answer is there. One round (`_Run.play_round`) starts jobs whose slots are
free, answers what needs no forward of the target (images, judges, drafts), and gives one forward to
all that look or draw. Jobs that only draw sleep until their tokens are there, and bursts of many
decode steps serve them; a job that waits for an image sleeps while the others go on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeVar

from harness.engine.acceptance import Draft, Rule, exact
from harness.engine.author_errors import expect_awaitable, expect_canvas
from harness.engine.canvas import Canvas
from harness.engine.job_state import JobState
from harness.engine.memory import short_of_memory
from harness.engine.method_spec import MethodSpec
from harness.engine.rendering import Image, Picture
from harness.engine.sampler import Sampler
from harness.engine.session import (
    AskRequest,
    EditJudge,
    LookRequest,
    Method,
    ProposeAtRequest,
    ProposeRequest,
    RenderRequest,
    Request,
    RunRequest,
    Session,
    StepAtRequest,
    StepRequest,
    TokenCountingJudge,
    expect_json,
)
from harness.engine.watchdog import STUCK_AFTER_S, STUCK_IN_A_ROW, StuckError, TurnTimer
from harness.models.devices import on_device
from harness.records import (
    JSON,
    Job,
    NotFiniteError,
    UnansweredError,
    Usage,
    UserError,
    explain_error,
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a job: an image, or the error that its method or judge raised."""

    job: Job
    usage: Usage
    notes: dict[str, JSON]
    tokens: tuple[int, ...] = ()
    image: Image | None = None
    error: str = ""


class Scheduler:
    """Draws the images of many jobs with one method over one sampler.

    Each job reserves `rows * branches` slots when it starts; closing canvases only shrinks the
    reservation, so jobs cannot deadlock. `concurrency` bounds the jobs in flight (1 for latency).
    A job whose method makes no progress for `stuck_after_s` seconds of its turns fails; None waits
    for ever. Raises UserError when the method does not fit the sampler.
    """

    def __init__(
        self,
        method: Method,
        sampler: Sampler,
        *,
        seed: int,
        concurrency: int | None = None,
        stuck_after_s: float | None = STUCK_AFTER_S,
    ) -> None:
        self._spec = MethodSpec.of(method).under(sampler.sampling)
        self._spec.expect_fit(
            sampler.model,
            sampler.sampling,
            slots=sampler.slots,
            tokens_per_step=sampler.tokens_per_step,
            tree_capacity=sampler.tree_capacity,
            hidden=sampler.hidden,
        )
        self._method = method
        self._sampler = sampler
        self._seed = seed
        self._concurrency = concurrency or sampler.slots
        self._stuck_after_s = stuck_after_s

    @property
    def sampler(self) -> Sampler:
        """Return the sampler that all jobs share."""
        return self._sampler

    def run(self, jobs: Iterable[Job], deliver: Callable[[Delivery], None]) -> None:
        """Carry out all jobs; `deliver` gets each one as it ends.

        An error of `deliver`, a UserError and a lack of memory end the run: they are raised, and
        jobs in flight are dropped. So does a method that gets stuck in one job after the other.
        The model's device is the current one meanwhile, also for judges and drafters.
        """
        run = _Run(
            method=self._method,
            spec=self._spec,
            sampler=self._sampler,
            seed=self._seed,
            concurrency=self._concurrency,
            jobs_to_start=deque(jobs),
            deliver=deliver,
            stuck_after_s=self._stuck_after_s,
            timer=TurnTimer(self._stuck_after_s),
        )
        with on_device(self._sampler.model.device), run.timer.installed():
            try:
                while run.has_jobs():
                    run.play_round()
            finally:
                run.drop_flights()


# ------------------------------------------------------------------ one job


@dataclass(eq=False, slots=True)
class _Flight:
    """One job in flight: its state, its coroutine, and the request that the coroutine awaits."""

    state: JobState
    coroutine: Coroutine[Request[Any], Any, tuple[Canvas, Image]]
    started_s: float  # on the host's clock
    request: Request[Any] = field(init=False)  # there once the coroutine runs


@dataclass(eq=False, slots=True)
class _FinalRender(RenderRequest):
    """The image to deliver. Its job needs no slots any more: others use them meanwhile."""

    state: JobState


def _describe_error(error: BaseException) -> str:
    """Say what a job failed of; where in the code only if something is wrong with that."""
    if isinstance(error, NotFiniteError | UnansweredError):
        return f"{type(error).__name__}: {error}"
    return explain_error(error)


async def _draw_image(method: Method, session: Session, state: JobState) -> tuple[Canvas, Image]:
    """Run a method for its prompt, check what it returns, and render it."""
    returned = await _generate(method, session, state)
    canvas = expect_canvas(method, returned, session.num_tokens)
    state.expect_open(canvas)
    for name, fact in state.notes.items():  # it may have changed since it was noted
        expect_json(name, fact)
    (image,) = await _FinalRender([canvas], [()], state)
    return canvas, image


async def _generate(method: Method, session: Session, state: JobState) -> object:
    """Run a method for its prompt. Raises TypeError for a call that it forgot to await."""
    made = expect_awaitable(method, method.generate(state.job.prompt.text, session))
    try:
        returned: object = await made
    except Exception as error:
        if forgotten := state.take_forgotten_call():
            raise TypeError(forgotten.problem) from error
        raise
    if forgotten := state.take_forgotten_call():
        raise TypeError(forgotten.problem)
    return returned


def _keep_writable(notes: Mapping[str, JSON]) -> dict[str, JSON]:
    """Drop the notes of a failed job that a journal cannot hold: its error is what matters."""
    kept: dict[str, JSON] = {}
    for name, fact in notes.items():
        with suppress(TypeError, ValueError):
            expect_json(name, fact)
            kept[name] = fact
    return kept


# ------------------------------------------------------------------ one run

_Kind = TypeVar("_Kind", bound=Request[Any])
_Drawing = StepRequest | RunRequest | StepAtRequest


@dataclass(eq=False, slots=True)
class _Run:
    """One call of `Scheduler.run`: jobs to start, jobs in flight, and who gets the results."""

    method: Method
    spec: MethodSpec
    sampler: Sampler
    seed: int
    concurrency: int
    jobs_to_start: deque[Job]
    deliver: Callable[[Delivery], None]
    stuck_after_s: float | None
    timer: TurnTimer
    stuck_in_a_row: int = 0  # jobs since the last image
    flights: list[_Flight] = field(default_factory=list)
    # Pictures of requests that are being rendered.
    pictures: dict[RenderRequest, list[Picture]] = field(default_factory=dict)

    def has_jobs(self) -> bool:
        """Tell whether a job is still to be delivered."""
        return bool(self.jobs_to_start or self.flights)

    def drop_flights(self) -> None:
        """End the jobs in flight without delivering them; all their slots are free again."""
        for flight in self.flights:
            flight.coroutine.close()
            self._close_canvases(flight.state)
        self.flights.clear()

    def play_round(self) -> None:
        """Start jobs, answer what does not need the target, advance all others by one forward."""
        # 1. Start jobs as far as slots are free.
        self._start_jobs()

        # 2. Answer what needs no forward of the target: images, judges, drafters.
        renders_began = self._answer_without_target()

        # 3. If nobody draws, wait for an image, unless renders just freed slots for new jobs.
        if all(isinstance(flight.request, RenderRequest) for flight in self.flights):
            if self.flights and not renders_began:
                self._wait_for_first_images()
            return

        # 4. If all only draw, the device draws many tokens without the host.
        if self._draw_burst():
            self._resume_finished_runs()
            return

        # 5. Otherwise one forward computes the logits of all that look, run or step.
        looks = self._requests(LookRequest)
        runs = self._requests(RunRequest)
        self._compute_logits(looks, runs, self._requests(StepRequest))

        # 6. Answer looks, so that the steps that follow them draw in this round, too.
        self._answer_looks(looks)

        # 7. Draw for all whose logits are there, and at the places that methods chose.
        self._draw_tokens(runs)
        self._step_at_fronts()
        self._resume_finished_runs()

    # -------------------------------------------------------------- jobs

    def _start_jobs(self) -> None:
        """Start jobs in their order while slots and `concurrency` allow for it."""
        while self.jobs_to_start:
            reserved = sum(flight.state.reserved_slots for flight in self.flights)
            if self.sampler.slots - reserved < self.spec.slots:
                return
            is_full = len(self.flights) >= self.concurrency
            if is_full and not self._deliver_first_image():
                return
            self._start_job(self.jobs_to_start.popleft())

    def _deliver_first_image(self) -> bool:
        """Wait for the first final image and deliver it, where shapes must not follow its timing.

        Returns whether there was one.
        """
        if not self.sampler.compact:
            return False
        for flight in self.flights:
            request = flight.request
            if isinstance(request, _FinalRender) and request in self.pictures:
                pictures = self.pictures.pop(request)
                self._resume(flight, _read_images(pictures))
                return True
        return False

    def _start_job(self, job: Job) -> None:
        """Reserve a job's slots and run its coroutine up to the first request."""
        state = JobState(
            job=job,
            seed=self.seed,
            branches=self.spec.branches,
            reserved_slots=self.spec.slots,
        )
        coroutine = _draw_image(self.method, Session(self.sampler, state), state)
        flight = _Flight(state, coroutine, started_s=time.perf_counter())
        self.flights.append(flight)
        self._resume(flight, None)

    def _resume(self, flight: _Flight, answer: object) -> None:
        """Send an answer (or throw an exception) into a coroutine, up to its next request.

        A job that ends or fails here is delivered. A UserError and a lack of memory concern the
        whole run and are raised.
        """
        state = flight.state
        stuck = state.progress.count_turn(state.usage.visual_tokens, self.stuck_after_s)
        try:
            with self.timer.turn():
                flight.request = _advance(flight.coroutine, stuck or answer)
        except StopIteration as stop:
            canvas, image = stop.value
            self._end_flight(flight, tokens=canvas.tokens, image=image)
            self.stuck_in_a_row = 0
        except StuckError as error:
            self._end_stuck_flight(flight, error)
        except UserError:
            raise
        except Exception as error:
            if short_of_memory(error):
                raise
            self._end_flight(flight, error=_describe_error(error))

    def _end_stuck_flight(self, flight: _Flight, error: StuckError) -> None:
        """Deliver a job whose method makes no progress; end the run if that goes on and on."""
        with suppress(BaseException):  # whatever it says on its way out
            flight.coroutine.close()
        problem = _describe_error(error)
        self._end_flight(flight, error=problem)
        self.stuck_in_a_row += 1
        if self.stuck_in_a_row >= STUCK_IN_A_ROW:
            raise UserError(f"{self.stuck_in_a_row} images in a row got stuck: {problem}")

    def _end_flight(
        self,
        flight: _Flight,
        *,
        tokens: tuple[int, ...] = (),
        image: Image | None = None,
        error: str = "",
    ) -> None:
        """Free what a job holds, complete its ledger and deliver it."""
        self.flights.remove(flight)
        state = flight.state
        self._close_canvases(state)
        self.sampler.settle(state.usage)
        state.usage.wall_s = time.perf_counter() - flight.started_s
        notes = _keep_writable(state.notes) if error else state.notes
        self.deliver(Delivery(state.job, state.usage, notes, tokens, image, error))

    def _close_canvases(self, state: JobState) -> None:
        """Give all slots of a job back; what its canvases had drawn counts as discarded."""
        for canvas in state.give_up_slots():
            self.sampler.close(canvas)

    # -------------------------------------------------------------- requests

    def _requests(self, kind: type[_Kind]) -> list[_Kind]:
        """List the requests of one kind that jobs wait for, in the order of the jobs."""
        return [flight.request for flight in self.flights if isinstance(flight.request, kind)]

    def _resume_all(self, answers: Mapping[Request[Any], object]) -> None:
        """Go on with all jobs whose requests are answered, in the order of the jobs."""
        answered = [flight for flight in self.flights if flight.request in answers]
        for flight in answered:
            self._resume(flight, answers[flight.request])

    def _answer_without_target(self) -> bool:
        """Answer requests for drafts, judgements and finished pictures until none is left.

        Returns whether any image has begun to be rendered.
        """
        renders_began = False
        while True:
            renders_began |= self._begin_renders()
            finished = self._take_finished_images()
            kinds = AskRequest | ProposeRequest | ProposeAtRequest
            asked = any(isinstance(flight.request, kinds) for flight in self.flights)
            if not finished and not asked:
                return renders_began
            self._resume_all(finished)
            self._answer_asks()
            self._answer_proposals()

    # -------------------------------------------------------------- images

    def _begin_renders(self) -> bool:
        """Begin to render the images of new requests. Returns whether there were any.

        Jobs that only wait for the image to deliver give up all their slots here.
        """
        waiting = self._requests(RenderRequest)
        fresh = [request for request in waiting if request not in self.pictures]
        if not fresh:
            return False
        pads = [pad for request in fresh for pad in request.pads]
        pictures = iter(self.sampler.begin_render(_all_rows(fresh), pads))
        for request in fresh:
            self.pictures[request] = list(islice(pictures, len(request.rows)))
            if isinstance(request, _FinalRender):
                self._release_final_canvas(request.state, request.rows[0])
        return True

    def _release_final_canvas(self, state: JobState, canvas: Canvas) -> None:
        """Give all slots of a job back; its final canvas does not count as discarded."""
        state.give_up_canvas(canvas)
        self.sampler.release(canvas)
        self._close_canvases(state)

    def _take_finished_images(self) -> dict[Request[Any], object]:
        """Return, once, the images of every request whose images are all finished.

        A compact forward has the shape of the jobs that draw: there a job that goes on with images
        waits for them, so that it goes on in the same round every time.
        """
        images: dict[Request[Any], object] = {}
        for request, pictures in list(self.pictures.items()):
            is_awaited = self.sampler.compact and not isinstance(request, _FinalRender)
            if is_awaited or all(picture.ready for picture in pictures):
                images[request] = _read_images(pictures)
                del self.pictures[request]
        return images

    def _wait_for_first_images(self) -> None:
        """Wait until the images of the first job are finished; the next round answers it."""
        first = self._requests(RenderRequest)[0]
        _read_images(self.pictures[first])

    # -------------------------------------------------------------- drafters and judges

    def _answer_proposals(self) -> None:
        """Let each drafter propose drafts for the rows of all jobs at once."""
        answers: dict[Request[Any], object] = {}
        waiting = self._requests(ProposeRequest)
        for group in _group_by(waiting, lambda one: (id(one.drafter), one.n, one.sibling)):
            first = group[0]
            rows = _all_rows(group)
            drafts = first.drafter.propose(self.sampler, rows, first.n, first.sibling)
            if len(drafts) != len(rows):
                name = type(first.drafter).__name__
                raise ValueError(f"drafter {name} gave {len(drafts)} drafts for {len(rows)} rows")
            answers |= _split(drafts, group)
        for at_fronts in _group_by(self._requests(ProposeAtRequest), lambda one: id(one.drafter)):
            spans = [some for request in at_fronts for some in request.spans]
            chains = at_fronts[0].drafter.propose_at(self.sampler, _all_rows(at_fronts), spans)
            answers |= _split(chains, at_fronts)
        self._resume_all(answers)

    def _answer_asks(self) -> None:
        """Put the questions of all jobs to their judges.

        If a judge raises, it is asked again job by job: one bad question must not fail the others.
        A UserError concerns the whole run and is raised.
        """
        answers: dict[Request[Any], object] = {}
        for group in _group_by(self._requests(AskRequest), lambda one: id(one.judge)):
            try:
                answers |= self._ask(group)
            except UserError:
                raise
            except Exception:
                answers |= self._ask_one_by_one(group)
        self._resume_all(answers)

    def _ask_one_by_one(self, group: Sequence[AskRequest]) -> dict[Request[Any], object]:
        """Ask a judge job by job: the answers, or the exception, of each request."""
        answers: dict[Request[Any], object] = {}
        for request in group:
            try:
                answers |= self._ask([request])
            except UserError:
                raise
            except Exception as error:
                answers[request] = error
        return answers

    def _ask(self, group: Sequence[AskRequest]) -> dict[Request[Any], object]:
        """Ask a judge all questions at once, and charge every job with its share.

        Raises what the judge raises, and ValueError for a wrong number of answers.
        """
        judge = group[0].judge
        texts: list[str] = []
        images: list[Image] = []
        for request in group:
            texts += [request.text] * len(request.images)
            images += request.images

        # 1. Ask.
        started_s = time.perf_counter()
        said = list(self._put_question(group, texts, images))
        if len(said) != len(texts):
            raise ValueError(f"judge {judge.id} gave {len(said)} answers to {len(texts)} questions")
        seconds_each = (time.perf_counter() - started_s) / max(1, len(texts))

        # 2. Share out answers and costs.
        states = {flight.request: flight.state for flight in self.flights}
        tokens = iter(judge.tokens if isinstance(judge, TokenCountingJudge) else ())
        said_each = iter(said)
        answers: dict[Request[Any], object] = {}
        for request in group:
            count = len(request.images)
            typed = [request.type_answer(one) for one in islice(said_each, count)]
            answers[request] = typed
            states[request].charge_judge(
                count,
                seconds_each * count,
                sum(islice(tokens, count)),
                unanswered=sum(not answer.answered for answer in typed),
            )
        return answers

    def _put_question(
        self, group: Sequence[AskRequest], texts: Sequence[str], images: Sequence[Image]
    ) -> Sequence[Any]:
        """Call a judge, with the source of each image if it sees sources."""
        judge = group[0].judge
        if not isinstance(judge, EditJudge) or not judge.sees_source:
            return judge(texts, images)
        states = {flight.request: flight.state for flight in self.flights}
        sources: list[Image | None] = []
        for request in group:
            source = states[request].job.prompt.source
            sources += [None if source is None else source.pixels()] * len(request.images)
        return judge(texts, images, sources)

    # -------------------------------------------------------------- forwards and draws

    def _draw_burst(self) -> int:
        """If every job only draws, draw as many tokens as fit before one of them is done.

        Returns the number of decode steps; 0 if a single step must be made instead. Jobs whose
        final image is being rendered need none.
        """
        runs = self._requests(RunRequest)
        drawing = len(self.flights) - len(self._requests(_FinalRender))
        if not runs or len(runs) < drawing:
            return 0
        missing: dict[Canvas, int] = {}
        for run in runs:
            unfinished = run.unfinished_rows()
            if not unfinished:
                return 0
            for canvas in unfinished:
                missing[canvas] = run.until - canvas.length
        return self.sampler.burst(list(missing), min(missing.values()))

    def _compute_logits(
        self,
        looks: Sequence[LookRequest],
        runs: Sequence[RunRequest],
        steps: Sequence[StepRequest],
    ) -> None:
        """Compute the logits that all rows wait for, in one forward."""
        undrafted = _unfinished_rows(runs)
        drafts: list[Draft | None] = [None] * len(undrafted)
        drafts += _all_drafts(looks) + _all_drafts(steps)
        self.sampler.forward(undrafted + _all_rows(looks) + _all_rows(steps), drafts)

    def _answer_looks(self, looks: Sequence[LookRequest]) -> None:
        """Read the signals of each probe for the rows of all jobs that look."""
        for group in _group_by(looks, lambda one: id(one.probe)):
            signals = self.sampler.probe(_all_rows(group), group[0].probe, _all_drafts(group))
            self._resume_all(_split(signals, group))

    def _draw_tokens(self, runs: Sequence[RunRequest]) -> None:
        """Draw for the rows of `runs`, and for all steps whose logits are there.

        These are the steps of this round's forward, and those that follow a look of this round.
        """
        # 1. Collect rows by the rule that draws them; rows of runs join the exact ones.
        steps = [step for step in self._requests(StepRequest) if self._has_logits(step)]
        plain_rows = _unfinished_rows(runs)
        rules: dict[int, Rule] = {id(step.rule): step.rule for step in steps}
        if plain_rows:
            rules[id(exact)] = exact

        # 2. Draw rule by rule.
        answers: dict[Request[Any], object] = {}
        for rule in rules.values():
            group = [step for step in steps if step.rule is rule]
            rows = _all_rows(group)
            drafts = _all_drafts(group)
            if rule is exact:
                rows += plain_rows
                drafts += [None] * len(plain_rows)
            answers |= _split(self.sampler.draw(rows, drafts, rule), group)
        answers |= self._find_faults(steps)

        # 3. Only then go on with the methods, which may change their canvases.
        self._resume_all(answers)

    def _has_logits(self, step: StepRequest) -> bool:
        """Tell whether the logits of every row, and behind its draft tokens, are there."""
        pairs = zip(step.rows, step.drafts, strict=True)
        return all(self.sampler.ready(canvas, draft) for canvas, draft in pairs)

    def _step_at_fronts(self) -> None:
        """Verify and draw, in one forward a rule, for all jobs that step at fronts."""
        waiting = self._requests(StepAtRequest)
        answers: dict[Request[Any], object] = {}
        for group in _group_by(waiting, lambda one: id(one.rule)):
            fronts = [some for request in group for some in request.fronts]
            accepted = self.sampler.step_at(_all_rows(group), fronts, group[0].rule)
            answers |= _split(accepted, group)
        if waiting:
            self._resume_all(answers | self._find_faults(waiting))

    def _resume_finished_runs(self) -> None:
        """Go on with the jobs all of whose rows have the tokens that they ran for."""
        runs = self._requests(RunRequest)
        finished = [run for run in runs if not run.unfinished_rows()]
        self._resume_all(dict.fromkeys(finished) | self._find_faults(runs))

    def _find_faults(self, requests: Sequence[_Drawing]) -> dict[Request[Any], object]:
        """Return an error for each request with a row whose probabilities were not finite.

        What drafters keep of such a row is no better: they forget all that they keep.
        """
        faults: dict[Request[Any], object] = {}
        for request in requests:
            places = [row.fault_at for row in request.rows if row.fault_at is not None]
            if places:
                faults[request] = self._explain_fault(places[0])
        if faults:
            self.spec.release_parts()
        return faults

    def _explain_fault(self, place: int) -> NotFiniteError:
        sampling = self.sampler.sampling
        dtype = str(self.sampler.model.dtype).removeprefix("torch.")
        return NotFiniteError(
            f"probabilities are not finite at token {place} "
            f"(model.sampling.temperature={sampling.temperature:g}, scale={sampling.scale:g}, "
            f"{dtype}): raise the temperature, or set model.dtype=float32 if logits overflow"
        )


# ------------------------------------------------------------------ turns


def _advance(coroutine: Coroutine[Request[Any], Any, Any], answer: object) -> Request[Any]:
    """Send an answer, or throw an exception, into a coroutine; return what it awaits next.

    Raises TypeError, at the method's own line, for anything but a session's request.
    """
    if isinstance(answer, BaseException):
        request = coroutine.throw(answer)
    else:
        request = coroutine.send(answer)
    if isinstance(request, Request):
        return request
    error = TypeError(
        f"the method awaited {request!r}; only a session's requests can be awaited: "
        "take out asyncio and the like"
    )
    coroutine.throw(error)
    raise error


# ------------------------------------------------------------------ batches


def _read_images(pictures: Sequence[Picture]) -> list[Image] | NotFiniteError:
    """Wait for images and return them, or the error of one whose pixels are no numbers."""
    try:
        return [picture.image() for picture in pictures]
    except NotFiniteError as error:
        return error


class _HasRows(Protocol):
    """A request about some canvases."""

    rows: list[Canvas]


def _all_rows(requests: Iterable[_HasRows]) -> list[Canvas]:
    return [canvas for request in requests for canvas in request.rows]


def _all_drafts(requests: Iterable[StepRequest | LookRequest]) -> list[Draft | None]:
    return [draft for request in requests for draft in request.drafts]


def _unfinished_rows(runs: Iterable[RunRequest]) -> list[Canvas]:
    return [canvas for run in runs for canvas in run.unfinished_rows()]


def _split(results: Iterable[object], group: Iterable[_HasRows]) -> dict[Any, object]:
    """Cut the results of a batch into those of each request.

    Results behind them belong to rows of runs, which need no answer.
    """
    result = iter(results)
    return {request: list(islice(result, len(request.rows))) for request in group}


def _group_by(requests: Iterable[_Kind], key: Callable[[_Kind], object]) -> Iterable[list[_Kind]]:
    """Group the requests that one call can carry out, in the order of their first ones."""
    groups: dict[object, list[_Kind]] = {}
    for request in requests:
        groups.setdefault(key(request), []).append(request)
    return groups.values()
