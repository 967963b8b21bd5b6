// Every function of the compiled module: OP(name, its parameters). Prototypes of the CPU kernels, launch plans and what
// Python sees follow from these two lists.
#pragma once
#include "mdepth/berhu_loss.h"
#include "mdepth/conv_stack.h"
#include "mdepth/depth_metrics.h"
#include "mdepth/disparity_to_depth.h"
#include "mdepth/edge_aware_smoothness.h"
#include "mdepth/flow_photometric_loss.h"
#include "mdepth/flow_smoothness_loss.h"
#include "mdepth/flow_warp.h"
#include "mdepth/icp_align.h"
#include "mdepth/inverse_warp.h"
#include "mdepth/min_reprojection.h"
#include "mdepth/nnconv5.h"
#include "mdepth/ordinal_decode.h"
#include "mdepth/ordinal_loss.h"
#include "mdepth/photometric_loss.h"
#include "mdepth/silog_loss.h"
#include "mdepth/view_synthesis_loss.h"

// With a function plan_<name>: these have GPU kernels.
#define MDEPTH_OPS(OP)                                    \
  OP(berhu_loss, BerhuLossParams)                         \
  OP(berhu_loss_backward, BerhuLossParams)                \
  OP(depth_metrics, DepthMetricsParams)                   \
  OP(disparity_to_depth, DisparityToDepthParams)          \
  OP(disparity_to_depth_backward, DisparityToDepthParams) \
  OP(edge_aware_smoothness, EdgeAwareSmoothnessParams)    \
  OP(flow_photometric_loss, FlowPhotometricLossParams)    \
  OP(flow_smoothness_loss, FlowSmoothnessLossParams)      \
  OP(flow_warp, FlowWarpParams)                           \
  OP(flow_warp_backward, FlowWarpParams)                  \
  OP(icp_align, IcpAlignParams)                           \
  OP(inverse_warp, InverseWarpParams)                     \
  OP(inverse_warp_backward, InverseWarpParams)            \
  OP(min_reprojection, MinReprojectionParams)             \
  OP(nnconv5, NnConv5Params)                              \
  OP(ordinal_decode, OrdinalDecodeParams)                 \
  OP(ordinal_loss, OrdinalLossParams)                     \
  OP(ordinal_loss_backward, OrdinalLossParams)            \
  OP(photometric_loss, PhotometricLossParams)             \
  OP(photometric_loss_backward, PhotometricLossParams)    \
  OP(silog_loss, SilogLossParams)                         \
  OP(silog_loss_backward, SilogLossParams)                \
  OP(view_synthesis_loss, ViewSynthesisLossParams)

#define MDEPTH_CPU_OPS(OP)        \
  OP(conv_stack, ConvStackParams) \
  OP(nnconv5_weight_gradients, NnConv5WeightGradientsParams)

// The CPU kernels exist once per instruction set, in a namespace of its name. Each returns 0, or 1 when memory for its row
// buffers could not be had.
#define MDEPTH_CPU_PROTOTYPE(name, Params) int name(const Params&);
#define MDEPTH_CPU_PROTOTYPES MDEPTH_OPS(MDEPTH_CPU_PROTOTYPE) MDEPTH_CPU_OPS(MDEPTH_CPU_PROTOTYPE)

namespace mdepth {
namespace baseline {
MDEPTH_CPU_PROTOTYPES
}
namespace avx2 {
MDEPTH_CPU_PROTOTYPES
}
namespace avx512 {
MDEPTH_CPU_PROTOTYPES
}
}  // namespace mdepth
