"""`python -m harness.bench NAME [options]`: sampler, methods or judges.

python -m harness.bench sampler model=llamagen_b 'batch=[1,8]'     tokens a second, and ratios over the reference loops
python -m harness.bench methods model=pictogram                    what each method's speed is over plain sampling
python -m harness.bench judges                                     images a second of the embedded judges
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.cli import enable_plugins, explain_unknown_option, print_error
from harness.engine.memory import cap_memory, short_of_memory
from harness.models.checkpoint import device_named
from harness.records import UserError, one_line

NAMES = ("sampler", "methods", "judges")


def main() -> None:
    """Exit code 0 if the bench ran and the bars that bind hold, 1 if one does not, 2 for a mistake
    in the command.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    enable_plugins()
    logging.getLogger("hydra").setLevel(logging.WARNING)
    name, *options = sys.argv[1:] or [""]
    if name not in NAMES:
        sys.exit(print_error(f"bench {name!r}: choose from {', '.join(NAMES)}"))
    sys.argv[1:] = [f"+bench={name}", *options]
    _held.clear()
    try:
        _app()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(print_error(explain_unknown_option(one_line(error))))
    except Exception as error:
        if not short_of_memory(error):
            raise
        said = f"the device's memory is too small for this bench ({one_line(error)[:120]})"
        sys.exit(print_error(f"{said}: set fewer images in batch=, or a smaller model="))
    except KeyboardInterrupt:
        sys.exit(print_error("interrupted: the batch sizes before this one are written", code=130))
    sys.exit(0 if _held else 1)


_held: list[bool] = []
"""Whether the bars of the bench hold; empty before its end."""


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _app(config: DictConfig) -> None:
    on_cpu = device_named(str(config.device)).type == "cpu"
    with cap_memory() if on_cpu else nullcontext():
        held = hydra.utils.get_method(config.bench)(config)
    if held:
        _held.append(True)


if __name__ == "__main__":
    main()
