// The arithmetic of the reverse Huber loss, host and device.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/hd.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

struct BerhuLossParams {
  Dtype dtype;
  int threads;
  int64_t batch, height, width;
  double threshold;  // share of the largest error
  bool measured;
  const void* prediction;  // (B, 1, H, W)
  const void* depth;       // (B, 1, H, W)
  const bool* valid;       // (B, 1, H, W) or null
  double* loss;            // out: one number; forward only
  double* state;           // (2,), largest error and number of pixels: out in forward, in in backward
  const void* grad;        // one number; backward only, as is all below
  void* grad_prediction;   // out (B, 1, H, W)
  double* workspace;       // GPU, forward only
};
MDEPTH_FIELDS(BerhuLossParams, dtype, threads, batch, height, width, threshold, measured, prediction, depth, valid,
              loss, state, grad, grad_prediction, workspace)

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

#if !defined(__CUDACC_RTC__)

inline Plan plan_berhu_loss(const BerhuLossParams& p) {
  const int64_t blocks = spans_per_plane(p.batch * p.height * p.width);
  Plan plan;
  plan.workspace = 3 * blocks;  // largest error, number of pixels and cost of each block
  plan.add(with_dtype("berhu_loss_largest", p.dtype), blocks, kReduceThreads);
  plan.add("berhu_loss_state", 1, kReduceThreads);
  plan.add(with_dtype("berhu_loss", p.dtype), blocks, kReduceThreads);
  plan.add("berhu_loss_sum", 1, kReduceThreads);
  return plan;
}

inline Plan plan_berhu_loss_backward(const BerhuLossParams& p) {
  Plan plan;
  plan.add(with_dtype("berhu_loss_backward", p.dtype), spans_per_plane(p.batch * p.height * p.width), kReduceThreads);
  return plan;
}

#endif

}  // namespace mdepth
