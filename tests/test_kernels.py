"""Kernels do what torch does: under Triton's interpreter on the CPU, at the sizes of real models on
a GPU.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import kernels

pytest.importorskip("triton", reason="Triton is not installed, and the kernels are written in it")

import kernel_laws as laws
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from harness.kernels import flash, race

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def run(*code: str, **environment: str) -> str:
    said = subprocess.run(
        [sys.executable, *code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert said.returncode == 0, said.stderr
    return said.stdout


def test_kernels_equal_torch_under_the_interpreter() -> None:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    said = run(str(ROOT / "tests" / "kernel_laws.py"), TRITON_INTERPRET="1", PYTHONPATH=path)
    assert said.split() == [law.__name__ for law in laws.LAWS]


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no GPU here: the kernels run in Triton's interpreter only",
)
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_kernels_equal_torch_on_a_gpu(law: Any) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    if reason := kernels.missing(device):
        pytest.skip(reason)
    law(laws.REAL, device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here to capture a graph on")
def test_kernels_can_be_captured() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    if reason := kernels.missing(device):
        pytest.skip(reason)
    given = laws.attended(laws.REAL.shapes[0], torch.bfloat16, device)
    drawn = laws.drawn(16384, 8, 2, device)
    flash.attend(**given), race.draw(*drawn, temperature=1.0, top_k=1000)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flash.attend(**given)
        draws = race.draw(*drawn, temperature=1.0, top_k=1000)
    given["pos_SW"].clamp_(max=5)
    drawn[-1].add_(1)
    graph.replay()
    assert torch.equal(out, flash.attend(**given))
    assert torch.equal(draws.token, race.draw(*drawn, temperature=1.0, top_k=1000).token)


def test_importing_the_facade_imports_no_triton() -> None:
    code = "import sys, torch; from harness import kernels; said = kernels.missing(torch.device('cpu'))"
    said = run("-c", f"{code}; print('triton' in sys.modules, said)", TRITON_INTERPRET="0")
    assert said.strip() == "False cpu is no CUDA device"


def test_without_triton_the_portable_path_is_taken_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels.missing.cache_clear()
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _name: None)
    device = torch.device("cuda")
    with caplog.at_level(logging.WARNING, "harness"):
        assert (
            kernels.attention(device)
            is kernels.guided_draw(device)
            is kernels.confidence(device)
            is None
        )
    assert kernels.missing(device) == "Triton is not installed"
    assert len(caplog.records) == 1
    kernels.missing.cache_clear()


@pytest.mark.parametrize(
    ("capability", "fault", "said"),
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
def test_a_device_that_cannot_use_them_says_why(
    capability: tuple[int, int], fault: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.kernels.trial

    def disagreement(_device: torch.device) -> object:
        if isinstance(fault, Exception):
            raise fault
        return fault

    kernels.missing.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(harness.kernels.trial, "disagreement", disagreement)
    reason = kernels.missing(torch.device("cuda"))
    kernels.missing.cache_clear()
    assert reason.endswith(said)
    assert "\n" not in reason


def test_what_kernels_do_not_take_is_refused() -> None:
    for wrong in (torch.zeros(1, 1, 1, 512), torch.zeros(1, 1, 1, 8, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"heads of \d+ numbers in"):
            flash.attend(wrong, wrong, wrong, torch.zeros(1, 1).long())
    logits_MV, *rows = laws.drawn(512, 2, 2, CPU)
    for wrong in (logits_MV.double(), logits_MV.T, torch.zeros(1, 2**16)):
        with pytest.raises(ValueError, match="dense float32"):
            race.draw(wrong, *rows, temperature=1.0, top_k=5)
    with pytest.raises(ValueError, match="3 branches"):
        race.draw(logits_MV, torch.zeros(2, 3).long(), *rows[1:], temperature=1.0, top_k=5)


FLASH = {"BIASED": True, "MASKED": True, "WIDEN": False, "W": 16, "D": 64, "KEYS": 64, "BLOCKS": 4}
RACE = {"BRANCHES": 2, "GREEDY": False, "TOP": True, "V": 16384}
POINTERS = {"pos_ptr": "*i64", "seen_ptr": "*u8", "partial_ptr": "*fp32", "scale_ptr": "*fp32"}
POINTERS |= {
    "logits_ptr": "*fp32",
    "row_ptr": "*i64",
    "key_ptr": "*i64",
    "place_ptr": "*i64",
    "token_ptr": "*i64",
}
POINTERS |= {"log_prob_ptr": "*fp64", "score_scale": "fp32", "temperature": "fp32"}
SIGNALS = {"null_ptr": "*fp32", "text_ptr": "*fp32", "out_ptr": "*fp64"}
HALF = dict.fromkeys(("q_ptr", "key_ptr", "value_ptr", "bias_ptr", "out_ptr"), "*bf16")
FULL = dict.fromkeys(HALF, "*fp32")


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("kernel", "constants", "types"),
    [
        (flash._part, {**FLASH, "PRECISION": "tf32"}, {**POINTERS, **HALF}),
        (flash._part, {**FLASH, "PRECISION": "ieee"}, {**POINTERS, **FULL}),
        (flash._join, {"D": 64, "PART": 256}, {**POINTERS, **HALF}),
        (race._draw, RACE, POINTERS),
        (race._signals, {"V": 16384}, SIGNALS),
    ],
)
def test_kernels_compile_for_gpus_that_are_not_here(
    kernel: Any, constants: dict[str, Any], types: dict[str, str], capability: int
) -> None:
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    options = {"num_warps": 4 if "D" in constants else 16, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.metadata.shared <= 100_000  # bytes that a multiprocessor of every such device has
    assert made.asm["cubin"]
