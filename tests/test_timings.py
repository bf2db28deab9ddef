"""Where seconds go: stages and the whole, warm-up, throughput over resumes, and what needs enough
samples.
"""

from __future__ import annotations

import csv
import math
import mmap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import TOY, folders, harness
from written_runs import write_run

from harness.engine import meter
from harness.engine.memory import short_of_memory
from harness.engine.meter import Meter, describe, settled, warm_up
from harness.records import Timing
from harness.results.leaderboard import build
from harness.results.stats import samples_for
from harness.runs.read import read_run

CPU = torch.device("cpu")
STAGES = ("text_s", "prefill_s", "decode_s", "draft_s", "render_s", "judge_s", "save_s")


def read_board(cwd: Path) -> list[dict[str, str]]:
    with (cwd / "results/leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def test_one_at_a_time_is_single_stream_and_many_are_offline(tmp_path: Path) -> None:
    latency = ("sampler=latency", "sampler.warm_up=4", "benchmark.prompts=6")
    code, output = harness(tmp_path, *TOY[:-1], *latency)
    assert code == 0, output
    assert "not warm after 4 images" in output
    code, output = harness(tmp_path, *TOY, "benchmark.prompts=6")
    assert code == 0, output

    rows = {row["scenario"]: row for row in read_board(tmp_path)}
    assert set(rows) == {"SingleStream", "Offline"}
    one = rows["SingleStream"]
    many = rows["Offline"]
    # What was drawn for warming up is in no ledger.
    assert one["visual_tokens"] == many["visual_tokens"] == "16.00"
    # 12 images are too few for a percentile; many at once have no latency.
    assert float(one["latency_p50_s"]) > 0
    assert one["latency_p90_s"] == many["latency_p50_s"] == ""
    for row in rows.values():
        assert float(row["images_per_s"]) > 0
        assert 0 < float(row["utilisation"]) <= 1
        assert 0.01 < float(row["peak_memory_gb"]) < 1000
        assert row["joules"] == ""  # no GPU here
    assert float(one["utilisation"]) == 1

    (run,) = [run for run in map(read_run, folders(tmp_path)) if run.concurrency == 1]
    for record in run.done.values():
        spent = {name: getattr(record.usage, name) for name in STAGES}
        for name, seconds in spent.items():
            assert seconds > 0 or name in ("draft_s", "judge_s"), spent
        assert sum(spent.values()) <= record.usage.wall_s
        assert record.stamp["device"] == describe(CPU)["device"]
    (timing,) = run.timings
    assert (timing.images, timing.warm_up, timing.slots) == (12, 4, 2)
    assert timing.first_s is not None
    assert timing.fed == 12 * 2 * 16  # one image at a time, both of its branches in each step


def test_throughput_is_that_of_the_processes_that_drew(tmp_path: Path) -> None:
    """A resumed run: 6 images in 3 s, then 2 in 5 s. What a killed process drew is in neither."""
    folder = write_run(tmp_path, {f"a/{i}": [1.0] for i in range(10)})
    first = Timing(6, 3.0, 9.0, slots=8, rounds=10, fed=40, joules=60.0, peak_memory_gb=1.0)
    second = Timing(2, 5.0, 0.0, slots=8, rounds=10, fed=80, joules=20.0, peak_memory_gb=2.0)
    (folder / "timings-0.jsonl").write_text(f"{first.to_json()}\n{second.to_json()}\n{{torn")
    board = build(tmp_path)
    row = board.frame.iloc[0]
    assert row["images_per_s"] == 1.0
    assert row["utilisation"] == 0.75
    assert row["joules"] == 10.0
    assert row["peak_memory_gb"] == 2.0
    metrics = board.metrics.set_index("metric")
    assert metrics.loc["throughput/images_per_s", "n"] == 8

    without = replace(first, joules=None, peak_memory_gb=None)
    (folder / "timings-1.jsonl").write_text(without.to_json() + "\n")
    row = build(tmp_path).frame.iloc[0]
    assert math.isnan(row["joules"])
    assert row["peak_memory_gb"] == 2


def test_journals_of_before_have_no_stages(tmp_path: Path) -> None:
    write_run(tmp_path, {"a/0": [1.0], "a/1": [0.0]})
    board = build(tmp_path)
    assert board.frame.loc[0, "device_s"] == 1
    assert board.frame.loc[0, ["text_s", "decode_s", "save_s", "images_per_s"]].isna().all()
    assert not {"cost/text_s", "throughput/images_per_s"} & set(board.metrics["metric"])


def test_a_percentile_needs_its_samples() -> None:
    assert [samples_for(q) for q in (0.5, 0.9, 0.95, 0.99)] == [11, 64, 130, 662]


@pytest.mark.parametrize(
    ("seconds", "drawn", "warm"),
    [
        ([9, 1, 1, 1, 1, 1, 1, 1, 1], 9, True),  # the first is forgotten by its median
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1, 1, 1, 1], 12, False),
        ([1, 1.5, 1, 1, 1.5, 1, 1, 1.5, 1], 9, True),
        ([1, 1, 1, 1], 2, False),
    ],
)
def test_a_warm_up_ends_when_three_medians_agree(
    seconds: list[float], drawn: int, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[float] = []
    for second in seconds:
        times += [0.0, float(second)]
    clock = iter(times)
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(clock))
    seen, is_settled = warm_up(lambda i: None, drawn)
    assert (len(seen), is_settled) == (drawn, warm)


def test_three_agree_or_not() -> None:
    assert not settled([1.0, 1.0])
    assert not settled([1.0, 1.0, 1.1])
    assert settled([9.0, 1.0, 1.01, 1.0])


def test_what_is_done_apart_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 13.0, 20.0])
    energy = iter([100.0, 150.0, 170.0, 250.0])
    measured = Meter(CPU)
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(meter, "joules", lambda _: next(energy))
    measured.start()
    with measured.pause():
        pass
    assert (measured.seconds, measured.paused_s, measured.joules) == (17.0, 3.0, 130.0)


BLOCK_BYTES = 2**27


def test_the_peak_of_memory_begins_anew() -> None:
    measured = Meter(CPU)
    before = measured.peak_memory_gb
    assert before is not None
    with mmap.mmap(-1, BLOCK_BYTES) as block:  # fresh pages, whatever the heap has free
        for page in range(0, BLOCK_BYTES, mmap.PAGESIZE):
            block[page] = 1
    after = measured.peak_memory_gb
    assert after is not None
    assert after > before + 0.9 * BLOCK_BYTES / 1e9


def test_memory_that_runs_out_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60, dtype=torch.uint8)
    assert short_of_memory(found.value)
    assert short_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not short_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
