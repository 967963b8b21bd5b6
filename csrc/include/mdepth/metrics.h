// The arithmetic of the depth metrics, host and device, in double whatever the maps are: one pixel, and its part of the
// sums of params.h.
#pragma once
#include "mdepth/hd.h"
#include "mdepth/log.h"
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

// What a pixel of predicted depth p and true depth g, both positive, adds to the sums.
struct MetricsTerms {
  double abs_rel, sq_rel, sq_rel_kitti, sq_error, sq_log, log, abs_log, d1, d2, d3, sq_inverse;
};

MDEPTH_HD MetricsTerms metrics_terms(double p, double g) {
  const double error = p - g, inverse = 1.0 / (p * g), relative = error * (p * inverse), e = log_ratio_normal(p, g);
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
