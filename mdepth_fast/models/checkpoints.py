"""Weights from files: what is published of each system, plain state dicts, checkpoints of this package.

`.safetensors`, `.npz` (named arrays), `.npy`, `.pk`, `.pkl` (pickled arrays, read without running them), and anything
else as written by `torch.save`, tensors and plain values only.
"""

import functools
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdepth_fast.visualize import replacing

from .base import DepthModel, Model
from .numpy_pickle import read_numpy_pickle
from .resize import resize_to
from .vit import VisionTransformer

__all__ = [
    "convert_content",
    "converted_model",
    "load_checkpoint",
    "load_encoder_weights",
    "read_content",
    "read_pickled_module",
    "write_converted",
]

_CLASSIFIER = {"fc.weight", "fc.bias", "encoder.fc.weight", "encoder.fc.bias"}  # stored with a ResNet, never used
_COUNTER = "num_batches_tracked"  # of batch norms; none in files before PyTorch 0.4.1, and nothing computed needs it
_METADATA = {"height", "width", "use_stereo"}  # stored in encoder.pth beside the tensors


def load_checkpoint(model: Model, path: str | os.PathLike[str]) -> None:
    """Fill `model` from `path`, all of it or, on an error, nothing.

    A folder is a published one: encoder.pth and depth.pth for a depth net, pose_encoder.pth and pose.pth for a pose
    net; the training size that encoder.pth holds becomes `model.input_size`. A file is what is published of the system
    (see `translate` of the model), a state dict of the model, bare or under "model" or "state_dict" and with or without
    the prefix of data-parallel training, a Lightning checkpoint of this package, or what `mdepth-fast convert` wrote.

    FileNotFoundError names a missing file; ValueError names the file that cannot be read, or whose keys or shapes do
    not fit, the first of these, and the model that they would fit. Warns where the constructor was told otherwise than
    the weights need.
    """
    path = Path(path)
    own = model.state_dict()
    state: dict[str, Tensor] = {}
    size = None
    if path.is_dir():
        for name, keys in model.published_files().items():
            content = dict(model.translate_file(name, read_content(path / name)))
            size = (content["height"], content["width"]) if content.keys() >= _METADATA else size
            content = {key: value for key, value in content.items() if key not in _METADATA | _CLASSIFIER}
            expected = {key: own[to] for key, to in keys.items()}
            matched = _matched(content, expected, path / name, functools.partial(_likely, content))
            state |= {keys[key]: value for key, value in matched.items()}
    else:
        content = read_content(path)
        state, options = _translated(model, own, content, path)
        if path.suffix == ".safetensors":
            options = converted_model(path)[1]
        for option in model.published_options:
            if option in options and getattr(model, option) != options[option]:
                warnings.warn(
                    f"{path}: these weights are meant for {option}={options[option]!r}, "
                    f"the model was created with {getattr(model, option)!r}",
                    stacklevel=2,
                )
    model.load_state_dict(state)
    if size is not None and isinstance(model, DepthModel):
        model.input_size = size


def load_encoder_weights(encoder: nn.Module, path: str | os.PathLike[str], prefix: str = "") -> None:
    """Fill an encoder from the state dict of its ImageNet classifier, the classifier's last layer `fc` left aside.

    The keys of the file are those of `encoder` behind `prefix`; a `VisionTransformer` is filled from one in timm's
    format. Where a ResNet takes n images, conv1 is repeated n times along its inputs and divided by n, so that n equal
    images give the activations of one. Errors as in `load_checkpoint`.
    """
    path = Path(path)
    content = {key: value for key, value in _unwrapped(read_content(path), None).items() if key not in _CLASSIFIER}
    content = {key.removeprefix(prefix): value for key, value in content.items()}
    if isinstance(encoder, VisionTransformer):
        content = dict(encoder.translate(content))
    own = encoder.state_dict()
    stem = content.get("conv1.weight")
    if isinstance(stem, Tensor) and stem.dim() == 4 and stem.shape[1] == 3:
        images = own["conv1.weight"].shape[1] // 3
        content["conv1.weight"] = stem.repeat(1, images, 1, 1) / images
    encoder.load_state_dict(_matched(content, own, path))


def convert_content(
    content: Mapping[str, Any], path: Path, name: str | None = None
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The content of a file as (name of a model, options for `create_model`, state dict of that model).

    `name` None: the only registered model that takes the content. ValueError where none or several do.
    """
    from .registry import create_model, list_models

    if name is None:
        fits = [model for model, score in _scores(content).items() if score == 1]
        if len(fits) > 1:
            raise ValueError(f"{path}: {', '.join(fits)} take it alike; --model says which it is")
        if not fits:
            raise ValueError(f"{path}: no registered model takes it exactly; {_likely(content)}")
        name = fits[0]
    if name not in list_models():
        create_model(name)  # its error names the nearest
    model = _skeleton(name)
    state, options = _translated(model, model.state_dict(), content, path)
    return name, options, state


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
    with replacing(path) as temporary:
        save_file({key: value.detach().clone().contiguous() for key, value in state.items()}, temporary, metadata)


def create_converted(path: Path) -> Model:
    """The model of a file that `write_converted` wrote, filled from it; ValueError for another file."""
    from safetensors import safe_open

    from .registry import create_model

    name, options = converted_model(path)
    if name is None:
        raise ValueError(f"{path}: does not say which model it is for; `mdepth-fast convert` writes a file that does")
    model = create_model(name, **options)
    with safe_open(path, framework="pt") as file:
        resized = "mdepth_fast.resized" in (file.metadata() or {})
    if resized:
        resize_to(model, read_content(path))
    else:
        load_checkpoint(model, path)
    return model


def converted_model(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Name and options of the model that a file of `mdepth-fast convert` is for; (None, {}) for another file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    options = json.loads(metadata.get("mdepth_fast.options", "{}"))
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return metadata.get("mdepth_fast.model"), options


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


def read_content(path: Path) -> dict[str, Any]:
    """What a file holds, by key. FileNotFoundError, or ValueError that names a file that cannot be read."""
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
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".npy": read_numpy_pickle,
    ".pk": read_numpy_pickle,
    ".pkl": read_numpy_pickle,
}


def _unwrapped(content: Mapping[str, Any], prefix: str | None) -> Mapping[str, Any]:
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


def _translated(
    model: Model, own: Mapping[str, Tensor], content: Mapping[str, Any], path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of `model` in `content`, and the options that the model must be created with."""
    inner = _unwrapped(content, model.checkpoint_prefix)
    translated = model.translate(inner)
    options = {} if translated is inner else dict(model.published_options)
    note = ""
    if isinstance(content.get("state_dict"), Mapping):
        start = model.checkpoint_prefix
        if not any(key.startswith(start) for key in content["state_dict"]):
            note = f"of a Lightning checkpoint it takes the keys {start}*, found none; "
    return _matched(translated, own, path, lambda: note + _likely(content)), options


def _matched(
    content: Mapping[str, Any], expected: Mapping[str, Tensor], path: Path, hint: Callable[[], str] | None = None
) -> dict[str, Tensor]:
    """`content` if it holds exactly the tensors of `expected`, else one ValueError that names `path`."""
    counters = (key for key in expected if key.endswith(_COUNTER))
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


def _likely(content: Mapping[str, Any]) -> str:
    """In words, the registered model with which `content` shares most."""
    scores = _scores(content)
    best = max(scores.values(), default=0.0)
    if best < 0.5:
        return "it is like no registered model"
    names = [name for name, score in scores.items() if score == best]
    return f"the likely model: {' or '.join(names[:3])}, which shares {best:.0%} of the tensors"


def _scores(content: Mapping[str, Any]) -> dict[str, float]:
    """By registered model: the share of tensors that `content` and the model have in common; 1 for a full fit."""
    from .registry import list_models

    on_meta = {key: _to_meta(value) for key, value in content.items()}
    scores = {}
    for name in list_models():
        try:
            scores[name] = max(_overlap(given, own) for given, own in _candidates(name, on_meta))
        except Exception:  # content of another system is no error of the guess: such a model is no candidate
            continue
    return scores


def _candidates(name: str, content: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Tensor]]]:
    """What `content` gives to the model, and what the model takes: as one file, or as each file of a folder."""
    model = _skeleton(name)
    own = model.state_dict()
    inner = _unwrapped(content, model.checkpoint_prefix)
    yield model.translate(inner), own
    if type(model).published_files is not Model.published_files:
        inner = {key: value for key, value in inner.items() if key not in _METADATA | _CLASSIFIER}
        for keys in model.published_files().values():
            yield inner, {key: own[to] for key, to in keys.items()}


def _overlap(given: Mapping[str, Any], own: Mapping[str, Tensor]) -> float:
    shapes, others = (
        {key: tuple(getattr(value, "shape", ())) for key, value in side.items() if not key.endswith(_COUNTER)}
        for side in (given, own)
    )
    common = sum(key in others and others[key] == shape for key, shape in shapes.items())
    return 2 * common / max(1, len(shapes) + len(others))


def _to_meta(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_meta(inner) for key, inner in value.items()}
    return value.to("meta") if isinstance(value, Tensor) else value


def _skeleton(name: str) -> Model:
    from .registry import _FACTORIES

    return _skeleton_of(_FACTORIES[name])


@functools.cache
def _skeleton_of(factory: Callable[..., Model]) -> Model:
    """A model without memory for its weights, with the options of the published ones."""
    with torch.device("meta"):
        model = factory()
        return factory(**model.published_options) if model.published_options else model
