// All kernels by name, and how to run one on the host; needs emulate.h before it.
#pragma once
#include <cstring>
#include <iterator>
#include <thread>
#include <vector>

inline constexpr int kFirstBarrier = __COUNTER__ + 1;

#include "depth_metrics.cuh"
#include "berhu_loss.cuh"
#include "disparity_to_depth.cuh"
#include "edge_aware_smoothness.cuh"
#include "inverse_warp.cuh"
#include "nnconv5.cuh"
#include "ordinal_decode.cuh"
#include "ordinal_loss.cuh"
#include "photometric_loss.cuh"
#include "silog_loss.cuh"

inline constexpr int kBarriersBeforeMinReprojection = __COUNTER__ - kFirstBarrier;

#include "min_reprojection.cuh"

inline constexpr int kBarriers = __COUNTER__ - kFirstBarrier - 1;

// The macro's number of the n-th barrier: the constant in between has one too.
inline int barrier_number(int n) { return kFirstBarrier + n + (n < kBarriersBeforeMinReprojection ? 0 : 1); }

struct HostKernel {
  const char* name;
  void (*run)(const void* params);
};

#define HOST_KERNEL(name, threads, Params, ...) \
  {#name, [](const void* params) { ::mdepth_##name(*static_cast<const mdepth::Params*>(params)); }},

inline const HostKernel host_kernels[] = {
    MDEPTH_DEPTH_METRICS_KERNELS(HOST_KERNEL) MDEPTH_EDGE_AWARE_SMOOTHNESS_KERNELS(HOST_KERNEL)
        MDEPTH_INVERSE_WARP_KERNELS(HOST_KERNEL)
        MDEPTH_MIN_REPROJECTION_KERNELS(HOST_KERNEL) MDEPTH_NNCONV5_KERNELS(HOST_KERNEL)
            MDEPTH_ORDINAL_DECODE_KERNELS(HOST_KERNEL) MDEPTH_ORDINAL_LOSS_KERNELS(HOST_KERNEL)
                MDEPTH_PHOTOMETRIC_LOSS_KERNELS(HOST_KERNEL) MDEPTH_SILOG_LOSS_KERNELS(HOST_KERNEL)
                    MDEPTH_BERHU_LOSS_KERNELS(HOST_KERNEL) MDEPTH_DISPARITY_TO_DEPTH_KERNELS(HOST_KERNEL)};

// Blocks in ascending or descending order: what a block leaves in shared memory must not matter to the next one.
inline bool run_on_host(const char* name, int64_t blocks, int threads, const void* params, bool descending = false) {
  for (const HostKernel& kernel : host_kernels) {
    if (std::strcmp(kernel.name, name) != 0) continue;
    std::barrier<> inner(threads), outer(threads);
    block_barrier = &inner;
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t)
      pool.emplace_back([&, t] {
        threadIdx.x = unsigned(t);
        for (int64_t b = 0; b < blocks; ++b) {
          blockIdx.x = unsigned(descending ? blocks - 1 - b : b);
          kernel.run(params);
          outer.arrive_and_wait();
        }
      });
    for (std::thread& thread : pool) thread.join();
    return true;
  }
  return false;
}
