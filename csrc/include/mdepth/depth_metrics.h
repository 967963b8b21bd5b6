// The arithmetic of the depth metrics, host and device, in double whatever the maps are: one pixel, and its part of the
// sums of params.h.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/log.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

// Sums over pixels from which the depth metrics follow, with depths p and g and e = ln p - ln g: how many pixels;
// |p - g| / g; (p - g)^2 / g; (p - g)^2 / g^2; (p - g)^2; e^2; e; |e|; max(p / g, g / p) < 1.25, 1.25^2, 1.25^3;
// (1 / p - 1 / g)^2.
constexpr int kDepthSums = 12;

struct DepthMetricsParams {
  Dtype dtype;
  int threads;
  int64_t batch, height, width;
  int64_t top, bottom, left, right;  // the window that counts, half-open
  double min_valid, max_valid;       // ground truth strictly between counts
  double min_depth, max_depth;       // predictions are clipped to these
  bool inverse;                      // predictions are inverse depths
  const void* prediction;            // (B, H, W)
  const void* ground_truth;          // (B, H, W)
  const double* scale;               // (B,) or null: 1
  const double* shift;               // (B,) or null: 0
  double* sums;                      // out (B, kDepthSums)
  double* workspace;                 // GPU
};
MDEPTH_FIELDS(DepthMetricsParams, dtype, threads, batch, height, width, top, bottom, left, right, min_valid, max_valid,
              min_depth, max_depth, inverse, prediction, ground_truth, scale, shift, sums, workspace)

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

// Blocks of an image of depth_metrics, each of kMetricsPixels * kRunThreads pixels of the window.
constexpr int kMetricsPixels = 16;
MDEPTH_HD int64_t metrics_blocks(const DepthMetricsParams& p) {
  constexpr int64_t kPixels = kMetricsPixels * kRunThreads;
  return ((p.bottom - p.top) * (p.right - p.left) + kPixels - 1) / kPixels;
}

#if !defined(__CUDACC_RTC__)

inline Plan plan_depth_metrics(const DepthMetricsParams& p) {
  check_plane("depth_metrics", p.height, p.width);
  const int64_t blocks = p.batch * metrics_blocks(p);
  Plan plan;
  plan.workspace = kDepthSums * blocks;
  plan.add(with_dtype("depth_metrics", p.dtype), blocks, kRunThreads);
  plan.add("depth_metrics_sum", p.batch, kReduceThreads);
  return plan;
}

#endif

}  // namespace mdepth
