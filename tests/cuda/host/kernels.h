// All kernels by name, and how to run one on the host; needs emulate.h before it.
#pragma once
#include <cstring>
#include <iterator>
#include <vector>

#include "all_kernels.h"  // of host_build.py: every .cuh, kSegments, and the macro MDEPTH_ALL_KERNELS

// The n-th barrier of all sources: its number, and the op whose source it stands in (the first that includes it).
struct Barrier {
  int number;
  const char* op;
};

inline Barrier barrier(int n) {
  for (const Segment& segment : kSegments) {
    if (n < segment.end - segment.first) return {segment.first + n, segment.op};
    n -= segment.end - segment.first;
  }
  return {-1, ""};
}

inline int count_barriers() {
  int count = 0;
  while (barrier(count).number >= 0) ++count;
  return count;
}

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
    Meeting inner(threads), outer(threads);
    block_barrier = &inner;
    const auto enter = [](int t) { threadIdx.x = unsigned(t); };
    const auto run = [&](int t) {
      enter(t);
      for (int64_t b = 0; b < blocks; ++b) {
        blockIdx.x = unsigned(descending ? blocks - 1 - b : b);
        kernel.run(params);
        outer.arrive_and_wait();
      }
    };
    Fibers::run_all(threads, run, enter);
    return true;
  }
  return false;
}
