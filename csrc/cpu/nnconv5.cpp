// One decoder stage of FastDepth. The depthwise 5x5 of a strip of rows goes to memory that fits the second-level cache;
// the pointwise product reads it there, all sums of a block of output channels times a panel of pixels in registers,
// and each finished pixel goes out as its 2x2 copies, with the skip added.
#include "mdepth/hd.h"
#include "mdepth/launch.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kBlock = 8;  // 8 x 3 sums, 3 pixels and 1 weight: 28 of 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kBlock = 4;  // 4 x 3 sums, 3 pixels and 1 weight: 16 of 16 registers
#else
constexpr int kVectorBytes = 16, kBlock = 4;
#endif
constexpr int kVectors = 3;
constexpr int kTaps = 5, kPad = 2, kRowsAtOnce = 4;
constexpr int64_t kStripBytes = 1 << 19;

template <class T>
struct Simd {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  static constexpr int kLength = kVectorBytes / int(sizeof(T));
  static constexpr int kPanel = kVectors * kLength;
};

template <class T>
using Vector = typename Simd<T>::Vector;

template <class T>
MDEPTH_HD Vector<T> load(const T* p) {
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
MDEPTH_HD void store(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

template <class T>
MDEPTH_HD Vector<T> scaled_relu(Vector<T> v, T scale, T shift) {
  v = v * scale + shift;
  return v < T(0) ? Vector<T>{} : v;  // a NaN passes
}

template <class T>
struct Stage {
  using V = Simd<T>;
  const NnConv5Params& p;
  const int width, height;
  int strips, rows;      // strips of an image, rows of the largest
  int stride;            // of a padded input row
  int64_t pixel_stride;  // from a channel of the activations to the next

  explicit Stage(const NnConv5Params& params) : p(params), width(int(p.width)), height(int(p.height)) {
    const int64_t fit = kStripBytes / int64_t(sizeof(T)) / (p.channels * p.width) / kRowsAtOnce * kRowsAtOnce;
    strips = int((height + std::max<int64_t>(fit, kRowsAtOnce) - 1) / std::max<int64_t>(fit, kRowsAtOnce));
    rows = (height + strips - 1) / strips;
    stride = (width + V::kLength - 1) / V::kLength * V::kLength + V::kLength;
    // Room for rows and a vector too many; an odd number of vectors, or channels would fall into the same cache sets.
    pixel_stride = (int64_t(padded_rows()) * width + V::kPanel) / (2 * V::kLength) * (2 * V::kLength) + V::kLength;
  }

  int padded_rows() const { return (rows + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce + 2 * kPad; }
  int first_row(int strip) const { return int(int64_t(height) * strip / strips); }

  // Channels first..last of a strip through the depthwise part. `padded` is one channel's input with its border; only
  // what lies in the image is written, so the border is 0 for every channel of the strip.
  void depthwise(int64_t b, int strip, int64_t first, int64_t last, T* padded, T* activations) const {
    const int y0 = first_row(strip), count = first_row(strip + 1) - y0;
    const int top = std::max(y0 - kPad, 0), bottom = std::min(y0 + count + kPad, height);
    std::memset(padded, 0, sizeof(T) * size_t(padded_rows()) * size_t(stride));
    for (int64_t c = first; c < last; ++c) {
      const T* plane = static_cast<const T*>(p.x) + (b * p.channels + c) * height * width;
      for (int y = top; y < bottom; ++y)
        std::memcpy(padded + (y - y0 + kPad) * stride + kPad, plane + int64_t(y) * width, sizeof(T) * size_t(width));
      filter(padded, count, static_cast<const T*>(p.dw_weight) + c * kTaps * kTaps,
             static_cast<const T*>(p.dw_scale)[c], static_cast<const T*>(p.dw_shift)[c],
             activations + c * pixel_stride);
    }
  }

  // One channel of a strip. Whole vectors and groups of rows are stored, from right to left and downwards: what goes
  // past the end of a row is written over by the rows below, which come later.
  void filter(const T* RESTRICT padded, int count, const T* RESTRICT weight, T scale, T shift, T* RESTRICT out) const {
    for (int y0 = 0; y0 < count; y0 += kRowsAtOnce)
      for (int x = (width - 1) / V::kLength * V::kLength; x >= 0; x -= V::kLength) {
        const T* in = padded + y0 * stride + x;
        Vector<T> sum[kRowsAtOnce] = {};
#pragma GCC unroll 8
        for (int y = 0; y < kRowsAtOnce + 2 * kPad; ++y)
#pragma GCC unroll 5
          for (int dx = 0; dx < kTaps; ++dx) {
            const Vector<T> v = load(in + y * stride + dx);
#pragma GCC unroll 4
            for (int r = 0; r < kRowsAtOnce; ++r)
              if (y - r >= 0 && y - r < kTaps) sum[r] += v * weight[(y - r) * kTaps + dx];
          }
#pragma GCC unroll 4
        for (int r = 0; r < kRowsAtOnce; ++r)
          store(out + (y0 + r) * width + x, scaled_relu<T>(sum[r], scale, shift));
      }
  }

  // Output channels o..o + kBlock of a strip.
  void pointwise(int64_t b, int strip, int64_t o, const T* activations) const {
    const int y0 = first_row(strip), pixels = (first_row(strip + 1) - y0) * width;
    const T* weight[kBlock];  // past the last channel: the last one again, and dropped
    for (int m = 0; m < kBlock; ++m)
      weight[m] = static_cast<const T*>(p.pw_weight) + std::min(o + m, p.out_channels - 1) * p.channels;
    const int block = int(std::min<int64_t>(kBlock, p.out_channels - o));
    for (int first = 0; first < pixels; first += V::kPanel) {
      const int n = std::min(pixels - first, V::kPanel);
      T sums[kBlock][V::kPanel];
      if (n > 2 * V::kLength)
        multiply<3>(activations + first, weight, sums);
      else if (n > V::kLength)
        multiply<2>(activations + first, weight, sums);
      else
        multiply<1>(activations + first, weight, sums);
      for (int m = 0; m < block; ++m) finish(b, o + m, y0 + first / width, first % width, n, sums[m]);
    }
  }

  template <int kCount>
  void multiply(const T* panel, const T* const* weight, T (*sums)[V::kPanel]) const {
    Vector<T> sum[kBlock][kCount] = {};
    const int64_t channels = p.channels;
    for (int64_t c = 0; c < channels; ++c, panel += pixel_stride) {
      Vector<T> v[kCount];
#pragma GCC unroll 3
      for (int j = 0; j < kCount; ++j) v[j] = load(panel + j * V::kLength);
#pragma GCC unroll 8
      for (int m = 0; m < kBlock; ++m) {
#pragma GCC unroll 3
        for (int j = 0; j < kCount; ++j) sum[m][j] += v[j] * weight[m][c];
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < kBlock; ++m)
#pragma GCC unroll 3
      for (int j = 0; j < kCount; ++j) store(sums[m] + j * V::kLength, sum[m][j]);
  }

  // `n` pixels of one output channel from (y, x) on: scale, shift, ReLU, doubled both ways, plus skip.
  void finish(int64_t b, int64_t o, int y, int x, int n, const T* sums) const {
    const T scale = static_cast<const T*>(p.pw_scale)[o], shift = static_cast<const T*>(p.pw_shift)[o];
    T doubled[2 * V::kPanel];
    for (int j = 0; j < V::kPanel; j += V::kLength) {
      T value[V::kLength];
      store(value, scaled_relu<T>(load(sums + j), scale, shift));
#pragma omp simd
      for (int i = 0; i < V::kLength; ++i) {
        doubled[2 * (j + i)] = value[i];
        doubled[2 * (j + i) + 1] = value[i];
      }
    }
    const int64_t plane = (b * p.out_channels + o) * 4 * height * width;
    for (const T* from = doubled; n > 0; ++y, x = 0) {
      const int count = std::min(n, width - x);
      for (int half = 0; half < 2; ++half) {
        const int64_t at = plane + 2 * ((2 * int64_t(y) + half) * width + x);
        T* RESTRICT out = static_cast<T*>(p.out) + at;
        if (p.skip) {
          const T* RESTRICT skip = static_cast<const T*>(p.skip) + at;
          for (int i = 0; i < 2 * count; ++i) out[i] = from[i] + skip[i];
        } else {
          std::memcpy(out, from, sizeof(T) * size_t(2 * count));
        }
      }
      from += 2 * count;
      n -= count;
    }
  }
};

template <class T>
int run(const NnConv5Params& p) {
  const Stage<T> stage(p);
  const int64_t strips = p.batch * stage.strips, padded = int64_t(stage.padded_rows()) * stage.stride;
  const int64_t blocks = (p.out_channels + kBlock - 1) / kBlock, activations = p.channels * stage.pixel_stride;
  const int threads = std::max(1, p.threads);
  // Many strips: a thread takes them one by one. Few: all threads share the channels of each.
  const bool shared = strips < threads;
  PerThread<T> inputs(threads, padded), strip_memory(shared ? 1 : threads, activations);
  if (!inputs || !strip_memory) return 1;
  if (!shared) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t k = 0; k < strips; ++k) {
      const int64_t b = k / stage.strips;
      const int strip = int(k % stage.strips);
      stage.depthwise(b, strip, 0, p.channels, inputs.mine(), strip_memory.mine());
      for (int64_t o = 0; o < blocks; ++o) stage.pointwise(b, strip, o * kBlock, strip_memory.mine());
    }
    return 0;
  }
  for (int64_t k = 0; k < strips; ++k) {
    const int64_t b = k / stage.strips;
    const int strip = int(k % stage.strips);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
      for (int t = 0; t < threads; ++t)
        stage.depthwise(b, strip, p.channels * t / threads, p.channels * (t + 1) / threads, inputs.mine(),
                        strip_memory.all());
#pragma omp for schedule(static)
      for (int64_t o = 0; o < blocks; ++o) stage.pointwise(b, strip, o * kBlock, strip_memory.all());
    }
  }
  return 0;
}

// kBlock output channels by kColumns input channels: dot products over a run of pixels of one image.
constexpr int kColumns = kVectors, kColumnsPerTask = 16 * kColumns;
constexpr int64_t kRun = 2048;

template <class T>
void dot_products(const T* const* left, const T* const* right, int64_t n, double (*total)[kColumns]) {
  using V = Simd<T>;
  Vector<T> sum[kBlock][kColumns] = {};
  int64_t i = 0;
  for (; i + V::kLength <= n; i += V::kLength) {
    Vector<T> v[kColumns];
#pragma GCC unroll 3
    for (int j = 0; j < kColumns; ++j) v[j] = load(right[j] + i);
#pragma GCC unroll 8
    for (int m = 0; m < kBlock; ++m) {
      const Vector<T> u = load(left[m] + i);
#pragma GCC unroll 3
      for (int j = 0; j < kColumns; ++j) sum[m][j] += u * v[j];
    }
  }
  T lanes[kBlock][kColumns][V::kLength];
  for (int m = 0; m < kBlock; ++m)
    for (int j = 0; j < kColumns; ++j) {
      store(lanes[m][j], sum[m][j]);
      double all = 0;
      for (int k = 0; k < V::kLength; ++k) all += double(lanes[m][j][k]);
      for (int64_t k = i; k < n; ++k) all += double(left[m][k]) * double(right[j][k]);
      total[m][j] += all;
    }
}

template <class T>
int weight_gradient(const NnConv5WeightGradientParams& p) {
  const int64_t blocks = (p.out_channels + kBlock - 1) / kBlock;
  const int64_t parts = (p.channels + kColumnsPerTask - 1) / kColumnsPerTask;
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(p.threads, blocks * parts)));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < blocks * parts; ++task) {
    const int64_t o0 = task % blocks * kBlock, first = task / blocks * kColumnsPerTask;
    double total[kColumnsPerTask / kColumns][kBlock][kColumns] = {};
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t begin = 0; begin < p.pixels; begin += kRun) {
        const int64_t n = std::min(kRun, p.pixels - begin);
        const T *left[kBlock], *right[kColumns];  // past the last channel: the last one again, and dropped
        for (int m = 0; m < kBlock; ++m)
          left[m] = static_cast<const T*>(p.grad) + begin +
                    (b * p.out_channels + std::min(o0 + m, p.out_channels - 1)) * p.pixels;
        for (int64_t c0 = first; c0 < std::min(first + kColumnsPerTask, p.channels); c0 += kColumns) {
          for (int j = 0; j < kColumns; ++j)
            right[j] = static_cast<const T*>(p.activations) + begin +
                       (b * p.channels + std::min(c0 + j, p.channels - 1)) * p.pixels;
          dot_products<T>(left, right, n, total[(c0 - first) / kColumns]);
        }
      }
    T* out = static_cast<T*>(p.grad_weight);
    for (int64_t o = o0; o < std::min(o0 + kBlock, p.out_channels); ++o)
      for (int64_t c = first; c < std::min(first + kColumnsPerTask, p.channels); ++c)
        out[o * p.channels + c] = T(total[(c - first) / kColumns][o - o0][(c - first) % kColumns]);
  }
  return 0;
}

}  // namespace

int nnconv5_weight_gradient(const NnConv5WeightGradientParams& p) {
  return p.dtype == Dtype::kFloat64 ? weight_gradient<double>(p) : weight_gradient<float>(p);
}

int nnconv5(const NnConv5Params& p) { return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p); }

}  // namespace MDEPTH_ISA
}  // namespace mdepth
