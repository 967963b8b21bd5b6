"""Depth and pose networks, by name and by class. This module imports every file that registers models."""

from typing import TYPE_CHECKING, Any

from mdepth_fast.weights.encoder import load_encoder_weights

from .base import DepthModel, DepthPrediction, DisparityModel, Model, PoseModel
from .dorn import DORN, sid_thresholds, ud_thresholds
from .dpt import DPT, DPTGeometry
from .eigen2014 import Eigen2014
from .fastdepth import FastDepth
from .fcrn import FCRN, UpConvolution
from .mobilenet import MobileNet
from .monodepth2 import Monodepth2, PoseCNN, PoseNet, PredictiveMask, SharedPoseNet
from .registry import create_model, list_models, register_model
from .resnet import ResNetEncoder

if TYPE_CHECKING:
    from mdepth_fast.weights.checkpoint import load_checkpoint

__all__ = [
    "DORN",
    "DPT",
    "FCRN",
    "DPTGeometry",
    "DepthModel",
    "DepthPrediction",
    "DisparityModel",
    "Eigen2014",
    "FastDepth",
    "MobileNet",
    "Model",
    "Monodepth2",
    "PoseCNN",
    "PoseModel",
    "PoseNet",
    "PredictiveMask",
    "ResNetEncoder",
    "SharedPoseNet",
    "UpConvolution",
    "create_model",
    "list_models",
    "load_checkpoint",
    "load_encoder_weights",
    "register_model",
    "sid_thresholds",
    "ud_thresholds",
]


def __getattr__(name: str) -> Any:
    # An alias, on demand: `checkpoint` stands above the models and imports them.
    if name == "load_checkpoint":
        from mdepth_fast.weights.checkpoint import load_checkpoint

        return load_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
