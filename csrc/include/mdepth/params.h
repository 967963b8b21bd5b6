// Plain structs that cross the language and compiler boundary: no torch, no CUDA, no allocation.
// Pointers are to contiguous memory of the dtype named in the struct; sizes are in elements. `threads` is for the CPU,
// `workspace` for the GPU, whose size comes from cuda/plan.h.
#pragma once
#if !defined(__CUDACC_RTC__)
#include <cstdint>
#endif

namespace mdepth {

#if defined(__CUDACC_RTC__)  // NVRTC has no standard headers
using int8_t = signed char;
using int64_t = long long;
#endif

enum class Dtype : int { kFloat32 = 0, kFloat64 = 1 };
enum class Padding : int { kBorder = 0, kZeros = 1 };
enum class SilogForm : int { kEigen = 0, kImageMean = 1, kSqrt = 2, kSqrtUnbiased = 3 };

// A projection is a row-major 3x4 double matrix [K_source R K^-1 | K_source t].
constexpr int kProjection = 12;
constexpr double kMinZ = 1e-6;  // a point nearer than this, or behind the camera, is invalid
constexpr double kSsimC1 = 1e-4;
constexpr double kSsimC2 = 9e-4;
constexpr int kMaxScales = 16;

struct InverseWarpParams {
  Dtype dtype;
  Padding padding;
  int threads;
  int64_t batch, channels, height, width, source_height, source_width;
  const void* source;        // (B, C, source H, source W)
  const void* depth;         // (B, 1, H, W)
  const double* projection;  // (B, 3, 4)
  void* warped;              // out (B, C, H, W); forward only
  bool* valid;               // out (B, 1, H, W); forward only
  const void* grad;          // (B, C, H, W); backward only, as is all below; null: not wanted
  void* grad_source;         // zeroed by the caller
  void* grad_depth;
  double* grad_projection;  // (B, 3, 4)
  double* workspace;        // GPU
  bool ordered;             // GPU: the gradient by the source in a fixed order, without atomics
};

struct PhotometricLossParams {
  Dtype dtype;
  int threads;
  int64_t batch, channels, height, width;
  double ssim_weight;
  const void* prediction;  // (B, C, H, W)
  const void* target;      // (B, C, H, W)
  void* loss;              // out (B, 1, H, W); forward only
  const void* grad;        // (B, 1, H, W); backward only, as is all below; null: not wanted
  void* grad_prediction;
  void* grad_target;
};

struct MinReprojectionParams {
  Dtype dtype;
  Padding padding;
  int threads;
  int64_t batch, sources, scales, height, width;
  double ssim_weight;
  bool auto_mask;
  const void* target;             // (B, 3, H, W)
  const void* source;             // (B, S, 3, H, W)
  const void* depth[kMaxScales];  // each (B, 1, H, W)
  const double* projection;       // (B, S, 3, 4)
  const void* identity_noise;     // (B, S, H, W) or null
  double* loss;                   // out (scales,)
  int8_t* selection;              // out (scales, B, 1, H, W)
  void* grad_depth;               // out (scales, B, 1, H, W), of each scale's loss; null: not wanted
  double* grad_projection;        // out (scales, B, S, 3, 4); null exactly where grad_depth is
  double* workspace;              // GPU
};

struct EdgeAwareSmoothnessParams {
  Dtype dtype;
  int threads;
  int64_t batch, channels, height, width;
  const void* disparity;  // (B, 1, H, W)
  const void* image;      // (B, C, H, W)
  double* loss;           // out: one number
  void* grad_disparity;   // out (B, 1, H, W); null: not wanted
  double* workspace;      // GPU
};

// A map is resized bilinearly, as inverse depth from 1 / max_depth at 0 to 1 / min_depth at 1.
struct DisparityToDepthParams {
  Dtype dtype;
  int threads;
  int64_t batch, height, width, map_height, map_width;
  double min_depth, max_depth;
  const void* disparity;  // (B, 1, map height, map width); forward only
  void* depth;            // (B, 1, H, W): out in forward, in in backward
  const void* grad;       // (B, 1, H, W); backward only, as is all below
  void* grad_disparity;   // out (B, 1, map height, map width)
};

struct OrdinalDecodeParams {
  Dtype dtype;
  int threads;
  int64_t batch, bins, height, width;
  const void* logits;      // (B, 2 bins, H, W)
  const void* thresholds;  // (bins + 1,)
  void* depth;             // out (B, 1, H, W)
  int64_t* label;          // out (B, 1, H, W)
};

struct OrdinalLossParams {
  Dtype dtype;
  int threads;
  int64_t batch, bins, height, width;
  const void* logits;      // (B, 2 bins, H, W)
  const void* depth;       // (B, 1, H, W)
  const void* thresholds;  // (bins + 1,)
  const bool* valid;       // (B, 1, H, W) or null: finite depth > 0
  double* loss;            // out: one number; forward only
  int64_t* count;          // valid pixels: out in forward, in in backward
  const void* grad;        // one number; backward only, as is all below
  void* grad_logits;       // out (B, 2 bins, H, W)
  double* workspace;       // GPU, forward only
};

// Sums over pixels from which the depth metrics follow, with depths p and g and e = ln p - ln g: how many pixels;
// |p - g| / g; (p - g)^2 / g; (p - g)^2 / g^2; (p - g)^2; e^2; e; |e|; max(p / g, g / p) < 1.25, 1.25^2, 1.25^3;
// (1 / p - 1 / g)^2.
constexpr int kDepthSums = 12;

struct DepthMetricsParams {
  Dtype dtype;
  int threads;
  int64_t batch, height, width;
  int64_t top, bottom, left, right;  // the window that counts, half-open
  double min_valid, max_valid;       // ground truth strictly between counts
  double min_depth, max_depth;       // predictions are clipped to these
  bool inverse;                      // predictions are inverse depths
  const void* prediction;            // (B, H, W)
  const void* ground_truth;          // (B, H, W)
  const double* scale;               // (B,) or null: 1
  const double* shift;               // (B,) or null: 0
  double* sums;                      // out (B, kDepthSums)
  double* workspace;                 // GPU
};

// Which pixels count: those of `valid`, else if `measured` those of finite depth above 0, else all.
struct SilogLossParams {
  Dtype dtype;
  SilogForm form;
  int threads;
  int64_t batch, height, width;
  double variance_focus, scale;
  bool log_prediction;     // prediction is log(depth)
  bool measured;
  const void* prediction;  // (B, 1, H, W)
  const void* depth;       // (B, 1, H, W)
  const bool* valid;       // (B, 1, H, W) or null
  double* loss;            // out: one number; forward only
  double* coefficients;    // (B, 2), slope and shift of the gradient: out in forward, in in backward
  const void* grad;        // one number; backward only, as is all below
  void* grad_prediction;   // out (B, 1, H, W)
  double* workspace;       // GPU, forward only
};

struct BerhuLossParams {
  Dtype dtype;
  int threads;
  int64_t batch, height, width;
  double threshold;        // share of the largest error
  bool measured;
  const void* prediction;  // (B, 1, H, W)
  const void* depth;       // (B, 1, H, W)
  const bool* valid;       // (B, 1, H, W) or null
  double* loss;            // out: one number; forward only
  double* state;           // (2,), largest error and number of pixels: out in forward, in in backward
  const void* grad;        // one number; backward only, as is all below
  void* grad_prediction;   // out (B, 1, H, W)
  double* workspace;       // GPU, forward only
};

// What the pointwise product of nnconv5 is made of. With kFloat16 and kBFloat16, x, pw_weight, skip and out are of that
// type, and dtype, that of all else, is float.
enum class Product : int { kExact = 0, kTf32 = 1, kFloat16 = 2, kBFloat16 = 3 };

struct NnConv5Params {
  Dtype dtype;
  Product product;  // GPU; the CPU's is exact
  int threads;
  bool channels_last;  // x, skip and out are (B, H, W, C) in memory; CPU only
  int64_t batch, channels, out_channels, height, width;
  const void* x;          // (B, C, H, W)
  const void* dw_weight;  // (C, 1, 5, 5)
  const void* dw_scale;   // (C,)
  const void* dw_shift;   // (C,)
  const void* pw_weight;  // (O, C, 1, 1)
  const void* pw_scale;   // (O,)
  const void* pw_shift;   // (O,)
  const void* skip;       // (B, O, 2 H, 2 W) or null
  void* out;              // out (B, O, 2 H, 2 W)
  double* workspace;      // GPU
};

struct ConvStackBlock {
  int64_t out_channels;
  int kernel, stride;  // of the depthwise convolution, where there is one: kernel 3 or 5, stride 1 or 2
  bool doubled;
  int64_t skip;           // index of the block whose result is added; -1: none
  double cap;             // results are clamped to 0..cap
  const void* dw_weight;  // (C, 1, kernel, kernel) or null: weight is of a dense convolution
  const void* dw_bias;    // (C,) or null
  const void* weight;     // (O, C, 1, 1), or (O, C, kernel, kernel)
  const void* bias;       // (O,)
};

struct ConvStackParams {
  Dtype dtype;
  int threads;
  int64_t batch, channels, height, width;                   // of x
  int64_t image_step, channel_step, line_step, pixel_step;  // of x: (B, H, W, C) unless the first block is dense
  const void* x;
  const ConvStackBlock* blocks;
  int64_t count;
  void* out;  // of the last block, (B, H', W', O)
};

struct NnConv5WeightGradientsParams {
  Dtype dtype;
  int threads;
  int64_t batch, channels, out_channels, height, width;
  const void* x;               // (B, C, H, W)
  const void* active;          // (B, C, H, W), what the pointwise product was taken of
  const void* grad_depthwise;  // (B, C, H, W), by the depthwise product
  const void* grad_pointwise;  // (B, O, H, W), by the pointwise product
  void* grad_dw_weight;        // out (C, 1, 5, 5) or null: not wanted
  void* grad_pw_weight;        // out (O, C, 1, 1) or null
};

}  // namespace mdepth
