// icp_align: parameters, and the arithmetic of one closed-form alignment.
#pragma once
#include "mdepth/hd.h"
#include "mdepth/params.h"

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
};
MDEPTH_FIELDS(IcpAlignParams, dtype, threads, batch, points, height, width, iterations, organised, source, target, init,
              residual, transform, valid)

constexpr int kIcpReach = 3;  // of the window on organised clouds, in pixels to each side

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
  int best = 0;
  for (int i = 1; i < 4; ++i)
    if (m[i][i] > m[best][best]) best = i;
  double next = -1.7976931348623157e308;
  for (int i = 0; i < 4; ++i)
    if (i != best && m[i][i] > next) next = m[i][i];
  for (int k = 0; k < 4; ++k) axis[k] = v[k][best];
  return m[best][best] - next;
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

}  // namespace mdepth
