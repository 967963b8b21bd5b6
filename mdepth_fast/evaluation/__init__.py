"""Metrics of depth and flow, evaluation protocols, and the evaluators that print one with the other."""

from typing import TYPE_CHECKING, Any

from mdepth_fast.evaluation.evaluator import Evaluator
from mdepth_fast.evaluation.flow import (
    FLOW_METRICS,
    FLOW_PROTOCOLS,
    FlowEvaluator,
    FlowProtocol,
    get_flow_protocol,
)
from mdepth_fast.evaluation.metrics import METRICS, d1_all, depth_metrics, metrics_of
from mdepth_fast.evaluation.odometry import OdometryMetrics, evaluate_odometry
from mdepth_fast.evaluation.protocols import COLUMNS, PROTOCOLS, Protocol, get_protocol

if TYPE_CHECKING:
    from mdepth_fast.evaluation.torchmetric import DepthMetric as DepthMetric

__all__ = [
    "COLUMNS",
    "FLOW_METRICS",
    "FLOW_PROTOCOLS",
    "METRICS",
    "PROTOCOLS",
    "Evaluator",
    "FlowEvaluator",
    "FlowProtocol",
    "OdometryMetrics",
    "Protocol",
    "d1_all",
    "depth_metrics",
    "evaluate_odometry",
    "get_flow_protocol",
    "get_protocol",
    "metrics_of",
]


def __getattr__(name: str) -> Any:
    # The only one that needs more than torch and numpy.
    if name == "DepthMetric":
        from mdepth_fast.evaluation.torchmetric import DepthMetric

        return DepthMetric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
