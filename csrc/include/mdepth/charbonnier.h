// The generalised Charbonnier penalty ((scale s)^2 + epsilon^2)^alpha and its derivative, host and device.
#pragma once
#include "mdepth/log.h"

namespace mdepth {

template <class T>
struct Charbonnier {
  T scale, epsilon_squared, alpha, slope;
};

// float has a power of its own, as the compiler vectorises no powf without -ffast-math. `high` has so few bits that its
// product with an exponent is exact.
template <>
struct Charbonnier<float> {
  float scale, epsilon_squared, slope;
  float high, low, per_log;  // of alpha: high + low, and over log(2)
};

template <class T>
struct Penalty {
  T value, slope;
};

MDEPTH_HD void charbonnier(double alpha, double scale, double epsilon, Charbonnier<double>& c) {
  c = {scale, epsilon * epsilon, alpha, 2 * alpha * scale};
}

MDEPTH_HD void charbonnier(double alpha, double scale, double epsilon, Charbonnier<float>& c) {
  const float high = from_bits(bits_of(float(alpha)) & 0xffffff80u);
  c = {float(scale), float(epsilon * epsilon),    float(2 * alpha * scale),
       high,         float(alpha - double(high)), float(alpha * 1.44269504088896340736)};
}

// Those of an op.
template <class T, class Params>
MDEPTH_HD Charbonnier<T> charbonnier_of(const Params& p) {
  Charbonnier<T> c;
  charbonnier(p.alpha, p.scale, p.epsilon, c);
  return c;
}

MDEPTH_HD double power(const Charbonnier<double>& c, double base) { return pow(base, c.alpha); }

// base^alpha within 1.3e-7, 0 < alpha <= 1, of a normal number above 0; what is not finite becomes NaN. With
// base = 2^k (1 + f) and log2(base^alpha) = n + r, |r| <= 1/2, n whole, it is 2^n 2^r.
MDEPTH_HD float power(const Charbonnier<float>& c, float base) {
  constexpr unsigned kRootHalf = 0x3f3504f3u;
  const unsigned shifted = bits_of(base) + (0x3f800000u - kRootHalf);
  const float k = float(int(shifted >> 23) - 127);
  const float f = from_bits((shifted & 0x007fffffu) + kRootHalf) - 1.0f;
  const float small = c.low * k + c.per_log * (f + log1p_minus(f));
  const float n = floor_of(c.high * k + small + 0.5f);
  const float r = (c.high * k - n) + small;
  float poly = 1.5353361e-4f;
  poly = poly * r + 1.3398874e-3f;
  poly = poly * r + 9.618437e-3f;
  poly = poly * r + 5.5503324e-2f;
  poly = poly * r + 2.4022648e-1f;
  poly = poly * r + 6.9314718e-1f;
  poly = poly * r + 1.0f;
  return poly * from_bits(unsigned(int(n) + 127) << 23) + (base - base);
}

template <class T>
MDEPTH_HD Penalty<T> penalty(const Charbonnier<T>& c, T s) {
  const T x = c.scale * s;
  const T base = x * x + c.epsilon_squared;
  const T value = power(c, base);
  return {value, c.slope * x * (value / base)};
}

}  // namespace mdepth
