"""The state of one job in flight: its slots, its canvases, its ledger and its notes.

The scheduler makes a `JobState` and keeps it. The job's session changes it on behalf of the method,
which has no public name for it: a method cannot read its cost, its limit or the answer key.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.engine.author_errors import StartedCall, expect_one_canvas
from harness.engine.canvas import Canvas
from harness.engine.watchdog import Progress
from harness.kernels.noise import derive
from harness.records import JSON, Job, Usage


@dataclass(eq=False, slots=True)
class JobState:
    """What one job holds, and what it has cost so far.

    `reserved_slots` begins at rows x branches and only shrinks: a closed canvas gives its slots up
    for good. No job in flight can therefore wait for slots that another one holds.
    """

    job: Job
    seed: int  # of the run
    branches: int  # slots that one canvas reserves
    reserved_slots: int
    usage: Usage = field(default_factory=Usage)
    canvases: list[Canvas] = field(default_factory=list)  # the open ones
    opened: int = 0  # canvases opened so far, closed ones included
    notes: dict[str, JSON] = field(default_factory=dict)
    calls: list[StartedCall] = field(
        default_factory=list
    )  # that nobody had awaited, when last seen
    progress: Progress = field(default_factory=Progress)

    def derive_key(self, *purpose: str | int) -> int:
        """Derive a 64-bit random key that depends on seed, prompt, image and purpose alone."""
        return derive(self.seed, self.job.prompt.id, self.job.image, *purpose)

    def expect_free_slots(self) -> None:
        """Raise RuntimeError if the reservation has no slots left for another canvas."""
        if (len(self.canvases) + 1) * self.branches > self.reserved_slots:
            allowed = self.reserved_slots // self.branches
            raise RuntimeError(
                "the method opened more canvases than its `rows` declares: "
                f"{allowed} may be open now"
            )

    def expect_open(self, *canvases: Canvas) -> None:
        """Raise ValueError unless all canvases belong to this job and are open.

        Raises TypeError for what is no canvas.
        """
        for canvas in canvases:
            expect_one_canvas(canvas)
        if any(canvas not in self.canvases for canvas in canvases):
            raise ValueError("the canvas is closed or belongs to another job")

    def add_canvas(self, canvas: Canvas) -> None:
        """Add a canvas that was just opened."""
        self.opened += 1
        self.canvases.append(canvas)

    def give_up_canvas(self, canvas: Canvas) -> None:
        """Remove a canvas that ends, and its slots from the reservation."""
        self.canvases.remove(canvas)
        self.reserved_slots -= self.branches

    def give_up_slots(self) -> list[Canvas]:
        """End the reservation. Return the canvases that were still open, for the sampler."""
        still_open = self.canvases
        self.canvases = []
        self.reserved_slots = 0
        return still_open

    def note_call(self, call: StartedCall) -> None:
        """Note a call of the session that has to be awaited."""
        self.calls = [earlier for earlier in self.calls if earlier.is_forgotten]
        self.calls.append(call)

    def take_forgotten_call(self) -> StartedCall | None:
        """Return the first call that nobody has awaited, if there is one; all are dropped."""
        forgotten = [call for call in self.calls if call.is_forgotten]
        self.calls.clear()
        for call in forgotten:
            call.drop()
        return forgotten[0] if forgotten else None

    def charge_judge(self, images: int, seconds: float, tokens: int, unanswered: int) -> None:
        """Add a judge's answers about `images` images to the ledger; some may be no answers."""
        self.usage.judge_calls += images
        self.usage.unanswered += unanswered
        self.usage.judge_s += seconds
        self.usage.judge_tokens += tokens
