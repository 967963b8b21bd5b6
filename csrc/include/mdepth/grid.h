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

template <class Shape>
MDEPTH_HD int64_t blocks_per_image(int64_t height, int64_t width) {
  return ((height + Shape::kHeight - 1) / Shape::kHeight) * ((width + Shape::kWidth - 1) / Shape::kWidth);
}

// Blocks of an image whose pixels are taken one after another, whatever their row.
MDEPTH_HD int64_t runs_per_plane(int64_t plane) { return (plane + kRunThreads - 1) / kRunThreads; }

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

}  // namespace mdepth
