"""The check of a GPU: resumable, on bare machines, and every step sees the fault it is there for.

Here there is no GPU. The same functions run on the CPU, with tiny models; faults are planted.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.check import main
from harness.check.gpu import (
    children,
    command,
    configured,
    memory,
    methods,
    models,
    overhead,
    parity,
    resume,
    sanitizer,
    simulated,
    speed,
    subjects,
)
from harness.check.gpu.children import run_parts
from harness.check.gpu.drawing import draw, make_jobs
from harness.check.gpu.finding import Finding, NotRunError, Part, Setting, Step
from harness.check.gpu.journal import Journal, Line, open_journal
from harness.check.gpu.options import add_options
from harness.check.gpu.plan import STEPS, choose_steps
from harness.check.gpu.subjects import draw_tokens
from harness.check.gpu.table import format_tables
from harness.check.gpu.worker import carry_out
from harness.parity.fixture import Quantity
from harness.records import UserError
from harness.runs import execute

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT.parent / "shared" / "fixtures"
TINY = Setting(device="cpu", size="tiny")
HEADER = {
    "device": "A GPU",
    "size": "full",
    "torch": "2.9",
    "triton": "3.5",
    "code": "0123",
    "date": "2026-11-26",
    "driver": "590",
    "dirty": True,
}


# ------------------------------------------------------------------ bare machines

BARE = '''
import json, sys
MISSING = {
    "hydra", "omegaconf", "ftfy", "open_clip", "wandb", "mmdet", "transformers", "pandas", "scipy",
    "matplotlib", "PIL", "yaml", "huggingface_hub", "pynvml", "tqdm", "antlr4", "statsmodels",
    "torchvision", "resvg_py",
}

class Without:
    """A finder that finds nothing of the missing packages."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in MISSING else self.finder.find_spec(name, *rest)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch
torch.set_num_threads(1)
from pathlib import Path
from harness.check.gpu.finding import NotRunError, Setting
from harness.check.gpu.plan import STEPS
from harness.check.gpu.worker import carry_out
import harness.check.gpu.command

fixtures = Path(sys.argv[1]) if sys.argv[1] else None
setting = Setting(device="cpu", size="tiny", fixtures=fixtures)
chosen = [one.split("/") for one in sys.argv[2:]]
for step in STEPS:
    try:
        parts = {part.name: part for part in step.list_parts(setting)}
    except NotRunError:
        parts = {}
    for name in [name for own, name in chosen if own == step.name]:
        line = carry_out(step.name, parts[name], setting)
        print(json.dumps([line.step, line.part, line.status, line.reason]), flush=True)
assert not MISSING & set(sys.modules), MISSING & set(sys.modules)
'''


BARE_PARTS = [
    "device/facts",
    "methods/plain",
    "methods/zipar",
    "methods/gridar",
    "models/llamagen_xl_256",
    "models/janus_pro_1b",
    "speed/llamagen_xl_256, 1 image",
    "resume/SIGTERM and resume",
]
"""Parts of several steps that a CPU can carry out."""
COMPARED = "parity/llamagen_tiny"
"""A part that needs the fixtures."""


@pytest.fixture(scope="module")
def bare() -> dict[str, tuple[str, str]]:
    """What became of each part where only torch, triton, numpy and safetensors are installed."""
    fixtures = str(FIXTURES) if FIXTURES.is_dir() else ""
    parts = [*BARE_PARTS, COMPARED] if fixtures else BARE_PARTS
    done = subprocess.run(
        [sys.executable, "-c", BARE, fixtures, *parts],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    return {f"{step}/{part}": (status, reason) for step, part, status, reason in rows}


def test_methods_that_edit_are_not_drawn_from_texts() -> None:
    every = {path.stem for path in (ROOT / "conf/method").glob("*.yaml")}
    assert every - set(configured.read_configured()["method"]) == {"gridar_edit"}


def test_a_bare_machine_can_run_the_steps(bare: dict[str, tuple[str, str]]) -> None:
    """Steps 1 to 9 are imported and listed there, and those carried out that a CPU can."""
    found = {part: bare[part] for part in BARE_PARTS}
    without_scipy = found.pop("methods/gridar")
    assert without_scipy == ("not run", "needs scipy, which is not installed")
    status, reason = found.pop("resume/SIGTERM and resume")
    assert status == "not run" and reason.startswith("needs hydra, omegaconf")
    assert set(found.values()) == {("passed", "")}


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the parity fixtures are not on this machine")
def test_a_bare_machine_compares_with_the_originals(bare: dict[str, tuple[str, str]]) -> None:
    assert bare[COMPARED] == ("passed", "")


def test_configurations_are_those_of_conf() -> None:
    """Without Hydra methods and models are built from a file that Hydra composed."""
    composed = json.loads(json.dumps(configured.compose()))
    assert configured.read_configured() == composed, "python -m harness.check.gpu.configured"


def test_every_configured_method_is_built_without_hydra() -> None:
    for name in configured.read_configured()["method"]:
        assert callable(configured.build_method(name).generate)
    with_partial = {"_target_": "builtins.dict", "_partial_": True, "a": [{"b": 1}]}
    assert configured.build(with_partial)() == {"a": [{"b": 1}]}


# ------------------------------------------------------------------ processes of their own

HANG_S = 0.4
"""Seconds that a part which hangs may take on an H100; on a slower device some times as many."""
FAKE = """
import os, sys, time
import torch
from harness.check.gpu import plan, worker
from harness.check.gpu.finding import Finding, NotRunError, Part, Step

def die(setting): os._exit(7)
def dump_core(setting): os.abort()
def hang(setting): time.sleep(600)
def fail(setting): raise ValueError("planted")
def lose(setting):
    worker.device_works = lambda setting: False
    raise RuntimeError("CUDA error: device-side assert triggered")
def need(setting): import a_package_that_is_not_there
def need_ours(setting): import harness.a_module_that_is_not_there
def good(setting): return Finding("good", {"pid": os.getpid()})
NAMES = [good, die, dump_core, hang, fail, lose, need, need_ours]
PARTS = [Part(one.__name__, one, 0.1) for one in NAMES] + [Part("last", good)]
plan.STEPS = (Step("fake", "", lambda setting: PARTS),)
sys.exit(worker.main())
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Line]]:
    """Carry parts of a planted step out in processes of their own."""
    script = tmp_path / "fake_worker.py"
    script.write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(children, "WORKER", [sys.executable, str(script)])

    def run(*names: str, seconds: float = math.inf, start_s: float = 60.0) -> list[Line]:
        monkeypatch.setattr(children, "START_S", start_s)
        limits = {"hang": HANG_S}
        parts = [Part(name, lambda _: Finding("not here"), limits.get(name, 10)) for name in names]
        return list(run_parts("fake", parts, TINY, time.monotonic() + seconds))

    return run


def test_a_process_that_dies_or_hangs_fails_its_part_alone(
    fake: Callable[..., list[Line]],
) -> None:
    names = ("good", "die", "fail", "hang", "dump_core", "lose", "need", "need_ours", "last")
    lines = fake(*names)
    assert [line.part for line in lines] == list(names)
    found = {line.part: (line.status, line.reason) for line in lines}
    assert found["good"] == found["last"] == ("passed", "")
    assert found["die"] == ("failed", "the process ended with exit code 7: it printed nothing")
    assert found["hang"] == ("failed", "stopped: it took longer than 1 s")
    assert found["dump_core"][0] == "failed"
    assert "signal 6" in found["dump_core"][1]
    assert found["fail"][1].startswith("ValueError: planted (at fake_worker.py:")
    assert found["lose"][1].startswith("RuntimeError: CUDA error: device-side assert triggered")
    assert found["need"] == (
        "not run",
        "needs a_package_that_is_not_there, which is not installed",
    )
    assert found["need_ours"][0] == "failed"
    # A lost context ends the process without blaming the part behind it.
    pids = {line.part: line.figures["pid"] for line in lines if line.part in ("good", "last")}
    assert pids["good"] != pids["last"]


def test_a_process_that_does_not_begin_is_stopped(fake: Callable[..., list[Line]]) -> None:
    """Its start has a time of its own; the part behind it is tried in another process."""
    lines = fake("hang", "hang", start_s=0.1)
    assert [line.status for line in lines] == ["failed", "failed"]
    assert {line.reason for line in lines} == {"stopped: it took longer than 1 s"}


def test_what_the_minutes_do_not_allow_is_not_run(fake: Callable[..., list[Line]]) -> None:
    lines = fake("hang", "last", seconds=1.0)
    assert [line.status for line in lines] == ["not run", "not run"]
    assert {line.reason for line in lines} == {"the time of --minutes was over"}


# ------------------------------------------------------------------ the result file


def line(part: str, status: Any = "passed", **values: Any) -> Line:
    return Line("speed", part, status, 1.0, **values)


def test_a_second_call_goes_on_in_the_file_of_the_same_machine_and_code(tmp_path: Path) -> None:
    first = open_journal(tmp_path, HEADER)
    assert first.path == tmp_path / "gpu.jsonl"
    first.append(line("a"))
    with first.path.open("a") as file:
        file.write('{"step": "speed", "pa')  # a call that was killed
    again = open_journal(tmp_path, {**HEADER, "date": "2026-11-27"})
    assert again.path == first.path
    assert [one.part for one in again.lines] == ["a"]
    again.append(line("b"))
    assert [one.part for one in Journal.read(first.path).lines] == ["a", "b"]


@pytest.mark.parametrize("fact", ["device", "torch", "triton", "code"])
def test_another_machine_or_code_begins_a_file(fact: str, tmp_path: Path) -> None:
    first = open_journal(tmp_path, HEADER)
    other = open_journal(tmp_path, {**HEADER, fact: "another"})
    assert other.path == tmp_path / "gpu-2.jsonl"
    assert open_journal(tmp_path, HEADER).path == first.path


def test_a_file_is_named_after_device_and_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened = open_journal(None, {**HEADER, "device": "NVIDIA H100 80GB HBM3"})
    assert opened.path == Path("results/gpu/nvidia-h100-80gb-hbm3-2026-11-26.jsonl")


def test_parts_with_a_verdict_are_not_carried_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passed and failed stay; what was not run is tried again, and its later line counts."""
    asked: list[list[str]] = []

    def run(step: str, parts: list[Part], _setting: Setting, _deadline: float) -> Iterator[Line]:
        asked.append([part.name for part in parts])
        for part in parts:
            yield Line(step, part.name, "not run" if len(asked) == 1 else "passed", 0.0)

    monkeypatch.setattr(command, "run_parts", run)
    parts = [Part(name, lambda _: Finding("")) for name in ("a", "b", "c")]
    steps = [Step("speed", "", lambda _: parts)]
    journal = open_journal(tmp_path, HEADER)
    journal.append(line("a"))
    journal.append(line("b", "failed", reason="planted"))
    assert command.run_steps(steps, TINY, journal, None) == 1
    assert command.run_steps(steps, TINY, Journal.read(journal.path), 5) == 1
    assert asked == [["c"], ["c"]]
    statuses = {one.part: one.status for one in Journal.read(journal.path).lines}
    assert statuses == {"a": "passed", "b": "failed", "c": "passed"}
    assert "2 passed" in capsys.readouterr().out


def test_a_step_that_cannot_be_listed_has_a_line(tmp_path: Path) -> None:
    (step,) = choose_steps("parity")
    journal = open_journal(tmp_path, HEADER)
    assert command.run_steps([step], TINY, journal, None) == 0
    (found,) = journal.lines
    assert (found.status, found.reason) == (
        "not run",
        "no fixtures were named: give --fixtures DIR",
    )


def test_steps_are_chosen_by_number_and_name() -> None:
    assert len(STEPS) == 11
    assert [step.name for step in choose_steps("methods, 2")] == ["kernels", "methods"]
    with pytest.raises(UserError, match=r"--only 12: there is no such step, there are 1 device"):
        choose_steps("12")


def test_tables_are_made_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = open_journal(tmp_path, HEADER)
    figures = {"seconds": 0.2451, "ms_per_step": 0.9, "share_of_floor": 0.7, "launches": None}
    journal.append(line("llamagen_xl_256, 16 images", headline="0.245 s", figures=figures))
    journal.append(line("janus_pro_7b, 1 image", "failed", reason="4 s, the bar is 3.2 s"))
    assert main(["gpu", "--table", str(journal.path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("A GPU: driver 590, torch 2.9, triton 3.5, date 2026-11-26 (with")
    assert "| 1 device | facts, kernels usable, a captured graph | not run |  | 0.0 |" in printed
    assert "| 1 failed, 1 passed | llamagen_xl_256, 16 images: 0.245 s |" in printed
    assert "| llamagen_xl_256, 16 images | 0.245 | 0.9 | 0.7 |  |  |  |" in printed
    assert "- speed, janus_pro_7b, 1 image: failed (1.0 s) 4 s, the bar is 3.2 s" in printed
    assert printed.strip() == format_tables(journal)


def test_mistakes_are_answered_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, answer in (
        (("--only", "fast"), "error: --only fast: there is no such step"),
        (("--minutes", "-1"), "error: --minutes -1: give a number above 0"),
        (("--device", "cpu"), "error: --device cpu: this examines a GPU, name one, as cuda:0"),
        (("--table", str(tmp_path / "x")), f"error: {tmp_path / 'x'} is no result file of"),
    ):
        assert main(["gpu", *options]) == 2
        assert capsys.readouterr().err.startswith(answer)


# ------------------------------------------------------------------ without a GPU


def test_an_installed_wheel_without_a_gpu_says_that_nothing_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulated, "TESTS", tmp_path)
    assert simulated.check_simulated() == 2
    assert "Nothing was run" in capsys.readouterr().out


def test_a_clone_without_a_gpu_runs_the_simulated_devices_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    some = [
        ("device", "capture"),
        ("models", "janus_pro_1b"),
        ("memory", "estimate, llamagen_xl_256"),
    ]
    assert simulated.check_simulated(some[:2]) == 0
    printed = capsys.readouterr().out
    assert "carried out on a simulated device" in printed
    assert "- models, janus_pro_1b: passed" in printed and "graphs on" in printed


# ------------------------------------------------------------------ planted faults


def failures_of(find: Callable[[Setting], Finding], setting: Setting = TINY) -> str:
    """What a part says that does not hold."""
    return "; ".join(find(setting).failures)


def test_a_graph_that_changes_a_token_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_wrongly(*arguments: Any, graphs: bool = True, **options: Any) -> Any:
        drawn = draw(*arguments, graphs=graphs, **options)
        if not graphs:
            delivery = drawn.deliveries["check/1", 0]
            object.__setattr__(delivery, "tokens", (*delivery.tokens[:5], -1, *delivery.tokens[6:]))
        return drawn

    monkeypatch.setattr(methods, "draw", draw_wrongly)
    said = failures_of(lambda setting: methods.compare_method("plain", setting))
    assert said == "graphs change 1 images: check/1 image 0 (token 5)"


def test_where_tokens_part_the_gap_is_measured() -> None:
    """A token that another draw would not nearly have drawn is no near-tie."""
    model, sampling = configured.build_model("pictogram", "cpu")
    jobs = make_jobs(1)[:1]
    drawn = draw(model, sampling, configured.build_method("plain"), jobs)
    (delivery,) = drawn.deliveries.values()
    method = methods.GapMethod(delivery.tokens[:9])
    again = draw(model, sampling, method, jobs)
    assert again.deliveries[jobs[0].key].tokens == delivery.tokens  # the same noise was raced
    assert methods.NEAR < method.gap < 1


def test_a_full_size_model_whose_graphs_or_type_change_logits_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compare(setting: Setting) -> Finding:
        return models.compare_model("llamagen_xl_256", setting)

    assert failures_of(compare) == ""
    widen = models.widen

    def widen_wrongly(model: Any) -> Any:
        wide = widen(model)
        wide.gpt.output.weight.mul_(1.1)
        return wide

    with monkeypatch.context() as fault:
        fault.setattr(models, "widen", widen_wrongly)
        assert "away from float32's, 0.03 is allowed" in failures_of(compare)

    @contextmanager
    def other_noise() -> Iterator[None]:
        with monkeypatch.context() as fault:
            fault.setattr("harness.check.gpu.subjects.derive", lambda *_: 5)
            yield

    monkeypatch.setattr(models, "without_graphs", other_noise)
    said = failures_of(compare)
    assert "graphs change the tokens of 4 of 4 images" in said
    assert "graphs change log-probabilities; graphs change the last logits" in said


def test_rows_that_depend_on_their_place_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.check.gpu import rows
    from harness.models.llamagen import LlamaGen

    nothing = {"rows": 0, "shapes": 4, "uneven_in_library": [], "remedied": 0}
    monkeypatch.setattr(rows, "judge_products", lambda *_: nothing)

    def compare(setting: Setting) -> Finding:
        return rows.compare_rows("llamagen_xl_256", 5, setting)

    assert failures_of(compare) == ""
    head = LlamaGen.head

    def head_by_place(self: LlamaGen, hidden: torch.Tensor) -> torch.Tensor:
        place = torch.arange(len(hidden)).view(-1, *[1] * (hidden.ndim - 1))
        return head(self, hidden) + 1e-6 * place

    monkeypatch.setattr(LlamaGen, "head", head_by_place)
    found = compare(TINY)
    assert found.figures["equal"] == {"again": 8, "backwards": 0, "alone": 1, "interrupted": 4}
    assert [text.partition(":")[0] for text in found.failures] == [
        "backwards",
        "alone",
        "interrupted",
    ]


def test_products_that_are_uneven_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shape of a product is tried once; those where the library fails are tried with ours."""
    from harness.check.gpu import rows
    from harness.check.gpu.subjects import build_subject
    from harness.kernels import rows as trial

    model, _ = build_subject("janus_pro_1b", TINY)
    found = rows.judge_products(model, 16)
    assert (found["rows"], found["shapes"], found["uneven_in_library"]) == (16, 4, [])

    def find(_product: Any, _rows: int, weight_NK: torch.Tensor, *_: Any) -> str:
        return "the row's index" if len(weight_NK) == 40 else ""

    monkeypatch.setattr(trial, "find_row_dependence", find)
    found = rows.judge_products(model, 16)
    assert found["uneven_in_library"] == ["[16 x 32] x [32 x 40]: the row's index"]
    assert found["remedied"] == 0  # ours would fail, too; and a CPU has no kernel


def test_an_array_that_differs_from_the_original_fails() -> None:
    good = Quantity("logits", "logits", 1e-5, True)
    bad = Quantity("pixels", "pixels", float("inf"), False)
    assert parity.judge_quantities([good], []).failures == []
    found = parity.judge_quantities([good, bad], ["captions"])
    assert found.headline == "1 of 2 arrays agree, left out: captions"
    assert "FAIL  pixels" in found.failures[0]
    assert found.figures["largest_errors"] == {"logits": 1e-5, "pixels": "infinite"}
    assert parity.judge_quantities([], []).failures == ["nothing was compared"]


def test_an_estimate_below_what_is_taken_fails() -> None:
    assert memory.judge_estimate(100, 95, "").failures == []
    assert memory.judge_estimate(100, 103, "").failures == ["more was taken than estimated"]
    assert memory.judge_estimate(300, 100, "").failures == [
        "more than 2 times what was taken was estimated"
    ]


@pytest.mark.parametrize("case", memory.SHORTAGES, ids=lambda case: case.name)
def test_a_run_whose_memory_ends_goes_on(
    case: memory.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.check.gpu.subjects import build_subject

    model, sampling = build_subject(case.model, TINY, **case.options)
    jobs = make_jobs(1)

    def draw_short() -> Finding:
        method = case.build(model, TINY)
        return memory.draw_short_of_memory(model, sampling, method, jobs)

    assert draw_short().failures == ["memory did not run out: nothing was tried"]
    make_sampler = execute.Sampler

    def make_small(*arguments: Any, slots: int, **sizes: Any) -> Any:
        if slots > 4:
            raise MemoryError("not enough memory")
        return make_sampler(*arguments, slots=slots, **sizes)

    monkeypatch.setattr(execute, "Sampler", make_small)
    found = draw_short()
    assert found.failures == []
    assert found.headline == "4 images, 8 slots, then 4, as memory ran out with 8"


def test_a_loop_with_other_logits_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class WrongLoop(speed.StaticLoop):
        def __call__(self, token_BN: torch.Tensor) -> torch.Tensor:
            return 1.1 * super().__call__(token_BN)

    monkeypatch.setattr(speed, "StaticLoop", WrongLoop)
    monkeypatch.setattr(speed, "WARM_UP", 1)
    said = failures_of(lambda setting: speed.time_model("llamagen_xl_256", 1, setting))
    assert "the loop's last logits are 0.1 away, 0.03 is allowed" in said


def test_bars_are_those_of_an_h100_or_the_same_share(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = speed.build_subject("llamagen_xl_256", TINY)
    monkeypatch.setattr(model, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(speed, "count_reads", lambda *_: None)
    figures = {"seconds": 0.36, "copy_gb_per_s": 3000.0}
    said = speed._hold_bar("llamagen_xl_256", 16, model, figures)
    assert said == ["0.36 s, the bar is 0.35 s"]
    assert speed._hold_bar("llamagen_xl_256", 16, model, {**figures, "seconds": 0.3}) == []
    assert speed._hold_bar("llamagen_xl_256", 1, model, figures) == []  # has no bar


def test_launches_are_counted_by_step_and_layer() -> None:
    def event(name: str, device: str = "DeviceType.CPU") -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=device)

    on_device = "DeviceType.CUDA"
    events = [event("cudaGraphLaunch")] * 2 + [event("aten::add")] * 9
    events += [event("gemm", on_device)] * 12 + [event("norm", on_device)] * 4
    events += [event("Memcpy DtoD", on_device)] * 7
    found = speed.sum_up_launches(events, steps=2, layers=4)
    assert (found["launches"], found["kernels_per_step"], found["kernels_per_layer"]) == (1, 8, 2)
    assert found["commonest_kernels"] == {"gemm": 6, "norm": 2}
    assert speed.sum_up_launches(events[:11], 2, 4)["launches"] is None


def test_a_method_whose_bookkeeping_is_dear_fails() -> None:
    def work(seconds: list[float], device: str) -> Any:
        model = SimpleNamespace(device=torch.device(device))
        return SimpleNamespace(decode_s=dict(enumerate(seconds)), model=model)

    plain = work([1.0, 1.1, 1.0], "cuda")
    light = overhead.judge_steps(work([1.02, 1.12, 1.02], "cuda"), plain, 0.03)
    assert light.failures == []
    dear = overhead.judge_steps(work([1.1, 1.2, 1.1], "cuda"), plain, 0.03)
    assert dear.failures == ["9.7% of a decode step, the bar is 3%"]
    assert overhead.judge_steps(work([1.1, 1.2, 1.1], "cpu"), plain, 0.03).failures == []


def test_journals_that_differ_after_a_resume_fail() -> None:
    whole = {("p", image): {"tokens_sha": f"{image}"} for image in range(3)}
    assert resume.compare_journals(whole, dict(whole), resume.PREEMPTED, 1).failures == []
    changed = {**whole, ("p", 1): {"tokens_sha": "other"}}
    found = resume.compare_journals(whole, changed, resume.PREEMPTED, 1)
    assert found.failures == ["1 records differ, ('p', 1) first"]
    fewer = {key: whole[key] for key in [("p", 0)]}
    found = resume.compare_journals(whole, fewer, 1, 3)
    assert found.failures == [
        "SIGTERM made the run end with 1 instead of 143",
        "the run was done before SIGTERM came: nothing was tried",
        "1 images are recorded instead of 3",
    ]


def test_what_the_sanitizer_counts_is_read() -> None:
    good = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
    assert sanitizer.judge_output(good, 0).failures == []
    bad = "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 3 errors\n"
    assert sanitizer.judge_output(bad, 1).failures == [
        "3 errors, the first: Invalid __global__ read of size 4 bytes"
    ]
    assert sanitizer.judge_output(good, 1).failures == ["the watched process ended with 1"]
    assert sanitizer.judge_output("no such device\n", 1).failures == [
        "it printed no summary: no such device"
    ]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # and run once more
@pytest.mark.parametrize("rounds", [sanitizer.CAPTURED, sanitizer.EAGER])
def test_the_sanitizers_rounds_can_be_drawn(rounds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a module, which is what it starts under the tool."""
    drawn: list[int] = []

    def draw_and_count(sampler: Any, canvases: Sequence[Any], tokens: int) -> None:
        draw_tokens(sampler, canvases, tokens)
        drawn.append(sum(canvas.length for canvas in canvases))

    monkeypatch.setattr(sys, "argv", ["sanitizer", "cpu", rounds])
    monkeypatch.setattr(subjects, "draw_tokens", draw_and_count)
    runpy.run_module("harness.check.gpu.sanitizer", run_name="__main__")
    assert drawn == [2 * sanitizer.TOKENS]


KERNEL_FAULTS = """
import torch
torch.set_num_threads(1)
from harness.check.gpu.finding import Setting
from harness.check.gpu.kernels import list_parts
from harness.check.gpu.worker import carry_out
from harness.kernels import flash, race

setting = Setting(device="cpu", size="tiny")
parts = {part.name: part for part in list_parts(setting)}

def run(*names):
    for name in names:
        line = carry_out("kernels", parts[name], setting)
        print(name, line.status, line.reason, sep="|", flush=True)

run("attention, head width 32", "draws, top-k 50", "signals")
attend, draw, measure = flash.attend, race.draw, race.measure_signals
flash.attend = lambda **given: attend(**given) * 1.001
race.draw = lambda *given, **how: draw(*given, **how)._replace(
    token=(draw(*given, **how).token + 1) % given[0].shape[1]
)
race.measure_signals = lambda null, text: measure(null, text)._replace(
    margin=measure(null, text).margin + 1e-9
)
run("attention, head width 32", "draws, top-k 50", "signals")
"""


def test_kernels_that_compute_something_else_fail() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-c", KERNEL_FAULTS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = [text.split("|") for text in done.stdout.splitlines()]
    assert [status for _, status, _ in rows] == ["passed"] * 3 + ["failed"] * 3
    assert "float32: " in rows[3][2]
    assert rows[4][2] == "16 of 16 tokens differ: more than near-ties"
    assert "margin: 1e-09 away" in rows[5][2]


def test_what_a_part_cannot_do_here_is_not_run() -> None:
    reasons = {}
    for step in STEPS:
        try:
            parts = step.list_parts(TINY)
        except NotRunError:
            continue
        for part in parts:
            if (step.name, part.name) in NOT_ON_A_CPU:
                found = carry_out(step.name, part, TINY)
                assert found.status == "not run", found
                reasons[step.name, part.name] = found.reason
    assert len(reasons) == len(NOT_ON_A_CPU)
    assert all(reasons.values())


NOT_ON_A_CPU = {
    ("device", "capture"),
    ("kernels", "captured"),
    ("memory", "estimate, llamagen_xl_256"),
    ("memory", "out of memory, plain"),
    ("sanitizer", "captured rounds"),
}


def choose(*options: str) -> Namespace:
    """Read options as the command does."""
    parser = ArgumentParser()
    add_options(parser)
    return parser.parse_args(options)


def test_without_a_gpu_the_command_takes_the_simulated_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(simulated, "check_simulated", lambda: 17)
    assert command.check_gpu(choose()) == 17
    assert capsys.readouterr().out == ""
    assert command.check_gpu(choose("--only", "kernels", "--minutes", "9")) == 17
    assert "--minutes, --only are ignored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--device", "cudaa"), "--device cudaa"),
        (("--device", "cpu"), "--device cpu"),
        (("--minutes", "0"), "--minutes 0"),
        (("--only", "nosuch"), "--only nosuch"),
        (("--fixtures", "/nope"), "--fixtures /nope: there is no such folder"),
        (("--peer", "/nope"), "--peer /nope: there is no such folder"),
        (("--out", "/dev/null/x"), "--out /dev/null/x: cannot be made"),
    ],
)
def test_what_cannot_be_is_refused_before_any_step(options: Sequence[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        command.check_gpu(choose(*options))
