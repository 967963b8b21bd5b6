"""Which registered model tensors belong to."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mdepth_fast.models.base import Model
from mdepth_fast.models.registry import get_factory, list_models
from mdepth_fast.weights.match import CLASSIFIER, METADATA, overlap, peeled

__all__ = ["fitting_models", "likely", "skeleton"]


def fitting_models(content: Mapping[str, Any]) -> list[str]:
    """Names of the registered models that take the content of a file exactly."""
    return [name for name, score in _scores(content).items() if score == 1]


def likely(content: Mapping[str, Any]) -> str:
    """In words, the registered model with which `content` shares most."""
    scores = _scores(content)
    best = max(scores.values(), default=0.0)
    if best < 0.5:
        return "it is like no registered model"
    names = [name for name, score in scores.items() if score == best]
    return f"the likely model: {' or '.join(names[:3])}, which shares {best:.0%} of the tensors"


def _scores(content: Mapping[str, Any]) -> dict[str, float]:
    """By registered model: the share of tensors that `content` and the model have in common; 1 for a full fit."""
    on_meta = {key: _to_meta(value) for key, value in content.items()}
    scores = {}
    for name in list_models():
        try:
            scores[name] = max(overlap(given, own) for given, own in _candidates(name, on_meta))
        except Exception:  # content of another system is no error of the guess: such a model is no candidate
            continue
    return scores


def _candidates(name: str, content: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Tensor]]]:
    """What `content` gives to the model, and what the model takes: as one file, or as each file of a folder."""
    model = skeleton(name)
    own = model.state_dict()
    for inner in peeled(content, model.checkpoint_prefix):
        try:
            yield model.translate(inner), own
        except Exception:  # of another system; it may fit with less around it
            continue
        if type(model).published_files is not Model.published_files:
            inner = {key: value for key, value in inner.items() if key not in METADATA | CLASSIFIER}
            for keys in model.published_files().values():
                yield inner, {key: own[to] for key, to in keys.items()}


def _to_meta(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_meta(inner) for key, inner in value.items()}
    return value.to("meta") if isinstance(value, Tensor) else value


def skeleton(name: str) -> Model:
    """The registered model without memory for its weights, with the options of the published ones."""
    return _skeleton_of(get_factory(name))


@functools.cache
def _skeleton_of(factory: Callable[..., Model]) -> Model:
    with torch.device("meta"):
        model = factory()
        try:
            return factory(**model.published_options) if model.published_options else model
        except ValueError:  # a variant that was never published
            return model
