// The arithmetic of the depth metrics, host and device, in double whatever the maps are: one pixel, and its part of the
// sums of params.h.
#pragma once
#include "mdepth/hd.h"
#include "mdepth/params.h"

namespace mdepth {

// Where the ground truth counts; NaN compares with nothing.
template <class T>
MDEPTH_HD bool metrics_counted(T truth, T low, T high) {
  return truth > low && truth < high;
}

// A prediction after alignment, as depth, clipped. NaN stays NaN.
MDEPTH_HD double metrics_depth(double x, double scale, double shift, bool inverse, double low, double high) {
  double depth = x * scale + shift;
  // An inverse depth may have been fitted to zero or below: that is beyond everything.
  if (inverse) depth = depth <= 0.0 ? high : 1.0 / depth;
  depth = depth < low ? low : depth;
  return depth > high ? high : depth;
}

// ln(p / g) of normal positive numbers, error under 4e-16 of the larger of 1 and the result; 0 for p = g, NaN stays
// NaN. A series of our own because compilers vectorise no log() without -ffast-math.
// With q = 2^k g, k so that p / q lies in [0.66, 1.51]: ln(p / g) = k ln 2 + 2 artanh((p - q) / (p + q)).
MDEPTH_HD double log_ratio(double p, double g) {
#if defined(__CUDA_ARCH__)
  return log(p / g);
#else
  union Bits {
    double value;
    uint64_t bits;
  } a, b, power, whole;
  a.value = p;
  b.value = g;
  constexpr uint64_t kBias = 1023;
  // As fixed-point numbers the bits are log2, piecewise linear: at most 0.087 off.
  const uint64_t k = (a.bits - b.bits + ((2 * kBias + 1) << 51)) >> 52;  // + kBias
  power.bits = k << 52;
  whole.bits = k | 0x4330000000000000u;  // 2^52 + k
  const double q = g * power.value, s = (p - q) / (p + q), z = s * s;
  double sum = 1.0 / 23;
  sum = sum * z + 1.0 / 21;
  sum = sum * z + 1.0 / 19;
  sum = sum * z + 1.0 / 17;
  sum = sum * z + 1.0 / 15;
  sum = sum * z + 1.0 / 13;
  sum = sum * z + 1.0 / 11;
  sum = sum * z + 1.0 / 9;
  sum = sum * z + 1.0 / 7;
  sum = sum * z + 1.0 / 5;
  sum = sum * z + 1.0 / 3;
  return (whole.value - (4503599627370496.0 + double(kBias))) * 0.693147180559945309417 + 2.0 * (s + s * z * sum);
#endif
}

// What a pixel of predicted depth p and true depth g, both positive, adds to the sums.
struct MetricsTerms {
  double abs_rel, sq_rel, sq_rel_kitti, sq_error, sq_log, log, abs_log, d1, d2, d3, sq_inverse;
};

MDEPTH_HD MetricsTerms metrics_terms(double p, double g) {
  const double error = p - g, inverse = 1.0 / (p * g), relative = error * (p * inverse), e = log_ratio(p, g);
  const double apart = error * inverse;
  MetricsTerms t;
  t.abs_rel = abs_of(relative);
  t.sq_rel = error * relative;
  t.sq_rel_kitti = relative * relative;
  t.sq_error = error * error;
  t.sq_log = e * e;
  t.log = e;
  t.abs_log = abs_of(e);
  // max(p / g, g / p) < 1.25^j, false for a NaN.
  t.d1 = p < 1.25 * g && g < 1.25 * p ? 1.0 : 0.0;
  t.d2 = p < 1.5625 * g && g < 1.5625 * p ? 1.0 : 0.0;
  t.d3 = p < 1.953125 * g && g < 1.953125 * p ? 1.0 : 0.0;
  t.sq_inverse = apart * apart;
  return t;
}

}  // namespace mdepth
