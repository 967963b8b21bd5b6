// The whole photometric objective of one training step in one pass per image: for every scale and source the warp, SSIM
// and L1 against the target, the minimum with the identity term, the mean, and the gradients of depth and projection.
// One tile at a time; within it rows run through a short pipeline, three rows deep, so that all intermediate maps live
// in cache and none in memory:
//   row r      of every source is warped
//   row r - 1  is compared with the target, the winner is chosen, its derivative's coefficients are summed along x
//   row r - 2  receives the sums of its three rows, and with them its gradient
#include "mdepth/min_reprojection.h"
#include "mdepth/ssim.h"
#include "warped_row.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

template <class T>
struct alignas(64) TargetRow {
  Row<T> color[3], mean[3], variance[3], identity;
};

// SSIM distance's derivative, a, b, c per channel.
template <class T>
struct alignas(64) Coefficients {
  Row<T> v[9];
};

template <class T>
struct alignas(64) SourceBuffers {
  WarpedRow<T> warped[3];
  Coefficients<T> sums[3];  // of a row, over three columns
  Coefficients<T> raw;
  Row<T> cost, wins[3];
};

template <class T>
struct alignas(64) TileBuffers {
  TargetRow<T> target[kTileRows];
  Row<T> depth[3], best, distance;
  Row<int> selection;
  Row<T> grad_depth;
};

template <class T>
struct Kernel {
  const MinReprojectionParams& p;
  const int width, height, sources;
  const int64_t plane;
  const bool need_grad;
  const T ssim_third, l1_third;

  explicit Kernel(const MinReprojectionParams& params)
      : p(params),
        width(int(p.width)),
        height(int(p.height)),
        sources(int(p.sources)),
        plane(p.height * p.width),
        need_grad(p.grad_depth != nullptr),
        ssim_third(T(p.ssim_weight / 3)),
        l1_third(T((1 - p.ssim_weight) / 3)) {}

  // Distances of one row for one image: pe = ssim_third * sum_c ssim distance + l1_third * sum_c |x - y|.
  template <bool kDerivative>
  void compare(const T* const x[3][3], const TargetRow<T>* const y[3], int n, T* RESTRICT cost,
               Coefficients<T>* RESTRICT raw) const {
    for (int c = 0; c < 3; ++c) {
      const T *RESTRICT x0 = x[0][c], *RESTRICT x1 = x[1][c], *RESTRICT x2 = x[2][c];
      const T *RESTRICT y0 = y[0]->color[c] + kLead, *RESTRICT y1 = y[1]->color[c] + kLead,
                        *RESTRICT y2 = y[2]->color[c] + kLead;
      const T *RESTRICT mean = y[1]->mean[c] + kLead, *RESTRICT variance = y[1]->variance[c] + kLead;
      T* RESTRICT a = raw ? raw->v[3 * c] + kLead : nullptr;
      T* RESTRICT b = raw ? raw->v[3 * c + 1] + kLead : nullptr;
      T* RESTRICT d = raw ? raw->v[3 * c + 2] + kLead : nullptr;
      const T w_ssim = ssim_third, w_l1 = l1_third;
      const bool first = c == 0;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const Window<T> wx{{x0[i - 1], x0[i], x0[i + 1], x1[i - 1], x1[i], x1[i + 1], x2[i - 1], x2[i], x2[i + 1]}};
        const Window<T> wy{{y0[i - 1], y0[i], y0[i + 1], y1[i - 1], y1[i], y1[i + 1], y2[i - 1], y2[i], y2[i + 1]}};
        const SsimDistance<T> s = ssim_distance(wx, wy, Moments<T>{mean[i], variance[i]});
        const T here = w_ssim * s.distance + w_l1 * abs_of(x1[i] - y1[i]);
        cost[i] = first ? here : cost[i] + here;
        if (kDerivative) {
          a[i] = w_ssim * s.a_x;
          b[i] = w_ssim * s.b;
          d[i] = w_ssim * s.c;
        }
      }
    }
  }

  // Target colours and moments, and the identity term: what all scales share.
  void prepare(const Tile& t, TileBuffers<T>& tile, SourceBuffers<T>* source) const {
    const int64_t image = int64_t(t.batch) * 3 * plane;
    const T* target = static_cast<const T*>(p.target) + image;
    const int begin = std::max(t.y0 - kHalo, 0), end = std::min(t.y1 + kHalo, height);
    for (int y = begin; y < end; ++y)
      for (int c = 0; c < 3; ++c) {
        T* row = tile.target[y - begin].color[c] + kLead;
        stage(target + c * plane + int64_t(y) * width, width, t, row, T(0));
        reflect_columns(width, t, row);
      }
    const int compare_begin = std::max(t.y0 - 1, 0), compare_end = std::min(t.y1 + 1, height);
    for (int y = compare_begin; y < compare_end; ++y) {
      TargetRow<T>& row = tile.target[y - begin];
      const int above = reflect(y - 1, height) - begin, below = reflect(y + 1, height) - begin;
      for (int c = 0; c < 3; ++c) {
        const T *RESTRICT y0 = tile.target[above].color[c] + kLead, *RESTRICT y1 = row.color[c] + kLead,
                          *RESTRICT y2 = tile.target[below].color[c] + kLead;
        T *RESTRICT mean = row.mean[c] + kLead, *RESTRICT variance = row.variance[c] + kLead;
#pragma omp simd
        for (int i = 0; i < t.n; ++i) {
          const Window<T> w{{y0[i - 1], y0[i], y0[i + 1], y1[i - 1], y1[i], y1[i + 1], y2[i - 1], y2[i], y2[i + 1]}};
          const Moments<T> m = moments_of(w);
          mean[i] = m.mean;
          variance[i] = m.variance;
        }
      }
    }
    if (!p.auto_mask) return;
    for (int s = 0; s < sources; ++s) {
      const T* image_s = static_cast<const T*>(p.source) + (int64_t(t.batch) * sources + s) * 3 * plane;
      const T* noise = static_cast<const T*>(p.identity_noise);
      if (noise) noise += (int64_t(t.batch) * sources + s) * plane;
      int staged = begin;  // rows of the source that are in the ring: staged - 3 .. staged - 1
      for (int y = compare_begin; y < compare_end; ++y) {
        for (; staged < std::min(y + 2, height); ++staged)
          for (int c = 0; c < 3; ++c) {
            T* row = source[s].warped[staged % 3].color[c] + kLead;
            stage(image_s + c * plane + int64_t(staged) * width, width, t, row, T(0));
            reflect_columns(width, t, row);
          }
        const T* x[3][3];
        const TargetRow<T>* rows[3];
        neighbours(y, begin, tile, source[s], x, rows);
        compare<false>(x, rows, t.n, source[s].cost + kLead, nullptr);
        T* RESTRICT identity = tile.target[y - begin].identity + kLead;
        T* RESTRICT cost = source[s].cost + kLead;
        if (noise) {
          stage(noise + int64_t(y) * width, width, t, tile.distance + kLead, T(0));
          const T* RESTRICT extra = tile.distance + kLead;
#pragma omp simd
          for (int i = 0; i < t.n; ++i) cost[i] += extra[i];
        }
        const bool first = s == 0;
#pragma omp simd
        for (int i = 0; i < t.n; ++i) {
          const T old = identity[i], now = cost[i];
          identity[i] = (first || now < old || now != now) ? now : old;  // NaN stays
        }
      }
    }
  }

  // The three rows of a window centred on row y, reflected at the image's top and bottom.
  void neighbours(int y, int begin, const TileBuffers<T>& tile, const SourceBuffers<T>& source, const T* x[3][3],
                  const TargetRow<T>* rows[3]) const {
    for (int k = 0; k < 3; ++k) {
      const int row = reflect(y + k - 1, height);
      rows[k] = &tile.target[row - begin];
      for (int c = 0; c < 3; ++c) x[k][c] = source.warped[row % 3].color[c] + kLead;
    }
  }

  // The minimum over identity and sources of row y; returns the sum of its owned pixels.
  double choose(const Tile& t, int y, int scale, const TargetRow<T>& target, TileBuffers<T>& tile,
                SourceBuffers<T>* source) const {
    T* RESTRICT best = tile.best + kLead;
    int* RESTRICT chosen = tile.selection + kLead;
    const T* RESTRICT identity = target.identity + kLead;
    const bool auto_mask = p.auto_mask;
    const int n = t.n;
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      best[i] = auto_mask ? identity[i] : T(0);
      chosen[i] = -1;
    }
    for (int s = 0; s < sources; ++s) {
      const T* RESTRICT cost = source[s].cost + kLead;
      const T* RESTRICT inv_z = source[s].warped[y % 3].inv_z + kLead;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const T now = cost[i];
        const bool empty = !auto_mask && chosen[i] < 0;
        const bool poisoned = now != now;
        const bool wins = poisoned || (inv_z[i] > T(0) && (empty || now < best[i]));
        best[i] = wins ? now : best[i];
        chosen[i] = wins ? s : chosen[i];
      }
    }
    if (y < t.y0 || y >= t.y1) return 0;
    double sum = 0;
    int8_t* out = p.selection + ((int64_t(scale) * p.batch + t.batch) * plane + int64_t(y) * width + t.x0);
    const int owned = t.x1 - t.x0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < owned; ++i) sum += double(best[i + kHalo]);
    for (int i = 0; i < owned; ++i) out[i] = int8_t(chosen[i + kHalo]);
    return sum;
  }

  // Coefficients of the pixels that chose source s, summed over three columns.
  void collect(const Tile& t, int s, int slot, const TileBuffers<T>& tile, SourceBuffers<T>& source) const {
    const int* RESTRICT chosen = tile.selection + kLead;
    T* RESTRICT wins = source.wins[slot] + kLead;
    const int begin = kHalo - t.x0, end = begin + width;  // lanes inside the image
    const int n = t.n;
#pragma omp simd
    for (int i = 0; i < n; ++i) wins[i] = (chosen[i] == s && i >= begin && i < end) ? T(1) : T(0);
    for (int k = 0; k < 9; ++k) sum_columns(width, t, source.raw.v[k] + kLead, wins, source.sums[slot].v[k] + kLead);
  }

  // Gradient of row q by depth, and the row's share of the gradient by the projection.
  void differentiate(const Tile& t, int q, int s, const TargetRow<T>& target, const SourceBuffers<T>& source,
                     TileBuffers<T>& tile, double* grad_projection) const {
    const int n = t.n;
    const WarpedRow<T>& warped = source.warped[q % 3];
    // Beyond the border the ring has rows of another tile: weight 0 would not silence a NaN of theirs.
    const Coefficients<T>*here = &source.sums[q % 3], *above = q > 0 ? &source.sums[(q + 2) % 3] : here,
          *below = q < height - 1 ? &source.sums[(q + 1) % 3] : here;
    const T w_above = T(weight_above(q)), w_below = T(weight_below(q, height));
    const T* RESTRICT wins = source.wins[q % 3] + kLead;
    const T w_l1 = l1_third;
    T* RESTRICT gu = tile.best + kLead;  // free by now
    T* RESTRICT gv = tile.distance + kLead;
    for (int c = 0; c < 3; ++c) {
      const T *RESTRICT a0 = above->v[3 * c] + kLead, *RESTRICT a1 = here->v[3 * c] + kLead,
                        *RESTRICT a2 = below->v[3 * c] + kLead;
      const T *RESTRICT b0 = above->v[3 * c + 1] + kLead, *RESTRICT b1 = here->v[3 * c + 1] + kLead,
                        *RESTRICT b2 = below->v[3 * c + 1] + kLead;
      const T *RESTRICT c0 = above->v[3 * c + 2] + kLead, *RESTRICT c1 = here->v[3 * c + 2] + kLead,
                        *RESTRICT c2 = below->v[3 * c + 2] + kLead;
      const T *RESTRICT x = warped.color[c] + kLead, *RESTRICT y = target.color[c] + kLead;
      const T *RESTRICT du = warped.du[c] + kLead, *RESTRICT dv = warped.dv[c] + kLead;
      const bool fresh = c == 0;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const T a = w_above * a0[i] + a1[i] + w_below * a2[i];
        const T b = w_above * b0[i] + b1[i] + w_below * b2[i];
        const T d = w_above * c0[i] + c1[i] + w_below * c2[i];
        const T g = a + b * (x[i] - T(0.5)) + d * (y[i] - T(0.5)) + wins[i] * w_l1 * sign_of(x[i] - y[i]);
        gu[i] = (fresh ? T(0) : gu[i]) + g * du[i];
        gv[i] = (fresh ? T(0) : gv[i]) + g * dv[i];
      }
    }
    differentiate_warp(t, q, warped, tile.depth[q % 3] + kLead, gu, gv, s == 0, tile.grad_depth + kLead,
                       grad_projection);
  }

  template <Padding padding>
  double scale_of_tile(const Tile& t, int scale, TileBuffers<T>& tile, SourceBuffers<T>* source,
                       double* grad_projection) const {
    const T* depth = static_cast<const T*>(p.depth[scale]) + int64_t(t.batch) * plane;
    const int reach = need_grad ? 1 : 0;
    const int begin = std::max(t.y0 - kHalo, 0);  // row of tile.target[0]
    const int warp_begin = std::max(t.y0 - 1 - reach, 0), warp_end = std::min(t.y1 + 1 + reach, height);
    const int compare_begin = std::max(t.y0 - reach, 0), compare_end = std::min(t.y1 + reach, height);
    double loss = 0;
    for (int r = warp_begin; r < t.y1 + 2; ++r) {
      if (r < warp_end) {
        stage(depth + int64_t(r) * width, width, t, tile.depth[r % 3] + kLead, T(1));
        for (int s = 0; s < sources; ++s) {
          const int64_t image = int64_t(t.batch) * sources + s;
          WarpedRow<T>& row = source[s].warped[r % 3];
          warp_row<padding>(t, r, static_cast<const T*>(p.source) + image * 3 * plane, width, height,
                            p.projection + image * kProjection, tile.depth[r % 3] + kLead, row);
          for (int c = 0; c < 3; ++c) reflect_columns(width, t, row.color[c] + kLead);
        }
      }
      const int y = r - 1;
      if (y >= compare_begin && y < compare_end) {
        for (int s = 0; s < sources; ++s) {
          const T* x[3][3];
          const TargetRow<T>* rows[3];
          neighbours(y, begin, tile, source[s], x, rows);
          if (need_grad)
            compare<true>(x, rows, t.n, source[s].cost + kLead, &source[s].raw);
          else
            compare<false>(x, rows, t.n, source[s].cost + kLead, nullptr);
        }
        loss += choose(t, y, scale, tile.target[y - begin], tile, source);
        if (need_grad)
          for (int s = 0; s < sources; ++s) collect(t, s, y % 3, tile, source[s]);
      }
      const int q = r - 2;
      if (need_grad && q >= t.y0 && q < t.y1) {
        for (int s = 0; s < sources; ++s)
          differentiate(t, q, s, tile.target[q - begin], source[s], tile, grad_projection + s * kProjection);
        T* out = static_cast<T*>(p.grad_depth) + (int64_t(scale) * p.batch + t.batch) * plane + int64_t(q) * width;
        const T share = T(1.0 / double(p.batch * plane));
        const T* RESTRICT row = tile.grad_depth + kLead + kHalo;
        const int owned = t.x1 - t.x0;
#pragma omp simd
        for (int i = 0; i < owned; ++i) out[t.x0 + i] = row[i] * share;
      }
    }
    return loss;
  }
};

template <class T>
int run(const MinReprojectionParams& p) {
  const Kernel<T> kernel(p);
  const Tiling tiling(p.batch, p.height, p.width);
  const int64_t tiles = tiling.count;
  const int64_t numbers = 1 + p.sources * kProjection;  // of a tile and scale: its loss, its projections' gradients
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tiles)));

  PerThread<TileBuffers<T>> tile_buffers(threads);
  PerThread<SourceBuffers<T>> source_buffers(threads, p.sources);
  PerThread<double> partial(1, tiles * p.scales * numbers);
  if (!tile_buffers || !source_buffers || !partial) return 1;

#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t k = 0; k < tiles; ++k) {
    const Tile t = tiling.tile(k);
    TileBuffers<T>& tile = *tile_buffers.mine();
    SourceBuffers<T>* source = source_buffers.mine();
    kernel.prepare(t, tile, source);
    for (int64_t scale = 0; scale < p.scales; ++scale) {
      double* out = partial.all() + (k * p.scales + scale) * numbers;
      out[0] = p.padding == Padding::kZeros
                   ? kernel.template scale_of_tile<Padding::kZeros>(t, int(scale), tile, source, out + 1)
                   : kernel.template scale_of_tile<Padding::kBorder>(t, int(scale), tile, source, out + 1);
    }
  }

  const double share = 1.0 / double(p.batch * p.height * p.width);
  const int64_t per_image = p.sources * kProjection;
  for (int64_t scale = 0; scale < p.scales; ++scale) {
    double loss = 0;
    if (p.grad_projection)
      std::memset(p.grad_projection + scale * p.batch * per_image, 0, sizeof(double) * size_t(p.batch * per_image));
    for (int64_t k = 0; k < tiles; ++k) {
      const double* in = partial.all() + (k * p.scales + scale) * numbers;
      loss += in[0];
      if (!p.grad_projection) continue;
      double* out = p.grad_projection + (scale * p.batch + k / tiling.per_image()) * per_image;
      for (int64_t j = 0; j < per_image; ++j) out[j] += in[1 + j] * share;
    }
    p.loss[scale] = loss * share;
  }
  return 0;
}

}  // namespace

int min_reprojection(const MinReprojectionParams& p) {
  return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
