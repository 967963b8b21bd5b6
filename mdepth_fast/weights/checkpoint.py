"""Models filled from files: what is published of each system, plain state dicts, checkpoints of this package."""

import functools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdepth_fast.models.base import DepthModel, Model
from mdepth_fast.models.registry import create_model as new_model
from mdepth_fast.models.registry import get_factory, list_models
from mdepth_fast.models.resize import resize_to
from mdepth_fast.weights.converted import converted_model, is_resized
from mdepth_fast.weights.download import Progress
from mdepth_fast.weights.hub import WEIGHTS, is_on_hub, local_file
from mdepth_fast.weights.identify import fitting_models, likely, skeleton
from mdepth_fast.weights.match import CLASSIFIER, METADATA, best_fit, matched, peeled
from mdepth_fast.weights.read import read_content
from mdepth_fast.weights.registry import Entry, fetch, find, find_for, is_published

__all__ = [
    "convert_content",
    "create_converted",
    "create_model",
    "create_published",
    "fitting_models",
    "load_checkpoint",
]


def create_model(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    accept_licence: str | None = None,
    **options: Any,
) -> Model:
    """A new model, with random weights or filled.

    Args:
        name: registered name, see `list_models`
        weights: published weights by name or label (`mdepth-fast weights list`), which are downloaded once; or a file
            or folder that `load_checkpoint` reads
        accept_licence: the licence of published weights that do not allow any use
        options: go to the constructor; published weights bring those that they need

    ValueError that lists the nearest names if there is no such model; otherwise as `load_checkpoint`, and
    PermissionError for a licence that has not been accepted.
    """
    if weights is None:
        return new_model(name, **options)
    text = os.fspath(weights)
    if is_on_hub(text) or os.sep in text or Path(text).exists() or Path(f"{text}.index").exists():
        model = new_model(name, **options)
        load_checkpoint(model, weights)
        return model
    get_factory(name)
    return create_published(find_for(name, text), accept_licence=accept_licence, **options)


def create_published(
    entry: Entry, *, accept_licence: str | None = None, progress: Progress | None = None, **options: Any
) -> Model:
    """The model of an entry of the list of published weights, filled with them; see `registry.fetch`."""
    path = fetch(entry.name, accept_licence=accept_licence, progress=progress)
    model = new_model(entry.model, **{**entry.options, **options})
    load_checkpoint(model, path)
    return model


def load_checkpoint(model: Model, path: str | os.PathLike[str]) -> None:
    """Fill `model` from `path`, all of it or, on an error, nothing.

    A folder is a run, of which last.ckpt is read, one of `save_pretrained`, or a published one: encoder.pth and
    depth.pth for a depth net, pose_encoder.pth and pose.pth for a pose net; the training size that encoder.pth holds
    becomes `model.input_size`. A file is what is published of the system (see `translate` of the model), a state dict
    of the model, bare or under "model" or "state_dict" and with or without prefixes such as "module.", a Lightning
    checkpoint of this package, or what `mdepth-fast convert` wrote. `hub:user/repo` is a repository of the Hugging Face
    Hub, see `weights.hub`. A name of published weights that fit this model stands for their file, see `registry.fetch`.

    FileNotFoundError names a missing file; ValueError names the file that cannot be read, or whose keys or shapes do
    not fit, the first of these, and the model that they would fit. Warns where the constructor was told otherwise than
    the weights need.
    """
    path = fetch(find(os.fspath(path)).name) if is_published(path) else local_file(path)
    path = next((path / name for name in ("last.ckpt", WEIGHTS) if (path / name).is_file()), path)
    own = model.state_dict()
    state: dict[str, Tensor] = {}
    size = None
    if path.is_dir():
        for name, keys in model.published_files().items():
            expected = {key: own[to] for key, to in keys.items()}
            translate = functools.partial(model.translate_file, name)
            content = dict(best_fit(read_content(path / name), expected, translate=translate)[0])
            size = (content["height"], content["width"]) if content.keys() >= METADATA else size
            content = {key: value for key, value in content.items() if key not in METADATA | CLASSIFIER}
            found = matched(content, expected, path / name, functools.partial(likely, content))
            state |= {keys[key]: value for key, value in found.items()}
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


def convert_content(
    content: Mapping[str, Any], path: Path, name: str | None = None, options: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The content of a file as (name of a model, options for `create_model`, state dict of that model).

    `name` None: the only registered model that takes the content, or one with other options that can be read off the
    shapes (see `Model.options_of`). ValueError where none or several do. options: more options for the model.
    """
    given = dict(options or {})
    if name is None or given:
        for candidate in [name] if name else list_models():
            read_off = _read_off(candidate, content, given)
            if read_off is not None:
                return candidate, *_filled(candidate, read_off, content, path)
    if given and name is None:
        raise ValueError(f"{path}: options of a model go with its name, got {', '.join(given)} without one")
    if given and name is not None:
        return name, *_filled(name, given, content, path)
    if name is None:
        fits = fitting_models(content)
        if len(fits) > 1:
            raise ValueError(f"{path}: {', '.join(fits)} take it alike; --model says which it is")
        if not fits:
            raise ValueError(f"{path}: no registered model takes it exactly; {likely(content)}")
        name = fits[0]
    model = skeleton(name)
    state, published = _translated(model, model.state_dict(), content, path)
    return name, published, state


def _read_off(name: str, content: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Options of the model that the shapes tell, and those given; None where the model is another, or needs none."""
    factory = get_factory(name)
    if not (isinstance(factory, type) and issubclass(factory, Model)):
        return None
    found = next(filter(None, map(factory.options_of, peeled(content, factory.checkpoint_prefix))), None)
    return None if found is None else found | dict(given)


def _filled(
    name: str, options: dict[str, Any], content: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with torch.device("meta"):
        model = new_model(name, **options)
    state, published = _translated(model, model.state_dict(), content, path)
    return published | options, state


def create_converted(path: Path) -> Model:
    """The model of a file that `write_converted` wrote, filled from it; ValueError for another file."""
    name, options = converted_model(path)
    if name is None:
        raise ValueError(f"{path}: does not say which model it is for; `mdepth-fast convert` writes a file that does")
    model = new_model(name, **options)
    if is_resized(path):
        resize_to(model, read_content(path))
    else:
        load_checkpoint(model, path)
    return model


def _translated(
    model: Model, own: Mapping[str, Tensor], content: Mapping[str, Any], path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of `model` in `content`, and the options that the model must be created with."""
    translated, changed = best_fit(content, own, model.checkpoint_prefix, model.translate)
    options = dict(model.published_options) if changed else {}
    note = ""
    if isinstance(content.get("state_dict"), Mapping):
        start = model.checkpoint_prefix
        if not any(key.startswith(start) for key in content["state_dict"]):
            note = f"of a Lightning checkpoint it takes the keys {start}*, found none; "
    return matched(translated, own, path, lambda: note + likely(content)), options
