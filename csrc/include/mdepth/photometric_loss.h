// photometric_loss: parameters and launch plans; the arithmetic is in ssim.h.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

struct PhotometricLossParams {
  Dtype dtype;
  int threads;
  int64_t batch, channels, height, width;
  double ssim_weight;
  const void* prediction;  // (B, C, H, W)
  const void* target;      // (B, C, H, W)
  void* loss;              // out (B, 1, H, W); forward only
  const void* grad;        // (B, 1, H, W); backward only, as is all below; null: not wanted
  void* grad_prediction;
  void* grad_target;
};
MDEPTH_FIELDS(PhotometricLossParams, dtype, threads, batch, channels, height, width, ssim_weight, prediction, target,
              loss, grad, grad_prediction, grad_target)

#if !defined(__CUDACC_RTC__)

inline Plan plan_photometric_loss(const PhotometricLossParams& p) {
  check_plane("photometric_loss", p.height, p.width);
  Plan plan;
  plan.add(with_dtype("photometric_loss", p.dtype), p.batch * blocks_per_image<WindowShape>(p.height, p.width),
           WindowShape::kThreads);
  return plan;
}

inline Plan plan_photometric_loss_backward(const PhotometricLossParams& p) {
  check_plane("photometric_loss", p.height, p.width);
  Plan plan;
  plan.add(with_dtype("photometric_loss_backward", p.dtype),
           p.batch * (p.dtype == Dtype::kFloat64 ? blocks_per_image<WindowGradientShape<double>>(p.height, p.width)
                                                 : blocks_per_image<WindowGradientShape<float>>(p.height, p.width)),
           WindowGradientShape<float>::kThreads);  // double has as many
  return plan;
}

#endif

}  // namespace mdepth
