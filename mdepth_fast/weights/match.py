"""From what a file holds to the state dict in it: wrappers taken off, every key and shape as expected."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["CLASSIFIER", "COUNTER", "METADATA", "best_fit", "matched", "overlap", "peeled"]

CLASSIFIER = {"fc.weight", "fc.bias", "encoder.fc.weight", "encoder.fc.bias"}  # stored with a ResNet, never used
COUNTER = "num_batches_tracked"  # of batch norms; none in files before PyTorch 0.4.1, and nothing computed needs it
METADATA = {"height", "width", "use_stereo"}  # stored in Monodepth2's encoder.pth beside the tensors


_INSIDE = ("model", "state_dict", "model_state_dict", "net", "network")
_WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")


def peeled(content: Mapping[str, Any], prefix: str | None = None) -> Iterator[Mapping[str, Any]]:
    """The tensors of a file without what has been put around them, in the order in which they are to be tried.

    Dictionaries such as {"model": ...} and {"state_dict": ...} are opened, and the names that data-parallel training
    ("module.") and `torch.compile` ("_orig_mod.") insert are taken out. Of a Lightning checkpoint one net is taken,
    that of `prefix`. Then follows the same without one, two, ... of the names that begin all keys.
    """
    while inner := next((content[key] for key in _INSIDE if isinstance(content.get(key), Mapping)), None):
        content = {key: content[key] for key in METADATA & content.keys()} | dict(inner)
    content = {_WRAPPERS.sub(r"\1", str(key)): value for key, value in content.items()}
    while True:
        if prefix and any(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
        yield content
        starts = {key.partition(".")[::2] for key, value in content.items() if isinstance(value, Tensor)}
        if len({start for start, _ in starts}) != 1 or not all(rest for _, rest in starts):
            return
        start = f"{next(iter(starts))[0]}."
        content = {key.removeprefix(start): value for key, value in content.items()}


def overlap(given: Mapping[str, Any], own: Mapping[str, Any]) -> float:
    """The share of tensors, by name and shape, that both have; 1 for a full fit."""
    shapes, others = (
        {key: tuple(getattr(value, "shape", ())) for key, value in side.items() if not key.endswith(COUNTER)}
        for side in (given, own)
    )
    common = sum(key in others and others[key] == shape for key, shape in shapes.items())
    return 2 * common / max(1, len(shapes) + len(others))


def best_fit(
    content: Mapping[str, Any],
    own: Mapping[str, Any],
    prefix: str | None = None,
    translate: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda content: content,
) -> tuple[Mapping[str, Any], bool]:
    """The tensors of a file, peeled and translated as fits `own` best, and whether anything had to be translated."""
    found: list[tuple[float, Mapping[str, Any], bool]] = []
    errors = []
    for inner in peeled(content, prefix):
        try:
            translated = translate(inner)
        except Exception as error:  # raised again if nothing else fits
            errors.append(error)
            continue
        found.append((overlap(translated, own), translated, translated is not inner))
    if not found:
        raise errors[0]
    score, state, changed = max(found, key=lambda one: one[0])
    if errors and score < 0.5:
        raise errors[0]
    return state, changed


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
    missing, others = expected.keys() - content.keys(), sorted(content.keys() - expected.keys())
    near = {key: difflib.get_close_matches(key, missing, n=1) for key in others[:3] if missing}
    for key in sorted(expected.keys() & content.keys()):
        shape = tuple(content[key].shape) if isinstance(content[key], Tensor) else type(content[key])
        if shape != tuple(expected[key].shape):
            problems.append(f"{key}: expected shape {tuple(expected[key].shape)}, got {shape}")
    if problems:
        text = f"{path}: does not fit the model: {'; '.join(problems[:4])}"
        if hint:
            text += f"; {hint()}"
        if pairs := [f"{key} to {names[0]}" for key, names in near.items() if names]:
            text += f"; nearest: {', '.join(pairs)}"
        raise ValueError(text)
    return content
