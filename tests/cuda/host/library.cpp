// The kernels as a shared library, for tests that call them through the ops.
#include "kernels.h"

extern "C" int run_kernel(const char* name, int64_t blocks, int threads, const void* params) {
  return run_on_host(name, blocks, threads, params) ? 0 : 1;
}

extern "C" const char* kernel_name(int index) {
  return index < int(std::size(host_kernels)) ? host_kernels[index].name : nullptr;
}
