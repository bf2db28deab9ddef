"""Compile all variants of the kernels for GPUs that need not be here.

`python -m harness.kernels.compile [CAPABILITY ...]` prints what each variant takes of a device, and
ends with 1 if one does not compile or takes more than there is. The capabilities are 80, 90 and 100
unless others are given. Triton keeps what it has compiled on disk.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from harness.kernels import flash, products, race

CAPABILITIES = (80, 90, 100)
SHARED_BYTES = {80: 101_376, 90: 232_448, 100: 232_448}
"""Shared memory of a program at most; of 8.x devices those of 8.6 and 8.9 have the least."""
REGISTERS = 65_536
"""Registers of a multiprocessor, which a program's threads share."""
THREADS_PER_WARP = 32
MOST_SPILLED_BYTES = 2048
"""Local memory of a thread at most, what signals of 32,768 tokens take in float64."""

DTYPES = (torch.bfloat16, torch.float32)
"""Types that configured models compute in."""
HEAD_WIDTHS = (32, 64, 128)
"""Padded widths of configured models' heads; others are compiled where they are met."""
VOCABULARIES = (512, 8192, 16384, 32768)
"""Padded vocabularies of configured models."""

POINTED = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel with its constants, the types of its arguments, and how it is launched.

    Arguments without a type are 32-bit integers. `aligned` are those that multiples of 16 are
    passed for, besides all pointers.
    """

    name: str
    kernel: Any
    constants: Mapping[str, Any]
    types: Mapping[str, Any]
    options: Mapping[str, Any]
    aligned: tuple[str, ...] = ()


class Taken(NamedTuple):
    """What a compiled variant takes of a device.

    Shared memory of a program in bytes, its warps, registers of a thread, and bytes of local memory
    that a thread spills to; the last two are None where the tool that reads them is missing.
    """

    shared_bytes: int
    warps: int
    registers: int | None
    spilled_bytes: int | None


# ------------------------------------------------------------------ all variants


def list_variants() -> Iterator[Variant]:
    """List what configured models need: what their heads, vocabularies and types lead to."""
    for dtype in DTYPES:
        for width in HEAD_WIDTHS:
            yield from _attention_variants(dtype, width)
        yield from _product_variants(dtype)
    for vocab in VOCABULARIES:
        yield from _draw_variants(vocab)


def _attention_variants(dtype: torch.dtype, width: int) -> Iterator[Variant]:
    strides = {
        "q_strides": ("i32",) * 3,
        "key_strides": ("i32",) * 3,
        "value_strides": ("i32",) * 3,
        "pos_strides": ("i32",) * 2,
        "bias_strides": ("i32",) * 2,
        "seen_strides": ("i32",) * 3,
    }
    types = {
        **strides,
        **dict.fromkeys(("q_ptr", "key_ptr", "value_ptr", "bias_ptr", "out_ptr"), POINTED[dtype]),
        "pos_ptr": "*i64",
        "seen_ptr": "*u8",
        "partial_ptr": "*fp32",
        "scale_ptr": "*fp32",
        "score_scale": "fp32",
    }
    name = f"{_short(dtype)}, heads of {width}"
    for biased in (False, True):
        for masked in (False, True):
            constants = {
                "BIASED": biased,
                "MASKED": masked,
                "PRECISION": flash.precision_of(dtype),
                "WIDEN": False,
                "W": flash.QUERIES,
                "D": width,
                "KEYS": flash.KEYS,
                "BLOCKS": flash.BLOCKS,
            }
            marks = " biased" * biased + " masked" * masked
            yield Variant(
                f"attend_part, {name}{marks}",
                flash.attend_part_kernel,
                constants,
                types,
                {
                    "num_warps": flash.warps_of(dtype, width),
                    "num_stages": 2,
                    "enable_fp_fusion": True,
                },
                ("q_strides", "key_strides", "value_strides"),
            )
    constants = {"D": width, "PART": flash.KEYS * flash.BLOCKS}
    options = {"num_warps": 1, "enable_fp_fusion": True}
    yield Variant(f"join_parts, {name}", flash.join_parts_kernel, constants, types, options)


def _product_variants(dtype: torch.dtype) -> Iterator[Variant]:
    given = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "out_ptr"), POINTED[dtype])
    for rows in (1, products.FEW + 1, products.SOME + 1):
        tiling = products.tiling_of(rows, dtype)
        for in_parts in (False, True) if tiling.is_split else (False,):
            for biased in (False,) if in_parts else (False, True):
                constants = {
                    "BIASED": biased,
                    "PRECISION": flash.precision_of(dtype),
                    "WIDEN": False,
                    "R": tiling.rows,
                    "N": tiling.outer,
                    "K": tiling.inner,
                }
                marks = " biased" * biased + " in parts" * in_parts
                yield Variant(
                    f"multiply, {_short(dtype)}, {rows} rows or more{marks}",
                    products.multiply_kernel,
                    constants,
                    {**given, "out_ptr": "*fp32"} if in_parts else given,
                    {
                        "num_warps": tiling.warps,
                        "num_stages": tiling.stages,
                        "enable_fp_fusion": True,
                    },
                    ("x_stride", "weight_stride", "inner"),
                )
    for biased in (False, True):
        yield Variant(
            f"join, {_short(dtype)}{' biased' * biased}",
            products.join_kernel,
            {"BIASED": biased, "N": products.JOIN_BLOCK},
            {**given, "part_ptr": "*fp32"},
            {"num_warps": 4, "enable_fp_fusion": False},
        )


def _draw_variants(vocab: int) -> Iterator[Variant]:
    launch = race.launch_options(vocab)
    padded = launch["V"]
    options = {"num_warps": launch["num_warps"], "enable_fp_fusion": False}
    types = {
        **dict.fromkeys(("logits_ptr", "null_ptr", "text_ptr", "scale_ptr"), "*fp32"),
        **dict.fromkeys(("row_ptr", "key_ptr", "place_ptr", "token_ptr"), "*i64"),
        **dict.fromkeys(("log_prob_ptr", "out_ptr"), "*fp64"),
        "temperature": "fp32",
    }
    modes = (("", False, False), (" top-k", False, True), (" greedy", True, False))
    for branches in (1, 2):
        for mark, greedy, top in modes:
            constants = {"BRANCHES": branches, "GREEDY": greedy, "TOP": top, "V": padded}
            yield Variant(
                f"draw, {vocab} tokens, {branches} branches{mark}",
                race.draw_kernel,
                constants,
                types,
                options,
            )
    yield Variant(
        f"measure_signals, {vocab} tokens",
        race.measure_signals_kernel,
        {"V": padded},
        types,
        {**options, "enable_fp_fusion": True},
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ------------------------------------------------------------------ compiling one


def compile_variant(variant: Variant, capability: int) -> Taken:
    """Compile a variant for a compute capability, such as 90. Raises what the compilers raise."""
    names = variant.kernel.arg_names
    signature = {}
    aligned: dict[tuple[int, ...], Any] = {}
    for place, name in enumerate(names):
        kind = "constexpr" if name in variant.constants else variant.types.get(name, "i32")
        signature[name] = kind
        if isinstance(kind, tuple) and name in variant.aligned:
            for axis in range(len(kind)):
                aligned[place, axis] = [["tt.divisibility", 16]]
        elif kind[0] == "*" or name in variant.aligned:
            aligned[(place,)] = [["tt.divisibility", 16]]
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", capability, THREADS_PER_WARP)
    made = triton.compile(source, target=target, options=dict(variant.options))
    registers, spilled = _read_usage(made.asm["cubin"])
    return Taken(made.metadata.shared, made.metadata.num_warps, registers, spilled)


def _read_usage(cubin: bytes) -> tuple[int | None, int | None]:
    """Read registers and local memory of a thread from machine code."""
    tool = Path(triton.backends.nvidia.__path__[0]) / "bin" / "cuobjdump"
    if not tool.exists():
        return None, None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", done.stdout + done.stderr)
    if found is None:
        return None, None
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def find_excess(taken: Taken, capability: int) -> str:
    """Say of what a variant takes more than a device has; an empty string if of nothing."""
    most = SHARED_BYTES[capability]
    if taken.shared_bytes > most:
        return f"{taken.shared_bytes} bytes of shared memory, there are {most}"
    if taken.registers is not None:
        registers = taken.registers * taken.warps * THREADS_PER_WARP
        if registers > REGISTERS:
            return f"{registers} registers, there are {REGISTERS}"
    if taken.spilled_bytes is not None and taken.spilled_bytes > MOST_SPILLED_BYTES:
        return f"{taken.spilled_bytes} bytes spilled by a thread, {MOST_SPILLED_BYTES} are allowed"
    return ""


# ------------------------------------------------------------------ the command


def compile_all(capabilities: tuple[int, ...], report: Callable[[str], None] = print) -> list[str]:
    """Compile all variants, report what each takes, and return what is wrong, a line each."""
    wrong = []
    for capability in capabilities:
        for variant in list_variants():
            name = f"sm_{capability}  {variant.name}"
            try:
                taken = compile_variant(variant, capability)
            except Exception as error:  # whatever the compilers raise
                wrong.append(f"{name}: {type(error).__name__}: {error}")
                continue
            report(
                f"{name:<64} {taken.shared_bytes:>7} B shared  {taken.warps:>2} warps  "
                f"{taken.registers} registers  {taken.spilled_bytes} B spilled"
            )
            if excess := find_excess(taken, capability):
                wrong.append(f"{name}: {excess}")
    return wrong


def main() -> None:
    """Compile for the capabilities of the command line."""
    known = ", ".join(map(str, SHARED_BYTES))
    parser = argparse.ArgumentParser(
        prog="python -m harness.kernels.compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "capability",
        nargs="*",
        type=int,
        help=f"compute capability times ten, of {known} (default: all)",
    )
    asked = tuple(parser.parse_args().capability) or CAPABILITIES
    if unknown := set(asked) - set(SHARED_BYTES):
        parser.error(f"compute capability {min(unknown)}: choose from {known}")
    wrong = compile_all(asked)
    print("\n".join(wrong) if wrong else "all variants compile and fit")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
