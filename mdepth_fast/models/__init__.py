"""Depth and pose nets, by name and by class."""

from .base import DepthModel, DepthPrediction, DisparityModel, Model, PoseModel
from .checkpoints import load_checkpoint, load_encoder_weights
from .dorn import DORN, sid_thresholds, ud_thresholds
from .fastdepth import FastDepth
from .mobilenet import MobileNet
from .monodepth2 import Monodepth2, PoseCNN, PoseNet
from .registry import create_model, list_models, register_model
from .resnet import ResNetEncoder

__all__ = [
    "DORN",
    "DepthModel",
    "DepthPrediction",
    "DisparityModel",
    "FastDepth",
    "MobileNet",
    "Model",
    "Monodepth2",
    "PoseCNN",
    "PoseModel",
    "PoseNet",
    "ResNetEncoder",
    "create_model",
    "list_models",
    "load_checkpoint",
    "load_encoder_weights",
    "register_model",
    "sid_thresholds",
    "ud_thresholds",
]
