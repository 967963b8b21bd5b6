// Functions that CPU and GPU compilers share. Internal linkage: the same header is compiled for several
// instruction sets, and the linker must never merge an AVX-512 copy into baseline code.
#pragma once

#if defined(__CUDACC__)
#define MDEPTH_HD __host__ __device__ __forceinline__
#else
#define MDEPTH_HD static inline __attribute__((always_inline))
#endif

#if !defined(__CUDACC_RTC__)
#include <cmath>
#endif

namespace mdepth {

MDEPTH_HD float floor_of(float x) { return floorf(x); }
MDEPTH_HD double floor_of(double x) { return floor(x); }
MDEPTH_HD float exp_of(float x) { return expf(x); }
MDEPTH_HD double exp_of(double x) { return exp(x); }
MDEPTH_HD float abs_of(float x) { return fabsf(x); }
MDEPTH_HD double abs_of(double x) { return fabs(x); }
MDEPTH_HD float sqrt_of(float x) { return sqrtf(x); }
MDEPTH_HD double sqrt_of(double x) { return sqrt(x); }
// The other one where one is NaN.
MDEPTH_HD float min_of(float x, float y) { return fminf(x, y); }
MDEPTH_HD double min_of(double x, double y) { return fmin(x, y); }

template <class T>
MDEPTH_HD T sign_of(T x) {
  return x > T(0) ? T(1) : (x < T(0) ? T(-1) : T(0));
}

}  // namespace mdepth
