// The reverse Huber loss and its gradient. One kernel finds per block the largest error and the number of pixels, the next
// those of the batch, the third sums the cost per block, the fourth adds up. Nothing is stored per pixel but the gradient.
#pragma once
#include "block.cuh"
#include "mdepth/berhu_loss.h"
#include "mdepth/mask.h"

namespace mdepth {

enum BerhuState { kBerhuLargest, kBerhuCount, kBerhuState };

// Workspace: largest errors, numbers of pixels and costs, each with a number per block.
struct BerhuBlocks {
  int64_t count;
  double *state, *costs;

  __device__ __forceinline__ explicit BerhuBlocks(const BerhuLossParams& p)
      : count(spans_per_plane(p.batch * p.height * p.width)),
        state(p.workspace),
        costs(p.workspace + kBerhuState * count) {}
};

// A thread's k-th pixel: its error, 0 where it does not count.
template <class T>
struct BerhuPixel {
  int64_t at;
  bool exists, on;
  T error;

  __device__ __forceinline__ BerhuPixel(const BerhuLossParams& p, int k)
      : at((int64_t(blockIdx.x) * kElementsPerThread + k) * kReduceThreads + threadIdx.x),
        exists(at < p.batch * p.height * p.width),
        on(false),
        error(0) {
    if (!exists) return;
    const T depth = static_cast<const T*>(p.depth)[at];
    on = counts(p, at, depth);
    if (on) error = static_cast<const T*>(p.prediction)[at] - depth;
  }
};

// The larger of two errors, a NaN being the largest; and the sum of two counts.
struct BerhuJoin {
  __device__ __forceinline__ double operator()(int j, double a, double b) const {
    return j == kBerhuCount ? a + b : (a != a || a > b ? a : b);
  }
};

template <class T>
__device__ __forceinline__ void berhu_loss_largest_span(const BerhuLossParams& p) {
  __shared__ double scratch[kBlockSumScratch<kBerhuState, kReduceThreads>];
  double state[kBerhuState] = {0, 0};
#pragma unroll
  for (int k = 0; k < kElementsPerThread; ++k) {
    const BerhuPixel<T> pixel(p, k);
    state[kBerhuLargest] = BerhuJoin()(kBerhuLargest, state[kBerhuLargest], double(abs_of(pixel.error)));
    state[kBerhuCount] += pixel.on;
  }
  const BerhuBlocks blocks(p);
  block_reduce<kReduceThreads>(state, scratch, blocks.state + blockIdx.x, blocks.count, BerhuJoin());
}

// One block.
__device__ __forceinline__ void berhu_loss_state_all(const BerhuLossParams& p) {
  __shared__ double scratch[kBlockSumScratch<kBerhuState, kReduceThreads>];
  const BerhuBlocks blocks(p);
  double state[kBerhuState] = {0, 0};
  for (int64_t i = threadIdx.x; i < blocks.count; i += kReduceThreads)
    for (int j = 0; j < kBerhuState; ++j) state[j] = BerhuJoin()(j, state[j], blocks.state[j * blocks.count + i]);
  block_reduce<kReduceThreads>(state, scratch, p.state, 1, BerhuJoin());
}

template <class T>
__device__ __forceinline__ void berhu_loss_span(const BerhuLossParams& p) {
  __shared__ double scratch[kBlockSumScratch<1, kReduceThreads>];
  const T c = berhu_threshold<T>(p.state[kBerhuLargest], p.threshold), half_inverse = T(0.5) / c;
  double cost[1] = {0};
#pragma unroll
  for (int k = 0; k < kElementsPerThread; ++k) {
    const BerhuPixel<T> pixel(p, k);
    if (pixel.on) cost[0] += double(berhu_cost(pixel.error, c, half_inverse));
  }
  block_sum<kReduceThreads>(cost, scratch, BerhuBlocks(p).costs + blockIdx.x, 0);
}

// One block.
__device__ __forceinline__ void berhu_loss_sum_all(const BerhuLossParams& p) {
  const BerhuBlocks blocks(p);
  const double count = p.state[kBerhuCount];
  sum_in_order(blocks.costs, blocks.count, 1 / (count > 1 ? count : 1), p.loss);
}

template <class T>
__device__ __forceinline__ void berhu_loss_backward_span(const BerhuLossParams& p) {
  const double count = p.state[kBerhuCount];
  const T c = berhu_threshold<T>(p.state[kBerhuLargest], p.threshold), inverse = T(1) / c;
  const T share = T(double(*static_cast<const T*>(p.grad)) / (count > 1 ? count : 1));
#pragma unroll
  for (int k = 0; k < kElementsPerThread; ++k) {
    const BerhuPixel<T> pixel(p, k);
    if (pixel.exists)
      static_cast<T*>(p.grad_prediction)[pixel.at] = pixel.on ? share * berhu_slope(pixel.error, c, inverse) : T(0);
  }
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_BERHU_LOSS_KERNELS(KERNEL)                                                                           \
  KERNEL(berhu_loss_largest_f32, mdepth::kReduceThreads, BerhuLossParams, mdepth::berhu_loss_largest_span<float>)   \
  KERNEL(berhu_loss_largest_f64, mdepth::kReduceThreads, BerhuLossParams, mdepth::berhu_loss_largest_span<double>)  \
  KERNEL(berhu_loss_state, mdepth::kReduceThreads, BerhuLossParams, mdepth::berhu_loss_state_all)                   \
  KERNEL(berhu_loss_f32, mdepth::kReduceThreads, BerhuLossParams, mdepth::berhu_loss_span<float>)                   \
  KERNEL(berhu_loss_f64, mdepth::kReduceThreads, BerhuLossParams, mdepth::berhu_loss_span<double>)                  \
  KERNEL(berhu_loss_sum, mdepth::kReduceThreads, BerhuLossParams, mdepth::berhu_loss_sum_all)                       \
  KERNEL(berhu_loss_backward_f32, mdepth::kReduceThreads, BerhuLossParams, mdepth::berhu_loss_backward_span<float>) \
  KERNEL(berhu_loss_backward_f64, mdepth::kReduceThreads, BerhuLossParams, mdepth::berhu_loss_backward_span<double>)

MDEPTH_BERHU_LOSS_KERNELS(MDEPTH_DEFINE_KERNEL)
