// Bilinear inverse warping; sampling.h has what flow_warp shares. Gradients by depth and projection are gathered, one writer
// a pixel.
#include "mdepth/inverse_warp.h"
#include "sampling.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

template <class T>
struct alignas(64) Block : Taps<T> {
  T depth[kBlock], inv_z[kBlock], du_ddepth[kBlock], dv_ddepth[kBlock];
  T gu[kBlock], gv[kBlock];
};

// Lanes up to the next multiple of kLanes are filled too, from depth 1.
template <Padding padding, class T>
void locate(const InverseWarpParams& p, int64_t b, int y, int x0, int n, Block<T>& k) {
  const T* depth = static_cast<const T*>(p.depth) + (b * p.height + y) * p.width + x0;
  const int lanes = (n + kLanes - 1) / kLanes * kLanes;
  std::memcpy(k.depth, depth, sizeof(T) * size_t(n));
  for (int i = n; i < lanes; ++i) k.depth[i] = T(1);
  const RowProjection<T> rp = row_projection<T>(p.projection + b * kProjection, double(y));
  const int w = int(p.source_width), h = int(p.source_height);
#pragma omp simd
  for (int i = 0; i < lanes; ++i) {
    const Projected<T> at = project(rp, T(x0 + i), k.depth[i]);
    set_taps<padding>(k, i, x0 + i, y, at.shift_u, at.shift_v, at.inv_z > T(0), h, w);
    k.inv_z[i] = at.inv_z;
    k.du_ddepth[i] = at.du_ddepth;
    k.dv_ddepth[i] = at.dv_ddepth;
    k.poison[i] = at.poison;
  }
}

template <Padding padding, class T>
auto locator(const InverseWarpParams& p) {
  return [&p](int64_t b, int y, int x0, int n, Block<T>& k) { locate<padding>(p, b, y, x0, n, k); };
}

template <Padding padding, class T>
int forward(const InverseWarpParams& p) {
  return warp_forward<Block<T>>(p, locator<padding, T>(p));
}

// The gradients of a block by depth, and by the projection, which are added to `sums`. `grad_depth` may be k.depth.
template <class T>
NOINLINE void differentiate(int y, int x0, int n, const Block<T>& k, T* grad_depth, double* sums) {
  T su = 0, sv = 0, sz = 0, sud = 0, svd = 0, szd = 0, sudx = 0, svdx = 0, szdx = 0;
  const T row = T(y);
#pragma omp simd reduction(+ : su, sv, sz, sud, svd, szd, sudx, svdx, szdx)
  for (int i = 0; i < n; ++i) {
    const T x = T(x0 + i), d = k.depth[i];
    const T to_u = k.gu[i] * k.inv_z[i], to_v = k.gv[i] * k.inv_z[i];
    const T to_z = -(to_u * (x + k.shift_u[i]) + to_v * (row + k.shift_v[i]));
    su += to_u;
    sv += to_v;
    sz += to_z;
    sud += to_u * d;
    svd += to_v * d;
    szd += to_z * d;
    sudx += to_u * d * x;
    svdx += to_v * d * x;
    szdx += to_z * d * x;
    grad_depth[i] = k.gu[i] * k.du_ddepth[i] + k.gv[i] * k.dv_ddepth[i];
  }
  add_projection_row(sums, y, su, sv, sz, sud, svd, szd, sudx, svdx, szdx);
}

template <Padding padding, class T>
int backward_geometry(const InverseWarpParams& p) {
  const RowTasks tasks(p);
  const int64_t plane = p.height * p.width;
  PerThread<Block<T>> blocks(tasks.threads);
  PerThread<double> partial(1, tasks.count * kProjection);
  if (!blocks || !partial) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(tasks.threads)
  for (int64_t task = 0; task < tasks.count; ++task) {
    Block<T>& k = *blocks.mine();
    double* sums = partial.all() + task * kProjection;
    tasks.blocks(p, task, [&](int64_t b, int y, int x0, int n) {
      locate<padding>(p, b, y, x0, n, k);
      gather_block(p, b, y, x0, n, k, k.gu, k.gv);
      T* grad_depth = p.grad_depth ? static_cast<T*>(p.grad_depth) + b * plane + int64_t(y) * p.width + x0 : k.depth;
      differentiate(y, x0, n, k, grad_depth, sums);
    });
  }
  if (p.grad_projection) {
    std::memset(p.grad_projection, 0, sizeof(double) * size_t(p.batch * kProjection));
    for (int64_t task = 0; task < tasks.count; ++task)
      for (int j = 0; j < kProjection; ++j)
        p.grad_projection[task / tasks.chunks * kProjection + j] += partial.all()[task * kProjection + j];
  }
  return 0;
}

template <Padding padding, class T>
int backward(const InverseWarpParams& p) {
  int error = 0;
  if (p.grad_depth || p.grad_projection) error |= backward_geometry<padding, T>(p);
  if (p.grad_source) error |= warp_backward_source<Block<T>>(p, locator<padding, T>(p));
  return error;
}

}  // namespace

int inverse_warp(const InverseWarpParams& p) {
  if (p.padding == Padding::kZeros)
    return p.dtype == Dtype::kFloat64 ? forward<Padding::kZeros, double>(p) : forward<Padding::kZeros, float>(p);
  return p.dtype == Dtype::kFloat64 ? forward<Padding::kBorder, double>(p) : forward<Padding::kBorder, float>(p);
}

int inverse_warp_backward(const InverseWarpParams& p) {
  if (p.padding == Padding::kZeros)
    return p.dtype == Dtype::kFloat64 ? backward<Padding::kZeros, double>(p) : backward<Padding::kZeros, float>(p);
  return p.dtype == Dtype::kFloat64 ? backward<Padding::kBorder, double>(p) : backward<Padding::kBorder, float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
