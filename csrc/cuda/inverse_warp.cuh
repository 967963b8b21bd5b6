// Bilinear inverse warping. Gradients by depth and projection are gathered, one writer a pixel, and summed in a fixed
// order. The gradient by the source is a scatter: by atomics, or, in a fixed order, by one thread per source row that
// goes through all pixels and keeps what falls into its row.
#pragma once
#include "block.cuh"
#include "mdepth/inverse_warp.h"
#include "mdepth/warp.h"

namespace mdepth {

// Where a pixel falls in the source.
template <class T>
struct Location {
  Projected<T> at;
  Axis<T> u, v;
};

template <Padding padding, class T>
__device__ __forceinline__ Location<T> locate(const InverseWarpParams& p, const RowProjection<T>& row, int x, int y,
                                              T depth) {
  Location<T> l;
  l.at = project(row, T(x), depth);
  l.u = sample_axis<padding>(x, l.at.shift_u, int(p.source_width));
  l.v = sample_axis<padding>(y, l.at.shift_v, int(p.source_height));
  return l;
}

// The source where the pixel falls; nothing where the point is behind the camera.
template <class T>
__device__ __forceinline__ Sample<T> sample(const Location<T>& l, const T* source, int width) {
  const T* row0 = source + l.v.tap0 * width;
  const T* row1 = source + l.v.tap1 * width;
  const Sample<T> s = bilinear(l.u, l.v, row0[l.u.tap0], row0[l.u.tap1], row1[l.u.tap0], row1[l.u.tap1]);
  return l.at.inv_z > T(0) ? s : Sample<T>{T(0), T(0), T(0)};
}

// What every kernel over the target's pixels starts with.
template <class T>
struct PixelBlock {
  using Shape = PixelShape;
  BlockOrigin origin;
  int x, y, row;  // this thread's first pixel, and its row in the block

  // Also fills `projection`, one per row of the block, in shared memory.
  __device__ __forceinline__ PixelBlock(const InverseWarpParams& p, RowProjection<T>* projection)
      : origin(block_origin<Shape>(blockIdx.x, p.height, p.width)) {
    row = int(threadIdx.x) / kWarp * Shape::kStrip;
    x = origin.x + int(threadIdx.x) % kWarp;
    y = origin.y + row;
    if (int(threadIdx.x) < Shape::kRows)
      projection[threadIdx.x] =
          row_projection<T>(p.projection + origin.image * kProjection, double(origin.y + int(threadIdx.x)));
    __syncthreads();
  }
};

template <Padding padding, class T>
__device__ __forceinline__ void inverse_warp_tile(const InverseWarpParams& p) {
  __shared__ RowProjection<T> projection[PixelShape::kRows];
  const PixelBlock<T> block(p, projection);
  const int64_t plane = p.height * p.width, source_plane = p.source_height * p.source_width;
  const T right = T(p.source_width - 1), bottom = T(p.source_height - 1);
  for (int k = 0; k < PixelShape::kStrip; ++k) {
    const int x = block.x, y = block.y + k;
    if (x >= p.width || y >= p.height) return;
    const int64_t pixel = block.origin.image * plane + int64_t(y) * p.width + x;
    const T depth = static_cast<const T*>(p.depth)[pixel];
    const Location<T> l = locate<padding>(p, projection[block.row + k], x, y, depth);
    const T u = T(x) + l.at.shift_u, v = T(y) + l.at.shift_v;
    p.valid[pixel] = l.at.inv_z > T(0) && u >= T(0) && u <= right && v >= T(0) && v <= bottom;
    const T* source = static_cast<const T*>(p.source) + block.origin.image * p.channels * source_plane;
    T* out = static_cast<T*>(p.warped) + block.origin.image * p.channels * plane + int64_t(y) * p.width + x;
    for (int64_t c = 0; c < p.channels; ++c)
      out[c * plane] = sample(l, source + c * source_plane, int(p.source_width)).value + l.at.poison;
  }
}

template <Padding padding, class T>
__device__ __forceinline__ void inverse_warp_gather_tile(const InverseWarpParams& p) {
  using Shape = PixelShape;
  __shared__ RowProjection<T> projection[Shape::kRows];
  __shared__ T scratch[kBlockSumScratch<kProjection, Shape::kThreads>];
  const PixelBlock<T> block(p, projection);
  const int64_t plane = p.height * p.width, source_plane = p.source_height * p.source_width;
  T sum[kProjection];
#pragma unroll
  for (int j = 0; j < kProjection; ++j) sum[j] = T(0);
  for (int k = 0; k < Shape::kStrip; ++k) {
    const int x = block.x, y = block.y + k;
    if (x >= p.width || y >= p.height) break;
    const int64_t pixel = block.origin.image * plane + int64_t(y) * p.width + x;
    const T depth = static_cast<const T*>(p.depth)[pixel];
    const Location<T> l = locate<padding>(p, projection[block.row + k], x, y, depth);
    const T* source = static_cast<const T*>(p.source) + block.origin.image * p.channels * source_plane;
    const T* grad = static_cast<const T*>(p.grad) + block.origin.image * p.channels * plane + int64_t(y) * p.width + x;
    T gu = T(0), gv = T(0);
#pragma unroll 1  // several channels of double at a time would not fit the registers
    for (int64_t c = 0; c < p.channels; ++c) {
      const Sample<T> s = sample(l, source + c * source_plane, int(p.source_width));
      gu += grad[c * plane] * s.du;
      gv += grad[c * plane] * s.dv;
    }
    if (p.grad_depth) static_cast<T*>(p.grad_depth)[pixel] = gu * l.at.du_ddepth + gv * l.at.dv_ddepth;
    const T to_u = gu * l.at.inv_z, to_v = gv * l.at.inv_z;
    const T to_z = -(to_u * (T(x) + l.at.shift_u) + to_v * (T(y) + l.at.shift_v));
    add_projection(sum, to_u, to_v, to_z, T(x), T(y), depth);
  }
  if (!p.grad_projection) return;
  const int64_t per_image = blocks_per_image<Shape>(p.height, p.width), tiles = p.batch * per_image;
  block_sum<Shape::kThreads>(sum, scratch, p.workspace + blockIdx.x, tiles);
}

// One block per number.
__device__ __forceinline__ void inverse_warp_sum(const InverseWarpParams& p) {
  const int64_t per_image = blocks_per_image<PixelShape>(p.height, p.width), tiles = p.batch * per_image;
  const int64_t k = blockIdx.x, j = k % kProjection, image = k / kProjection;
  sum_in_order(p.workspace + j * tiles + image * per_image, per_image, 1, p.grad_projection + k);
}

template <Padding padding, class T>
__device__ __forceinline__ void inverse_warp_scatter_tile(const InverseWarpParams& p) {
  __shared__ RowProjection<T> projection[PixelShape::kRows];
  const PixelBlock<T> block(p, projection);
  const int64_t plane = p.height * p.width, source_plane = p.source_height * p.source_width;
  for (int k = 0; k < PixelShape::kStrip; ++k) {
    const int x = block.x, y = block.y + k;
    if (x >= p.width || y >= p.height) return;
    const T depth = static_cast<const T*>(p.depth)[block.origin.image * plane + int64_t(y) * p.width + x];
    const Location<T> l = locate<padding>(p, projection[block.row + k], x, y, depth);
    if (!(l.at.inv_z > T(0))) continue;
    const T* grad = static_cast<const T*>(p.grad) + block.origin.image * p.channels * plane + int64_t(y) * p.width + x;
    T* out = static_cast<T*>(p.grad_source) + block.origin.image * p.channels * source_plane;
    T* row0 = out + l.v.tap0 * int(p.source_width);
    T* row1 = out + l.v.tap1 * int(p.source_width);
    for (int64_t c = 0; c < p.channels; ++c) {
      const T g0 = grad[c * plane] * l.v.w0, g1 = grad[c * plane] * l.v.w1;
      atomicAdd(row0 + l.u.tap0, g0 * l.u.w0);
      atomicAdd(row0 + l.u.tap1, g0 * l.u.w1);
      atomicAdd(row1 + l.u.tap0, g1 * l.u.w0);
      atomicAdd(row1 + l.u.tap1, g1 * l.u.w1);
      row0 += source_plane;
      row1 += source_plane;
    }
  }
}

template <Padding padding, class T>
__device__ __forceinline__ void inverse_warp_scatter_rows(const InverseWarpParams& p) {
  const int64_t row = int64_t(blockIdx.x) * kOrderedThreads + threadIdx.x;  // of all planes' source rows
  if (row >= p.batch * p.channels * p.source_height) return;
  const int64_t image = row / p.source_height;  // of B * C planes
  const int mine = int(row % p.source_height);
  const int64_t plane = p.height * p.width, batch = image / p.channels;
  const T* depth = static_cast<const T*>(p.depth) + batch * plane;
  const T* grad = static_cast<const T*>(p.grad) + image * plane;
  T* out = static_cast<T*>(p.grad_source) + row * p.source_width;
  for (int y = 0; y < p.height; ++y) {
    const RowProjection<T> projection = row_projection<T>(p.projection + batch * kProjection, double(y));
    for (int x = 0; x < p.width; ++x, ++depth, ++grad) {
      const Location<T> l = locate<padding>(p, projection, x, y, *depth);
      if (!(l.at.inv_z > T(0))) continue;
      for (int tap = 0; tap < 2; ++tap) {
        if ((tap ? l.v.tap1 : l.v.tap0) != mine) continue;
        const T g = *grad * (tap ? l.v.w1 : l.v.w0);
        out[l.u.tap0] += g * l.u.w0;
        out[l.u.tap1] += g * l.u.w1;
      }
    }
  }
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_INVERSE_WARP_KERNEL(KERNEL, name, threads, function)                                         \
  KERNEL(name##_f32_border, threads, InverseWarpParams, mdepth::function<mdepth::Padding::kBorder, float>)  \
  KERNEL(name##_f32_zeros, threads, InverseWarpParams, mdepth::function<mdepth::Padding::kZeros, float>)    \
  KERNEL(name##_f64_border, threads, InverseWarpParams, mdepth::function<mdepth::Padding::kBorder, double>) \
  KERNEL(name##_f64_zeros, threads, InverseWarpParams, mdepth::function<mdepth::Padding::kZeros, double>)
#define MDEPTH_INVERSE_WARP_KERNELS(KERNEL)                                                                            \
  MDEPTH_INVERSE_WARP_KERNEL(KERNEL, inverse_warp, mdepth::PixelShape::kThreads, inverse_warp_tile)                    \
  MDEPTH_INVERSE_WARP_KERNEL(KERNEL, inverse_warp_gather, mdepth::PixelShape::kThreads, inverse_warp_gather_tile)      \
  MDEPTH_INVERSE_WARP_KERNEL(KERNEL, inverse_warp_scatter, mdepth::PixelShape::kThreads, inverse_warp_scatter_tile)    \
  MDEPTH_INVERSE_WARP_KERNEL(KERNEL, inverse_warp_scatter_ordered, mdepth::kOrderedThreads, inverse_warp_scatter_rows) \
  KERNEL(inverse_warp_sum, mdepth::kReduceThreads, InverseWarpParams, mdepth::inverse_warp_sum)

MDEPTH_INVERSE_WARP_KERNELS(MDEPTH_DEFINE_KERNEL)
