"""The format of `mdepth-fast convert`: a .safetensors file that says which model it is for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mdepth_fast.files import replacing
from mdepth_fast.weights.read import CHECKSUM, checksum, read_metadata

__all__ = ["converted_model", "is_resized", "write_converted"]


def write_converted(
    path: Path,
    name: str,
    options: Mapping[str, Any],
    state: Mapping[str, Tensor],
    source: str,
    *,
    resized: bool = False,
) -> None:
    """Writes a state dict with the name of its model and the options to create it with, for `create_converted`.

    `resized`: it is of a network that has other numbers of channels than these options give.
    """
    from safetensors.torch import save_file

    metadata = {"format": "pt", "mdepth_fast.model": name, "mdepth_fast.source": source}
    if resized:
        metadata["mdepth_fast.resized"] = "true"
    metadata["mdepth_fast.options"] = json.dumps(dict(options))
    tensors = {key: value.detach().clone().contiguous() for key, value in state.items()}
    metadata[CHECKSUM] = checksum(tensors, metadata)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def converted_model(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Name and options of the model that a file of `mdepth-fast convert` is for; (None, {}) for another file."""
    metadata = read_metadata(path)
    options = json.loads(metadata.get("mdepth_fast.options", "{}"))
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return metadata.get("mdepth_fast.model"), options


def is_resized(path: Path) -> bool:
    """Whether the network has other numbers of channels than the options of its file give."""
    return "mdepth_fast.resized" in read_metadata(path)
