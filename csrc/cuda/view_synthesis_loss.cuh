// The photometric loss of view synthesis: warp, mask, L1 and SSIM, their sums, and the gradients of depth, projection and
// weight. A block owns a tile, with the same halo as min_reprojection's. Colours of target and warped source, what pixels
// count, and the windows' distances with their derivatives are in shared memory. The warp's derivative is not kept: it is
// computed again.
#pragma once
#include "mdepth/view_synthesis_loss.h"
#include "reprojection.cuh"

namespace mdepth {

// `warp_pixel`, then whether all four neighbours lie inside; where they do not, "grey" reads kGrey.
template <class T>
__device__ __forceinline__ bool view_pixel(const ViewSynthesisLossParams& p, const RowProjection<T>& row,
                                           const T* source, int x, int y, T depth, Warp<T>& w) {
  const int width = int(p.width), height = int(p.height);
  w = warp_pixel<Padding::kBorder>(row, source, width * height, x, y, depth, width, height);
  const bool inside =
      w.at.inv_z > T(0) && between_pixels(x, w.at.shift_u, width) && between_pixels(y, w.at.shift_v, height);
  if (p.padding == Outside::kGrey && !inside) {
#pragma unroll
    for (int c = 0; c < 3; ++c) w.color[c] = Sample<T>{T(kGrey) + T(0) * w.color[c].value, T(0), T(0)};
  }
  return inside || p.padding == Outside::kGrey;
}

template <class T>
__device__ __forceinline__ void view_synthesis_loss_tile(const ViewSynthesisLossParams& p) {
  using Tile = ReprojectionTile<T>;
  using Shape = typename Tile::Shape;
  constexpr int kStrip = Tile::kStrip, kRegion = Tile::kRegion, kPixels = Tile::kPixels, kThreads = Shape::kThreads;
  constexpr int kAcross = Tile::kRegionColumns;
  __shared__ T target[3 * kRegion];
  __shared__ T scratch[Tile::kScratch];  // colours of the warped source; and sums
  __shared__ T counts[kRegion];
  __shared__ T coefficient[kCoefficients * kPixels];
  __shared__ T distance[kPixels];
  __shared__ RowProjection<T> projections[Tile::kRegionRows];

  const int thread = int(threadIdx.x), lane = thread % kWarp, first = thread / kWarp * kStrip;
  const int width = int(p.width), height = int(p.height), plane = width * height;
  const BlockOrigin origin = block_origin<Shape>(blockIdx.x, p.height, p.width);
  const int64_t tiles = p.batch * blocks_per_image<Shape>(p.height, p.width), image = origin.image;
  const int left = origin.x - 2, top = origin.y - 2;   // of the region
  const int x = left + 1 + lane, y = top + 1 + first;  // this thread's first pixel
  const int corner = first * kAcross + lane;
  const bool owned_column = lane >= 1 && lane <= Shape::kWidth && x < width;
  const T* const source = static_cast<const T*>(p.source) + image * 3 * plane;
  const T* const depth = static_cast<const T*>(p.depth) + image * plane;
  const T* const weight = p.weight ? static_cast<const T*>(p.weight) + image * plane : nullptr;
  const bool need_grad = p.grad_depth != nullptr, ssim = p.terms > 1;

  if (thread < Tile::kRegionRows)
    projections[thread] = row_projection<T>(p.projection + image * kProjection, double(inside(top + thread, height)));
  __syncthreads();
#pragma unroll 1
  for (int i = thread; i < kRegion; i += kThreads) {
    const int row = i / kAcross, column = i % kAcross;
    const int u = inside(left + column, width), v = inside(top + row, height), at = v * width + u;
    Warp<T> w;
    const bool counted = view_pixel(p, projections[row], source, u, v, depth[at], w);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      scratch[c * kRegion + i] = w.color[c].value;
      target[c * kRegion + i] = static_cast<const T*>(p.target)[(image * 3 + c) * plane + at];
    }
    counts[i] = u == left + column && v == top + row && counted ? (weight ? weight[at] : T(1)) : T(0);
    if (weight && !counted) counts[i] = T(0) * weight[at];  // NaN stays
  }
  __syncthreads();

  T loss[kViewTerms] = {T(0), T(0)}, cost[kStrip], derivative[kStrip][kCoefficients];
  bool owned[kStrip];
  if (ssim) {
    Moments<T> moments[kStrip][3];
#pragma unroll
    for (int c = 0; c < 3; ++c)
#pragma unroll
      for (int k = 0; k < kStrip; ++k) {
        Window<T> window;
#pragma unroll
        for (int i = 0; i < 9; ++i) window.v[i] = target[c * kRegion + corner + (k + i / 3) * kAcross + i % 3];
        moments[k][c] = moments_of(window);
      }
    if (need_grad)
      compare<true>(scratch, target, corner, moments, T(1), T(0), cost, derivative);
    else
      compare<false>(scratch, target, corner, moments, T(1), T(0), cost, derivative);
  }
#pragma unroll
  for (int k = 0; k < kStrip; ++k) {
    owned[k] = owned_column && first + k >= 1 && first + k <= Shape::kHeight && y + k < height;
    const int middle = corner + (k + 1) * kAcross + 1, at = (first + k) * kWarp + lane;
    if (owned[k]) {
      T absolute = T(0);
#pragma unroll
      for (int c = 0; c < 3; ++c) absolute += abs_of(scratch[c * kRegion + middle] - target[c * kRegion + middle]);
      loss[0] += counts[middle] * absolute;
    }
    if (!ssim) continue;
    const bool exists = window_inside(x, width) && window_inside(y + k, height);
    T share = T(0);
#pragma unroll
    for (int i = 0; i < 9; ++i) share += counts[corner + (k + i / 3) * kAcross + i % 3];
    share *= T(1.0 / 9.0);
    if (owned[k] && exists) loss[1] += share * cost[k];
    if (!need_grad) continue;
    distance[at] = exists ? cost[k] : T(0);
#pragma unroll
    for (int j = 0; j < kCoefficients; ++j) coefficient[j * kPixels + at] = exists ? share * derivative[k][j] : T(0);
  }
  __syncthreads();
  double* const partial = p.workspace + blockIdx.x;
#pragma unroll
  for (int term = 0; term < kViewTerms; ++term) {
    if (term >= p.terms) break;
    const T sum[1] = {loss[term]};
    block_sum<kThreads>(sum, scratch, partial + term * (1 + kProjection) * tiles, 0);
  }
  if (!need_grad) return;

  T grad_projection[kViewTerms][kProjection];
#pragma unroll
  for (int term = 0; term < kViewTerms; ++term)
#pragma unroll
    for (int j = 0; j < kProjection; ++j) grad_projection[term][j] = T(0);
#pragma unroll
  for (int k = 0; k < kStrip; ++k) {
    if (!owned[k]) continue;
    const int middle = corner + (k + 1) * kAcross + 1, at = (first + k) * kWarp + lane;
    const int pixel = (y + k) * width + x;
    const T d = depth[pixel];
    Warp<T> w;
    const bool counted = view_pixel(p, projections[first + k + 1], source, x, y + k, d, w);
    T gu[kViewTerms] = {T(0), T(0)}, gv[kViewTerms] = {T(0), T(0)}, absolute = T(0), around = T(0);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const T difference = w.color[c].value - target[c * kRegion + middle];
      absolute += abs_of(difference);
      T g = counts[middle] * sign_of(difference);
      gu[0] += g * w.color[c].du;
      gv[0] += g * w.color[c].dv;
      if (!ssim) continue;
      T sum[3] = {T(0), T(0), T(0)};
#pragma unroll
      for (int j = 0; j < 3; ++j)
#pragma unroll
        for (int i = 0; i < 9; ++i) sum[j] += coefficient[(3 * c + j) * kPixels + at + (i / 3 - 1) * kWarp + i % 3 - 1];
      g = sum[0] + sum[1] * (w.color[c].value - T(0.5)) + sum[2] * (target[c * kRegion + middle] - T(0.5));
      gu[1] += g * w.color[c].du;
      gv[1] += g * w.color[c].dv;
    }
    if (ssim) {
#pragma unroll
      for (int i = 0; i < 9; ++i) around += distance[at + (i / 3 - 1) * kWarp + i % 3 - 1];
    }
#pragma unroll
    for (int term = 0; term < kViewTerms; ++term) {
      if (term >= p.terms) continue;
      const T share = T(share_of_term(p, term));
      const int64_t out = (term * p.batch + image) * plane + pixel;
      static_cast<T*>(p.grad_depth)[out] = (gu[term] * w.at.du_ddepth + gv[term] * w.at.dv_ddepth) * share;
      if (p.grad_weight)
        static_cast<T*>(p.grad_weight)[out] =
            (counted ? T(1) : T(0)) * ((term == 0 ? absolute : around * T(1.0 / 9.0)) * share);
      const T to_u = gu[term] * w.at.inv_z, to_v = gv[term] * w.at.inv_z;
      const T to_z = -(to_u * (T(x) + w.at.shift_u) + to_v * (T(y + k) + w.at.shift_v));
      add_projection(grad_projection[term], to_u, to_v, to_z, T(x), T(y + k), d);
    }
  }
#pragma unroll
  for (int term = 0; term < kViewTerms; ++term)
    if (term < p.terms)
      block_sum<kThreads>(grad_projection[term], scratch, partial + (term * (1 + kProjection) + 1) * tiles, tiles);
}

// One block per number: the losses, then the projections' gradients.
template <class T>
__device__ __forceinline__ void view_synthesis_loss_sum(const ViewSynthesisLossParams& p) {
  const int64_t per_image = blocks_per_image<ReprojectionShape<T>>(p.height, p.width), tiles = p.batch * per_image;
  const int64_t block = blockIdx.x;
  if (block < p.terms) {
    sum_in_order(p.workspace + block * (1 + kProjection) * tiles, tiles, share_of_term(p, int(block)), p.loss + block);
    return;
  }
  const int64_t k = block - p.terms, j = k % kProjection, image = k / kProjection % p.batch;
  const int64_t term = k / kProjection / p.batch;
  const double* partial = p.workspace + (term * (1 + kProjection) + 1 + j) * tiles + image * per_image;
  sum_in_order(partial, per_image, share_of_term(p, int(term)), p.grad_projection + k);
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_VIEW_SYNTHESIS_LOSS_KERNELS(KERNEL)                                                      \
  KERNEL(view_synthesis_loss_f32, mdepth::ReprojectionShape<float>::kThreads, ViewSynthesisLossParams,  \
         mdepth::view_synthesis_loss_tile<float>)                                                       \
  KERNEL(view_synthesis_loss_f64, mdepth::ReprojectionShape<double>::kThreads, ViewSynthesisLossParams, \
         mdepth::view_synthesis_loss_tile<double>)                                                      \
  KERNEL(view_synthesis_loss_sum_f32, mdepth::kReduceThreads, ViewSynthesisLossParams,                  \
         mdepth::view_synthesis_loss_sum<float>)                                                        \
  KERNEL(view_synthesis_loss_sum_f64, mdepth::kReduceThreads, ViewSynthesisLossParams,                  \
         mdepth::view_synthesis_loss_sum<double>)

MDEPTH_VIEW_SYNTHESIS_LOSS_KERNELS(MDEPTH_DEFINE_KERNEL)
