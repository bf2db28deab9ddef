"""R10: files, servers and prompts that mean harm: no code runs, no name leaves its folder, no key
gets out.
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
from itertools import chain
from pathlib import Path

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
STEERING = "\x1b[2J\x1b]0;taken\x07\x9b1m\u202e <script>alert(1)</script></script>\r\n=cmd|' /c calc'!A1, \"quoted\""
"""A prompt that clears terminals, renames their windows, ends scripts and lines, and is a formula
in a table.
"""


class HostileBenchmark(ToyBenchmark):
    """Prompts that all say STEERING, with ids of an enemy's choice (written as Python would escape
    them).
    """

    def __init__(self, ids: Sequence[str], images: int = 1) -> None:
        super().__init__(prompts=1, images=images)
        self._prompts = [
            Prompt(id_.encode().decode("unicode_escape"), STEERING, "any") for id_ in ids
        ]


class Echo:
    """A method that fails with its prompt for an error."""

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
    assert code == 2 and output.startswith("error: ") and len(output.splitlines()) == 1
    assert output.strip().isprintable() and "Traceback" not in output
    assert not list(tmp_path.rglob("*.png")) and not folders(tmp_path)


def test_a_category_that_no_table_can_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="category") as refused:
        Prompt("a/0", "", "\x1b[2J")
    assert one_line(refused.value).isprintable()


def test_what_a_prompt_says_reaches_no_terminal_and_breaks_no_file(tmp_path: Path) -> None:
    code, output = run(tmp_path, "method=toy_echo", "stages=[generate,score]")
    assert code == 1 and "alert(1)" in output  # the error is said
    code, more = run(tmp_path, "method=plain")
    assert code == 0, more
    assert all(line.isprintable() for line in (output + more).split("\n"))
    for journal in (tmp_path / "results").rglob("*.jsonl"):
        assert all(json.loads(line) for line in journal.read_text().split("\n") if line)
    with (tmp_path / "results/leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and not any(None in row or None in row.values() for row in rows)
    for page in (tmp_path / "results/report/data").glob("*.js"):
        assert page.read_bytes().isascii() and b"</" not in page.read_bytes()
    gallery = (
        (tmp_path / "results/report/data/gallery.js").read_text().partition("=")[2].strip(";\n")
    )
    assert STEERING in [prompt[1] for board in json.loads(gallery) for prompt in board["prompts"]]


# ------------------------------------------------------------------ images


def bomb(path: Path, side: int = 12_000) -> Path:
    """A PNG of some kilobytes that is 12,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + -(-side // 8))) for _ in range(side)) + packer.flush()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    return path


def test_a_bomb_of_an_image_is_said_and_not_unpacked(tmp_path: Path) -> None:
    program = tmp_path / "1.png"  # PostScript, which Pillow would hand to Ghostscript
    program.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(touched) print\n"
    )
    good = tmp_path / "2.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(good)
    tracemalloc.start()
    first, second, third = read_images([bomb(tmp_path / "0.png"), program, good])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        isinstance(first, str)
        and first.startswith("0.png cannot be read")
        and "decompression bomb" in first
    )
    assert isinstance(second, str) and second.startswith("1.png cannot be read")
    assert isinstance(third, np.ndarray)
    assert peak < 50e6


def test_a_report_stands_without_images_that_cannot_be_shown(tmp_path: Path) -> None:
    assert run(tmp_path, "benchmark.images=3", "stages=[generate,score]")[0] == 0
    (folder,) = folders(tmp_path)
    bomb(folder / "images/0/0.png")
    (folder / "images/0/1.png").write_bytes((folder / "images/0/1.png").read_bytes()[:50])
    code, output = run(tmp_path, "stages=[report]")
    assert code == 0 and "Traceback" not in output, output
    assert len(list((tmp_path / "results/report/thumbs").iterdir())) == 4


# ------------------------------------------------------------------ code in data


@cache
def calls() -> list[tuple[str, str, dict[str, str]]]:
    """Every call in the product's code: where, what, and its arguments by keyword."""
    found = []
    parts = [ROOT / part for part in ("harness", "methods", "benchmarks")]
    for path in sorted(chain.from_iterable(part.rglob("*.py") for part in parts)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                said = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
                found.append(
                    (f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), said)
                )
    return found


def test_data_is_read_as_data_only() -> None:
    """No pickle but torch's weights-only ones; nothing that evaluates, no shell, no code from a
    hub.
    """
    unsafe = {
        "eval",
        "exec",
        "os.system",
        "os.popen",
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "joblib.load",
    }
    unsafe |= {
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "torch.hub.load",
        "pd.read_pickle",
        "shelve.open",
    }
    found = []
    loads = 0
    for place, name, said in calls():
        loads += name == "torch.load"
        if (
            name in unsafe
            or (name == "torch.load" and said.get("weights_only") != "True")
            or said.get("allow_pickle", "False") != "False"
            or said.get("trust_remote_code", "False") != "False"
            or said.get("shell", "False") != "False"
        ):
            found.append(f"{place}: {name}")
    assert not found
    assert loads >= 3  # it does see them


def test_the_network_is_reached_from_two_places_only() -> None:
    """Downloads, which are pinned and checked (test_download), and chats with judges."""
    found = {place.split(":")[0] for place, name, _ in calls() if "urlopen" in name}
    assert found == {"harness/download.py", "harness/judges/vlm.py"}


# ------------------------------------------------------------------ keys


def test_a_key_is_in_nothing_that_a_run_leaves_or_says(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sends the key back in answers, errors and refusals; the method crashes; wandb has
    a key, too.
    """
    chat_key = "planted-key-of-the-judge-0123456789"
    board_key = "f00dfacef00dfacef00dfacef00dfacef00dface"
    for name, value in (
        ("VLM_API_KEY", chat_key),
        ("WANDB_API_KEY", board_key),
        ("VLM_MODEL", "m"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLM_BASE_URL", server.url)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))

    def echo(body: dict) -> tuple[object, ...]:
        said = server.headers[-1]["Authorization"]
        assert chat_key in said
        turn = len(server.asked) % 3
        return [says(f"yes, {said}"), (500, said.encode()), (200, f"<{said}>".encode())][turn]

    server.behave = echo
    judges = [f"judge@method.{name}=vlm_{name}" for name in ("verifier", "reward")]
    chat = [
        f"method.{name}.chat.{what}"
        for name in ("verifier", "reward")
        for what in ("retries=1", "backoff_s=0.0")
    ]
    asked = ("method=gridar", "method.line=0", *judges, *chat)
    code, output = run(tmp_path, *asked, "logger=wandb", "logger.mode=offline")
    assert code == 0, output
    server.behave = lambda body: (401, server.headers[-1]["Authorization"].encode())
    asked = (*asked, "stages=[generate,score]")
    code, refused = run(tmp_path, *asked, "seed=1")
    assert code == 2 and "VLM_API_KEY" in refused, refused
    server.behave = lambda body: 1 / 0  # type: ignore[assignment, return-value]
    output += refused + run(tmp_path, *asked, "seed=2")[1]
    records = [path.read_text() for path in (tmp_path / "results").rglob("records-0.jsonl")]
    assert any("[key]" in text for text in records)  # what was answered is recorded, without it
    assert (tmp_path / "results/wandb").is_dir()
    for key in (chat_key, board_key):
        assert key not in output
        leaks = [
            str(path)
            for path in tmp_path.rglob("*")
            if path.is_file() and key.encode() in path.read_bytes()
        ]
        assert not leaks
