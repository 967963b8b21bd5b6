// Depth of a disparity map at another size. Forward: a row of the map is widened once, and two of them make each row of
// depth. Backward: a row of the map gathers what reads it, first the rows of the gradient, then along the row.
#include "mdepth/disparity_to_depth.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

constexpr int kRowsPerTask = 32;     // of depth
constexpr int kGradRowsPerTask = 4;  // of the map

template <class T>
void widen(const T* RESTRICT row, const int* RESTRICT first, const int* RESTRICT second, const T* RESTRICT w_first,
           const T* RESTRICT w_second, int n, T* RESTRICT wide) {
#pragma omp simd
  for (int i = 0; i < n; ++i) wide[i] = w_first[i] * row[first[i]] + w_second[i] * row[second[i]];
}

template <class T>
int run(const DisparityToDepthParams& p) {
  const int in_height = int(p.map_height), in_width = int(p.map_width), height = int(p.height), width = int(p.width);
  const bool resized = in_height != height || in_width != width;
  const int64_t chunks = (p.height + kRowsPerTask - 1) / kRowsPerTask, tasks = p.batch * chunks;
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)));
  const T far = T(inverse_depth_at_0(p)), range = T(inverse_depth_range(p));
  Scratch<int> indices(2 * p.width);
  Scratch<T> weights(2 * p.width);
  PerThread<T> rows(threads, 2 * (p.width + kLead));
  if (!indices || !weights || !rows) return 1;
  for (int x = 0; x < width; ++x) {
    const ResizeTaps<T> t = resize_taps<T>(x, in_width, width);
    indices.get()[x] = t.first;
    indices.get()[width + x] = t.second;
    weights.get()[x] = t.w_first;
    weights.get()[width + x] = t.w_second;
  }

#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t b = task / chunks;
    const int y0 = int(task % chunks) * kRowsPerTask, y1 = std::min(y0 + kRowsPerTask, height);
    const T* disparity = static_cast<const T*>(p.disparity) + b * p.map_height * p.map_width;
    T* depth = static_cast<T*>(p.depth) + b * p.height * p.width;
    int held[2] = {-1, -1};
    // Row y of the map at the width of the result; of two rows below each other each has a place of its own.
    const auto wide_row = [&](int y) -> const T* {
      T* wide = rows.mine() + (y % 2) * (p.width + kLead);
      if (held[y % 2] != y)
        widen(disparity + int64_t(y) * in_width, indices.get(), indices.get() + width, weights.get(),
              weights.get() + width, width, wide);
      held[y % 2] = y;
      return wide;
    };
    for (int y = y0; y < y1; ++y) {
      T* RESTRICT out = depth + int64_t(y) * width;
      if (!resized) {
        const T* RESTRICT row = disparity + int64_t(y) * in_width;
#pragma omp simd
        for (int i = 0; i < width; ++i) out[i] = T(1) / (far + range * row[i]);
        continue;
      }
      const ResizeTaps<T> t = resize_taps<T>(y, in_height, height);
      const T *RESTRICT above = wide_row(t.first), *RESTRICT below = wide_row(t.second);
      const T w_above = t.w_first, w_below = t.w_second;
#pragma omp simd
      for (int i = 0; i < width; ++i) out[i] = T(1) / (far + range * (w_above * above[i] + w_below * below[i]));
    }
  }
  return 0;
}

// What reads each column of the map: the k-th reader of column i, and its weight, at [k * columns + i]. Who has fewer
// readers than others has the column behind the last, which holds 0, for the rest.
template <class T>
struct ColumnReaders {
  explicit ColumnReaders(const DisparityToDepthParams& p)
      : most(most_readers(p.map_width, p.width)), at(most * p.map_width), weight(most * p.map_width) {
    if (!at || !weight) return;
    for (int64_t i = 0; i < p.map_width; ++i) {
      const ResizeReaders r = resize_readers(i, p.map_width, p.width);
      for (int64_t k = 0; k < most; ++k) {
        const bool reads = r.begin + k < r.end;
        at.get()[k * p.map_width + i] = reads ? int(r.begin + k) : int(p.width);
        weight.get()[k * p.map_width + i] = reads ? resize_weight<T>(r.begin + k, i, p.map_width, p.width) : T(0);
      }
    }
  }

  static int64_t most_readers(int64_t in, int64_t out) {
    int64_t most = 0;
    for (int64_t i = 0; i < in; ++i) {
      const ResizeReaders r = resize_readers(i, in, out);
      most = std::max<int64_t>(most, r.end - r.begin);
    }
    return most;
  }

  int64_t most;
  Scratch<int> at;
  Scratch<T> weight;
};

template <class T>
int run_backward(const DisparityToDepthParams& p) {
  const int in_width = int(p.map_width), width = int(p.width);
  const bool same_width = in_width == width;
  const int64_t chunks = (p.map_height + kGradRowsPerTask - 1) / kGradRowsPerTask, tasks = p.batch * chunks;
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)));
  const T factor = T(-inverse_depth_range(p));
  ColumnReaders<T> readers(p);
  PerThread<T> rows(threads, p.width + kLead);
  if (!readers.at || !readers.weight || !rows) return 1;

#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t b = task / chunks;
    const int y0 = int(task % chunks) * kGradRowsPerTask;
    const int y1 = int(std::min<int64_t>(y0 + kGradRowsPerTask, p.map_height));
    const T* depth = static_cast<const T*>(p.depth) + b * p.height * p.width;
    const T* grad = static_cast<const T*>(p.grad) + b * p.height * p.width;
    for (int y = y0; y < y1; ++y) {
      T* RESTRICT out = static_cast<T*>(p.grad_disparity) + (b * p.map_height + y) * p.map_width;
      T* RESTRICT sum = same_width ? out : rows.mine();  // of the rows that read this one
      const ResizeReaders r = resize_readers(y, p.map_height, p.height);
      std::memset(sum, 0, sizeof(T) * size_t(width));
      for (int reader = r.begin; reader < r.end; ++reader) {
        const T weight = factor * resize_weight<T>(reader, y, p.map_height, p.height);
        const T *RESTRICT d = depth + int64_t(reader) * width, *RESTRICT g = grad + int64_t(reader) * width;
#pragma omp simd
        for (int i = 0; i < width; ++i) sum[i] += weight * (g[i] * (d[i] * d[i]));
      }
      if (same_width) continue;
      sum[width] = T(0);
      std::memset(out, 0, sizeof(T) * size_t(in_width));
      for (int64_t k = 0; k < readers.most; ++k) {
        const int* RESTRICT at = readers.at.get() + k * in_width;
        const T* RESTRICT weight = readers.weight.get() + k * in_width;
#pragma omp simd
        for (int i = 0; i < in_width; ++i) out[i] += weight[i] * sum[at[i]];
      }
    }
  }
  return 0;
}

}  // namespace

int disparity_to_depth(const DisparityToDepthParams& p) {
  return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p);
}

int disparity_to_depth_backward(const DisparityToDepthParams& p) {
  return p.dtype == Dtype::kFloat64 ? run_backward<double>(p) : run_backward<float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
