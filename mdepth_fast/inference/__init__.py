"""Trained networks: reading them back, measuring them, predicting with them."""

from mdepth_fast.inference.export import Exported, export
from mdepth_fast.inference.odometry import predict_trajectory
from mdepth_fast.inference.publish import publish
from mdepth_fast.inference.trained import (
    Trained,
    evaluate,
    evaluate_sample,
    load_system,
    load_trained,
    predict_sample,
)
from mdepth_fast.inference.writers import MAP_FORMATS, DepthMap, read_map, write_map

__all__ = [
    "MAP_FORMATS",
    "DepthMap",
    "Exported",
    "Trained",
    "evaluate",
    "evaluate_sample",
    "export",
    "load_system",
    "load_trained",
    "predict_sample",
    "predict_trajectory",
    "publish",
    "read_map",
    "write_map",
]
