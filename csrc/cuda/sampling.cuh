// Bilinear warping by any motion: what inverse_warp, flow_warp and flow_photometric_loss share. The gradient by the source
// is a scatter: by atomics, or, in a fixed order, by one thread per source row that goes through all pixels and keeps what
// falls into its row.
//
// A motion has the type `Number`, and `at(image, x, y, row)` gives the Location of a pixel, `row` its row in the block.
#pragma once
#include "block.cuh"
#include "mdepth/warp.h"

namespace mdepth {

// Where a pixel falls in the source.
template <class T>
struct Location {
  Axis<T> u, v;
  T shift_u, shift_v;
  T poison;   // 0, or NaN
  bool seen;  // else it falls nowhere
};

// Where a flow leads; infinite or NaN, nowhere.
template <Padding padding, class T>
__device__ __forceinline__ Location<T> follow(const T* flow, int64_t plane, int x, int y, int height, int width) {
  Location<T> l;
  l.shift_u = flow[0];
  l.shift_v = flow[plane];
  l.poison = (l.shift_u + l.shift_v) * T(0);
  l.seen = l.poison == T(0);
  l.u = sample_axis<padding>(x, l.shift_u, width);
  l.v = sample_axis<padding>(y, l.shift_v, height);
  return l;
}

// Whether a pixel falls inside a source whose last column and row are `right` and `bottom`.
template <class T>
__device__ __forceinline__ bool falls_inside(const Location<T>& l, int x, int y, T right, T bottom) {
  const T u = T(x) + l.shift_u, v = T(y) + l.shift_v;
  return l.seen && u >= T(0) && u <= right && v >= T(0) && v <= bottom;
}

// The source where the pixel falls; nothing where it falls nowhere.
template <class T>
__device__ __forceinline__ Sample<T> sample(const Location<T>& l, const T* source, int width) {
  const T* row0 = source + l.v.tap0 * width;
  const T* row1 = source + l.v.tap1 * width;
  const Sample<T> s = bilinear(l.u, l.v, row0[l.u.tap0], row0[l.u.tap1], row1[l.u.tap0], row1[l.u.tap1]);
  return l.seen ? s : Sample<T>{T(0), T(0), T(0)};
}

// Where a thread of a kernel over the target's pixels starts.
struct PixelBlock {
  using Shape = PixelShape;
  int64_t image;
  int x, y, row;  // this thread's first pixel, and its row in the block

  __device__ __forceinline__ PixelBlock(int64_t height, int64_t width) {
    const BlockOrigin origin = block_origin<Shape>(blockIdx.x, height, width);
    image = origin.image;
    row = int(threadIdx.x) / kWarp * Shape::kStrip;
    x = origin.x + int(threadIdx.x) % kWarp;
    y = origin.y + row;
  }
};

template <class Motion, class Params>
__device__ __forceinline__ void warp_tile(const Params& p, const Motion& motion) {
  using T = typename Motion::Number;
  const PixelBlock block(p.height, p.width);
  const int64_t plane = p.height * p.width, source_plane = p.source_height * p.source_width;
  for (int k = 0; k < PixelShape::kStrip; ++k) {
    const int x = block.x, y = block.y + k;
    if (x >= p.width || y >= p.height) return;
    const Location<T> l = motion.at(block.image, x, y, block.row + k);
    p.valid[block.image * plane + int64_t(y) * p.width + x] =
        falls_inside(l, x, y, T(p.source_width - 1), T(p.source_height - 1));
    const T* source = static_cast<const T*>(p.source) + block.image * p.channels * source_plane;
    T* out = static_cast<T*>(p.warped) + block.image * p.channels * plane + int64_t(y) * p.width + x;
    for (int64_t c = 0; c < p.channels; ++c)
      out[c * plane] = sample(l, source + c * source_plane, int(p.source_width)).value + l.poison;
  }
}

// The gradient of a pixel by u and v.
template <class T, class Params>
__device__ __forceinline__ void gather(const Params& p, const Location<T>& l, int64_t image, int x, int y, T& gu,
                                       T& gv) {
  const int64_t plane = p.height * p.width, source_plane = p.source_height * p.source_width;
  const T* source = static_cast<const T*>(p.source) + image * p.channels * source_plane;
  const T* grad = static_cast<const T*>(p.grad) + image * p.channels * plane + int64_t(y) * p.width + x;
  gu = gv = T(0);
#pragma unroll 1  // several channels of double at a time would not fit the registers
  for (int64_t c = 0; c < p.channels; ++c) {
    const Sample<T> s = sample(l, source + c * source_plane, int(p.source_width));
    gu += grad[c * plane] * s.du;
    gv += grad[c * plane] * s.dv;
  }
}

template <class Motion, class Params>
__device__ __forceinline__ void warp_scatter_tile(const Params& p, const Motion& motion) {
  using T = typename Motion::Number;
  const PixelBlock block(p.height, p.width);
  const int64_t plane = p.height * p.width, source_plane = p.source_height * p.source_width;
  for (int k = 0; k < PixelShape::kStrip; ++k) {
    const int x = block.x, y = block.y + k;
    if (x >= p.width || y >= p.height) return;
    const Location<T> l = motion.at(block.image, x, y, block.row + k);
    if (!l.seen) continue;
    const T* grad = static_cast<const T*>(p.grad) + block.image * p.channels * plane + int64_t(y) * p.width + x;
    T* out = static_cast<T*>(p.grad_source) + block.image * p.channels * source_plane;
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

// `motion_of(image, y)` is the motion of a row's pixels.
template <class T, class Params, class MotionOf>
__device__ __forceinline__ void warp_scatter_rows(const Params& p, MotionOf motion_of) {
  const int64_t row = int64_t(blockIdx.x) * kOrderedThreads + threadIdx.x;  // of all planes' source rows
  if (row >= p.batch * p.channels * p.source_height) return;
  const int64_t image = row / p.source_height;  // of B * C planes
  const int mine = int(row % p.source_height);
  const int64_t plane = p.height * p.width, batch = image / p.channels;
  const T* grad = static_cast<const T*>(p.grad) + image * plane;
  T* out = static_cast<T*>(p.grad_source) + row * p.source_width;
  for (int y = 0; y < p.height; ++y) {
    const auto motion = motion_of(batch, y);
    for (int x = 0; x < p.width; ++x, ++grad) {
      const Location<T> l = motion.at(batch, x, y, 0);
      if (!l.seen) continue;
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

// The kernels of a warp, each for both dtypes and paddings: name, threads, parameters, function.
#define MDEPTH_WARP_KERNEL(KERNEL, name, threads, Params, function)                              \
  KERNEL(name##_f32_border, threads, Params, mdepth::function<mdepth::Padding::kBorder, float>)  \
  KERNEL(name##_f32_zeros, threads, Params, mdepth::function<mdepth::Padding::kZeros, float>)    \
  KERNEL(name##_f64_border, threads, Params, mdepth::function<mdepth::Padding::kBorder, double>) \
  KERNEL(name##_f64_zeros, threads, Params, mdepth::function<mdepth::Padding::kZeros, double>)
