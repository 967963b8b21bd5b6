// The arithmetic of the reverse Huber loss, host and device.
#pragma once
#include "mdepth/hd.h"

namespace mdepth {

MDEPTH_HD float least_normal(float) { return 1.17549435e-38f; }
MDEPTH_HD double least_normal(double) { return 2.2250738585072014e-308; }

// c = share * the largest error, never 0; NaN where an error is not finite.
template <class T>
MDEPTH_HD T berhu_threshold(double largest, double share) {
  const double c = share * largest, least = double(least_normal(T(0)));
  return T((c < least ? least : c) + (c - c));
}

// |x| up to c, (x^2 + c^2) / (2 c) beyond.
template <class T>
MDEPTH_HD T berhu_cost(T x, T c, T half_inverse) {
  const T a = abs_of(x);
  return a <= c ? a : a * (a * half_inverse) + c * T(0.5);
}

template <class T>
MDEPTH_HD T berhu_slope(T x, T c, T inverse) {
  return abs_of(x) <= c ? sign_of(x) : x * inverse;
}

}  // namespace mdepth
