// All kernels by name, and how to run one on the host; needs emulate.h before it.
#pragma once
#include <cstring>
#include <iterator>
#include <thread>
#include <vector>

inline constexpr int kFirstBarrier = __COUNTER__ + 1;

#include "all_kernels.h"  // of host_build.py: every .cuh but min_reprojection's, and the macro MDEPTH_ALL_KERNELS

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

inline const HostKernel host_kernels[] = {MDEPTH_ALL_KERNELS(HOST_KERNEL)};

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
