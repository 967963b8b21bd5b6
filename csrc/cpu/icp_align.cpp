// Iterative closest points. A search structure is built once per cloud: an image with a border for organised targets, a
// k-d tree for others. Sums over pairs are kept per chunk of points and added in order, so that any number of threads
// gives the same bits.
#include "mdepth/icp_align.h"

#include <cmath>
#include <limits>

#include "rows.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

constexpr int64_t kChunk = 2048;  // points that are summed together
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The nearest point in the window around a projection. Rows of x, y and z lie one after the other, with a border of
// points at infinity wide enough for every window whose centre is at most kIcpReach outside.
class Image {
 public:
  static constexpr int kWindow = 2 * kIcpReach + 1, kBorder = 2 * kIcpReach, kVector = 8;

  static int64_t doubles(const IcpAlignParams& p) { return 3 * (p.height + 2 * kBorder) * step(p); }

  template <class T>
  Image(const IcpAlignParams& p, const T* target, double* memory)
      : height_(p.height), width_(p.width), step_(step(p)), planes_(memory) {
    std::fill(memory, memory + doubles(p), kInfinity);
    double sums[kIcpMeanSums] = {}, spreads[kIcpSpreadSums] = {}, point[3];
    for (int64_t v = 0; v < height_; ++v)
      for (int64_t u = 0; u < width_; ++u) {
        if (!load_point(target, v * width_ + u, true, point)) continue;
        add_ray(sums, point, double(u), double(v));
        for (int a = 0; a < 3; ++a) row(v, a)[u] = point[a];
      }
    const IcpMeans means = icp_means(sums);
    for (int64_t v = 0; v < height_; ++v)
      for (int64_t u = 0; u < width_; ++u)
        if (load_point(target, v * width_ + u, true, point)) add_spread(spreads, means, point, double(u), double(v));
    camera_ = icp_camera(spreads, means);
    for (int a = 0; a < 3; ++a) centre[a] = means.point[a];
  }

  bool nearest(const double* p, int64_t, double* match) const {
    int64_t u, v;
    if (!icp_window(camera_, p, height_, width_, &u, &v)) return false;
    const int64_t left = u - kIcpReach, top = v - kIcpReach;
    double best[kVector], line[kVector];  // of each column, one of them beyond the window
    for (int i = 0; i < kVector; ++i) best[i] = kInfinity;
    for (int i = 0; i < kVector; ++i) line[i] = 0.0;
    for (int dv = 0; dv < kWindow; ++dv) {
      const double *x = row(top + dv, 0) + left, *y = row(top + dv, 1) + left, *z = row(top + dv, 2) + left;
#pragma omp simd
      for (int i = 0; i < kVector; ++i) {
        const double dx = p[0] - x[i], dy = p[1] - y[i], dz = p[2] - z[i];
        const double d = dx * dx + dy * dy + dz * dz;
        line[i] = d < best[i] ? double(dv) : line[i];
        best[i] = d < best[i] ? d : best[i];
      }
    }
    int column = 0;
    for (int i = 1; i < kWindow; ++i)
      if (best[i] < best[column] || (best[i] == best[column] && line[i] < line[column])) column = i;
    if (!(best[column] < kInfinity)) return false;
    for (int a = 0; a < 3; ++a) match[a] = row(top + int64_t(line[column]), a)[left + column];
    return true;
  }

  double centre[3] = {0.0, 0.0, 0.0};  // of all points

 private:
  static int64_t step(const IcpAlignParams& p) { return p.width + 2 * kBorder + kVector - kWindow; }
  double* row(int64_t v, int a) const { return planes_ + ((v + kBorder) * 3 + a) * step_ + kBorder; }

  int64_t height_, width_, step_;
  double* planes_;
  IcpCamera camera_;
};

// The nearest of all points: a balanced k-d tree whose nodes lie as in a heap and split their points in the middle.
class Tree {
 public:
  static constexpr int kLeaf = 16;

  // Points in the order of the leaves, their indices, the nodes, and the last match of each source point.
  static int64_t doubles(const IcpAlignParams& p) {
    const int64_t n = p.height * p.width;
    return 3 * (n + kLeaf) + n + 2 * nodes(n) + p.points;
  }

  template <class T>
  Tree(const IcpAlignParams& p, const T* target, double* memory) {
    const int64_t all = p.height * p.width;
    double* room = memory;
    for (int a = 0; a < 3; ++a, room += all + kLeaf) points_[a] = room;
    index_ = reinterpret_cast<int64_t*>(room);
    split_ = room + all;
    axis_ = reinterpret_cast<int64_t*>(split_ + nodes(all));
    last_ = axis_ + nodes(all);
    std::fill(last_, last_ + p.points, -1);
    double sums[kIcpMeanSums] = {};
    for (int64_t i = 0; i < all; ++i) {
      double point[3];
      if (!load_point(target, i, false, point)) continue;
      add_point(sums, point);
      index_[count_++] = i;
    }
    const IcpMeans means = icp_means(sums);
    for (int a = 0; a < 3; ++a) centre[a] = means.point[a];
    build(target, 0, 0, count_);
    for (int64_t i = 0; i < count_; ++i)
      for (int a = 0; a < 3; ++a) points_[a][i] = double(target[3 * index_[i] + a]);
  }

  bool nearest(const double* p, int64_t source, double* match) const {
    if (count_ == 0 || !finite(p)) return false;
    Query query{p, kInfinity, -1};
    // Where the point was matched before bounds the search; it decides nothing.
    if (last_[source] >= 0) query.consider(distance(p, last_[source]), last_[source], index_);
    double beyond[3] = {0.0, 0.0, 0.0};
    visit(query, 0, 0, count_, beyond, 0.0);
    last_[source] = query.place;
    if (query.place < 0) return false;
    for (int a = 0; a < 3; ++a) match[a] = points_[a][query.place];
    return true;
  }

  double centre[3] = {0.0, 0.0, 0.0};

 private:
  struct Query {
    const double* point;
    double best;
    int64_t place;

    void consider(double d, int64_t at, const int64_t* index) {
      if (d < best || (d == best && place >= 0 && index[at] < index[place])) {
        best = d;
        place = at;
      }
    }
  };

  static int64_t nodes(int64_t n) {
    int64_t count = 1;
    for (int64_t size = n; size > kLeaf; size = (size + 1) / 2) count = 2 * count + 1;
    return count;
  }

  double distance(const double* p, int64_t at) const {
    const double dx = p[0] - points_[0][at], dy = p[1] - points_[1][at], dz = p[2] - points_[2][at];
    return dx * dx + dy * dy + dz * dz;
  }

  template <class T>
  void build(const T* target, int64_t node, int64_t begin, int64_t end) {
    if (end - begin <= kLeaf) return;
    double low[3] = {kInfinity, kInfinity, kInfinity}, high[3] = {-kInfinity, -kInfinity, -kInfinity};
    for (int64_t i = begin; i < end; ++i)
      for (int a = 0; a < 3; ++a) {
        const double x = double(target[3 * index_[i] + a]);
        low[a] = std::min(low[a], x);
        high[a] = std::max(high[a], x);
      }
    int axis = 0;
    for (int a = 1; a < 3; ++a)
      if (high[a] - low[a] > high[axis] - low[axis]) axis = a;
    const int64_t middle = begin + (end - begin) / 2;
    std::nth_element(index_ + begin, index_ + middle, index_ + end, [target, axis](int64_t i, int64_t j) {
      const T x = target[3 * i + axis], y = target[3 * j + axis];
      return x < y || (x == y && i < j);
    });
    axis_[node] = axis;
    split_[node] = double(target[3 * index_[middle] + axis]);
    build(target, 2 * node + 1, begin, middle);
    build(target, 2 * node + 2, middle, end);
  }

  // `beyond`: how far the point lies outside the node along each axis; `bound`: the sum of their squares.
  void visit(Query& query, int64_t node, int64_t begin, int64_t end, double (&beyond)[3], double bound) const {
    if (end - begin <= kLeaf) {
      double d[kLeaf];
      const double *x = points_[0] + begin, *y = points_[1] + begin, *z = points_[2] + begin;
#pragma omp simd
      for (int i = 0; i < kLeaf; ++i) {  // there is room to read beyond the last
        const double dx = query.point[0] - x[i], dy = query.point[1] - y[i], dz = query.point[2] - z[i];
        d[i] = dx * dx + dy * dy + dz * dz;
      }
      for (int64_t i = 0; i < end - begin; ++i) query.consider(d[i], begin + i, index_);
      return;
    }
    const int64_t middle = begin + (end - begin) / 2, axis = axis_[node];
    const double side = query.point[axis] - split_[node], before = beyond[axis];
    const bool left = side < 0.0;
    if (left)
      visit(query, 2 * node + 1, begin, middle, beyond, bound);
    else
      visit(query, 2 * node + 2, middle, end, beyond, bound);
    const double across = bound - before * before + side * side;
    if (across * (1.0 - 1e-12) > query.best) return;  // less than what rounding can hide
    beyond[axis] = side;
    if (left)
      visit(query, 2 * node + 2, middle, end, beyond, across);
    else
      visit(query, 2 * node + 1, begin, middle, beyond, across);
    beyond[axis] = before;
  }

  int64_t count_ = 0;
  double *points_[3], *split_;
  int64_t *index_, *axis_, *last_;
};

template <class Search, class T>
void align(const IcpAlignParams& p, int64_t b, int threads, double* memory, double* sums) {
  const Search search(p, static_cast<const T*>(p.target) + b * p.height * p.width * 3, memory);
  const T* source = static_cast<const T*>(p.source) + b * p.points * 3;
  T* residual = static_cast<T*>(p.residual) + b * p.points * 3;
  bool* valid = p.valid + b * p.points;
  double* transform = p.transform + b * 16;
  std::memcpy(transform, p.init + b * 16, sizeof(double) * 16);
  const int64_t chunks = (p.points + kChunk - 1) / kChunk;
  for (int64_t iteration = 0; iteration <= p.iterations; ++iteration) {
    const bool last = iteration == p.iterations;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      double sum[kIcpSums] = {};  // here, not in memory that others see: a third less time
      for (int64_t i = chunk * kChunk; i < std::min((chunk + 1) * kChunk, p.points); ++i) {
        double point[3], moved[3] = {}, match[3] = {};
        bool found = load_point(source, i, p.organised, point);
        if (found) {
          move(transform, point, moved);
          found = search.nearest(moved, i, match);
        }
        if (last) {
          for (int a = 0; a < 3; ++a) residual[3 * i + a] = found ? T(match[a] - moved[a]) : T(0);
          valid[i] = found;
        } else if (found) {
          for (int a = 0; a < 3; ++a) {
            moved[a] -= search.centre[a];
            match[a] -= search.centre[a];
          }
          add_pair(sum, moved, match);
        }
      }
      std::memcpy(sums + chunk * kIcpSums, sum, sizeof(sum));
    }
    if (last) break;
    for (int64_t chunk = 1; chunk < chunks; ++chunk)
      for (int k = 0; k < kIcpSums; ++k) sums[k] += sums[chunk * kIcpSums + k];
    compose_alignment(sums, search.centre, transform);
  }
}

template <class Search, class T>
int run(const IcpAlignParams& p) {
  // Threads share the clouds of a batch, or the points of a cloud where there are too few.
  const int64_t chunks = (p.points + kChunk - 1) / kChunk;
  const int outer = p.batch >= p.threads ? std::max(p.threads, 1) : 1;
  const int inner = outer > 1 ? 1 : int(std::max<int64_t>(std::min<int64_t>(p.threads, chunks), 1));
  PerThread<double> memory(outer, Search::doubles(p)), sums(outer, std::max<int64_t>(chunks, 1) * kIcpSums);
  if (!memory || !sums) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(outer)
  for (int64_t b = 0; b < p.batch; ++b) align<Search, T>(p, b, inner, memory.mine(), sums.mine());
  return 0;
}

}  // namespace

int icp_align(const IcpAlignParams& p) {
  if (p.organised) return p.dtype == Dtype::kFloat64 ? run<Image, double>(p) : run<Image, float>(p);
  return p.dtype == Dtype::kFloat64 ? run<Tree, double>(p) : run<Tree, float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
