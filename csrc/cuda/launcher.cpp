// Launches plans on a stream, through the runtime that is linked into the module.
#include "launcher.h"

#include <cuda_runtime.h>

#include <cstring>

#include "mdepth/launch.h"

namespace mdepth {
namespace cuda {

KernelTable depth_metrics_kernels();
KernelTable berhu_loss_kernels();
KernelTable disparity_to_depth_kernels();
KernelTable edge_aware_smoothness_kernels();
KernelTable inverse_warp_kernels();
KernelTable min_reprojection_kernels();
KernelTable nnconv5_kernels();
KernelTable ordinal_decode_kernels();
KernelTable ordinal_loss_kernels();
KernelTable photometric_loss_kernels();
KernelTable silog_loss_kernels();

namespace {

const void* find(const std::string& name) {
  for (const KernelTable& table :
       {berhu_loss_kernels(), depth_metrics_kernels(), disparity_to_depth_kernels(), edge_aware_smoothness_kernels(),
        inverse_warp_kernels(), min_reprojection_kernels(), nnconv5_kernels(), ordinal_decode_kernels(), ordinal_loss_kernels(),
        photometric_loss_kernels(), silog_loss_kernels()})
    for (int i = 0; i < table.count; ++i)
      if (name == table.kernels[i].name) return table.kernels[i].function;
  return nullptr;
}

}  // namespace

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
