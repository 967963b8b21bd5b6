// edge_aware_smoothness: parameters, constants and launch plan.
#pragma once
#include "mdepth/exp.h"
#include "mdepth/grid.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

struct EdgeAwareSmoothnessParams {
  Dtype dtype;
  int threads;
  int64_t batch, channels, height, width;
  bool normalize;         // by the mean of each image
  const void* disparity;  // (B, 1, H, W)
  const void* image;      // (B, C, H, W)
  double* loss;           // out: one number
  void* grad_disparity;   // out (B, 1, H, W); null: not wanted
  double* workspace;      // GPU
};
MDEPTH_FIELDS(EdgeAwareSmoothnessParams, dtype, threads, batch, channels, height, width, normalize, disparity, image,
              loss, grad_disparity, workspace)

constexpr double kMeanEpsilon = 1e-7;  // Monodepth2's

#if !defined(__CUDACC_RTC__)

inline Plan plan_edge_aware_smoothness(const EdgeAwareSmoothnessParams& p) {
  check_plane("edge_aware_smoothness", p.height, p.width);
  const int64_t tiles = p.batch * blocks_per_image<PixelShape>(p.height, p.width);
  const int64_t per_block = kReduceThreads * kElementsPerThread;
  const int64_t per_image = (p.height * p.width + per_block - 1) / per_block;
  Plan plan;
  plan.workspace = 3 * (tiles + p.batch);  // sums of each tile, numbers of each image
  plan.add(with_dtype("edge_aware_smoothness", p.dtype), tiles, PixelShape::kThreads);
  plan.add("edge_aware_smoothness_sum", p.batch, kReduceThreads);
  plan.add(with_dtype("edge_aware_smoothness_finish", p.dtype),
           1 + (p.grad_disparity && p.normalize ? p.batch * per_image : 0), kReduceThreads);
  return plan;
}

#endif

}  // namespace mdepth
