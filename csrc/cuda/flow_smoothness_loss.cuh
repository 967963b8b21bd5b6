// The robust smoothness of optical flow and its gradient: one kernel over the pixels, which computes each penalty again
// for every pixel that it pulls at, and the sum of its blocks in a fixed order.
#pragma once
#include "block.cuh"
#include "mdepth/flow_smoothness_loss.h"

namespace mdepth {

// An image's flow and mask.
template <class T>
struct FlowImage {
  const T *u, *v, *mask;  // mask: null for 1
  int height, width;

  __device__ __forceinline__ FlowImage(const FlowSmoothnessLossParams& p, int64_t image)
      : height(int(p.height)), width(int(p.width)) {
    const int64_t plane = p.height * p.width;
    u = static_cast<const T*>(p.flow) + image * 2 * plane;
    v = u + plane;
    mask = p.mask ? static_cast<const T*>(p.mask) + image * plane : nullptr;
  }

  __device__ __forceinline__ T weight(int at) const { return mask ? mask[at] : T(1); }
};

// Loss of a pixel's own terms, and the gradient by its flow.
template <class T>
struct FlowTerms {
  T loss, u, v;
};

template <class T>
__device__ __forceinline__ FlowTerms<T> separate_terms(const FlowImage<T>& f, const Charbonnier<T>& c, int x, int y,
                                                       bool need_grad) {
  const int at = y * f.width + x;
  FlowTerms<T> terms{T(0), T(0), T(0)};
  const auto edge = [&](bool exists, int other) {
    const T weight = exists ? f.weight(at) * f.weight(other) : T(0);
    if (weight == T(0)) return T(0);
    const Penalty<T> of_u = penalty(c, f.u[at] - f.u[other]), of_v = penalty(c, f.v[at] - f.v[other]);
    terms.u += weight * of_u.slope;
    terms.v += weight * of_v.slope;
    return weight * (of_u.value + of_v.value);
  };
  terms.loss += edge(x + 1 < f.width, at + 1);
  terms.loss += edge(y + 1 < f.height, at + f.width);
  if (!need_grad) return terms;
  edge(x > 0, at - 1);
  edge(y > 0, at - f.width);
  return terms;
}

template <class T>
__device__ __forceinline__ FlowTerms<T> joint_terms(const FlowImage<T>& f, const Charbonnier<T>& c, int x, int y,
                                                    bool need_grad) {
  const int here = y * f.width + x;
  FlowTerms<T> terms{T(0), T(0), T(0)};
  // The term of the pixel (tx, ty); its loss.
  const auto term = [&](int tx, int ty) {
    const int at = ty * f.width + tx, right = at + 1, below = at + f.width;
    const bool exists = tx >= 0 && ty >= 0 && tx + 1 < f.width && ty + 1 < f.height;
    const T weight = exists ? f.weight(at) * f.weight(right) * f.weight(below) : T(0);
    if (weight == T(0)) return T(0);
    const T dux = f.u[at] - f.u[right], dvx = f.v[at] - f.v[right];
    const T duy = f.u[at] - f.u[below], dvy = f.v[at] - f.v[below];
    const Penalty<T> rho = penalty(c, abs_of(dux) + abs_of(dvx) + (abs_of(duy) + abs_of(dvy)));
    const T slope = weight * rho.slope;
    const T along_x = at == here ? slope : (right == here ? -slope : T(0));
    const T along_y = at == here ? slope : (below == here ? -slope : T(0));
    terms.u += along_x * sign_of(dux) + along_y * sign_of(duy);
    terms.v += along_x * sign_of(dvx) + along_y * sign_of(dvy);
    return weight * rho.value;
  };
  terms.loss = term(x, y);
  if (!need_grad) return terms;
  term(x - 1, y);
  term(x, y - 1);
  return terms;
}

template <SmoothnessForm form, class T>
__device__ __forceinline__ void flow_smoothness_loss_tile(const FlowSmoothnessLossParams& p) {
  using Shape = PixelShape;
  __shared__ T scratch[kBlockSumScratch<1, Shape::kThreads>];
  const BlockOrigin origin = block_origin<Shape>(blockIdx.x, p.height, p.width);
  const FlowImage<T> image(p, origin.image);
  const Charbonnier<T> c = charbonnier_of<T>(p);
  const int64_t plane = p.height * p.width;
  const int x = origin.x + int(threadIdx.x) % kWarp;
  const bool need_grad = p.grad_flow != nullptr;
  T sum[1] = {T(0)};
  for (int k = 0; k < Shape::kStrip; ++k) {
    const int y = origin.y + int(threadIdx.x) / kWarp * Shape::kStrip + k;
    if (x >= p.width || y >= p.height) break;
    const FlowTerms<T> terms = form == SmoothnessForm::kJoint ? joint_terms(image, c, x, y, need_grad)
                                                              : separate_terms(image, c, x, y, need_grad);
    sum[0] += terms.loss;
    if (!need_grad) continue;
    T* out = static_cast<T*>(p.grad_flow) + origin.image * 2 * plane + int64_t(y) * p.width + x;
    out[0] = terms.u;
    out[plane] = terms.v;
  }
  block_sum<Shape::kThreads>(sum, scratch, p.workspace + blockIdx.x, 0);
}

__device__ __forceinline__ void flow_smoothness_loss_sum(const FlowSmoothnessLossParams& p) {
  sum_in_order(p.workspace, p.batch * blocks_per_image<PixelShape>(p.height, p.width),
               1.0 / double(p.batch * p.height * p.width), p.loss);
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_FLOW_SMOOTHNESS_LOSS_KERNELS(KERNEL)                                              \
  KERNEL(flow_smoothness_loss_f32, mdepth::PixelShape::kThreads, FlowSmoothnessLossParams,       \
         mdepth::flow_smoothness_loss_tile<mdepth::SmoothnessForm::kSeparate, float>)            \
  KERNEL(flow_smoothness_loss_f64, mdepth::PixelShape::kThreads, FlowSmoothnessLossParams,       \
         mdepth::flow_smoothness_loss_tile<mdepth::SmoothnessForm::kSeparate, double>)           \
  KERNEL(flow_smoothness_loss_joint_f32, mdepth::PixelShape::kThreads, FlowSmoothnessLossParams, \
         mdepth::flow_smoothness_loss_tile<mdepth::SmoothnessForm::kJoint, float>)               \
  KERNEL(flow_smoothness_loss_joint_f64, mdepth::PixelShape::kThreads, FlowSmoothnessLossParams, \
         mdepth::flow_smoothness_loss_tile<mdepth::SmoothnessForm::kJoint, double>)              \
  KERNEL(flow_smoothness_loss_sum, mdepth::kReduceThreads, FlowSmoothnessLossParams, mdepth::flow_smoothness_loss_sum)

MDEPTH_FLOW_SMOOTHNESS_LOSS_KERNELS(MDEPTH_DEFINE_KERNEL)
