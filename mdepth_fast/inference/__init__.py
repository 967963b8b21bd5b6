"""Trained networks: reading them back, measuring them, predicting with them."""

from mdepth_fast.inference.odometry import predict_trajectory
from mdepth_fast.inference.publish import publish, run_history, write_hub_folder
from mdepth_fast.inference.trained import (
    Trained,
    evaluate,
    evaluate_sample,
    load_system,
    load_trained,
    predict_sample,
)

__all__ = [
    "Trained",
    "evaluate",
    "evaluate_sample",
    "load_system",
    "load_trained",
    "predict_sample",
    "predict_trajectory",
    "publish",
    "run_history",
    "write_hub_folder",
]
