// nnconv5: parameters, how a GPU divides it, and its launch plan.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/hd.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

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
MDEPTH_FIELDS(NnConv5Params, dtype, product, threads, channels_last, batch, channels, out_channels, height, width, x,
              dw_weight, dw_scale, dw_shift, pw_weight, pw_scale, pw_shift, skip, out, workspace)

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
MDEPTH_FIELDS(NnConv5WeightGradientsParams, dtype, threads, batch, channels, out_channels, height, width, x, active,
              grad_depthwise, grad_pointwise, grad_dw_weight, grad_pw_weight)

// A block of nnconv5: a rectangle of pixels times a group of output channels, more pixels where there are few channels.
// A FastDepth decoder starts from 7x7.
template <class T, int outputs>
struct NnConv5Shape {
  using Sum = T;
  static constexpr int kThreads = 256;
  static constexpr int kOutputs = outputs;
  static constexpr int kWidth = sizeof(T) == 4 && outputs < 128 ? 16 : 8;
  static constexpr int kHeight = 8;
};

// Output channels of a block. The tensor cores divide their warps among pixels where there are few; the others cannot.
MDEPTH_HD int nnconv5_outputs(const NnConv5Params& p) {
  if (p.dtype == Dtype::kFloat64) return 64;
  if (p.product != Product::kExact || p.out_channels > 64) return 128;
  return p.out_channels > 32 ? 64 : 32;
}

// Small images with many channels make few blocks. Then parts of the input channels go to blocks of their own, which
// leave sums for another kernel to add up: as many as make kNnConv5Blocks, two for each processor of a large GPU, but
// none of less than kNnConv5Part channels, a multiple of every shape's chunk, unless it is the last. Sizes alone decide
// that, and with it the order of the sums.
constexpr int64_t kNnConv5Blocks = 256, kNnConv5Part = 32;

struct NnConv5Parts {
  int count, channels;
};

template <class Shape>
MDEPTH_HD int64_t nnconv5_groups(const NnConv5Params& p) {
  return (p.out_channels + Shape::kOutputs - 1) / Shape::kOutputs;
}

template <class Shape>
MDEPTH_HD int64_t nnconv5_blocks(const NnConv5Params& p) {
  return p.batch * blocks_per_image<Shape>(p.height, p.width) * nnconv5_groups<Shape>(p);
}

// Blocks of one part.
MDEPTH_HD int64_t nnconv5_blocks(const NnConv5Params& p) {
  if (p.dtype == Dtype::kFloat64) return nnconv5_blocks<NnConv5Shape<double, 64>>(p);
  const int outputs = nnconv5_outputs(p);
  return outputs == 128  ? nnconv5_blocks<NnConv5Shape<float, 128>>(p)
         : outputs == 64 ? nnconv5_blocks<NnConv5Shape<float, 64>>(p)
                         : nnconv5_blocks<NnConv5Shape<float, 32>>(p);
}

MDEPTH_HD NnConv5Parts nnconv5_parts(const NnConv5Params& p) {
  const int64_t blocks = nnconv5_blocks(p), units = (p.channels + kNnConv5Part - 1) / kNnConv5Part;
  int64_t count = p.channels / kNnConv5Part;
  if (blocks > 0 && count > kNnConv5Blocks / blocks) count = kNnConv5Blocks / blocks;
  if (count < 1) count = 1;
  NnConv5Parts parts;
  parts.channels = int((units + count - 1) / count * kNnConv5Part);
  parts.count = int((p.channels + parts.channels - 1) / parts.channels);
  return parts;
}

#if !defined(__CUDACC_RTC__)

inline Plan plan_nnconv5(const NnConv5Params& p) {
  check_plane("nnconv5", p.height, p.width);
  const std::string suffix[] = {p.dtype == Dtype::kFloat64 ? "f64" : "f32", "tf32", "f16", "bf16"};
  const std::string product = suffix[int(p.product)], sum = p.product == Product::kTf32 ? "f32" : product;
  const bool wide = p.product == Product::kExact && p.dtype == Dtype::kFloat32;
  const int64_t parts = nnconv5_parts(p).count, numbers = p.batch * p.out_channels * p.height * p.width;
  const int threads = NnConv5Shape<float, 128>::kThreads;  // all have as many
  Plan plan;
  plan.add("nnconv5_" + product + (wide ? "_" + std::to_string(nnconv5_outputs(p)) : ""), parts * nnconv5_blocks(p),
           threads);
  if (parts > 1) {
    plan.workspace = p.dtype == Dtype::kFloat64 ? parts * numbers : (parts * numbers + 1) / 2;
    plan.add("nnconv5_sum_" + sum, (numbers + threads - 1) / threads, threads);
  }
  return plan;
}

#endif

}  // namespace mdepth
