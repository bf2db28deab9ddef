"""A sampler takes no more memory than is predicted, and a run goes on where memory runs out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import TOY, harness
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy import TEXTS, ToyModel, jobs

from harness.drafters.eagle import Eagle, Layer, LayerWeights
from harness.drafters.jacobi import Jacobi
from harness.drafters.model import DraftModel
from harness.engine.acceptance import Draft
from harness.engine.canvas import Canvas
from harness.engine.cuda_graphs import Graphs
from harness.engine.draft_trees import Static
from harness.engine.forward import Forward
from harness.engine.guidance import Sampling
from harness.engine.memory import short_of_memory
from harness.engine.memory_need import estimate_need
from harness.engine.method_spec import MethodSpec
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Method, Session
from harness.models.kv_cache import KVCache
from harness.records import SampleRecord
from harness.runs import execute
from methods.best_of_n import BestOfN
from methods.plain import Plain
from methods.sjd import SJD
from methods.speculative import Speculative

VOCAB = 1024

# ------------------------------------------------------------------ the prediction


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside have held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._now = 0
        self._holders: dict[int, int] = {}  # tensors of each storage
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        before = {tensor.untyped_storage().data_ptr() for tensor in _tensors(args)}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            if id(tensor) in self._known:
                continue
            storage = tensor.untyped_storage()
            where = storage.data_ptr()
            if where in before and where not in self._holders:
                continue  # a view of what was there before
            self._hold(tensor, where, storage.nbytes())
        return out

    def _hold(self, tensor: Tensor, where: int, size: int) -> None:
        self._known.add(id(tensor))
        if where not in self._holders:
            self._now += size
            self.bytes = max(self.bytes, self._now)
        self._holders[where] = self._holders.get(where, 0) + 1
        weakref.finalize(tensor, self._drop, id(tensor), where, size)

    def _drop(self, number: int, where: int, size: int) -> None:
        self._known.discard(number)
        self._holders[where] -= 1
        if not self._holders[where]:
            del self._holders[where]
            self._now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Bushy:
    """Drafts trees of its own making: 6 nodes with distributions, of which few are accepted."""

    rows = 1
    branches = 2
    tokens_per_step = 7
    tree_capacity = 6

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        probs_GV = torch.full((6, VOCAB), 1 / VOCAB)
        tree = Draft(torch.arange(6), probs_GV, (-1, -1, 0, 0, 1, 2))
        while not canvas.done:
            await s.step([canvas], [tree if canvas.length < 10 else None])
        return canvas


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(
    "method", [Plain(), BestOfN(2), SJD(Jacobi("random", "maximal"), 6), Bushy()]
)
def test_the_need_bounds_the_peak(method: Method, scale: float) -> None:
    """Whatever a method drafts; and it is no more than ten times too much."""
    model = ToyModel(vocab=VOCAB, dtype=torch.float32)
    slots = 8
    shape: dict[str, Any] = {
        "prefill": (3, 4),
        "render_batch": 2,
        **MethodSpec.of(method).sampler_sizes(),
    }
    need = estimate_need(model, **shape)
    done: list[Delivery] = []
    with Peak() as peak:
        sampler = Sampler(model, Sampling(scale=scale, top_k=0), slots=slots, **shape)
        Scheduler(method, sampler, seed=0).run(jobs(TEXTS[:4]), done.append)
    assert not any(delivery.error for delivery in done)
    predicted = need.total(slots) - need.held
    assert 0.1 * predicted < peak.bytes < predicted


# ------------------------------------------------------------------ memory that runs out


class Scarce:
    """Lets every forward of more than `most` slots fail from the n-th on."""

    def __init__(self, error: Exception, most: int, after: int) -> None:
        self.error = error
        self.most = most
        self.left = after
        self.failures = 0

    def __call__(self, plain: Callable[..., None]) -> Callable[..., None]:
        def advance(forward: Forward, rows: list[Canvas], count: int) -> None:
            self.left -= 1
            if self.left < 0 and forward.slots.count > self.most:
                self.failures += 1
                raise type(self.error)(*self.error.args)  # its traceback dies with it
            plain(forward, rows, count)

        return advance


GENERATE = (*TOY, "method=plain", "benchmark.prompts=24", "results=r", "stages=[generate]")
ERRORS = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_where_memory_runs_out_the_run_goes_on_with_fewer_slots(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images, the finished ones among them not drawn again, and the records say so."""
    whole = tmp_path / "whole"
    cut = tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    assert harness(whole, *GENERATE)[0] == 0

    scarce = Scarce(error, most=6, after=2)
    monkeypatch.setattr(Forward, "charge_steps", scarce(Forward.charge_steps))
    code, output = harness(cut, *GENERATE)
    assert code == 0, output
    assert scarce.failures == 2  # 24 slots, then 12; 6 are enough
    assert "memory ran out with sampler.slots=24" in output
    assert hashes(cut) == hashes(whole)
    assert records(cut)[-1].stamp.get("slots") == "6, as memory ran out with 12"


class SeenObjects:
    """Sees each sampler and cache that is made, and which of the earlier ones are alive then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all: list[weakref.ref[Any]] = []
        self.alive_at_fewer_slots: list[list[object]] = []
        self._watch(monkeypatch, Sampler)
        self._watch(monkeypatch, KVCache)
        plain = execute._Drawing._halve_slots

        def halve_slots(drawing: Any, shortage: str) -> None:
            alive = [ref() for ref in self.all]
            self.alive_at_fewer_slots.append([one for one in alive if one is not None])
            plain(drawing, shortage)

        monkeypatch.setattr(execute._Drawing, "_halve_slots", halve_slots)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
        plain = kind.__init__

        def record(made: Any, *arguments: Any, **options: Any) -> None:
            self.all.append(weakref.ref(made))
            plain(made, *arguments, **options)

        monkeypatch.setattr(kind, "__init__", record)


def toy_of_float32(device: str | torch.device = "cpu") -> ToyModel:
    return ToyModel(vocab=VOCAB, dtype=torch.float32, device=device)


def list_drafters() -> dict[str, Any]:
    layer = Layer(toy_of_float32().trunk_spec)
    weights = LayerWeights(layer.state_dict(), "toy", "toy")
    return {"draft model": DraftModel(toy_of_float32), "EAGLE": Eagle(lambda: weights)}


def spec_of(method: Method, slots: int) -> Any:
    """The parts of a run of the toy model that the executor reads."""
    method_spec = MethodSpec.of(method)
    sizes = {"slots": slots, "concurrency": None, "prefill": (3, 4), "render_batch": 2}
    return SimpleNamespace(
        model=toy_of_float32(),
        method=method,
        method_spec=method_spec,
        sampling=Sampling(scale=2.0),
        sampler_sizes={**sizes, **method_spec.sampler_sizes()},
        numerics="constant",
        seed=0,
        warm_up=0,
        stuck_after_s=None,
    )


@pytest.mark.parametrize("name", list_drafters())
@pytest.mark.parametrize("gamma", [2, Static({"": 2, "0": 1})], ids=["chain", "tree"])
@pytest.mark.parametrize("after", [0, 9])
def test_the_halved_sampler_is_alone(
    name: str, gamma: Any, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafters let go of the sampler that was too large: its caches are gone, and their own."""
    spec = spec_of(Speculative(list_drafters()[name], gamma), slots=8)
    scarce = Scarce(MemoryError(), most=4, after=after)
    monkeypatch.setattr(Forward, "charge_steps", scarce(Forward.charge_steps))
    seen = SeenObjects(monkeypatch)
    done: list[Delivery] = []
    execute.Executor(spec).draw(jobs(TEXTS), done.append)
    assert not any(delivery.error for delivery in done)
    assert len(done) == len(TEXTS)
    assert seen.alive_at_fewer_slots == [[]]

    del spec
    gc.collect()
    assert len(seen.all) > 2
    assert not any(ref() for ref in seen.all)


def test_where_one_job_is_too_much_the_run_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce = Scarce(MemoryError(), most=0, after=0)
    monkeypatch.setattr(Forward, "charge_steps", scarce(Forward.charge_steps))
    code, output = harness(tmp_path, *GENERATE)
    assert code != 0
    assert "memory" in output
    assert "Traceback" not in output


# ------------------------------------------------------------------ memory and captured graphs


class Unfinished:
    """Work whose capture fails: an allocation inside it, and then the end of the capture."""

    def __init__(self, inside: Exception) -> None:
        self.inside = inside

    def __call__(self, _work: Callable[[], None]) -> Any:
        try:
            raise self.inside
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Graphs of a device that is not there; nothing of torch's own is called."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    return Graphs(torch.device("cuda"))


@pytest.mark.parametrize(
    "inside",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
)
def test_a_capture_without_memory_is_a_lack_of_memory(
    graphs: Graphs, inside: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised, so that fewer slots are tried; graphs stay on for them."""
    monkeypatch.setattr(graphs, "_capture", Unfinished(inside))
    with pytest.raises(type(inside), match=r"out of memory|ALLOC_FAILED") as raised:
        graphs.prepare("forward", lambda: None, lambda: None)
    assert short_of_memory(raised.value)
    assert graphs.state == "on"


def test_a_capture_that_fails_otherwise_switches_graphs_off(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = RuntimeError("CUDA error: operation not permitted when stream is capturing")
    monkeypatch.setattr(graphs, "_capture", Unfinished(inside))
    graphs.prepare("forward", lambda: None, lambda: None)
    assert graphs.state.startswith("off (CUDA error: operation failed")


def test_graphs_can_be_dropped(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []
    monkeypatch.setattr(graphs, "_capture", lambda work: captured.append(work))
    graphs.prepare("forward", lambda: None, lambda: None)
    graphs.drop()
    graphs.prepare("forward", lambda: None, lambda: None)
    assert len(captured) == 2


def test_fewer_slots_need_invariant_rows_or_fast_numerics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing has shown that rows are treated alike, the run stops with the remedy."""
    monkeypatch.setattr(execute, "rows_are_invariant", lambda device: False)
    scarce = Scarce(MemoryError(), most=6, after=2)
    monkeypatch.setattr(Forward, "charge_steps", scarce(Forward.charge_steps))
    code, output = harness(tmp_path, *GENERATE)
    assert code != 0
    assert "set sampler.memory_gb, fewer sampler.slots" in output
    scarce.left = 2
    assert harness(tmp_path, *GENERATE, "numerics=fast")[0] == 0


# ------------------------------------------------------------------ copies


def test_slots_are_copied_in_pieces() -> None:
    """Copies of many slots take no more memory for a moment than those of a few."""
    model = ToyModel(vocab=VOCAB, dtype=torch.float32)
    sampler = Sampler(model, Sampling(scale=2.0), slots=128, prefill=(3, 4))
    table = sampler.table
    table.make_frontier().normal_()
    table.cache.keys.normal_()
    table.cache.values.normal_()
    source_n = torch.arange(64, 128)
    target_n = torch.randperm(64)
    expected = table.cache.keys[:, source_n].clone()
    with Peak() as peak:
        table.copy(source_n, target_n)
    assert torch.equal(table.cache.keys[:, target_n], expected)
    assert torch.equal(table.make_frontier()[target_n], table.make_frontier()[source_n])
    assert peak.bytes < 8 * max(table.cache.slot_bytes, VOCAB * 4) + 8 * 128


def records(cwd: Path) -> list[SampleRecord]:
    (journal,) = cwd.rglob("records-*.jsonl")
    return [SampleRecord.from_json(line) for line in journal.read_text().splitlines()]


def hashes(cwd: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """The hashes of every image's tokens and pixels; asserts that none was drawn twice."""
    found = records(cwd)
    of_image = {record.key: (record.tokens_sha, record.image_sha) for record in found}
    assert len(of_image) == len(found)
    return of_image
