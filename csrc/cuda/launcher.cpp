// Launches plans on a stream, through the runtime that is linked into the module.
#include "launcher.h"

#include <cuda_runtime.h>

#include <string>
#include <unordered_map>

namespace mdepth {
namespace cuda {

namespace {

// Filled while the module is loaded, before anything reads it.
std::unordered_map<std::string, const void*>& kernels() {
  static std::unordered_map<std::string, const void*> all;
  return all;
}

const void* find(const std::string& name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : found->second;
}

}  // namespace

bool add_kernels(const Kernel* begin, const Kernel* end) {
  for (const Kernel* kernel = begin; kernel != end; ++kernel) kernels()[kernel->name] = kernel->function;
  return true;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

const char* launch(const Plan& plan, const void* params, int device, void* stream) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess && before != device) error = cudaSetDevice(device);
  for (const Launch& one : plan.launches) {
    if (error != cudaSuccess) break;
    const void* kernel = find(one.kernel);
    void* arguments[] = {const_cast<void*>(params)};
    error = kernel ? cudaLaunchKernel(kernel, dim3(unsigned(one.blocks)), dim3(unsigned(one.threads)), arguments, 0,
                                      static_cast<cudaStream_t>(stream))
                   : cudaErrorInvalidDeviceFunction;
  }
  if (before != device) cudaSetDevice(before);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // an error of a launch must not turn up in somebody else's call
  return cudaGetErrorString(error);
}

}  // namespace cuda
}  // namespace mdepth
