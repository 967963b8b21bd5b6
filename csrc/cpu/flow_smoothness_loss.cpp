// The robust smoothness of optical flow and its gradient in one pass over rows: a row's slopes along x and y, and those of
// the row above, give its gradient.
#include "mdepth/flow_smoothness_loss.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

constexpr int kRowsPerTask = 32;

// The buffers of a thread: the weights of a row's differences, and the derivatives by those to the right and below, of u
// and v; zeros before each.
template <class T>
struct Rows {
  static constexpr int kBuffers = 7;
  T* weight;
  T *x[2], *y[2], *above[2];

  static int64_t step(int64_t width) { return (width + 2 * kLead + kLanes - 1) / kLanes * kLanes; }

  Rows(T* memory, int64_t width) {
    T** buffers[] = {&weight, &x[0], &x[1], &y[0], &y[1], &above[0], &above[1]};
    for (int j = 0; j < kBuffers; ++j) *buffers[j] = memory + j * step(width) + kLead;
  }
};

// The mask of pixels joined with that of their neighbours.
template <class T>
void join(const T* RESTRICT one, const T* RESTRICT other, int n, T* RESTRICT weight) {
#pragma omp simd
  for (int i = 0; i < n; ++i) weight[i] = one[i] * other[i];
}

// The sum of the penalties of n differences, and their slopes.
template <bool kWeighted, class T>
NOINLINE double separate(const Charbonnier<T>& c, const T* RESTRICT weight, const T* RESTRICT one,
                         const T* RESTRICT other, int n, T* RESTRICT slope) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) {
    const T w = kWeighted ? weight[i] : T(1);
    const bool on = !kWeighted || w != T(0);
    const Penalty<T> rho = penalty(c, one[i] - other[i]);
    sum += double(on ? w * rho.value : T(0));
    slope[i] = on ? w * rho.slope : T(0);
  }
  return sum;
}

// The same of all four differences of a pixel together.
template <bool kWeighted, class T>
NOINLINE double joint(const Charbonnier<T>& c, const T* RESTRICT weight, const T* RESTRICT u, const T* RESTRICT v,
                      const T* RESTRICT u_below, const T* RESTRICT v_below, int n, T* RESTRICT ux, T* RESTRICT vx,
                      T* RESTRICT uy, T* RESTRICT vy) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) {
    const T w = kWeighted ? weight[i] : T(1);
    const bool on = !kWeighted || w != T(0);
    const T dux = u[i] - u[i + 1], dvx = v[i] - v[i + 1], duy = u[i] - u_below[i], dvy = v[i] - v_below[i];
    const Penalty<T> rho = penalty(c, abs_of(dux) + abs_of(dvx) + (abs_of(duy) + abs_of(dvy)));
    const T slope = on ? w * rho.slope : T(0);
    sum += double(on ? w * rho.value : T(0));
    ux[i] = slope * sign_of(dux);
    vx[i] = slope * sign_of(dvx);
    uy[i] = slope * sign_of(duy);
    vy[i] = slope * sign_of(dvy);
  }
  return sum;
}

template <class T>
void combine(T share, const T* RESTRICT x, const T* RESTRICT y, const T* RESTRICT above, int n, T* RESTRICT grad) {
#pragma omp simd
  for (int i = 0; i < n; ++i) grad[i] = share * ((x[i] - x[i - 1]) + (y[i] - above[i]));
}

template <class T>
struct Image {
  const FlowSmoothnessLossParams& p;
  const Charbonnier<T>& c;
  const T *flow, *mask;
  int width, height;

  // The penalties that belong to row y, and their slopes; of a row that is not `owned` only those along y are wanted.
  double row(int y, bool owned, Rows<T>& r) const {
    const int64_t plane = p.height * p.width, at = int64_t(y) * width;
    const bool last = y + 1 >= height;
    const T* f[2] = {flow + at, flow + plane + at};
    double sum = 0;
    if (p.form == SmoothnessForm::kJoint) {
      const int n = last ? 0 : width - 1;
      if (mask) {
        join(mask + at, mask + at + 1, n, r.weight);
        join_below(at, n, r.weight);
        sum = joint<true>(c, r.weight, f[0], f[1], f[0] + width, f[1] + width, n, r.x[0], r.x[1], r.y[0], r.y[1]);
      } else {
        sum = joint<false>(c, static_cast<const T*>(nullptr), f[0], f[1], f[0] + width, f[1] + width, n, r.x[0], r.x[1],
                           r.y[0], r.y[1]);
      }
      for (T* slope : {r.x[0], r.x[1], r.y[0], r.y[1]})
        for (int i = n; i < width; ++i) slope[i] = T(0);
      return sum;
    }
    if (owned) sum += along(f, 1, at, width - 1, r.x, r);
    sum += along(f, width, at, last ? 0 : width, r.y, r);
    return sum;
  }

 private:
  void join_below(int64_t at, int n, T* RESTRICT weight) const {
    const T* RESTRICT below = mask + at + width;
#pragma omp simd
    for (int i = 0; i < n; ++i) weight[i] *= below[i];
  }

  double along(const T* const (&f)[2], int64_t step, int64_t at, int n, T* const (&slope)[2], Rows<T>& r) const {
    double sum = 0;
    if (mask) join(mask + at, mask + at + step, n, r.weight);
    for (int j = 0; j < 2; ++j) {
      sum += mask ? separate<true>(c, r.weight, f[j], f[j] + step, n, slope[j])
                  : separate<false>(c, static_cast<const T*>(nullptr), f[j], f[j] + step, n, slope[j]);
      for (int i = n; i < width; ++i) slope[j][i] = T(0);
    }
    return sum;
  }
};

template <class T>
int run(const FlowSmoothnessLossParams& p) {
  const int64_t chunks = (p.height + kRowsPerTask - 1) / kRowsPerTask, tasks = p.batch * chunks;
  const int64_t plane = p.height * p.width;
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)));
  const double share = 1.0 / double(p.batch * plane);
  const Charbonnier<T> c = charbonnier_of<T>(p);
  PerThread<T> memory(threads, Rows<T>::kBuffers * Rows<T>::step(p.width));
  PerThread<double> partial(1, tasks);
  if (!memory || !partial) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t b = task / chunks;
    const int y0 = int(task % chunks) * kRowsPerTask, y1 = int(std::min<int64_t>(y0 + kRowsPerTask, p.height));
    const Image<T> image{p,
                         c,
                         static_cast<const T*>(p.flow) + b * 2 * plane,
                         p.mask ? static_cast<const T*>(p.mask) + b * plane : nullptr,
                         int(p.width),
                         int(p.height)};
    T* grad = p.grad_flow ? static_cast<T*>(p.grad_flow) + b * 2 * plane : nullptr;
    Rows<T> r(memory.mine(), p.width);
    // The differences from the row above belong to the chunk before; only their slopes are wanted here.
    if (grad && y0 > 0)
      image.row(y0 - 1, false, r);
    else
      for (T* slope : r.y) std::memset(slope, 0, sizeof(T) * size_t(p.width));
    double sum = 0;
    for (int y = y0; y < y1; ++y) {
      for (int j = 0; j < 2; ++j) std::swap(r.y[j], r.above[j]);
      sum += image.row(y, true, r);
      for (int j = 0; grad && j < 2; ++j)
        combine(T(share), r.x[j], r.y[j], r.above[j], int(p.width), grad + j * plane + int64_t(y) * p.width);
    }
    partial.all()[task] = sum;
  }
  double loss = 0;
  for (int64_t task = 0; task < tasks; ++task) loss += partial.all()[task];
  *p.loss = loss * share;
  return 0;
}

}  // namespace

int flow_smoothness_loss(const FlowSmoothnessLossParams& p) {
  return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
