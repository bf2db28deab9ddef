"""Run a conformance file: inputs, and what the reference's own functions returned."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.cases import run_cases
from benchmarks.pie_bench.annotations import remove_brackets
from benchmarks.pie_bench.layout import crop_box
from benchmarks.pie_bench.masks import decode_mask, select_part
from benchmarks.pie_bench.metrics import FACTORS, NO_VALUE, average, compare_part, score_cosine
from benchmarks.pie_bench.structure import measure_distance, prepare_input

Case = Mapping[str, Any]
PARTS: Mapping[str, Literal["whole", "unedit", "edit"]] = {
    "": "whole",
    "_unedit_part": "unedit",
    "_edit_part": "edit",
}
TOLERANCES = {
    "psnr": 2e-3,
    "mse": 2e-6,
    "ssim": 3e-4,
    "distance": 1e-5,
    "score": 1e-4,
    "mean": 1e-4,
    "points": 1e-2,
}
"""By the beginning of a field's name; all else must be equal."""
INPUT_TOLERANCE = 1e-2
"""Of the mean of a network's input, which has values of 0 to 1000."""


def conformance(path: Path | str) -> tuple[int, int, list[str]]:
    """Run the cases of a file; return passed, failed, and a message per failed case.

    Raises UserError naming the line of a malformed case.
    """
    return run_cases(Path(path), _run_case)


def _run_case(case: Case) -> Iterator[str]:
    kind = case["kind"]
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known are {', '.join(KINDS)}")
    expected = case["expected"]
    if "error" in expected:
        try:
            found = KINDS[kind](case)
        except ValueError:
            return
        yield f"{found}, expected a refusal ({expected['error']} in the reference)"
        return
    found = KINDS[kind](case)
    if kind == "pixels":
        cropped = {f"{name} cut": value for name, value in case["expected_ssim_cropped"].items()}
        expected = {**expected, **cropped}
    for name, wanted in expected.items():
        if not _agree(found[name], wanted, name):
            yield f"{name} is {found[name]!r}, expected {wanted!r}"


def _agree(found: Any, wanted: Any, name: str) -> bool:
    """Compare numbers within their tolerance, all else exactly."""
    if isinstance(wanted, dict):
        return all(_agree(found[key], value, key) for key, value in wanted.items())
    if isinstance(wanted, list):
        if len(found) != len(wanted):
            return False
        return all(_agree(a, b, name) for a, b in zip(found, wanted, strict=True))
    if isinstance(wanted, float) and isinstance(found, int | float):
        return math.isclose(found, wanted, rel_tol=0, abs_tol=_tolerance(name))
    return bool(found == wanted)


def _tolerance(name: str) -> float:
    return next((size for begin, size in TOLERANCES.items() if name.startswith(begin)), 0.0)


# --- kinds of case --------------------------------------------------------------------------------


def _mask(case: Case) -> dict[str, Any]:
    mask = decode_mask(case["rle"], *case["shape"])
    return {
        "ones": int(mask.sum()),
        "sha256": hashlib.sha256(mask.tobytes()).hexdigest(),
        "rows": ["".join(map(str, row)) for row in mask.tolist()],
    }


def _pixels(case: Case) -> dict[str, Any]:
    source = paint(case["source"])
    output = paint(case["output"])
    mask = decode_mask(case["mask"], *source.shape[:2])
    found: dict[str, Any] = {}
    for ending, part in PARTS.items():
        full = compare_part(source, output, mask, part, "full")
        cut = compare_part(source, output, mask, part, "cut")
        for name in ("psnr", "mse", "ssim"):
            found[f"{name}{ending}"] = NO_VALUE if full is None else _write(full[name])
        found[f"ssim{ending} cut"] = NO_VALUE if cut is None else cut["ssim"]
    return found


def _write(value: float) -> float | str:
    return "inf" if math.isinf(value) else value


def _masked_image(case: Case) -> dict[str, Any]:
    source = paint(case["source"])
    shown = select_part(source, decode_mask(case["mask"], *source.shape[:2]), case["part"])
    return {
        "sum": int(shown.sum(dtype=np.int64)),
        "sha256": hashlib.sha256(np.uint8(shown).tobytes()).hexdigest(),
    }


def _key_distance(case: Case) -> dict[str, Any]:
    import torch

    keys = torch.tensor(case["keys_source"], dtype=torch.float32)
    others = torch.tensor(case["keys_output"], dtype=torch.float32)
    return {"distance": measure_distance(keys, others)}


def _structure_input(case: Case) -> dict[str, Any]:
    found = {}
    for name in ("antialias_off", "antialias_on"):
        input_3HW = prepare_input(paint(case["source"]), antialias=name == "antialias_on")
        wanted = case["expected"][name]
        mean = float(input_3HW.double().mean())
        is_near = abs(mean - wanted["mean"]) <= INPUT_TOLERANCE
        points = [[*place, float(input_3HW[tuple(place)])] for *place, _ in wanted["points"]]
        found[name] = {
            "shape": list(input_3HW.shape),
            "mean": wanted["mean"] if is_near else mean,
            "points": points,
        }
    return found


def _clip_score(case: Case) -> dict[str, Any]:
    image_D = np.asarray(case["image_features"], dtype=np.float64)
    text_D = np.asarray(case["text_features"], dtype=np.float64)
    cosine = image_D @ text_D / (np.linalg.norm(image_D) * np.linalg.norm(text_D))
    return {"score": score_cosine(float(cosine))}


def _aggregate(case: Case) -> dict[str, Any]:
    found = {}
    for name in case["expected"]:
        values = [None if row[name] == NO_VALUE else row[name] for row in case["rows"]]
        mean, number = average(values)
        found[name] = {"mean": mean * FACTORS[name], "n": number}
    return found


def _crop(case: Case) -> dict[str, Any]:
    return {"box": list(crop_box(case["width"], case["height"]))}


def _prompt(case: Case) -> dict[str, Any]:
    return {"text": remove_brackets(case["text"])}


KINDS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "mask": _mask,
    "pixels": _pixels,
    "masked_image": _masked_image,
    "key_distance": _key_distance,
    "structure_input": _structure_input,
    "clip_score": _clip_score,
    "aggregate": _aggregate,
    "crop": _crop,
    "prompt": _prompt,
}
"""What our code answers to a case, by its kind."""


# --- pictures of cases ----------------------------------------------------------------------------


def paint(described: Mapping[str, Any]) -> np.ndarray:
    """Paint a case's picture, uint8 [H, W, 3]: a base, rectangles in order, then an offset."""
    height, width = described["size"]
    pixels = _paint_base(described["base"], height, width)
    for left, top, right, bottom, color in described["rects"]:
        pixels[top:bottom, left:right] = color
    pixels += described.get("add", 0)
    return pixels.clip(0, 255).astype(np.uint8)


def _paint_base(base: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Paint a base, int64 [H, W, 3]. Raises ValueError for an unknown one."""
    y, x, c = np.mgrid[:height, :width, :3].astype(np.int64)
    if base[0] == "constant":
        return np.broadcast_to(np.asarray(base[1], np.int64), (height, width, 3)).copy()
    if base[0] == "gradient":
        by_x, by_y, by_channel, offset = base[1:]
        return (by_x * x + by_y * y + by_channel * c + offset) % 256
    if base[0] == "noise":
        number = (y * width + x) * 3 + c
        value = (number * 2654435761 + base[1] * 40503) % (1 << 32)
        value = ((value ^ (value >> 15)) * 2246822519) % (1 << 32)
        return (value >> 13) % 256
    raise ValueError(f"unknown base {base[0]!r}")
