"""The fused ops: typed functions with autograd, one file each. docs/design.md shows the path of a call."""

from mdepth_fast.ops.berhu_loss import berhu_loss
from mdepth_fast.ops.conv_stack import ConvBlock, conv_stack
from mdepth_fast.ops.depth_metrics import DEPTH_SUMS, depth_metrics
from mdepth_fast.ops.disparity_to_depth import disparity_to_depth
from mdepth_fast.ops.edge_aware_smoothness import edge_aware_smoothness
from mdepth_fast.ops.flow_photometric_loss import flow_photometric_loss
from mdepth_fast.ops.flow_smoothness_loss import flow_smoothness_loss
from mdepth_fast.ops.flow_warp import flow_warp
from mdepth_fast.ops.icp_align import IcpResult, icp_align
from mdepth_fast.ops.inverse_warp import inverse_warp
from mdepth_fast.ops.min_reprojection import MinReprojection, min_reprojection
from mdepth_fast.ops.nnconv5 import nnconv5
from mdepth_fast.ops.ordinal_decode import ordinal_decode
from mdepth_fast.ops.ordinal_loss import ordinal_loss
from mdepth_fast.ops.photometric_loss import photometric_loss
from mdepth_fast.ops.silog_loss import silog_loss
from mdepth_fast.ops.view_synthesis_loss import ViewSynthesisLoss, view_synthesis_loss

__all__ = [
    "DEPTH_SUMS",
    "ConvBlock",
    "IcpResult",
    "MinReprojection",
    "ViewSynthesisLoss",
    "berhu_loss",
    "conv_stack",
    "depth_metrics",
    "disparity_to_depth",
    "edge_aware_smoothness",
    "flow_photometric_loss",
    "flow_smoothness_loss",
    "flow_warp",
    "icp_align",
    "inverse_warp",
    "min_reprojection",
    "nnconv5",
    "ordinal_decode",
    "ordinal_loss",
    "photometric_loss",
    "silog_loss",
    "view_synthesis_loss",
]
