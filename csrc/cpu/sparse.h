// Runs of pixels of which only some count: which ones, brought together and put back.
#pragma once
#include "mdepth/mask.h"
#include "rows.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
#define MDEPTH_PACKS_VECTORS 1
#endif

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

constexpr int kRun = 2048;  // a multiple of kLanes; three arrays of it fit in the first-level cache

// Marks which of `n` <= kRun pixels count, and none of those up to the next multiple of kLanes.
template <class Params, class T>
inline void mark(const Params& p, int64_t at, int n, const T* RESTRICT depth, uint8_t* RESTRICT on) {
  if (p.valid)
    std::memcpy(on, p.valid + at, size_t(n));
  else if (p.measured)
    for (int i = 0; i < n; ++i) on[i] = measured(depth[i]);
  else
    std::memset(on, 1, size_t(n));
  for (int i = n; i % kLanes; ++i) on[i] = false;
}

// The elements that are on, next to each other; how many. `to` has kLanes more than it needs.
template <class T>
inline int pack(const uint8_t* RESTRICT on, int n, const T* RESTRICT from, T* RESTRICT to) {
  int count = 0;
  for (int i = 0; i < n; ++i) {
    to[count] = from[i];
    count += on[i];
  }
  return count;
}

// Back to where they came from, 0 elsewhere. `from` can be read kLanes beyond its last.
template <class T>
inline void unpack(const uint8_t* RESTRICT on, int n, const T* RESTRICT from, T* RESTRICT to) {
  std::memset(to, 0, sizeof(T) * size_t(n));
  for (int i = 0, count = 0; i < n; ++i)
    if (on[i]) to[i] = from[count++];
}

#if defined(MDEPTH_PACKS_VECTORS)
// The compiler finds neither of the two, and every other instruction is faster than they are one by one.
inline __mmask16 lanes_on(const uint8_t* on) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(on));
  return _mm_test_epi8_mask(bytes, bytes);
}

inline int pack(const uint8_t* RESTRICT on, int n, const float* RESTRICT from, float* RESTRICT to) {
  int count = 0;
  for (int i = 0; i < n; i += 16) {
    const __mmask16 lanes = lanes_on(on + i);
    __builtin_prefetch(from + i + kRun);  // runs are too short for the processor to find the next one by itself
    _mm512_storeu_ps(to + count, _mm512_maskz_compress_ps(lanes, _mm512_maskz_loadu_ps(lanes, from + i)));
    count += __builtin_popcount(lanes);
  }
  return count;
}

inline void unpack(const uint8_t* RESTRICT on, int n, const float* RESTRICT from, float* RESTRICT to) {
  for (int i = 0, count = 0; i < n; i += 16) {
    const __mmask16 lanes = lanes_on(on + i), inside = __mmask16(n - i < 16 ? (1 << (n - i)) - 1 : 0xffff);
    _mm512_mask_storeu_ps(to + i, inside, _mm512_maskz_expand_ps(lanes, _mm512_loadu_ps(from + count)));
    count += __builtin_popcount(lanes);
  }
}
#endif

}  // namespace
}  // namespace MDEPTH_ISA
}  // namespace mdepth
