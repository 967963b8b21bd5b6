// Logarithms, host and device. The compiler does not vectorise logf without -ffast-math, so float has a polynomial of its
// own; nothing here branches.
#pragma once
#include "mdepth/hd.h"

#if !defined(__CUDACC_RTC__)
#include <cstdint>
#endif

namespace mdepth {

MDEPTH_HD unsigned bits_of(float x) {
  union {
    float value;
    unsigned bits;
  } u;
  u.value = x;
  return u.bits;
}

MDEPTH_HD float from_bits(unsigned bits) {
  union {
    unsigned bits;
    float value;
  } u;
  u.bits = bits;
  return u.value;
}

// log(1 + f) - f for -1/3 <= f <= 1/2, within 2^-27 of log(1 + f).
MDEPTH_HD float log1p_minus(float f) {
  const float square = f * f;
  float poly = 6.0658414e-2f;
  poly = poly * f - 1.1881942e-1f;
  poly = poly * f + 1.2381513e-1f;
  poly = poly * f - 1.2424741e-1f;
  poly = poly * f + 1.4149050e-1f;
  poly = poly * f - 1.6662650e-1f;
  poly = poly * f + 2.0005521e-1f;
  poly = poly * f - 2.5000197e-1f;
  poly = poly * f + 3.3333266e-1f;
  return f * square * poly - 0.5f * square;
}

// k log(2) + log(1 + f) + rest, k log(2) in two parts of which the first is exact.
MDEPTH_HD float log_of_parts(float k, float f, float rest) {
  return k * 0.693359375f + (f + (log1p_minus(f) + (k * -2.12194440e-4f + rest)));
}

// log(1 + x) for 0 <= x < 2^23, relative error under 2e-7; NaN stays NaN. 1 + x = 2^k m with m around 1, and what
// rounding 1 + x has dropped is put back.
MDEPTH_HD double log1p_positive(double x) { return log1p(x); }

MDEPTH_HD float log1p_positive(float x) {
#if defined(__CUDA_ARCH__)
  return log1pf(x);
#else
  constexpr unsigned kRootHalf = 0x3f3504f3u;
  const float u = 1.0f + x;
  const unsigned shifted = bits_of(u) + (0x3f800000u - kRootHalf);
  const float k = float(int(shifted >> 23) - 127);
  const float f = from_bits((shifted & 0x007fffffu) + kRootHalf) - 1.0f;
  return log_of_parts(k, f, (x - (u - 1.0f)) / u);
#endif
}

// log(a / b) within 2 ulp, also where a is close to b and log(a) - log(b) would cancel. NaN unless both are finite and
// above 0.
MDEPTH_HD double log_ratio(double a, double b) {
  const double difference = log(a) - log(b);
  return difference + (difference - difference);
}

MDEPTH_HD float log_ratio(float a, float b) {
  // Positive and finite, by its bits: 1 .. 0x7f7fffff.
  const bool proper = (bits_of(a) - 1u < 0x7f7fffffu) & (bits_of(b) - 1u < 0x7f7fffffu);
  const int tiny_a = a < 1.17549435e-38f, tiny_b = b < 1.17549435e-38f;
  const unsigned of_a = bits_of(a * (tiny_a ? 16777216.0f : 1.0f)), of_b = bits_of(b * (tiny_b ? 16777216.0f : 1.0f));
  // a / b = 2^k (1 + f): the difference of the bits is a logarithm of base 2 with straight pieces, and rounding it to
  // an integer leaves a quotient between 2/3 and 3/2, whose numerator's difference to its denominator is exact.
  const int k = int(of_a - of_b + 0x400000u) >> 23;
  const unsigned exponent = (of_a & 0x7f800000u) - 0x3f800000u;
  const float one = from_bits(of_a - exponent), other = from_bits(of_b + (unsigned(k) << 23) - exponent);
  const float value = log_of_parts(float(k + 24 * (tiny_b - tiny_a)), (one - other) / other, 0.0f);
  return proper ? value : from_bits(0x7fc00000u);
}

// ln(p / g) of normal positive numbers, error under 4e-16 of the larger of 1 and the result; 0 for p = g, NaN stays
// NaN. A series of our own because compilers vectorise no log() without -ffast-math.
// With q = 2^k g, k so that p / q lies in [0.66, 1.51]: ln(p / g) = k ln 2 + 2 artanh((p - q) / (p + q)).
MDEPTH_HD double log_ratio_normal(double p, double g) {
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

}  // namespace mdepth
