// Bilinear inverse warping; sampling.cuh has what flow_warp shares. Gradients by depth and projection are gathered, one
// writer a pixel, and summed in a fixed order.
#pragma once
#include "mdepth/inverse_warp.h"
#include "sampling.cuh"

namespace mdepth {

template <class T>
struct ProjectedLocation : Location<T> {
  T depth, inv_z, du_ddepth, dv_ddepth;
};

template <Padding padding, class T>
struct InverseMotion {
  using Number = T;
  const InverseWarpParams& p;
  const RowProjection<T>* rows;

  __device__ __forceinline__ ProjectedLocation<T> at(int64_t image, int x, int y, int row) const {
    ProjectedLocation<T> l;
    l.depth = static_cast<const T*>(p.depth)[(image * p.height + y) * p.width + x];
    const Projected<T> at = project(rows[row], T(x), l.depth);
    l.shift_u = at.shift_u;
    l.shift_v = at.shift_v;
    l.poison = at.poison;
    l.seen = at.inv_z > T(0);
    l.u = sample_axis<padding>(x, at.shift_u, int(p.source_width));
    l.v = sample_axis<padding>(y, at.shift_v, int(p.source_height));
    l.inv_z = at.inv_z;
    l.du_ddepth = at.du_ddepth;
    l.dv_ddepth = at.dv_ddepth;
    return l;
  }
};

// Fills the projections of a block's rows, in shared memory.
template <Padding padding, class T>
__device__ __forceinline__ InverseMotion<padding, T> block_motion(const InverseWarpParams& p, RowProjection<T>* rows) {
  const BlockOrigin origin = block_origin<PixelShape>(blockIdx.x, p.height, p.width);
  if (int(threadIdx.x) < PixelShape::kRows)
    rows[threadIdx.x] =
        row_projection<T>(p.projection + origin.image * kProjection, double(origin.y + int(threadIdx.x)));
  __syncthreads();
  return {p, rows};
}

template <Padding padding, class T>
__device__ __forceinline__ void inverse_warp_tile(const InverseWarpParams& p) {
  __shared__ RowProjection<T> rows[PixelShape::kRows];
  warp_tile(p, block_motion<padding>(p, rows));
}

template <Padding padding, class T>
__device__ __forceinline__ void inverse_warp_gather_tile(const InverseWarpParams& p) {
  using Shape = PixelShape;
  __shared__ RowProjection<T> rows[Shape::kRows];
  __shared__ T scratch[kBlockSumScratch<kProjection, Shape::kThreads>];
  const InverseMotion<padding, T> motion = block_motion<padding>(p, rows);
  const PixelBlock block(p.height, p.width);
  const int64_t plane = p.height * p.width;
  T sum[kProjection];
#pragma unroll
  for (int j = 0; j < kProjection; ++j) sum[j] = T(0);
  for (int k = 0; k < Shape::kStrip; ++k) {
    const int x = block.x, y = block.y + k;
    if (x >= p.width || y >= p.height) break;
    const ProjectedLocation<T> l = motion.at(block.image, x, y, block.row + k);
    T gu, gv;
    gather<T>(p, l, block.image, x, y, gu, gv);
    if (p.grad_depth)
      static_cast<T*>(p.grad_depth)[block.image * plane + int64_t(y) * p.width + x] =
          gu * l.du_ddepth + gv * l.dv_ddepth;
    const T to_u = gu * l.inv_z, to_v = gv * l.inv_z;
    const T to_z = -(to_u * (T(x) + l.shift_u) + to_v * (T(y) + l.shift_v));
    add_projection(sum, to_u, to_v, to_z, T(x), T(y), l.depth);
  }
  if (!p.grad_projection) return;
  const int64_t per_image = blocks_per_image<Shape>(p.height, p.width), tiles = p.batch * per_image;
  block_sum<Shape::kThreads>(sum, scratch, p.workspace + blockIdx.x, tiles);
}

// One block per number.
__device__ __forceinline__ void inverse_warp_sum(const InverseWarpParams& p) {
  const int64_t per_image = blocks_per_image<PixelShape>(p.height, p.width), tiles = p.batch * per_image;
  const int64_t k = blockIdx.x, j = k % kProjection, image = k / kProjection;
  sum_in_order(p.workspace + j * tiles + image * per_image, per_image, 1, p.grad_projection + k);
}

template <Padding padding, class T>
__device__ __forceinline__ void inverse_warp_scatter_tile(const InverseWarpParams& p) {
  __shared__ RowProjection<T> rows[PixelShape::kRows];
  warp_scatter_tile(p, block_motion<padding>(p, rows));
}

template <Padding padding, class T>
__device__ __forceinline__ void inverse_warp_scatter_rows(const InverseWarpParams& p) {
  RowProjection<T> row;
  warp_scatter_rows<T>(p, [&](int64_t image, int y) {
    row = row_projection<T>(p.projection + image * kProjection, double(y));
    return InverseMotion<padding, T>{p, &row};
  });
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_INVERSE_WARP_KERNEL(KERNEL, name, threads, function) \
  MDEPTH_WARP_KERNEL(KERNEL, name, threads, InverseWarpParams, function)
#define MDEPTH_INVERSE_WARP_KERNELS(KERNEL)                                                                            \
  MDEPTH_INVERSE_WARP_KERNEL(KERNEL, inverse_warp, mdepth::PixelShape::kThreads, inverse_warp_tile)                    \
  MDEPTH_INVERSE_WARP_KERNEL(KERNEL, inverse_warp_gather, mdepth::PixelShape::kThreads, inverse_warp_gather_tile)      \
  MDEPTH_INVERSE_WARP_KERNEL(KERNEL, inverse_warp_scatter, mdepth::PixelShape::kThreads, inverse_warp_scatter_tile)    \
  MDEPTH_INVERSE_WARP_KERNEL(KERNEL, inverse_warp_scatter_ordered, mdepth::kOrderedThreads, inverse_warp_scatter_rows) \
  KERNEL(inverse_warp_sum, mdepth::kReduceThreads, InverseWarpParams, mdepth::inverse_warp_sum)

MDEPTH_INVERSE_WARP_KERNELS(MDEPTH_DEFINE_KERNEL)
