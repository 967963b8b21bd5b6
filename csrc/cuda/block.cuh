// What the kernels share: their declaration and sums over a block.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/stencil.h"

// Kernels have plain C names, so that the launcher, NVRTC and tests find them by the names that plan.h gives, and the
// prefix mdepth_, by which profilers and sanitizers can tell them from others.
// Parameters stay in constant memory, where arrays in them can be indexed. Registers are bounded so that a processor
// has room for two blocks: one computes while the other waits.
#define MDEPTH_DEFINE_KERNEL(name, threads, Params, ...)                                                             \
  extern "C" __global__ void __launch_bounds__(threads, 2) mdepth_##name(const __grid_constant__ mdepth::Params p) { \
    __VA_ARGS__(p);                                                                                                  \
  }

namespace mdepth {

constexpr int kParts = 16;

// Numbers of scratch memory that block_sum needs.
template <int N, int kThreads>
constexpr int kBlockSumScratch = N * (kThreads + kParts);

// out[j * stride] = values[j] of the block's threads, joined by `join(j, a, b)` from 0 on, always in the same order. Every
// thread must call it; `scratch`, in shared memory, must be free when the first one does and is free when it returns.
template <int kThreads, int N, class T, class Join>
__device__ __forceinline__ void block_reduce(const T (&values)[N], T* scratch, double* out, int64_t stride, Join join) {
  __shared__ T part[N * kParts];
  constexpr int kRow = kThreads + kParts;  // two rows' reads fall into different banks
  const int thread = int(threadIdx.x);
#pragma unroll
  for (int j = 0; j < N; ++j) scratch[j * kRow + thread] = values[j];
  __syncthreads();
  for (int t = thread; t < N * kParts; t += kThreads) {
    T all = T(0);
#pragma unroll
    for (int i = 0; i < kThreads / kParts; ++i)
      all = join(t / kParts, all, scratch[t / kParts * kRow + i * kParts + t % kParts]);
    part[t] = all;
  }
  __syncthreads();
  if (thread < N) {
    double all = 0;
    for (int i = 0; i < kParts; ++i) all = join(thread, all, double(part[thread * kParts + i]));
    out[thread * stride] = all;
  }
}

struct Plus {
  template <class T>
  __device__ __forceinline__ T operator()(int, T a, T b) const {
    return a + b;
  }
};

// out[j * stride] = the sum of values[j] over the block's threads.
template <int kThreads, int N, class T>
__device__ __forceinline__ void block_sum(const T (&values)[N], T* scratch, double* out, int64_t stride) {
  block_reduce<kThreads>(values, scratch, out, stride, Plus());
}

// *out = factor * the sum of `count` numbers, by a block of kReduceThreads.
__device__ __forceinline__ void sum_in_order(const double* numbers, int64_t count, double factor, double* out) {
  __shared__ double scratch[kBlockSumScratch<1, kReduceThreads>];
  double value[1] = {0};
  for (int64_t i = threadIdx.x; i < count; i += kReduceThreads) value[0] += numbers[i];
  value[0] *= factor;
  block_sum<kReduceThreads>(value, scratch, out, 0);
}

// A column or row that exists: the reflected one at the border, any beyond.
__device__ __forceinline__ int inside(int i, int n) {
  const int r = reflect(i, n);
  return r < 0 ? 0 : (r >= n ? n - 1 : r);
}

// Gradient by the projection: adds one pixel's, to_* being the gradients by the numerators and by z.
// (nu, nv, z) = projection * (depth * (x, y, 1), 1)
template <class T>
__device__ __forceinline__ void add_projection(T (&sum)[kProjection], T to_u, T to_v, T to_z, T x, T y, T depth) {
  const T to[3] = {to_u, to_v, to_z};
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const T scaled = to[k] * depth;
    sum[4 * k] += scaled * x;
    sum[4 * k + 1] += scaled * y;
    sum[4 * k + 2] += scaled;
    sum[4 * k + 3] += to[k];
  }
}

}  // namespace mdepth
