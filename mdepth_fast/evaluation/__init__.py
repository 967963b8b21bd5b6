"""Depth metrics, evaluation protocols, and the evaluator that prints one with the other."""

from mdepth_fast.evaluation.evaluator import Evaluator
from mdepth_fast.evaluation.metrics import METRICS, depth_metrics
from mdepth_fast.evaluation.protocols import PROTOCOLS, Protocol, get_protocol

__all__ = ["METRICS", "PROTOCOLS", "Evaluator", "Protocol", "depth_metrics", "get_protocol"]
