// How the GPU kernels cut their work into blocks: what kernels and launch plans share.
#pragma once
#include "mdepth/hd.h"
#include "mdepth/params.h"

namespace mdepth {

constexpr int kWarp = 32;
constexpr int kReduceThreads = 128;   // of a block that sums partial results
constexpr int kOrderedThreads = 128;  // of inverse_warp's ordered scatter
constexpr int kRunThreads = 128;      // and pixels, of a block that goes through many planes
constexpr int kElementsPerThread = 4;

// A block's rectangle of owned pixels. Each thread has one column, its lane, and kStrip rows below each other.
template <int halo, int warps, int strip>
struct BlockShape {
  static constexpr int kHalo = halo;
  static constexpr int kStrip = strip;
  static constexpr int kThreads = warps * kWarp;
  static constexpr int kRows = warps * strip;       // covered by the threads, halo included
  static constexpr int kWidth = kWarp - 2 * halo;   // owned
  static constexpr int kHeight = kRows - 2 * halo;  // owned
};

// The gradient of a 3x3 window's function needs the windows one pixel around. Double must do with as many registers and
// as much shared memory (48 KiB) as float.
template <class T>
using ReprojectionShape = BlockShape<1, sizeof(T) == 4 ? 8 : 4, sizeof(T) == 4 ? 2 : 1>;
using PixelShape = BlockShape<0, 8, 2>;
using WindowShape = BlockShape<0, 4, 4>;
template <class T>
using WindowGradientShape = BlockShape<1, 8, sizeof(T) == 4 ? 2 : 1>;

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

template <class Shape>
MDEPTH_HD int64_t blocks_per_image(int64_t height, int64_t width) {
  return ((height + Shape::kHeight - 1) / Shape::kHeight) * ((width + Shape::kWidth - 1) / Shape::kWidth);
}

// Blocks of an image whose pixels are taken one after another, whatever their row.
MDEPTH_HD int64_t runs_per_plane(int64_t plane) { return (plane + kRunThreads - 1) / kRunThreads; }

// Blocks of an image of depth_metrics, each of kMetricsPixels * kRunThreads pixels of the window.
constexpr int kMetricsPixels = 16;
MDEPTH_HD int64_t metrics_blocks(const DepthMetricsParams& p) {
  constexpr int64_t kPixels = kMetricsPixels * kRunThreads;
  return ((p.bottom - p.top) * (p.right - p.left) + kPixels - 1) / kPixels;
}

// Blocks of kReduceThreads over a plane, each thread with kElementsPerThread of its pixels.
MDEPTH_HD int64_t spans_per_plane(int64_t plane) {
  return (plane + kReduceThreads * kElementsPerThread - 1) / (kReduceThreads * kElementsPerThread);
}

// First owned pixel of a block.
struct BlockOrigin {
  int64_t image;
  int x, y;
};

template <class Shape>
MDEPTH_HD BlockOrigin block_origin(int64_t block, int64_t height, int64_t width) {
  const int64_t columns = (width + Shape::kWidth - 1) / Shape::kWidth;
  const int64_t per_image = blocks_per_image<Shape>(height, width);
  const int within = int(block % per_image);
  BlockOrigin o;
  o.image = block / per_image;
  o.x = within % int(columns) * Shape::kWidth;
  o.y = within / int(columns) * Shape::kHeight;
  return o;
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

}  // namespace mdepth
