"""Trained networks: reading them back, measuring them, predicting with them."""

from mdepth_fast.inference.export import Exported, export
from mdepth_fast.inference.frames import open_sources
from mdepth_fast.inference.odometry import predict_trajectory
from mdepth_fast.inference.publish import publish, run_history, write_hub_folder
from mdepth_fast.inference.stream import Predicted, StreamOptions, predict_source
from mdepth_fast.inference.temporal import TemporalAlignment, flicker
from mdepth_fast.inference.trained import (
    Trained,
    evaluate,
    evaluate_sample,
    load_system,
    load_trained,
    predict_image,
    predict_sample,
)
from mdepth_fast.inference.writers import MAP_FORMATS, DepthMap, point_cloud, read_map, write_glb, write_map

__all__ = [
    "MAP_FORMATS",
    "DepthMap",
    "Exported",
    "Predicted",
    "StreamOptions",
    "TemporalAlignment",
    "Trained",
    "evaluate",
    "evaluate_sample",
    "export",
    "flicker",
    "load_system",
    "load_trained",
    "open_sources",
    "point_cloud",
    "predict_image",
    "predict_sample",
    "predict_source",
    "predict_trajectory",
    "publish",
    "read_map",
    "run_history",
    "write_glb",
    "write_hub_folder",
    "write_map",
]
