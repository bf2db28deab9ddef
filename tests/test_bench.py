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
from harness.bench.timing import Times, interleave, settled

TINY = (
    "model=llamagen_b", "model.image=32", "model.dtype=float32",
    "model.size={layers:2,dim:32,heads:2,hidden:48,condition:12,caption_dim:16}",
    "+model.tokenizer={codes:40,code_dim:8,width:32,multipliers:[1,1,2],blocks:1,latent:32}", "device=cpu",
)  # fmt: skip


def bench(cwd: Path, *arguments: str) -> tuple[int, str]:
    return harness(cwd, *arguments, module="harness.bench")


def test_the_sampler_and_the_loop_compute_the_same_images(tmp_path: Path) -> None:
    """The bench itself refuses a loop whose last logits are not the sampler's."""
    code, said = bench(tmp_path, "sampler", *TINY, "batch=[1,3]", "blocks=3", "bars=[[3,0.0001]]", "warm_up=3")
    assert code == 0, said
    assert said.strip().splitlines()[-1].startswith("ratio over reference loop: 1 image ")
    (path,) = tmp_path.glob("results/bench/*.csv")
    frame = pd.read_csv(path)
    assert list(zip(frame["batch"], frame["subject"], strict=True)) == [
        (b, s) for b in (1, 3) for s in ("ours", "loop")
    ]
    assert (frame[["tokens_per_s", "ms_per_step", "share_of_floor"]] > 0).all(axis=None)
    tokens = frame["batch"] * 1000 / frame["ms_per_step"]
    assert np.allclose(frame["tokens_per_s"], tokens, rtol=2e-3)
    assert path.with_suffix(".svg").is_file()
    code, said = bench(tmp_path, "sampler", *TINY, "batch=[1]", "blocks=1", "bars=[[1,1e9]]", "warm_up=0")
    assert code == 1, said


def test_the_librarys_janus_draws_whole_images() -> None:
    model = tiny()
    token_BN = LibraryJanus(model, ["a cat", "two dogs"])()
    assert token_BN.shape == (2, model.num_tokens)
    assert token_BN.min() >= 0 and token_BN.max() < model.vocab


def test_methods_are_timed_against_plain(tmp_path: Path) -> None:
    code, said = bench(
        tmp_path, "methods", *TINY, "batch=[2]", "blocks=3", "warm_up=0", "methods=[best_of_n_likelihood]"
    )
    assert code == 0, said
    (path,) = tmp_path.glob("results/bench/*.csv")
    plain, best = (row for _, row in pd.read_csv(path).iterrows())
    assert plain["speedup"] == plain["row_steps"] == 1
    assert best["row_steps"] == 4  # four candidates
    assert best["speedup"] < 1
    assert best["ci_low"] <= best["speedup"] <= best["ci_high"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sample",), "choose from sampler, methods, judges"),
        (("sampler", *TINY, "batch=[0]"), "give numbers of images"),
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


def test_a_warm_up_ends_when_three_agree() -> None:
    assert not settled([1.0, 1.0])
    assert not settled([1.0, 1.0, 1.1])
    assert settled([9.0, 1.0, 1.01, 1.0])
