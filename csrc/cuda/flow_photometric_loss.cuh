// The robust photometric loss of optical flow and its gradient: one kernel over the pixels, and the sum of its blocks in a
// fixed order.
#pragma once
#include "mdepth/flow_photometric_loss.h"
#include "sampling.cuh"

namespace mdepth {

template <class T>
__device__ __forceinline__ void flow_photometric_loss_tile(const FlowPhotometricLossParams& p) {
  using Shape = PixelShape;
  __shared__ T scratch[kBlockSumScratch<1, Shape::kThreads>];
  const PixelBlock block(p.height, p.width);
  const int width = int(p.width), height = int(p.height);
  const int64_t plane = p.height * p.width, image = block.image * p.channels * plane;
  const Charbonnier<T> c = charbonnier_of<T>(p);
  T sum[1] = {T(0)};
  for (int k = 0; k < Shape::kStrip; ++k) {
    const int x = block.x, y = block.y + k;
    if (x >= width || y >= height) break;
    const int64_t here = int64_t(y) * width + x;
    const T* flow = static_cast<const T*>(p.flow) + block.image * 2 * plane + here;
    const Location<T> l = follow<Padding::kBorder>(flow, plane, x, y, height, width);
    const T weight = p.mask ? static_cast<const T*>(p.mask)[block.image * plane + here] : T(1);
    T gu = T(0), gv = T(0);
    if (weight != T(0) && falls_inside(l, x, y, T(width - 1), T(height - 1))) {
      const T* target = static_cast<const T*>(p.target) + image + here;
      const T* source = static_cast<const T*>(p.source) + image;
      T distance = T(0);
#pragma unroll 1  // several channels of double at a time would not fit the registers
      for (int64_t channel = 0; channel < p.channels; ++channel) {
        const Sample<T> s = sample(l, source + channel * plane, width);
        const T difference = target[channel * plane] - s.value;
        distance += abs_of(difference);
        gu -= sign_of(difference) * s.du;
        gv -= sign_of(difference) * s.dv;
      }
      const Penalty<T> rho = penalty(c, distance);
      sum[0] += weight * rho.value;
      gu *= weight * rho.slope;
      gv *= weight * rho.slope;
    }
    if (weight != T(0)) sum[0] += l.poison;
    if (!p.grad_flow) continue;
    T* out = static_cast<T*>(p.grad_flow) + block.image * 2 * plane + here;
    out[0] = gu;
    out[plane] = gv;
  }
  block_sum<Shape::kThreads>(sum, scratch, p.workspace + blockIdx.x, 0);
}

__device__ __forceinline__ void flow_photometric_loss_sum(const FlowPhotometricLossParams& p) {
  sum_in_order(p.workspace, p.batch * blocks_per_image<PixelShape>(p.height, p.width),
               1.0 / double(p.batch * p.height * p.width), p.loss);
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_FLOW_PHOTOMETRIC_LOSS_KERNELS(KERNEL)                                         \
  KERNEL(flow_photometric_loss_f32, mdepth::PixelShape::kThreads, FlowPhotometricLossParams, \
         mdepth::flow_photometric_loss_tile<float>)                                          \
  KERNEL(flow_photometric_loss_f64, mdepth::PixelShape::kThreads, FlowPhotometricLossParams, \
         mdepth::flow_photometric_loss_tile<double>)                                         \
  KERNEL(flow_photometric_loss_sum, mdepth::kReduceThreads, FlowPhotometricLossParams,       \
         mdepth::flow_photometric_loss_sum)

MDEPTH_FLOW_PHOTOMETRIC_LOSS_KERNELS(MDEPTH_DEFINE_KERNEL)
