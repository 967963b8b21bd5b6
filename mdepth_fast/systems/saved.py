"""Reading the files that training writes."""

from pathlib import Path
from typing import Any

import torch

__all__ = ["read_checkpoint"]


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a file of `torch.save` that contains only tensors and plain values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, or not a checkpoint; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        values = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets: RuntimeError, EOFError, UnpicklingError ...
        raise ValueError(f"{path}: cannot be read as a checkpoint, it is truncated or of another kind") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a dictionary, got {type(values).__name__}")
    return values
