"""What lies in the current folder or on the path is never taken for the project's own code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import TESTS, folders, harness

from harness.packages import HOME, OWN, add_author_folder
from harness.records import UserError

METHOD = """
from author_helper import COUNT
from harness import Canvas, Session

class Mine:
    branches = 2
    tokens_per_step = 1

    def __init__(self, keep: int = 1) -> None:
        self.rows = COUNT
        self.keep = keep

    async def generate(self, prompt: str, s: Session) -> Canvas:
        canvases = s.open(self.rows)
        await s.run(canvases)
        return canvases[0]
"""
TOY = (f"hydra.searchpath=[file://{TESTS / 'toy_conf'}]", "model=toy", "benchmark=toy")
SMALL = (*TOY, "sampler.slots=24", "benchmark.prompts=2", "stages=[generate]")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An author's folder, whose folders have the names of ours."""
    import benchmarks
    import methods

    monkeypatch.setattr(sys, "path", list(sys.path))
    for package in (methods, benchmarks):
        monkeypatch.setattr(package, "__path__", list(package.__path__))
    folder = tmp_path / "mine"
    for name in ("conf/method", "methods", "harness", "benchmarks"):
        (folder / name).mkdir(parents=True)
    (folder / "author_helper.py").write_text("COUNT = 2\n")
    (folder / "methods/authors_own.py").write_text(METHOD)
    (folder / "conf/method/mine.yaml").write_text("_target_: methods.authors_own.Mine\nkeep: 1\n")
    return folder


def forget_modules() -> None:
    """Let the next command import the author's code anew."""
    for name in ("methods.authors_own", "author_helper"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ["namespace", "package"])
def test_no_folder_before_ours_on_the_path_shadows_it(tmp_path: Path, kind: str) -> None:
    """The current folder comes first under `python -m` and `python -c`."""
    for name in OWN:
        (tmp_path / name).mkdir()
        if kind == "package":
            (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')")
    code = "import harness, methods.plain, benchmarks, conf; "
    code += "print(methods.__file__, benchmarks.__file__, conf.__file__)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{HOME}"}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    found = [str(HOME / name / "__init__.py") for name in OWN]
    assert answer.stdout.split() == found, answer.stderr


def test_others_of_our_names_that_were_imported_before_are_named(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/__init__.py").write_text("")
    code = "import methods; from harness.packages import expect_own_packages as e; e()"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{HOME}"}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert "import harness first" in answer.stderr and str(tmp_path / "methods") in answer.stderr


def test_an_authors_folder_is_found_beside_its_conf_from_anywhere(mine: Path) -> None:
    results = mine.parent / "results"
    for cwd, conf in ((mine, "conf"), (mine.parent, "mine/conf"), (Path("/"), mine / "conf")):
        forget_modules()
        run = ("--config-dir", str(conf), *SMALL, "method=mine", f"results={results}")
        code, said = harness(cwd, *run)
        assert code == 0, said
    assert len(folders(mine.parent)) == 1  # one result, wherever the command ran
    assert "methods.authors_own" in (folders(mine.parent)[0] / "config.yaml").read_text()


def test_an_audit_finds_an_authors_method_beside_its_conf(
    mine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forget_modules()
    before = list(sys.path)
    conf = ("--config-dir", str(mine / "conf"))
    code, said = harness(mine.parent, *conf, *SMALL, "method=mine", "method.keep=2")
    assert code == 0, said
    (folder,) = folders(mine.parent)
    # Another process knows nothing of the author's folder.
    forget_author(before)
    caplog.clear()
    audit = ("run", str(folder))
    code, said = harness(mine.parent, *audit, module="harness.check")
    assert code == 2 and said.startswith("error: _target_=methods.authors_own.Mine"), said
    assert said.count("\n") == 1
    assert not caplog.records
    code, said = harness(mine.parent, *audit, "--config-dir", "absent", module="harness.check")
    assert code == 2 and "--config-dir absent: no such folder" in said
    code, said = harness(mine.parent, *audit, *conf, module="harness.check")
    assert code == 0, said


def forget_author(path: list[str]) -> None:
    """Take the author's folder off the import path, as it was before, with what it brought."""
    import methods

    forget_modules()
    vars(methods).pop("authors_own", None)
    sys.path[:] = path
    methods.__path__[:] = methods.__path__[:1]


def test_a_module_whose_name_is_taken_is_refused(mine: Path) -> None:
    (mine / "methods/plain.py").write_text("")
    with pytest.raises(UserError, match=r"mine/methods/plain\.py .*own methods\.plain: rename it"):
        add_author_folder(mine)


def test_points_without_an_option_are_named_and_the_others_run(mine: Path) -> None:
    forget_modules()
    sweep = ("-m", "--config-dir", str(mine / "conf"), *SMALL, "method=plain,mine")
    code, said = harness(mine.parent, *sweep, "method.keep=1,2")
    assert code == 0, said
    left_out = [line for line in said.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 2
    assert all("method=plain" in line and "'method.keep'" in line for line in left_out)
    assert sorted(folder.name.split("-")[0] for folder in folders(mine.parent)) == ["mine", "mine"]

    code, said = harness(mine.parent, *sweep, "method.kept=1,2")
    assert code == 2
    (line,) = said.strip().splitlines()
    assert line.startswith("error: unknown option 'method.kept'")


def test_a_sweep_shows_the_configuration_of_its_first_point(mine: Path) -> None:
    code, said = harness(
        mine, "-m", "--cfg", "job", "--config-dir", "conf", "method=mine,plain", "method.keep=3,4"
    )
    assert code == 0, said
    assert "keep: 3" in said and "methods.authors_own.Mine" in said


def test_an_error_of_every_point_is_told_once(mine: Path) -> None:
    broken = METHOD.replace("self.rows = COUNT", "self.rows = int('two')")
    (mine / "methods/authors_own.py").write_text(broken)
    forget_modules()
    sweep = ("-m", "--config-dir", str(mine / "conf"), *SMALL, "method=mine", "seed=0,1,2")
    code, said = harness(mine.parent, *sweep)
    assert code == 2
    told = [line for line in said.splitlines() if "ValueError" in line]
    assert len(told) == 1, said
    for word in ("seed=0", "seed=2", "authors_own.py, line 10", "self.rows = int('two')"):
        assert word in told[0]
    # Mended, the same command draws all of it.
    (mine / "methods/authors_own.py").write_text(METHOD)
    forget_modules()
    code, said = harness(mine.parent, *sweep)
    assert code == 0, said
    assert len(folders(mine.parent)) == 3


def test_images_that_fail_alike_are_logged_once(mine: Path) -> None:
    forgetful = METHOD.replace("await s.run", "s.run")
    (mine / "methods/authors_own.py").write_text(forgetful)
    forget_modules()
    run = ("--config-dir", str(mine / "conf"), *SMALL, "method=mine")
    code, said = harness(mine.parent, *run)
    assert code == 1 and "4 of 4 images failed" in said
    assert said.count("s.run is called without await") == 1
    journal = next(mine.parent.rglob("records-0.jsonl")).read_text()
    assert journal.count("authors_own.py, line 15") == 4


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        (
            "method=ploin",
            ["method=ploin", "did you mean plain?", " best_of_n, best_of_n_lik"],
        ),
        ("method=best_of_n judge@method.reward=clop", ["judge=clop", " local_vlm_reward, "]),
        ("method=best_of_n method.m=3", ["'method.m'", "there are n, reward", "--cfg job"]),
        ("methud=plain", ["'methud'", "did you mean method?"]),
        ("model.sampling.tempreture=1", ["of model.sampling", "did you mean temperature?"]),
    ],
)
def test_an_unknown_name_is_told_with_near_misses(
    argument: str, words: list[str], tmp_path: Path
) -> None:
    code, said = harness(tmp_path, *argument.split())
    assert code == 2
    (line,) = said.strip().splitlines()
    assert "search path" not in line and "provider=" not in line
    for word in words:
        assert word in line
