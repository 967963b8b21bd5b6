"""Weights from files: the published folders, plain state dicts, Lightning checkpoints of this package."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import DepthModel, Model
from .numpy_pickle import read_numpy_pickle
from .vit import VisionTransformer

__all__ = ["load_checkpoint", "load_encoder_weights"]

_CLASSIFIER = {"fc.weight", "fc.bias", "encoder.fc.weight", "encoder.fc.bias"}  # stored with a ResNet, never used
_METADATA = {"height", "width", "use_stereo"}  # stored in encoder.pth beside the tensors


def load_checkpoint(model: Model, path: str | os.PathLike[str]) -> None:
    """Fill `model` from `path`, all of it or, on an error, nothing.

    A folder is a published one: encoder.pth and depth.pth for a depth net, pose_encoder.pth and pose.pth for a pose
    net; the training size that encoder.pth holds becomes `model.input_size`. A file is a state dict of the model, or a
    Lightning checkpoint in which its keys begin with `model.checkpoint_prefix`. Files are read with weights_only=True.

    FileNotFoundError names a missing file; ValueError names the file that cannot be read, or whose keys or shapes
    do not fit, and the first of these.
    """
    path = Path(path)
    own = model.state_dict()
    state: dict[str, Tensor] = {}
    size = None
    if path.is_dir():
        for name, keys in model.published_files().items():
            content = dict(model.translate_file(name, _read(path / name)))
            size = (content["height"], content["width"]) if content.keys() >= _METADATA else size
            content = {key: value for key, value in content.items() if key not in _METADATA | _CLASSIFIER}
            expected = {key: own[to] for key, to in keys.items()}
            state |= {keys[key]: value for key, value in _matched(content, expected, path / name).items()}
    else:
        content = _read(path)
        if isinstance(content.get("state_dict"), Mapping):
            prefix = model.checkpoint_prefix
            content = {
                key.removeprefix(prefix): value
                for key, value in content["state_dict"].items()
                if key.startswith(prefix)
            }
            if not content:
                raise ValueError(f"{path}: expected a Lightning checkpoint with keys {prefix}*, found none")
        state = _matched(model.translate(content), own, path)
    model.load_state_dict(state)
    if size is not None and isinstance(model, DepthModel):
        model.input_size = size


def load_encoder_weights(encoder: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fill a `ResNetEncoder` from a state dict in torchvision's format, the classifier left aside.

    A `VisionTransformer` is filled from one in timm's format.

    Where the encoder takes n images, conv1 is repeated n times along its inputs and divided by n, so that n equal
    images give the activations of one. Errors as in `load_checkpoint`.
    """
    path = Path(path)
    content = {key: value for key, value in _read(path).items() if key not in _CLASSIFIER}
    if isinstance(encoder, VisionTransformer):
        content = dict(encoder.translate(content))
    own = encoder.state_dict()
    stem = content.get("conv1.weight")
    if isinstance(stem, Tensor) and stem.dim() == 4 and stem.shape[1] == 3:
        images = own["conv1.weight"].shape[1] // 3
        content["conv1.weight"] = stem.repeat(1, images, 1, 1) / images
    encoder.load_state_dict(_matched(content, own, path))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if path.suffix in (".npy", ".pk", ".pkl"):
        return read_numpy_pickle(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: damaged, truncated or not a checkpoint of plain tensors ({reason})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return dict(content)


def _matched(content: Mapping[str, Any], expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`content` if it holds exactly the tensors of `expected`, else one ValueError that names `path`."""
    # Batch norms saved by PyTorch before 0.4.1 have no counter, and nothing computed depends on it.
    content = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")} | dict(content)
    problems = []
    for what, keys in (("missing", expected.keys() - content.keys()), ("unexpected", content.keys() - expected.keys())):
        if keys:
            problems.append(
                f"{len(keys)} keys {what} ({', '.join(sorted(keys)[:3])}{', ...' if len(keys) > 3 else ''})"
            )
    for key in sorted(expected.keys() & content.keys()):
        shape = tuple(getattr(content[key], "shape", ())) if isinstance(content[key], Tensor) else type(content[key])
        if shape != tuple(expected[key].shape):
            problems.append(f"{key}: expected shape {tuple(expected[key].shape)}, got {shape}")
    if problems:
        raise ValueError(f"{path}: does not fit the model: {'; '.join(problems[:4])}")
    return content
