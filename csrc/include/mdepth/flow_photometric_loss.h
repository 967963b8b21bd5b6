// flow_photometric_loss: parameters and launch plan; the arithmetic is in warp.h and charbonnier.h.
#pragma once
#include "mdepth/charbonnier.h"
#include "mdepth/grid.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

struct FlowPhotometricLossParams {
  Dtype dtype;
  int threads;
  int64_t batch, channels, height, width;
  double alpha, scale, epsilon;
  const void* target;  // (B, C, H, W)
  const void* source;  // (B, C, H, W)
  const void* flow;    // (B, 2, H, W)
  const void* mask;    // (B, 1, H, W) or null: 1
  double* loss;        // out: one number
  void* grad_flow;     // out (B, 2, H, W); null: not wanted
  double* workspace;   // GPU
};
MDEPTH_FIELDS(FlowPhotometricLossParams, dtype, threads, batch, channels, height, width, alpha, scale, epsilon, target,
              source, flow, mask, loss, grad_flow, workspace)

#if !defined(__CUDACC_RTC__)

inline Plan plan_flow_photometric_loss(const FlowPhotometricLossParams& p) {
  check_plane("flow_photometric_loss", p.height, p.width);
  const int64_t tiles = p.batch * blocks_per_image<PixelShape>(p.height, p.width);
  Plan plan;
  plan.workspace = tiles;
  plan.add(with_dtype("flow_photometric_loss", p.dtype), tiles, PixelShape::kThreads);
  plan.add("flow_photometric_loss_sum", 1, kReduceThreads);
  return plan;
}

#endif

}  // namespace mdepth
