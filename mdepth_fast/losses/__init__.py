"""Training losses as modules over the fused ops."""

from mdepth_fast.losses.flow import FlowLoss, FlowLossParts
from mdepth_fast.losses.left_right import GargLoss, LeftRightLoss, LeftRightParts
from mdepth_fast.losses.monodepth import (
    EdgeAwareSmoothness,
    MinReprojectionLoss,
    MonodepthLoss,
    MonodepthParts,
    PhotometricLoss,
)
from mdepth_fast.losses.sfmlearner import SfMLearnerLoss, SfMLearnerParts
from mdepth_fast.losses.supervised import (
    BerHuLoss,
    DepthL1Loss,
    DepthL2Loss,
    LogDepthL1Loss,
    OrdinalLoss,
    ScaleShiftInvariantLoss,
    SILogLoss,
)
from mdepth_fast.losses.vid2depth import Icp3DLoss, Vid2DepthLoss, Vid2DepthParts, adjacent_pairs, pair_transforms

__all__ = [
    "BerHuLoss",
    "DepthL1Loss",
    "DepthL2Loss",
    "EdgeAwareSmoothness",
    "FlowLoss",
    "FlowLossParts",
    "GargLoss",
    "Icp3DLoss",
    "LeftRightLoss",
    "LeftRightParts",
    "LogDepthL1Loss",
    "MinReprojectionLoss",
    "MonodepthLoss",
    "MonodepthParts",
    "OrdinalLoss",
    "PhotometricLoss",
    "SILogLoss",
    "ScaleShiftInvariantLoss",
    "SfMLearnerLoss",
    "SfMLearnerParts",
    "Vid2DepthLoss",
    "Vid2DepthParts",
    "adjacent_pairs",
    "pair_transforms",
]
