"""Training losses as modules over the fused ops."""

from mdepth_fast.losses.monodepth import (
    EdgeAwareSmoothness,
    MinReprojectionLoss,
    MonodepthLoss,
    MonodepthParts,
    PhotometricLoss,
)

__all__ = ["EdgeAwareSmoothness", "MinReprojectionLoss", "MonodepthLoss", "MonodepthParts", "PhotometricLoss"]
