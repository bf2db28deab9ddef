"""R10: files, servers and prompts that mean harm: no code of theirs runs, no name leaves its
folder, no key gets out.
"""

from __future__ import annotations

import ast
import csv
import json
import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from chat_server import Server, says
from PIL import Image
from runs import TESTS, TOY, folders, harness
from toy import ToyBenchmark

from benchmarks.images import read_images
from harness.engine.canvas import Canvas
from harness.engine.session import Session
from harness.records import Prompt, UserError, one_line

ROOT = TESTS.parent
STEERING = (
    "\x1b[2J\x1b]0;taken\x07\x9b1m\u202e <script>alert(1)</script></script>"
    "\r\n=cmd|' /c calc'!A1, \"quoted\""
)
"""A prompt that clears terminals, renames their windows, ends scripts and lines, and is a formula
in a table.
"""


class HostileBenchmark(ToyBenchmark):
    """Prompts that all say STEERING, with ids of an enemy's choice.

    They are written as Python would escape them.
    """

    def __init__(self, ids: Sequence[str], images: int = 1) -> None:
        super().__init__(prompts=1, images=images)
        raw = [escaped.encode().decode("unicode_escape") for escaped in ids]
        self._prompts = [Prompt(prompt_id, STEERING, "any") for prompt_id in raw]


class Echo:
    """Fails with its prompt for an error."""

    rows = 1
    branches = 2
    tokens_per_step = 1

    async def generate(self, prompt: str, s: Session) -> Canvas:
        raise ValueError(prompt)


def run(cwd: Path, *options: str) -> tuple[int, str]:
    return harness(cwd, *TOY, "benchmark=hostile", *options)


# ------------------------------------------------------------------ names and texts


@pytest.mark.parametrize(
    "ids",
    [
        ["hostile/../../../../escaped"],
        ["../hostile/0"],
        ["hostile//etc"],
        ["hostile/.config.yaml"],
        ["hostile/a\\u001b[2J"],
        ["\\u001b[2J/0"],
        ["hostile/0", "friendly/0"],  # one file for two images
        ["hostile/0", "hostile/0"],
    ],
    ids=str,
)
def test_a_prompt_without_a_file_of_its_own_is_refused_before_anything_is_drawn(
    ids: list[str], tmp_path: Path
) -> None:
    code, output = run(tmp_path, f"benchmark.ids={json.dumps(ids)}", "stages=[generate,score]")
    assert code == 2
    (line,) = output.splitlines()
    assert line.startswith("error: ") and line.isprintable()
    assert "Traceback" not in output
    assert not list(tmp_path.rglob("*.png"))
    assert not folders(tmp_path)


def test_a_category_that_no_table_can_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="category") as refused:
        Prompt("a/0", "", "\x1b[2J")
    assert one_line(refused.value).isprintable()


def test_what_a_prompt_says_reaches_no_terminal_and_breaks_no_file(tmp_path: Path) -> None:
    code, failed = run(tmp_path, "method=toy_echo", "stages=[generate,score]")
    assert code == 1
    assert "alert(1)" in failed  # the error is said
    code, output = run(tmp_path, "method=plain")
    assert code == 0, output
    assert all(line.isprintable() for line in (failed + output).split("\n"))

    for journal in (tmp_path / "results").rglob("*.jsonl"):
        lines = journal.read_text().split("\n")
        assert all(json.loads(line) for line in lines if line)
    with (tmp_path / "results/leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert not any(None in row or None in row.values() for row in rows)

    data = tmp_path / "results/report/data"
    for script in data.glob("*.js"):
        content = script.read_bytes()
        assert content.isascii() and b"</" not in content
    _, _, boards = (data / "gallery.js").read_text().partition("=")
    shown = []
    for board in json.loads(boards.strip(";\n")):
        shown += [prompt[1] for prompt in board["prompts"]]
    assert STEERING in shown


# ------------------------------------------------------------------ images


def write_bomb(path: Path, side: int = 12_000) -> Path:
    """Write a PNG of some kilobytes that is 12,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    row = bytes(1 + -(-side // 8))
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def test_a_prompt_that_is_longer_than_the_model_reads_is_said_and_counted(tmp_path: Path) -> None:
    row = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
    rows = [row | {"prompt": "a photo of a cat" + " very" * n} for n in (0, 400)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    code, said = harness(
        tmp_path, "benchmark.metadata=rows.jsonl", "benchmark.images=1", "sampler.slots=4"
    )
    assert code == 0, said
    assert "reads only the beginning of 1 prompts" in said
    (journal,) = tmp_path.glob("results/*/*/*/records-0.jsonl")
    cut = [json.loads(line)["notes"].get("prompt_cut", 0) for line in journal.open()]
    assert sorted(cut) == [0, 373]
    (line,) = csv.DictReader((tmp_path / "results" / "leaderboard.csv").open())
    assert line["cut_prompts"] == "1"


def test_a_rewritten_prompt_that_is_longer_than_the_model_reads_is_counted(tmp_path: Path) -> None:
    code, said = harness(
        tmp_path, "method=gridar", "~method.verifier.weights", "method.most_words=99",
        "method.verifier._target_=test_gridar.Mock", f"+method.verifier.clause='{' very' * 40}'",
        "benchmark.prompts=1", "benchmark.images=1", "sampler.slots=12",
    )  # fmt: skip
    assert code == 0, said
    (journal,) = tmp_path.glob("results/*/*/*/records-0.jsonl")
    (cut,) = [json.loads(line)["notes"]["prompt_cut"] for line in journal.open()]
    assert cut >= 40 - 32
    (line,) = csv.DictReader((tmp_path / "results" / "leaderboard.csv").open())
    assert line["cut_prompts"] == "1"


def test_a_bomb_of_an_image_is_said_and_not_unpacked(tmp_path: Path) -> None:
    program = tmp_path / "1.png"  # PostScript, which Pillow would hand to Ghostscript
    program.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(touched) print\n"
    )
    good = tmp_path / "2.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(good)
    bomb = write_bomb(tmp_path / "0.png")

    tracemalloc.start()
    first, second, third = read_images([bomb, program, good])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(first, str) and first.startswith("0.png cannot be read")
    assert "decompression bomb" in first
    assert isinstance(second, str) and second.startswith("1.png cannot be read")
    assert isinstance(third, np.ndarray)
    assert peak < 50e6


def test_a_report_stands_without_images_that_cannot_be_shown(tmp_path: Path) -> None:
    assert run(tmp_path, "benchmark.images=3", "stages=[generate,score]")[0] == 0
    (folder,) = folders(tmp_path)
    write_bomb(folder / "images/0/0.png")
    torn = folder / "images/0/1.png"
    torn.write_bytes(torn.read_bytes()[:50])
    code, output = run(tmp_path, "stages=[report]")
    assert code == 0 and "Traceback" not in output, output
    assert len(list((tmp_path / "results/report/thumbs").iterdir())) == 4


# ------------------------------------------------------------------ code in data


class Call(NamedTuple):
    """A call in the product's code."""

    place: str  # file:line
    name: str
    keywords: dict[str, str]


@cache
def list_calls() -> list[Call]:
    """List every call in the product's code."""
    calls = []
    for part in ("harness", "methods", "benchmarks"):
        for path in sorted((ROOT / part).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    calls.append(Call(place, ast.unparse(node.func), read_keywords(node)))
    return calls


def read_keywords(call: ast.Call) -> dict[str, str]:
    return {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}


UNSAFE = {
    "eval",
    "exec",
    "joblib.load",
    "os.popen",
    "os.system",
    "pd.read_pickle",
    "pickle.Unpickler",
    "pickle.load",
    "pickle.loads",
    "shelve.open",
    "torch.hub.load",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
"""Functions that may run code out of what they read."""


def is_unsafe(call: Call) -> bool:
    keywords = call.keywords
    permits = [
        keywords.get(name, "False") for name in ("allow_pickle", "trust_remote_code", "shell")
    ]
    loads_code = call.name == "torch.load" and keywords.get("weights_only") != "True"
    return call.name in UNSAFE or loads_code or permits != ["False"] * 3


def test_data_is_read_as_data_only() -> None:
    """No pickle but torch's weights-only ones; nothing that evaluates, no shell, no code from a
    hub.
    """
    calls = list_calls()
    assert not [f"{call.place}: {call.name}" for call in calls if is_unsafe(call)]
    loads = [call for call in calls if call.name == "torch.load"]
    assert len(loads) >= 3  # it does see them


def test_the_network_is_reached_from_two_places_only() -> None:
    """Downloads, which are pinned and checked (test_download), and chats with judges."""
    opened = [call for call in list_calls() if "urlopen" in call.name]
    found = {call.place.split(":")[0] for call in opened}
    assert found == {"harness/download.py", "harness/judges/vlm.py"}


# ------------------------------------------------------------------ keys


CHAT_KEY = "planted-key-of-the-judge-0123456789"
BOARD_KEY = "f00dfacef00dfacef00dfacef00dfacef00dface"


@pytest.fixture
def keys(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants a key of the judge and one of wandb in the environment."""
    monkeypatch.setenv("VLM_API_KEY", CHAT_KEY)
    monkeypatch.setenv("VLM_MODEL", "m")
    monkeypatch.setenv("VLM_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", BOARD_KEY)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def asking_options() -> list[str]:
    """Options of a method that asks the chat for everything, and is told little about it."""
    options = ["method=gridar", "method.line=0"]
    for part in ("verifier", "reward"):
        options.append(f"judge@method.{part}=vlm_{part}")
        options.append(f"method.{part}.chat.retries=1")
        options.append(f"method.{part}.chat.backoff_s=0.0")
    return options


def test_a_key_is_in_nothing_that_a_run_leaves_or_says(
    keys: None, server: Server, tmp_path: Path
) -> None:
    """The server sends the key back in answers, errors and refusals; the method crashes; wandb has
    a key, too.
    """
    asking = asking_options()

    # 1. Answers and errors with the key in them.
    def echo(body: dict) -> tuple[object, ...]:
        sent = server.headers[-1]["Authorization"]
        assert CHAT_KEY in sent
        turn = len(server.asked) % 3
        return [says(f"yes, {sent}"), (500, sent.encode()), (200, f"<{sent}>".encode())][turn]

    server.behave = echo
    code, output = run(tmp_path, *asking, "logger=wandb", "logger.mode=offline")
    assert code == 1 and "UnansweredError" in output, output

    # 2. A refusal.
    server.behave = lambda body: (401, server.headers[-1]["Authorization"].encode())
    code, refused = run(tmp_path, *asking, "stages=[generate,score]", "seed=1")
    assert code == 2 and "VLM_API_KEY" in refused, refused

    # 3. A crash.
    server.behave = lambda body: 1 / 0  # type: ignore[assignment, return-value]
    _, crashed = run(tmp_path, *asking, "stages=[generate,score]", "seed=2")

    records = [path.read_text() for path in (tmp_path / "results").rglob("records-0.jsonl")]
    assert any("[key]" in text for text in records)  # what was answered is recorded, without it
    assert (tmp_path / "results/wandb").is_dir()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    for key in (CHAT_KEY, BOARD_KEY):
        assert key not in output + refused + crashed
        assert not [path for path in files if key.encode() in path.read_bytes()]
