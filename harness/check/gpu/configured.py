"""Methods, models and bars as conf/ configures them, without Hydra.

`configured.json` holds what Hydra composes of conf/. `python -m harness.check.gpu.configured`
writes it anew; `tests/test_check_gpu.py` fails where it is not what conf/ says.
"""

from __future__ import annotations

import copy
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

from harness.check.originals import import_function
from harness.engine.guidance import Sampling
from harness.records import UserError, dump

FILE = Path(__file__).with_name("configured.json")
MODELS = ("llamagen_xl_256", "llamagen_xl_512", "janus_pro_1b", "janus_pro_7b")
"""Models that are examined in full size, with random weights."""
EMBEDDED = "pictogram"
"""The embedded model, which has real weights."""


@cache
def read_configured() -> dict[str, Any]:
    """Read the composed configurations: `method`, `model` and `bench`, each by name."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def build(config: Any, **extra: Any) -> Any:
    """Make what a `_target_` names, and the parts that its arguments name, as Hydra does.

    `extra` are arguments besides the configured ones.
    """
    if isinstance(config, list):
        return [build(item) for item in config]
    if not isinstance(config, dict):
        return config
    values = {name: build(value) for name, value in config.items()}
    target = values.pop("_target_", None)
    is_partial = values.pop("_partial_", False)
    if target is None:
        return values
    if target == "hydra.utils.get_object":
        return import_function(values["path"])
    made = import_function(target)
    return partial(made, **values, **extra) if is_partial else made(**values, **extra)


def build_method(name: str, **options: Any) -> Any:
    """Build a configured method; `options` replace its own."""
    return build({**read_configured()["method"][name], **options})


def build_model(name: str, device: str, **options: Any) -> tuple[Any, Sampling]:
    """Build a configured model on a device, and its sampling; `options` replace its own."""
    config = copy.deepcopy(read_configured()["model"][name])
    sampling = Sampling(**config.pop("sampling"))
    return build({**config, **options, "device": device}), sampling


# ------------------------------------------------------------------ writing the file


def compose() -> dict[str, Any]:
    """Compose everything that the file holds; needs Hydra.

    Methods whose judges look at the source of an edit are left out: the models draw from texts.
    """
    from harness.runs.instantiate import drop_titles

    groups = Path(__file__).parents[3] / "conf"
    names = sorted(path.stem for path in (groups / "method").glob("*.yaml"))
    composed = {name: drop_titles(_compose(f"method={name}")["method"]) for name in names}
    return {
        "method": {name: part for name, part in composed.items() if not _sees_source(part)},
        "model": {
            EMBEDDED: _compose(f"model={EMBEDDED}")["model"],
            **{name: _with_random_weights(_compose(f"model={name}")["model"]) for name in MODELS},
        },
        "bench": {
            "gpu_bars": _compose("+bench=sampler")["gpu_bars"],
            "most_bookkeeping": _compose("+bench=methods")["most_bookkeeping"],
            "most_excess": _compose("+bench=methods")["most_excess"],
        },
    }


def _sees_source(config: Any) -> bool:
    """Tell whether a part, or one inside it, looks at source images."""
    if not isinstance(config, dict):
        return False
    made = import_function(config["_target_"]) if "_target_" in config else None
    return getattr(made, "sees_source", False) or any(map(_sees_source, config.values()))


def _compose(override: str) -> dict[str, Any]:
    import hydra
    from omegaconf import OmegaConf

    from harness.cli import enable_plugins

    enable_plugins()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        config = hydra.compose("config", overrides=[override])
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def _with_random_weights(model: dict[str, Any]) -> dict[str, Any]:
    """Take random weights of full size, and the features of words: nothing is downloaded."""
    random = {**model, "weights": "random"}
    if "captions" in model:
        random["captions"] = {"_target_": "harness.models.captions.WordFeatures"}
    return random


def main() -> None:
    """Write the file. Raises UserError where Hydra is missing."""
    try:
        composed = compose()
    except ModuleNotFoundError as error:
        raise UserError(f"needs {error.name}: install the project with its dependencies") from None
    text = json.dumps(json.loads(dump(composed)), indent=1, sort_keys=True)
    FILE.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
