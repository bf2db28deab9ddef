"""Shares of a run: whoever draws them, in whatever order and number, the run is the same, byte for
byte.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import redirect_stderr
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
from runs import TOY, deterministic, finished, folders, fork, harness

from harness import cli
from harness.records import Job, Prompt, UserError
from harness.runs.folder import RunFolder
from harness.runs.lock import Shard, find_writers

RUN = (*TOY, "method=toy_best")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a run in one piece leaves behind."""
    return finished(tmp_path_factory.mktemp("whole"), *RUN)


def read_drawn(cwd: Path) -> dict[str, list[tuple[str, int]]]:
    """Read which images each journal of a run has."""
    (folder,) = folders(cwd)
    drawn = {}
    for journal in sorted(folder.glob("records-*.jsonl")):
        rows = map(json.loads, journal.read_text().splitlines())
        drawn[journal.name] = [(row["prompt_id"], row["image"]) for row in rows]
    return drawn


def test_shares_are_balanced_and_make_up_the_whole() -> None:
    jobs = list(range(47))
    for count in (1, 2, 3, 5):
        shares = [Shard(index, count).of(jobs) for index in range(count)]
        assert sorted(chain.from_iterable(shares)) == jobs
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "0/0", "a/b", "1/2/3"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"write i/n"):
        Shard.parse(text)


def test_two_shares_are_one_run(tmp_path: Path, whole: dict[str, object]) -> None:
    code, said = harness(tmp_path, *RUN, "shard=1/2", "stages=[generate,score]")
    assert code == 0 and "48 to draw" not in said
    planned = "24 prompts x 2 images planned"
    assert f"{planned}, 0 done; share 1/2: 24 planned, 0 done, 24 to draw" in said

    code, said = harness(tmp_path, *RUN, "shard=0/2")
    assert code == 0, said
    assert f"{planned}, 24 done; share 0/2: 24 planned, 0 done, 24 to draw" in said
    counts = {name: len(keys) for name, keys in read_drawn(tmp_path).items()}
    assert counts == {"records-0.jsonl": 24, "records-1.jsonl": 24}
    assert deterministic(tmp_path) == whole


def test_another_number_of_shares_draws_nothing_twice(
    tmp_path: Path, whole: dict[str, object]
) -> None:
    harness(tmp_path, *RUN, "shard=2/3", "stages=[generate]")
    (folder,) = folders(tmp_path)
    torn = folder / "records-2.jsonl"
    torn.write_bytes(torn.read_bytes()[:-30])  # by a kill; the share of two will never write it
    for stages, shard in (
        ("generate", "1/2"),
        ("generate", "0/1"),
        ("score", "0/2"),
        ("score,report", "1/2"),
    ):
        code, said = harness(tmp_path, *RUN, f"shard={shard}", f"stages=[{stages}]")
        assert code == 0, said

    whole_lines, _, _ = torn.read_bytes().rpartition(b"\n")
    torn.write_bytes(whole_lines + b"\n")
    keys = list(chain.from_iterable(read_drawn(tmp_path).values()))
    assert len(keys) == len(set(keys)) == 48
    assert deterministic(tmp_path) == whole


def test_a_share_has_one_writer_and_a_run_one_number_of_shares(tmp_path: Path) -> None:
    path = tmp_path / "run"
    jobs = [Job(Prompt(f"toy/{index}", "a cat", "any"), 0) for index in range(5)]
    config = {"run": {"fingerprint": "00000001"}}

    def open_share(text: str) -> RunFolder:
        return RunFolder(path, config, jobs, Shard.parse(text))

    with open_share("0/2") as first, open_share("1/2") as second:
        assert [len(folder.missing()) for folder in (first, second)] == [3, 2]
        writers = [(writer.shard, writer.done) for writer in find_writers(path)]
        assert writers == [("0/2", 0), ("1/2", 0)]
        with pytest.raises(UserError, match="written by another process"):
            open_share("1/2")
        with pytest.raises(UserError, match="written in shares 0/2"):
            open_share("1/3")
    assert find_writers(path) == []
    with open_share("0/3"):
        pass


def run_in_fork(*arguments: str) -> None:
    """Carry out a command in a forked process, which ends with its exit code."""
    with Path("said.txt").open("a", buffering=1) as file, redirect_stderr(file):
        os._exit(cli.run_command(arguments))


def test_processes_that_create_a_run_at_once_share_it(
    tmp_path: Path, whole: dict[str, object]
) -> None:
    """And one that is asked to leave does so within five seconds, and says so by its exit code."""
    slow = (*RUN, "benchmark.pause=0.1")
    pids = [fork(tmp_path, partial(run_in_fork, *slow, f"shard={i}/2")) for i in range(2)]
    codes = []
    for index, (pid, number) in enumerate(zip(pids, (signal.SIGTERM, signal.SIGUSR1), strict=True)):
        while not any(path.stat().st_size for path in tmp_path.rglob(f"records-{index}.jsonl")):
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            time.sleep(0.01)
        os.kill(pid, number)
        began = time.monotonic()
        _, status = os.waitpid(pid, 0)
        codes.append(os.waitstatus_to_exitcode(status))
        assert time.monotonic() - began < 5
    assert codes == [143, 138]
    said = (tmp_path / "said.txt").read_text()
    assert "error: preempted (SIGTERM); run the same command again to continue" in said
    assert not list(tmp_path.rglob(".*.png.*"))

    resumed = finished(tmp_path, *slow)
    records = [rows for name, rows in resumed.items() if name.endswith("records")]
    assert records == [rows for name, rows in whole.items() if name.endswith("records")]
