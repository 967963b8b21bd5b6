// The per-pixel photometric distance of two images, and its gradient by both. The forward reads its windows through the
// cache; the backward shares the distances' derivatives with the neighbours, so that every gradient has one writer.
#pragma once
#include "block.cuh"
#include "mdepth/photometric_loss.h"
#include "mdepth/ssim.h"

namespace mdepth {

// Offsets into a plane of the three columns around x.
struct Columns {
  int at[3];
};

__device__ __forceinline__ Columns columns_around(int x, int width) {
  return Columns{{inside(x - 1, width), inside(x, width), inside(x + 1, width)}};
}

// Shifts a window one row down.
template <class T>
__device__ __forceinline__ void next_row(Window<T>& w, const T* row, const Columns& columns) {
#pragma unroll
  for (int i = 0; i < 6; ++i) w.v[i] = w.v[i + 3];
#pragma unroll
  for (int i = 0; i < 3; ++i) w.v[6 + i] = row[columns.at[i]];
}

template <class T>
__device__ __forceinline__ void photometric_loss_tile(const PhotometricLossParams& p) {
  using Shape = WindowShape;
  constexpr int kStrip = Shape::kStrip;
  const int width = int(p.width), height = int(p.height);
  const int64_t plane = p.width * p.height;
  const BlockOrigin origin = block_origin<Shape>(blockIdx.x, p.height, p.width);
  const int x = origin.x + int(threadIdx.x) % kWarp, y = origin.y + int(threadIdx.x) / kWarp * kStrip;
  if (x >= width || y >= height) return;
  const T w_ssim = T(p.ssim_weight / double(p.channels)), w_l1 = T((1 - p.ssim_weight) / double(p.channels));
  const Columns columns = columns_around(x, width);
  T loss[kStrip];
#pragma unroll
  for (int k = 0; k < kStrip; ++k) loss[k] = T(0);
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* a = static_cast<const T*>(p.prediction) + (origin.image * p.channels + c) * plane;
    const T* b = static_cast<const T*>(p.target) + (origin.image * p.channels + c) * plane;
    Window<T> wa, wb;
#pragma unroll
    for (int row = -1; row <= kStrip; ++row) {
      const int at = inside(y + row, height) * width;
      next_row(wa, a + at, columns);
      next_row(wb, b + at, columns);
      if (row < 1) continue;
      loss[row - 1] += w_ssim * ssim_distance(wa, wb, moments_of(wb)).distance + w_l1 * abs_of(wa.v[4] - wb.v[4]);
    }
  }
  T* out = static_cast<T*>(p.loss) + origin.image * plane + int64_t(y) * width + x;
#pragma unroll
  for (int k = 0; k < kStrip; ++k)
    if (y + k < height) out[k * width] = loss[k];
}

template <class T>
__device__ __forceinline__ void photometric_loss_backward_tile(const PhotometricLossParams& p) {
  using Shape = WindowGradientShape<T>;
  constexpr int kStrip = Shape::kStrip, kPixels = Shape::kRows * kWarp;
  __shared__ T coefficient[4 * kPixels];  // a_x, a_y, b, c of every window, times its gradient
  const int width = int(p.width), height = int(p.height);
  const int64_t plane = p.width * p.height;
  const BlockOrigin origin = block_origin<Shape>(blockIdx.x, p.height, p.width);
  const int lane = int(threadIdx.x) % kWarp, first = int(threadIdx.x) / kWarp * kStrip;
  const int x = origin.x - 1 + lane, y = origin.y - 1 + first;
  const bool column_exists = x >= 0 && x < width;
  const bool owned_column = lane >= 1 && lane <= Shape::kWidth && x < width;
  const T w_ssim = T(p.ssim_weight / double(p.channels)), w_l1 = T((1 - p.ssim_weight) / double(p.channels));
  const T left_weight = T(weight_above(x)), right_weight = T(weight_below(x, width));
  const Columns columns = columns_around(inside(x, width), width);
  const T* const grad_plane = static_cast<const T*>(p.grad) + origin.image * plane;
  T grad[kStrip];
#pragma unroll
  for (int k = 0; k < kStrip; ++k)
    grad[k] = column_exists && y + k >= 0 && y + k < height ? grad_plane[int64_t(y + k) * width + x] : T(0);

  for (int64_t c = 0; c < p.channels; ++c) {
    const int64_t offset = (origin.image * p.channels + c) * plane;
    const T* a = static_cast<const T*>(p.prediction) + offset;
    const T* b = static_cast<const T*>(p.target) + offset;
    Window<T> wa, wb;
    T here_a[kStrip], here_b[kStrip];
#pragma unroll
    for (int row = -1; row <= kStrip; ++row) {
      const int at = inside(y + row, height) * width;
      next_row(wa, a + at, columns);
      next_row(wb, b + at, columns);
      const int k = row - 1;
      if (k < 0) continue;
      here_a[k] = wa.v[4];
      here_b[k] = wb.v[4];
      const bool exists = column_exists && y + k >= 0 && y + k < height;
      const SsimDistance<T> s = ssim_distance(wa, wb, moments_of(wb));
      const T terms[4] = {s.a_x, s.a_y, s.b, s.c};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        coefficient[j * kPixels + (first + k) * kWarp + lane] = exists ? w_ssim * terms[j] * grad[k] : T(0);
    }
    __syncthreads();
    T sum[kStrip][4];
#pragma unroll
    for (int k = 0; k < kStrip; ++k)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[k][j] = T(0);
#pragma unroll
    for (int row = -1; row <= kStrip; ++row) {
      if (!owned_column || first + row < 0 || first + row >= Shape::kRows) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const T* at = coefficient + j * kPixels + (first + row) * kWarp + lane;
        const T across = left_weight * at[-1] + at[0] + right_weight * at[1];
#pragma unroll
        for (int k = 0; k < kStrip; ++k) {
          if (row < k - 1 || row > k + 1) continue;
          sum[k][j] += (row < k ? T(weight_above(y + k)) : (row > k ? T(weight_below(y + k, height)) : T(1))) * across;
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kStrip; ++k) {
      if (!owned_column || first + k < 1 || first + k > Shape::kHeight || y + k >= height) continue;
      const T xa = here_a[k] - T(0.5), xb = here_b[k] - T(0.5);
      const T l1 = grad[k] * w_l1 * sign_of(here_a[k] - here_b[k]);
      const int64_t at = offset + int64_t(y + k) * width + x;
      if (p.grad_prediction) static_cast<T*>(p.grad_prediction)[at] = sum[k][0] + sum[k][2] * xa + sum[k][3] * xb + l1;
      if (p.grad_target) static_cast<T*>(p.grad_target)[at] = sum[k][1] + sum[k][2] * xb + sum[k][3] * xa - l1;
    }
    __syncthreads();
  }
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_PHOTOMETRIC_LOSS_KERNELS(KERNEL)                                                               \
  KERNEL(photometric_loss_f32, mdepth::WindowShape::kThreads, PhotometricLossParams,                          \
         mdepth::photometric_loss_tile<float>)                                                                \
  KERNEL(photometric_loss_f64, mdepth::WindowShape::kThreads, PhotometricLossParams,                          \
         mdepth::photometric_loss_tile<double>)                                                               \
  KERNEL(photometric_loss_backward_f32, mdepth::WindowGradientShape<float>::kThreads, PhotometricLossParams,  \
         mdepth::photometric_loss_backward_tile<float>)                                                       \
  KERNEL(photometric_loss_backward_f64, mdepth::WindowGradientShape<double>::kThreads, PhotometricLossParams, \
         mdepth::photometric_loss_backward_tile<double>)

MDEPTH_PHOTOMETRIC_LOSS_KERNELS(MDEPTH_DEFINE_KERNEL)
