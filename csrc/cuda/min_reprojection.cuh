// The whole photometric objective of one training step: for every scale and source the warp, SSIM and L1 against the
// target, the minimum with the identity term, the mean, and the gradients of depth and projection.
//
// A block owns a tile of one image and goes through all scales and sources with it. Around the owned pixels lie those
// whose windows reach them (the threads' pixels, halo 1), and around those the colours that the windows need (the
// region, halo 2). Target colours, one warped source and the winners' derivatives are in shared memory, the target's
// moments, the identity term and the running minimum in registers. The warp's derivative is not kept: it is computed
// again for the sources that won something nearby.
#pragma once
#include "mdepth/min_reprojection.h"
#include "reprojection.cuh"

namespace mdepth {

constexpr int kKeptSources = 2;  // so many have their projection in shared memory; of more, it is computed again

template <Padding padding, class T>
__device__ __forceinline__ void min_reprojection_tile(const MinReprojectionParams& p) {
  using Tile = ReprojectionTile<T>;
  using Shape = typename Tile::Shape;
  constexpr int kStrip = Tile::kStrip, kRegion = Tile::kRegion, kPixels = Tile::kPixels, kThreads = Shape::kThreads;
  __shared__ T target[3 * kRegion];
  __shared__ T scratch[Tile::kScratch];  // colours of one source, warped or as they are; and sums
  __shared__ T coefficient[kCoefficients * kPixels];
  __shared__ signed char winner[kPixels];
  __shared__ signed char seen[kRegion];
  __shared__ T depth[kRegion];
  __shared__ RowProjection<T> projections[kKeptSources * Tile::kRegionRows];

  const int thread = int(threadIdx.x), lane = thread % kWarp, first = thread / kWarp * kStrip;
  const int width = int(p.width), height = int(p.height), plane = width * height, sources = int(p.sources);
  const BlockOrigin origin = block_origin<Shape>(blockIdx.x, p.height, p.width);
  const int64_t tiles = p.batch * blocks_per_image<Shape>(p.height, p.width), numbers = 1 + p.sources * kProjection;
  const int left = origin.x - 2, top = origin.y - 2;   // of the region
  const int x = left + 1 + lane, y = top + 1 + first;  // this thread's first pixel
  const int corner = first * Tile::kRegionColumns + lane;
  const bool owned_column = lane >= 1 && lane <= Shape::kWidth && x < width;
  const T ssim_third = T(p.ssim_weight / 3), l1_third = T((1 - p.ssim_weight) / 3);
  const T* const source = static_cast<const T*>(p.source) + origin.image * sources * 3 * plane;
  const bool need_grad = p.grad_depth != nullptr;

  const auto load = [&](const T* image, T* region) {
#pragma unroll 1
    for (int i = thread; i < kRegion; i += kThreads) {
      const int at =
          inside(top + i / Tile::kRegionColumns, height) * width + inside(left + i % Tile::kRegionColumns, width);
#pragma unroll
      for (int c = 0; c < 3; ++c) region[c * kRegion + i] = image[int64_t(c) * plane + at];
    }
  };
  // The projection of the region's rows into source s; to be followed by a barrier.
  const auto project_rows = [&](int s, bool first_time) {
    RowProjection<T>* rows = projections + s % kKeptSources * Tile::kRegionRows;
    if ((first_time || sources > kKeptSources) && thread < Tile::kRegionRows)
      rows[thread] = row_projection<T>(p.projection + (origin.image * sources + s) * kProjection,
                                       double(inside(top + thread, height)));
    return rows;
  };

  load(static_cast<const T*>(p.target) + origin.image * 3 * plane, target);
  __syncthreads();
  Moments<T> moments[kStrip][3];
#pragma unroll
  for (int c = 0; c < 3; ++c)
#pragma unroll
    for (int k = 0; k < kStrip; ++k) {
      Window<T> window;
#pragma unroll
      for (int i = 0; i < 9; ++i)
        window.v[i] = target[c * kRegion + corner + (k + i / 3) * Tile::kRegionColumns + i % 3];
      moments[k][c] = moments_of(window);
    }

  T identity[kStrip], cost[kStrip], derivative[kStrip][kCoefficients];
#pragma unroll
  for (int k = 0; k < kStrip; ++k) identity[k] = T(0);
  for (int s = 0; p.auto_mask && s < sources; ++s) {
    load(source + int64_t(s) * 3 * plane, scratch);
    __syncthreads();
    compare<false>(scratch, target, corner, moments, ssim_third, l1_third, cost, derivative);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kStrip; ++k) {
      T now = cost[k];
      if (p.identity_noise && x >= 0 && x < width && y + k >= 0 && y + k < height)
        now += static_cast<const T*>(p.identity_noise)[(origin.image * sources + s) * plane + (y + k) * width + x];
      identity[k] = (s == 0 || now < identity[k] || now != now) ? now : identity[k];  // NaN stays
    }
  }

  for (int scale = 0; scale < int(p.scales); ++scale) {
    const T* const depth_map = static_cast<const T*>(p.depth[scale]) + origin.image * plane;
    const int64_t map = (scale * p.batch + origin.image) * plane;
    double* const partial = p.workspace + scale * numbers * tiles + blockIdx.x;

#pragma unroll
    for (int k = 0; k < (kRegion + kThreads - 1) / kThreads; ++k) {
      const int i = thread + k * kThreads;
      if (i < kRegion)
        depth[i] = depth_map[inside(top + i / Tile::kRegionColumns, height) * width +
                             inside(left + i % Tile::kRegionColumns, width)];
    }
    T best[kStrip];
    int chosen[kStrip];
#pragma unroll
    for (int k = 0; k < kStrip; ++k) {
      best[k] = identity[k];
      chosen[k] = -1;
    }
    for (int s = 0; s < sources; ++s) {
      const RowProjection<T>* const rows = project_rows(s, scale == 0);
      __syncthreads();
#pragma unroll 1
      for (int i = thread; i < kRegion; i += kThreads) {
        const int row = i / Tile::kRegionColumns;
        const int u = inside(left + i % Tile::kRegionColumns, width), v = inside(top + row, height);
        const Warp<T> w =
            warp_pixel<padding>(rows[row], source + int64_t(s) * 3 * plane, plane, u, v, depth[i], width, height);
#pragma unroll
        for (int c = 0; c < 3; ++c) scratch[c * kRegion + i] = w.color[c].value;
        seen[i] = w.at.inv_z > T(0);
      }
      __syncthreads();
      if (need_grad)
        compare<true>(scratch, target, corner, moments, ssim_third, l1_third, cost, derivative);
      else
        compare<false>(scratch, target, corner, moments, ssim_third, l1_third, cost, derivative);
#pragma unroll
      for (int k = 0; k < kStrip; ++k) {
        const bool exists = x >= 0 && x < width && y + k >= 0 && y + k < height;
        const bool candidate = seen[corner + (k + 1) * Tile::kRegionColumns + 1];
        const bool empty = !p.auto_mask && chosen[k] < 0;
        if (!exists || !(cost[k] != cost[k] || (candidate && (empty || cost[k] < best[k])))) continue;
        best[k] = cost[k];
        chosen[k] = s;
        if (!need_grad) continue;
#pragma unroll
        for (int j = 0; j < kCoefficients; ++j)
          coefficient[j * kPixels + (first + k) * kWarp + lane] = derivative[k][j];
      }
    }

    T loss[1] = {T(0)};
    bool owned[kStrip];
#pragma unroll
    for (int k = 0; k < kStrip; ++k) {
      owned[k] = owned_column && first + k >= 1 && first + k <= Shape::kHeight && y + k < height;
      winner[(first + k) * kWarp + lane] = static_cast<signed char>(chosen[k]);
      if (!owned[k]) continue;
      loss[0] += best[k];
      p.selection[map + (y + k) * width + x] = int8_t(chosen[k]);
    }
    __syncthreads();
    block_sum<kThreads>(loss, scratch, partial, 0);
    if (!need_grad) continue;

    const T left_weight = T(weight_above(x)), right_weight = T(weight_below(x, width));
    T grad_depth[kStrip];
#pragma unroll
    for (int k = 0; k < kStrip; ++k) grad_depth[k] = T(0);
    for (int s = 0; s < sources; ++s) {
      const RowProjection<T>* const rows = project_rows(s, false);
      __syncthreads();
      // The derivatives of all windows around each pixel that chose source s, summed.
      T sum[kStrip][kCoefficients];
      bool needed[kStrip];
#pragma unroll
      for (int k = 0; k < kStrip; ++k) {
        needed[k] = false;
#pragma unroll
        for (int j = 0; j < kCoefficients; ++j) sum[k][j] = T(0);
      }
#pragma unroll
      for (int row = -1; row <= kStrip; ++row) {
        if (!owned_column || first + row < 0 || first + row >= Shape::kRows) continue;
        T across[kCoefficients];
        bool won = false;
#pragma unroll
        for (int j = 0; j < kCoefficients; ++j) across[j] = T(0);
#pragma unroll
        for (int d = -1; d <= 1; ++d) {
          const int at = (first + row) * kWarp + lane + d;
          if (winner[at] != s) continue;
          won = true;
          const T weight = d < 0 ? left_weight : (d > 0 ? right_weight : T(1));
#pragma unroll
          for (int j = 0; j < kCoefficients; ++j) across[j] += weight * coefficient[j * kPixels + at];
        }
        if (!won) continue;
#pragma unroll
        for (int k = 0; k < kStrip; ++k) {
          if (row < k - 1 || row > k + 1) continue;
          const T weight = row < k ? T(weight_above(y + k)) : (row > k ? T(weight_below(y + k, height)) : T(1));
          needed[k] = true;
#pragma unroll
          for (int j = 0; j < kCoefficients; ++j) sum[k][j] += weight * across[j];
        }
      }
      T grad_projection[kProjection];
#pragma unroll
      for (int j = 0; j < kProjection; ++j) grad_projection[j] = T(0);
#pragma unroll
      for (int k = 0; k < kStrip; ++k) {
        if (!owned[k] || !needed[k]) continue;
        const T d = depth[corner + (k + 1) * Tile::kRegionColumns + 1];
        const Warp<T> w = warp_pixel<padding>(rows[first + k + 1], source + int64_t(s) * 3 * plane, plane, x, y + k, d,
                                              width, height);
        const T l1 = chosen[k] == s ? l1_third : T(0);
        T gu = T(0), gv = T(0);
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          const T here = w.color[c].value;
          const T there = target[c * kRegion + corner + (k + 1) * Tile::kRegionColumns + 1];
          const T g = sum[k][3 * c] + sum[k][3 * c + 1] * (here - T(0.5)) + sum[k][3 * c + 2] * (there - T(0.5)) +
                      l1 * sign_of(here - there);
          gu += g * w.color[c].du;
          gv += g * w.color[c].dv;
        }
        grad_depth[k] += gu * w.at.du_ddepth + gv * w.at.dv_ddepth;
        const T to_u = gu * w.at.inv_z, to_v = gv * w.at.inv_z;
        const T to_z = -(to_u * (T(x) + w.at.shift_u) + to_v * (T(y + k) + w.at.shift_v));
        add_projection(grad_projection, to_u, to_v, to_z, T(x), T(y + k), d);
      }
      block_sum<kThreads>(grad_projection, scratch, partial + (1 + s * kProjection) * tiles, tiles);
    }
    const T share = T(1.0 / double(p.batch * plane));
#pragma unroll
    for (int k = 0; k < kStrip; ++k)
      if (owned[k]) static_cast<T*>(p.grad_depth)[map + (y + k) * width + x] = grad_depth[k] * share;
  }
}

// One block per number: the losses, then the projections' gradients.
template <class T>
__device__ __forceinline__ void min_reprojection_sum(const MinReprojectionParams& p) {
  const int64_t per_image = blocks_per_image<ReprojectionShape<T>>(p.height, p.width), tiles = p.batch * per_image;
  const int64_t per_pose = p.sources * kProjection, numbers = 1 + per_pose;
  const double share = 1.0 / double(p.batch * p.height * p.width);
  const int64_t block = blockIdx.x;
  if (block < p.scales) {
    sum_in_order(p.workspace + block * numbers * tiles, tiles, share, p.loss + block);
    return;
  }
  const int64_t k = block - p.scales, j = k % per_pose, image = k / per_pose % p.batch, scale = k / per_pose / p.batch;
  const double* partial = p.workspace + (scale * numbers + 1 + j) * tiles + image * per_image;
  sum_in_order(partial, per_image, share, p.grad_projection + k);
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_MIN_REPROJECTION_KERNELS(KERNEL)                                                                        \
  KERNEL(min_reprojection_f32_border, mdepth::ReprojectionShape<float>::kThreads, MinReprojectionParams,               \
         mdepth::min_reprojection_tile<mdepth::Padding::kBorder, float>)                                               \
  KERNEL(min_reprojection_f32_zeros, mdepth::ReprojectionShape<float>::kThreads, MinReprojectionParams,                \
         mdepth::min_reprojection_tile<mdepth::Padding::kZeros, float>)                                                \
  KERNEL(min_reprojection_f64_border, mdepth::ReprojectionShape<double>::kThreads, MinReprojectionParams,              \
         mdepth::min_reprojection_tile<mdepth::Padding::kBorder, double>)                                              \
  KERNEL(min_reprojection_f64_zeros, mdepth::ReprojectionShape<double>::kThreads, MinReprojectionParams,               \
         mdepth::min_reprojection_tile<mdepth::Padding::kZeros, double>)                                               \
  KERNEL(min_reprojection_sum_f32, mdepth::kReduceThreads, MinReprojectionParams, mdepth::min_reprojection_sum<float>) \
  KERNEL(min_reprojection_sum_f64, mdepth::kReduceThreads, MinReprojectionParams, mdepth::min_reprojection_sum<double>)

MDEPTH_MIN_REPROJECTION_KERNELS(MDEPTH_DEFINE_KERNEL)
