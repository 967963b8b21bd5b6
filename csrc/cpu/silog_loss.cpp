// The scale-invariant logarithmic loss and its gradient. Ground truth is sparse and the logarithm is what costs: the pixels
// of a run that count are brought together before it is taken. The backward takes it again: nothing is kept but two
// numbers for each image.
#include "mdepth/silog_loss.h"
#include "sparse.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

template <class T>
struct alignas(64) Buffers {
  uint8_t on[kRun];
  T prediction[kRun + kLanes], depth[kRun + kLanes], residual[kRun + kLanes];
};

struct Work {
  int64_t plane, runs, tasks;
  int threads;

  explicit Work(const SilogLossParams& p)
      : plane(p.height * p.width),
        runs((plane + kRun - 1) / kRun),
        tasks(p.batch * runs),
        threads(int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)))) {}

  int64_t at(int64_t task) const { return task / runs * plane + task % runs * kRun; }
  int length(int64_t task) const { return int(std::min<int64_t>(kRun, plane - task % runs * kRun)); }
};

// Prediction, depth and residual of the pixels from `at` on that count, packed; how many.
template <class T>
int residuals(const SilogLossParams& p, int64_t at, int n, Buffers<T>& b) {
  const T *depth_from = static_cast<const T*>(p.depth) + at,
          *prediction_from = static_cast<const T*>(p.prediction) + at;
  mark(p, at, n, depth_from, b.on);
  const int count = pack(b.on, n, depth_from, b.depth);
  if (!count) return 0;  // the sky of a LiDAR frame
  pack(b.on, n, prediction_from, b.prediction);
  const T *RESTRICT prediction = b.prediction, *RESTRICT depth = b.depth;
  T* RESTRICT residual = b.residual;
  if (p.log_prediction) {
#pragma omp simd
    for (int i = 0; i < count; ++i) residual[i] = silog_residual(prediction[i], depth[i], true);
  } else {
#pragma omp simd
    for (int i = 0; i < count; ++i) residual[i] = silog_residual(prediction[i], depth[i], false);
  }
  return count;
}

template <class T>
int forward(const SilogLossParams& p) {
  const Work work(p);
  PerThread<Buffers<T>> buffers(work.threads);
  PerThread<double> partial(1, work.tasks * kSilogSums), images(1, p.batch * kSilogSums);
  if (!buffers || !partial || !images) return 1;
#pragma omp parallel for schedule(dynamic, 4) num_threads(work.threads)
  for (int64_t task = 0; task < work.tasks; ++task) {
    Buffers<T>& b = *buffers.mine();
    const int count = residuals(p, work.at(task), work.length(task), b);
    const T* RESTRICT residual = b.residual;
    double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum, squares)
    for (int i = 0; i < count; ++i) {
      const double d = double(residual[i]);
      sum += d;
      squares += d * d;
    }
    double* sums = partial.all() + task * kSilogSums;
    sums[kSilogCount] = double(count);
    sums[kSilogSum] = sum;
    sums[kSilogSquares] = squares;
  }
  for (int64_t task = 0; task < work.tasks; ++task)
    for (int j = 0; j < kSilogSums; ++j)
      images.all()[task / work.runs * kSilogSums + j] += partial.all()[task * kSilogSums + j];
  silog_finish(p, images.all(), p.loss, p.coefficients);
  return 0;
}

template <class T>
int backward(const SilogLossParams& p) {
  const Work work(p);
  PerThread<Buffers<T>> buffers(work.threads);
  if (!buffers) return 1;
  const double grad = double(*static_cast<const T*>(p.grad));
#pragma omp parallel for schedule(dynamic, 4) num_threads(work.threads)
  for (int64_t task = 0; task < work.tasks; ++task) {
    Buffers<T>& b = *buffers.mine();
    const int64_t at = work.at(task);
    const int n = work.length(task), count = residuals(p, at, n, b);
    T* out = static_cast<T*>(p.grad_prediction) + at;
    if (!count) {
      std::memset(out, 0, sizeof(T) * size_t(n));
      continue;
    }
    const double* coefficients = p.coefficients + task / work.runs * 2;
    const T slope = T(grad * coefficients[0]), shift = T(grad * coefficients[1]);
    const T* RESTRICT prediction = b.prediction;
    T* RESTRICT residual = b.residual;
    if (p.log_prediction) {
#pragma omp simd
      for (int i = 0; i < count; ++i) residual[i] = silog_gradient(residual[i], prediction[i], slope, shift, true);
    } else {
#pragma omp simd
      for (int i = 0; i < count; ++i) residual[i] = silog_gradient(residual[i], prediction[i], slope, shift, false);
    }
    unpack(b.on, n, b.residual, out);
  }
  return 0;
}

}  // namespace

int silog_loss(const SilogLossParams& p) { return p.dtype == Dtype::kFloat64 ? forward<double>(p) : forward<float>(p); }

int silog_loss_backward(const SilogLossParams& p) {
  return p.dtype == Dtype::kFloat64 ? backward<double>(p) : backward<float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
