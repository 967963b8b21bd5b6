// Bilinear warping by any motion: blocks of pixels of a row, where each falls in the source, the warped image, and the
// gradient by the source. That one is a scatter, done by one thread per image plane in row order, so its sums are the same
// for any number of threads.
//
// `p` has the sizes and addresses of inverse_warp and flow_warp; `locate(b, y, x0, n, block)` fills a block with the
// pixels x0 .. x0 + n of row y of image b.
#pragma once
#include "mdepth/params.h"
#include "mdepth/warp.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

constexpr int kBlock = 256;
constexpr int kRowsPerTask = 16;

template <class T>
struct alignas(64) Taps {
  using Number = T;
  int i00[kBlock], i01[kBlock], i10[kBlock], i11[kBlock];
  T uw0[kBlock], uw1[kBlock], ud0[kBlock], ud1[kBlock], vw0[kBlock], vw1[kBlock], vd0[kBlock], vd1[kBlock];
  T shift_u[kBlock], shift_v[kBlock], poison[kBlock];
  int seen[kBlock];
};

// Pixel i of a block is (x, y) and falls on (x + shift_u, y + shift_v) of a source of h x w pixels; nowhere unless `seen`.
template <Padding padding, class T>
MDEPTH_HD void set_taps(Taps<T>& k, int i, int x, int y, T shift_u, T shift_v, bool seen, int h, int w) {
  const Axis<T> u = sample_axis<padding>(x, shift_u, w);
  const Axis<T> v = sample_axis<padding>(y, shift_v, h);
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
  k.shift_u[i] = shift_u;
  k.shift_v[i] = shift_v;
  k.seen[i] = seen;
}

// Where a flow leads; infinite or NaN, nowhere.
template <Padding padding, class T>
void follow(const T* RESTRICT flow_u, const T* RESTRICT flow_v, int y, int x0, int n, int h, int w, Taps<T>& k) {
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    k.poison[i] = (flow_u[i] + flow_v[i]) * T(0);
    set_taps<padding>(k, i, x0 + i, y, flow_u[i], flow_v[i], k.poison[i] == T(0), h, w);
  }
}

template <class T>
MDEPTH_HD Sample<T> sample(const Taps<T>& k, int i, const T* plane) {
  const Axis<T> u{0, 0, k.uw0[i], k.uw1[i], k.ud0[i], k.ud1[i]};
  const Axis<T> v{0, 0, k.vw0[i], k.vw1[i], k.vd0[i], k.vd1[i]};
  return bilinear(u, v, plane[k.i00[i]], plane[k.i01[i]], plane[k.i10[i]], plane[k.i11[i]]);
}

// Rows of images, cut into tasks.
struct RowTasks {
  int64_t chunks, count;
  int threads;

  template <class Params>
  explicit RowTasks(const Params& p)
      : chunks((p.height + kRowsPerTask - 1) / kRowsPerTask),
        count(p.batch * chunks),
        threads(int(std::max<int64_t>(1, std::min<int64_t>(p.threads, count)))) {}

  // Calls `each(b, y, x0, n)` for the blocks of a task.
  template <class Params, class Each>
  void blocks(const Params& p, int64_t task, Each each) const {
    const int y0 = int(task % chunks) * kRowsPerTask, y1 = int(std::min<int64_t>(y0 + kRowsPerTask, p.height));
    for (int y = y0; y < y1; ++y)
      for (int x0 = 0; x0 < p.width; x0 += kBlock)
        each(task / chunks, y, x0, int(std::min<int64_t>(kBlock, p.width - x0)));
  }
};

template <class T>
void warp_block(const T* RESTRICT source, const Taps<T>& k, int n, T* RESTRICT out) {
#pragma omp simd
  for (int i = 0; i < n; ++i) out[i] = sample(k, i, source).value + k.poison[i];
}

// The warped image, and which pixels fall inside the source.
template <class Block, class Params, class Locate>
int warp_forward(const Params& p, Locate locate) {
  using T = typename Block::Number;
  const RowTasks tasks(p);
  const int64_t source_plane = p.source_height * p.source_width, plane = p.height * p.width;
  const T right = T(p.source_width - 1), bottom = T(p.source_height - 1);
  PerThread<Block> all(tasks.threads);
  if (!all) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(tasks.threads)
  for (int64_t task = 0; task < tasks.count; ++task) {
    Block& k = *all.mine();
    tasks.blocks(p, task, [&](int64_t b, int y, int x0, int n) {
      locate(b, y, x0, n, k);
      bool* valid = p.valid + b * plane + int64_t(y) * p.width + x0;
      for (int i = 0; i < n; ++i) {
        const T u = T(x0 + i) + k.shift_u[i], v = T(y) + k.shift_v[i];
        valid[i] = k.seen[i] && u >= T(0) && u <= right && v >= T(0) && v <= bottom;
      }
      for (int64_t c = 0; c < p.channels; ++c)
        warp_block(static_cast<const T*>(p.source) + (b * p.channels + c) * source_plane, k, n,
                   static_cast<T*>(p.warped) + (b * p.channels + c) * plane + int64_t(y) * p.width + x0);
    });
  }
  return 0;
}

// The gradient of a block by u and v: sums over the channels into `gu` and `gv`.
template <class T, class Params>
void gather_block(const Params& p, int64_t b, int y, int x0, int n, const Taps<T>& k, T* RESTRICT gu, T* RESTRICT gv) {
  const int64_t source_plane = p.source_height * p.source_width, plane = p.height * p.width;
  for (int i = 0; i < n; ++i) gu[i] = gv[i] = T(0);
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* RESTRICT source = static_cast<const T*>(p.source) + (b * p.channels + c) * source_plane;
    const T* RESTRICT grad = static_cast<const T*>(p.grad) + (b * p.channels + c) * plane + int64_t(y) * p.width + x0;
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const Sample<T> s = sample(k, i, source);
      gu[i] += grad[i] * s.du;
      gv[i] += grad[i] * s.dv;
    }
  }
}

template <class Block, class Params, class Locate>
int warp_backward_source(const Params& p, Locate locate) {
  using T = typename Block::Number;
  // A thread has whole planes, so that no two write to one; all of an image share their taps, where there are enough.
  const int64_t together = p.batch >= p.threads ? p.channels : 1, tasks = p.batch * p.channels / together;
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)));
  const int64_t source_plane = p.source_height * p.source_width, plane = p.height * p.width;
  PerThread<Block> blocks(threads);
  if (!blocks) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    Block& k = *blocks.mine();
    for (int y = 0; y < p.height; ++y)
      for (int x0 = 0; x0 < p.width; x0 += kBlock) {
        const int n = int(std::min<int64_t>(kBlock, p.width - x0));
        locate(task * together / p.channels, y, x0, n, k);
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

}  // namespace
}  // namespace MDEPTH_ISA
}  // namespace mdepth
