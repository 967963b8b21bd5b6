// Which kernels an op launches on a GPU, host only: the one description that the compiled launcher, NVRTC and the tests
// that run the kernels on the CPU follow. Kernels of a plan run one after another, with the op's parameters.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "mdepth/grid.h"
#include "mdepth/params.h"

namespace mdepth {

struct Launch {
  std::string kernel;
  int64_t blocks;
  int threads;
};

struct Plan {
  std::vector<Launch> launches;
  int64_t workspace = 0;  // doubles

  void add(const std::string& kernel, int64_t blocks, int threads) {
    if (blocks > INT32_MAX) throw std::invalid_argument(kernel + ": too large for one launch");
    if (blocks > 0) launches.push_back({kernel, blocks, threads});
  }
};

inline std::string with_dtype(const char* kernel, Dtype dtype) {
  return std::string(kernel) + (dtype == Dtype::kFloat64 ? "_f64" : "_f32");
}

inline std::string with_padding(const char* kernel, Dtype dtype, Padding padding) {
  return with_dtype(kernel, dtype) + (padding == Padding::kZeros ? "_zeros" : "_border");
}

// Offsets within one plane are 32-bit in the kernels.
inline void check_plane(const char* op, int64_t height, int64_t width) {
  if (height * width > INT32_MAX) throw std::invalid_argument(std::string(op) + ": an image of over 2^31 pixels");
}

inline Plan plan_inverse_warp(const InverseWarpParams& p) {
  check_plane("inverse_warp", p.height, p.width);
  check_plane("inverse_warp", p.source_height, p.source_width);
  Plan plan;
  plan.add(with_padding("inverse_warp", p.dtype, p.padding), p.batch * blocks_per_image<PixelShape>(p.height, p.width),
           PixelShape::kThreads);
  return plan;
}

inline Plan plan_inverse_warp_backward(const InverseWarpParams& p) {
  check_plane("inverse_warp", p.height, p.width);
  check_plane("inverse_warp", p.source_height, p.source_width);
  const int64_t tiles = p.batch * blocks_per_image<PixelShape>(p.height, p.width);
  Plan plan;
  if (p.grad_depth || p.grad_projection)
    plan.add(with_padding("inverse_warp_gather", p.dtype, p.padding), tiles, PixelShape::kThreads);
  if (p.grad_projection) {
    plan.workspace = tiles * kProjection;
    plan.add("inverse_warp_sum", p.batch * kProjection, kReduceThreads);
  }
  if (p.grad_source && p.ordered)
    plan.add(with_padding("inverse_warp_scatter_ordered", p.dtype, p.padding),
             (p.batch * p.channels * p.source_height + kOrderedThreads - 1) / kOrderedThreads, kOrderedThreads);
  if (p.grad_source && !p.ordered)
    plan.add(with_padding("inverse_warp_scatter", p.dtype, p.padding), tiles, PixelShape::kThreads);
  return plan;
}

inline Plan plan_photometric_loss(const PhotometricLossParams& p) {
  check_plane("photometric_loss", p.height, p.width);
  Plan plan;
  plan.add(with_dtype("photometric_loss", p.dtype), p.batch * blocks_per_image<WindowShape>(p.height, p.width),
           WindowShape::kThreads);
  return plan;
}

inline Plan plan_photometric_loss_backward(const PhotometricLossParams& p) {
  check_plane("photometric_loss", p.height, p.width);
  Plan plan;
  plan.add(with_dtype("photometric_loss_backward", p.dtype),
           p.batch * (p.dtype == Dtype::kFloat64 ? blocks_per_image<WindowGradientShape<double>>(p.height, p.width)
                                                 : blocks_per_image<WindowGradientShape<float>>(p.height, p.width)),
           WindowGradientShape<float>::kThreads);  // double has as many
  return plan;
}

inline Plan plan_min_reprojection(const MinReprojectionParams& p) {
  check_plane("min_reprojection", p.height, p.width);
  const bool wide = p.dtype == Dtype::kFloat64;
  const int64_t tiles = p.batch * (wide ? blocks_per_image<ReprojectionShape<double>>(p.height, p.width)
                                        : blocks_per_image<ReprojectionShape<float>>(p.height, p.width));
  Plan plan;
  plan.workspace = p.scales * (1 + p.sources * kProjection) * tiles;
  plan.add(with_padding("min_reprojection", p.dtype, p.padding), tiles,
           wide ? ReprojectionShape<double>::kThreads : ReprojectionShape<float>::kThreads);
  plan.add(with_dtype("min_reprojection_sum", p.dtype),
           p.scales * (1 + (p.grad_projection ? p.batch * p.sources * kProjection : 0)), kReduceThreads);
  return plan;
}

inline Plan plan_edge_aware_smoothness(const EdgeAwareSmoothnessParams& p) {
  check_plane("edge_aware_smoothness", p.height, p.width);
  const int64_t tiles = p.batch * blocks_per_image<PixelShape>(p.height, p.width);
  const int64_t per_block = kReduceThreads * kElementsPerThread;
  const int64_t per_image = (p.height * p.width + per_block - 1) / per_block;
  Plan plan;
  plan.workspace = 3 * (tiles + p.batch);  // sums of each tile, numbers of each image
  plan.add(with_dtype("edge_aware_smoothness", p.dtype), tiles, PixelShape::kThreads);
  plan.add("edge_aware_smoothness_sum", p.batch, kReduceThreads);
  plan.add(with_dtype("edge_aware_smoothness_finish", p.dtype), 1 + (p.grad_disparity ? p.batch * per_image : 0),
           kReduceThreads);
  return plan;
}

inline Plan plan_disparity_to_depth(const DisparityToDepthParams& p) {
  check_plane("disparity_to_depth", p.height, p.width);
  check_plane("disparity_to_depth", p.map_height, p.map_width);
  Plan plan;
  plan.add(with_dtype("disparity_to_depth", p.dtype), p.batch * blocks_per_image<PixelShape>(p.height, p.width),
           PixelShape::kThreads);
  return plan;
}

inline Plan plan_disparity_to_depth_backward(const DisparityToDepthParams& p) {
  check_plane("disparity_to_depth", p.height, p.width);
  check_plane("disparity_to_depth", p.map_height, p.map_width);
  Plan plan;
  plan.add(with_dtype("disparity_to_depth_backward", p.dtype), p.batch * runs_per_plane(p.map_height * p.map_width),
           kRunThreads);
  return plan;
}

inline Plan plan_depth_metrics(const DepthMetricsParams& p) {
  check_plane("depth_metrics", p.height, p.width);
  const int64_t blocks = p.batch * metrics_blocks(p);
  Plan plan;
  plan.workspace = kDepthSums * blocks;
  plan.add(with_dtype("depth_metrics", p.dtype), blocks, kRunThreads);
  plan.add("depth_metrics_sum", p.batch, kReduceThreads);
  return plan;
}

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

inline Plan plan_ordinal_decode(const OrdinalDecodeParams& p) {
  Plan plan;
  plan.add(with_dtype("ordinal_decode", p.dtype), p.batch * runs_per_plane(p.height * p.width), kRunThreads);
  return plan;
}

inline Plan plan_ordinal_loss(const OrdinalLossParams& p) {
  const int64_t blocks = p.batch * runs_per_plane(p.height * p.width);
  Plan plan;
  plan.workspace = 2 * blocks;  // cost and number of the pixels of each block
  plan.add(with_dtype("ordinal_loss", p.dtype), blocks, kRunThreads);
  plan.add("ordinal_loss_sum", 1, kReduceThreads);
  return plan;
}

inline Plan plan_ordinal_loss_backward(const OrdinalLossParams& p) {
  Plan plan;
  plan.add(with_dtype("ordinal_loss_backward", p.dtype), p.batch * runs_per_plane(p.height * p.width), kRunThreads);
  return plan;
}

inline Plan plan_silog_loss(const SilogLossParams& p) {
  const int64_t blocks = p.batch * spans_per_plane(p.height * p.width);
  Plan plan;
  plan.workspace = 3 * (blocks + p.batch);  // sums of each block, of each image
  plan.add(with_dtype("silog_loss", p.dtype), blocks, kReduceThreads);
  plan.add("silog_loss_sum", p.batch, kReduceThreads);
  plan.add("silog_loss_finish", 1, 1);
  return plan;
}

inline Plan plan_silog_loss_backward(const SilogLossParams& p) {
  Plan plan;
  plan.add(with_dtype("silog_loss_backward", p.dtype), p.batch * spans_per_plane(p.height * p.width), kReduceThreads);
  return plan;
}

inline Plan plan_berhu_loss(const BerhuLossParams& p) {
  const int64_t blocks = spans_per_plane(p.batch * p.height * p.width);
  Plan plan;
  plan.workspace = 3 * blocks;  // largest error, number of pixels and cost of each block
  plan.add(with_dtype("berhu_loss_largest", p.dtype), blocks, kReduceThreads);
  plan.add("berhu_loss_state", 1, kReduceThreads);
  plan.add(with_dtype("berhu_loss", p.dtype), blocks, kReduceThreads);
  plan.add("berhu_loss_sum", 1, kReduceThreads);
  return plan;
}

inline Plan plan_berhu_loss_backward(const BerhuLossParams& p) {
  Plan plan;
  plan.add(with_dtype("berhu_loss_backward", p.dtype), spans_per_plane(p.batch * p.height * p.width), kReduceThreads);
  return plan;
}

}  // namespace mdepth
