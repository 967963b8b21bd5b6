// disparity_to_depth: parameters, arithmetic and launch plans.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/hd.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"
#include "mdepth/resize.h"

namespace mdepth {

// A map is resized bilinearly, as inverse depth from 1 / max_depth at 0 to 1 / min_depth at 1.
struct DisparityToDepthParams {
  Dtype dtype;
  int threads;
  int64_t batch, height, width, map_height, map_width;
  double min_depth, max_depth;
  const void* disparity;  // (B, 1, map height, map width); forward only
  void* depth;            // (B, 1, H, W): out in forward, in in backward
  const void* grad;       // (B, 1, H, W); backward only, as is all below
  void* grad_disparity;   // out (B, 1, map height, map width)
};
MDEPTH_FIELDS(DisparityToDepthParams, dtype, threads, batch, height, width, map_height, map_width, min_depth, max_depth,
              disparity, depth, grad, grad_disparity)

MDEPTH_HD double inverse_depth_at_0(const DisparityToDepthParams& p) { return 1.0 / p.max_depth; }
MDEPTH_HD double inverse_depth_range(const DisparityToDepthParams& p) { return 1.0 / p.min_depth - 1.0 / p.max_depth; }

#if !defined(__CUDACC_RTC__)

inline Plan plan_disparity_to_depth(const DisparityToDepthParams& p) {
  check_plane("disparity_to_depth", p.height, p.width);
  check_plane("disparity_to_depth", p.map_height, p.map_width);
  Plan plan;
  plan.add(with_dtype("disparity_to_depth", p.dtype), p.batch * blocks_per_image<PixelShape>(p.height, p.width),
           PixelShape::kThreads);
  return plan;
}

inline Plan plan_disparity_to_depth_backward(const DisparityToDepthParams& p) {
  check_plane("disparity_to_depth", p.height, p.width);
  check_plane("disparity_to_depth", p.map_height, p.map_width);
  Plan plan;
  plan.add(with_dtype("disparity_to_depth_backward", p.dtype), p.batch * runs_per_plane(p.map_height * p.map_width),
           kRunThreads);
  return plan;
}

#endif

}  // namespace mdepth
