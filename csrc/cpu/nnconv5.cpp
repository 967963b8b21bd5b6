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

// Of a row with its border, to which whole vectors are read.
template <class T>
int64_t padded_width(int64_t width) {
  return (width + Simd<T>::kLength - 1) / Simd<T>::kLength * Simd<T>::kLength + std::max(Simd<T>::kLength, 2 * kPad);
}

template <class T>
MDEPTH_HD Vector<T> scaled_relu(Vector<T> v, T scale, T shift) {
  v = v * scale + shift;
  return v < T(0) ? Vector<T>{} : v;  // a NaN passes
}

// sums[m][j] = sum over i < n of rows[m][i] * panel[i * stride + j], for the j of kCount vectors.
template <class T, int kCount>
void multiply(const T* panel, int64_t stride, const T* const* rows, int64_t n, T (*sums)[Simd<T>::kPanel]) {
  using V = Simd<T>;
  Vector<T> sum[kBlock][kCount] = {};
  for (int64_t i = 0; i < n; ++i, panel += stride) {
    Vector<T> v[kCount];
#pragma GCC unroll 3
    for (int j = 0; j < kCount; ++j) v[j] = load(panel + j * V::kLength);
#pragma GCC unroll 8
    for (int m = 0; m < kBlock; ++m) {
#pragma GCC unroll 3
      for (int j = 0; j < kCount; ++j) sum[m][j] += v[j] * rows[m][i];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kBlock; ++m)
#pragma GCC unroll 3
    for (int j = 0; j < kCount; ++j) store(sums[m] + j * V::kLength, sum[m][j]);
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
    stride = int(padded_width<T>(p.width));
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
        multiply<T, 3>(activations + first, pixel_stride, weight, p.channels, sums);
      else if (n > V::kLength)
        multiply<T, 2>(activations + first, pixel_stride, weight, p.channels, sums);
      else
        multiply<T, 1>(activations + first, pixel_stride, weight, p.channels, sums);
      for (int m = 0; m < block; ++m) finish(b, o + m, y0 + first / width, first % width, n, sums[m]);
    }
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

// The same product for the gradient of the pointwise weights: a panel of input channels, turned so that a pixel's stand
// side by side, times the gradients of a group of output channels, a run of pixels at a time.
constexpr int kRun = 128, kGroup = 64;

template <class T>
struct alignas(64) GradientBuffers {
  T panel[kRun * Simd<T>::kPanel];
  double total[kGroup][Simd<T>::kPanel];
};

template <class T>
void pointwise_weight_gradient(const NnConv5WeightGradientsParams& p, int64_t o0, int64_t c0,
                               GradientBuffers<T>& buffers) {
  constexpr int kPanel = Simd<T>::kPanel;
  const int columns = int(std::min<int64_t>(kPanel, p.channels - c0));
  const int64_t o1 = std::min(o0 + kGroup, p.out_channels), pixels = p.height * p.width;
  std::memset(&buffers, 0, sizeof buffers);
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t begin = 0; begin < pixels; begin += kRun) {
      const int n = int(std::min<int64_t>(kRun, pixels - begin));
      for (int j = 0; j < columns; ++j) {
        const T* from = static_cast<const T*>(p.active) + (b * p.channels + c0 + j) * pixels + begin;
        for (int i = 0; i < n; ++i) buffers.panel[i * kPanel + j] = from[i];
      }
      for (int64_t o = o0; o < o1; o += kBlock) {
        const T* rows[kBlock];  // past the last channel: the last one again, and dropped
        for (int m = 0; m < kBlock; ++m)
          rows[m] = static_cast<const T*>(p.grad_pointwise) + begin +
                    (b * p.out_channels + std::min(o + m, o1 - 1)) * pixels;
        T sums[kBlock][kPanel];
        multiply<T, kVectors>(buffers.panel, kPanel, rows, n, sums);
        for (int m = 0; m < std::min<int64_t>(kBlock, o1 - o); ++m) {
          double* RESTRICT total = buffers.total[o - o0 + m];
          const T* RESTRICT sum = sums[m];
#pragma omp simd
          for (int j = 0; j < kPanel; ++j) total[j] += double(sum[j]);
        }
      }
    }
  for (int64_t o = o0; o < o1; ++o)
    for (int j = 0; j < columns; ++j)
      static_cast<T*>(p.grad_pw_weight)[o * p.channels + c0 + j] = T(buffers.total[o - o0][j]);
}

// Gradient of the depthwise weights of one channel. Rows outside the image are 0, as is what `input` and `grad` hold
// beside them.
constexpr int kGradientRows = 32;

template <class T>
void depthwise_weight_gradient(const NnConv5WeightGradientsParams& p, int64_t c, int64_t stride, T* input, T* grad) {
  using V = Simd<T>;
  const int width = int(p.width), height = int(p.height);
  double total[kTaps * kTaps] = {};
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t plane = (b * p.channels + c) * height * width;
    for (int y0 = 0; y0 < height; y0 += kGradientRows) {
      const int count = std::min(kGradientRows, height - y0);
      for (int r = 0; r < count + 2 * kPad; ++r) {
        const int y = y0 + r - kPad;
        if (y < 0 || y >= height)
          std::memset(input + r * stride + kPad, 0, sizeof(T) * size_t(width));
        else
          std::memcpy(input + r * stride + kPad, static_cast<const T*>(p.x) + plane + int64_t(y) * width,
                      sizeof(T) * size_t(width));
      }
      for (int r = 0; r < count; ++r)
        std::memcpy(grad + r * stride, static_cast<const T*>(p.grad_depthwise) + plane + int64_t(y0 + r) * width,
                    sizeof(T) * size_t(width));
      Vector<T> sum[kTaps * kTaps] = {};
      for (int r = 0; r < count; ++r)
        for (int x = 0; x < width; x += V::kLength) {
          const Vector<T> g = load(grad + r * stride + x);
#pragma GCC unroll 25
          for (int k = 0; k < kTaps * kTaps; ++k) sum[k] += g * load(input + (r + k / kTaps) * stride + x + k % kTaps);
        }
      for (int k = 0; k < kTaps * kTaps; ++k)
        for (int i = 0; i < V::kLength; ++i) total[k] += double(sum[k][i]);
    }
  }
  for (int k = 0; k < kTaps * kTaps; ++k) static_cast<T*>(p.grad_dw_weight)[c * kTaps * kTaps + k] = T(total[k]);
}

template <class T>
int weight_gradients(const NnConv5WeightGradientsParams& p) {
  const int threads = std::max(1, p.threads);
  if (p.grad_pw_weight) {
    const int64_t groups = (p.out_channels + kGroup - 1) / kGroup;
    const int64_t panels = (p.channels + Simd<T>::kPanel - 1) / Simd<T>::kPanel;
    PerThread<GradientBuffers<T>> buffers(threads);
    if (!buffers) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < groups * panels; ++task)
      pointwise_weight_gradient(p, task % groups * kGroup, task / groups * Simd<T>::kPanel, *buffers.mine());
  }
  if (p.grad_dw_weight) {
    const int64_t stride = padded_width<T>(p.width);
    PerThread<T> inputs(threads, (kGradientRows + 2 * kPad) * stride), grads(threads, kGradientRows * stride);
    if (!inputs || !grads) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t c = 0; c < p.channels; ++c) depthwise_weight_gradient(p, c, stride, inputs.mine(), grads.mine());
  }
  return 0;
}

}  // namespace

int nnconv5_weight_gradients(const NnConv5WeightGradientsParams& p) {
  return p.dtype == Dtype::kFloat64 ? weight_gradients<double>(p) : weight_gradients<float>(p);
}

int nnconv5(const NnConv5Params& p) { return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p); }

}  // namespace MDEPTH_ISA
}  // namespace mdepth
