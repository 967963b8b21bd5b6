"""Models by name."""

import difflib
import fnmatch
from collections.abc import Callable
from functools import partial
from math import exp
from typing import Any

from .base import Model
from .dorn import DORN
from .fastdepth import PRUNED_DECODER, PRUNED_ENCODER, FastDepth
from .monodepth2 import Monodepth2, PoseCNN, PoseNet

__all__ = ["create_model", "list_models", "register_model"]

_FACTORIES: dict[str, Callable[..., Model]] = {}


def register_model(name: str, factory: Callable[..., Model]) -> None:
    """Make `create_model(name, **kw)` call `factory(**kw)`. ValueError if the name is taken."""
    if name in _FACTORIES:
        raise ValueError(f"name: {name!r} is registered already")
    _FACTORIES[name] = factory


def create_model(name: str, **kwargs: Any) -> Model:
    """A new model; `kwargs` go to its constructor. ValueError that lists the nearest names if there is none."""
    if name not in _FACTORIES:
        near = difflib.get_close_matches(name, _FACTORIES, n=3) or list_models()
        raise ValueError(f"name: no model is called {name!r}; did you mean {', '.join(near)}?")
    model = _FACTORIES[name](**kwargs)
    model.created_as = (name, kwargs)
    return model


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names that match a shell pattern such as `"posenet*"`."""
    return sorted(fnmatch.filter(_FACTORIES, pattern))


register_model("dorn_resnet101_kitti", DORN)
register_model(
    "dorn_resnet101_nyu",
    partial(
        DORN,
        window=(257, 353),
        sliding=False,
        K=68,
        alpha=exp(-0.36),
        beta=exp(2.36),
        rates=(4, 8, 12),
        pool=8,
        fc_lr=1.0,
    ),
)
register_model("fastdepth", FastDepth)
register_model("fastdepth_pruned", partial(FastDepth, encoder_channels=PRUNED_ENCODER, decoder_channels=PRUNED_DECODER))
register_model("monodepth2_resnet18", partial(Monodepth2, layers=18))
register_model("monodepth2_resnet50", partial(Monodepth2, layers=50))
register_model("posenet_resnet18", partial(PoseNet, layers=18))
register_model("posenet_resnet50", partial(PoseNet, layers=50))
register_model("posecnn", PoseCNN)
