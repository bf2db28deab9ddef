"""Carry parts out in this process, and report each to the process that started it.

`python -m harness.check.gpu.worker REQUEST` takes a JSON object: the step, the names of its parts,
the setting, and the descriptor that the lines of done parts are written to. It ends when its
parent does: its standard input is a pipe that nobody writes to.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from harness.check.gpu.finding import OURS, NotRunError, Part, Setting
from harness.check.gpu.journal import Line
from harness.check.gpu.plan import step_named
from harness.records import UserError, one_line

CONTEXT_LOST = 3
"""Exit code of a worker whose device can compute nothing any more."""


def main() -> int:
    """Carry out the parts of a request; return the exit code."""
    request = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    setting = Setting.from_json(request["setting"])
    with os.fdopen(request["reports"], "w", encoding="utf-8") as reports:
        step = step_named(request["step"])
        prepare_device(setting)
        parts = {part.name: part for part in step.list_parts(setting)}
        for name in request["parts"]:
            line = carry_out(step.name, parts[name], setting)
            reports.write(f"{json.dumps(asdict(line))}\n")
            reports.flush()
            if not device_works(setting):
                return CONTEXT_LOST
    return 0


def carry_out(step: str, part: Part, setting: Setting) -> Line:
    """Carry out a part; whatever it raises becomes its line."""
    began = time.perf_counter()

    def line(status: Any, headline: str, reason: str, figures: Mapping[str, Any]) -> Line:
        seconds = round(time.perf_counter() - began, 2)
        return Line(step, part.name, status, seconds, headline, reason, figures)

    try:
        found = part.run(setting)
        return line(found.status, found.headline, "; ".join(found.failures), found.figures)
    except NotRunError as error:
        return line("not run", "", one_line(error), {})
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OURS:
            return line("failed", "", _describe(error), {})
        return line("not run", "", f"needs {package}, which is not installed", {})
    except Exception as error:
        return line("failed", "", _describe(error), {})


def _describe(error: BaseException) -> str:
    """Name an error and the place in our code that it comes from."""
    places = [
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    message = one_line(error)[:300]
    if isinstance(error, UserError):
        return message
    return f"{type(error).__name__}: {message} (at {' < '.join(places[:-4:-1])})"


def prepare_device(setting: Setting) -> None:
    """Make the device the current one, and products of float32 exact."""
    import torch

    from harness.models.devices import choose_device

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    choose_device(setting.device)


def device_works(setting: Setting) -> bool:
    """Tell whether the device still computes: an assert in a kernel ends its context."""
    import torch

    if setting.torch_device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(setting.torch_device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def _end_with_parent() -> None:
    # Not by sys.stdin: a thread inside its lock makes the interpreter abort when it ends.
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
