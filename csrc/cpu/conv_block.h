// What `nnconv5` and `conv_stack` share: vectors, the small matrix product, and the whole of a block for activations that
// stand pixel by pixel (channels_last). A block is a product of a row of factors per pixel with the weights: the pixel
// itself, its depthwise convolution, or the patch around it. The rows of some lines of the image go to memory that fits
// the second-level cache; the product reads them there, all sums of a few pixels times a panel of output channels in
// registers, and each finished pixel is stored, once or as its 2x2 copies. A sum runs over the factors in ascending order
// whatever the lines, panels and threads, so the bits do not depend on them.
#pragma once
#include <type_traits>
#include <utility>

#include "mdepth/hd.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

#define ALWAYS_INLINE inline __attribute__((always_inline))

// Sums of a product are kPixels times at most kVectors of them, beside kVectors weights and a pixel, in 32 or 16 registers;
// those of the depthwise part are of kColumns pixels of kLines lines. Every map of a 224x224 image is a multiple of 7 wide.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kPixels = 7, kLines = 2;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kPixels = 4, kLines = 1;
#else
constexpr int kVectorBytes = 16, kPixels = 4, kLines = 1;
#endif
constexpr int kVectors = 3, kColumns = 7;
constexpr int64_t kOwnBytes = 1 << 18, kSharedBytes = 1 << 20;  // of the rows that a thread, all threads make at a time
constexpr int64_t kNearBytes = 1 << 15;                         // of weights that stay in the first-level cache

template <class T>
struct Simd {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Indices __attribute__((vector_size(kVectorBytes)));
  static constexpr int kLength = kVectorBytes / int(sizeof(T));
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

// The first n elements, the others 0.
template <class T>
MDEPTH_HD Vector<T> load_part(const T* p, int64_t n) {
  T all[Simd<T>::kLength] = {};
  for (int64_t i = 0; i < n; ++i) all[i] = p[i];
  return load(all);
}

// A NaN passes.
template <class T>
MDEPTH_HD Vector<T> clamped(Vector<T> v, T cap) {
  v = v < T(0) ? Vector<T>{} : v;
  return v > cap ? Vector<T>{} + cap : v;
}

// Memory that is brought near while a product runs: `step` bytes on with each of its factors.
struct Ahead {
  const char* from;
  int64_t step;
};

// sums[m][j] = sum over i < n of rows[m][i] * panel[i * stride + j], for the j of kCount vectors.
template <class T, int kRows, int kCount, bool kAhead = false>
MDEPTH_HD void multiply(const T* panel, int64_t stride, const T* const* rows, int64_t n,
                        Vector<T> (&sums)[kRows][kCount], Ahead ahead = {nullptr, 0}) {
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 3
    for (int j = 0; j < kCount; ++j) sums[m][j] = Vector<T>{};
  for (int64_t i = 0; i < n; ++i, panel += stride) {
    if (kAhead) __builtin_prefetch(ahead.from + i * ahead.step, 0, 2);
    Vector<T> v[kCount];
#pragma GCC unroll 3
    for (int j = 0; j < kCount; ++j) v[j] = load(panel + j * Simd<T>::kLength);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const T factor = rows[m][i];
#pragma GCC unroll 3
      for (int j = 0; j < kCount; ++j) sums[m][j] += v[j] * factor;
    }
  }
}

// a0 a1 a2 .. and b0 b1 b2 .. become a0 b0 a1 b1 .. in two vectors.
template <class T, size_t... I>
MDEPTH_HD void interleave(Vector<T>& a, Vector<T>& b, std::index_sequence<I...>) {
  constexpr int n = Simd<T>::kLength;
  const typename Simd<T>::Indices low = {int(I % 2 * n + I / 2)...}, high = {int(I % 2 * n + I / 2 + n / 2)...};
  const Vector<T> first = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, high);
  a = first;
}

// Of a square of vectors: log2(length) times, the first half of the rows is interleaved with the second.
template <class T>
MDEPTH_HD void transpose(Vector<T> (&square)[Simd<T>::kLength]) {
  constexpr int n = Simd<T>::kLength;
#pragma GCC unroll 4
  for (int round = n; round > 1; round /= 2) {
    Vector<T> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = square[i];
      next[2 * i + 1] = square[i + n / 2];
      interleave<T>(next[2 * i], next[2 * i + 1], std::make_index_sequence<n>{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) square[i] = next[i];
  }
}

enum class Rows { kPixel, kDepthwise, kPatch };  // the factors of a pixel

// Results are clamped to 0..cap, as are those of the depthwise part. Scales may be null: 1.
template <class T>
struct ConvBlock {
  int threads;
  Rows rows;
  int64_t batch, channels, out_channels, height, width;
  int kernel, stride;  // padding is kernel / 2
  bool doubled;
  T cap;
  const T* x;
  int64_t image_step, channel_step, line_step, pixel_step;  // of x for kPatch; else it stands pixel by pixel
  const T *dw_weight, *dw_scale, *dw_shift;                 // for kDepthwise
  const T *weight, *scale, *shift, *skip;                   // weight (O, factors); skip of the size of out, or null
  T* out;
};

template <class T>
class ChannelsLast {
 public:
  explicit ChannelsLast(const ConvBlock<T>& block)
      : p(block),
        width(int((p.width - 1) / p.stride + 1)),
        height(int((p.height - 1) / p.stride + 1)),
        factors(p.rows == Rows::kPatch ? p.channels * p.kernel * p.kernel : p.channels),
        lines(p.batch * height),
        lanes(std::max<int64_t>(p.channels, L)),
        vectors((p.out_channels + L - 1) / L) {}

  // 0, or 1 without memory.
  int run() {
    if (p.batch == 0) return 0;
    const int threads = std::max(1, p.threads);
    // More output channels than pixels: threads divide the weights. Fewer: the pixels, and all weights are packed before.
    const bool shared = p.out_channels > int64_t(height) * width || lines < threads;
    const int64_t bytes = int64_t(sizeof(T)) * factors * width;
    const int64_t fit = std::max<int64_t>(1, (shared ? kSharedBytes : kOwnBytes) / bytes);
    int64_t parts = (lines + fit - 1) / fit;
    if (!shared) parts = std::min(lines, (parts + threads - 1) / threads * threads);
    const int64_t most = (lines + parts - 1) / parts;  // lines of a part

    panels = (vectors + kVectors - 1) / kVectors;
    panels = std::min<int64_t>(vectors, (panels + threads - 1) / threads * threads);
    const int64_t groups =
        (threads + panels - 1) / panels;  // of pixels, where there are too few panels for the threads
    const int64_t columns = int64_t((width + kColumns - 1) / kColumns * kColumns - 1) * p.stride + p.kernel;
    const int64_t lists = p.kernel + (kLines - 1) * p.stride + 1;
    const int64_t size = p.rows == Rows::kPixel ? 0 : most * width * factors;  // of a part's rows

    Scratch<T> depthwise_weights((units() + 1) * of_channels()), zero_pixel(lanes);
    Scratch<T> packed(shared ? threads * kVectors * of_outputs() : vectors * of_outputs());
    Scratch<T> memory((shared ? 1 : threads) * size);
    Scratch<const T*> pointers(threads * lists * columns);
    Scratch<int64_t> offsets(threads * most * width);
    if (!depthwise_weights || !zero_pixel || !packed || !memory || !pointers || !offsets) return 1;
    dw = depthwise_weights.get();
    zeros = zero_pixel.get();
    std::fill_n(zeros, lanes, T(0));

    // As few barriers as can be: each costs a turn of the scheduler where other processes want the processors too.
#pragma omp parallel num_threads(threads)
    {
      const int thread = thread_index();
      const Window window{pointers.get() + thread * lists * columns, columns};
      int64_t* places = offsets.get() + thread * most * width;
      if (shared) {
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t l0 = lines * part / parts, l1 = lines * (part + 1) / parts, pixels = (l1 - l0) * width;
          place(l0, l1, places);
          if (p.rows != Rows::kPixel) {
#pragma omp for schedule(static)
            for (int64_t k = 0; k < threads; ++k) {
              const int64_t first = (l1 - l0) * k / threads, last = (l1 - l0) * (k + 1) / threads;
              if (p.rows == Rows::kPatch) {
                patches(l0 + first, l0 + last, memory.get() + first * width * factors);
                continue;
              }
              const int64_t first_unit = units() * k / threads, last_unit = units() * (k + 1) / threads;
              for (int64_t unit = first_unit; part == 0 && unit < last_unit; ++unit) pack_depthwise(unit);
              depthwise(l0, l1, first_unit, last_unit, window, memory.get());
            }
          }
          const T* rows = p.rows == Rows::kPixel ? p.x + l0 * width * factors : memory.get();
#pragma omp for schedule(static) nowait
          for (int64_t task = 0; task < panels * groups; ++task) {
            T* panel = packed.get() + thread * kVectors * of_outputs();
            const int64_t first = first_vector(task / groups), count = first_vector(task / groups + 1) - first;
            const int64_t begin = pixels * (task % groups) / groups, end = pixels * (task % groups + 1) / groups;
            pack_weights(first, count, panel);
            const int64_t next = first_vector((task + 1) / groups);
            const T* ahead = task + 1 < panels * groups ? p.weight + output(next) * factors : nullptr;
            products(first, count, panel, rows + begin * factors, places + begin, end - begin, ahead);
          }
          if (part + 1 < parts) {
#pragma omp barrier
          }
        }
      } else {
#pragma omp for schedule(static) nowait
        for (int64_t k = 0; k < panels; ++k)
          pack_weights(first_vector(k), first_vector(k + 1) - first_vector(k),
                       packed.get() + first_vector(k) * of_outputs());
        if (p.rows == Rows::kDepthwise) {
#pragma omp for schedule(static) nowait
          for (int64_t unit = 0; unit < units(); ++unit) pack_depthwise(unit);
        }
#pragma omp barrier
#pragma omp for schedule(static) nowait
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t l0 = lines * part / parts, l1 = lines * (part + 1) / parts, pixels = (l1 - l0) * width;
          T* mine = memory.get() + thread * size;
          place(l0, l1, places);
          if (p.rows == Rows::kPatch) patches(l0, l1, mine);
          if (p.rows == Rows::kDepthwise) depthwise(l0, l1, 0, units(), window, mine);
          const T* rows = p.rows == Rows::kPixel ? p.x + l0 * width * factors : mine;
          // Where all weights fit the first-level cache, a few pixels at a time, and the output is written in order.
          const int64_t run = int64_t(sizeof(T)) * vectors * of_outputs() <= kNearBytes ? kPixels : pixels;
          for (int64_t begin = 0; begin < pixels; begin += run)
            for (int64_t k = 0; k < panels; ++k)
              products(first_vector(k), first_vector(k + 1) - first_vector(k),
                       packed.get() + first_vector(k) * of_outputs(), rows + begin * factors, places + begin,
                       std::min(run, pixels - begin), nullptr);
        }
      }
    }
    return 0;
  }

 private:
  static constexpr int L = Simd<T>::kLength;

  // Where the lines under the kernel are: a list of pixels for each, with those outside the image on zeros.
  struct Window {
    const T** pointers;  // a list for each line under the kernel, and one that is all zeros
    int64_t columns;     // of a list
    const T** list(int64_t k) const { return pointers + k * columns; }
  };

  const ConvBlock<T>& p;
  const int width, height;  // before the doubling
  const int64_t factors, lines, lanes, vectors;
  int64_t panels = 0;
  T *dw = nullptr, *zeros = nullptr;

  // Channels are worked on in whole vectors; where the last would reach past them, it begins earlier and does some
  // twice. It belongs to the unit before, so that one thread does both.
  int64_t units() const { return std::max<int64_t>(1, p.channels / L); }
  bool ragged() const { return p.channels > L && p.channels % L; }

  // Function of the first channel of a vector and of its weights.
  template <class Function>
  ALWAYS_INLINE void each_vector(int64_t unit, const Function& function) const {
    function(unit * L, dw + unit * of_channels());
    if (unit + 1 == units() && ragged()) function(p.channels - L, dw + units() * of_channels());
  }

  // Numbers of a vector of channels, and of outputs: weights, scale, shift.
  int64_t of_channels() const { return (p.kernel * p.kernel + 2) * L; }
  int64_t of_outputs() const { return (factors + 2) * L; }

  // The weights of each tap side by side, then scale and shift.
  void pack_depthwise(int64_t unit) const {
    const int64_t taps = int64_t(p.kernel) * p.kernel;
    each_vector(unit, [&](int64_t first, T* to) {
      if (taps >= L && p.channels >= L) turn(p.dw_weight + first * taps, taps, to, L);
      for (int64_t i = 0; i < L; ++i) {
        const int64_t c = first + i;
        const bool there = c < p.channels;
        if (taps < L || p.channels < L)
          for (int64_t k = 0; k < taps; ++k) to[k * L + i] = there ? p.dw_weight[c * taps + k] : T(0);
        to[taps * L + i] = there && p.dw_scale ? p.dw_scale[c] : T(1);
        to[(taps + 1) * L + i] = there ? p.dw_shift[c] : T(0);
      }
    });
  }

  // L rows of at least L columns from memory with rows of `columns` to memory with rows of `step`, turned.
  void turn(const T* from, int64_t columns, T* to, int64_t step) const {
    for (int64_t c = 0; c < columns; c += L) {
      const int64_t at = std::min(c, columns - L);
      Vector<T> square[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = load(from + i * columns + at);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store(to + (at + i) * step, square[i]);
    }
  }

  // The first channel of a vector of outputs.
  int64_t output(int64_t v) const { return std::max<int64_t>(0, std::min(v * L, p.out_channels - L)); }

  // Two vectors that overlap are of one panel, so that one thread writes both.
  int64_t first_vector(int64_t panel) const {
    const int64_t first = vectors * panel / panels;
    return first == vectors - 1 && p.out_channels % L ? std::max<int64_t>(first - 1, 0) : first;
  }

  // Weights of `count` vectors of outputs, those of one factor side by side, then their scales, then their shifts.
  void pack_weights(int64_t first, int64_t count, T* panel) const {
    for (int64_t j = 0; j < count; ++j) {
      const int64_t o = output(first + j);
      const T* from = p.weight + o * factors;
      T* to = panel + j * L;
      if (factors < L || p.out_channels < L) {
        for (int64_t c = 0; c < factors; ++c)
          for (int64_t i = 0; i < L; ++i) to[c * count * L + i] = i < p.out_channels ? from[i * factors + c] : T(0);
      } else {
        turn(from, factors, to, count * L);
      }
      to += factors * count * L;
      for (int64_t i = 0; i < L; ++i) {
        to[i] = o + i < p.out_channels && p.scale ? p.scale[o + i] : T(1);
        to[count * L + i] = o + i < p.out_channels ? p.shift[o + i] : T(0);
      }
    }
  }

  // Where in the output each pixel of lines l0..l1 goes.
  void place(int64_t l0, int64_t l1, int64_t* RESTRICT places) const {
    const int64_t step = p.doubled ? 2 : 1;
    for (int64_t l = l0; l < l1; ++l)
      for (int64_t x = 0; x < width; ++x) *places++ = (l * step * width * step + x * step) * p.out_channels;
  }

  // The input around each pixel of lines l0..l1: channel by channel, line by line, 0 outside the image.
  void patches(int64_t l0, int64_t l1, T* RESTRICT row) const {
    for (int64_t l = l0; l < l1; ++l) {
      const T* image = p.x + l / height * p.image_step;
      const int64_t top = l % height * p.stride - p.kernel / 2;
      const bool lines_there = top >= 0 && top + p.kernel <= p.height;
      for (int64_t x = 0; x < width; ++x, row += factors) {
        const int64_t left = x * p.stride - p.kernel / 2;
        if (lines_there && left >= 0 && left + p.kernel <= p.width)
          p.kernel == 3 && p.pixel_step == 1 ? patch<3, 1>(image, top, left, row) : patch<0, 0>(image, top, left, row);
        else
          border_patch(image, top, left, row);
      }
    }
  }

  // Kernel and step of a pixel, where they are known when this is compiled.
  template <int kKernel, int kStep>
  void patch(const T* image, int64_t top, int64_t left, T* RESTRICT row) const {
    const int64_t kernel = kKernel ? kKernel : p.kernel, step = kStep ? kStep : p.pixel_step;
    for (int64_t c = 0; c < p.channels; ++c)
      for (int64_t y = 0; y < kernel; ++y, row += kernel) {
        const T* from = image + c * p.channel_step + (top + y) * p.line_step + left * step;
        for (int64_t x = 0; x < kernel; ++x) row[x] = from[x * step];
      }
  }

  void border_patch(const T* image, int64_t top, int64_t left, T* RESTRICT row) const {
    for (int64_t c = 0; c < p.channels; ++c)
      for (int64_t y = top; y < top + p.kernel; ++y)
        for (int64_t x = left; x < left + p.kernel; ++x) {
          const bool there = y >= 0 && y < p.height && x >= 0 && x < p.width;
          *row++ = there ? image[c * p.channel_step + y * p.line_step + x * p.pixel_step] : T(0);
        }
  }

  // Lines l0..l1 of the depthwise result, of some units of channels.
  void depthwise(int64_t l0, int64_t l1, int64_t first_unit, int64_t last_unit, const Window& window, T* result) const {
    if (p.kernel == 3)
      p.stride == 1 ? filter_lines<3, 1>(l0, l1, first_unit, last_unit, window, result)
                    : filter_lines<3, 2>(l0, l1, first_unit, last_unit, window, result);
    else
      p.stride == 1 ? filter_lines<5, 1>(l0, l1, first_unit, last_unit, window, result)
                    : filter_lines<5, 2>(l0, l1, first_unit, last_unit, window, result);
  }

  template <int kKernel, int kStride>
  void filter_lines(int64_t l0, int64_t l1, int64_t first_unit, int64_t last_unit, const Window& window,
                    T* result) const {
    constexpr int kLists = kKernel + (kLines - 1) * kStride;
    const T** const outside = window.list(kLists);
    std::fill_n(outside, window.columns, zeros);
    int64_t listed = -1;  // lines of the input up to here have their list
    for (int64_t l = l0, count; l < l1; l += count, result += count * width * p.channels) {
      const int64_t b = l / height, top = l % height * kStride - kKernel / 2;
      count = std::min<int64_t>({kLines, l1 - l, height - l % height});
      const T* const* lists[kLists];
      for (int k = 0; k < kLists; ++k) {
        const int64_t y = top + k, line = b * p.height + y;
        if (y < 0 || y >= p.height) {
          lists[k] = outside;
          continue;
        }
        const T** list = window.list(line % kLists);
        if (line > listed) {
          for (int64_t j = 0; j < window.columns; ++j) {
            const int64_t x = j - kKernel / 2;
            list[j] = x < 0 || x >= p.width ? zeros : p.x + (line * p.width + x) * p.channels;
          }
          listed = line;
        }
        lists[k] = list;
      }
      for (int x = 0; x < width; x += kColumns)
        for (int64_t unit = first_unit; unit < last_unit; ++unit)
          each_vector(unit, [&](int64_t c, const T* weights) {
            T* to = result + x * p.channels + c;
            if (p.channels < L)
              for (int64_t i = 0; i < count; ++i)
                filter<kKernel, kStride, 1, true>(lists + i * kStride, x, c, weights, to + i * width * p.channels);
            else if (count == kLines)
              filter<kKernel, kStride, kLines, false>(lists, x, c, weights, to);
            else
              filter<kKernel, kStride, 1, false>(lists, x, c, weights, to);
          });
    }
  }

  // kColumns pixels of one or two lines of a vector of channels.
  template <int kKernel, int kStride, int kCount, bool kPart>
  void filter(const T* const* const* lists, int x, int64_t c, const T* weights, T* result) const {
    constexpr int kBoth = kCount == 2 ? kStride : 0;  // of the input lines the first that the second line needs too
    Vector<T> sums[kCount][kColumns] = {};
    for (int k = 0; k < kBoth; ++k) add_line<kKernel, kStride, 1, kPart>(lists[k] + x * kStride, c, weights, k, sums);
    for (int k = kBoth; k < kKernel; ++k)
      add_line<kKernel, kStride, kCount, kPart>(lists[k] + x * kStride, c, weights, k, sums);
    for (int k = kKernel; k < kKernel + kBoth; ++k)
      add_line<kKernel, kStride, 1, kPart>(lists[k] + x * kStride, c, weights, k - kStride, sums + kCount - 1);
    const Vector<T> scale = load(weights + kKernel * kKernel * L), shift = load(weights + (kKernel * kKernel + 1) * L);
#pragma GCC unroll 2
    for (int m = 0; m < kCount; ++m)
#pragma GCC unroll 7
      for (int i = 0; i < kColumns; ++i) {
        const Vector<T> v = clamped<T>(sums[m][i] * scale + shift, p.cap);
        T* to = result + (m * width + i) * p.channels;
        if (x + i >= width) break;
        if (kPart)
          std::memcpy(to, &v, sizeof(T) * size_t(p.channels));
        else
          store(to, v);
      }
  }

  // A line of the input times row dy of the kernel, and for a second sum times the row kStride above.
  template <int kKernel, int kStride, int kCount, bool kPart>
  ALWAYS_INLINE void add_line(const T* const* pixels, int64_t c, const T* weights, int dy,
                              Vector<T> (*sums)[kColumns]) const {
    Vector<T> taps[kCount][kKernel];
#pragma GCC unroll 2
    for (int m = 0; m < kCount; ++m)
#pragma GCC unroll 5
      for (int dx = 0; dx < kKernel; ++dx) taps[m][dx] = load(weights + ((dy - m * kStride) * kKernel + dx) * L);
#pragma GCC unroll 17
    for (int j = 0; j < (kColumns - 1) * kStride + kKernel; ++j) {
      const Vector<T> v = kPart ? load_part(pixels[j] + c, p.channels) : load(pixels[j] + c);
#pragma GCC unroll 2
      for (int m = 0; m < kCount; ++m)
#pragma GCC unroll 7
        for (int i = 0; i < kColumns; ++i)
          if (j >= i * kStride && j < i * kStride + kKernel) sums[m][i] += v * taps[m][j - i * kStride];
    }
  }

  // `ahead`: the weights of the next panel, or null.
  void products(int64_t first, int64_t count, const T* panel, const T* rows, const int64_t* places, int64_t pixels,
                const T* ahead) const {
    if (!p.doubled && !p.skip && p.out_channels >= L)
      products_of<true>(first, count, panel, rows, places, pixels, ahead);
    else
      products_of<false>(first, count, panel, rows, places, pixels, ahead);
  }

  template <bool kPlain>
  void products_of(int64_t first, int64_t count, const T* panel, const T* rows, const int64_t* places, int64_t pixels,
                   const T* ahead) const {
    if (count == 3) product<3, kPlain>(first, panel, rows, places, pixels, ahead);
    if (count == 2) product<2, kPlain>(first, panel, rows, places, pixels, ahead);
    if (count == 1) product<1, kPlain>(first, panel, rows, places, pixels, ahead);
  }

  // kPlain: the sums go straight to the output.
  template <int kCount, bool kPlain>
  void product(int64_t first, const T* panel, const T* rows, const int64_t* places, int64_t pixels,
               const T* ahead) const {
    const int64_t blocks = std::max<int64_t>(1, (pixels + kPixels - 1) / kPixels);
    const int64_t step = ahead ? int64_t(sizeof(T)) * kVectors * L / blocks + 1 : 0;
    for (int64_t begin = 0; begin < pixels; begin += kPixels) {
      const T* row[kPixels];
      int64_t place[kPixels];
      const bool whole = begin + kPixels <= pixels;
#pragma GCC unroll 8
      for (int m = 0; m < kPixels; ++m) {  // at the end the last pixel again, for the same result
        const int64_t pixel = whole ? begin + m : std::min(begin + m, pixels - 1);
        row[m] = rows + pixel * factors;
        place[m] = kPlain ? places[0] + pixel * p.out_channels : places[pixel];
      }
      Vector<T> sums[kPixels][kCount];
      const Ahead part{reinterpret_cast<const char*>(ahead ? ahead : panel) + begin / kPixels * step * factors, step};
      multiply<T, kPixels, kCount, true>(panel, kCount * L, row, factors, sums, part);
      T values[kPixels][kCount * L];  // or the compiler would write out all that follows for each
#pragma GCC unroll 3
      for (int j = 0; j < kCount; ++j) {
        const T* behind = panel + factors * kCount * L + j * L;
        const Vector<T> scale = load(behind), shift = load(behind + kCount * L);
#pragma GCC unroll 8
        for (int m = 0; m < kPixels; ++m) {
          const Vector<T> v = clamped<T>(sums[m][j] * scale + shift, p.cap);
          store(kPlain ? p.out + place[m] + output(first + j) : values[m] + j * L, v);
        }
      }
      if (kPlain) continue;
      for (int m = 0; m < kPixels; ++m)
        for (int j = 0; j < kCount; ++j) finish(place[m] + output(first + j), values[m] + j * L);
    }
  }

  // A vector of output channels of one pixel, to its place and, doubled, to its three others.
  ALWAYS_INLINE void finish(int64_t at, const T* value) const {
    if (p.out_channels < L) {
      const int64_t n = p.out_channels;
      for (int half = 0; half < (p.doubled ? 2 : 1); ++half, at += 2 * width * n) {
        for (int64_t i = 0; i < n; ++i) p.out[at + i] = p.skip ? value[i] + p.skip[at + i] : value[i];
        if (p.doubled)
          for (int64_t i = 0; i < n; ++i) p.out[at + n + i] = p.skip ? value[i] + p.skip[at + n + i] : value[i];
      }
      return;
    }
    const Vector<T> v = load(value);
    put(at, v);
    if (!p.doubled) return;
    put(at + p.out_channels, v);
    at += 2 * width * p.out_channels;
    put(at, v);
    put(at + p.out_channels, v);
  }

  ALWAYS_INLINE void put(int64_t at, Vector<T> value) const {
    store(p.out + at, p.skip ? value + load(p.skip + at) : value);
  }
};

}  // namespace
}  // namespace MDEPTH_ISA
}  // namespace mdepth
