"""The bench measures what it says: the same images on both sides, paired ratios, and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from runs import harness
from test_janus import tiny

from harness.bench.reference import LibraryJanus
from harness.bench.roof import Bar, Reading, all_hold, is_h100, seconds_allowed, streamed_bytes
from harness.bench.timing import Times, interleave
from harness.engine.memory import cap_memory
from harness.models.checkpoint import device_named
from harness.models.janus import JanusNet
from harness.models.janus_checkpoint import SIZES as JANUS
from harness.models.llamagen import GPT, SIZES, GPTSpec
from harness.records import UserError

TINY = (
    "model=llamagen_b", "model.image=32", "model.dtype=float32",
    "model.size={layers:2,dim:32,heads:2,hidden:48,condition:12,caption_dim:16}",
    "+model.tokenizer={codes:40,code_dim:8,width:32,multipliers:[1,1,2],blocks:1,latent:32}", "device=cpu",
)  # fmt: skip


def bench(cwd: Path, *arguments: str) -> tuple[int, str]:
    return harness(cwd, *arguments, module="harness.bench")


def test_the_sampler_and_the_loop_compute_the_same_images(tmp_path: Path) -> None:
    """The bench itself refuses a loop whose last logits are not the sampler's."""
    code, said = bench(
        tmp_path, "sampler", *TINY, "batch=[1,3]", "blocks=2", "bars=[[3,0.0001]]", "warm_up=1"
    )
    assert code == 0, said
    assert said.strip().splitlines()[-1].startswith("ratio over reference loop: 1 image ")
    assert "bar: 3 images, times the loop's speed" in said
    (path,) = tmp_path.glob("results/bench/*.csv")
    frame = pd.read_csv(path)
    assert list(zip(frame["batch"], frame["subject"], strict=True)) == [
        (b, s) for b in (1, 3) for s in ("ours", "loop")
    ]
    positive = [
        "tokens_per_s",
        "ms_per_step",
        "floor_s",
        "share_of_floor",
        "share_of_matvec",
        "first_s",
    ]
    positive += ["copy_gb_per_s", "matvec_gb_per_s"]
    assert (frame[positive] > 0).all(axis=None)
    assert frame["kernels"].str.contains("no CUDA device").all()
    assert np.allclose(frame["share_of_floor"], frame["floor_s"] / frame["seconds"], rtol=2e-3)
    tokens = frame["batch"] * 1000 / frame["ms_per_step"]
    assert np.allclose(frame["tokens_per_s"], tokens, rtol=2e-3)
    assert path.with_suffix(".svg").is_file()
    code, said = bench(
        tmp_path, "sampler", *TINY, "batch=[1]", "blocks=1", "bars=[[1,1e9]]", "warm_up=0"
    )
    assert code == 1, said


def test_the_librarys_janus_draws_whole_images() -> None:
    model = tiny()
    token_BN = LibraryJanus(model, ["a cat", "two dogs"])()
    assert token_BN.shape == (2, model.num_tokens)
    assert token_BN.min() >= 0 and token_BN.max() < model.vocab


@pytest.mark.parametrize(
    "model", [("model=pictogram_16", "device=cpu"), (*TINY, "model.sampling.scale=1")]
)
def test_the_loop_is_any_models(tmp_path: Path, model: tuple[str, ...]) -> None:
    """Also of one whose prompts have positions of their own, and without guidance."""
    code, said = bench(tmp_path, "sampler", *model, "batch=[2]", "blocks=1", "warm_up=0", "bars=[]")
    assert code == 0, said
    assert "ratio over reference loop: 2 images " in said


def test_methods_are_timed_against_plain(tmp_path: Path) -> None:
    arguments = ("batch=[1]", "blocks=3", "warm_up=0", "slots_for=2", "queue=5")
    code, said = bench(
        tmp_path,
        "methods",
        *TINY,
        *arguments,
        "methods=[best_of_n_likelihood]",
        "kept_light=[best_of_n_likelihood]",
    )
    assert code == 0, said  # bars do not bind on a CPU
    plain, best = (
        row for _, row in pd.read_csv(next(tmp_path.glob("results/bench/methods-*.csv"))).iterrows()
    )
    assert plain["speedup"] == plain["row_steps"] == 1
    assert best["row_steps"] == 4  # four candidates
    assert best["ci_low"] <= best["speedup"] <= best["ci_high"]
    assert best["bookkeeping_low"] <= best["bookkeeping"] <= best["bookkeeping_high"]
    assert 0 < best["ms_per_decode"] < best["ms_per_round"]
    assert "best_of_n_likelihood, 1 images: bookkeeping" in said
    (ended,) = (
        row
        for _, row in pd.read_csv(next(tmp_path.glob("results/bench/termination-*.csv"))).iterrows()
    )
    assert (
        ended["row_step_ratio"] < ended["round_ratio"] < 1
    )  # slots are refilled, but for the queue's end
    assert ended["excess"] == pytest.approx(ended["time_ratio"] / ended["row_step_ratio"], rel=2e-3)
    assert "scalingar, slots for 2 prompts" in said.strip().splitlines()[-1]


def test_the_floor_is_the_specifications() -> None:
    """Weights, and keys and values of a position, of the published models in bfloat16, from their
    shapes.
    """
    with torch.device("meta"):
        large = GPT(GPTSpec(SIZES["XL"], 32)).bfloat16()
        small, big = (JanusNet(JANUS[size]).bfloat16() for size in ("1B", "7B"))
    found = [streamed_bytes(module) / 1e9 for module in (large, small, big)]
    aligner = [0, 2 * 2048**2 / 1e9, 2 * 4096**2 / 1e9]  # a table here, which a step does not read
    assert found == pytest.approx(np.array([1.505, 2.550, 12.344]) - aligner, abs=2e-3)

    padded = Reading(1_505_000_000, 184_320, 120, 1024)
    collapsed = Reading(1_505_000_000, 184_320, 1, 1024)
    janus = Reading(2_550_000_000, 196_608, 32, 576)
    assert [padded.floor_s(2 * images, 3e12) for images in (1, 16, 64)] == pytest.approx(
        [0.59, 1.79, 5.60], abs=0.01
    )
    floors = [collapsed.floor_s(2 * images, 3e12) for images in (1, 2, 4, 8, 16, 32, 64)]
    assert floors == pytest.approx([0.58, 0.64, 0.77, 1.03, 1.54, 2.57, 4.63], rel=0.007)
    assert [janus.floor_s(2 * images, 3e12) for images in (1, 16)] == pytest.approx(
        [0.51, 0.88], abs=0.01
    )


def test_bars_in_seconds_are_an_h100s_and_shares_elsewhere() -> None:
    collapsed = Reading(1_505_000_000, 184_320, 1, 1024)
    assert seconds_allowed(2.5, collapsed, 32, "NVIDIA H100 80GB HBM3", 2.9e12) == 2.5
    assert seconds_allowed(2.5, collapsed, 32, "NVIDIA H200", 4.5e12) == pytest.approx(
        2.5 * 3.0 / 4.5
    )
    share = collapsed.floor_s(32, 1.5e12) / seconds_allowed(
        2.5, collapsed, 32, "NVIDIA A100", 1.5e12
    )
    assert share == pytest.approx(collapsed.floor_s(32, 3e12) / 2.5)
    assert [is_h100(f"NVIDIA H100 {kind}") for kind in ("80GB HBM3", "PCIe", "NVL")] == [
        True,
        False,
        False,
    ]


def test_bars_that_bind_decide(capsys: pytest.CaptureFixture[str]) -> None:
    assert all_hold([Bar("speed", 2.0, least=1.1), Bar("seconds", 1.0, most=1.2)])
    assert not all_hold([Bar("speed", 1.0, least=1.1)])
    assert not all_hold([Bar("speed", float("nan"), least=1.1)])
    assert all_hold([Bar("share", 0.1, most=0.03, binding=False)])
    assert all_hold([Bar("overhead, in the noise", -0.01, most=0.03)])
    assert (
        "bar: share 0.1, at most 0.03: does not hold, not binding here" in capsys.readouterr().out
    )


def test_a_gpu_without_kernels_is_refused_or_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nmore"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    assert device_named("auto").type == "cpu"
    with pytest.raises(
        UserError,
        match=r"device=cuda is not usable here \(CUDA error: no kernel image .* more\): set",
    ):
        device_named("cuda")


def test_memory_that_is_not_there_is_refused_before_it_is_used() -> None:
    with cap_memory(), pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(2**44, dtype=torch.uint8)
    torch.empty(2**20, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sample",), "choose from sampler, methods, judges"),
        (("sampler", *TINY, "batch=[0]"), "give numbers of images"),
        (("sampler", *TINY, "batch=0"), "batch=0: give numbers of images"),
        (("methods", *TINY, "batch=[a]"), "give numbers of images"),
        (("judges", "batch=[]"), "give numbers of images"),
        (("judges", *TINY, "judges=[nobody]"), "judges=nobody"),
        (("judges", *TINY, "blocks=0"), "blocks=0"),
        (("methods", *TINY, "warm_up=-1"), "warm_up=-1"),
        (("methods", *TINY, "methods=[2]"), "methods=[2]: give names"),
        (("methods", *TINY, "methods=nothing"), "methods=nothing"),
        (("sampler", *TINY, "device=cuda:77"), "device=cuda:77"),
        (("sampler", *TINY, "batch=[5000000]"), "too little memory: 10000000 slots"),
        (
            ("sampler", *TINY, "model.size={layers:1,dim:262144,heads:2,hidden:1048576}"),
            "memory is too small",
        ),
        (("methods", *TINY, "methods=[nothing]"), "nothing"),
        (("methods", *TINY, "methods=[speculative]", "batch=[1]"), "codebook|tokenizer|vocab|grid"),
        (("sampler", *TINY, "batches=[1]"), "unknown option 'batches'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    code, said = bench(tmp_path, *arguments)
    assert code == 2
    (line,) = [line for line in said.strip().splitlines() if line.startswith("error: ")]
    assert any(word in line for word in words.split("|")), line


def test_ratios_are_paired_and_blocks_take_turns() -> None:
    drift = np.array([1.0, 2.0, 3.0, 4.0])
    ratio, low, high = Times({"slow": 3 * drift, "fast": drift}, ()).ratio("slow", "fast")
    assert ratio == pytest.approx(3) == pytest.approx(low) == pytest.approx(high)
    order: list[str] = []
    subjects = {name: lambda _, name=name: order.append(name) for name in "abc"}
    interleave(subjects, 3, torch.device("cpu"), warm_up=0)
    assert "".join(order) == "abcbcacab"
