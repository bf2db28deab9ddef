"""Parts are named by their content, not by where they lie."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from harness.models.captions import T5
from harness.models.checkpoint import LARGE_FILE, content_of
from harness.records import UserError
from harness.runs.fingerprint import default_places, fingerprint, name_paths_by_content


def write_folder(folder: Path, weights: bytes = b"weights") -> Path:
    """Write what a folder of a model may hold."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("a b")
    return folder


def test_a_moved_folder_has_the_same_content(tmp_path: Path) -> None:
    one = content_of(write_folder(tmp_path / "one"))
    shutil.move(tmp_path / "one", tmp_path / "elsewhere")
    assert content_of(tmp_path / "elsewhere") == one
    (tmp_path / "elsewhere" / ".cache").write_text("of the hub")
    assert content_of(tmp_path / "elsewhere") == one


@pytest.mark.parametrize("change", ["weights", "tokenizer", "added", "renamed"])
def test_another_content_under_the_same_path_is_another_part(tmp_path: Path, change: str) -> None:
    folder = write_folder(tmp_path / "model")
    before = content_of(folder)
    if change == "weights":
        (folder / "model.safetensors").write_bytes(b"weightz")
    elif change == "tokenizer":
        (folder / "tokenizer" / "vocab.txt").write_text("b a")
    elif change == "added":
        (folder / "added.json").write_text("{}")
    else:
        (folder / "config.json").rename(folder / "config.yaml")
    assert content_of(folder) != before


def test_the_kept_hash_of_a_large_file_follows_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(LARGE_FILE))
    before = content_of(file)
    (kept,) = (tmp_path / "cache").rglob("*.txt")
    kept.write_text("damaged")
    assert content_of(file) == before
    file.write_bytes(bytes(LARGE_FILE - 1) + b"x")
    os.utime(file, ns=(1, 1))
    assert content_of(file) != before


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(UserError, match=path.name):
            content_of(path)


def test_a_text_encoder_is_named_by_its_content(tmp_path: Path) -> None:
    """Features are kept under this name: a replaced encoder never gets those of the former one."""
    folder = write_folder(tmp_path / "t5")
    before = T5(checkpoint=str(folder)).revision
    shutil.copytree(folder, tmp_path / "copy")
    assert T5(checkpoint=str(tmp_path / "copy")).revision == before
    (folder / "model.safetensors").write_bytes(b"weightz")
    assert T5(checkpoint=str(folder)).revision != before


def test_fingerprints_follow_the_content_of_paths(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one")
    other = write_folder(tmp_path / "two")

    def name(path: Path) -> str:
        return fingerprint(name_paths_by_content({"model": {"checkpoint": str(path)}}))

    before = name(folder)
    assert name(other) == before
    (folder / "model.safetensors").write_bytes(b"weightz")
    assert name(folder) != before
    untouched = {"hub": "google/flan-t5-xl", "weights": "pictogram_80", "n": 4, "list": ["a/b"]}
    assert name_paths_by_content(untouched) == untouched


@pytest.mark.parametrize(
    "place",
    [
        {"base_url": "http://127.0.0.1:9/v1"},
        {"retries": 9, "timeout_s": 1.0, "backoff_s": 0.1},
        {"longest_pause_s": 3.0, "concurrency": 99},
        {"self_test": False, "give_up_after": 3},
    ],
)
def test_how_a_judge_is_reached_names_nothing(place: dict[str, object]) -> None:
    shipped = {
        "base_url": None,
        "model": "m",
        "timeout_s": 60.0,
        "retries": 2,
        "backoff_s": 1.0,
        "concurrency": 8,
    }

    def name(options: dict[str, object]) -> str:
        chat = {"_target_": "harness.judges.vlm.Endpoint", **shipped, **options}
        return fingerprint({"method": default_places({"reward": {"chat": chat}})})

    assert name(place) == name({})
    assert name({"model": "other"}) != name({})
    assert name({"temperature": 0.5}) != name({})
