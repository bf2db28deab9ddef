"""Kernels do what torch does: under Triton's interpreter on the CPU, at real sizes on a GPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import kernels

pytest.importorskip("triton", reason="Triton is not installed, and the kernels are written in it")

import kernel_laws as laws
import yaml
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from harness.kernels import compile, flash, race, trial
from harness.models import (
    chameleon_vq,
    cosmos,
    emu3,
    emu3_vq,
    janus_checkpoint,
    llamagen_network,
    lumina,
    simplear,
)
from harness.models.pictogram.generator import Pictogram

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
CUDA = torch.device("cuda")


ATTENTION = kernels.Use("attention", torch.bfloat16, 128)


@pytest.fixture(autouse=True)
def examine_anew() -> Iterator[None]:
    """What a test makes of a device is forgotten behind it."""
    kernels.forget()
    yield
    kernels.forget()


def run_python(*arguments: str, **environment: str) -> str:
    """What a Python process of its own prints; fails where it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def skip_without_kernels() -> None:
    if reason := kernels.why_unused(CUDA):
        pytest.skip(reason)


def test_kernels_equal_torch_under_the_interpreter() -> None:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    script = str(ROOT / "tests" / "kernel_laws.py")
    output = run_python(script, TRITON_INTERPRET="1", PYTHONPATH=path)
    assert output.split() == [law.__name__ for law in laws.LAWS]


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no GPU here: the kernels run in Triton's interpreter only",
)
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_kernels_equal_torch_on_a_gpu(law: Any) -> None:
    torch.manual_seed(0)
    skip_without_kernels()
    law(laws.REAL, CUDA)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here to capture a graph on")
def test_kernels_can_be_captured() -> None:
    torch.manual_seed(0)
    skip_without_kernels()
    given = laws.make_attention_inputs(laws.REAL.shapes[0], torch.bfloat16, CUDA)
    rows = laws.make_draw_inputs(16384, 8, 2, CUDA)
    flash.attend(**given)
    race.draw(*rows, temperature=1.0, top_k=1000)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flash.attend(**given)
        drawn = race.draw(*rows, temperature=1.0, top_k=1000)
    given["pos_SW"].clamp_(max=5)
    rows.place_N.add_(1)
    graph.replay()
    assert torch.equal(out, flash.attend(**given))
    assert torch.equal(drawn.token, race.draw(*rows, temperature=1.0, top_k=1000).token)


# ------------------------------------------------------------------ whether kernels are used


def test_importing_the_facade_imports_no_triton() -> None:
    code = (
        "import sys, torch; from harness import kernels; "
        "reason = kernels.why_unused(torch.device('cpu')); "
        "print('triton' in sys.modules, reason)"
    )
    output = run_python("-c", code, TRITON_INTERPRET="0")
    assert output.strip() == "False cpu is no CUDA device"


def test_without_triton_the_portable_path_is_taken_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _name: None)
    with caplog.at_level(logging.WARNING, "harness"):
        assert kernels.attention(CUDA, torch.float32, 64) is None
        assert kernels.guided_draw(CUDA, kernels.Use("draws", torch.float32, 512)) is None
        assert kernels.confidence(CUDA, torch.float32, 512) is None
        assert kernels.even_product(CUDA, torch.float32, 512) is None
    assert kernels.why_unused(CUDA) == "Triton is not installed"
    assert kernels.describe(CUDA, [ATTENTION]) == "Triton is not installed"
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("capability", "fault", "expected"),
    [
        ((7, 5), None, "the device's compute capability is 7.5, they need 8.0"),
        (
            (9, 0),
            RuntimeError("ptxas is missing\nand more"),
            "do not compile or run: RuntimeError: ptxas is missing",
        ),
        ((9, 0), "draws differ from torch's", "draws differ from torch's"),
    ],
)
def test_the_reason_names_what_a_device_lacks(
    capability: tuple[int, int], fault: object, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.kernels.trial

    def find_disagreement(_device: torch.device) -> object:
        if isinstance(fault, Exception):
            raise fault
        return fault

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(harness.kernels.trial, "find_disagreement", find_disagreement)
    reason = kernels.why_unused(CUDA)
    assert reason.endswith(expected)
    assert "\n" not in reason


@pytest.fixture
def device_on_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU count as a device whose kernels pass the first trial."""
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    monkeypatch.setattr(trial, "find_disagreement", lambda _device: "")


COMPILER_FAULTS = [
    (OutOfResources(300_000, 232_448, "shared memory"), "OutOfResources: out of resource: shared"),
    (CompilationError("def kernel():", None, "no such type"), "CompilationError: no such type"),
]


@pytest.mark.parametrize(("fault", "expected"), COMPILER_FAULTS)
@pytest.mark.usefixtures("device_on_trial")
def test_a_variant_that_does_not_compile_is_left_to_torch_with_the_reason_recorded(
    fault: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's errors are no RuntimeErrors; the variant is asked for once, the others serve."""
    assert not isinstance(fault, RuntimeError)
    attempts = []

    def attend(*_given: object) -> None:
        attempts.append(1)
        raise fault

    monkeypatch.setattr(flash, "attend", attend)
    assert kernels.attention(CPU, torch.bfloat16, 128) is None
    assert kernels.attention(CPU, torch.bfloat16, 128) is None
    assert len(attempts) == 1
    described = kernels.describe(CPU, [ATTENTION])
    assert described.startswith("Triton; torch for attention (they do not compile or run: ")
    assert expected in described


@pytest.mark.usefixtures("device_on_trial")
def test_memory_that_runs_out_says_nothing_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that finds no memory is no verdict: the caller gets the error, and may ask again."""
    answers: list[Exception | str] = [torch.OutOfMemoryError("CUDA out of memory"), ""]

    def try_use(_device: torch.device, _use: kernels.Use) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(trial, "try_use", try_use)
    with pytest.raises(torch.OutOfMemoryError):
        kernels.attention(CPU, torch.bfloat16, 128)
    assert kernels.attention(CPU, torch.bfloat16, 128) is flash.attend


def test_what_kernels_do_not_take_is_refused() -> None:
    for wrong in (torch.zeros(1, 1, 1, 512), torch.zeros(1, 1, 1, 8, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"heads of \d+ numbers in"):
            flash.attend(wrong, wrong, wrong, torch.zeros(1, 1).long())

    logits_MV, *rows = laws.make_draw_inputs(512, 2, 2, CPU)
    for wrong in (logits_MV.double(), logits_MV.T, torch.zeros(1, 2**16)):
        with pytest.raises(ValueError, match=r"in float32|must be dense"):
            race.draw(wrong, *rows, temperature=1.0, top_k=5)
    with pytest.raises(ValueError, match="3 branches"):
        race.draw(logits_MV, torch.zeros(2, 3).long(), *rows[1:], temperature=1.0, top_k=5)


# ------------------------------------------------------------------ compilation for other devices


VARIANTS = {variant.name: variant for variant in compile.list_variants()}
TYPICAL = (
    "attend_part, bfloat16, heads of 64 biased masked",
    "join_parts, bfloat16, heads of 64",
    "multiply, bfloat16, 1 rows or more in parts",
    "multiply, bfloat16, 129 rows or more biased",
    "join, bfloat16 biased",
    "draw, 512 tokens, 2 branches top-k",
    "measure_signals, 512 tokens",
)


@pytest.mark.parametrize("name", TYPICAL)
def test_a_variant_of_each_kernel_compiles_for_a_gpu_that_is_not_here(name: str) -> None:
    taken = compile.compile_variant(VARIANTS[name], 90)
    assert compile.find_excess(taken, 90) == ""


@pytest.mark.long
@pytest.mark.parametrize("capability", compile.CAPABILITIES)
def test_all_variants_compile_and_fit(capability: int) -> None:
    said: list[str] = []
    assert compile.compile_all((capability,), said.append) == []
    assert len(said) == len(VARIANTS)


def test_what_takes_more_than_a_device_has_is_named() -> None:
    assert compile.find_excess(compile.Taken(101_376, 4, 255, 0), 80) == ""
    shared = compile.find_excess(compile.Taken(101_377, 4, 64, 0), 80)
    registers = compile.find_excess(compile.Taken(0, 16, 129, 0), 90)
    spilled = compile.find_excess(compile.Taken(0, 4, 64, 2049), 100)
    assert shared == "101377 bytes of shared memory, there are 101376"
    assert registers == "66048 registers, there are 65536"
    assert spilled.startswith("2049 bytes spilled")


LANGUAGE_MODELS = {
    "harness.models.simplear.load": (simplear.SIZES, cosmos.RELEASED.codes),
    "harness.models.lumina.load": (lumina.SIZES, chameleon_vq.RELEASED.codes),
    "harness.models.emu3.load": (emu3.SIZES, emu3_vq.RELEASED.codes),
}
"""Sizes and numbers of codes, by what a configuration calls."""


def test_the_compiled_variants_are_those_that_configured_models_need() -> None:
    """A model with other heads, types or vocabularies must be added to the lists."""
    for path in sorted((ROOT / "conf" / "model").glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        if "_target_" not in config:
            continue  # another one with other weights
        target = config["_target_"]
        if target.endswith("llamagen.load"):
            specs = [llamagen_network.SIZES[config["size"]]]
            vocab = llamagen_network.GPTSpec(specs[0], 16).codes
        elif target.endswith("Janus"):
            specs = [janus_checkpoint.SIZES[config["size"]].trunk]
            vocab = janus_checkpoint.SIZES[config["size"]].vq.codes
        elif target in LANGUAGE_MODELS:
            sizes, vocab = LANGUAGE_MODELS[target]
            specs = [sizes[config["size"]].trunk]
        else:
            models = [Pictogram(part=part) for part in ("generator", "draft")]
            specs = [model.trunk_spec for model in models]
            vocab = models[0].vocab
        dtype = getattr(torch, config.get("dtype", "float32"))
        assert dtype in compile.DTYPES, path.name
        is_small = vocab <= race.MOST_TOKENS  # larger ones are drawn by torch's own operations
        if is_small:
            assert race.launch_options(vocab)["V"] in compile.VOCABULARIES, path.name
        for spec in specs:
            assert flash.padded_width(spec.head_dim) in compile.HEAD_WIDTHS, path.name
