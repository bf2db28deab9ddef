"""Read the tensors of a TorchScript archive as data; nothing of the archive is run.

`torch.jit.load` would run the archive's own code, and torch's weights-only reader refuses such a
file. The archive is a zip file: `data.pkl` is a pickle of the module, whose classes are named
`__torch__...`, and `data/KEY` are the bytes of its storages. This reader lets the pickle make empty
objects in the place of these classes, and tensors over the stored bytes, and refuses all else.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.records import UserError, one_line

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Types of stored numbers, by torch's names for them."""

_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """Read parameters and buffers by their dotted names, in the types that they are stored in.

    Raises UserError for a file that is damaged, is no archive of a module, or refers to anything
    but modules and tensors.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            module = _Reader(archive, file).read_module()
        if not isinstance(module, _Module):
            found = type(module).__name__
            raise UserError(f"{file} holds a {found} instead of a TorchScript module")
        return dict(_list_tensors(module, "", ()))
    except UserError:
        raise
    except (
        *(OSError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError),
        *(ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError),
        *(struct.error, OverflowError, MemoryError),
    ) as error:
        reason = one_line(error)[:120] or type(error).__name__
        raise UserError(
            f"{file} cannot be read as a TorchScript archive ({reason}): download it again"
        ) from None


class _Module:
    """Stands for a class of the archive: it takes attributes, and does nothing."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _list_tensors(
    module: _Module, prefix: str, parents: Sequence[_Module]
) -> Iterator[tuple[str, Tensor]]:
    """List the tensors of a module and of those in it, with their dotted names."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module) and not any(value is one for one in parents):
            yield from _list_tensors(value, f"{prefix}{name}.", (*parents, module, value))


class _Reader(pickle.Unpickler):
    """Reads an archive's `data.pkl`, with modules and tensors only."""

    def __init__(self, archive: zipfile.ZipFile, file: Path) -> None:
        self._archive = archive
        self._file = file
        self._root = _find_root(archive, file)
        self._storages: dict[str, Tensor] = {}
        super().__init__(BytesIO(archive.read(f"{self._root}data.pkl")))

    def read_module(self) -> object:
        """Read the object that the archive holds.

        Raises UserError for numbers that are stored with their largest byte first.
        """
        order = f"{self._root}byteorder"
        if order in self._archive.namelist() and self._archive.read(order) != b"little":
            raise UserError(f"{self._file} stores numbers in another byte order: save it again")
        return self.load()

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        }
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in STORAGES:
            return name
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        if module == "torch.jit._pickle" and name == "restore_type_tag":
            return _without_tag
        if (module, name) in allowed:
            return allowed[module, name]
        raise UserError(
            f"{self._file} refers to {module}.{name}, which could run code: "
            "only modules and tensors of a TorchScript archive are read"
        )

    def persistent_load(self, pid: object) -> Tensor:
        """Return a storage, as a flat tensor over the bytes of the archive."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        _, kind, key, _, length = pid
        if key not in self._storages:
            self._storages[key] = self._read_storage(str(kind), str(key), int(length))
        return self._storages[key]

    def _read_storage(self, kind: str, key: str, length: int) -> Tensor:
        dtype = STORAGES[kind]
        stored = bytearray(self._archive.read(f"{self._root}data/{key}"))
        if len(stored) != length * dtype.itemsize:
            raise pickle.UnpicklingError(
                f"data/{key} has {len(stored)} bytes, not {length} numbers of {kind}"
            )
        if not length:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(stored, dtype=dtype)


def _find_root(archive: zipfile.ZipFile, file: Path) -> str:
    """The folder of the archive that all its files are in, with its slash."""
    found = [name for name in archive.namelist() if name.count("/") == 1]
    roots = [name.removesuffix("data.pkl") for name in found if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError(f"{file} has no data.pkl of a module: it is no TorchScript archive")
    return roots[0]


def _rebuild_tensor(
    storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object
) -> Tensor:
    """Lay a tensor over a storage; what follows is about gradients."""
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _without_tag(value: object, _type: object) -> object:
    """The value that TorchScript notes a type of."""
    return value
