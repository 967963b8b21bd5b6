"""Models by name."""

import difflib
import fnmatch
from collections.abc import Callable
from functools import partial
from math import exp
from typing import Any

from .base import Model
from .dorn import DORN
from .dpt import DPT
from .eigen2014 import Eigen2014
from .fastdepth import PRUNED_DECODER, PRUNED_ENCODER, FastDepth
from .fcrn import FCRN
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


register_model("eigen2014_nyu", Eigen2014)
register_model(
    "eigen2014_kitti", partial(Eigen2014, input_size=(172, 576), fine_rows=116, log_depth_mean=2.7, log_depth_std=0.6)
)
register_model("fcrn_resnet50_upproj", partial(FCRN, upsampling="upproj"))
register_model("fcrn_resnet50_upconv", partial(FCRN, upsampling="upconv"))
register_model("fcrn_resnet50_deconv", partial(FCRN, upsampling="deconv"))
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
for _geometry in ("large", "base", "hybrid"):
    register_model(f"dpt_{_geometry}", partial(DPT, _geometry))
    # The published constants and sizes of the hybrid; for the others nothing is published.
    register_model(
        f"dpt_{_geometry}_kitti", partial(DPT, _geometry, scale=6.016e-5, shift=0.00579, target_size=(352, 1216))
    )
    register_model(f"dpt_{_geometry}_nyu", partial(DPT, _geometry, scale=3.05e-4, shift=0.1378, target_size=(480, 640)))
