// One decoder stage of FastDepth, in the layout of its input. Pixel by pixel (channels_last): conv_block.h. Plane by plane,
// here: the depthwise 5x5 of a strip of rows goes to memory that fits the second-level cache; the pointwise product
// reads it there, all sums of a block of output channels times a panel of pixels in registers, and each finished pixel
// goes out as its 2x2 copies, with the skip added.
#include <limits>

#include "conv_block.h"
#include "mdepth/nnconv5.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kBlock = 8;  // 8 x 3 sums, 3 pixels and 1 weight: 28 of 32 registers
#else
constexpr int kBlock = 4;  // 4 x 3 sums, 3 pixels and 1 weight: 16 of 16 registers
#endif
constexpr int kTaps = 5, kPad = 2, kRowsAtOnce = 4;

// Of a row with its border, to which whole vectors are read.
template <class T>
int64_t padded_width(int64_t width) {
  return (width + Simd<T>::kLength - 1) / Simd<T>::kLength * Simd<T>::kLength + std::max(Simd<T>::kLength, 2 * kPad);
}

template <class T>
struct Stage {
  static constexpr int L = Simd<T>::kLength;
  static constexpr T kNoCap = std::numeric_limits<T>::infinity();
  const NnConv5Params& p;
  const int width, height;
  int strips, rows;      // strips of an image, rows of the largest
  int stride;            // of a padded input row
  int64_t pixel_stride;  // from a channel of the activations to the next

  Stage(const NnConv5Params& params, int threads) : p(params), width(int(p.width)), height(int(p.height)) {
    const int64_t fit = kOwnBytes / int64_t(sizeof(T)) / (p.channels * p.width) / kRowsAtOnce * kRowsAtOnce;
    strips = int((height + std::max<int64_t>(fit, kRowsAtOnce) - 1) / std::max<int64_t>(fit, kRowsAtOnce));
    if (strips > 1) strips = std::min(height, (strips + threads - 1) / threads * threads);
    rows = (height + strips - 1) / strips;
    stride = int(padded_width<T>(p.width));
    // Room for rows and a vector too many; an odd number of vectors, or channels would fall into the same cache sets.
    pixel_stride = (int64_t(padded_rows()) * width + kVectors * L) / (2 * L) * (2 * L) + L;
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
      for (int x = (width - 1) / L * L; x >= 0; x -= L) {
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
          store(out + (y0 + r) * width + x, clamped<T>(sum[r] * scale + shift, kNoCap));
      }
  }

  // Output channels o..o + kBlock of a strip.
  void pointwise(int64_t b, int strip, int64_t o, const T* activations) const {
    const int y0 = first_row(strip), pixels = (first_row(strip + 1) - y0) * width;
    const T* weight[kBlock];  // past the last channel: the last one again, and dropped
    for (int m = 0; m < kBlock; ++m)
      weight[m] = static_cast<const T*>(p.pw_weight) + std::min(o + m, p.out_channels - 1) * p.channels;
    const int vectors = (pixels + L - 1) / L, panels = (vectors + kVectors - 1) / kVectors;
    for (int k = 0; k < panels; ++k) {
      const int first = vectors * k / panels, count = vectors * (k + 1) / panels - first;
      if (count == 3) panel<3>(b, o, y0, first * L, pixels, weight, activations);
      if (count == 2) panel<2>(b, o, y0, first * L, pixels, weight, activations);
      if (count == 1) panel<1>(b, o, y0, first * L, pixels, weight, activations);
    }
  }

  template <int kCount>
  void panel(int64_t b, int64_t o, int y0, int first, int pixels, const T* const* weight, const T* activations) const {
    Vector<T> sums[kBlock][kCount];
    multiply<T, kBlock, kCount>(activations + first, pixel_stride, weight, p.channels, sums);
    T values[kBlock][kCount * L];  // or the compiler would write out all that follows for each
#pragma GCC unroll 8
    for (int m = 0; m < kBlock; ++m)
#pragma GCC unroll 3
      for (int j = 0; j < kCount; ++j) store(values[m] + j * L, sums[m][j]);
    const int count = std::min(kCount * L, pixels - first);
    for (int m = 0; m < std::min<int64_t>(kBlock, p.out_channels - o); ++m)
      finish(b, o + m, y0 + first / width, first % width, count, values[m]);
  }

  // `n` pixels of an output plane from (y, x) on: scale, shift, ReLU, doubled both ways, plus skip.
  void finish(int64_t b, int64_t o, int y, int x, int n, const T* sums) const {
    const T scale = static_cast<const T*>(p.pw_scale)[o], shift = static_cast<const T*>(p.pw_shift)[o];
    const int64_t plane = (b * p.out_channels + o) * height;
    for (int done = 0; done < n; done += L) {
      Vector<T> low = clamped<T>(load(sums + done) * scale + shift, kNoCap), high = low;
      interleave<T>(low, high, std::make_index_sequence<L>{});
      int64_t at = 2 * (2 * (plane + y) * width + x);
      if (done + L <= n && x + L <= width) {
        put(at, low);
        put(at + L, high);
        put(at + 2 * width, low);
        put(at + 2 * width + L, high);
        x += L;
      } else {
        T doubled[2 * L];
        store(doubled, low);
        store(doubled + L, high);
        for (int begin = 0, end; begin < std::min(L, n - done); begin = end) {  // row by row
          if (x == width) x = 0, ++y;
          end = std::min({begin + width - x, L, n - done});
          at = 2 * (2 * (plane + y) * width + x);
          put_part(at, doubled + 2 * begin, 2 * (end - begin));
          put_part(at + 2 * width, doubled + 2 * begin, 2 * (end - begin));
          x += end - begin;
        }
      }
      if (x == width) x = 0, ++y;
    }
  }

  void put_part(int64_t at, const T* RESTRICT from, int n) const {
    T* RESTRICT out = static_cast<T*>(p.out) + at;
    const T* RESTRICT skip = static_cast<const T*>(p.skip) + at;
    if (p.skip)
      for (int i = 0; i < n; ++i) out[i] = from[i] + skip[i];
    else
      for (int i = 0; i < n; ++i) out[i] = from[i];
  }

  ALWAYS_INLINE void put(int64_t at, Vector<T> value) const {
    store(static_cast<T*>(p.out) + at, p.skip ? value + load(static_cast<const T*>(p.skip) + at) : value);
  }
};

template <class T>
int run_planes(const NnConv5Params& p) {
  const int threads = std::max(1, p.threads);
  const Stage<T> stage(p, threads);
  const int64_t strips = p.batch * stage.strips, padded = int64_t(stage.padded_rows()) * stage.stride;
  const int64_t blocks = (p.out_channels + kBlock - 1) / kBlock, activations = p.channels * stage.pixel_stride;
  // Many strips: a thread takes them one by one. Few: all threads share the channels of each.
  const bool shared = strips < threads;
  Scratch<T> inputs(threads * padded), strip_memory((shared ? 1 : threads) * activations);
  if (!inputs || !strip_memory) return 1;
  if (!shared) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t k = 0; k < strips; ++k) {
      const int64_t b = k / stage.strips;
      const int strip = int(k % stage.strips);
      T* mine = strip_memory.get() + thread_index() * activations;
      stage.depthwise(b, strip, 0, p.channels, inputs.get() + thread_index() * padded, mine);
      for (int64_t o = 0; o < blocks; ++o) stage.pointwise(b, strip, o * kBlock, mine);
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
        stage.depthwise(b, strip, p.channels * t / threads, p.channels * (t + 1) / threads,
                        inputs.get() + thread_index() * padded, strip_memory.get());
#pragma omp for schedule(static)
      for (int64_t o = 0; o < blocks; ++o) stage.pointwise(b, strip, o * kBlock, strip_memory.get());
    }
  }
  return 0;
}

template <class T>
int run(const NnConv5Params& p) {
  if (!p.channels_last) return run_planes<T>(p);
  ConvBlock<T> block{};
  block.threads = p.threads;
  block.rows = Rows::kDepthwise;
  block.batch = p.batch;
  block.channels = p.channels;
  block.out_channels = p.out_channels;
  block.height = p.height;
  block.width = p.width;
  block.kernel = kTaps;
  block.stride = 1;
  block.doubled = true;
  block.cap = std::numeric_limits<T>::infinity();
  block.x = static_cast<const T*>(p.x);
  block.dw_weight = static_cast<const T*>(p.dw_weight);
  block.dw_scale = static_cast<const T*>(p.dw_scale);
  block.dw_shift = static_cast<const T*>(p.dw_shift);
  block.weight = static_cast<const T*>(p.pw_weight);
  block.scale = static_cast<const T*>(p.pw_scale);
  block.shift = static_cast<const T*>(p.pw_shift);
  block.skip = static_cast<const T*>(p.skip);
  block.out = static_cast<T*>(p.out);
  return ChannelsLast<T>(block).run();
}

// The same product for the gradient of the pointwise weights: a panel of input channels, turned so that a pixel's stand
// side by side, times the gradients of a group of output channels, a run of pixels at a time.
constexpr int kRun = 128, kGroup = 64;

template <class T>
constexpr int kPanel = kVectors * Simd<T>::kLength;

template <class T>
struct alignas(64) GradientBuffers {
  T panel[kRun * kPanel<T>];
  double total[kGroup][kPanel<T>];
};

template <class T>
void pointwise_weight_gradient(const NnConv5WeightGradientsParams& p, int64_t o0, int64_t c0,
                               GradientBuffers<T>& buffers) {
  constexpr int L = Simd<T>::kLength;
  const int columns = int(std::min<int64_t>(kPanel<T>, p.channels - c0));
  const int64_t o1 = std::min(o0 + kGroup, p.out_channels), pixels = p.height * p.width;
  std::memset(&buffers, 0, sizeof buffers);
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t begin = 0; begin < pixels; begin += kRun) {
      const int n = int(std::min<int64_t>(kRun, pixels - begin));
      for (int j = 0; j < columns; ++j) {
        const T* from = static_cast<const T*>(p.active) + (b * p.channels + c0 + j) * pixels + begin;
        for (int i = 0; i < n; ++i) buffers.panel[i * kPanel<T> + j] = from[i];
      }
      for (int64_t o = o0; o < o1; o += kBlock) {
        const T* rows[kBlock];  // past the last channel: the last one again, and dropped
        for (int m = 0; m < kBlock; ++m)
          rows[m] =
              static_cast<const T*>(p.grad_pointwise) + begin + (b * p.out_channels + std::min(o + m, o1 - 1)) * pixels;
        Vector<T> sums[kBlock][kVectors];
        multiply<T, kBlock, kVectors>(buffers.panel, kPanel<T>, rows, n, sums);
        for (int m = 0; m < std::min<int64_t>(kBlock, o1 - o); ++m) {
          double* RESTRICT total = buffers.total[o - o0 + m];
          T sum[kPanel<T>];
          for (int j = 0; j < kVectors; ++j) store(sum + j * L, sums[m][j]);
#pragma omp simd
          for (int j = 0; j < kPanel<T>; ++j) total[j] += double(sum[j]);
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
    const int64_t panels = (p.channels + kPanel<T> - 1) / kPanel<T>;
    PerThread<GradientBuffers<T>> buffers(threads);
    if (!buffers) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < groups * panels; ++task)
      pointwise_weight_gradient(p, task % groups * kGroup, task / groups * kPanel<T>, *buffers.mine());
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
