// Bilinear warping by optical flow; sampling.cuh has what inverse_warp shares. The gradient by the flow is gathered, one
// writer a pixel.
#pragma once
#include "mdepth/flow_warp.h"
#include "sampling.cuh"

namespace mdepth {

template <Padding padding, class T>
struct FlowMotion {
  using Number = T;
  const FlowWarpParams& p;

  __device__ __forceinline__ Location<T> at(int64_t image, int x, int y, int) const {
    const int64_t plane = p.height * p.width;
    const T* flow = static_cast<const T*>(p.flow) + image * 2 * plane + int64_t(y) * p.width + x;
    return follow<padding>(flow, plane, x, y, int(p.source_height), int(p.source_width));
  }
};

template <Padding padding, class T>
__device__ __forceinline__ void flow_warp_tile(const FlowWarpParams& p) {
  warp_tile(p, FlowMotion<padding, T>{p});
}

template <Padding padding, class T>
__device__ __forceinline__ void flow_warp_gather_tile(const FlowWarpParams& p) {
  const FlowMotion<padding, T> motion{p};
  const PixelBlock block(p.height, p.width);
  const int64_t plane = p.height * p.width;
  for (int k = 0; k < PixelShape::kStrip; ++k) {
    const int x = block.x, y = block.y + k;
    if (x >= p.width || y >= p.height) return;
    T gu, gv;
    gather(p, motion.at(block.image, x, y, 0), block.image, x, y, gu, gv);
    T* out = static_cast<T*>(p.grad_flow) + block.image * 2 * plane + int64_t(y) * p.width + x;
    out[0] = gu;
    out[plane] = gv;
  }
}

template <Padding padding, class T>
__device__ __forceinline__ void flow_warp_scatter_tile(const FlowWarpParams& p) {
  warp_scatter_tile(p, FlowMotion<padding, T>{p});
}

template <Padding padding, class T>
__device__ __forceinline__ void flow_warp_scatter_rows(const FlowWarpParams& p) {
  warp_scatter_rows<T>(p, [&](int64_t, int) { return FlowMotion<padding, T>{p}; });
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_FLOW_WARP_KERNEL(KERNEL, name, threads, function) \
  MDEPTH_WARP_KERNEL(KERNEL, name, threads, FlowWarpParams, function)
#define MDEPTH_FLOW_WARP_KERNELS(KERNEL)                                                                   \
  MDEPTH_FLOW_WARP_KERNEL(KERNEL, flow_warp, mdepth::PixelShape::kThreads, flow_warp_tile)                 \
  MDEPTH_FLOW_WARP_KERNEL(KERNEL, flow_warp_gather, mdepth::PixelShape::kThreads, flow_warp_gather_tile)   \
  MDEPTH_FLOW_WARP_KERNEL(KERNEL, flow_warp_scatter, mdepth::PixelShape::kThreads, flow_warp_scatter_tile) \
  MDEPTH_FLOW_WARP_KERNEL(KERNEL, flow_warp_scatter_ordered, mdepth::kOrderedThreads, flow_warp_scatter_rows)

MDEPTH_FLOW_WARP_KERNELS(MDEPTH_DEFINE_KERNEL)
