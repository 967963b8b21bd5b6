// Projection of a pixel into a source view and bilinear sampling there: one pixel, no branches, host and device.
#pragma once
#include "mdepth/hd.h"
#include "mdepth/params.h"

namespace mdepth {

// The projection of one image row y. Coordinates are kept as shifts from the pixel itself, (u - x, v - y): near-identity
// motions then keep all digits of the fraction, where u itself has only 24 bits for integer part and fraction together.
//   numerator of u - x: depth * (a0 + x * (a1 + x * a2)) + (b0 + x * b1)
//   numerator of v - y: depth * (c0 + x * c1) + d0
//   z:                  depth * (e0 + x * e1) + f0
template <class T>
struct RowProjection {
  T a0, a1, a2, b0, b1, c0, c1, d0, e0, e1, f0;
};

template <class T>
MDEPTH_HD RowProjection<T> row_projection(const double* P, double y) {
  RowProjection<T> r;
  r.a0 = T(P[1] * y + P[2]);
  r.a1 = T(P[0] - P[10] - P[9] * y);
  r.a2 = T(-P[8]);
  r.b0 = T(P[3]);
  r.b1 = T(-P[11]);
  r.c0 = T(P[6] + y * (P[5] - P[10] - P[9] * y));
  r.c1 = T(P[4] - P[8] * y);
  r.d0 = T(P[7] - y * P[11]);
  r.e0 = T(P[9] * y + P[10]);
  r.e1 = T(P[8]);
  r.f0 = T(P[11]);
  return r;
}

template <class T>
struct Projected {
  T shift_u, shift_v;      // u - x, v - y
  T inv_z;                 // 0 where the point is invalid
  T du_ddepth, dv_ddepth;  // 0 where the point is invalid
  T poison;                // 0, or NaN where depth or projection is not finite
};

template <class T>
MDEPTH_HD Projected<T> project(const RowProjection<T>& r, T x, T depth) {
  const T eu = r.a0 + x * (r.a1 + x * r.a2);
  const T ev = r.c0 + x * r.c1;
  const T ez = r.e0 + x * r.e1;
  const T nu = depth * eu + (r.b0 + x * r.b1);
  const T nv = depth * ev + r.d0;
  const T z = depth * ez + r.f0;
  const bool valid = z > T(kMinZ);
  const T inv = T(1) / (valid ? z : T(1));
  Projected<T> p;
  p.shift_u = nu * inv;
  p.shift_v = nv * inv;
  p.inv_z = valid ? inv : T(0);
  p.du_ddepth = (eu - p.shift_u * ez) * p.inv_z;
  p.dv_ddepth = (ev - p.shift_v * ez) * p.inv_z;
  p.poison = (nu + nv + z) * T(0);
  return p;
}

// One axis of a bilinear sample: value = w0 * tap0 + w1 * tap1, derivative = d0 * tap0 + d1 * tap1.
template <class T>
struct Axis {
  int tap0, tap1;  // always inside the image
  T w0, w1, d0, d1;
};

// `pixel` + `shift` on an axis of `size` pixels.
template <Padding padding, class T>
MDEPTH_HD Axis<T> sample_axis(int pixel, T shift, int size) {
  const T whole = floor_of(shift);
  const T fraction = shift - whole;  // NaN where shift is not finite
  const T limit = T(1 << 28);        // beyond any image; keeps the conversion to int defined, NaN included
  const T bounded = whole > -limit ? (whole < limit ? whole : limit) : -limit;
  const int first = pixel + int(bounded);
  const int second = first + 1;
  const int last = size - 1;
  Axis<T> a;
  a.tap0 = first < 0 ? 0 : (first > last ? last : first);
  a.tap1 = second < 0 ? 0 : (second > last ? last : second);
  if (padding == Padding::kBorder) {
    // Clamped coordinates have no gradient; a coordinate exactly on the border counts as clamped.
    const bool inside = first >= 0 && first < last && (first > 0 || fraction > T(0));
    a.w0 = T(1) - fraction;
    a.w1 = fraction;
    a.d0 = inside ? T(-1) : T(0);
    a.d1 = inside ? T(1) : T(0);
  } else {
    const bool in0 = first >= 0 && first <= last;
    const bool in1 = second >= 0 && second <= last;
    a.w0 = in0 ? T(1) - fraction : T(0);
    a.w1 = in1 ? fraction : T(0);
    a.d0 = in0 ? T(-1) : T(0);
    a.d1 = in1 ? T(1) : T(0);
  }
  return a;
}

// Whether both neighbours of `pixel` + `shift` lie on an axis of `size` pixels.
template <class T>
MDEPTH_HD bool between_pixels(int pixel, T shift, int size) {
  const T first = T(pixel) + floor_of(shift);
  return first >= T(0) && first < T(size - 1);
}

template <class T>
struct Sample {
  T value, du, dv;
};

// The four taps are t<row><column>.
template <class T>
MDEPTH_HD Sample<T> bilinear(const Axis<T>& u, const Axis<T>& v, T t00, T t01, T t10, T t11) {
  const T row0 = u.w0 * t00 + u.w1 * t01;
  const T row1 = u.w0 * t10 + u.w1 * t11;
  Sample<T> s;
  s.value = v.w0 * row0 + v.w1 * row1;
  s.du = v.w0 * (u.d0 * t00 + u.d1 * t01) + v.w1 * (u.d0 * t10 + u.d1 * t11);
  s.dv = v.d0 * row0 + v.d1 * row1;
  return s;
}

}  // namespace mdepth
