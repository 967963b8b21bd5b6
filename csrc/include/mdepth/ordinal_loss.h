// The arithmetic of ordinal regression, host and device: one pair of logits of one pixel.
// Bin k's probability "beyond t_k" is P = sigmoid(d), d = y_{2k+1} - y_{2k}. With s = -d where the truth is beyond and
// s = d where it is not, the pair costs softplus(s), and its derivative by s is sigmoid(s): both free of cancellation.
#pragma once
#include "mdepth/exp.h"
#include "mdepth/grid.h"
#include "mdepth/hd.h"
#include "mdepth/log.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

struct OrdinalLossParams {
  Dtype dtype;
  int threads;
  int64_t batch, bins, height, width;
  const void* logits;      // (B, 2 bins, H, W)
  const void* depth;       // (B, 1, H, W)
  const void* thresholds;  // (bins + 1,)
  const bool* valid;       // (B, 1, H, W) or null: finite depth > 0
  double* loss;            // out: one number; forward only
  int64_t* count;          // valid pixels: out in forward, in in backward
  const void* grad;        // one number; backward only, as is all below
  void* grad_logits;       // out (B, 2 bins, H, W)
  double* workspace;       // GPU, forward only
};
MDEPTH_FIELDS(OrdinalLossParams, dtype, threads, batch, bins, height, width, logits, depth, thresholds, valid, loss,
              count, grad, grad_logits, workspace)

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

#if !defined(__CUDACC_RTC__)

inline Plan plan_ordinal_loss(const OrdinalLossParams& p) {
  const int64_t blocks = p.batch * runs_per_plane(p.height * p.width);
  Plan plan;
  plan.workspace = 2 * blocks;  // cost and number of the pixels of each block
  plan.add(with_dtype("ordinal_loss", p.dtype), blocks, kRunThreads);
  plan.add("ordinal_loss_sum", 1, kReduceThreads);
  return plan;
}

inline Plan plan_ordinal_loss_backward(const OrdinalLossParams& p) {
  Plan plan;
  plan.add(with_dtype("ordinal_loss_backward", p.dtype), p.batch * runs_per_plane(p.height * p.width), kRunThreads);
  return plan;
}

#endif

}  // namespace mdepth
