// The per-pixel photometric distance of two images, and its gradient by both. One channel of a tile at a time; the
// backward keeps three rows of column sums, as min_reprojection does.
#include "mdepth/photometric_loss.h"
#include "mdepth/ssim.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

enum Coefficient { kAx, kAy, kB, kC, kCoefficients };

template <class T>
struct alignas(64) Buffers {
  Row<T> x[3], y[3];  // ring of rows
  Row<T> raw[kCoefficients], sums[3][kCoefficients];
  Row<T> grad[3];         // of a row, 0 outside the image
  Row<T> mean, variance;  // of the windows of y
  Row<T> loss;
};

template <class T>
struct Rings {
  const PhotometricLossParams& p;
  const int width, height;
  const T *x_plane, *y_plane;

  void load(const Tile& t, int row, Buffers<T>& b) const {
    stage(x_plane + int64_t(row) * width, width, t, b.x[row % 3] + kLead, T(0));
    stage(y_plane + int64_t(row) * width, width, t, b.y[row % 3] + kLead, T(0));
    reflect_columns(width, t, b.x[row % 3] + kLead);
    reflect_columns(width, t, b.y[row % 3] + kLead);
  }
};

template <class T>
void forward_tile(const PhotometricLossParams& p, const Tile& t, Buffers<T>& b) {
  const int width = int(p.width), height = int(p.height), n = t.n;
  const int64_t plane = p.height * p.width;
  const T w_ssim = T(p.ssim_weight / double(p.channels)), w_l1 = T((1 - p.ssim_weight) / double(p.channels));
  T* out = static_cast<T*>(p.loss) + t.batch * plane;
  for (int64_t c = 0; c < p.channels; ++c) {
    const int64_t offset = (t.batch * p.channels + c) * plane;
    const Rings<T> rings{p, width, height, static_cast<const T*>(p.prediction) + offset,
                         static_cast<const T*>(p.target) + offset};
    int loaded = std::max(t.y0 - 1, 0);
    for (int y = t.y0; y < t.y1; ++y) {
      for (; loaded < std::min(y + 2, height); ++loaded) rings.load(t, loaded, b);
      const int above = reflect(y - 1, height) % 3, here = y % 3, below = reflect(y + 1, height) % 3;
      const T *RESTRICT x0 = b.x[above] + kLead, *RESTRICT x1 = b.x[here] + kLead, *RESTRICT x2 = b.x[below] + kLead;
      const T *RESTRICT y0 = b.y[above] + kLead, *RESTRICT y1 = b.y[here] + kLead, *RESTRICT y2 = b.y[below] + kLead;
      T *RESTRICT loss = b.loss + kLead, *RESTRICT mean = b.mean + kLead, *RESTRICT variance = b.variance + kLead;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const Window<T> wy{{y0[i - 1], y0[i], y0[i + 1], y1[i - 1], y1[i], y1[i + 1], y2[i - 1], y2[i], y2[i + 1]}};
        const Moments<T> m = moments_of(wy);
        mean[i] = m.mean;
        variance[i] = m.variance;
      }
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const Window<T> wx{{x0[i - 1], x0[i], x0[i + 1], x1[i - 1], x1[i], x1[i + 1], x2[i - 1], x2[i], x2[i + 1]}};
        const Window<T> wy{{y0[i - 1], y0[i], y0[i + 1], y1[i - 1], y1[i], y1[i + 1], y2[i - 1], y2[i], y2[i + 1]}};
        const SsimDistance<T> s = ssim_distance(wx, wy, Moments<T>{mean[i], variance[i]});
        loss[i] = w_ssim * s.distance + w_l1 * abs_of(x1[i] - y1[i]);
      }
      T* RESTRICT row = out + int64_t(y) * width + t.x0;
      const T* RESTRICT owned = loss + kHalo;
      const int count = t.x1 - t.x0;
      const bool first = c == 0;
#pragma omp simd
      for (int i = 0; i < count; ++i) row[i] = first ? owned[i] : row[i] + owned[i];
    }
  }
}

template <class T>
void backward_tile(const PhotometricLossParams& p, const Tile& t, Buffers<T>& b) {
  const int width = int(p.width), height = int(p.height), n = t.n;
  const int64_t plane = p.height * p.width;
  const T w_ssim = T(p.ssim_weight / double(p.channels)), w_l1 = T((1 - p.ssim_weight) / double(p.channels));
  const T* grad_plane = static_cast<const T*>(p.grad) + t.batch * plane;
  const int begin = std::max(t.y0 - 1, 0), end = std::min(t.y1 + 1, height);
  for (int64_t c = 0; c < p.channels; ++c) {
    const int64_t offset = (t.batch * p.channels + c) * plane;
    const Rings<T> rings{p, width, height, static_cast<const T*>(p.prediction) + offset,
                         static_cast<const T*>(p.target) + offset};
    int loaded = std::max(t.y0 - kHalo, 0);
    for (int y = begin; y < t.y1 + 1; ++y) {  // row y is compared, row y - 1 gets its gradient
      if (y < end) {
        for (; loaded < std::min(y + 2, height); ++loaded) rings.load(t, loaded, b);
        const int above = reflect(y - 1, height) % 3, here = y % 3, below = reflect(y + 1, height) % 3;
        const T *RESTRICT x0 = b.x[above] + kLead, *RESTRICT x1 = b.x[here] + kLead, *RESTRICT x2 = b.x[below] + kLead;
        const T *RESTRICT y0 = b.y[above] + kLead, *RESTRICT y1 = b.y[here] + kLead, *RESTRICT y2 = b.y[below] + kLead;
        T *RESTRICT ax = b.raw[kAx] + kLead, *RESTRICT ay = b.raw[kAy] + kLead, *RESTRICT rb = b.raw[kB] + kLead,
                    *RESTRICT rc = b.raw[kC] + kLead, *RESTRICT mean = b.mean + kLead,
                    *RESTRICT variance = b.variance + kLead;
#pragma omp simd
        for (int i = 0; i < n; ++i) {
          const Window<T> wy{{y0[i - 1], y0[i], y0[i + 1], y1[i - 1], y1[i], y1[i + 1], y2[i - 1], y2[i], y2[i + 1]}};
          const Moments<T> m = moments_of(wy);
          mean[i] = m.mean;
          variance[i] = m.variance;
        }
#pragma omp simd
        for (int i = 0; i < n; ++i) {
          const Window<T> wx{{x0[i - 1], x0[i], x0[i + 1], x1[i - 1], x1[i], x1[i + 1], x2[i - 1], x2[i], x2[i + 1]}};
          const Window<T> wy{{y0[i - 1], y0[i], y0[i + 1], y1[i - 1], y1[i], y1[i + 1], y2[i - 1], y2[i], y2[i + 1]}};
          const SsimDistance<T> s = ssim_distance(wx, wy, Moments<T>{mean[i], variance[i]});
          ax[i] = w_ssim * s.a_x;
          ay[i] = w_ssim * s.a_y;
          rb[i] = w_ssim * s.b;
          rc[i] = w_ssim * s.c;
        }
        stage(grad_plane + int64_t(y) * width, width, t, b.grad[here] + kLead, T(0));
        for (int k = 0; k < kCoefficients; ++k)
          sum_columns(width, t, b.raw[k] + kLead, b.grad[here] + kLead, b.sums[here][k] + kLead);
      }
      const int q = y - 1;
      if (q < t.y0) continue;
      const T w0 = T(weight_above(q)), w2 = T(weight_below(q, height));
      // Beyond the border the ring has rows of another tile: weight 0 would not silence a NaN of theirs.
      const auto &s1 = b.sums[q % 3], &s0 = q > 0 ? b.sums[(q + 2) % 3] : s1,
                 &s2 = q < height - 1 ? b.sums[(q + 1) % 3] : s1;
      const T *RESTRICT x = b.x[q % 3] + kLead, *RESTRICT v = b.y[q % 3] + kLead, *RESTRICT g = b.grad[q % 3] + kLead;
      for (const bool by_x : {true, false}) {
        T* out = static_cast<T*>(by_x ? p.grad_prediction : p.grad_target);
        if (!out) continue;
        out += offset + int64_t(q) * width + t.x0 - kHalo;
        const T *RESTRICT mine = by_x ? x : v, *RESTRICT other = by_x ? v : x;
        const int ka = by_x ? kAx : kAy;
        const T *RESTRICT a0 = s0[ka] + kLead, *RESTRICT a1 = s1[ka] + kLead, *RESTRICT a2 = s2[ka] + kLead;
        const T *RESTRICT b0 = s0[kB] + kLead, *RESTRICT b1 = s1[kB] + kLead, *RESTRICT b2 = s2[kB] + kLead;
        const T *RESTRICT c0 = s0[kC] + kLead, *RESTRICT c1 = s1[kC] + kLead, *RESTRICT c2 = s2[kC] + kLead;
        const int last = kHalo + t.x1 - t.x0;
#pragma omp simd
        for (int i = kHalo; i < last; ++i) {
          const T a = w0 * a0[i] + a1[i] + w2 * a2[i];
          const T bb = w0 * b0[i] + b1[i] + w2 * b2[i];
          const T cc = w0 * c0[i] + c1[i] + w2 * c2[i];
          out[i] = a + bb * (mine[i] - T(0.5)) + cc * (other[i] - T(0.5)) + g[i] * w_l1 * sign_of(mine[i] - other[i]);
        }
      }
    }
  }
}

template <class T>
int run(const PhotometricLossParams& p, void (*tile_kernel)(const PhotometricLossParams&, const Tile&, Buffers<T>&)) {
  const Tiling tiling(p.batch, p.height, p.width);
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tiling.count)));
  PerThread<Buffers<T>> buffers(threads);
  if (!buffers) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t k = 0; k < tiling.count; ++k) tile_kernel(p, tiling.tile(k), *buffers.mine());
  return 0;
}

}  // namespace

int photometric_loss(const PhotometricLossParams& p) {
  return p.dtype == Dtype::kFloat64 ? run<double>(p, forward_tile<double>) : run<float>(p, forward_tile<float>);
}

int photometric_loss_backward(const PhotometricLossParams& p) {
  return p.dtype == Dtype::kFloat64 ? run<double>(p, backward_tile<double>) : run<float>(p, backward_tile<float>);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
