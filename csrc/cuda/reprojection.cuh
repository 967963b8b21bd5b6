// What min_reprojection and view_synthesis_loss share: the tile, the warp of a pixel, and SSIM of a tile's windows.
#pragma once
#include "block.cuh"
#include "mdepth/ssim.h"
#include "mdepth/warp.h"

namespace mdepth {

constexpr int kCoefficients = 9;  // a, b, c of three channels

template <class T>
struct ReprojectionTile {
  using Shape = ReprojectionShape<T>;
  static constexpr int kStrip = Shape::kStrip;
  static constexpr int kRegionRows = Shape::kRows + 2;
  static constexpr int kRegionColumns = kWarp + 2;
  static constexpr int kRegion = kRegionRows * kRegionColumns;
  static constexpr int kPixels = Shape::kRows * kWarp;
  static constexpr int kScratch = kBlockSumScratch<kProjection, Shape::kThreads> > 3 * kRegion
                                      ? kBlockSumScratch<kProjection, Shape::kThreads>
                                      : 3 * kRegion;
};

// Where one pixel falls in a source, and what it reads there.
template <class T>
struct Warp {
  Projected<T> at;
  Sample<T> color[3];
};

template <Padding padding, class T>
__device__ __forceinline__ Warp<T> warp_pixel(const RowProjection<T>& row, const T* source, int plane, int x, int y,
                                              T depth, int width, int height) {
  Warp<T> w;
  w.at = project(row, T(x), depth);
  const Axis<T> u = sample_axis<padding>(x, w.at.shift_u, width);
  const Axis<T> v = sample_axis<padding>(y, w.at.shift_v, height);
  const bool seen = w.at.inv_z > T(0);
  const T* row0 = source + v.tap0 * width;
  const T* row1 = source + v.tap1 * width;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    w.color[c] = bilinear(u, v, row0[u.tap0], row0[u.tap1], row1[u.tap0], row1[u.tap1]);
    w.color[c].value = (seen ? w.color[c].value : T(0)) + w.at.poison;
    row0 += plane;
    row1 += plane;
  }
  return w;
}

// Photometric distances of a thread's pixels. `corner` is the region's index of the first pixel's window; `derivative`
// receives the distances' a, b, c per channel.
template <bool kDerivative, class T, int kStrip>
__device__ __forceinline__ void compare(const T* image, const T* target, int corner,
                                        const Moments<T> (&moments)[kStrip][3], T ssim_third, T l1_third,
                                        T (&cost)[kStrip], T (&derivative)[kStrip][kCoefficients]) {
  using Tile = ReprojectionTile<T>;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    Window<T> x, y;
#pragma unroll
    for (int row = 0; row < kStrip + 2; ++row) {
#pragma unroll
      for (int i = 0; i < 6; ++i) {
        x.v[i] = x.v[i + 3];
        y.v[i] = y.v[i + 3];
      }
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const int at = c * Tile::kRegion + corner + row * Tile::kRegionColumns + i;
        x.v[6 + i] = image[at];
        y.v[6 + i] = target[at];
      }
      const int k = row - 2;
      if (k < 0) continue;
      const SsimDistance<T> s = ssim_distance(x, y, moments[k][c]);
      cost[k] = (c == 0 ? T(0) : cost[k]) + ssim_third * s.distance + l1_third * abs_of(x.v[4] - y.v[4]);
      if (kDerivative) {
        derivative[k][3 * c] = ssim_third * s.a_x;
        derivative[k][3 * c + 1] = ssim_third * s.b;
        derivative[k][3 * c + 2] = ssim_third * s.c;
      }
    }
  }
}

}  // namespace mdepth
