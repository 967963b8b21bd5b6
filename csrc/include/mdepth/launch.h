// Prototypes of every kernel's host entry. The CPU ones exist once per instruction set, in a namespace of its name.
// Each returns 0, or 1 when memory for its row buffers could not be had.
#pragma once
#include "mdepth/params.h"
#include "mdepth/plan.h"

#define MDEPTH_CPU_PROTOTYPES(isa)                            \
  namespace mdepth {                                          \
  namespace isa {                                             \
  int depth_metrics(const DepthMetricsParams&);               \
  int inverse_warp(const InverseWarpParams&);                 \
  int inverse_warp_backward(const InverseWarpParams&);        \
  int photometric_loss(const PhotometricLossParams&);         \
  int photometric_loss_backward(const PhotometricLossParams&); \
  int min_reprojection(const MinReprojectionParams&);         \
  int edge_aware_smoothness(const EdgeAwareSmoothnessParams&); \
  int disparity_to_depth(const DisparityToDepthParams&);      \
  int disparity_to_depth_backward(const DisparityToDepthParams&); \
  int nnconv5(const NnConv5Params&);                          \
  int nnconv5_weight_gradients(const NnConv5WeightGradientsParams&); \
  int ordinal_decode(const OrdinalDecodeParams&);             \
  int ordinal_loss(const OrdinalLossParams&);                 \
  int ordinal_loss_backward(const OrdinalLossParams&);        \
  int conv_stack(const ConvStackParams&);                     \
  int silog_loss(const SilogLossParams&);                     \
  int silog_loss_backward(const SilogLossParams&);            \
  int berhu_loss(const BerhuLossParams&);                     \
  int berhu_loss_backward(const BerhuLossParams&);            \
  }                                                           \
  }

MDEPTH_CPU_PROTOTYPES(baseline)
MDEPTH_CPU_PROTOTYPES(avx2)
MDEPTH_CPU_PROTOTYPES(avx512)

namespace mdepth {
namespace cuda {
// Launches the kernels of a plan, each with `params`, on a stream of a device. Null, or CUDA's words for what failed.
const char* launch(const Plan& plan, const void* params, int device, void* stream);
// The newest CUDA that the driver supports, 1000 * major + 10 * minor; 0 without a driver.
int driver_version();
}  // namespace cuda
}  // namespace mdepth
