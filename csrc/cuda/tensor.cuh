// Products of small matrices on tensor cores, and the number formats that they take (sm_80 and up).
//
// A word holds what one register of a fragment does: two halves or bfloat16, or one float rounded to TF32. A step is
// eight words deep, so that all three formats have the same layout: `a` is 16 x 8 words, rows of outputs, `b` 8 words
// x 8 columns. Lane 4 g + t has a[0] = A(g, t), a[1] = A(g + 8, t), a[2] = A(g, t + 4), a[3] = A(g + 8, t + 4),
// b[0] = B(t, g), b[1] = B(t + 4, g), and of the sums C(g, 2 t), C(g, 2 t + 1), C(g + 8, 2 t), C(g + 8, 2 t + 1).
#pragma once

namespace mdepth {

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};
struct Tf32 {
  float value;
};

constexpr int kStepWords = 8;

template <class Number>
constexpr int kPerWord = 4 / int(sizeof(Number));

}  // namespace mdepth

#if defined(__CUDACC__)

namespace mdepth {

__device__ __forceinline__ float to_float(Half x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}

__device__ __forceinline__ float to_float(BFloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

__device__ __forceinline__ void round_to(float value, Half& x) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(x.bits) : "f"(value));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

__device__ __forceinline__ void round_to(float value, BFloat16& x) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(x.bits) : "f"(value));
}

__device__ __forceinline__ void round_to(float value, Tf32& x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  x.value = __uint_as_float(bits);
}

#define MDEPTH_MMA(Number, shape)                                                                              \
  __device__ __forceinline__ void add_product(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], \
                                              Number) {                                                        \
    asm("mma.sync.aligned." shape " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"           \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                   \
  }
MDEPTH_MMA(Half, "m16n8k16.row.col.f32.f16.f16.f32")
MDEPTH_MMA(BFloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MDEPTH_MMA(Tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef MDEPTH_MMA

#else  // an older device: no plan launches these there

template <class Number>
__device__ __forceinline__ void round_to(float, Number&) {
  __trap();
}
template <class Number>
__device__ __forceinline__ void add_product(float (&)[4], const unsigned (&)[4], const unsigned (&)[2], Number) {
  __trap();
}

#endif

}  // namespace mdepth

#else
#include "tensor_host.h"  // of the tests that run the kernels on the host
#endif

namespace mdepth {

__device__ __forceinline__ float to_float(Tf32 x) { return x.value; }

// Of numbers that are stored as they are computed.
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ double to_float(double x) { return x; }
__device__ __forceinline__ void round_to(float value, float& x) { x = value; }
__device__ __forceinline__ void round_to(double value, double& x) { x = value; }

}  // namespace mdepth
