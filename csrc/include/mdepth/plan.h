// Which kernels an op launches on a GPU, host only: the one description that the compiled launcher, NVRTC and the tests
// that run the kernels on the CPU follow. Kernels of a plan run one after another, with the op's parameters.
#pragma once
#if !defined(__CUDACC_RTC__)
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "mdepth/params.h"

namespace mdepth {

struct Launch {
  std::string kernel;
  int64_t blocks;
  int threads;
};

struct Plan {
  std::vector<Launch> launches;
  int64_t workspace = 0;  // doubles

  void add(const std::string& kernel, int64_t blocks, int threads) {
    if (blocks > INT32_MAX) throw std::invalid_argument(kernel + ": too large for one launch");
    if (blocks > 0) launches.push_back({kernel, blocks, threads});
  }
};

inline std::string with_dtype(const char* kernel, Dtype dtype) {
  return std::string(kernel) + (dtype == Dtype::kFloat64 ? "_f64" : "_f32");
}

inline std::string with_padding(const char* kernel, Dtype dtype, Padding padding) {
  return with_dtype(kernel, dtype) + (padding == Padding::kZeros ? "_zeros" : "_border");
}

// Offsets within one plane are 32-bit in the kernels.
inline void check_plane(const char* op, int64_t height, int64_t width) {
  if (height * width > INT32_MAX) throw std::invalid_argument(std::string(op) + ": an image of over 2^31 pixels");
}

}  // namespace mdepth

#endif
