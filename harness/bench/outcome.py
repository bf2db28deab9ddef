"""What a bench leaves: `results/bench/<name>-<model>.csv`, a plot beside it, and a table on the
terminal.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from harness.engine.meter import describe
from harness.kernels import why_unused


class Outcome:
    """Rows of one bench, each with what is true of all: `about`, and the machine they were measured
    on.
    """

    def __init__(
        self, name: str, model: Any, heading: str, about: Mapping[str, object] | None = None
    ) -> None:
        self.path = Path("results/bench") / f"{name}-{model.name}-{model.device.type}.csv"
        self._shared = {**(about or {}), **machine(model.device)}
        self._rows: list[dict[str, Any]] = []
        print(heading)
        print(", ".join(str(value) for value in self._shared.values()), flush=True)

    def add(self, **values: Any) -> None:
        """One row; floats are written with four significant digits."""
        self._rows.append(
            {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
        )
        print("  ".join(f"{k} {v}" for k, v in self._rows[-1].items()), flush=True)

    def write(self, *, plot: tuple[str, str, str] | None = None) -> None:
        """Write the CSV, and a plot, if wanted, of (x, y) with a line for each value of the third
        column.
        """
        frame = pd.DataFrame([{**row, **self._shared} for row in self._rows])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(self.path, index=False, lineterminator="\n")
        if plot:
            self._plot(frame, *plot)
        print(f"{self.path}: {len(frame)} rows")

    def _plot(self, frame: pd.DataFrame, x: str, y: str, series: str) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
        for name, line in frame.groupby(series, sort=False):
            axes.plot(line[x], line[y], marker="o", markersize=4, label=str(name))
        sizes = sorted(set(frame[x]))
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(self.path.with_suffix(".svg"), metadata={"Date": None})
        pyplot.close(figure)


def machine(device: torch.device) -> dict[str, str]:
    """What the numbers belong to."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        capability = f"CUDA {torch.version.cuda}, capability {major}.{minor}"
    else:
        capability = str(torch.backends.cpu.get_cpu_capability())
    return {
        **describe(device),
        "capability": capability,
        "kernels": why_unused(device) or "Triton",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
