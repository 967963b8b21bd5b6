// Edge-aware first-order smoothness of the disparity. The first kernel sums per tile the disparity and
// both weighted differences, and writes the gradient of the un-normalised sum; the second adds up each image; the third
// the images, and puts the mean into the gradient.
#pragma once
#include "block.cuh"
#include "mdepth/edge_aware_smoothness.h"

namespace mdepth {

enum SmoothnessSum { kDisparity, kAlongX, kAlongY, kSmoothnessSums };

// Workspace: kSmoothnessSums x tiles, then per image its loss, and the factor and the shift of its gradient.
enum SmoothnessImage { kImageLoss, kImageFactor, kImageShift, kImageNumbers };

// exp(-mean_c |I(a) - I(b)|)
template <class T>
__device__ __forceinline__ T edge_weight(const T* image, int64_t channels, int64_t plane, int64_t a, int64_t b) {
  const T share = T(1.0 / double(channels));
  T sum = T(0);
  for (int64_t c = 0; c < channels; ++c) sum += abs_of(image[c * plane + a] - image[c * plane + b]) * share;
  return exp_negative(sum);
}

template <class T>
__device__ __forceinline__ void edge_aware_smoothness_tile(const EdgeAwareSmoothnessParams& p) {
  using Shape = PixelShape;
  __shared__ T scratch[kBlockSumScratch<kSmoothnessSums, Shape::kThreads>];
  const BlockOrigin origin = block_origin<Shape>(blockIdx.x, p.height, p.width);
  const int64_t plane = p.height * p.width, tiles = p.batch * blocks_per_image<Shape>(p.height, p.width);
  const T share_x = T(1.0 / double(p.batch * p.height * (p.width - 1)));
  const T share_y = T(1.0 / double(p.batch * (p.height - 1) * p.width));
  const T* disparity = static_cast<const T*>(p.disparity) + origin.image * plane;
  const T* image = static_cast<const T*>(p.image) + origin.image * p.channels * plane;
  const int x = origin.x + int(threadIdx.x) % kWarp;
  T sum[kSmoothnessSums] = {T(0), T(0), T(0)};
  for (int k = 0; k < Shape::kStrip; ++k) {
    const int y = origin.y + int(threadIdx.x) / kWarp * Shape::kStrip + k;
    if (x >= p.width || y >= p.height) break;
    const int64_t at = int64_t(y) * p.width + x;
    const T here = disparity[at];
    sum[kDisparity] += here;
    T grad = T(0);
    // The edge to a neighbour; only the one to the right or below counts in the sum here.
    const auto edge = [&](bool exists, int64_t other, T share) {
      if (!exists) return T(0);
      const T step = here - disparity[other], weight = edge_weight(image, p.channels, plane, at, other);
      grad += share * weight * sign_of(step);
      return weight * abs_of(step);
    };
    sum[kAlongX] += edge(x + 1 < p.width, at + 1, share_x);
    sum[kAlongY] += edge(y + 1 < p.height, at + p.width, share_y);
    if (!p.grad_disparity) continue;
    edge(x > 0, at - 1, share_x);
    edge(y > 0, at - p.width, share_y);
    static_cast<T*>(p.grad_disparity)[origin.image * plane + at] = grad;
  }
  block_sum<Shape::kThreads>(sum, scratch, p.workspace + blockIdx.x, tiles);
}

// One block per image.
__device__ __forceinline__ void edge_aware_smoothness_sum(const EdgeAwareSmoothnessParams& p) {
  __shared__ double scratch[kBlockSumScratch<kSmoothnessSums, kReduceThreads>];
  __shared__ double total[kSmoothnessSums];
  const int64_t per_image = blocks_per_image<PixelShape>(p.height, p.width), tiles = p.batch * per_image;
  const double* partial = p.workspace + int64_t(blockIdx.x) * per_image;
  double sum[kSmoothnessSums] = {0, 0, 0};
  for (int64_t i = threadIdx.x; i < per_image; i += kReduceThreads)
    for (int j = 0; j < kSmoothnessSums; ++j) sum[j] += partial[j * tiles + i];
  block_sum<kReduceThreads>(sum, scratch, total, 1);
  __syncthreads();
  if (threadIdx.x != 0) return;
  const double pixels = double(p.height * p.width);
  const double inverse = p.normalize ? 1.0 / (total[kDisparity] / pixels + kMeanEpsilon) : 1.0;
  const double factor = abs_of(inverse);
  const double rough = total[kAlongX] / double(p.batch * p.height * (p.width - 1)) +
                       total[kAlongY] / double(p.batch * (p.height - 1) * p.width);
  double* out = p.workspace + kSmoothnessSums * tiles + blockIdx.x;
  out[kImageLoss * p.batch] = factor * rough;
  out[kImageFactor * p.batch] = factor;
  out[kImageShift * p.batch] = -factor * inverse * rough / pixels;  // d|inverse| / d disparity
}

// Block 0: the loss. The others, where there is a mean to put in: the gradient.
template <class T>
__device__ __forceinline__ void edge_aware_smoothness_finish(const EdgeAwareSmoothnessParams& p) {
  const int64_t plane = p.height * p.width;
  const double* images = p.workspace + kSmoothnessSums * p.batch * blocks_per_image<PixelShape>(p.height, p.width);
  if (blockIdx.x == 0) {
    sum_in_order(images + kImageLoss * p.batch, p.batch, 1, p.loss);
    return;
  }
  const int64_t per_block = kReduceThreads * kElementsPerThread, per_image = (plane + per_block - 1) / per_block;
  const int64_t block = int64_t(blockIdx.x) - 1, image = block / per_image;
  const T factor = T(images[kImageFactor * p.batch + image]), shift = T(images[kImageShift * p.batch + image]);
  T* grad = static_cast<T*>(p.grad_disparity) + image * plane;
  for (int k = 0; k < kElementsPerThread; ++k) {
    const int64_t i = block % per_image * per_block + k * kReduceThreads + threadIdx.x;
    if (i < plane) grad[i] = grad[i] * factor + shift;
  }
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_EDGE_AWARE_SMOOTHNESS_KERNELS(KERNEL)                                          \
  KERNEL(edge_aware_smoothness_f32, mdepth::PixelShape::kThreads, EdgeAwareSmoothnessParams,  \
         mdepth::edge_aware_smoothness_tile<float>)                                           \
  KERNEL(edge_aware_smoothness_f64, mdepth::PixelShape::kThreads, EdgeAwareSmoothnessParams,  \
         mdepth::edge_aware_smoothness_tile<double>)                                          \
  KERNEL(edge_aware_smoothness_sum, mdepth::kReduceThreads, EdgeAwareSmoothnessParams,        \
         mdepth::edge_aware_smoothness_sum)                                                   \
  KERNEL(edge_aware_smoothness_finish_f32, mdepth::kReduceThreads, EdgeAwareSmoothnessParams, \
         mdepth::edge_aware_smoothness_finish<float>)                                         \
  KERNEL(edge_aware_smoothness_finish_f64, mdepth::kReduceThreads, EdgeAwareSmoothnessParams, \
         mdepth::edge_aware_smoothness_finish<double>)

MDEPTH_EDGE_AWARE_SMOOTHNESS_KERNELS(MDEPTH_DEFINE_KERNEL)
