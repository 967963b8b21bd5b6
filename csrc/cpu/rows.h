// What the CPU kernels share: row buffers with room around them, and work split into tiles that do not depend on the
// number of threads, so that sums come out bit-equal for any number of them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "mdepth/stencil.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mdepth {

#define RESTRICT __restrict__
// For inner loops that a parallel region calls: inlined into it, GCC 12 leaves a reduction scalar.
#define NOINLINE __attribute__((noinline))

// Every inner loop runs over whole vectors: kLanes is a multiple of every vector length, and a row has kLead elements
// before its first column and as many after its last, so that neighbours can be read without a test.
constexpr int kLanes = 16;
constexpr int kLead = 16;
constexpr int kHalo = 2;  // a gradient at a pixel reaches colours two pixels away: twice a 3x3 window
constexpr int kTileHeight = 32;
constexpr int kTileWidth = 252;  // with the halo on both sides a multiple of kLanes
constexpr int kTileRows = kTileHeight + 2 * kHalo;

// Column i of a tile's row is image column x0 - kHalo + i, and stands at [kLead + i].
template <class T>
using Row = T[kTileWidth + 2 * kHalo + 2 * kLead];

struct Tile {
  int64_t index;
  int batch;
  int x0, x1, y0, y1;  // owned pixels
  int n;               // lanes of a row with its halo, a multiple of kLanes
};

// An image batch cut into tiles of nearly equal size.
struct Tiling {
  int64_t batch, height, width, rows, columns, count;

  Tiling(int64_t b, int64_t h, int64_t w)
      : batch(b),
        height(h),
        width(w),
        rows((h + kTileHeight - 1) / kTileHeight),
        columns((w + kTileWidth - 1) / kTileWidth),
        count(b * rows * columns) {}

  int64_t per_image() const { return rows * columns; }

  Tile tile(int64_t k) const {
    const int64_t row = k / columns % rows, column = k % columns;
    Tile t;
    t.index = k;
    t.batch = int(k / per_image());
    t.x0 = int(width * column / columns);
    t.x1 = int(width * (column + 1) / columns);
    t.y0 = int(height * row / rows);
    t.y1 = int(height * (row + 1) / rows);
    t.n = (t.x1 - t.x0 + 2 * kHalo + kLanes - 1) / kLanes * kLanes;
    return t;
  }
};

// The columns of a tile with halo that lie in the image, into a row; `outside` everywhere else.
template <class T>
static inline void stage(const T* image_row, int width, const Tile& t, T* RESTRICT row, T outside) {
  const int first = t.x0 - kHalo;
  const int begin = std::max(first, 0), end = std::min(first + t.n, width);
  for (int i = 0; i < begin - first; ++i) row[i] = outside;
  std::memcpy(row + (begin - first), image_row + begin, sizeof(T) * size_t(end - begin));
  for (int i = end - first; i < t.n; ++i) row[i] = outside;
}

// SSIM's reflection: column -1 reads column 1, column W reads column W - 2.
template <class T>
static inline void reflect_columns(int width, const Tile& t, T* row) {
  const int first = t.x0 - kHalo;
  if (t.x0 == 0) row[-1 - first] = row[1 - first];
  if (t.x1 == width) row[width - first] = row[width - 2 - first];
}

// Sums over three columns, where `on`; the adjoint of the reflection is the second helping that columns 1 and W - 2 get
// from the windows on the border. Lanes outside the image must be off.
template <class T>
static inline void sum_columns(int width, const Tile& t, const T* RESTRICT raw, const T* RESTRICT on, T* RESTRICT sum) {
  const int first = t.x0 - kHalo, n = t.n;
#pragma omp simd
  for (int i = 0; i < n; ++i) sum[i] = raw[i - 1] * on[i - 1] + raw[i] * on[i] + raw[i + 1] * on[i + 1];
  if (t.x0 == 0) sum[1 - first] += raw[-first] * on[-first];
  if (t.x1 == width) sum[width - 2 - first] += raw[width - 1 - first] * on[width - 1 - first];
}

// One row's share of the gradient by the projection: (nu, nv, z) = projection * (depth * (x, y, 1), 1), and the
// arguments are the row's sums of the gradients by nu, nv, z, bare, times depth, and times depth * x.
template <class T>
static inline void add_projection_row(double* grad, int y, T u, T v, T z, T ud, T vd, T zd, T udx, T vdx, T zdx) {
  const double rows[3][3] = {
      {double(udx), double(ud), double(u)}, {double(vdx), double(vd), double(v)}, {double(zdx), double(zd), double(z)}};
  for (int k = 0; k < 3; ++k) {
    grad[4 * k] += rows[k][0];
    grad[4 * k + 1] += rows[k][1] * double(y);
    grad[4 * k + 2] += rows[k][1];
    grad[4 * k + 3] += rows[k][2];
  }
}

// Asks for huge pages under memory that is about to be written: of what torch allocates afresh, which glibc does with
// every block over 32 MiB, faulting in pages of 4 KiB takes longer than filling them.
static inline void use_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t(2) << 20;
  const uintptr_t begin = (uintptr_t(memory) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (uintptr_t(memory) + uintptr_t(bytes)) & ~(kHuge - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: failing is harmless
#endif
}

static inline int thread_index() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Memory for `count` elements, of any content; false where there is none.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    if (posix_memalign(&memory_, 64, std::max<size_t>(sizeof(T) * size_t(count), 64)) != 0) memory_ = nullptr;
  }
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  explicit operator bool() const { return memory_ != nullptr; }
  T* get() { return static_cast<T*>(memory_); }

 private:
  void* memory_ = nullptr;
};

// Zeroed memory for `threads` times `each` structs; false where there is none.
template <class Struct>
class PerThread {
 public:
  PerThread(int threads, int64_t each = 1) : each_(each) {
    const size_t bytes = sizeof(Struct) * size_t(threads * each);
    if (posix_memalign(&memory_, 64, std::max<size_t>(bytes, 64)) != 0) memory_ = nullptr;
    if (memory_) std::memset(memory_, 0, bytes);
  }
  ~PerThread() { std::free(memory_); }
  PerThread(const PerThread&) = delete;
  PerThread& operator=(const PerThread&) = delete;
  explicit operator bool() const { return memory_ != nullptr; }
  Struct* all() { return static_cast<Struct*>(memory_); }
  Struct* mine() { return all() + thread_index() * each_; }

 private:
  void* memory_ = nullptr;
  int64_t each_;
};

}  // namespace mdepth
