// The ordinal regression loss and its gradient. A thread has one pixel and goes through its planes, neighbours side by
// side; both directions read the logits once, and only those of pixels that count. Sums are in double: one per block,
// added by a second kernel.
#pragma once
#include "block.cuh"
#include "mdepth/mask.h"
#include "mdepth/ordinal_loss.h"

namespace mdepth {

enum OrdinalSum { kCost, kCounted, kOrdinalSums };  // of the workspace: each with a number per block

// What a thread knows of its pixel.
template <class T>
struct OrdinalPixel {
  int64_t logits;  // offset of its first one
  T depth;
  bool exists, on;
};

template <class T>
__device__ __forceinline__ OrdinalPixel<T> ordinal_pixel(const OrdinalLossParams& p, int64_t plane) {
  const int64_t runs = runs_per_plane(plane), image = blockIdx.x / runs;
  const int64_t i = blockIdx.x % runs * kRunThreads + threadIdx.x, at = image * plane + i;
  OrdinalPixel<T> pixel;
  pixel.logits = 2 * image * p.bins * plane + i;
  pixel.exists = i < plane;
  pixel.depth = pixel.exists ? static_cast<const T*>(p.depth)[at] : T(0);
  pixel.on = pixel.exists && (p.valid ? p.valid[at] : measured(pixel.depth));
  return pixel;
}

// Whether the truth is beyond t_{k+1}, so k < l; never for the last bin.
template <class T>
__device__ __forceinline__ bool ordinal_beyond(const OrdinalLossParams& p, T depth, int k) {
  return k + 1 < p.bins && depth >= static_cast<const T*>(p.thresholds)[k + 1];
}

template <class T>
__device__ __forceinline__ void ordinal_loss_run(const OrdinalLossParams& p) {
  __shared__ double scratch[kBlockSumScratch<kOrdinalSums, kRunThreads>];
  const int64_t plane = p.height * p.width;
  const OrdinalPixel<T> pixel = ordinal_pixel<T>(p, plane);
  double sum[kOrdinalSums] = {0, double(pixel.on)};
  if (pixel.on) {
    const T* logits = static_cast<const T*>(p.logits) + pixel.logits;
    const int bins = int(p.bins);
    for (int first = 0; first < bins; first += kOrdinalFactors) {
      const int last = first + kOrdinalFactors < bins ? first + kOrdinalFactors : bins;
      T excess = T(0), odds = T(0);
#pragma unroll 8
      for (int k = first; k < last; ++k) {
        const T d = logits[(2 * k + 1) * plane] - logits[2 * k * plane];
        const T s = ordinal_beyond(p, pixel.depth, k) ? -d : d;
        excess = ordinal_excess(excess, s);
        odds = ordinal_odds(odds, s);
      }
      sum[kCost] += double(excess + log1p_positive(odds));
    }
    // An infinite depth has a bin, a NaN looks as if it had one: neither may pass for a measurement.
    sum[kCost] += double(pixel.depth - pixel.depth);
  }
  block_sum<kRunThreads>(sum, scratch, p.workspace + blockIdx.x, p.batch * runs_per_plane(plane));
}

// One block.
__device__ __forceinline__ void ordinal_loss_sum(const OrdinalLossParams& p) {
  __shared__ double scratch[kBlockSumScratch<kOrdinalSums, kReduceThreads>];
  __shared__ double total[kOrdinalSums];
  const int64_t blocks = p.batch * runs_per_plane(p.height * p.width);
  double sum[kOrdinalSums] = {0, 0};
  for (int64_t i = threadIdx.x; i < blocks; i += kReduceThreads)
    for (int j = 0; j < kOrdinalSums; ++j) sum[j] += p.workspace[j * blocks + i];
  block_sum<kReduceThreads>(sum, scratch, total, 1);
  __syncthreads();
  if (threadIdx.x != 0) return;
  *p.loss = total[kCost] / (total[kCounted] > 1 ? total[kCounted] : 1);
  *p.count = int64_t(total[kCounted]);
}

template <class T>
__device__ __forceinline__ void ordinal_loss_backward_run(const OrdinalLossParams& p) {
  const int64_t plane = p.height * p.width;
  const OrdinalPixel<T> pixel = ordinal_pixel<T>(p, plane);
  if (!pixel.exists) return;
  const T share = T(double(*static_cast<const T*>(p.grad)) / double(*p.count > 1 ? *p.count : 1));
  const T* logits = static_cast<const T*>(p.logits) + pixel.logits;
  T* grad = static_cast<T*>(p.grad_logits) + pixel.logits;
  const int bins = int(p.bins);
#pragma unroll 4
  for (int k = 0; k < bins; ++k) {
    const int64_t not_beyond = 2 * k * plane, beyond = not_beyond + plane;
    T g = T(0);
    if (pixel.on) {
      const T d = logits[beyond] - logits[not_beyond];
      const bool is_beyond = ordinal_beyond(p, pixel.depth, k);
      g = (is_beyond ? -share : share) * ordinal_slope(is_beyond ? -d : d);
    }
    grad[beyond] = g;
    grad[not_beyond] = -g;
  }
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_ORDINAL_LOSS_KERNELS(KERNEL)                                                                           \
  KERNEL(ordinal_loss_f32, mdepth::kRunThreads, OrdinalLossParams, mdepth::ordinal_loss_run<float>)                   \
  KERNEL(ordinal_loss_f64, mdepth::kRunThreads, OrdinalLossParams, mdepth::ordinal_loss_run<double>)                  \
  KERNEL(ordinal_loss_sum, mdepth::kReduceThreads, OrdinalLossParams, mdepth::ordinal_loss_sum)                       \
  KERNEL(ordinal_loss_backward_f32, mdepth::kRunThreads, OrdinalLossParams, mdepth::ordinal_loss_backward_run<float>) \
  KERNEL(ordinal_loss_backward_f64, mdepth::kRunThreads, OrdinalLossParams, mdepth::ordinal_loss_backward_run<double>)

MDEPTH_ORDINAL_LOSS_KERNELS(MDEPTH_DEFINE_KERNEL)
