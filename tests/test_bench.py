"""The bench measures what it says: the same images on both sides, paired ratios, and its files.

Its rows are appended, with date, commit and machine, and no row that is in a file is changed.
"""

from __future__ import annotations

import os
import re
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from runs import harness
from test_janus import tiny
from test_llamagen import SIZE
from test_llamagen import tiny as tiny_llamagen
from test_memory import Peak
from tiny_language import tiny as tiny_language

from harness.bench.history import append_rows, read_rows
from harness.bench.outcome import Outcome
from harness.bench.reference import LibraryJanus, LibraryQwen2, StaticLoop
from harness.bench.roof import (
    Bar,
    Reading,
    all_hold,
    count_streamed_bytes,
    is_h100,
    seconds_allowed,
)
from harness.bench.sampler import Drawing, choose_peers, expect_agreement
from harness.bench.timing import Times, interleave
from harness.bench.upstream import FILES, Checkout, UpstreamLlamaGen
from harness.engine import memory
from harness.engine.guidance import Sampling
from harness.engine.memory import cap_memory
from harness.engine.memory_need import count_weights, estimate_need
from harness.engine.sampler import Sampler
from harness.models.devices import device_named
from harness.models.janus import JanusNet
from harness.models.janus_checkpoint import SIZES as JANUS
from harness.models.llamagen import GPT, SIZES, GPTSpec
from harness.records import UserError
from harness.results.columns import BENCH_JUDGES

TINY = (
    "model=llamagen_b", "model.image=32", "model.dtype=float32",
    "model.size={layers:2,dim:32,heads:2,hidden:48,condition:12,caption_dim:16}",
    "+model.tokenizer={codes:40,code_dim:8,width:32,multipliers:[1,1,2],blocks:1,latent:32}",
    "device=cpu",
)  # fmt: skip


def bench(cwd: Path, *arguments: str) -> tuple[int, str]:
    return harness(cwd, *arguments, module="harness.bench")


def read_bench(folder: Path, name: str) -> list[pd.Series]:
    """The rows of the only file of a bench."""
    (path,) = folder.glob(f"results/bench/{name}-*.csv")
    return [row for _, row in pd.read_csv(path).iterrows()]


def test_the_sampler_and_the_loop_compute_the_same_images(tmp_path: Path) -> None:
    """The bench refuses a loop whose last logits are not the sampler's."""
    code, said = bench(
        tmp_path, "sampler", *TINY, "batch=[1,3]", "blocks=2", "bars=[[3,0.0001]]", "warm_up=1"
    )
    assert code == 0, said
    assert said.strip().splitlines()[-1].startswith("ratio over a loop of our own: 1 image ")
    assert "bar: 3 images, times the speed of a loop of our own" in said
    (path,) = tmp_path.glob("results/bench/*.csv")
    frame = pd.read_csv(path)
    assert frame["batch"].tolist() == [1, 1, 3, 3]
    assert frame["subject"].tolist() == ["ours", "own_loop", "ours", "own_loop"]
    positive = ["tokens_per_s", "ms_per_step", "floor_s", "share_of_floor", "share_of_matvec"]
    positive += ["first_s", "copy_gb_per_s", "matvec_gb_per_s"]
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

    assert pd.read_csv(path)["batch"].tolist() == [1, 1, 3, 3, 1, 1]  # appended
    assert frame.equals(pd.read_csv(path)[: len(frame)])


def test_peers_that_do_not_fit_beside_the_sampler_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny()
    sampling = Sampling(scale=2.0)
    sizes = [
        estimate_need(model, tokens_per_step=1, prefill=(2, 32), render_batch=1).total(2),
        StaticLoop.count_bytes(model, sampling, ["a cat"]),
        LibraryJanus.count_bytes(model, ["a cat"]),
    ]
    held = count_weights(model)

    def choose(count: int, spare: int) -> list[str]:
        free = sum(sizes[:count]) - held + spare
        monkeypatch.setattr(memory, "_free_bytes", lambda _: free)
        return choose_peers(model, sampling, ["a cat"])

    assert choose(3, 0) == ["own_loop", "library"]
    assert choose(3, -1) == ["own_loop"]
    assert choose(2, 0) == ["own_loop"]
    assert (
        capsys.readouterr().out.count("1 image: the transformers library left out: too little") == 2
    )
    assert choose(1, 0) == []
    with pytest.raises(UserError, match="too little memory: 2 slots"):
        choose(1, -1)


def test_the_loop_takes_no_more_than_it_counts() -> None:
    model = tiny()
    sampling = Sampling(scale=2.0)
    texts = ["a cat", "two dogs"]
    counted = StaticLoop.count_bytes(model, sampling, texts)
    token_BN = torch.zeros((2, model.num_tokens), dtype=torch.int64)
    with Peak() as peak:
        StaticLoop(model, sampling, texts)(token_BN)
    assert 0.05 * counted < peak.bytes < counted


def test_a_batch_that_does_not_fit_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are measured and judged; what is left out is said, and has no bar."""
    monkeypatch.setattr(memory, "_free_bytes", lambda _: 1e7)
    options = ("blocks=1", "warm_up=0", "bars=[[1,0.0001],[2000,1e9]]")
    code, said = bench(tmp_path, "sampler", *TINY, "batch=[1,2000]", *options)
    assert code == 0, said
    assert "2000 images left out: too little memory: 4000 slots" in said
    assert "bar: 1 images" in said and "bar: 2000" not in said
    assert {row["batch"] for row in read_bench(tmp_path, "sampler")} == {1}


def test_methods_are_compared_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are never more samplers than the method's, plain's, and plain's in its shape."""
    made: list[weakref.ref[Sampler]] = []
    alive: list[int] = []
    plain = Sampler.__init__

    def record(sampler: Sampler, *arguments: Any, **options: Any) -> None:
        made.append(weakref.ref(sampler))
        alive.append(sum(ref() is not None for ref in made))
        plain(sampler, *arguments, **options)

    monkeypatch.setattr(Sampler, "__init__", record)
    methods = "methods=['best_of_n_likelihood method.n=2',scalingar,zipar]"
    options = ("batch=[1]", "blocks=1", "warm_up=0", "terminating=[]", methods)
    code, said = bench(tmp_path, "methods", *TINY, *options)
    assert code == 0, said
    rows = {row["method"]: row for row in read_bench(tmp_path, "methods")}
    assert len(rows) == 4
    assert float(rows["best_of_n_likelihood method.n=2"]["row_steps"]) == 2
    assert max(alive) == 3 < len(alive)


def test_the_librarys_janus_draws_whole_images() -> None:
    model = tiny()
    token_BN = LibraryJanus(model, ["a cat", "two dogs"])()
    assert token_BN.shape == (2, model.num_tokens)
    assert token_BN.min() >= 0 and token_BN.max() < model.vocab


def test_the_librarys_qwen2_draws_whole_images_with_a_null_prompt_of_its_own() -> None:
    model = tiny_language("simplear")
    token_BN = LibraryQwen2(model, Sampling(scale=2.0), ["a cat", "two red dogs"])()
    assert token_BN.shape == (2, model.num_tokens)
    assert choose_peers(model, Sampling(scale=2.0), ["a cat"]) == ["own_loop", "library"]


@pytest.mark.parametrize("kind", ["simplear", "lumina", "emu3"])
def test_a_plain_loop_computes_what_the_sampler_does_of_language_models(kind: str) -> None:
    """With keys of groups, forced places, and null prompts of their own length."""
    model = tiny_language(kind)
    sampling = Sampling(scale=2.0)
    texts = ["a cat", "two red dogs"]
    drawing = Drawing(model, sampling, texts)
    drawing()
    expect_agreement(drawing, StaticLoop(model, sampling, texts), "a plain loop")


# --- LlamaGen's own code --------------------------------------------------------------------------

CHECKOUT = os.environ.get("LLAMAGEN_CHECKOUT", "")
PADDED = "model.size={layers:2,dim:32,heads:2,hidden:48,condition:120,caption_dim:16}"
"""TINY's dimensions, but for the number of condition positions, which upstream's code has fixed."""
needs_checkout = pytest.mark.skipif(
    not CHECKOUT, reason="LLAMAGEN_CHECKOUT names no checkout of FoundationVision/LlamaGen"
)


@needs_checkout
@pytest.mark.parametrize(
    "options",
    [(), ("model.sampling.scale=1",), ("+model.padding=right",), ("model.dtype=bfloat16",)],
)
def test_the_sampler_is_timed_against_llamagens_own_code(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Its model takes our weights, and its loop computes our logits."""
    code, said = bench(
        tmp_path, "sampler", *TINY, PADDED, *options, f"peer={CHECKOUT}", "batch=[1,3]",
        "blocks=2", "bars=[[3,0.0001]]", "warm_up=1",
    )  # fmt: skip
    assert code == 0, said
    assert said.strip().splitlines()[-1].startswith("ratio over LlamaGen's own code: 1 image ")
    assert "bar: 3 images, times the speed of LlamaGen's own code" in said
    rows = read_bench(tmp_path, "sampler")
    assert [row["subject"] for row in rows] == ["ours", "upstream"] * 2
    for row in rows:
        assert re.fullmatch("[0-9a-f]{12}", str(row["upstream"]))
        if row["subject"] == "upstream":
            assert 0 < row["logits_error"] < (3e-2 if "model.dtype=bfloat16" in options else 1e-5)


@needs_checkout
@torch.no_grad()
def test_llamagens_own_code_draws_with_its_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay changes the code for its own time only, and is seen to be of other weights."""
    model = tiny_llamagen(size={**SIZE, "condition": 120})
    checkout = Checkout.load(Path(CHECKOUT))
    texts = ["a cat", "two dogs on a bench"]
    upstream = UpstreamLlamaGen(checkout, model, Sampling(scale=3.0, top_k=8), texts)
    own_function = checkout.loop.sample
    torch.manual_seed(0)
    token_BN = upstream()
    assert token_BN.shape == (2, model.num_tokens)
    assert token_BN.min() >= 0 and token_BN.max() < model.vocab

    logits_QV = upstream.replay(token_BN)
    assert checkout.loop.sample is own_function
    assert logits_QV.shape == (4, model.vocab)
    torch.manual_seed(0)
    assert torch.equal(upstream(), token_BN)

    drawing = Drawing(model, Sampling(scale=3.0, top_k=8), texts)
    drawing()
    assert expect_agreement(drawing, upstream.replay, "upstream") < 1e-5
    model.gpt.output.weight.data.mul_(1.01)
    with pytest.raises(RuntimeError, match=r"last logits of upstream are 0\.0099 away"):
        expect_agreement(drawing, upstream.replay, "upstream")


@needs_checkout
def test_another_model_is_not_llamagens_to_draw(tmp_path: Path) -> None:
    code, said = bench(tmp_path, "sampler", "model=pictogram_16", "device=cpu", f"peer={CHECKOUT}")
    assert code == 2
    assert "draws no pictogram_16: set model=llamagen_" in said
    code, said = bench(tmp_path, "sampler", *TINY, f"peer={CHECKOUT}")
    assert code == 2
    assert "has 120 condition positions, llamagen_b has 12: leave peer out" in said


def test_a_folder_that_is_no_checkout_is_refused_with_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("autoregressive", "utils"):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"no checkout of LlamaGen: it has no autoregressive/.*gpt"):
        Checkout.load(tmp_path / "nowhere")
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("import module_that_is_not_there\n")
    with pytest.raises(UserError, match=r"cannot be imported .*module_that_is_not_there"):
        Checkout.load(tmp_path)
    (tmp_path / FILES[2]).unlink()
    with pytest.raises(
        UserError, match=r"it has no utils/drop_path\.py; give the folder that `git"
    ):
        Checkout.load(tmp_path)


@pytest.mark.parametrize(
    "model", [("model=pictogram_16", "device=cpu"), (*TINY, "model.sampling.scale=1")]
)
def test_the_loop_is_any_models(tmp_path: Path, model: tuple[str, ...]) -> None:
    """It samples models whose prompts have positions of their own, and without guidance."""
    code, said = bench(tmp_path, "sampler", *model, "batch=[2]", "blocks=1", "warm_up=0", "bars=[]")
    assert code == 0, said
    assert "ratio over a loop of our own: 2 images " in said


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
    plain, best = read_bench(tmp_path, "methods")
    assert plain["speedup"] == plain["row_steps"] == 1
    assert best["row_steps"] == 4  # four candidates
    assert best["ci_low"] <= best["speedup"] <= best["ci_high"]
    assert best["bookkeeping_low"] <= best["bookkeeping"] <= best["bookkeeping_high"]
    assert 0 < best["ms_per_decode"] < best["ms_per_round"]
    assert "best_of_n_likelihood, 1 images: bookkeeping" in said
    (ended,) = read_bench(tmp_path, "termination")
    # Slots are refilled, but for the end of the queue.
    assert ended["row_step_ratio"] < ended["round_ratio"] < 1
    excess = ended["time_ratio"] / ended["row_step_ratio"]
    assert ended["excess"] == pytest.approx(excess, rel=2e-3)
    assert "scalingar, slots for 2 prompts" in said.strip().splitlines()[-1]


def test_the_newest_methods_are_timed_as_the_board_draws_them() -> None:
    folder = Path(__file__).parents[1] / "conf"
    benched = yaml.safe_load((folder / "bench/newest.yaml").read_text())["methods"]
    board = yaml.safe_load((folder / "experiment/newest_board.yaml").read_text())
    points = [" ".join(point) for point in board["hydra"]["sweeper"]["points"]]
    assert ["method=plain", *(f"method={entry}" for entry in benched)] == points


def test_the_floor_is_the_specifications() -> None:
    """Weights, keys and values of the published models in bfloat16 follow from their shapes."""
    with torch.device("meta"):
        large = GPT(GPTSpec(SIZES["XL"], 32)).bfloat16()
        small, big = (JanusNet(JANUS[size]).bfloat16() for size in ("1B", "7B"))
    found = [count_streamed_bytes(module) / 1e9 for module in (large, small, big)]
    aligner = [0, 2 * 2048**2 / 1e9, 2 * 4096**2 / 1e9]  # a table here, which a step does not read
    assert found == pytest.approx(np.array([1.505, 2.550, 12.344]) - aligner, abs=2e-3)

    def list_floors(read: Reading, *images: int) -> list[float]:
        return [read.floor_s(2 * number, 3e12) for number in images]

    padded = Reading(1_505_000_000, 184_320, 120, 1024)
    assert list_floors(padded, 1, 16, 64) == pytest.approx([0.59, 1.79, 5.60], abs=0.01)
    collapsed = Reading(1_505_000_000, 184_320, 1, 1024)
    floors = list_floors(collapsed, 1, 2, 4, 8, 16, 32, 64)
    assert floors == pytest.approx([0.58, 0.64, 0.77, 1.03, 1.54, 2.57, 4.63], rel=0.007)
    janus = Reading(2_550_000_000, 196_608, 32, 576)
    assert list_floors(janus, 1, 16) == pytest.approx([0.51, 0.88], abs=0.01)


def test_bars_in_seconds_are_an_h100s_and_shares_elsewhere() -> None:
    collapsed = Reading(1_505_000_000, 184_320, 1, 1024)
    assert seconds_allowed(2.5, collapsed, 32, "NVIDIA H100 80GB HBM3", 2.9e12) == 2.5
    h200_s = seconds_allowed(2.5, collapsed, 32, "NVIDIA H200", 4.5e12)
    assert h200_s == pytest.approx(2.5 * 3.0 / 4.5)
    a100_s = seconds_allowed(2.5, collapsed, 32, "NVIDIA A100", 1.5e12)
    share = collapsed.floor_s(32, 1.5e12) / a100_s
    assert share == pytest.approx(collapsed.floor_s(32, 3e12) / 2.5)
    assert is_h100("NVIDIA H100 80GB HBM3")
    assert not is_h100("NVIDIA H100 PCIe")
    assert not is_h100("NVIDIA H100 NVL")


def test_bars_that_bind_decide(capsys: pytest.CaptureFixture[str]) -> None:
    assert all_hold([Bar("speed", 2.0, least=1.1), Bar("seconds", 1.0, most=1.2)])
    assert not all_hold([Bar("speed", 1.0, least=1.1)])
    assert not all_hold([Bar("speed", float("nan"), least=1.1)])
    assert all_hold([Bar("share", 0.1, most=0.03, binding=False)])
    assert all_hold([Bar("overhead, in the noise", -0.01, most=0.03)])
    printed = capsys.readouterr().out
    assert "bar: share 0.1, at most 0.03: does not hold, not binding here" in printed


def test_a_gpu_without_kernels_is_refused_or_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        message = "CUDA error: no kernel image is available for execution on the device\nmore"
        raise RuntimeError(message)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    assert device_named("auto").type == "cpu"
    refusal = r"device=cuda is not usable here \(CUDA error: no kernel image .* more\): set"
    with pytest.raises(UserError, match=refusal):
        device_named("cuda")


def test_memory_that_is_not_there_is_refused_before_it_is_used() -> None:
    with cap_memory(), pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(2**44, dtype=torch.uint8)
    torch.empty(2**20, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sample",), "choose from sampler, methods, newest, judges"),
        (("sampler", *TINY, "batch=[0]"), "batch=[0]: input should be"),
        (("sampler", *TINY, "peer=nowhere"), "peer=nowhere is no checkout of LlamaGen"),
        (("sampler", *TINY, "batch=0"), "batch=0: input should be greater"),
        (("methods", *TINY, "batch=[a]"), 'batch=["a"]: input should be'),
        (("judges", "batch=[]"), "give numbers of images"),
        (("judges", *TINY, "judges=[nobody]"), "judges=nobody"),
        (("judges", *TINY, "blocks=0"), "blocks=0"),
        (("methods", *TINY, "warm_up=-1"), "warm_up=-1"),
        (("methods", *TINY, "methods=[2]"), "methods=[2]: input should be"),
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


# --- the rows of earlier benches ------------------------------------------------------------------


@pytest.fixture
def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """A bench of judges that has not measured anything yet."""
    monkeypatch.chdir(tmp_path)
    return new_outcome()


def new_outcome() -> Outcome:
    model = SimpleNamespace(name="tiny", device=torch.device("cpu"))
    return Outcome(BENCH_JUDGES, model, "tiny", {"model": "tiny"})


def test_a_row_has_date_commit_machine_and_versions(outcome: Outcome) -> None:
    outcome.add(batch=1, judge="reward", images_per_s=12.34567, first_s=float("nan"))
    outcome.write()
    header, (row,) = read_rows(outcome.path)
    assert tuple(header) == BENCH_JUDGES.names
    assert (row["batch"], row["judge"], row["images_per_s"]) == ("1", "reward", "12.35")
    assert row["first_s"] == row["driver"] == ""
    for name in ("date", "commit", "machine", "device", "torch", "python", "kernels"):
        assert row[name], name
    assert os.uname().nodename not in row["machine"].split()


def test_a_second_bench_appends_to_the_first(outcome: Outcome) -> None:
    outcome.add(batch=1, judge="reward")
    outcome.write(plot=("batch", "batch", "judge"))
    first = outcome.path.read_bytes()
    again = new_outcome()
    again.add(batch=1, judge="reward")
    again.write(plot=("batch", "batch", "judge"))
    again.write()  # nothing is new
    whole = again.path.read_bytes()
    assert whole.startswith(first)
    assert len(read_rows(again.path)[1]) == 2


def test_an_interrupted_bench_leaves_the_rows_it_has_done(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is stopped while a file is being written: then the file is the one before."""
    outcome.add(batch=1, judge="reward")
    outcome.write()
    done = outcome.path.read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    outcome.add(batch=16, judge="reward")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            outcome.write()
    assert outcome.path.read_bytes() == done
    assert [path.name for path in outcome.path.parent.iterdir()] == [outcome.path.name]

    outcome.write()
    assert [row["batch"] for row in read_rows(outcome.path)[1]] == ["1", "16"]


def test_rows_under_an_earlier_header_keep_their_cells(tmp_path: Path) -> None:
    """Columns that they lack become empty; one that is described no more follows the others."""
    path = tmp_path / "judges.csv"
    path.write_text('images_per_s,judge,batch,retired\n1e2,"a, b",1,x\n0.10,c,2,\n')
    append_rows(path, BENCH_JUDGES, [{"judge": "d", "batch": 3}])
    header, rows = read_rows(path)
    assert header == [*BENCH_JUDGES.names, "retired"]
    assert [row["images_per_s"] for row in rows] == ["1e2", "0.10", ""]
    assert [row["judge"] for row in rows] == ["a, b", "c", "d"]
    assert [row["retired"] for row in rows] == ["x", "", ""]
    assert all(row["commit"] == row["machine"] == "" for row in rows)

    migrated = path.read_bytes()
    append_rows(path, BENCH_JUDGES, [])
    assert path.read_bytes() == migrated


def test_a_damaged_file_is_refused_before_anything_is_measured(outcome: Outcome) -> None:
    outcome.path.parent.mkdir(parents=True)
    outcome.path.write_text("batch,judge\n1,reward\n1\n")
    damaged = outcome.path.read_bytes()
    with pytest.raises(UserError, match="line 3: 1 cells under 2 columns; mend it"):
        new_outcome()
    assert outcome.path.read_bytes() == damaged


def test_a_column_that_is_not_described_cannot_be_added(outcome: Outcome) -> None:
    with pytest.raises(AssertionError, match="does not describe colour"):
        outcome.add(colour="red")
