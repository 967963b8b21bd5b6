"""Training losses as modules over the fused ops."""

from mdepth_fast.losses.left_right import GargLoss, LeftRightLoss, LeftRightParts
from mdepth_fast.losses.monodepth import (
    EdgeAwareSmoothness,
    MinReprojectionLoss,
    MonodepthLoss,
    MonodepthParts,
    PhotometricLoss,
)
from mdepth_fast.losses.supervised import (
    BerHuLoss,
    DepthL1Loss,
    DepthL2Loss,
    LogDepthL1Loss,
    OrdinalLoss,
    ScaleShiftInvariantLoss,
    SILogLoss,
)

__all__ = [
    "BerHuLoss",
    "DepthL1Loss",
    "DepthL2Loss",
    "EdgeAwareSmoothness",
    "GargLoss",
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
]
