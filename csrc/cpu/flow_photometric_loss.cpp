// The robust photometric loss of optical flow and its gradient in one pass: blocks of pixels are sampled, compared and
// differentiated in the first-level cache.
#include "mdepth/flow_photometric_loss.h"
#include "sampling.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

template <class T>
struct alignas(64) Block : Taps<T> {
  T distance[kBlock], gu[kBlock], gv[kBlock];  // sum over the channels of |target - warped|, its derivatives
  T weight[kBlock];
  int counts[kBlock];
};

// Starts a block: which pixels count and how much, those that the flow leads into the image and whose mask is not 0. Poison stays where
// the mask is not 0.
template <class T>
void weigh(const T* mask, int y, int x0, int n, T right, T bottom, Block<T>& k) {
  const T row = T(y);
  if (mask)
    std::memcpy(k.weight, mask, sizeof(T) * size_t(n));
  else
    std::fill(k.weight, k.weight + n, T(1));
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const T u = T(x0 + i) + k.shift_u[i], v = row + k.shift_v[i];
    const bool inside = (k.seen[i] != 0) & (u >= T(0)) & (u <= right) & (v >= T(0)) & (v <= bottom);
    const bool on = k.weight[i] != T(0);
    k.counts[i] = inside & on;
    k.distance[i] = k.gu[i] = k.gv[i] = T(0);
    k.poison[i] = on ? k.poison[i] : T(0);
  }
}

// Adds a channel.
template <bool kGrad, class T>
void compare(const T* RESTRICT target, int n, Block<T>& k) {
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const T wanted = target[i];
    const Sample<T> s = sample(k, i);
    const T difference = wanted - s.value;
    k.distance[i] += abs_of(difference);
    if (kGrad) {
      // As a number: of a sign_of() GCC makes eight selections.
      const T sign = (difference < T(0) ? T(1) : T(0)) - (difference > T(0) ? T(1) : T(0));
      k.gu[i] += sign * s.du;
      k.gv[i] += sign * s.dv;
    }
  }
}

template <class T>
NOINLINE double penalise(const Charbonnier<T>& c, int n, Block<T>& k, T* RESTRICT grad_u, T* RESTRICT grad_v) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) {
    const Penalty<T> rho = penalty(c, k.distance[i]);
    const T weight = k.weight[i];
    const bool on = k.counts[i] != 0;
    sum += double((on ? weight * rho.value : T(0)) + k.poison[i]);
    k.weight[i] = on ? weight * rho.slope : T(0);
  }
  if (!grad_u) return sum;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const bool on = k.counts[i] != 0;
    grad_u[i] = on ? k.weight[i] * k.gu[i] : T(0);
    grad_v[i] = on ? k.weight[i] * k.gv[i] : T(0);
  }
  return sum;
}

template <class T>
int run(const FlowPhotometricLossParams& p) {
  const RowTasks tasks(p);
  const int64_t plane = p.height * p.width;
  const int width = int(p.width), height = int(p.height);
  const Charbonnier<T> c = charbonnier_of<T>(p);
  PerThread<Block<T>> blocks(tasks.threads);
  PerThread<double> partial(1, tasks.count);
  if (!blocks || !partial) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(tasks.threads)
  for (int64_t task = 0; task < tasks.count; ++task)
    tasks.blocks(p, task, [&](int64_t b, int y, int x0, int n) {
      Block<T>& k = *blocks.mine();
      const int64_t at = int64_t(y) * width + x0;
      const T* flow = static_cast<const T*>(p.flow) + b * 2 * plane + at;
      follow<Padding::kBorder>(flow, flow + plane, y, x0, n, height, width, k);
      weigh(p.mask ? static_cast<const T*>(p.mask) + b * plane + at : nullptr, y, x0, n, T(width - 1), T(height - 1),
            k);
      for (int64_t channel = 0; channel < p.channels; ++channel) {
        const int64_t image = (b * p.channels + channel) * plane;
        const T* target = static_cast<const T*>(p.target) + image + at;
        load_pairs(static_cast<const T*>(p.source) + image, n, width, k);
        for (int i = 0; i < n; i += 64 / int(sizeof(T))) __builtin_prefetch(target + n + i);
        if (p.grad_flow)
          compare<true>(target, n, k);
        else
          compare<false>(target, n, k);
      }
      T* grad = p.grad_flow ? static_cast<T*>(p.grad_flow) + b * 2 * plane + at : nullptr;
      partial.all()[task] += penalise(c, n, k, grad, grad ? grad + plane : nullptr);
    });
  double loss = 0;
  for (int64_t task = 0; task < tasks.count; ++task) loss += partial.all()[task];
  *p.loss = loss / double(p.batch * plane);
  return 0;
}

}  // namespace

int flow_photometric_loss(const FlowPhotometricLossParams& p) {
  return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
