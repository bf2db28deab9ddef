"""A result follows the code of plug-ins: an edited one is another run."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.runs import fingerprint

ROOT = Path(__file__).resolve().parents[1]
METHOD = """
from helper import KEEP
from methods.plain import Plain

class Mine(Plain):
    keep = KEEP
"""
GOLDEN_OF_CODE = {
    1: {"torch 2.15.0 AVX512": "c1113b51f6352c4f"},
}
"""Version of the code (`fingerprint.CODE`) -> machine -> hash of its golden tokens."""


def write_plugin(folder: Path, name: str = "mine") -> dict[str, str]:
    """Write a plug-in of three modules, and one that it does not import; its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(METHOD)
    (folder / "helper.py").write_text("from deeper import KEEP\n")
    (folder / "deeper.py").write_text("KEEP = 1\n")
    (folder / "unrelated.py").write_text("KEEP = 9\n")
    return {"_target_": f"{name}.Mine"}


def hash_in_process(folder: Path, config: object) -> dict[str, str]:
    """Hash a configuration's plug-ins in a process of its own, as a command does."""
    code = "import json, sys; from harness.runs.plugins import hash_plugins; "
    code += "print(json.dumps(hash_plugins(json.loads(sys.argv[1]))))"
    answer = subprocess.run(
        [sys.executable, "-c", code, json.dumps(config)],
        env={"PYTHONPATH": f"{folder}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


def test_a_plug_in_is_its_module_and_what_that_imports_from_its_folder(tmp_path: Path) -> None:
    config = write_plugin(tmp_path)
    assert set(hash_in_process(tmp_path, config)) == {"mine", "helper", "deeper"}


@pytest.mark.parametrize("edited", ["mine", "helper", "deeper"])
def test_each_edit_names_another_run(tmp_path: Path, edited: str) -> None:
    config = write_plugin(tmp_path)
    before = hash_in_process(tmp_path, config)
    file = tmp_path / f"{edited}.py"
    file.write_text(file.read_text() + "# edited\n")
    after = hash_in_process(tmp_path, config)
    assert {name for name in before if before[name] != after[name]} == {edited}


def test_what_a_plug_in_does_not_import_names_nothing(tmp_path: Path) -> None:
    config = write_plugin(tmp_path)
    before = hash_in_process(tmp_path, config)
    (tmp_path / "unrelated.py").write_text("KEEP = 10\n")
    (tmp_path / "new.py").write_text("")
    assert hash_in_process(tmp_path, config) == before


def test_where_a_plug_in_lies_names_nothing(tmp_path: Path) -> None:
    here = hash_in_process(tmp_path / "here", write_plugin(tmp_path / "here"))
    there = hash_in_process(tmp_path / "there", write_plugin(tmp_path / "there"))
    assert here == there


def test_plug_ins_are_found_at_any_depth_and_in_packages(tmp_path: Path) -> None:
    write_plugin(tmp_path / "package", "rule")
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/helper.py").write_text("from . import deeper as KEEP\n")
    (tmp_path / "package/rule.py").write_text(METHOD.replace("from helper", "from .helper"))
    inner = {"rules": [{"deep": {"_target_": "package.rule.Mine.make"}}]}
    config = {"_target_": "methods.plain.Plain", "part": inner}
    names = {"package", "package.rule", "package.helper", "package.deeper"}
    assert set(hash_in_process(tmp_path, config)) == names


def test_the_projects_own_classes_are_no_plug_ins(tmp_path: Path) -> None:
    own = ["methods.plain.Plain", "benchmarks.pictogram.PictogramBenchmark", "harness.trees.Static"]
    libraries = [
        {"_target_": "hydra.utils.get_object", "path": "methods.plain.Plain"},
        {"_target_": "torch.nn.Linear"},
        {"_target_": "functools.partial"},
    ]
    config = [*libraries, *({"_target_": target} for target in own)]
    assert hash_in_process(tmp_path, config) == {}


def test_an_object_that_hydra_looks_up_is_a_plug_in(tmp_path: Path) -> None:
    write_plugin(tmp_path)
    config = {"_target_": "hydra.utils.get_object", "path": "mine.KEEP"}
    assert set(hash_in_process(tmp_path, config)) == {"mine", "helper", "deeper"}


def test_a_class_that_cannot_be_found_is_left_to_its_builder(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    for target in ("nowhere.X", "broken.X", "X", "", "a..b", "methods.nowhere.X"):
        assert set(hash_in_process(tmp_path, {"_target_": target})) <= {"broken"}


def test_golden_tokens_change_with_the_version_of_the_code_only() -> None:
    """Whoever changes a golden token raises `fingerprint.CODE`, so that old runs stay old."""
    golden = json.loads((ROOT / "tests/golden.json").read_text())
    hashes = {}
    for machine, tokens in golden["tokens"].items():
        named = json.dumps([golden["weights"], tokens], sort_keys=True)
        hashes[machine] = hashlib.sha256(named.encode()).hexdigest()[:16]
    assert hashes == GOLDEN_OF_CODE[fingerprint.CODE]
    assert max(GOLDEN_OF_CODE) == fingerprint.CODE


def test_the_version_of_the_code_names_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint.fingerprint({"seed": 0})
    monkeypatch.setattr(fingerprint, "CODE", 2)
    assert fingerprint.fingerprint({"seed": 0}) != first
