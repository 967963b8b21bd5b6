// What `nnconv5` and `separable_conv` share: vectors, the small matrix product, and the whole of a depthwise-separable
// block for activations that stand pixel by pixel (channels_last). There the depthwise result of some rows goes to
// memory that fits the second-level cache; the pointwise product reads it, all sums of a few pixels times a panel of
// output channels in registers, and each finished pixel is stored, once or as its 2x2 copies. A sum runs over the
// channels in ascending order whatever the rows, panels and threads, so the bits do not depend on them.
#pragma once
#include <type_traits>
#include <utility>

#include "mdepth/hd.h"
#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

#define ALWAYS_INLINE inline __attribute__((always_inline))

// Sums of a product: kPixels times kVectors of them, with kVectors weights and a pixel, in 32 or 16 registers.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kPixels = 7;  // every map of a 224x224 image is a multiple of 7 wide
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kPixels = 4;
#else
constexpr int kVectorBytes = 16, kPixels = 4;
#endif
constexpr int kVectors = 3;
constexpr int kColumns = 7;  // of a row that are filtered together
constexpr int64_t kOwnBytes = 1 << 18, kSharedBytes = 1 << 20;  // of the depthwise result at a time

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

// sums[m][j] = sum over i < n of rows[m][i] * panel[i * stride + j], for the j of kCount vectors.
template <class T, int kRows, int kCount>
MDEPTH_HD void multiply(const T* panel, int64_t stride, const T* const* rows, int64_t n,
                        Vector<T> (&sums)[kRows][kCount]) {
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 3
    for (int j = 0; j < kCount; ++j) sums[m][j] = Vector<T>{};
  for (int64_t i = 0; i < n; ++i, panel += stride) {
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

// A depthwise-separable block. Both its scales are null (1) or none is; both results are clamped to 0..cap.
template <class T>
struct Separable {
  int threads;
  int64_t batch, channels, out_channels, height, width;
  int kernel, stride;
  bool doubled;
  T cap;
  const T *x, *dw_weight, *dw_scale, *dw_shift, *pw_weight, *pw_scale, *pw_shift, *skip;
  T* out;
};

template <class T>
class ChannelsLast {
 public:
  explicit ChannelsLast(const Separable<T>& block)
      : p(block),
        width(int((p.width - 1) / p.stride + 1)),
        height(int((p.height - 1) / p.stride + 1)),
        rows(p.batch * height),
        lanes(std::max<int64_t>(p.channels, L)),
        vectors((p.out_channels + L - 1) / L) {}

  // 0, or 1 without memory.
  int run() {
    const int threads = std::max(1, p.threads);
    // As many weights as pixels: threads divide the weights. Fewer: the pixels, and all weights are packed before.
    const bool shared = p.out_channels > int64_t(height) * width || rows < threads;
    const int64_t bytes = int64_t(sizeof(T)) * p.channels * width;
    const int64_t fit = std::max<int64_t>(1, (shared ? kSharedBytes : kOwnBytes) / bytes);
    int64_t parts = (rows + fit - 1) / fit;
    if (!shared) parts = std::min(rows, (parts + threads - 1) / threads * threads);
    const int64_t most = (rows + parts - 1) / parts;  // rows of a part

    panels = (vectors + kVectors - 1) / kVectors;
    panels = std::min<int64_t>(vectors, (panels + threads - 1) / threads * threads);
    const int64_t groups = (threads + panels - 1) / panels;  // of pixels, where there are too few panels for the threads
    const int64_t panel_size = p.channels * kVectors * L;
    const int64_t columns = int64_t((width + kColumns - 1) / kColumns * kColumns - 1) * p.stride + p.kernel;

    Scratch<T> depthwise_weights((p.kernel * p.kernel + 3) * lanes), pointwise_affine(2 * vectors * L);
    Scratch<T> packed(shared ? threads * panel_size : vectors * L * p.channels);
    Scratch<T> results((shared ? 1 : threads) * result_size(most));
    Scratch<const T*> pointers(threads * (p.kernel + 1) * columns);
    Scratch<int64_t> offsets(threads * most * width);
    if (!depthwise_weights || !pointwise_affine || !packed || !results || !pointers || !offsets) return 1;
    dw = depthwise_weights.get();
    affine = pointwise_affine.get();

#pragma omp parallel num_threads(threads)
    {
      const int thread = thread_index();
      Window window{pointers.get() + thread * (p.kernel + 1) * columns, columns};
      int64_t* places = offsets.get() + thread * most * width;
#pragma omp for schedule(static) nowait
      for (int64_t unit = 0; unit < units(); ++unit) pack_depthwise(unit);
#pragma omp for schedule(static) nowait
      for (int64_t v = 0; v < vectors; ++v) pack_affine(v);
      if (shared) {
#pragma omp barrier
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t r0 = rows * part / parts, r1 = rows * (part + 1) / parts, pixels = (r1 - r0) * width;
          place(r0, r1, places);
#pragma omp for schedule(static)
          for (int64_t k = 0; k < threads; ++k)
            depthwise(r0, r1, units() * k / threads, units() * (k + 1) / threads, window, results.get());
#pragma omp for schedule(dynamic)
          for (int64_t task = 0; task < panels * groups; ++task) {
            T* panel = packed.get() + thread * panel_size;
            const int64_t first = first_vector(task / groups), count = first_vector(task / groups + 1) - first;
            const int64_t begin = pixels * (task % groups) / groups, end = pixels * (task % groups + 1) / groups;
            pack_pointwise(first, count, panel);
            pointwise(first, count, panel, results.get() + begin * p.channels, places + begin, end - begin);
          }
        }
      } else {
#pragma omp for schedule(dynamic)
        for (int64_t k = 0; k < panels; ++k)
          pack_pointwise(first_vector(k), first_vector(k + 1) - first_vector(k),
                         packed.get() + first_vector(k) * L * p.channels);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t r0 = rows * part / parts, r1 = rows * (part + 1) / parts;
          T* mine = results.get() + thread * result_size(most);
          place(r0, r1, places);
          depthwise(r0, r1, 0, units(), window, mine);
          for (int64_t k = 0; k < panels; ++k)
            pointwise(first_vector(k), first_vector(k + 1) - first_vector(k),
                      packed.get() + first_vector(k) * L * p.channels, mine, places, (r1 - r0) * width);
        }
      }
    }
    return 0;
  }

 private:
  static constexpr int L = Simd<T>::kLength;

  // Where the rows under the kernel are: a list of pixels for each, with those outside the image on zeros.
  struct Window {
    const T** pointers;  // kernel + 1 lists; the last is all zeros
    int64_t columns;     // of a list
    const T** list(int64_t k) const { return pointers + k * columns; }
  };

  const Separable<T>& p;
  const int width, height;  // before the doubling
  const int64_t rows, lanes, vectors;
  int64_t panels = 0;
  T *dw = nullptr, *affine = nullptr;

  // Channels are worked on in whole vectors; where the last would reach past them, it begins earlier and does some
  // twice. It belongs to the unit before, so that one thread does both.
  int64_t units() const { return std::max<int64_t>(1, p.channels / L); }
  bool ragged() const { return p.channels > L && p.channels % L; }
  int64_t result_size(int64_t count) const { return (count * width + kColumns) * p.channels + L; }

  T* zeros() const { return dw + (p.kernel * p.kernel + 2) * lanes; }

  template <class Function>
  ALWAYS_INLINE void each_vector(int64_t unit, const Function& function) const {
    function(unit * L);
    if (unit + 1 == units() && ragged()) function(p.channels - L);
  }

  // The taps of each channel side by side, then scale, shift and zeros.
  void pack_depthwise(int64_t unit) const {
    const int64_t taps = int64_t(p.kernel) * p.kernel;
    each_vector(unit, [&](int64_t first) {
      for (int64_t c = first; c < first + L; ++c) {
        const bool there = c < p.channels;
        for (int64_t k = 0; k < taps; ++k) dw[k * lanes + c] = there ? p.dw_weight[c * taps + k] : T(0);
        dw[taps * lanes + c] = there && p.dw_scale ? p.dw_scale[c] : T(1);
        dw[(taps + 1) * lanes + c] = there ? p.dw_shift[c] : T(0);
        dw[(taps + 2) * lanes + c] = T(0);
      }
    });
  }

  // The first channel of a vector of outputs.
  int64_t output(int64_t v) const { return std::max<int64_t>(0, std::min(v * L, p.out_channels - L)); }

  // Two vectors that overlap are of one panel, so that one thread writes both.
  int64_t first_vector(int64_t panel) const {
    const int64_t first = vectors * panel / panels;
    return first == vectors - 1 && p.out_channels % L ? std::max<int64_t>(first - 1, 0) : first;
  }

  void pack_affine(int64_t v) const {
    for (int64_t i = 0; i < L; ++i) {
      const int64_t o = output(v) + i;
      affine[2 * v * L + i] = o < p.out_channels && p.pw_scale ? p.pw_scale[o] : T(1);
      affine[(2 * v + 1) * L + i] = o < p.out_channels ? p.pw_shift[o] : T(0);
    }
  }

  // Weights of `count` vectors of outputs, those of one input channel side by side.
  void pack_pointwise(int64_t first, int64_t count, T* panel) const {
    for (int64_t j = 0; j < count; ++j) {
      const T* from = p.pw_weight + output(first + j) * p.channels;
      T* to = panel + j * L;
      if (p.channels < L || p.out_channels < L) {
        for (int64_t c = 0; c < p.channels; ++c)
          for (int64_t i = 0; i < L; ++i) to[c * count * L + i] = i < p.out_channels ? from[i * p.channels + c] : T(0);
        continue;
      }
      for (int64_t c = 0; c < p.channels; c += L) {
        const int64_t at = std::min(c, p.channels - L);
        Vector<T> square[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) square[i] = load(from + i * p.channels + at);
        transpose<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store(to + (at + i) * count * L, square[i]);
      }
    }
  }

  // Where in the output each pixel of rows r0..r1 goes.
  void place(int64_t r0, int64_t r1, int64_t* RESTRICT places) const {
    const int64_t step = p.doubled ? 2 : 1;
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t x = 0; x < width; ++x) *places++ = (r * step * width * step + x * step) * p.out_channels;
  }

  // Rows r0..r1 of the depthwise result, of some units of channels.
  void depthwise(int64_t r0, int64_t r1, int64_t first_unit, int64_t last_unit, const Window& window, T* result) const {
    if (p.kernel == 3)
      p.stride == 1 ? filter_rows<3, 1>(r0, r1, first_unit, last_unit, window, result)
                    : filter_rows<3, 2>(r0, r1, first_unit, last_unit, window, result);
    else
      p.stride == 1 ? filter_rows<5, 1>(r0, r1, first_unit, last_unit, window, result)
                    : filter_rows<5, 2>(r0, r1, first_unit, last_unit, window, result);
  }

  template <int kKernel, int kStride>
  void filter_rows(int64_t r0, int64_t r1, int64_t first_unit, int64_t last_unit, const Window& window,
                   T* result) const {
    std::fill_n(window.list(kKernel), window.columns, zeros());
    int64_t listed = -1;  // rows of the input up to here have their list
    for (int64_t r = r0; r < r1; ++r, result += width * p.channels) {
      const int64_t b = r / height, top = r % height * kStride - kKernel / 2;
      const T* const* lines[kKernel];
      for (int k = 0; k < kKernel; ++k) {
        const int64_t y = top + k, row = b * p.height + y;
        if (y < 0 || y >= p.height) {
          lines[k] = window.list(kKernel);
          continue;
        }
        const T** list = window.list(row % kKernel);
        if (row > listed) {
          for (int64_t j = 0; j < window.columns; ++j) {
            const int64_t x = j - kKernel / 2;
            list[j] = x < 0 || x >= p.width ? zeros() : p.x + (row * p.width + x) * p.channels;
          }
          listed = row;
        }
        lines[k] = list;
      }
      for (int64_t unit = first_unit; unit < last_unit; ++unit) {
        // What goes past the end of a row is written over by the row below, which comes later.
        each_vector(unit, [&](int64_t c) {
          for (int x = 0; x < width; x += kColumns)
            if (p.channels < L)
              filter<kKernel, kStride, true>(lines, x, c, result + x * p.channels);
            else
              filter<kKernel, kStride, false>(lines, x, c, result + x * p.channels);
        });
      }
    }
  }

  // kColumns pixels of a vector of channels.
  template <int kKernel, int kStride, bool kPart>
  ALWAYS_INLINE void filter(const T* const* const* lines, int x, int64_t c, T* result) const {
    Vector<T> sums[kColumns] = {};
    const T* weight = dw + c;
    for (int k = 0; k < kKernel; ++k) {
      const T* const* pixels = lines[k] + x * kStride;
      Vector<T> taps[kKernel];
#pragma GCC unroll 5
      for (int i = 0; i < kKernel; ++i, weight += lanes) taps[i] = load(weight);
#pragma GCC unroll 17
      for (int j = 0; j < (kColumns - 1) * kStride + kKernel; ++j) {
        const Vector<T> v = kPart ? load_part(pixels[j] + c, p.channels) : load(pixels[j] + c);
#pragma GCC unroll 7
        for (int i = 0; i < kColumns; ++i)
          if (j >= i * kStride && j < i * kStride + kKernel) sums[i] += v * taps[j - i * kStride];
      }
    }
    const Vector<T> scale = load(weight), shift = load(weight + lanes);
#pragma GCC unroll 7
    for (int i = 0; i < kColumns; ++i) store(result + i * p.channels + c, clamped<T>(sums[i] * scale + shift, p.cap));
  }

  void pointwise(int64_t first, int64_t count, const T* panel, const T* result, const int64_t* places,
                 int64_t pixels) const {
    if (count == 3) product<3>(first, panel, result, places, pixels);
    if (count == 2) product<2>(first, panel, result, places, pixels);
    if (count == 1) product<1>(first, panel, result, places, pixels);
  }

  template <int kCount>
  void product(int64_t first, const T* panel, const T* result, const int64_t* places, int64_t pixels) const {
    for (int64_t begin = 0; begin < pixels; begin += kPixels) {
      const T* row[kPixels];
      int64_t place[kPixels];
#pragma GCC unroll 8
      for (int m = 0; m < kPixels; ++m) {  // at the end the last pixel again, for the same result
        const int64_t pixel = std::min(begin + m, pixels - 1);
        row[m] = result + pixel * p.channels;
        place[m] = places[pixel];
      }
      Vector<T> sums[kPixels][kCount];
      multiply<T, kPixels, kCount>(panel, kCount * L, row, p.channels, sums);
      T values[kPixels][kCount * L];  // or the compiler would write out all that follows for each
#pragma GCC unroll 3
      for (int j = 0; j < kCount; ++j) {
        const T* of_vector = affine + 2 * (first + j) * L;
        const Vector<T> scale = load(of_vector), shift = load(of_vector + L);
#pragma GCC unroll 8
        for (int m = 0; m < kPixels; ++m)
          store(values[m] + j * L, clamped<T>(sums[m][j] * scale + shift, p.cap));
      }
      for (int m = 0; m < kPixels; ++m)
        for (int j = 0; j < kCount; ++j) finish(place[m] + output(first + j), values[m] + j * L);
    }
  }

  // A vector of output channels of one pixel, to its place and, doubled, to its three others.
  ALWAYS_INLINE void finish(int64_t at, const T* value) const {
    if (p.out_channels < L) {
      for (int k = 0; k < (p.doubled ? 4 : 1); ++k) {
        const int64_t to = at + (k % 2 + k / 2 * 2 * width) * p.out_channels;
        for (int64_t i = 0; i < p.out_channels; ++i) p.out[to + i] = p.skip ? value[i] + p.skip[to + i] : value[i];
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
