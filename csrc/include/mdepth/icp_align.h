// icp_align: parameters, the camera of an organised target, the closed-form alignment of pairs, and the GPU's plan.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

struct IcpAlignParams {
  Dtype dtype;
  int threads;
  int64_t batch, points, height, width, iterations;
  bool organised;      // the target is an image; otherwise a cloud of height * width points
  const void* source;  // (B, N, 3)
  const void* target;  // (B, H, W, 3)
  const double* init;  // (B, 4, 4)
  void* residual;      // out (B, N, 3)
  double* transform;   // out (B, 4, 4)
  bool* valid;         // out (B, N)
  double* workspace;   // GPU
};
MDEPTH_FIELDS(IcpAlignParams, dtype, threads, batch, points, height, width, iterations, organised, source, target, init,
              residual, transform, valid, workspace)

constexpr int kIcpReach = 3;  // of the window on organised clouds, in pixels to each side

template <class T>
MDEPTH_HD bool finite(const T* p) {
  return p[0] - p[0] == T(0) && p[1] - p[1] == T(0) && p[2] - p[2] == T(0);
}

// Point i of a cloud, and whether it counts.
template <class T>
MDEPTH_HD bool load_point(const T* cloud, int64_t i, bool organised, double* point) {
  const T* p = cloud + 3 * i;
  for (int a = 0; a < 3; ++a) point[a] = double(p[a]);
  return finite(p) && (!organised || point[2] > kMinZ);
}

MDEPTH_HD double squared_distance(const double* p, const double* q) {
  const double dx = p[0] - q[0], dy = p[1] - q[1], dz = p[2] - q[2];
  return dx * dx + dy * dy + dz * dz;
}

// Along each axis, pixel = focal * ray + middle, where a ray is x / z or y / z.
struct IcpCamera {
  double focal[2], middle[2];
};

// What the points of a target have in the mean.
struct IcpMeans {
  double point[3], ray[2], pixel[2];
};

// The camera is found by least squares, in two passes over the points that count. First their sums: 1, the point, its
// rays and its pixels.
constexpr int kIcpMeanSums = 8;
MDEPTH_HD void add_point(double* sums, const double* point) {
  sums[0] += 1.0;
  for (int a = 0; a < 3; ++a) sums[1 + a] += point[a];
}
MDEPTH_HD void add_ray(double* sums, const double* point, double u, double v) {
  add_point(sums, point);
  for (int a = 0; a < 2; ++a) sums[4 + a] += point[a] / point[2];
  sums[6] += u;
  sums[7] += v;
}
MDEPTH_HD IcpMeans icp_means(const double* sums) {
  const double count = sums[0] > 1.0 ? sums[0] : 1.0;
  IcpMeans means;
  for (int a = 0; a < 3; ++a) means.point[a] = sums[1 + a] / count;
  for (int a = 0; a < 2; ++a) means.ray[a] = sums[4 + a] / count;
  for (int a = 0; a < 2; ++a) means.pixel[a] = sums[6 + a] / count;
  return means;
}

// Then, around the means, the variances of both rays and their covariances with the pixels.
constexpr int kIcpSpreadSums = 4;
MDEPTH_HD void add_spread(double* sums, const IcpMeans& means, const double* point, double u, double v) {
  const double pixel[2] = {u, v};
  for (int a = 0; a < 2; ++a) {
    const double x = point[a] / point[2] - means.ray[a];
    sums[a] += x * x;
    sums[2 + a] += x * (pixel[a] - means.pixel[a]);
  }
}
MDEPTH_HD IcpCamera icp_camera(const double* sums, const IcpMeans& means) {
  IcpCamera camera;
  for (int a = 0; a < 2; ++a) {
    camera.focal[a] = sums[a] > 0.0 ? sums[2 + a] / sums[a] : 0.0;
    camera.middle[a] = means.pixel[a] - camera.focal[a] * means.ray[a];
  }
  return camera;
}

// The pixel in the middle of a moved point's window. False where there is none: the point is not before the camera, or
// all of the window is outside the image.
MDEPTH_HD bool icp_window(const IcpCamera& camera, const double* p, int64_t height, int64_t width, int64_t* u,
                          int64_t* v) {
  if (!(p[2] > kMinZ)) return false;
  const double x = floor_of(camera.focal[0] * (p[0] / p[2]) + camera.middle[0] + 0.5);
  const double y = floor_of(camera.focal[1] * (p[1] / p[2]) + camera.middle[1] + 0.5);
  if (!(x >= -kIcpReach && x <= double(width - 1 + kIcpReach))) return false;
  if (!(y >= -kIcpReach && y <= double(height - 1 + kIcpReach))) return false;
  *u = int64_t(x);
  *v = int64_t(y);
  return true;
}

// The sums over matched pairs p, q that determine the alignment: 1, p, q, p q^T (row-major), |p|^2, |q|^2.
constexpr int kIcpSums = 18;
constexpr double kIcpGap = 1e-9;     // where the best rotations differ by less, the pairs lie on a line
constexpr double kIcpNoise = 1e-14;  // the same relative to the squared coordinates, for pairs in one point

MDEPTH_HD void add_pair(double* sums, const double* p, const double* q) {
  sums[0] += 1.0;
  for (int a = 0; a < 3; ++a) {
    sums[1 + a] += p[a];
    sums[4 + a] += q[a];
    for (int b = 0; b < 3; ++b) sums[7 + 3 * a + b] += p[a] * q[b];
    sums[16] += p[a] * p[a];
    sums[17] += q[a] * q[a];
  }
}

MDEPTH_HD void move(const double* transform, const double* point, double* moved) {
  for (int a = 0; a < 3; ++a)
    moved[a] = transform[4 * a] * point[0] + transform[4 * a + 1] * point[1] + transform[4 * a + 2] * point[2] +
               transform[4 * a + 3];
}

// The eigenvector of a symmetric 4x4 matrix with the largest eigenvalue, by cyclic Jacobi rotations. Returns by how much
// that is larger than the next.
MDEPTH_HD double principal_axis(double (&m)[4][4], double (&axis)[4]) {
  double v[4][4] = {{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}, {0, 0, 0, 1}};
  for (int sweep = 0; sweep < 30; ++sweep) {
    double off = 0.0, all = 0.0;
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) {
        all += m[i][j] * m[i][j];
        if (i != j) off += m[i][j] * m[i][j];
      }
    if (!(off > 1e-36 * all)) break;  // it converges quadratically
    for (int i = 0; i < 3; ++i)
      for (int j = i + 1; j < 4; ++j) {
        if (m[i][j] == 0.0) continue;
        const double theta = (m[j][j] - m[i][i]) / (2.0 * m[i][j]);
        const double t = (theta < 0.0 ? -1.0 : 1.0) / (abs_of(theta) + sqrt(theta * theta + 1.0));
        const double c = 1.0 / sqrt(t * t + 1.0), s = t * c;
        for (int k = 0; k < 4; ++k) {
          const double a = m[k][i], b = m[k][j];
          m[k][i] = c * a - s * b;
          m[k][j] = s * a + c * b;
        }
        for (int k = 0; k < 4; ++k) {
          const double a = m[i][k], b = m[j][k];
          m[i][k] = c * a - s * b;
          m[j][k] = s * a + c * b;
        }
        for (int k = 0; k < 4; ++k) {
          const double a = v[k][i], b = v[k][j];
          v[k][i] = c * a - s * b;
          v[k][j] = s * a + c * b;
        }
      }
  }
  double best = m[0][0], next = -1.7976931348623157e308;
  for (int k = 0; k < 4; ++k) axis[k] = v[k][0];
  for (int i = 1; i < 4; ++i) {
    const bool better = m[i][i] > best;
    for (int k = 0; k < 4; ++k) axis[k] = better ? v[k][i] : axis[k];
    next = better ? best : (m[i][i] > next ? m[i][i] : next);
    best = better ? m[i][i] : best;
  }
  return best - next;
}

// transform <- (the rigid motion that takes the p closest to the q) * transform. The pairs were counted from `origin`,
// near which the squares do not cancel. Fewer than 3 pairs change nothing; pairs on a line only shift.
MDEPTH_HD void compose_alignment(const double* sums, const double* origin, double* transform) {
  const double n = sums[0];
  if (!(n >= 3.0)) return;
  double p[3], q[3], s[3][3], spread_p = sums[16], spread_q = sums[17];
  for (int a = 0; a < 3; ++a) {
    p[a] = sums[1 + a] / n;
    q[a] = sums[4 + a] / n;
    spread_p -= n * p[a] * p[a];
    spread_q -= n * q[a] * q[a];
  }
  for (int a = 0; a < 3; ++a)
    for (int b = 0; b < 3; ++b) s[a][b] = sums[7 + 3 * a + b] - n * p[a] * q[b];
  // Horn, JOSA A 4(4), 1987: the quaternion of the rotation is this matrix's principal axis; it is never a reflection.
  double m[4][4] = {
      {s[0][0] + s[1][1] + s[2][2], s[1][2] - s[2][1], s[2][0] - s[0][2], s[0][1] - s[1][0]},
      {s[1][2] - s[2][1], s[0][0] - s[1][1] - s[2][2], s[0][1] + s[1][0], s[2][0] + s[0][2]},
      {s[2][0] - s[0][2], s[0][1] + s[1][0], s[1][1] - s[0][0] - s[2][2], s[1][2] + s[2][1]},
      {s[0][1] - s[1][0], s[2][0] + s[0][2], s[1][2] + s[2][1], s[2][2] - s[0][0] - s[1][1]},
  };
  double moment_p = spread_p, moment_q = spread_q;
  for (int a = 0; a < 3; ++a) {
    p[a] += origin[a];
    q[a] += origin[a];
    moment_p += n * p[a] * p[a];
    moment_q += n * q[a] * q[a];
  }
  const double spread = sqrt((spread_p > 0.0 ? spread_p : 0.0) * (spread_q > 0.0 ? spread_q : 0.0));
  double h[4];
  if (!(principal_axis(m, h) > kIcpGap * spread + kIcpNoise * sqrt(moment_p * moment_q))) {
    h[0] = 1.0;
    h[1] = h[2] = h[3] = 0.0;
  }
  const double norm = 1.0 / sqrt(h[0] * h[0] + h[1] * h[1] + h[2] * h[2] + h[3] * h[3]);
  const double w = h[0] * norm, x = h[1] * norm, y = h[2] * norm, z = h[3] * norm;
  const double r[3][3] = {
      {1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)},
      {2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)},
      {2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)},
  };
  double before[12];
  for (int i = 0; i < 12; ++i) before[i] = transform[i];
  for (int a = 0; a < 3; ++a) {
    const double shift = q[a] - (r[a][0] * p[0] + r[a][1] * p[1] + r[a][2] * p[2]);
    for (int c = 0; c < 4; ++c)
      transform[4 * a + c] =
          r[a][0] * before[c] + r[a][1] * before[4 + c] + r[a][2] * before[8 + c] + shift * transform[12 + c];
  }
}

// What the GPU's kernels share. A block of kRunThreads has kIcpGroup points of the target, or a source point per thread.
constexpr int kIcpRun = 32;  // of target points in a common box; a group has one box more
constexpr int kIcpGroup = 32 * kIcpRun;

// An image of the batch on the GPU.
struct IcpState {
  IcpMeans means;
  IcpCamera camera;
  double sums[kIcpSums];
};
constexpr int kIcpState = sizeof(IcpState) / sizeof(double);

MDEPTH_HD int64_t icp_groups(const IcpAlignParams& p) { return (p.height * p.width + kIcpGroup - 1) / kIcpGroup; }

// Of the workspace, in doubles: for unorganised clouds each group's points, its boxes of two corners, all of them four
// numbers, and the last match of every source point; state; partial sums.
MDEPTH_HD int64_t icp_packed(const IcpAlignParams& p) {
  constexpr int64_t kCorners = kIcpGroup + 2 * (kIcpGroup / kIcpRun + 1);
  return p.organised ? 0 : icp_groups(p) * kCorners * (p.dtype == Dtype::kFloat64 ? 4 : 2);
}
MDEPTH_HD int64_t icp_last(const IcpAlignParams& p) { return p.organised ? 0 : (p.points + 1) / 2; }
MDEPTH_HD IcpState* icp_state(const IcpAlignParams& p) {
  return reinterpret_cast<IcpState*>(p.workspace + p.batch * (icp_packed(p) + icp_last(p)));
}
MDEPTH_HD double* icp_partial(const IcpAlignParams& p) { return reinterpret_cast<double*>(icp_state(p) + p.batch); }

#if !defined(__CUDACC_RTC__)

inline Plan plan_icp_align(const IcpAlignParams& p) {
  check_plane("icp_align", p.height, p.width);
  check_plane("icp_align", p.points, 1);
  if (p.iterations > 100000) throw std::invalid_argument("icp_align: more than 100000 iterations on a GPU");
  const int64_t groups = p.batch * icp_groups(p), blocks = p.batch * runs_per_plane(p.points);
  const auto kernel = [&p](const char* organised, const char* unorganised) {
    return with_dtype(p.organised ? organised : unorganised, p.dtype);
  };
  Plan plan;
  plan.workspace = p.batch * (icp_packed(p) + icp_last(p) + kIcpState) +
                   (kIcpMeanSums * groups > kIcpSums * blocks ? kIcpMeanSums * groups : kIcpSums * blocks);
  plan.add(kernel("icp_align_means", "icp_align_pack"), groups, kRunThreads);
  plan.add("icp_align_begin", p.batch, kReduceThreads);
  if (p.organised) {
    plan.add(with_dtype("icp_align_spreads", p.dtype), groups, kRunThreads);
    plan.add("icp_align_camera", p.batch, kReduceThreads);
  } else {
    plan.add("icp_align_guess", blocks, kRunThreads);
  }
  for (int64_t i = 0; i < p.iterations; ++i) {
    plan.add(kernel("icp_align_pairs_window", "icp_align_pairs_all"), blocks, kRunThreads);
    plan.add("icp_align_compose", p.batch, kReduceThreads);
  }
  plan.add(kernel("icp_align_residual_window", "icp_align_residual_all"), blocks, kRunThreads);
  return plan;
}

#endif

}  // namespace mdepth
