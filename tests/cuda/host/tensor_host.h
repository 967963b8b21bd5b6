// What csrc/cuda/tensor.cuh has on a device, for threads of the host: a warp's lanes meet at a barrier of their own.
#pragma once
#include <barrier>
#include <cmath>
#include <cstring>

namespace mdepth {

inline float to_float(Half x) {
  _Float16 value;
  std::memcpy(&value, &x.bits, sizeof value);
  return float(value);
}

inline float to_float(BFloat16 x) {
  const unsigned bits = unsigned(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void round_to(float value, Half& x) {
  const _Float16 rounded = _Float16(value);
  std::memcpy(&x.bits, &rounded, sizeof x.bits);
}

// To the nearest, `half` deciding ties, with the bits of `mask` gone.
inline unsigned rounded_bits(float value, unsigned mask, bool to_even) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return (bits | 0x400000u) & ~mask;
  const unsigned lowest = mask + 1;
  return (bits + (to_even ? lowest / 2 - 1 + (bits & lowest ? 1 : 0) : lowest / 2)) & ~mask;
}

inline void round_to(float value, BFloat16& x) { x.bits = (unsigned short)(rounded_bits(value, 0xffff, true) >> 16); }

inline void round_to(float value, Tf32& x) {
  const unsigned bits = rounded_bits(value, 0x1fff, false);
  std::memcpy(&x.value, &bits, sizeof bits);
}

struct Lanes {
  Meeting barrier{32};
  unsigned a[32][4], b[32][2];
};
inline Lanes lanes_of_warp[32];

template <class Number>
void add_product(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], Number) {
  Lanes& warp = lanes_of_warp[threadIdx.x / 32];
  const unsigned lane = threadIdx.x % 32;
  std::memcpy(warp.a[lane], a, sizeof a);
  std::memcpy(warp.b[lane], b, sizeof b);
  warp.barrier.arrive_and_wait();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (unsigned word = 0; word < unsigned(kStepWords); ++word) {
      Number left[kPerWord<Number>], right[kPerWord<Number>];
      std::memcpy(left, &warp.a[row % 8 * 4 + word % 4][row / 8 + word / 4 * 2], sizeof left);
      std::memcpy(right, &warp.b[column * 4 + word % 4][word / 4], sizeof right);
      for (int k = 0; k < kPerWord<Number>; ++k) {
        if constexpr (sizeof(Number) == 4)
          sum[i] += left[k].value * right[k].value;
        else
          sum[i] += to_float(left[k]) * to_float(right[k]);
      }
    }
  }
  warp.barrier.arrive_and_wait();
}

}  // namespace mdepth
