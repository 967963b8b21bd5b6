// Bilinear warping by optical flow; sampling.h has what inverse_warp shares. The gradient by the flow is gathered, one
// writer a pixel.
#include "mdepth/flow_warp.h"
#include "sampling.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

template <Padding padding, class T>
auto locator(const FlowWarpParams& p) {
  return [&p](int64_t b, int y, int x0, int n, Taps<T>& k) {
    const int64_t plane = p.height * p.width;
    const T* flow = static_cast<const T*>(p.flow) + b * 2 * plane + int64_t(y) * p.width + x0;
    follow<padding>(flow, flow + plane, y, x0, n, int(p.source_height), int(p.source_width), k);
  };
}

template <Padding padding, class T>
int forward(const FlowWarpParams& p) {
  return warp_forward<Taps<T>>(p, locator<padding, T>(p));
}

template <Padding padding, class T>
int backward_flow(const FlowWarpParams& p) {
  const RowTasks tasks(p);
  const auto locate = locator<padding, T>(p);
  const int64_t plane = p.height * p.width;
  PerThread<Taps<T>> blocks(tasks.threads);
  if (!blocks) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(tasks.threads)
  for (int64_t task = 0; task < tasks.count; ++task)
    tasks.blocks(p, task, [&](int64_t b, int y, int x0, int n) {
      Taps<T>& k = *blocks.mine();
      locate(b, y, x0, n, k);
      T* out = static_cast<T*>(p.grad_flow) + b * 2 * plane + int64_t(y) * p.width + x0;
      gather_block(p, b, y, x0, n, k, out, out + plane);
    });
  return 0;
}

template <Padding padding, class T>
int backward(const FlowWarpParams& p) {
  int error = 0;
  if (p.grad_flow) error |= backward_flow<padding, T>(p);
  if (p.grad_source) error |= warp_backward_source<Taps<T>>(p, locator<padding, T>(p));
  return error;
}

}  // namespace

int flow_warp(const FlowWarpParams& p) {
  if (p.padding == Padding::kZeros)
    return p.dtype == Dtype::kFloat64 ? forward<Padding::kZeros, double>(p) : forward<Padding::kZeros, float>(p);
  return p.dtype == Dtype::kFloat64 ? forward<Padding::kBorder, double>(p) : forward<Padding::kBorder, float>(p);
}

int flow_warp_backward(const FlowWarpParams& p) {
  if (p.padding == Padding::kZeros)
    return p.dtype == Dtype::kFloat64 ? backward<Padding::kZeros, double>(p) : backward<Padding::kZeros, float>(p);
  return p.dtype == Dtype::kFloat64 ? backward<Padding::kBorder, double>(p) : backward<Padding::kBorder, float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
