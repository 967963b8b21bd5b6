// The compiled kernels by name, and how a plan of them is launched.
#pragma once
#include "mdepth/plan.h"

namespace mdepth {
namespace cuda {

// Launches the kernels of a plan, each with `params`, on a stream of a device. Null, or CUDA's words for what failed.
const char* launch(const Plan& plan, const void* params, int device, void* stream);

// The newest CUDA that the driver supports, 1000 * major + 10 * minor; 0 without a driver.
int driver_version();

struct Kernel {
  const char* name;
  const void* function;
};

// Makes the kernels of an op known to `launch`.
bool add_kernels(const Kernel* begin, const Kernel* end);

}  // namespace cuda
}  // namespace mdepth

#define MDEPTH_KERNEL_ENTRY(name, ...) {#name, reinterpret_cast<const void*>(&::mdepth_##name)},
#define MDEPTH_ADD_KERNELS(list)                                                        \
  namespace {                                                                           \
  const mdepth::cuda::Kernel kernels[] = {list(MDEPTH_KERNEL_ENTRY)};                   \
  const bool added = mdepth::cuda::add_kernels(std::begin(kernels), std::end(kernels)); \
  }
