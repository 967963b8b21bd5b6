// Bilinear inverse warping. Gradients by depth and projection are gathered, one writer a pixel; the gradient by the
// source is a scatter, done by one thread per image plane in row order, so its sums too are the same for any number of
// threads.
#include "mdepth/inverse_warp.h"
#include "mdepth/warp.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

constexpr int kBlock = 256;
constexpr int kRowsPerTask = 16;

template <class T>
struct alignas(64) Block {
  T depth[kBlock];
  int i00[kBlock], i01[kBlock], i10[kBlock], i11[kBlock];
  T uw0[kBlock], uw1[kBlock], ud0[kBlock], ud1[kBlock], vw0[kBlock], vw1[kBlock], vd0[kBlock], vd1[kBlock];
  T shift_u[kBlock], shift_v[kBlock], inv_z[kBlock], du_ddepth[kBlock], dv_ddepth[kBlock], poison[kBlock];
  T gu[kBlock], gv[kBlock];
};

// Where the pixels x0 .. x0 + n of row y of image b fall in the source; lanes up to the next multiple of kLanes are
// filled too, from depth 1.
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
    const int x = x0 + i;
    const Projected<T> at = project(rp, T(x), k.depth[i]);
    const Axis<T> u = sample_axis<padding>(x, at.shift_u, w);
    const Axis<T> v = sample_axis<padding>(y, at.shift_v, h);
    const bool seen = at.inv_z > T(0);
    k.i00[i] = v.tap0 * w + u.tap0;
    k.i01[i] = v.tap0 * w + u.tap1;
    k.i10[i] = v.tap1 * w + u.tap0;
    k.i11[i] = v.tap1 * w + u.tap1;
    k.uw0[i] = seen ? u.w0 : T(0);
    k.uw1[i] = seen ? u.w1 : T(0);
    k.ud0[i] = seen ? u.d0 : T(0);
    k.ud1[i] = seen ? u.d1 : T(0);
    k.vw0[i] = seen ? v.w0 : T(0);
    k.vw1[i] = seen ? v.w1 : T(0);
    k.vd0[i] = seen ? v.d0 : T(0);
    k.vd1[i] = seen ? v.d1 : T(0);
    k.shift_u[i] = at.shift_u;
    k.shift_v[i] = at.shift_v;
    k.inv_z[i] = at.inv_z;
    k.du_ddepth[i] = at.du_ddepth;
    k.dv_ddepth[i] = at.dv_ddepth;
    k.poison[i] = at.poison;
  }
}

template <class T>
MDEPTH_HD Sample<T> sample(const Block<T>& k, int i, const T* plane) {
  const Axis<T> u{0, 0, k.uw0[i], k.uw1[i], k.ud0[i], k.ud1[i]};
  const Axis<T> v{0, 0, k.vw0[i], k.vw1[i], k.vd0[i], k.vd1[i]};
  return bilinear(u, v, plane[k.i00[i]], plane[k.i01[i]], plane[k.i10[i]], plane[k.i11[i]]);
}

template <Padding padding, class T>
int forward(const InverseWarpParams& p) {
  const int64_t chunks = (p.height + kRowsPerTask - 1) / kRowsPerTask, tasks = p.batch * chunks;
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)));
  const int64_t source_plane = p.source_height * p.source_width, plane = p.height * p.width;
  const T right = T(p.source_width - 1), bottom = T(p.source_height - 1);
  PerThread<Block<T>> blocks(threads);
  if (!blocks) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    Block<T>& k = *blocks.mine();
    const int64_t b = task / chunks;
    const int y0 = int(task % chunks) * kRowsPerTask, y1 = int(std::min<int64_t>(y0 + kRowsPerTask, p.height));
    for (int y = y0; y < y1; ++y)
      for (int x0 = 0; x0 < p.width; x0 += kBlock) {
        const int n = int(std::min<int64_t>(kBlock, p.width - x0));
        locate<padding>(p, b, y, x0, n, k);
        bool* valid = p.valid + b * plane + int64_t(y) * p.width + x0;
        for (int i = 0; i < n; ++i) {
          const T u = T(x0 + i) + k.shift_u[i], v = T(y) + k.shift_v[i];
          valid[i] = k.inv_z[i] > T(0) && u >= T(0) && u <= right && v >= T(0) && v <= bottom;
        }
        for (int64_t c = 0; c < p.channels; ++c) {
          const T* RESTRICT source = static_cast<const T*>(p.source) + (b * p.channels + c) * source_plane;
          T* RESTRICT out = static_cast<T*>(p.warped) + (b * p.channels + c) * plane + int64_t(y) * p.width + x0;
#pragma omp simd
          for (int i = 0; i < n; ++i) out[i] = sample(k, i, source).value + k.poison[i];
        }
      }
  }
  return 0;
}

template <Padding padding, class T>
int backward_geometry(const InverseWarpParams& p) {
  const int64_t chunks = (p.height + kRowsPerTask - 1) / kRowsPerTask, tasks = p.batch * chunks;
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)));
  const int64_t source_plane = p.source_height * p.source_width, plane = p.height * p.width;
  PerThread<Block<T>> blocks(threads);
  PerThread<double> partial(1, tasks * kProjection);
  if (!blocks || !partial) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    Block<T>& k = *blocks.mine();
    double* sums = partial.all() + task * kProjection;
    const int64_t b = task / chunks;
    const int y0 = int(task % chunks) * kRowsPerTask, y1 = int(std::min<int64_t>(y0 + kRowsPerTask, p.height));
    for (int y = y0; y < y1; ++y)
      for (int x0 = 0; x0 < p.width; x0 += kBlock) {
        const int n = int(std::min<int64_t>(kBlock, p.width - x0));
        locate<padding>(p, b, y, x0, n, k);
        for (int i = 0; i < n; ++i) k.gu[i] = k.gv[i] = T(0);
        for (int64_t c = 0; c < p.channels; ++c) {
          const T* RESTRICT source = static_cast<const T*>(p.source) + (b * p.channels + c) * source_plane;
          const T* RESTRICT grad =
              static_cast<const T*>(p.grad) + (b * p.channels + c) * plane + int64_t(y) * p.width + x0;
#pragma omp simd
          for (int i = 0; i < n; ++i) {
            const Sample<T> s = sample(k, i, source);
            k.gu[i] += grad[i] * s.du;
            k.gv[i] += grad[i] * s.dv;
          }
        }
        T* RESTRICT grad_depth =
            p.grad_depth ? static_cast<T*>(p.grad_depth) + b * plane + int64_t(y) * p.width + x0 : k.depth;
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
  }
  if (p.grad_projection) {
    std::memset(p.grad_projection, 0, sizeof(double) * size_t(p.batch * kProjection));
    for (int64_t task = 0; task < tasks; ++task)
      for (int j = 0; j < kProjection; ++j)
        p.grad_projection[task / chunks * kProjection + j] += partial.all()[task * kProjection + j];
  }
  return 0;
}

template <Padding padding, class T>
int backward_source(const InverseWarpParams& p) {
  // A thread has whole planes, so that no two write to one; all of an image share their taps, where there are enough.
  const int64_t together = p.batch >= p.threads ? p.channels : 1, tasks = p.batch * p.channels / together;
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)));
  const int64_t source_plane = p.source_height * p.source_width, plane = p.height * p.width;
  PerThread<Block<T>> blocks(threads);
  if (!blocks) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    Block<T>& k = *blocks.mine();
    for (int y = 0; y < p.height; ++y)
      for (int x0 = 0; x0 < p.width; x0 += kBlock) {
        const int n = int(std::min<int64_t>(kBlock, p.width - x0));
        locate<padding>(p, task * together / p.channels, y, x0, n, k);
        for (int64_t image = task * together; image < (task + 1) * together; ++image) {
          T* out = static_cast<T*>(p.grad_source) + image * source_plane;
          const T* grad = static_cast<const T*>(p.grad) + image * plane + int64_t(y) * p.width + x0;
          for (int i = 0; i < n; ++i) {
            const T g0 = grad[i] * k.vw0[i], g1 = grad[i] * k.vw1[i];
            out[k.i00[i]] += g0 * k.uw0[i];
            out[k.i01[i]] += g0 * k.uw1[i];
            out[k.i10[i]] += g1 * k.uw0[i];
            out[k.i11[i]] += g1 * k.uw1[i];
          }
        }
      }
  }
  return 0;
}

template <Padding padding, class T>
int backward(const InverseWarpParams& p) {
  int error = 0;
  if (p.grad_depth || p.grad_projection) error |= backward_geometry<padding, T>(p);
  if (p.grad_source) error |= backward_source<padding, T>(p);
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
