// An exponential that vectorises, host and device.
#pragma once
#include "mdepth/hd.h"

namespace mdepth {

// exp(-x) for x >= 0. The compiler does not vectorise expf without -ffast-math, so float has a polynomial of its own:
// exp(-x) = 2^-k exp(r), |r| <= ln(2) / 2, relative error under 2e-7. NaN stays NaN; far out the result is 0.
MDEPTH_HD double exp_negative(double x) { return exp_of(-x); }

MDEPTH_HD float exp_negative(float x) {
#if defined(__CUDA_ARCH__)
  return exp_of(-x);
#else
  const float bounded = x < 87.0f ? x : (x >= 87.0f ? 87.0f : x);
  const float k = floor_of(bounded * 1.44269504088896341f + 0.5f);
  const float r = (k * 0.693359375f - bounded) + k * -2.12194440e-4f;
  const float poly =
      1.0f +
      r * (1.0f + r * (0.5f + r * (1.66666667e-1f + r * (4.16666410e-2f + r * (8.3333377e-3f + r * 1.388889e-3f)))));
  // 2^-k by its bits; a NaN's k does not matter, poly is NaN then.
  union {
    unsigned bits;
    float value;
  } power;
  power.bits = (127u - unsigned(k >= 0.0f ? int(k) : 0)) << 23;
  return x >= 87.0f ? 0.0f : poly * power.value;
#endif
}

}  // namespace mdepth
