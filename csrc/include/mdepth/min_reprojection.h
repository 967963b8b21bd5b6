// min_reprojection: parameters and launch plan; the arithmetic is in warp.h and ssim.h.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

struct MinReprojectionParams {
  Dtype dtype;
  Padding padding;
  int threads;
  int64_t batch, sources, scales, height, width;
  double ssim_weight;
  bool auto_mask;
  const void* target;             // (B, 3, H, W)
  const void* source;             // (B, S, 3, H, W)
  const void* depth[kMaxScales];  // each (B, 1, H, W)
  const double* projection;       // (B, S, 3, 4)
  const void* identity_noise;     // (B, S, H, W) or null
  double* loss;                   // out (scales,)
  int8_t* selection;              // out (scales, B, 1, H, W)
  void* grad_depth;               // out (scales, B, 1, H, W), of each scale's loss; null: not wanted
  double* grad_projection;        // out (scales, B, S, 3, 4); null exactly where grad_depth is
  double* workspace;              // GPU
};
MDEPTH_FIELDS(MinReprojectionParams, dtype, padding, threads, batch, sources, scales, height, width, ssim_weight,
              auto_mask, target, source, depth, projection, identity_noise, loss, selection, grad_depth,
              grad_projection, workspace)

#if !defined(__CUDACC_RTC__)

inline Plan plan_min_reprojection(const MinReprojectionParams& p) {
  check_plane("min_reprojection", p.height, p.width);
  const bool wide = p.dtype == Dtype::kFloat64;
  const int64_t tiles = p.batch * (wide ? blocks_per_image<ReprojectionShape<double>>(p.height, p.width)
                                        : blocks_per_image<ReprojectionShape<float>>(p.height, p.width));
  Plan plan;
  plan.workspace = p.scales * (1 + p.sources * kProjection) * tiles;
  plan.add(with_padding("min_reprojection", p.dtype, p.padding), tiles,
           wide ? ReprojectionShape<double>::kThreads : ReprojectionShape<float>::kThreads);
  plan.add(with_dtype("min_reprojection_sum", p.dtype),
           p.scales * (1 + (p.grad_projection ? p.batch * p.sources * kProjection : 0)), kReduceThreads);
  return plan;
}

#endif

}  // namespace mdepth
