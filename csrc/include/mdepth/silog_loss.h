// The arithmetic of the scale-invariant logarithmic loss, host and device: the residual d of a pixel, the loss of the sums
// of d and d^2, and the derivative by d, which is slope * d + shift with two numbers for each image.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/log.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

enum class SilogForm : int { kEigen = 0, kImageMean = 1, kSqrt = 2, kSqrtUnbiased = 3 };

// Which pixels count: those of `valid`, else if `measured` those of finite depth above 0, else all.
struct SilogLossParams {
  Dtype dtype;
  SilogForm form;
  int threads;
  int64_t batch, height, width;
  double variance_focus, scale;
  bool log_prediction;  // prediction is log(depth)
  bool measured;
  const void* prediction;  // (B, 1, H, W)
  const void* depth;       // (B, 1, H, W)
  const bool* valid;       // (B, 1, H, W) or null
  double* loss;            // out: one number; forward only
  double* coefficients;    // (B, 2), slope and shift of the gradient: out in forward, in in backward
  const void* grad;        // one number; backward only, as is all below
  void* grad_prediction;   // out (B, 1, H, W)
  double* workspace;       // GPU, forward only
};
MDEPTH_FIELDS(SilogLossParams, dtype, form, threads, batch, height, width, variance_focus, scale, log_prediction,
              measured, prediction, depth, valid, loss, coefficients, grad, grad_prediction, workspace)

enum SilogSum { kSilogCount, kSilogSum, kSilogSquares, kSilogSums };  // of an image's valid pixels

// log(prediction / depth), or prediction - log(depth); NaN where that is not finite.
template <class T>
MDEPTH_HD T silog_residual(T prediction, T depth, bool log_prediction) {
  return log_prediction ? prediction - log_ratio(depth, T(1)) + (prediction - prediction)
                        : log_ratio(prediction, depth);
}

// The loss and (B, 2) slope and shift, from (B, kSilogSums) sums.
MDEPTH_HD void silog_finish(const SilogLossParams& p, const double* sums, double* loss, double* coefficients) {
  const double focus = p.variance_focus;
  double count = 0, weight = 0, images = 0, sum = 0, squares = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const double* s = sums + b * kSilogSums;
    count += s[kSilogCount];
    weight += s[kSilogCount] * s[kSilogCount];
    images += s[kSilogCount] > 0;
    sum += s[kSilogSum];
    squares += s[kSilogSquares];
  }
  count = count > 1 ? count : 1;
  if (p.form == SilogForm::kSqrt || p.form == SilogForm::kSqrtUnbiased) {
    // variance / share + (1 - focus) mean^2, share being what the sum of squared deviations is divided by
    const double share = p.form == SilogForm::kSqrt || count < 2 ? count : count - 1, mean = sum / count;
    const double value = (squares - sum * mean) / share + (1 - focus) * mean * mean;
    const bool still = value <= 0;  // no deviation, but for rounding; NaN goes on
    const double root = still ? 0 : sqrt(value), factor = still ? 0 : p.scale / root;
    *loss = p.scale * root;
    for (int64_t b = 0; b < p.batch; ++b) {
      coefficients[2 * b] = factor / share;
      coefficients[2 * b + 1] = factor * mean * ((1 - focus) / count - 1 / share);
    }
    return;
  }
  const bool eigen = p.form == SilogForm::kEigen;
  const double share = eigen ? weight : images;
  const double factor = p.scale / (share > 1 ? share : 1);
  double total = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const double* s = sums + b * kSilogSums;
    const double n = s[kSilogCount] > 1 ? s[kSilogCount] : 1;
    const double mean = s[kSilogSum] / n, of_image = factor * (eigen ? n : 1 / n);  // per squared residual
    total += of_image * (s[kSilogSquares] - focus * s[kSilogSum] * mean);
    coefficients[2 * b] = 2 * of_image;
    coefficients[2 * b + 1] = -2 * of_image * focus * mean;
  }
  *loss = total;
}

// The derivative by the prediction; slope and shift already times the gradient of the loss.
template <class T>
MDEPTH_HD T silog_gradient(T residual, T prediction, T slope, T shift, bool log_prediction) {
  return (slope * residual + shift) / (log_prediction ? T(1) : prediction);
}

#if !defined(__CUDACC_RTC__)

inline Plan plan_silog_loss(const SilogLossParams& p) {
  const int64_t blocks = p.batch * spans_per_plane(p.height * p.width);
  Plan plan;
  plan.workspace = 3 * (blocks + p.batch);  // sums of each block, of each image
  plan.add(with_dtype("silog_loss", p.dtype), blocks, kReduceThreads);
  plan.add("silog_loss_sum", p.batch, kReduceThreads);
  plan.add("silog_loss_finish", 1, 1);
  return plan;
}

inline Plan plan_silog_loss_backward(const SilogLossParams& p) {
  Plan plan;
  plan.add(with_dtype("silog_loss_backward", p.dtype), p.batch * spans_per_plane(p.height * p.width), kReduceThreads);
  return plan;
}

#endif

}  // namespace mdepth
