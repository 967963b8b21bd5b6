"""From what a file holds to the state dict in it: wrappers taken off, every key and shape as expected."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["CLASSIFIER", "COUNTER", "METADATA", "matched", "unwrapped"]

CLASSIFIER = {"fc.weight", "fc.bias", "encoder.fc.weight", "encoder.fc.bias"}  # stored with a ResNet, never used
COUNTER = "num_batches_tracked"  # of batch norms; none in files before PyTorch 0.4.1, and nothing computed needs it
METADATA = {"height", "width", "use_stereo"}  # stored in Monodepth2's encoder.pth beside the tensors


def unwrapped(content: Mapping[str, Any], prefix: str | None) -> Mapping[str, Any]:
    """The tensors in {"model": ...}, {"state_dict": ...}, under "module." of data-parallel training or a `prefix`."""
    while inner := next(
        (content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None
    ):
        content = inner
    for start in (prefix, "module."):
        own = {key.removeprefix(start): value for key, value in content.items() if start and key.startswith(start)}
        # Of a Lightning checkpoint one net is taken; "module." is a wrapper only where every key has it.
        if own and (start == prefix or len(own) == len(content)):
            content = own
    return content


def matched(
    content: Mapping[str, Any], expected: Mapping[str, Tensor], path: Path, hint: Callable[[], str] | None = None
) -> dict[str, Tensor]:
    """`content` if it holds exactly the tensors of `expected`, else one ValueError that names `path`."""
    counters = (key for key in expected if key.endswith(COUNTER))
    content = {key: torch.zeros((), dtype=torch.int64) for key in counters} | dict(content)
    problems = []
    for what, keys in (("missing", expected.keys() - content.keys()), ("unexpected", content.keys() - expected.keys())):
        if keys:
            names = ", ".join(sorted(keys)[:10])
            problems.append(f"{len(keys)} keys {what} ({names}{', ...' if len(keys) > 10 else ''})")
    for key in sorted(expected.keys() & content.keys()):
        shape = tuple(content[key].shape) if isinstance(content[key], Tensor) else type(content[key])
        if shape != tuple(expected[key].shape):
            problems.append(f"{key}: expected shape {tuple(expected[key].shape)}, got {shape}")
    if problems:
        text = f"{path}: does not fit the model: {'; '.join(problems[:4])}"
        raise ValueError(f"{text}; {hint()}" if hint else text)
    return content
