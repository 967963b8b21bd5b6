"""Files to tensors by name.

`.safetensors`, `.npz` (named arrays), `.npy`, `.pk`, `.pkl` (pickled arrays, read without running them), TensorFlow's
`<prefix>.index` with `<prefix>.data-...` (either name, or the prefix alone), and anything else as written by
`torch.save`, tensors and plain values only.
"""

import pickle
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdepth_fast.weights.numpy_pickle import read_numpy_pickle
from mdepth_fast.weights.tf_bundle import read_tf_bundle

__all__ = ["read_content", "read_pickled_module"]


def read_content(path: Path) -> dict[str, Any]:
    """What a file holds, by key. FileNotFoundError, or ValueError that names a file that cannot be read."""
    index = Path(re.sub(r"\.(data-\d{5}-of-\d{5}|meta)$", "", str(path)) + ".index")
    if index.is_file() and (index.stem != path.name or not path.is_file()):
        path = index  # another file of a TensorFlow checkpoint, or the prefix of their names
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    reader = _READERS.get(path.suffix, _read_torch)
    try:
        content = reader(path)
    except (
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if unknown := re.search(r"(?i)unsupported (?:global: )?global (\S+)", str(error)):
            reason = (
                f"it holds Python objects, such as {unknown[1]}; `mdepth-fast convert --trust-pickle` takes the "
                "tensors out of a pickled module, in a process of its own; a pickle can run code, so trust its source"
            )
        raise ValueError(f"{path}: damaged, truncated or not a checkpoint of plain tensors ({reason})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return dict(content)


def read_pickled_module(path: Path) -> dict[str, Any]:
    """The tensors of a file in which a whole module is pickled, read by unpickle.py in a process of its own.

    FileNotFoundError, or ValueError that names a file that cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "tensors.safetensors"
        # -I: neither the current folder nor PYTHON* variables decide what the process imports.
        command = [sys.executable, "-I", str(Path(__file__).with_name("unpickle.py")), str(path), str(target)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise ValueError(f"{path}: no module could be read from it ({reason})")
        return {key: value.clone() for key, value in _read_safetensors(target).items()}


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ImportError(f'{path}: needs safetensors: pip install "mdepth-fast[train]"') from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_npz(path: Path) -> Any:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("one array, not an archive of named ones")
    with archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


_READERS: dict[str, Callable[[Path], Any]] = {
    ".index": read_tf_bundle,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".npy": read_numpy_pickle,
    ".pk": read_numpy_pickle,
    ".pkl": read_numpy_pickle,
}
