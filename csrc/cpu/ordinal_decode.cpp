// Depth and label from ordinal logits: one pass over the logits, plane by plane of a run of pixels, counts in L1.
#include <limits>

#include "mdepth/ordinal_decode.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

constexpr int kRun = 2048;

template <class T>
struct alignas(64) Buffers {
  int32_t count[kRun], lost[kRun];
};

template <class T>
int run(const OrdinalDecodeParams& p) {
  const int64_t plane = p.height * p.width, runs = (plane + kRun - 1) / kRun, tasks = p.batch * runs;
  const int bins = int(p.bins);
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, tasks)));
  PerThread<Buffers<T>> buffers(threads);
  PerThread<T> centre(1, bins);
  if (!buffers || !centre) return 1;
  const T* thresholds = static_cast<const T*>(p.thresholds);
  for (int k = 0; k < bins; ++k) centre.all()[k] = (thresholds[k] + thresholds[k + 1]) / T(2);

#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t b = task / runs, begin = task % runs * kRun;
    const int n = int(std::min<int64_t>(kRun, plane - begin));
    const T* logits = static_cast<const T*>(p.logits) + 2 * b * p.bins * plane + begin;
    int32_t *RESTRICT count = buffers.mine()->count, *RESTRICT lost = buffers.mine()->lost;
    std::memset(count, 0, sizeof(int32_t) * size_t(n));
    std::memset(lost, 0, sizeof(int32_t) * size_t(n));
    for (int k = 0; k < bins; ++k, logits += 2 * plane) {
      const T *RESTRICT not_beyond = logits, *RESTRICT beyond = logits + plane;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        count[i] += beyond[i] > not_beyond[i] ? 1 : 0;
        lost[i] |= beyond[i] > not_beyond[i] || beyond[i] <= not_beyond[i] ? 0 : 1;  // a NaN compares with nothing
      }
    }
    T* depth = static_cast<T*>(p.depth) + b * plane + begin;
    int64_t* label = p.label + b * plane + begin;
    for (int i = 0; i < n; ++i) {
      label[i] = count[i];
      depth[i] = lost[i] ? std::numeric_limits<T>::quiet_NaN() : centre.all()[std::min(count[i], bins - 1)];
    }
  }
  return 0;
}

}  // namespace

int ordinal_decode(const OrdinalDecodeParams& p) { return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p); }

}  // namespace MDEPTH_ISA
}  // namespace mdepth
