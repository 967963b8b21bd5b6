// The arithmetic of ordinal regression, host and device: one pair of logits of one pixel.
// Bin k's probability "beyond t_k" is P = sigmoid(d), d = y_{2k+1} - y_{2k}. With s = -d where the truth is beyond and
// s = d where it is not, the pair costs softplus(s), and its derivative by s is sigmoid(s): both free of cancellation.
#pragma once
#include "mdepth/smoothness.h"

namespace mdepth {

// softplus(s) = max(s, 0) + log(1 + exp(-|s|)), and the logarithms of a pixel's pairs are taken together: `odds` is
// prod (1 + exp(-|s|)) - 1, updated so that it keeps its relative accuracy when every factor is near 1.
constexpr int kOrdinalFactors = 16;  // pairs between two logarithms; odds stays below 2^16

template <class T>
MDEPTH_HD T ordinal_excess(T excess, T s) {
  return excess + (s > T(0) ? s : T(0));
}

template <class T>
MDEPTH_HD T ordinal_odds(T odds, T s) {
  return odds + exp_negative(abs_of(s)) * (T(1) + odds);
}

template <class T>
MDEPTH_HD T ordinal_slope(T s) {
  const T e = exp_negative(abs_of(s));
  return (s >= T(0) ? T(1) : e) / (T(1) + e);
}

// Whether a pixel counts when the caller has given no mask: 0, negative, infinite and NaN mean "not measured".
template <class T>
MDEPTH_HD bool ordinal_measured(T depth) {
  return depth > T(0) && depth - depth == T(0);
}

// log(1 + x) for 0 <= x < 2^23, relative error under 2e-7; NaN stays NaN. A polynomial of our own for the reason that
// exp_negative has one: 1 + x = 2^k m with m around 1, and what rounding 1 + x has dropped is put back at the end.
MDEPTH_HD double log1p_positive(double x) { return log1p(x); }

MDEPTH_HD float log1p_positive(float x) {
#if defined(__CUDA_ARCH__)
  return log1pf(x);
#else
  union {
    float value;
    unsigned bits;
  } m;
  const float u = 1.0f + x;
  m.value = u;
  constexpr unsigned kRootHalf = 0x3f3504f3u;
  const unsigned shifted = m.bits + (0x3f800000u - kRootHalf);
  const float k = float(int(shifted >> 23) - 127);
  m.bits = (shifted & 0x007fffffu) + kRootHalf;
  const float f = m.value - 1.0f, square = f * f;
  float poly = 7.0376836292e-2f;
  poly = poly * f - 1.1514610310e-1f;
  poly = poly * f + 1.1676998740e-1f;
  poly = poly * f - 1.2420140846e-1f;
  poly = poly * f + 1.4249322787e-1f;
  poly = poly * f - 1.6668057665e-1f;
  poly = poly * f + 2.0000714765e-1f;
  poly = poly * f - 2.4999993993e-1f;
  poly = poly * f + 3.3333331174e-1f;
  const float tail = f * square * poly - 0.5f * square + k * -2.12194440e-4f + (x - (u - 1.0f)) / u;
  return k * 0.693359375f + (f + tail);
#endif
}

}  // namespace mdepth
