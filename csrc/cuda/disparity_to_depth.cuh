// Depth of a disparity map at another size, and its gradient. A thread of the forward has pixels of the depth, one of the
// backward a pixel of the map, for which it gathers all that reads it: nothing is written twice.
#pragma once
#include "block.cuh"
#include "mdepth/disparity_to_depth.h"

namespace mdepth {

template <class T>
__device__ __forceinline__ void disparity_to_depth_tile(const DisparityToDepthParams& p) {
  using Shape = PixelShape;
  const BlockOrigin origin = block_origin<Shape>(blockIdx.x, p.height, p.width);
  const int x = origin.x + int(threadIdx.x) % kWarp, y = origin.y + int(threadIdx.x) / kWarp * Shape::kStrip;
  if (x >= p.width) return;
  const bool resized = p.map_height != p.height || p.map_width != p.width;
  const T far = T(inverse_depth_at_0(p)), range = T(inverse_depth_range(p));
  const T* map = static_cast<const T*>(p.disparity) + origin.image * p.map_height * p.map_width;
  T* depth = static_cast<T*>(p.depth) + origin.image * p.height * p.width;
  const ResizeTaps<T> u = resize_taps<T>(x, p.map_width, p.width);
  for (int k = 0; k < Shape::kStrip && y + k < p.height; ++k) {
    T disparity;
    if (resized) {
      const ResizeTaps<T> v = resize_taps<T>(y + k, p.map_height, p.height);
      const T* above = map + v.first * p.map_width;
      const T* below = map + v.second * p.map_width;
      disparity = v.w_first * (u.w_first * above[u.first] + u.w_second * above[u.second]) +
                  v.w_second * (u.w_first * below[u.first] + u.w_second * below[u.second]);
    } else {
      disparity = map[int64_t(y + k) * p.width + x];
    }
    depth[int64_t(y + k) * p.width + x] = T(1) / (far + range * disparity);
  }
}

template <class T>
__device__ __forceinline__ void disparity_to_depth_backward_run(const DisparityToDepthParams& p) {
  const int64_t plane = p.map_height * p.map_width, runs = runs_per_plane(plane);
  const int64_t image = blockIdx.x / runs, i = blockIdx.x % runs * kRunThreads + threadIdx.x;
  if (i >= plane) return;
  const int x = int(i % p.map_width), y = int(i / p.map_width);
  const T* depth = static_cast<const T*>(p.depth) + image * p.height * p.width;
  const T* grad = static_cast<const T*>(p.grad) + image * p.height * p.width;
  const ResizeReaders rows = resize_readers(y, p.map_height, p.height);
  const ResizeReaders columns = resize_readers(x, p.map_width, p.width);
  T sum = T(0);
  for (int v = rows.begin; v < rows.end; ++v) {
    const int64_t row = v * p.width;
    T along = T(0);
#pragma unroll 4
    for (int u = columns.begin; u < columns.end; ++u) {
      const T d = depth[row + u];
      along += resize_weight<T>(u, x, p.map_width, p.width) * (grad[row + u] * (d * d));
    }
    sum += resize_weight<T>(v, y, p.map_height, p.height) * along;
  }
  static_cast<T*>(p.grad_disparity)[image * plane + i] = T(-inverse_depth_range(p)) * sum;
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_DISPARITY_TO_DEPTH_KERNELS(KERNEL)                                      \
  KERNEL(disparity_to_depth_f32, mdepth::PixelShape::kThreads, DisparityToDepthParams, \
         mdepth::disparity_to_depth_tile<float>)                                       \
  KERNEL(disparity_to_depth_f64, mdepth::PixelShape::kThreads, DisparityToDepthParams, \
         mdepth::disparity_to_depth_tile<double>)                                      \
  KERNEL(disparity_to_depth_backward_f32, mdepth::kRunThreads, DisparityToDepthParams, \
         mdepth::disparity_to_depth_backward_run<float>)                               \
  KERNEL(disparity_to_depth_backward_f64, mdepth::kRunThreads, DisparityToDepthParams, \
         mdepth::disparity_to_depth_backward_run<double>)

MDEPTH_DISPARITY_TO_DEPTH_KERNELS(MDEPTH_DEFINE_KERNEL)
