// What the parameters of all ops share. Each op has one plain struct, in its own header, that crosses the boundary of
// languages and compilers: no torch, no CUDA, no allocation. Pointers are to contiguous memory of the dtype named in the
// struct; sizes are in elements. `threads` is for the CPU, `workspace` for the GPU, whose size comes from the launch plan.
//
// MDEPTH_FIELDS(Struct, members in order) lets Python fill a struct by name: fields.h.
#pragma once
#if !defined(__CUDACC_RTC__)
#include <cstdint>
#endif

#if !defined(MDEPTH_FIELDS)
#define MDEPTH_FIELDS(...)
#endif

namespace mdepth {

#if defined(__CUDACC_RTC__)  // NVRTC has no standard headers
using int8_t = signed char;
using int64_t = long long;
#endif

enum class Dtype : int { kFloat32 = 0, kFloat64 = 1 };
enum class Padding : int { kBorder = 0, kZeros = 1 };
enum class Outside : int { kMasked = 0, kGrey = 1 };  // of view_synthesis_loss

// A projection is a row-major 3x4 double matrix [K_source R K^-1 | K_source t].
constexpr int kProjection = 12;
constexpr double kMinZ = 1e-6;  // a point nearer than this, or behind the camera, is invalid
constexpr double kSsimC1 = 1e-4;
constexpr double kSsimC2 = 9e-4;
constexpr int kMaxScales = 16;

}  // namespace mdepth
