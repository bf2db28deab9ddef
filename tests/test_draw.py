"""`harness.draw` and `prompt=`: what one sees is what a run would journal."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image as Pillow
from runs import TOY, folders, timeless
from runs import harness as run_harness

import harness
from harness.drawing import Drawings, describe_usage
from harness.prompt_option import PromptCommand
from harness.records import TIMES, Prompt, Usage, UserError
from harness.runs import spec as run_spec
from harness.runs.folder import hash_tokens

EXAMPLES = Path(__file__).parent.parent / "examples"
CAT = "a photo of a cat"
DOGS = "three dogs"
PROMPTS = (
    *TOY[:2],
    "model=toy",
    "sampler.slots=24",
    "benchmark=prompts",
    "benchmark.file=mine.txt",
)
"""Options of a run of own prompts on the toy model."""


def draw_toy(method: Any, prompt: Any, **options: Any) -> Any:
    """Draw with the toy model."""
    return harness.draw(method, prompt, config_dir=TOY[1], model="toy", **options)


@pytest.fixture(autouse=True, scope="module")
def nothing_kept() -> Iterator[None]:
    yield
    harness.release()


def count(usage: Usage) -> dict[str, float]:
    """What is the same in every drawing of a job."""
    return {k: v for k, v in dataclasses.asdict(usage).items() if k not in TIMES}


def journal(folder: Path) -> dict[str, dict[str, Any]]:
    """The journal of a run, by prompt id."""
    rows = [timeless(line) for line in (folder / "records-0.jsonl").read_text().splitlines()]
    return {str(row["prompt_id"]): row for row in rows}


def expect_journalled(drawing: harness.Drawing, folder: Path) -> None:
    """Fail unless a run has journalled and written this very drawing."""
    row = journal(folder)[drawing.prompt.id]
    assert row["tokens_sha"] == hash_tokens(drawing.tokens)
    assert row["usage"] == count(drawing.usage)
    assert row["notes"] == json.loads(json.dumps(drawing.notes))
    assert drawing.png == (folder / str(row["path"])).read_bytes()


# ------------------------------------------------------------------ the same as a run


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("plain", {}),
        ("toy_best", {"n": 2}),  # a judge
        ("toy_speculative", {}),  # a drafter
        ("toy_gridar", {}),  # a verifier, and other prompts on the way
    ],
)
def test_a_drawing_is_what_a_run_journals(
    method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Tokens, bytes, counts and notes, drawn together or alone, with other numbers of slots."""
    (tmp_path / "mine.txt").write_text(f"{CAT}\n{DOGS}\n")
    typed = [f"method.{name}={value}" for name, value in options.items()]
    command = (*PROMPTS, f"method={method}", *typed, "seed=3", "stages=[generate]")
    code, said = run_harness(tmp_path, *command)
    assert code == 0, said
    (folder,) = folders(tmp_path)
    together = draw_toy(method, [CAT, DOGS], seed=3, **options)
    assert [one.prompt.text for one in together] == [CAT, DOGS]
    for drawing in together:
        expect_journalled(drawing, folder)
    expect_journalled(draw_toy(method, DOGS, seed=3, **options), folder)


def test_the_embedded_model_draws_what_its_run_journals(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(f"{CAT}\n{DOGS}\n")
    own = ("benchmark=prompts", "benchmark.file=mine.txt", "stages=[generate]")
    code, said = run_harness(tmp_path, *own, "method=best_of_n", "method.n=2", "sampler.slots=8")
    assert code == 0, said
    expect_journalled(harness.draw("best_of_n", DOGS, n=2), *folders(tmp_path))


def test_an_image_of_another_benchmark_is_drawn_by_its_id_and_number(tmp_path: Path) -> None:
    code, said = run_harness(tmp_path, *TOY, "stages=[generate]")
    assert code == 0, said
    (folder,) = folders(tmp_path)
    line = json.loads((folder / "jobs.jsonl").read_text().splitlines()[-1])
    prompt = Prompt(line["prompt_id"], line["text"], line["category"])
    drawn = draw_toy("plain", prompt, number=1)
    file = folder / "images" / prompt.id.rpartition("/")[2] / "1.png"
    assert drawn.png == file.read_bytes()
    assert drawn.png != draw_toy("plain", prompt).png


def test_a_prompt_that_comes_twice_is_drawn_once_and_handed_over_twice() -> None:
    drawings = draw_toy("plain", [CAT, CAT])
    assert len(drawings) == 2
    assert drawings[0].tokens == drawings[1].tokens
    assert draw_toy("plain", []) == []


def test_seed_sampler_and_overrides_are_those_of_the_command_line() -> None:
    first = draw_toy("plain", CAT)
    assert draw_toy("plain", CAT, sampler="latency", device="cpu").tokens == first.tokens
    assert draw_toy("plain", CAT, seed=1).tokens != first.tokens
    assert draw_toy("plain", CAT, overrides=["+model.seed=7"]).tokens != first.tokens
    assert draw_toy("plain", CAT, overrides=["seed=1"]).seed == 0  # the argument wins


# ------------------------------------------------------------------ what one may give


class FirstOfTwo:
    """A method of one's own."""

    rows = 2
    branches = 2
    tokens_per_step = 1

    def __init__(self, chosen: int = 0) -> None:
        self.chosen = chosen

    async def generate(self, prompt: str, s: harness.Session) -> harness.Canvas:
        candidates = s.open(2)
        await s.run(candidates)
        s.note(chosen=self.chosen)
        return candidates[self.chosen]


class Faulty(FirstOfTwo):
    """A method that fails for one prompt."""

    async def generate(self, prompt: str, s: harness.Session) -> harness.Canvas:
        if prompt == DOGS:
            raise KeyError("no dogs here")
        return await super().generate(prompt, s)


class Brightness:
    """A reward of one's own."""

    id = "brightness"

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float]:
        return [float(image.mean()) / 255 for image in images]


def test_a_method_may_be_an_object_or_a_class() -> None:
    made = draw_toy(FirstOfTwo(1), CAT)
    assert made.method == "FirstOfTwo"
    assert made.notes == {"chosen": 1}
    assert draw_toy(FirstOfTwo, CAT, chosen=1).tokens == made.tokens
    assert draw_toy(FirstOfTwo(), CAT).tokens == draw_toy("plain", CAT).tokens
    with pytest.raises(UserError, match="chosen: FirstOfTwo is made already"):
        draw_toy(FirstOfTwo(), CAT, chosen=1)


def test_options_take_numbers_names_of_configurations_and_objects() -> None:
    assert len(draw_toy("toy_best", CAT, n=np.int64(4)).notes["scores"]) == 4
    bright = draw_toy("best_of_n", CAT, n=2, reward=Brightness())
    assert bright.notes["chosen"] == int(np.argmax(bright.notes["scores"]))
    likely = draw_toy("best_of_n_speculative", CAT, n=2, reward=Brightness(), decoding=None)
    assert likely.notes["scores"] == bright.notes["scores"]
    mounted = harness.draw("best_of_n", CAT, n=2, reward="pictogram_reward")
    assert 0 < mounted.notes["scores"][0] < 1


def test_a_method_of_a_folder_of_configurations(tmp_path: Path) -> None:
    (tmp_path / "mine, too/conf/method").mkdir(parents=True)
    (tmp_path / "mine, too/drawn_here.py").write_text(
        "from methods.plain import Plain\n\n\nclass Mine(Plain):\n    pass\n"
    )
    (tmp_path / "mine, too/conf/method/mine.yaml").write_text("_target_: drawn_here.Mine\n")
    drawn = harness.draw("mine", CAT, config_dir=tmp_path / "mine, too/conf")
    assert drawn.tokens == harness.draw("plain", CAT).tokens
    with pytest.raises(UserError, match="no such folder"):
        harness.draw("mine", CAT, config_dir=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("plian", CAT), {}, "plian"),
        (("best_of_n", CAT), {"m": 4}, "unknown option 'method.m': there are"),
        (("best_of_n", CAT), {"n": 2.5}, "method.n=2.5"),
        (("best_of_n", CAT), {"n": 0}, "method.n=0"),
        (("best_of_n", CAT), {"n": "4"}, "method.n='4': input should be a valid integer"),
        (("best_of_n", CAT), {"reward": "nobody"}, "judge=nobody: there is no such choice"),
        (("plain", CAT), {"seed": -1}, "seed=-1"),
        (("plain", CAT), {"number": -1}, "number=-1"),
        (("plain", CAT), {"device": "cuda:77"}, "cuda:77"),
        (("plain", CAT), {"overrides": ["methud=x"]}, "unknown option 'methud'"),
        (("plain", " "), {}, "write what is to be drawn"),
        (("plain", [3]), {}, "prompt 3: give a text"),
        ((object(), CAT), {}, "no `async def generate"),
    ],
)
def test_a_mistake_is_one_line_with_the_value(
    arguments: tuple[Any, ...], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        harness.draw(*arguments, **options)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_failed_image_raises_the_methods_reason_with_its_line() -> None:
    with pytest.raises(harness.FailedImageError) as failed:
        draw_toy(Faulty(), [CAT, DOGS])
    message = str(failed.value)
    assert "no dogs here" in message
    assert DOGS in message
    assert "test_draw.py, line" in message
    assert 'raise KeyError("no dogs here")' in message
    (drawn,) = failed.value.drawn
    assert drawn.prompt.text == CAT


# ------------------------------------------------------------------ notebooks, memory, Hydra


def test_notebooks_show_the_image_the_prompt_and_the_costs() -> None:
    drawings = draw_toy("plain", [CAT, 'a <b> & "c"'])
    assert isinstance(drawings, Drawings)
    shown = drawings._repr_html_()
    assert shown.count("<img") == 2
    assert "a &lt;b&gt; &amp; &quot;c&quot;" in shown
    assert "<b>" not in shown
    assert describe_usage(drawings[0].usage) in shown
    assert "16 visual tokens" in shown
    pixels = np.asarray(Pillow.open(io.BytesIO(drawings[0]._repr_png_())))
    assert np.array_equal(pixels, np.asarray(drawings[0].image))


def test_the_model_is_loaded_once_until_it_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    harness.release()
    loaded = []
    build_object = run_spec.build_object

    def note(part: Any, **extra: Any) -> Any:
        loaded.append(str(part.get("_target_")))
        return build_object(part, **extra)

    monkeypatch.setattr(run_spec, "build_object", note)
    draw_toy("plain", CAT)
    draw_toy("best_of_n_likelihood", DOGS, n=2)
    assert len(loaded) == 1
    harness.release()
    draw_toy("plain", CAT)
    assert len(loaded) == 2


def test_another_use_of_hydra_is_left_as_it_was(tmp_path: Path) -> None:
    from hydra import initialize_config_dir

    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        draw_toy("plain", CAT)
        assert GlobalHydra.instance().hydra is before
    draw_toy("plain", CAT)
    assert not GlobalHydra.instance().is_initialized()


def test_a_drawing_is_printed_in_a_line() -> None:
    printed = repr(draw_toy("plain", CAT))
    assert printed == (
        "Drawing('a photo of a cat', 4x4, plain, seed 0: 16 visual tokens, 17 target passes)"
    )


def load_notebook() -> tuple[Any, list[dict[str, Any]]]:
    """The module that writes the notebook, and the stored cells."""
    code = spec_from_file_location("draw_notebook", EXAMPLES / "draw_notebook.py")
    assert code is not None
    assert code.loader is not None
    written = module_from_spec(code)
    code.loader.exec_module(written)
    return written, json.loads((EXAMPLES / "draw.ipynb").read_text())["cells"]


def test_the_stored_notebook_has_the_cells_and_outputs_of_its_script() -> None:
    written, cells = load_notebook()
    stored = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    assert stored == written.CELLS, "write it again: python examples/draw_notebook.py"
    shown = [
        kind for cell in cells for one in cell.get("outputs", ()) for kind in read_text(one)[1]
    ]
    assert shown.count("text/html") == 4
    shows = written.execute_cell("print(1)\nsorted([2, 1])", {}, 1)
    assert [read_text(one) for one in shows] == [(["1\n"], []), (["[1, 2]"], ["text/plain"])]


@pytest.mark.long
def test_the_notebook_runs_and_its_stored_text_is_current() -> None:
    """Pictures are not compared: they follow the machine's arithmetic."""
    written, cells = load_notebook()
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            outputs = written.execute_cell(source, names, cell["execution_count"])
            assert [read_text(one) for one in outputs] == [read_text(o) for o in cell["outputs"]]


def read_text(output: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The text of a cell's output, and the kinds of what it displays."""
    data = output.get("data", {})
    return output.get("text") or data["text/plain"], sorted(data)


# ------------------------------------------------------------------ from the shell


@pytest.mark.parametrize(
    ("typed", "prompts"),
    [
        ("a photo of a cat", [CAT]),
        ("a cat, two dogs", ["a cat, two dogs"]),
        ('a sign that says "x=y", {red}: $5', ['a sign that says "x=y", {red}: $5']),
        ("'a cat, asleep'", ["a cat, asleep"]),
        ("it's a cat", ["it's a cat"]),
        ("[a cat,two dogs]", ["a cat", "two dogs"]),
        ("""["a cat, asleep",'x = "y"',3]""", ["a cat, asleep", 'x = "y"', "3"]),
        ('["[a cat]"]', ["[a cat]"]),
    ],
)
def test_a_prompt_is_read_as_it_stands(typed: str, prompts: list[str]) -> None:
    command = PromptCommand.of([f"prompt={typed}", "method=plain"])
    assert list(command.prompts) == prompts
    assert command.arguments == ("method=plain", "benchmark=prompts")
    assert PromptCommand.of(["method=plain"]).arguments == ("method=plain",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prompt="], "write what is to be drawn"),
        (["prompt=[a,b"], """prompt='["a cat, asleep","two dogs"]'"""),
        (['prompt=[a, b:c=d"]'], """prompt='["a cat, asleep","two dogs"]'"""),
        (["prompt=[]"], "in brackets stands a list"),
        (["prompt=[[a],b]"], "in brackets stands a list"),
        (["prompt=a", "prompt=b"], "prompt=[FIRST,SECOND]"),
        (["prompt=a", "-m"], "benchmark.file=FILE"),
        (["prompt=a", "benchmark=geneval"], "benchmark=geneval is of a run"),
        (["prompt=a", "benchmark.images=4"], "benchmark.images=4 is of a run"),
        (["prompt=a", "judge@benchmark.judge=vlm_reward"], "is of a run"),
        (["prompt=a", "stages=[score]"], "stages=[score] is of a run"),
        (["prompt=a", "+experiment=demo"], "+experiment=demo is of a run"),
        (["prompt=a", "method=plian"], "plian"),
        (["prompt=a", "method.m=1"], "method.m"),
        (["prompt=a", "method=plain,zipar"], "method"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    code, said = run_harness(tmp_path, *arguments)
    assert code == 2
    (line,) = said.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not list(tmp_path.iterdir())


def test_the_shell_writes_the_same_png_and_says_where(tmp_path: Path) -> None:
    toy = (*TOY[:2], "model=toy", "method=toy_best", "method.n=2")
    command = (*toy, f"prompt=[{CAT},{DOGS}]", "results=out")
    code, said = run_harness(tmp_path, *command)
    assert code == 0, said
    lines = said.strip().splitlines()
    drawings = draw_toy("toy_best", [CAT, DOGS], n=2)
    assert len(lines) == 2
    for line, drawing in zip(lines, drawings, strict=True):
        path, _, costs = line.partition(": ")
        assert (tmp_path / path).read_bytes() == drawing.png
        assert path.startswith("out/drawn/")
        assert costs.startswith("32 visual tokens, 17 target passes, 2 judge calls, ")
    assert not folders(tmp_path)

    run_harness(tmp_path, *command, "seed=1")
    assert len(list(tmp_path.rglob("*.png"))) == 4  # other options are other files
    code, said = run_harness(tmp_path, "stages=[report]", "results=out")
    assert code == 0, said


def test_a_prompt_that_fails_loses_no_other(tmp_path: Path) -> None:
    toy = (*TOY[:2], "model=toy", "method=toy_faulty")
    code, said = run_harness(tmp_path, *toy, f"prompt=[{CAT},dog 1]")
    assert code == 1
    first, last = said.strip().splitlines()
    assert "visual tokens" in first
    assert last.startswith("error: toy_faulty, prompt 'dog 1': ConnectionError: the judge is down")
