// The photometric loss of view synthesis and its gradients in one pass per image, in tiles. Within a tile rows run through
// a short pipeline, three rows deep, as in min_reprojection.cpp:
//   row r      is warped, masked, and compared by L1
//   row r - 1  is the middle of SSIM's windows; their derivative's coefficients are summed along x
//   row r - 2  receives the sums of its three rows, and with them its gradients
#include "mdepth/view_synthesis_loss.h"
#include "mdepth/ssim.h"
#include "warped_row.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

// The derivative of SSIM's distances, a, b, c per channel, and the distances themselves.
constexpr int kSums = 10;

template <class T>
struct alignas(64) WindowRow {
  Row<T> v[kSums];
};

template <class T>
struct alignas(64) Buffers {
  WarpedRow<T> warped[3];
  Row<T> target[3][3], depth[3], absolute[3];
  Row<T> inside[3], counts[3];  // M, or 1; and that times the weight
  WindowRow<T> sums[3];         // over three columns
  WindowRow<T> raw, none;       // `none` is 0
  Row<T> window_weight, mean, variance, distance, zero, grad_u[kViewTerms], grad_v[kViewTerms], grad_depth;
};

template <class T>
struct Kernel {
  const ViewSynthesisLossParams& p;
  const int width, height;
  const int64_t plane;
  const bool need_grad, need_weight, ssim;

  explicit Kernel(const ViewSynthesisLossParams& params)
      : p(params),
        width(int(p.width)),
        height(int(p.height)),
        plane(p.height * p.width),
        need_grad(p.grad_depth != nullptr),
        need_weight(p.grad_weight != nullptr),
        ssim(p.terms > 1) {}

  // Row y of the warped image, what its pixels count, and its L1; returns the sum over the owned ones.
  double warp(const Tile& t, int y, Buffers<T>& k) const {
    const int slot = y % 3, n = t.n, first = t.x0 - kHalo, w = width, h = height;
    const int64_t row = int64_t(y) * width, image = t.batch;
    T* depth = k.depth[slot] + kLead;
    stage(static_cast<const T*>(p.depth) + image * plane + row, width, t, depth, T(1));
    for (int c = 0; c < 3; ++c)
      stage(static_cast<const T*>(p.target) + (image * 3 + c) * plane + row, width, t, k.target[slot][c] + kLead, T(0));
    WarpedRow<T>& warped = k.warped[slot];
    warp_row<Padding::kBorder>(t, y, static_cast<const T*>(p.source) + image * 3 * plane, width, height,
                               p.projection + image * kProjection, depth, warped);
    const T *RESTRICT shift_u = warped.shift_u + kLead, *RESTRICT shift_v = warped.shift_v + kLead,
                      *RESTRICT inv_z = warped.inv_z + kLead;
    T* RESTRICT inside = k.inside[slot] + kLead;
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const int x = first + i;
      const bool all = inv_z[i] > T(0) && between_pixels(x, shift_u[i], w) && between_pixels(y, shift_v[i], h);
      inside[i] = all && x >= 0 && x < w ? T(1) : T(0);
    }
    if (p.padding == Outside::kGrey) {
      for (int c = 0; c < 3; ++c) {
        T *RESTRICT color = warped.color[c] + kLead, *RESTRICT du = warped.du[c] + kLead,
                    *RESTRICT dv = warped.dv[c] + kLead;
#pragma omp simd
        for (int i = 0; i < n; ++i) {
          const bool all = inside[i] > T(0);
          color[i] = all ? color[i] : T(kGrey) + T(0) * color[i];
          du[i] = all ? du[i] : T(0);
          dv[i] = all ? dv[i] : T(0);
        }
      }
#pragma omp simd
      for (int i = 0; i < n; ++i) inside[i] = first + i >= 0 && first + i < w ? T(1) : T(0);
    }
    T* RESTRICT counts = k.counts[slot] + kLead;
    if (p.weight) {
      stage(static_cast<const T*>(p.weight) + image * plane + row, width, t, counts, T(0));
#pragma omp simd
      for (int i = 0; i < n; ++i) counts[i] *= inside[i];
    } else {
      std::memcpy(counts, inside, sizeof(T) * size_t(n));
    }
    const T *RESTRICT r = warped.color[0] + kLead, *RESTRICT g = warped.color[1] + kLead,
                      *RESTRICT b = warped.color[2] + kLead;
    const T *RESTRICT tr = k.target[slot][0] + kLead, *RESTRICT tg = k.target[slot][1] + kLead,
                      *RESTRICT tb = k.target[slot][2] + kLead;
    T* RESTRICT absolute = k.absolute[slot] + kLead;
#pragma omp simd
    for (int i = 0; i < n; ++i) absolute[i] = abs_of(r[i] - tr[i]) + abs_of(g[i] - tg[i]) + abs_of(b[i] - tb[i]);
    return y < t.y0 || y >= t.y1 ? 0 : sum_of_products(counts + kHalo, absolute + kHalo, t.x1 - t.x0);
  }

  static NOINLINE double sum_of_products(const T* RESTRICT a, const T* RESTRICT b, int n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; ++i) sum += double(a[i] * b[i]);
    return sum;
  }

  // SSIM of the windows around row y; returns the sum over the owned ones.
  template <bool kDerivative>
  double compare(const Tile& t, int y, Buffers<T>& k) const {
    const int n = t.n, first = t.x0 - kHalo, w = width;
    const int above = (y + 2) % 3, here = y % 3, below = (y + 1) % 3;
    T* RESTRICT weight = k.window_weight + kLead;
    {
      const T *RESTRICT m0 = k.counts[above] + kLead, *RESTRICT m1 = k.counts[here] + kLead,
                        *RESTRICT m2 = k.counts[below] + kLead;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const T sum =
            (m0[i - 1] + m0[i] + m0[i + 1]) + (m1[i - 1] + m1[i] + m1[i + 1]) + (m2[i - 1] + m2[i] + m2[i + 1]);
        weight[i] = window_inside(first + i, w) ? sum * T(1.0 / 9.0) : T(0);
      }
    }
    T* RESTRICT distance = k.raw.v[9] + kLead;
    for (int c = 0; c < 3; ++c) {
      const T *RESTRICT x0 = k.warped[above].color[c] + kLead, *RESTRICT x1 = k.warped[here].color[c] + kLead,
                        *RESTRICT x2 = k.warped[below].color[c] + kLead;
      const T *RESTRICT y0 = k.target[above][c] + kLead, *RESTRICT y1 = k.target[here][c] + kLead,
                        *RESTRICT y2 = k.target[below][c] + kLead;
      T *RESTRICT a = k.raw.v[3 * c] + kLead, *RESTRICT b = k.raw.v[3 * c + 1] + kLead,
                  *RESTRICT d = k.raw.v[3 * c + 2] + kLead;
      T *RESTRICT mean = k.mean + kLead, *RESTRICT variance = k.variance + kLead;
#pragma omp simd
      for (int i = 0; i < n; ++i) {  // of the target; in one loop with what follows GCC would not vectorise
        const Window<T> wy{{y0[i - 1], y0[i], y0[i + 1], y1[i - 1], y1[i], y1[i + 1], y2[i - 1], y2[i], y2[i + 1]}};
        const Moments<T> m = moments_of(wy);
        mean[i] = m.mean;
        variance[i] = m.variance;
      }
      const bool fresh = c == 0;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const Window<T> wx{{x0[i - 1], x0[i], x0[i + 1], x1[i - 1], x1[i], x1[i + 1], x2[i - 1], x2[i], x2[i + 1]}};
        const Window<T> wy{{y0[i - 1], y0[i], y0[i + 1], y1[i - 1], y1[i], y1[i + 1], y2[i - 1], y2[i], y2[i + 1]}};
        const SsimDistance<T> s = ssim_distance(wx, wy, Moments<T>{mean[i], variance[i]});
        distance[i] = (fresh ? T(0) : distance[i]) + s.distance;
        if (kDerivative) {
          a[i] = weight[i] * s.a_x;
          b[i] = weight[i] * s.b;
          d[i] = weight[i] * s.c;
        }
      }
    }
    if (kDerivative) {
      const int count = need_weight ? kSums : kSums - 1;
      for (int j = 0; j < count; ++j) {
        const T* RESTRICT raw = k.raw.v[j] + kLead;
        T* RESTRICT sum = k.sums[here].v[j] + kLead;
        if (j == 9) {  // the distances of windows that there are
          T* RESTRICT masked = k.distance + kLead;
#pragma omp simd
          for (int i = 0; i < n; ++i) masked[i] = window_inside(first + i, w) ? raw[i] : T(0);
          raw = masked;
        }
#pragma omp simd
        for (int i = 0; i < n; ++i) sum[i] = raw[i - 1] + raw[i] + raw[i + 1];
      }
    }
    return y < t.y0 || y >= t.y1 ? 0 : sum_of_products(weight + kHalo, distance + kHalo, t.x1 - t.x0);
  }

  // Gradients of row q: by depth and weight into the outputs, by the projection added to `grad_projection`.
  void differentiate(const Tile& t, int q, Buffers<T>& k, double* grad_projection) const {
    const int slot = q % 3, n = t.n;
    const WarpedRow<T>& warped = k.warped[slot];
    const WindowRow<T>* sums[3];
    for (int d = -1; d <= 1; ++d) sums[d + 1] = window_inside(q + d, height) ? &k.sums[(q + d) % 3] : &k.none;
    const T* RESTRICT counts = k.counts[slot] + kLead;
    T *RESTRICT l1_u = k.grad_u[0] + kLead, *RESTRICT l1_v = k.grad_v[0] + kLead;
    T *RESTRICT ssim_u = k.grad_u[1] + kLead, *RESTRICT ssim_v = k.grad_v[1] + kLead;
    for (int c = 0; c < 3; ++c) {
      const T *RESTRICT x = warped.color[c] + kLead, *RESTRICT y = k.target[slot][c] + kLead;
      const T *RESTRICT du = warped.du[c] + kLead, *RESTRICT dv = warped.dv[c] + kLead;
      const bool fresh = c == 0;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const T g = counts[i] * sign_of(x[i] - y[i]);
        l1_u[i] = (fresh ? T(0) : l1_u[i]) + g * du[i];
        l1_v[i] = (fresh ? T(0) : l1_v[i]) + g * dv[i];
      }
      if (!ssim) continue;
      const T *RESTRICT a0 = sums[0]->v[3 * c] + kLead, *RESTRICT a1 = sums[1]->v[3 * c] + kLead,
                        *RESTRICT a2 = sums[2]->v[3 * c] + kLead;
      const T *RESTRICT b0 = sums[0]->v[3 * c + 1] + kLead, *RESTRICT b1 = sums[1]->v[3 * c + 1] + kLead,
                        *RESTRICT b2 = sums[2]->v[3 * c + 1] + kLead;
      const T *RESTRICT c0 = sums[0]->v[3 * c + 2] + kLead, *RESTRICT c1 = sums[1]->v[3 * c + 2] + kLead,
                        *RESTRICT c2 = sums[2]->v[3 * c + 2] + kLead;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const T g = (a0[i] + a1[i] + a2[i]) + (b0[i] + b1[i] + b2[i]) * (x[i] - T(0.5)) +
                    (c0[i] + c1[i] + c2[i]) * (y[i] - T(0.5));
        ssim_u[i] = (fresh ? T(0) : ssim_u[i]) + g * du[i];
        ssim_v[i] = (fresh ? T(0) : ssim_v[i]) + g * dv[i];
      }
    }
    const int owned = t.x1 - t.x0;
    for (int term = 0; term < p.terms; ++term) {
      differentiate_warp(t, q, warped, k.depth[slot] + kLead, k.grad_u[term] + kLead, k.grad_v[term] + kLead, true,
                         k.grad_depth + kLead, grad_projection + term * kProjection);
      const int64_t at = (term * p.batch + t.batch) * plane + int64_t(q) * width + t.x0;
      const T share = T(share_of_term(p, term));
      T* RESTRICT out = static_cast<T*>(p.grad_depth) + at;
      const T* RESTRICT row = k.grad_depth + kLead + kHalo;
#pragma omp simd
      for (int i = 0; i < owned; ++i) out[i] = row[i] * share;
      if (!need_weight) continue;
      T* RESTRICT by_weight = static_cast<T*>(p.grad_weight) + at;
      const T* RESTRICT inside = k.inside[slot] + kLead + kHalo;
      const T factor = term == 0 ? share : share * T(1.0 / 9.0);
      const T* RESTRICT v0 = term == 0 ? k.absolute[slot] + kLead + kHalo : sums[0]->v[9] + kLead + kHalo;
      const T* RESTRICT v1 = (term == 0 ? k.zero : sums[1]->v[9]) + kLead + kHalo;
      const T* RESTRICT v2 = (term == 0 ? k.zero : sums[2]->v[9]) + kLead + kHalo;
#pragma omp simd
      for (int i = 0; i < owned; ++i) by_weight[i] = inside[i] * ((v0[i] + v1[i] + v2[i]) * factor);
    }
  }

  // `out`: of each term, the sum of the loss and the projection's gradient.
  void tile(const Tile& t, Buffers<T>& k, double* out) const {
    const int reach = need_grad ? 1 : 0, halo = ssim ? 1 + reach : 0;
    const int warp_begin = std::max(t.y0 - halo, 0), warp_end = std::min(t.y1 + halo, height);
    const int compare_begin = std::max(t.y0 - reach, 1), compare_end = std::min(t.y1 + reach, height - 1);
    double grad_projection[kViewTerms * kProjection] = {};
    double loss[kViewTerms] = {};
    for (int r = warp_begin; r < t.y1 + 2; ++r) {
      if (r < warp_end) loss[0] += warp(t, r, k);
      const int y = r - 1, q = r - 2;
      if (ssim && y >= compare_begin && y < compare_end)
        loss[1] += need_grad ? compare<true>(t, y, k) : compare<false>(t, y, k);
      if (need_grad && q >= t.y0 && q < t.y1) differentiate(t, q, k, grad_projection);
    }
    for (int term = 0; term < p.terms; ++term) {
      *out++ = loss[term];
      for (int j = 0; j < kProjection; ++j) *out++ = grad_projection[term * kProjection + j];
    }
  }
};

template <class T>
int run(const ViewSynthesisLossParams& p) {
  const Kernel<T> kernel(p);
  const Tiling tiling(p.batch, p.height, p.width);
  const int64_t numbers = p.terms * (1 + kProjection);
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tiling.count)));
  PerThread<Buffers<T>> buffers(threads);
  PerThread<double> partial(1, tiling.count * numbers);
  if (!buffers || !partial) return 1;

#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t k = 0; k < tiling.count; ++k) kernel.tile(tiling.tile(k), *buffers.mine(), partial.all() + k * numbers);

  if (p.grad_projection) std::memset(p.grad_projection, 0, sizeof(double) * size_t(p.terms * p.batch * kProjection));
  for (int term = 0; term < p.terms; ++term) {
    const double share = share_of_term(p, term);
    double loss = 0;
    for (int64_t k = 0; k < tiling.count; ++k) {
      const double* in = partial.all() + k * numbers + term * (1 + kProjection);
      loss += in[0];
      if (!p.grad_projection) continue;
      double* out = p.grad_projection + (term * p.batch + k / tiling.per_image()) * kProjection;
      for (int j = 0; j < kProjection; ++j) out[j] += in[1 + j] * share;
    }
    p.loss[term] = loss * share;
  }
  return 0;
}

}  // namespace

int view_synthesis_loss(const ViewSynthesisLossParams& p) {
  return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
