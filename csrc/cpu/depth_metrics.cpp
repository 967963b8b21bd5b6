// The sums behind the depth metrics. A LiDAR frame has ground truth at one pixel in twenty: what counts is first brought
// together, so that the rest costs a comparison and the arithmetic runs on full vectors.
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "mdepth/depth_metrics.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

constexpr int kRun = 1024;                  // pixels that are looked at together; twice as many are summed together
constexpr int kBlock = 64;                  // pixels that are tested together
constexpr int kTaskPixels = 1 << 15;        // rows of about so many are a task
constexpr int64_t kThreadPixels = 1 << 18;  // below this a further thread costs more than it brings

template <class T>
struct alignas(64) Buffers {
  T p[2 * kRun + kBlock], g[2 * kRun + kBlock];
};

// Appends the pixels among `n` that count to `b`, from `count` on; returns the new count. Reads predictions only near
// them, and may write up to a vector more than it keeps.
template <class T>
int gather(const T* RESTRICT prediction, const T* RESTRICT truth, int n, T low, T high, Buffers<T>& b, int count) {
  T *RESTRICT p = b.p, *RESTRICT g = b.g;
  int first = 0;
#if defined(__AVX512F__)
  // No compiler makes this out of a loop. Within a block nothing branches: where the next point lies cannot be guessed.
  if constexpr (sizeof(T) == 4) {
    const __m512 lows = _mm512_set1_ps(low), highs = _mm512_set1_ps(high);
    for (; first + kBlock <= n; first += kBlock) {
      __m512 value[kBlock / 16];
      unsigned on[kBlock / 16], any = 0;
      for (int k = 0; k < kBlock / 16; ++k) {
        value[k] = _mm512_loadu_ps(truth + first + 16 * k);
        const __mmask16 above = _mm512_cmp_ps_mask(value[k], lows, _CMP_GT_OQ);
        any |= on[k] = _mm512_mask_cmp_ps_mask(above, value[k], highs, _CMP_LT_OQ);
      }
      if (!any) continue;
      for (int k = 0; k < kBlock / 16; ++k) {
        const __m512 guess = _mm512_loadu_ps(prediction + first + 16 * k);
        _mm512_storeu_ps(g + count, _mm512_maskz_compress_ps(__mmask16(on[k]), value[k]));
        _mm512_storeu_ps(p + count, _mm512_maskz_compress_ps(__mmask16(on[k]), guess));
        count += __builtin_popcount(on[k]);
      }
    }
  }
#endif
  for (; first < n; first += kBlock) {
    const int last = std::min(first + kBlock, n) - first;
    alignas(64) unsigned char on[kBlock] = {};
#pragma omp simd
    for (int i = 0; i < last; ++i) on[i] = metrics_counted(truth[first + i], low, high) ? 1 : 0;
    for (int i = 0; i < kBlock; i += 8) {
      uint64_t eight;
      std::memcpy(&eight, on + i, 8);
      for (; eight; eight &= eight - 1, ++count) {
        const int at = first + i + __builtin_ctzll(eight) / 8;  // x86 and ARM: the lowest byte is the first
        p[count] = prediction[at];
        g[count] = truth[at];
      }
    }
  }
  return count;
}

// What `n` pixels add to the sums of their image.
template <class T, bool inverse>
void add(const DepthMetricsParams& params, int64_t image, const Buffers<T>& b, int n, double* sums) {
  const T *RESTRICT prediction = b.p, *RESTRICT truth = b.g;
  const double scale = params.scale ? params.scale[image] : 1.0, shift = params.shift ? params.shift[image] : 0.0;
  const double low = params.min_depth, high = params.max_depth;
  double abs_rel = 0, sq_rel = 0, sq_rel_kitti = 0, sq_error = 0, sq_log = 0, log = 0, abs_log = 0;
  double d1 = 0, d2 = 0, d3 = 0, sq_inverse = 0;
#pragma omp simd reduction(+ : abs_rel, sq_rel, sq_rel_kitti, sq_error, sq_log, log, abs_log, d1, d2, d3, sq_inverse)
  for (int i = 0; i < n; ++i) {
    const double p = metrics_depth(double(prediction[i]), scale, shift, inverse, low, high);
    const MetricsTerms t = metrics_terms(p, double(truth[i]));
    abs_rel += t.abs_rel;
    sq_rel += t.sq_rel;
    sq_rel_kitti += t.sq_rel_kitti;
    sq_error += t.sq_error;
    sq_log += t.sq_log;
    log += t.log;
    abs_log += t.abs_log;
    d1 += t.d1;
    d2 += t.d2;
    d3 += t.d3;
    sq_inverse += t.sq_inverse;
  }
  const double all[kDepthSums] = {double(n), abs_rel, sq_rel, sq_rel_kitti, sq_error, sq_log,
                                  log,       abs_log, d1,     d2,           d3,       sq_inverse};
  for (int j = 0; j < kDepthSums; ++j) sums[j] += all[j];
}

template <class T>
int run(const DepthMetricsParams& p) {
  const int64_t rows = p.bottom - p.top, columns = p.right - p.left;
  const int64_t band = std::max<int64_t>(1, kTaskPixels / std::max<int64_t>(1, columns));  // rows of a task
  const int64_t bands = (rows + band - 1) / band, tasks = p.batch * bands;
  const int64_t useful = std::min(tasks, (p.batch * rows * columns + kThreadPixels - 1) / kThreadPixels);
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, useful)));
  PerThread<Buffers<T>> buffers(threads);
  PerThread<double> sums(1, tasks * kDepthSums);
  if (!buffers || !sums) return 1;
  const T low = T(p.min_valid), high = T(p.max_valid);
  const auto add_to = p.inverse ? add<T, true> : add<T, false>;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t image = task / bands, first = p.top + task % bands * band;
    Buffers<T>& b = *buffers.mine();
    double* mine = sums.all() + task * kDepthSums;
    int count = 0;
    for (int64_t y = first; y < std::min(first + band, p.bottom); ++y) {
      const int64_t row = (image * p.height + y) * p.width;
      const T *prediction = static_cast<const T*>(p.prediction) + row,
              *truth = static_cast<const T*>(p.ground_truth) + row;
      for (int64_t x = p.left; x < p.right; x += kRun) {
        const int n = int(std::min<int64_t>(kRun, p.right - x));
        if (count > kRun) {
          add_to(p, image, b, count, mine);
          count = 0;
        }
        count = gather(prediction + x, truth + x, n, low, high, b, count);
      }
    }
    add_to(p, image, b, count, mine);
  }
  for (int64_t i = 0; i < p.batch * kDepthSums; ++i) {
    double sum = 0;
    for (int64_t k = 0; k < bands; ++k) sum += sums.all()[(i / kDepthSums * bands + k) * kDepthSums + i % kDepthSums];
    p.sums[i] = sum;
  }
  return 0;
}

}  // namespace

int depth_metrics(const DepthMetricsParams& p) { return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p); }

}  // namespace MDEPTH_ISA
}  // namespace mdepth
