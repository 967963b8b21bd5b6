// The reverse Huber loss: one pass for the largest error of the batch, one for the mean cost, and one, when wanted, for the
// gradient. Pixels are cut into runs whatever their image.
#include "mdepth/berhu_loss.h"
#include "sparse.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

enum State { kLargest, kCount };

template <class T>
struct alignas(64) Buffers {
  uint8_t on[kRun];
  T error[kRun];
};

struct Work {
  int64_t pixels, tasks;
  int threads;

  explicit Work(const BerhuLossParams& p)
      : pixels(p.batch * p.height * p.width),
        tasks((pixels + kRun - 1) / kRun),
        threads(int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)))) {}

  int length(int64_t task) const { return int(std::min<int64_t>(kRun, pixels - task * kRun)); }
};

// Signed errors of a run, 0 where a pixel does not count.
template <class T>
void errors(const BerhuLossParams& p, int64_t at, int n, Buffers<T>& b) {
  const T *RESTRICT prediction = static_cast<const T*>(p.prediction) + at,
                    *RESTRICT depth = static_cast<const T*>(p.depth) + at;
  mark(p, at, n, depth, b.on);
  const uint8_t* RESTRICT on = b.on;
  T* RESTRICT error = b.error;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const T x = prediction[i] - depth[i];
    error[i] = on[i] != 0 ? x : T(0);
  }
}

template <class T>
int forward(const BerhuLossParams& p) {
  const Work work(p);
  PerThread<Buffers<T>> buffers(work.threads);
  PerThread<double> partial(1, 3 * work.tasks);
  if (!buffers || !partial) return 1;
  double *costs = partial.all(), *largest = costs + work.tasks, *counts = largest + work.tasks;
#pragma omp parallel for schedule(dynamic, 4) num_threads(work.threads)
  for (int64_t task = 0; task < work.tasks; ++task) {
    const int n = work.length(task);
    errors(p, task * kRun, n, *buffers.mine());
    const T* RESTRICT error = buffers.mine()->error;
    const uint8_t* RESTRICT on = buffers.mine()->on;
    T most = 0, lost = 0;
    int count = 0;
#pragma omp simd reduction(max : most) reduction(+ : lost)
    for (int i = 0; i < n; ++i) {
      const T a = abs_of(error[i]);
      most = a > most ? a : most;
      lost += a - a;  // NaN where it is not finite
    }
    for (int i = 0; i < n; ++i) count += on[i];
    largest[task] = double(most + lost);
    counts[task] = double(count);
  }
  p.state[kLargest] = p.state[kCount] = 0;
  for (int64_t task = 0; task < work.tasks; ++task) {
    const bool more = !(largest[task] <= p.state[kLargest]);  // a NaN stays: nothing is more
    if (more && p.state[kLargest] == p.state[kLargest]) p.state[kLargest] = largest[task];
    p.state[kCount] += counts[task];
  }
  const T c = berhu_threshold<T>(p.state[kLargest], p.threshold), half_inverse = T(0.5) / c;
#pragma omp parallel for schedule(dynamic, 4) num_threads(work.threads)
  for (int64_t task = 0; task < work.tasks; ++task) {
    if (!(counts[task] > 0)) continue;
    const int n = work.length(task);
    errors(p, task * kRun, n, *buffers.mine());
    const T* RESTRICT error = buffers.mine()->error;
    const uint8_t* RESTRICT on = buffers.mine()->on;
    double cost = 0;
#pragma omp simd reduction(+ : cost)
    for (int i = 0; i < n; ++i) cost += on[i] != 0 ? double(berhu_cost(error[i], c, half_inverse)) : 0.0;
    costs[task] = cost;
  }
  double cost = 0;
  for (int64_t task = 0; task < work.tasks; ++task) cost += costs[task];
  *p.loss = cost / std::max(p.state[kCount], 1.0);
  return 0;
}

template <class T>
int backward(const BerhuLossParams& p) {
  const Work work(p);
  PerThread<Buffers<T>> buffers(work.threads);
  if (!buffers) return 1;
  const T c = berhu_threshold<T>(p.state[kLargest], p.threshold), inverse = T(1) / c;
  const T share = T(double(*static_cast<const T*>(p.grad)) / std::max(p.state[kCount], 1.0));
#pragma omp parallel for schedule(dynamic, 4) num_threads(work.threads)
  for (int64_t task = 0; task < work.tasks; ++task) {
    const int n = work.length(task);
    errors(p, task * kRun, n, *buffers.mine());
    const T* RESTRICT error = buffers.mine()->error;
    const uint8_t* RESTRICT on = buffers.mine()->on;
    T* RESTRICT out = static_cast<T*>(p.grad_prediction) + task * kRun;
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const T g = share * berhu_slope(error[i], c, inverse);
      out[i] = on[i] != 0 ? g : T(0);
    }
  }
  return 0;
}

}  // namespace

int berhu_loss(const BerhuLossParams& p) { return p.dtype == Dtype::kFloat64 ? forward<double>(p) : forward<float>(p); }

int berhu_loss_backward(const BerhuLossParams& p) {
  return p.dtype == Dtype::kFloat64 ? backward<double>(p) : backward<float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
