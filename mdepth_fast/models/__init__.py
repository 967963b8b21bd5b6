"""Depth and pose nets, by name and by class."""

from .base import DepthModel, DepthPrediction, DisparityModel, Model, PoseModel
from .checkpoints import load_checkpoint, load_encoder_weights
from .dorn import DORN, sid_thresholds, ud_thresholds
from .dpt import DPT, DPTGeometry
from .eigen2014 import Eigen2014
from .fastdepth import FastDepth
from .fcrn import FCRN, UpConvolution
from .mobilenet import MobileNet
from .monodepth2 import Monodepth2, PoseCNN, PoseNet
from .registry import create_model, list_models, register_model
from .resnet import ResNetEncoder

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
    "ResNetEncoder",
    "UpConvolution",
    "create_model",
    "list_models",
    "load_checkpoint",
    "load_encoder_weights",
    "register_model",
    "sid_thresholds",
    "ud_thresholds",
]
