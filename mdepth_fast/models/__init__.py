"""Depth, pose and flow networks, by name and by class. This module imports every file that registers models."""

from typing import TYPE_CHECKING, Any

from mdepth_fast.weights.encoder import load_encoder_weights

from .base import DepthModel, DepthPrediction, DisparityModel, Model, PoseModel
from .depth_anything import DepthAnythingV2
from .dorn import DORN, sid_thresholds, ud_thresholds
from .dpt import DPT, DPTGeometry
from .eigen2014 import Eigen2014
from .fastdepth import FastDepth
from .fcrn import FCRN, UpConvolution
from .flownet import FlowModel, FlowNetS, FlowPrediction
from .mobilenet import MobileNet
from .monodepth import Monodepth, MonodepthResNet50, MonodepthVGG
from .monodepth2 import Monodepth2, PoseCNN, PoseNet, PredictiveMask, SharedPoseNet
from .registry import create_model, list_models, register_model
from .resnet import ResNetEncoder
from .sfmlearner import DispNet, PoseExpNet, Vid2DepthDispNet, Vid2DepthPoseNet

if TYPE_CHECKING:
    from mdepth_fast.weights.checkpoint import load_checkpoint

__all__ = [
    "DORN",
    "DPT",
    "FCRN",
    "DPTGeometry",
    "DepthAnythingV2",
    "DepthModel",
    "DepthPrediction",
    "DispNet",
    "DisparityModel",
    "Eigen2014",
    "FastDepth",
    "FlowModel",
    "FlowNetS",
    "FlowPrediction",
    "MobileNet",
    "Model",
    "Monodepth",
    "Monodepth2",
    "MonodepthResNet50",
    "MonodepthVGG",
    "PoseCNN",
    "PoseExpNet",
    "PoseModel",
    "PoseNet",
    "PredictiveMask",
    "ResNetEncoder",
    "SharedPoseNet",
    "UpConvolution",
    "Vid2DepthDispNet",
    "Vid2DepthPoseNet",
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
