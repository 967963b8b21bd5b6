"""Depth metrics, evaluation protocols, and the evaluator that prints one with the other."""

from typing import TYPE_CHECKING, Any

from mdepth_fast.evaluation.evaluator import Evaluator
from mdepth_fast.evaluation.metrics import METRICS, d1_all, depth_metrics, metrics_of
from mdepth_fast.evaluation.protocols import COLUMNS, PROTOCOLS, Protocol, get_protocol

if TYPE_CHECKING:
    from mdepth_fast.evaluation.torchmetric import DepthMetric as DepthMetric

__all__ = [
    "COLUMNS",
    "METRICS",
    "PROTOCOLS",
    "Evaluator",
    "Protocol",
    "d1_all",
    "depth_metrics",
    "get_protocol",
    "metrics_of",
]


def __getattr__(name: str) -> Any:
    # The only one that needs more than torch and numpy.
    if name == "DepthMetric":
        from mdepth_fast.evaluation.torchmetric import DepthMetric

        return DepthMetric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
