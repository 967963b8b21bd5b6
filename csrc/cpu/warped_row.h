// A tile's row of a warped RGB image, and the gradient by what it was warped by.
#pragma once
#include "mdepth/warp.h"
#include "rows.h"

namespace mdepth {

template <class T>
struct alignas(64) WarpedRow {
  Row<T> color[3], du[3], dv[3];
  Row<T> shift_u, shift_v, inv_z, du_ddepth, dv_ddepth;
};

template <class T>
struct Pair {
  T first, second;
};

// Two floats as one number: half as many elements to gather, which is what a warp waits for.
using Two = uint64_t __attribute__((aligned(4), may_alias));

MDEPTH_HD float low_float(uint64_t two) {
  const uint32_t bits = uint32_t(two);
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// What both taps of `u` read; `at` is the place of column `base` in `plane`, and both taps are that column or the next.
MDEPTH_HD Pair<float> read_taps(const float* plane, int at, int base, const Axis<float>& u) {
  const uint64_t two = *reinterpret_cast<const Two*>(plane + at);
  const float low = low_float(two), high = low_float(two >> 32);
  return Pair<float>{u.tap0 > base ? high : low, u.tap1 > base ? high : low};
}

MDEPTH_HD Pair<double> read_taps(const double* plane, int at, int base, const Axis<double>& u) {
  return Pair<double>{plane[at + (u.tap0 - base)], plane[at + (u.tap1 - base)]};
}

// Row y of `source` (3, H, W), at least two columns wide, sampled where the pixels of depths `depth` fall.
template <Padding padding, class T>
static inline void warp_row(const Tile& t, int y, const T* RESTRICT source, int width, int height,
                            const double* projection, const T* RESTRICT depth, WarpedRow<T>& out) {
  const T* RESTRICT red = source;
  const T* RESTRICT green = red + int64_t(height) * width;
  const T* RESTRICT blue = green + int64_t(height) * width;
  const RowProjection<T> rp = row_projection<T>(projection, double(y));
  T *RESTRICT r = out.color[0] + kLead, *RESTRICT g = out.color[1] + kLead, *RESTRICT b = out.color[2] + kLead;
  T *RESTRICT ru = out.du[0] + kLead, *RESTRICT gu = out.du[1] + kLead, *RESTRICT bu = out.du[2] + kLead;
  T *RESTRICT rv = out.dv[0] + kLead, *RESTRICT gv = out.dv[1] + kLead, *RESTRICT bv = out.dv[2] + kLead;
  T *RESTRICT shift_u = out.shift_u + kLead, *RESTRICT shift_v = out.shift_v + kLead,
              *RESTRICT inv_z = out.inv_z + kLead;
  T *RESTRICT du_ddepth = out.du_ddepth + kLead, *RESTRICT dv_ddepth = out.dv_ddepth + kLead;
  const int w = width, h = height, first = t.x0 - kHalo, n = t.n, last = width - 2;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const int x = first + i;
    const Projected<T> at = project(rp, T(x), depth[i]);
    const Axis<T> u = sample_axis<padding>(x, at.shift_u, w);
    const Axis<T> v = sample_axis<padding>(y, at.shift_v, h);
    const int base = u.tap0 < last ? u.tap0 : last, at0 = v.tap0 * w + base, at1 = v.tap1 * w + base;
    const bool seen = at.inv_z > T(0);
    const Pair<T> r0 = read_taps(red, at0, base, u), r1 = read_taps(red, at1, base, u);
    const Pair<T> g0 = read_taps(green, at0, base, u), g1 = read_taps(green, at1, base, u);
    const Pair<T> b0 = read_taps(blue, at0, base, u), b1 = read_taps(blue, at1, base, u);
    const Sample<T> sr = bilinear(u, v, r0.first, r0.second, r1.first, r1.second);
    const Sample<T> sg = bilinear(u, v, g0.first, g0.second, g1.first, g1.second);
    const Sample<T> sb = bilinear(u, v, b0.first, b0.second, b1.first, b1.second);
    r[i] = (seen ? sr.value : T(0)) + at.poison;
    g[i] = (seen ? sg.value : T(0)) + at.poison;
    b[i] = (seen ? sb.value : T(0)) + at.poison;
    ru[i] = sr.du;
    gu[i] = sg.du;
    bu[i] = sb.du;
    rv[i] = sr.dv;
    gv[i] = sg.dv;
    bv[i] = sb.dv;
    shift_u[i] = at.shift_u;
    shift_v[i] = at.shift_v;
    inv_z[i] = at.inv_z;
    du_ddepth[i] = at.du_ddepth;
    dv_ddepth[i] = at.dv_ddepth;
  }
}

// The chain rule from the gradients `gu`, `gv` by the coordinates of row y: adds to `grad_depth` (sets it where `fresh`),
// and adds the share of the owned pixels to `grad_projection`.
template <class T>
static inline void differentiate_warp(const Tile& t, int y, const WarpedRow<T>& warped, const T* RESTRICT depth,
                                      const T* RESTRICT gu, const T* RESTRICT gv, bool fresh, T* RESTRICT grad_depth,
                                      double* grad_projection) {
  const T* RESTRICT inv_z = warped.inv_z + kLead;
  const T *RESTRICT shift_u = warped.shift_u + kLead, *RESTRICT shift_v = warped.shift_v + kLead;
  const T *RESTRICT du_ddepth = warped.du_ddepth + kLead, *RESTRICT dv_ddepth = warped.dv_ddepth + kLead;
  const int n = t.n, first = t.x0 - kHalo, owned_end = t.x1 - first;
  const T row = T(y);
  T su = 0, sv = 0, sz = 0, sud = 0, svd = 0, szd = 0, sudx = 0, svdx = 0, szdx = 0;
#pragma omp simd reduction(+ : su, sv, sz, sud, svd, szd, sudx, svdx, szdx)
  for (int i = 0; i < n; ++i) {
    const bool owned = i >= kHalo && i < owned_end;
    const T x = T(first + i);
    grad_depth[i] = (fresh ? T(0) : grad_depth[i]) + gu[i] * du_ddepth[i] + gv[i] * dv_ddepth[i];
    // u = nu / z, v = nv / z, and (nu, nv, z) = projection * (depth * (x, y, 1), 1).
    const T to_u = owned ? gu[i] * inv_z[i] : T(0);
    const T to_v = owned ? gv[i] * inv_z[i] : T(0);
    const T to_z = owned ? -(to_u * (x + shift_u[i]) + to_v * (row + shift_v[i])) : T(0);
    const T d = owned ? depth[i] : T(0);
    su += to_u;
    sv += to_v;
    sz += to_z;
    sud += to_u * d;
    svd += to_v * d;
    szd += to_z * d;
    sudx += to_u * d * x;
    svdx += to_v * d * x;
    szdx += to_z * d * x;
  }
  add_projection_row(grad_projection, y, su, sv, sz, sud, svd, szd, sudx, svdx, szdx);
}

}  // namespace mdepth
