// How compiled kernels are found by name.
#pragma once

namespace mdepth {
namespace cuda {

struct Kernel {
  const char* name;
  const void* function;
};

struct KernelTable {
  const Kernel* kernels;
  int count;
};

#define MDEPTH_KERNEL_ENTRY(name, ...) {#name, reinterpret_cast<const void*>(&::mdepth_##name)},
// Defines `KernelTable <op>_kernels()`.
#define MDEPTH_KERNEL_TABLE(op, list)                                        \
  namespace mdepth {                                                         \
  namespace cuda {                                                           \
  KernelTable op##_kernels() {                                               \
    static const Kernel kernels[] = {list(MDEPTH_KERNEL_ENTRY)};             \
    return KernelTable{kernels, int(sizeof(kernels) / sizeof(kernels[0]))}; \
  }                                                                          \
  }                                                                          \
  }

}  // namespace cuda
}  // namespace mdepth
