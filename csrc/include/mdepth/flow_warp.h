// flow_warp: parameters and launch plans; the arithmetic is in warp.h.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

struct FlowWarpParams {
  Dtype dtype;
  Padding padding;
  int threads;
  int64_t batch, channels, height, width, source_height, source_width;
  const void* source;  // (B, C, source H, source W)
  const void* flow;    // (B, 2, H, W)
  void* warped;        // out (B, C, H, W); forward only
  bool* valid;         // out (B, 1, H, W); forward only
  const void* grad;    // (B, C, H, W); backward only, as is all below; null: not wanted
  void* grad_source;   // zeroed by the caller
  void* grad_flow;     // (B, 2, H, W)
  bool ordered;        // GPU: the gradient by the source in a fixed order, without atomics
};
MDEPTH_FIELDS(FlowWarpParams, dtype, padding, threads, batch, channels, height, width, source_height, source_width,
              source, flow, warped, valid, grad, grad_source, grad_flow, ordered)

#if !defined(__CUDACC_RTC__)

inline Plan plan_flow_warp(const FlowWarpParams& p) {
  check_plane("flow_warp", p.height, p.width);
  check_plane("flow_warp", p.source_height, p.source_width);
  Plan plan;
  plan.add(with_padding("flow_warp", p.dtype, p.padding), p.batch * blocks_per_image<PixelShape>(p.height, p.width),
           PixelShape::kThreads);
  return plan;
}

inline Plan plan_flow_warp_backward(const FlowWarpParams& p) {
  check_plane("flow_warp", p.height, p.width);
  check_plane("flow_warp", p.source_height, p.source_width);
  const int64_t tiles = p.batch * blocks_per_image<PixelShape>(p.height, p.width);
  Plan plan;
  if (p.grad_flow) plan.add(with_padding("flow_warp_gather", p.dtype, p.padding), tiles, PixelShape::kThreads);
  if (p.grad_source && p.ordered)
    plan.add(with_padding("flow_warp_scatter_ordered", p.dtype, p.padding),
             (p.batch * p.channels * p.source_height + kOrderedThreads - 1) / kOrderedThreads, kOrderedThreads);
  if (p.grad_source && !p.ordered)
    plan.add(with_padding("flow_warp_scatter", p.dtype, p.padding), tiles, PixelShape::kThreads);
  return plan;
}

#endif

}  // namespace mdepth
