"""Files to tensors by name.

`.safetensors`, `.npz` (named arrays), `.npy`, `.pk`, `.pkl` (pickled arrays, read without running them), TensorFlow's
`<prefix>.index` with `<prefix>.data-...` (either name, or the prefix alone), and anything else as written by
`torch.save`, tensors and plain values only.
"""

import io
import json
import math
import pickletools
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from mdepth_fast.weights.numpy_pickle import RefusedPickle, read_numpy_pickle
from mdepth_fast.weights.tf_bundle import read_tf_bundle

__all__ = [
    "CHECKSUM",
    "check_archive",
    "check_expansion",
    "checksum",
    "read_content",
    "read_metadata",
    "read_pickled_module",
    "read_torch",
]

CHECKSUM = "mdepth_fast.checksum"
"""Of the metadata of a .safetensors file: the `checksum` of all the rest."""

MAX_ENTRIES, MAX_DEPTH = 10**5, 50  # of dictionaries in one another

MAX_EXPANSION, FREE_EXPANSION = 100, 2**28
"""A file may unpack to so many times its size, or to so many bytes: weights and depth hardly shrink, bombs do."""


def read_content(path: Path) -> dict[str, Any]:
    """What a file holds, by key. FileNotFoundError, or ValueError that names a file that cannot be read."""
    index = Path(re.sub(r"\.(data-\d{5}-of-\d{5}|meta)$", "", str(path)) + ".index")
    if index.is_file() and (index.stem != path.name or not path.is_file()):
        path = index  # another file of a TensorFlow checkpoint, or the prefix of their names
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    content = _read(path, _READERS.get(path.suffix, _load_torch))
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return dict(content)


def read_pickled_module(path: Path) -> dict[str, Any]:
    """The tensors of a file in which a whole module is pickled, read by unpickle.py in a process of its own.

    FileNotFoundError, or ValueError that names a file that cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if _is_archive(path):
        try:
            check_archive(path)
        except Exception as error:
            raise ValueError(f"{path}: no module could be read from it ({error})") from error
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "tensors.safetensors"
        # -I: neither the current folder nor PYTHON* variables decide what the process imports.
        command = [sys.executable, "-I", str(Path(__file__).with_name("unpickle.py")), str(path), str(target)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise ValueError(f"{path}: no module could be read from it ({reason})")
        return {key: value.clone() for key, value in _load_safetensors(target).items()}


def read_torch(path: Path, map_location: Any = "cpu") -> Any:
    """What `torch.save` wrote, tensors and plain values alone. Nothing that a pickle names is imported or called.

    An archive of PyTorch 1.6 or later has a checksum of every tensor, which `torch.load` does not look at: here they
    must fit. ValueError names the file and what is wrong with it, or the first object that it may not hold.
    """
    return _read(path, lambda path: _load_torch(path, map_location))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; ValueError names a file that cannot be read."""
    return dict(_read(path, _load_metadata))


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A CRC-32 of names, dtypes, shapes, metadata and numbers, which stand for themselves in sums of 4 KiB each.

    The sums make it as fast as memory, and no single bit can change without changing its sum.
    """
    rest = sorted((key, value) for key, value in metadata.items() if key != CHECKSUM)
    value = zlib.crc32(json.dumps(rest).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        content = tensor.reshape(-1).view(torch.uint8)
        whole = content.numel() // 4096 * 4096
        sums = content[:whole].view(torch.int64).view(-1, 512).sum(1)
        value = zlib.crc32(content[whole:].numpy().data, zlib.crc32(sums.numpy().data, value))
    return f"{value:08x}"


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (FileNotFoundError, PermissionError, ImportError, RefusedPickle):
        raise
    except Exception as error:  # a damaged file can fail in any way that its reader can
        if unknown := re.search(r"(?i)unsupported (?:global: )?global (\S+)", str(error)):
            raise RefusedPickle(path, unknown[1], _TRUST) from error
        if "pickl" in type(error).__name__.lower() and (name := _first_global(path)):
            raise RefusedPickle(path, name, _TRUST) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: damaged, truncated or not a checkpoint of plain tensors ({reason})") from error


_TRUST = "`mdepth-fast convert --trust-pickle` takes the tensors out of a pickled module, in a process of its own; "


def _load_torch(path: Path, map_location: Any = "cpu") -> Any:
    if _is_archive(path):
        check_archive(path)
    content = torch.load(path, map_location=map_location, weights_only=True)
    _check_nesting(content)
    return content


def _check_nesting(content: Any) -> None:
    """ValueError for dictionaries that lie in themselves, or in one another so often that reading them never ends."""
    left, pending = MAX_ENTRIES, [(content, 0)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, Mapping):
            left -= len(value)
            if left < 0 or depth > MAX_DEPTH:
                raise ValueError("refused: dictionaries in dictionaries without end")
            pending += [(one, depth + 1) for one in value.values()]


def _is_archive(path: Path) -> bool:
    """As `torch.load` tells them apart."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_expansion(path: Path, unpacked: int) -> None:
    """ValueError for a file whose content takes far more memory than the file has bytes."""
    if unpacked > max(MAX_EXPANSION * path.stat().st_size, FREE_EXPANSION):
        raise ValueError(f"refused: it unpacks to {unpacked} bytes, over {MAX_EXPANSION} times its size")


def check_archive(path: Path, checksums: bool = True) -> None:
    """An error for a zip archive that unpacks to far more than it holds, or a member whose CRC-32 does not fit."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_expansion(path, sum(member.file_size for member in members))
        if checksums:
            with ThreadPoolExecutor(min(4, torch.get_num_threads())) as pool:
                list(pool.map(lambda member: _check_member(archive, member), members))


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with archive.open(member) as file:
        while file.read(2**20):
            pass


def _first_global(path: Path) -> str | None:
    """The first name in a pickle of `torch.save` that is neither PyTorch's nor a container's; nothing is run."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                return _foreign(io.BytesIO(archive.read(member)))
        with path.open("rb") as file:  # three pickles stand before the one with the tensors
            return next((name for _ in range(4) if (name := _foreign(file))), None)
    except Exception:  # damaged: there is no name to tell
        return None


# Modules that a message need not name; what is read is decided elsewhere.
_HARMLESS = {"collections", "_codecs", "torch", "torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter"}


def _foreign(file: IO[bytes]) -> str | None:
    words: list[str] = []
    memo: dict[int, str] = {}
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            words = str(argument).split(" ", 1)
        elif isinstance(argument, str):
            words = [*words[-1:], argument]
        elif code.name in ("BINGET", "LONG_BINGET"):
            words = [*words[-1:], memo.get(argument or 0, "")]
        elif code.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else argument] = words[-1] if words else ""
        named = code.name in ("GLOBAL", "INST", "STACK_GLOBAL")
        if named and words[0] not in _HARMLESS and not words[0].startswith("numpy"):
            return ".".join(words)
    return None


def _load_safetensors(path: Path) -> Any:
    metadata = _load_metadata(path)
    from safetensors.torch import load_file

    tensors = load_file(path)
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata):
        raise ValueError("its checksum does not fit")
    return tensors


def _load_metadata(path: Path) -> dict[str, str]:
    try:
        from safetensors import safe_open
    except ModuleNotFoundError as error:
        raise ImportError(f'{path}: needs safetensors: pip install "mdepth-fast[train]"') from error
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _load_npz(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise ValueError("not an archive of named arrays")
    check_archive(path, checksums=False)
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy"): _array(path, archive.read(name)) for name in archive.namelist()}


def _array(path: Path, content: bytes) -> Tensor:
    """An array in NumPy's format, which says as many numbers as there are."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    if dtype.hasobject:
        raise RefusedPickle(path, _foreign(stream) or "an array of objects")
    if math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"{len(content) - stream.tell()} bytes for an array {shape} of {dtype}")
    stream.seek(0)
    return torch.from_numpy(np.lib.format.read_array(stream, allow_pickle=False))


_READERS: dict[str, Callable[[Path], Any]] = {
    ".index": read_tf_bundle,
    ".safetensors": _load_safetensors,
    ".npz": _load_npz,
    ".npy": read_numpy_pickle,
    ".pk": read_numpy_pickle,
    ".pkl": read_numpy_pickle,
}
