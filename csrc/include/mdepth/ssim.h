// SSIM of one 3x3 window and its derivative: one pixel and one channel, host and device.
// Variances come from centred sums: E[x^2] - E[x]^2 would lose against C2 = 9e-4 what float32 has to give.
#pragma once
#include "mdepth/hd.h"
#include "mdepth/params.h"

namespace mdepth {

template <class T>
struct Window {
  T v[9];
};

template <class T>
struct Moments {
  T mean, variance;
};

template <class T>
MDEPTH_HD T mean_of(const Window<T>& w) {
  return (((w.v[0] + w.v[1]) + (w.v[2] + w.v[3])) + ((w.v[4] + w.v[5]) + (w.v[6] + w.v[7])) + w.v[8]) * T(1.0 / 9.0);
}

template <class T>
MDEPTH_HD Moments<T> moments_of(const Window<T>& w) {
  Moments<T> m;
  m.mean = mean_of(w);
  T sum = T(0);
  for (int k = 0; k < 9; ++k) {
    const T d = w.v[k] - m.mean;
    sum += d * d;
  }
  m.variance = sum * T(1.0 / 9.0);
  return m;
}

// distance = clamp((1 - SSIM) / 2, 0, 1). Its derivative by the window's pixel x_q, beside y_q in the other image, is
// a_x + b * (x_q - 1/2) + c * (y_q - 1/2), and by y_q the same with a_y and x, y exchanged: a few numbers a window, so
// the adjoint of the stencil is a few box sums.
// (Centring on 1/2, the middle of the image range, halves what the sum of large terms of opposite sign loses.)
template <class T>
struct SsimDistance {
  T distance, a_x, a_y, b, c;
};

// x against y, whose moments are given.
template <class T>
MDEPTH_HD SsimDistance<T> ssim_distance(const Window<T>& x, const Window<T>& y, const Moments<T>& my) {
  const T mean = mean_of(x);
  T sum = T(0), cross = T(0);
  for (int k = 0; k < 9; ++k) {
    const T d = x.v[k] - mean;
    sum += d * d;
    cross += d * (y.v[k] - my.mean);
  }
  const T variance = sum * T(1.0 / 9.0);
  const T covariance = cross * T(1.0 / 9.0);
  const T n1 = T(2) * mean * my.mean + T(kSsimC1);
  const T n2 = T(2) * covariance + T(kSsimC2);
  const T d1 = mean * mean + my.mean * my.mean + T(kSsimC1);
  const T d2 = variance + my.variance + T(kSsimC2);
  const T inverse = T(1) / (d1 * d2);
  const T ssim = n1 * n2 * inverse;
  // 1 - SSIM without subtracting two numbers near 1: d1 - n1 = (difference of the means)^2.
  const T gap = mean - my.mean;
  const T raw = T(0.5) * (d1 * (variance + my.variance - T(2) * covariance) + n2 * gap * gap) * inverse;
  SsimDistance<T> r;
  r.distance = raw < T(0) ? T(0) : (raw > T(1) ? T(1) : raw);
  // d distance = -1/2 d ssim inside the clamp; 1/9 from the means.
  const T scale = (raw >= T(0) && raw <= T(1)) ? T(-0.5 / 9.0) : T(0);
  const T ssim_by_d1 = ssim * d2 * inverse;
  const T by_mean_x = T(2) * (my.mean * n2 * inverse - ssim_by_d1 * mean);
  const T by_mean_y = T(2) * (mean * n2 * inverse - ssim_by_d1 * my.mean);
  const T by_variance = -ssim * d1 * inverse;
  const T by_covariance = T(2) * n1 * inverse;
  const T shift_x = mean - T(0.5), shift_y = my.mean - T(0.5);
  r.b = scale * T(2) * by_variance;
  r.c = scale * by_covariance;
  r.a_x = scale * by_mean_x - r.b * shift_x - r.c * shift_y;
  r.a_y = scale * by_mean_y - r.b * shift_y - r.c * shift_x;
  return r;
}

}  // namespace mdepth
