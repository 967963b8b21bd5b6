// The sums behind the depth metrics. A block has a run of the window's pixels, as if its rows were one; a second kernel
// adds what the blocks of an image found.
#pragma once
#include "block.cuh"
#include "mdepth/depth_metrics.h"

namespace mdepth {

template <class T>
__device__ __forceinline__ void depth_metrics_run(const DepthMetricsParams& p) {
  __shared__ double scratch[kBlockSumScratch<kDepthSums, kRunThreads>];
  const int64_t blocks = metrics_blocks(p), image = blockIdx.x / blocks, columns = p.right - p.left;
  const int64_t count = (p.bottom - p.top) * columns;
  const T *prediction = static_cast<const T*>(p.prediction) + image * p.height * p.width,
          *truth = static_cast<const T*>(p.ground_truth) + image * p.height * p.width;
  const double scale = p.scale ? p.scale[image] : 1.0, shift = p.shift ? p.shift[image] : 0.0;
  const T low = T(p.min_valid), high = T(p.max_valid);
  double sum[kDepthSums] = {};
  const int64_t first = blockIdx.x % blocks * kMetricsPixels * kRunThreads + threadIdx.x;
#pragma unroll 4
  for (int k = 0; k < kMetricsPixels; ++k) {
    const int64_t i = first + k * kRunThreads;
    if (i >= count) break;
    const int64_t at = (p.top + int(i) / int(columns)) * p.width + p.left + int(i) % int(columns);
    if (!metrics_counted(truth[at], low, high)) continue;
    const double depth = metrics_depth(double(prediction[at]), scale, shift, p.inverse, p.min_depth, p.max_depth);
    const MetricsTerms t = metrics_terms(depth, double(truth[at]));
    const double all[kDepthSums] = {1.0,   t.abs_rel, t.sq_rel, t.sq_rel_kitti, t.sq_error, t.sq_log,
                                    t.log, t.abs_log, t.d1,     t.d2,           t.d3,       t.sq_inverse};
#pragma unroll
    for (int j = 0; j < kDepthSums; ++j) sum[j] += all[j];
  }
  block_sum<kRunThreads>(sum, scratch, p.workspace + blockIdx.x, p.batch * blocks);
}

// A block has an image.
__device__ __forceinline__ void depth_metrics_sum(const DepthMetricsParams& p) {
  __shared__ double scratch[kBlockSumScratch<kDepthSums, kReduceThreads>];
  const int64_t blocks = metrics_blocks(p), image = blockIdx.x;
  double sum[kDepthSums] = {};
  for (int64_t i = threadIdx.x; i < blocks; i += kReduceThreads)
#pragma unroll
    for (int j = 0; j < kDepthSums; ++j) sum[j] += p.workspace[(j * p.batch + image) * blocks + i];
  block_sum<kReduceThreads>(sum, scratch, p.sums + image * kDepthSums, 1);
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_DEPTH_METRICS_KERNELS(KERNEL)                                                            \
  KERNEL(depth_metrics_f32, mdepth::kRunThreads, DepthMetricsParams, mdepth::depth_metrics_run<float>)  \
  KERNEL(depth_metrics_f64, mdepth::kRunThreads, DepthMetricsParams, mdepth::depth_metrics_run<double>) \
  KERNEL(depth_metrics_sum, mdepth::kReduceThreads, DepthMetricsParams, mdepth::depth_metrics_sum)

MDEPTH_DEPTH_METRICS_KERNELS(MDEPTH_DEFINE_KERNEL)
