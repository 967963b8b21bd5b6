// flow_smoothness_loss: parameters and launch plan; the arithmetic is in charbonnier.h.
#pragma once
#include "mdepth/charbonnier.h"
#include "mdepth/grid.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

enum class SmoothnessForm : int { kSeparate = 0, kJoint = 1 };

struct FlowSmoothnessLossParams {
  Dtype dtype;
  SmoothnessForm form;
  int threads;
  int64_t batch, height, width;
  double alpha, scale, epsilon;
  const void* flow;   // (B, 2, H, W)
  const void* mask;   // (B, 1, H, W) or null: 1
  double* loss;       // out: one number
  void* grad_flow;    // out (B, 2, H, W); null: not wanted
  double* workspace;  // GPU
};
MDEPTH_FIELDS(FlowSmoothnessLossParams, dtype, form, threads, batch, height, width, alpha, scale, epsilon, flow, mask,
              loss, grad_flow, workspace)

#if !defined(__CUDACC_RTC__)

inline Plan plan_flow_smoothness_loss(const FlowSmoothnessLossParams& p) {
  check_plane("flow_smoothness_loss", p.height, p.width);
  const int64_t tiles = p.batch * blocks_per_image<PixelShape>(p.height, p.width);
  const std::string name = p.form == SmoothnessForm::kJoint ? "flow_smoothness_loss_joint" : "flow_smoothness_loss";
  Plan plan;
  plan.workspace = tiles;
  plan.add(with_dtype(name.c_str(), p.dtype), tiles, PixelShape::kThreads);
  plan.add("flow_smoothness_loss_sum", 1, kReduceThreads);
  return plan;
}

#endif

}  // namespace mdepth
