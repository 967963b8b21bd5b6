// view_synthesis_loss: parameters and launch plan; the arithmetic is in warp.h and ssim.h.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

struct ViewSynthesisLossParams {
  Dtype dtype;
  Outside padding;
  int threads;
  int64_t batch, height, width;
  int64_t terms;             // 1: L1; 2: L1 and SSIM
  const void* target;        // (B, 3, H, W)
  const void* source;        // (B, 3, H, W)
  const void* depth;         // (B, 1, H, W)
  const double* projection;  // (B, 3, 4)
  const void* weight;        // (B, 1, H, W) or null
  double* loss;              // out (terms,)
  void* grad_depth;          // out (terms, B, 1, H, W), of each term; null: not wanted
  double* grad_projection;   // out (terms, B, 3, 4); null exactly where grad_depth is
  void* grad_weight;         // out (terms, B, 1, H, W); null where grad_depth or weight is
  double* workspace;         // GPU
};
MDEPTH_FIELDS(ViewSynthesisLossParams, dtype, padding, threads, batch, height, width, terms, target, source, depth,
              projection, weight, loss, grad_depth, grad_projection, grad_weight, workspace)

constexpr int kViewTerms = 2;
constexpr double kGrey = 0.5;  // what the source reads outside, with Outside::kGrey

// One over the number of colours (term 0), and of colours of windows inside the image (term 1).
MDEPTH_HD double share_of_term(const ViewSynthesisLossParams& p, int term) {
  const int64_t border = term == 0 ? 0 : 2;
  return 1.0 / double(p.batch * 3 * (p.height - border) * (p.width - border));
}

// Whether a 3x3 window around position i of n lies inside.
MDEPTH_HD bool window_inside(int i, int n) { return i >= 1 && i < n - 1; }

#if !defined(__CUDACC_RTC__)

inline Plan plan_view_synthesis_loss(const ViewSynthesisLossParams& p) {
  check_plane("view_synthesis_loss", p.height, p.width);
  const bool wide = p.dtype == Dtype::kFloat64;
  const int64_t tiles = p.batch * (wide ? blocks_per_image<ReprojectionShape<double>>(p.height, p.width)
                                        : blocks_per_image<ReprojectionShape<float>>(p.height, p.width));
  Plan plan;
  plan.workspace = p.terms * (1 + kProjection) * tiles;
  plan.add(with_dtype("view_synthesis_loss", p.dtype), tiles,
           wide ? ReprojectionShape<double>::kThreads : ReprojectionShape<float>::kThreads);
  plan.add(with_dtype("view_synthesis_loss_sum", p.dtype),
           p.terms * (1 + (p.grad_projection ? p.batch * kProjection : 0)), kReduceThreads);
  return plan;
}

#endif

}  // namespace mdepth
