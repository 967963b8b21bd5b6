"""NumPy arrays in pickles (`.npy` of an object, `.pk`, `.pkl`; Python 2's too), read without running what they name."""

import io
import itertools
import os
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["RefusedPickle", "read_numpy_pickle"]


class RefusedPickle(ValueError):
    """A pickle names what is not read from pickles; nothing of it has run."""

    def __init__(self, path: str | os.PathLike[str], name: str, way: str = "") -> None:
        super().__init__(
            f"{path}: refused: it holds Python objects, such as {name}; {way}a pickle can run code, so trust its source"
        )


def read_numpy_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary, list or tuple in `path` with a tensor for every array; a sequence has the keys "0", "1", ...

    Only arrays of plain numbers or objects, numbers, strings and containers of these are read, and no global of a
    pickle is imported: what it names is looked up in a table.
    ValueError names the file and what is damaged, of another type or refused.
    """
    path = Path(path)
    raw = path.read_bytes()
    try:
        stream = io.BytesIO(raw)
        if raw[:6] == b"\x93NUMPY":
            version = np.lib.format.read_magic(stream)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else _read_header_2_0
            dtype = read_header(stream)[2]
            if dtype.kind != "O":
                raise ValueError(f"expected a pickled dictionary, got one array of {dtype}")
        # Every entry takes a byte at least, unless it stands for many by reference.
        content = _plain(_Unpickler(stream, encoding="latin1").load(), itertools.count(), len(raw))
    except _Foreign as error:
        raise RefusedPickle(path, str(error)) from error
    except Exception as error:  # a pickle is a program: damaged, it can fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: damaged, truncated or not a pickle of NumPy arrays ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary or a list of arrays, got {type(content).__name__}")
    return content


def _read_header_2_0(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_2_0(stream)


class _DType:
    """`numpy.dtype(code, align, copy)` and the state that follows it. Numbers and objects only."""

    def __init__(self, code: str, *_: Any) -> None:
        if code[:1] not in ("b", "i", "u", "f", "O"):
            raise pickle.UnpicklingError(f"refused: an array of dtype {code!r}")
        self.dtype = np.dtype(object if code[0] == "O" else code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subdtype, names, fields, *_ = state
        if subdtype is not None or names is not None or fields is not None:
            raise pickle.UnpicklingError("refused: an array of records")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array on its way: NumPy's own `__setstate__` would trust the file."""

    value: Any

    def __init__(self, *_: Any) -> None:
        self.value = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, described, fortran, data = state
        self.fill(shape, described.dtype, "F" if fortran else "C", data)

    def fill(self, shape: tuple[int, ...], dtype: np.dtype, order: Any, data: Any) -> "_Array":
        if dtype.kind == "O":
            if not isinstance(data, list) or len(shape) > 1 or len(data) != prod(shape):
                raise pickle.UnpicklingError(f"refused: objects in an array of shape {shape}")
            self.value = data if shape else data[0]
            return self
        numbers = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype)
        if numbers.size != prod(shape):
            raise pickle.UnpicklingError(f"{numbers.size} numbers in an array of shape {shape}")
        self.value = np.array(numbers.reshape(shape, order=order), dtype.newbyteorder("="), order="C")
        return self


def _scalar(described: _DType, data: Any) -> _Array:
    return _Array().fill((), described.dtype, "C", data)


def _from_buffer(data: Any, described: _DType, shape: tuple[int, ...], order: str) -> _Array:
    return _Array().fill(shape, described.dtype, order, data)


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into pickles that Python 2 can read."""
    return text.encode("latin1")


_GLOBALS = {
    ("numpy", "ndarray"): None,  # an argument of _reconstruct, never called
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Foreign(Exception):
    """The name of something that is not in the table."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise _Foreign(f"{module}.{name}")
        return _GLOBALS[module, name]


def _plain(value: Any, visited: Iterator[int], most: int) -> Any:
    if next(visited) > most:
        raise pickle.UnpicklingError("refused: it unfolds to more entries than it has bytes")
    if isinstance(value, _Array):
        value = value.value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {str(key): _plain(entry, visited, most) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return {str(n): _plain(entry, visited, most) for n, entry in enumerate(value)}
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise pickle.UnpicklingError(f"refused: a {type(value).__name__}")
