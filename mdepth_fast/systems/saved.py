"""Reading the files that training writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mdepth_fast.weights.read import read_torch

__all__ = ["first_not_finite", "read_checkpoint"]


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a file of `torch.save` that contains only tensors and plain values, see `weights.read.read_torch`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a checkpoint; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    values = read_torch(path, map_location)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a dictionary, got {type(values).__name__}")
    return values


def first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity, or None. It waits for the device once."""
    named = [(name, value) for name, value in tensors.items() if value.is_floating_point() or value.is_complex()]
    if not named:
        return None
    # A sum is finite only if all are; that of finite numbers may overflow, so what is not is looked at itself.
    sums = torch.stack([value.detach().sum(dtype=torch.float32) for _, value in named]).cpu()
    for index in (~sums.isfinite()).nonzero()[:, 0].tolist():
        if not named[index][1].isfinite().all():
            return named[index][0]
    return None
