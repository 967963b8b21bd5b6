// The ordinal regression loss and its gradient. Both go through the logits once, plane by plane of a run of pixels,
// with the run's state in L1. The backward reads the logits again rather than a gradient kept by the forward: three
// passes over memory of their size instead of four (write it, read it, write it scaled), and nothing kept but inputs.
#include <limits>

#include "mdepth/mask.h"
#include "mdepth/ordinal_loss.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

constexpr int kRun = 1024;

template <class T>
struct alignas(64) Buffers {
  T depth[kRun], on[kRun], excess[kRun], odds[kRun];
};

struct Work {
  int64_t plane, runs, tasks;
  int threads;

  explicit Work(const OrdinalLossParams& p)
      : plane(p.height * p.width),
        runs((plane + kRun - 1) / kRun),
        tasks(p.batch * runs),
        threads(int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)))) {}
};

// The truth is beyond t_{k+1}, so k < l, for k = 0..K-2; never for the last bin, whose bound compares with nothing.
template <class T>
T bound_of(const OrdinalLossParams& p, int k) {
  return k + 1 < p.bins ? static_cast<const T*>(p.thresholds)[k + 1] : std::numeric_limits<T>::quiet_NaN();
}

// Depth and mask of `n` pixels from pixel `at` of the batch on; the number of those that count.
template <class T>
int load(const OrdinalLossParams& p, int64_t at, int n, Buffers<T>& b) {
  std::memcpy(b.depth, static_cast<const T*>(p.depth) + at, sizeof(T) * size_t(n));
  int count = 0;
  for (int i = 0; i < n; ++i) {
    const bool on = p.valid ? p.valid[at + i] : measured(b.depth[i]);
    b.on[i] = T(on);
    count += on;
  }
  return count;
}

template <class T>
double sum_of(const OrdinalLossParams& p, const T* logits, int64_t plane, int n, Buffers<T>& b) {
  const T *RESTRICT depth = b.depth, *RESTRICT on = b.on;
  T *RESTRICT excess = b.excess, *RESTRICT odds = b.odds;
  double sum = 0;
  for (int first = 0; first < p.bins; first += kOrdinalFactors) {
    const int last = int(std::min<int64_t>(first + kOrdinalFactors, p.bins));
    for (int k = first; k < last; ++k) {
      const T *RESTRICT not_beyond = logits + 2 * k * plane, *RESTRICT beyond = not_beyond + plane;
      const T bound = bound_of<T>(p, k);
      const bool start = k == first;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const T d = beyond[i] - not_beyond[i], s = depth[i] >= bound ? -d : d;
        excess[i] = ordinal_excess(start ? T(0) : excess[i], s);
        odds[i] = ordinal_odds(start ? T(0) : odds[i], s);
      }
    }
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; ++i) sum += on[i] != T(0) ? double(excess[i] + log1p_positive(odds[i])) : 0.0;
  }
  // An infinite depth has a bin, a NaN looks as if it had one: neither may pass for a measurement.
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += on[i] != T(0) ? double(depth[i] - depth[i]) : 0.0;
  return sum;
}

template <class T>
int forward(const OrdinalLossParams& p) {
  const Work work(p);
  PerThread<Buffers<T>> buffers(work.threads);
  PerThread<double> sums(1, work.tasks);
  PerThread<int> counts(1, work.tasks);
  if (!buffers || !sums || !counts) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(work.threads)
  for (int64_t task = 0; task < work.tasks; ++task) {
    const int64_t b = task / work.runs, begin = task % work.runs * kRun;
    const int n = int(std::min<int64_t>(kRun, work.plane - begin));
    counts.all()[task] = load<T>(p, b * work.plane + begin, n, *buffers.mine());
    if (!counts.all()[task]) continue;  // the sky of a LiDAR frame
    const T* logits = static_cast<const T*>(p.logits) + 2 * b * p.bins * work.plane + begin;
    sums.all()[task] = sum_of(p, logits, work.plane, n, *buffers.mine());
  }
  double sum = 0;
  int64_t count = 0;
  for (int64_t task = 0; task < work.tasks; ++task) {
    sum += sums.all()[task];
    count += counts.all()[task];
  }
  *p.loss = sum / double(std::max<int64_t>(count, 1));
  *p.count = count;
  return 0;
}

template <class T>
int backward(const OrdinalLossParams& p) {
  const Work work(p);
  PerThread<Buffers<T>> buffers(work.threads);
  if (!buffers) return 1;
  use_huge_pages(p.grad_logits, int64_t(sizeof(T)) * p.batch * 2 * p.bins * work.plane);
  const T share = T(double(*static_cast<const T*>(p.grad)) / double(std::max<int64_t>(*p.count, 1)));
#pragma omp parallel for schedule(dynamic) num_threads(work.threads)
  for (int64_t task = 0; task < work.tasks; ++task) {
    const int64_t b = task / work.runs, begin = task % work.runs * kRun, at = 2 * b * p.bins * work.plane + begin;
    const int n = int(std::min<int64_t>(kRun, work.plane - begin));
    const bool any = load<T>(p, b * work.plane + begin, n, *buffers.mine()) > 0;
    const T *RESTRICT depth = buffers.mine()->depth, *RESTRICT on = buffers.mine()->on;
    for (int k = 0; k < p.bins; ++k) {
      const T *RESTRICT not_beyond = static_cast<const T*>(p.logits) + at + 2 * k * work.plane,
                        *RESTRICT beyond = not_beyond + work.plane;
      T *RESTRICT grad_not = static_cast<T*>(p.grad_logits) + at + 2 * k * work.plane,
                  *RESTRICT grad_beyond = grad_not + work.plane;
      if (!any) {
        std::memset(grad_not, 0, sizeof(T) * size_t(n));
        std::memset(grad_beyond, 0, sizeof(T) * size_t(n));
        continue;
      }
      const T bound = bound_of<T>(p, k);
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const bool is_beyond = depth[i] >= bound;
        const T d = beyond[i] - not_beyond[i];
        const T g = (is_beyond ? -share : share) * ordinal_slope(is_beyond ? -d : d);
        grad_beyond[i] = on[i] != T(0) ? g : T(0);
        grad_not[i] = on[i] != T(0) ? -g : T(0);
      }
    }
  }
  return 0;
}

}  // namespace

int ordinal_loss(const OrdinalLossParams& p) {
  return p.dtype == Dtype::kFloat64 ? forward<double>(p) : forward<float>(p);
}

int ordinal_loss_backward(const OrdinalLossParams& p) {
  return p.dtype == Dtype::kFloat64 ? backward<double>(p) : backward<float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
