// Depth and label from ordinal logits. A thread has one pixel and goes through its planes, neighbours side by side.
#pragma once
#include "block.cuh"
#include "mdepth/ordinal_decode.h"

namespace mdepth {

template <class T>
__device__ __forceinline__ void ordinal_decode_run(const OrdinalDecodeParams& p) {
  const int64_t plane = p.height * p.width, runs = runs_per_plane(plane);
  const int64_t image = blockIdx.x / runs, i = blockIdx.x % runs * kRunThreads + threadIdx.x;
  if (i >= plane) return;
  const int bins = int(p.bins);
  const T* logits = static_cast<const T*>(p.logits) + 2 * image * bins * plane + i;
  int count = 0;
  T lost = T(0);  // a NaN where a logit is
#pragma unroll 8
  for (int k = 0; k < bins; ++k) {
    const T not_beyond = logits[2 * k * plane], beyond = logits[(2 * k + 1) * plane];
    count += beyond > not_beyond ? 1 : 0;
    lost = beyond > not_beyond || beyond <= not_beyond ? lost : beyond + not_beyond;  // a NaN compares with nothing
  }
  const T* threshold = static_cast<const T*>(p.thresholds) + (count < bins ? count : bins - 1);
  p.label[image * plane + i] = count;
  static_cast<T*>(p.depth)[image * plane + i] = lost == lost ? (threshold[0] + threshold[1]) / T(2) : lost;
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_ORDINAL_DECODE_KERNELS(KERNEL)                                                             \
  KERNEL(ordinal_decode_f32, mdepth::kRunThreads, OrdinalDecodeParams, mdepth::ordinal_decode_run<float>) \
  KERNEL(ordinal_decode_f64, mdepth::kRunThreads, OrdinalDecodeParams, mdepth::ordinal_decode_run<double>)

MDEPTH_ORDINAL_DECODE_KERNELS(MDEPTH_DEFINE_KERNEL)
