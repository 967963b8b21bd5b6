"""NetAdapt (Yang et al., ECCV 2018, arXiv 1804.03230): a network that fits a budget of time, operations or weights."""

from mdepth_fast.netadapt.algorithm import Adapted, Step, netadapt
from mdepth_fast.netadapt.graph import ChannelGraph, Group
from mdepth_fast.netadapt.resources import LatencyTable, measure_latency, resource

__all__ = [
    "Adapted",
    "ChannelGraph",
    "Group",
    "LatencyTable",
    "Step",
    "measure_latency",
    "netadapt",
    "resource",
]
