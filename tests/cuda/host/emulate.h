// Lets a C++20 compiler take the .cuh files for ordinary functions: force-included before them. A CUDA thread is a fiber,
// blocks run one after another, shared memory is static. Every __syncthreads() in the source has a number, and one of
// them can be taken out, so that a test can see that the race detector notices.
#pragma once
#include <atomic>
#include <cstdint>

#include "fibers.h"

struct Index {
  // One for all fibers, set anew for each before it goes on.
  struct {
    unsigned value;
    MDEPTH_UNSEEN operator unsigned() const { return value; }
    MDEPTH_UNSEEN void operator=(unsigned to) { value = to; }
  } x;
};

inline Index threadIdx, blockIdx;
inline Meeting* block_barrier = nullptr;
inline int dropped_barrier = -1;  // its __COUNTER__

inline void wait_for_block(int number) {
  if (number != dropped_barrier) block_barrier->arrive_and_wait();
}

template <class T>
void atomicAdd(T* at, T value) {
  std::atomic_ref<T>(*at).fetch_add(value, std::memory_order_relaxed);
}

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __syncthreads() wait_for_block(__COUNTER__)
