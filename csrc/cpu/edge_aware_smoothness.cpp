// Edge-aware first-order smoothness of the disparity. One pass over rows gives, per image, the mean, both weighted sums
// and the gradient of the un-normalised sum; a second, over the gradient alone, puts in the mean.
#include "mdepth/edge_aware_smoothness.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

constexpr int kRowsPerTask = 32;

enum Sum { kDisparity, kAlongX, kAlongY, kSums };

// weight[i] = exp(-mean_c |I(a + i) - I(b + i)|) for i in 0..n
template <class T>
void edge_weights(const EdgeAwareSmoothnessParams& p, int64_t b, int64_t a, int64_t other, int n, T* RESTRICT weight) {
  const int64_t plane = p.height * p.width;
  const T share = T(1.0 / double(p.channels));
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* image = static_cast<const T*>(p.image) + (b * p.channels + c) * plane;
    const T *RESTRICT one = image + a, *RESTRICT two = image + other;
    const bool first = c == 0;
#pragma omp simd
    for (int i = 0; i < n; ++i) weight[i] = (first ? T(0) : weight[i]) + abs_of(one[i] - two[i]) * share;
  }
#pragma omp simd
  for (int i = 0; i < n; ++i) weight[i] = exp_negative(weight[i]);
}

template <class T>
NOINLINE double sum_of(const T* RESTRICT values, int n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += double(values[i]);
  return sum;
}

template <class T>
NOINLINE double roughness(const T* RESTRICT weight, const T* RESTRICT one, const T* RESTRICT two, int n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += double(weight[i] * abs_of(one[i] - two[i]));
  return sum;
}

template <class T>
int run(const EdgeAwareSmoothnessParams& p) {
  const int64_t chunks = (p.height + kRowsPerTask - 1) / kRowsPerTask, tasks = p.batch * chunks;
  const int64_t plane = p.height * p.width;
  const int width = int(p.width);
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)));
  PerThread<T> rows(threads, 2 * (p.width + kLead));
  PerThread<double> partial(1, tasks * kSums), images(1, p.batch * 2);
  if (!rows || !partial || !images) return 1;
  const double share_x = 1.0 / double(p.batch * p.height * (p.width - 1));
  const double share_y = 1.0 / double(p.batch * (p.height - 1) * p.width);

#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t b = task / chunks;
    const int y0 = int(task % chunks) * kRowsPerTask, y1 = int(std::min<int64_t>(y0 + kRowsPerTask, p.height));
    const T* disparity = static_cast<const T*>(p.disparity) + b * plane;
    T* grad = p.grad_disparity ? static_cast<T*>(p.grad_disparity) + b * plane : nullptr;
    T* RESTRICT weight = rows.mine();
    double* sums = partial.all() + task * kSums;
    if (grad) std::memset(grad + int64_t(y0) * width, 0, sizeof(T) * size_t((y1 - y0) * int64_t(width)));
    // The edge above the first row belongs to the chunk before; only its gradient by this row is ours.
    for (int y = std::max(y0 - 1, 0); y < y1; ++y) {
      const int64_t at = int64_t(y) * width;
      const T* RESTRICT d = disparity + at;
      const bool owned = y >= y0;
      if (owned) {
        edge_weights(p, b, at, at + 1, width - 1, weight);
        sums[kDisparity] += sum_of(d, width);
        sums[kAlongX] += roughness(weight, d, d + 1, width - 1);
        if (grad) {
          T* RESTRICT g = grad + at;
          const T s = T(share_x);
#pragma omp simd
          for (int i = 0; i < width - 1; ++i) g[i] += s * weight[i] * sign_of(d[i] - d[i + 1]);
#pragma omp simd
          for (int i = 0; i < width - 1; ++i) g[i + 1] -= s * weight[i] * sign_of(d[i] - d[i + 1]);
        }
      }
      if (y + 1 >= p.height) continue;
      const T* RESTRICT below = d + width;
      edge_weights(p, b, at, at + width, width, weight);
      if (owned) sums[kAlongY] += roughness(weight, d, below, width);
      if (grad) {
        const T s = T(share_y);
        T *RESTRICT g = grad + at, *RESTRICT g_below = g + width;
        if (owned)
#pragma omp simd
          for (int i = 0; i < width; ++i) g[i] += s * weight[i] * sign_of(d[i] - below[i]);
        if (y + 1 < y1)
#pragma omp simd
          for (int i = 0; i < width; ++i) g_below[i] -= s * weight[i] * sign_of(d[i] - below[i]);
      }
    }
  }

  double loss = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    double total[kSums] = {0, 0, 0};
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int j = 0; j < kSums; ++j) total[j] += partial.all()[(b * chunks + chunk) * kSums + j];
    const double inverse = p.normalize ? 1.0 / (total[kDisparity] / double(plane) + kMeanEpsilon) : 1.0;
    const double rough = total[kAlongX] * share_x + total[kAlongY] * share_y;
    loss += std::fabs(inverse) * rough;
    // d|inverse| / d disparity = -|inverse| * inverse / (H W)
    images.all()[2 * b] = std::fabs(inverse);
    images.all()[2 * b + 1] = -std::fabs(inverse) * inverse * rough / double(plane);
  }
  p.loss[0] = loss;
  if (!p.grad_disparity || !p.normalize) return 0;

#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t b = task / chunks, y0 = task % chunks * kRowsPerTask,
                  y1 = std::min<int64_t>(y0 + kRowsPerTask, p.height);
    T* RESTRICT g = static_cast<T*>(p.grad_disparity) + b * plane + y0 * width;
    const T scale = T(images.all()[2 * b]), shift = T(images.all()[2 * b + 1]);
    const int64_t n = (y1 - y0) * width;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) g[i] = g[i] * scale + shift;
  }
  return 0;
}

}  // namespace

int edge_aware_smoothness(const EdgeAwareSmoothnessParams& p) {
  return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
