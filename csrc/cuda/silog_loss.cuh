// The scale-invariant logarithmic loss and its gradient. The first kernel sums residuals and their squares per block, the
// second per image, the third makes of them the loss and two numbers for each image; the backward takes the residuals
// again. Sums are in double.
#pragma once
#include "block.cuh"
#include "mdepth/mask.h"
#include "mdepth/silog_loss.h"

namespace mdepth {

// A thread's k-th pixel: its place in its image, which may be outside, and in the batch.
struct SpanPixel {
  int64_t image, within, at;
};

__device__ __forceinline__ SpanPixel span_pixel(int64_t plane, int k) {
  const int64_t spans = spans_per_plane(plane);
  SpanPixel pixel;
  pixel.image = blockIdx.x / spans;
  pixel.within = (blockIdx.x % spans * kElementsPerThread + k) * kReduceThreads + threadIdx.x;
  pixel.at = pixel.image * plane + pixel.within;
  return pixel;
}

// Workspace: kSilogSums x blocks, then (images, kSilogSums).
template <class T>
__device__ __forceinline__ void silog_loss_span(const SilogLossParams& p) {
  __shared__ double scratch[kBlockSumScratch<kSilogSums, kReduceThreads>];
  const int64_t plane = p.height * p.width;
  double sum[kSilogSums] = {0, 0, 0};
#pragma unroll
  for (int k = 0; k < kElementsPerThread; ++k) {
    const SpanPixel pixel = span_pixel(plane, k);
    if (pixel.within >= plane) continue;
    const T depth = static_cast<const T*>(p.depth)[pixel.at];
    if (!counts(p, pixel.at, depth)) continue;
    const double d = double(silog_residual(static_cast<const T*>(p.prediction)[pixel.at], depth, p.log_prediction));
    sum[kSilogCount] += 1;
    sum[kSilogSum] += d;
    sum[kSilogSquares] += d * d;
  }
  block_sum<kReduceThreads>(sum, scratch, p.workspace + blockIdx.x, p.batch * spans_per_plane(plane));
}

// One block per image.
__device__ __forceinline__ void silog_loss_image(const SilogLossParams& p) {
  __shared__ double scratch[kBlockSumScratch<kSilogSums, kReduceThreads>];
  const int64_t spans = spans_per_plane(p.height * p.width), blocks = p.batch * spans;
  double sum[kSilogSums] = {0, 0, 0};
  for (int64_t i = threadIdx.x; i < spans; i += kReduceThreads)
    for (int j = 0; j < kSilogSums; ++j) sum[j] += p.workspace[j * blocks + blockIdx.x * spans + i];
  block_sum<kReduceThreads>(sum, scratch, p.workspace + kSilogSums * (blocks + blockIdx.x), 1);
}

// One thread.
__device__ __forceinline__ void silog_loss_all(const SilogLossParams& p) {
  const int64_t blocks = p.batch * spans_per_plane(p.height * p.width);
  silog_finish(p, p.workspace + kSilogSums * blocks, p.loss, p.coefficients);
}

template <class T>
__device__ __forceinline__ void silog_loss_backward_span(const SilogLossParams& p) {
  const int64_t plane = p.height * p.width;
  const double grad = double(*static_cast<const T*>(p.grad));
#pragma unroll
  for (int k = 0; k < kElementsPerThread; ++k) {
    const SpanPixel pixel = span_pixel(plane, k);
    if (pixel.within >= plane) continue;
    const T depth = static_cast<const T*>(p.depth)[pixel.at];
    T g = T(0);
    if (counts(p, pixel.at, depth)) {
      const T prediction = static_cast<const T*>(p.prediction)[pixel.at];
      const double* coefficients = p.coefficients + 2 * pixel.image;
      g = silog_gradient(silog_residual(prediction, depth, p.log_prediction), prediction, T(grad * coefficients[0]),
                         T(grad * coefficients[1]), p.log_prediction);
    }
    static_cast<T*>(p.grad_prediction)[pixel.at] = g;
  }
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_SILOG_LOSS_KERNELS(KERNEL)                                                                           \
  KERNEL(silog_loss_f32, mdepth::kReduceThreads, SilogLossParams, mdepth::silog_loss_span<float>)                   \
  KERNEL(silog_loss_f64, mdepth::kReduceThreads, SilogLossParams, mdepth::silog_loss_span<double>)                  \
  KERNEL(silog_loss_sum, mdepth::kReduceThreads, SilogLossParams, mdepth::silog_loss_image)                         \
  KERNEL(silog_loss_finish, 1, SilogLossParams, mdepth::silog_loss_all)                                             \
  KERNEL(silog_loss_backward_f32, mdepth::kReduceThreads, SilogLossParams, mdepth::silog_loss_backward_span<float>) \
  KERNEL(silog_loss_backward_f64, mdepth::kReduceThreads, SilogLossParams, mdepth::silog_loss_backward_span<double>)

MDEPTH_SILOG_LOSS_KERNELS(MDEPTH_DEFINE_KERNEL)
