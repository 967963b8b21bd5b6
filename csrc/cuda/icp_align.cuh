// Iterative closest points, without a word from the host: a thread matches a source point, a block sums up its pairs, and
// a kernel of one block per image adds the sums in order and composes the alignment onto the transform.
//
// Neighbours are decided in double, but few candidates get that far. The others are refused by their distance in the
// cloud's own type, with room for its roundings: on most GPUs float is many times faster.
//
// An organised target is read where it lies. Points of an unorganised one are packed in fours of numbers and, 32 by 32
// in the order in which they came, put into boxes; a box that is too far away is passed over. Scans and images come in
// an order that makes small boxes. In any other order, all pairs are compared.
#pragma once
#include "block.cuh"
#include "mdepth/icp_align.h"

namespace mdepth {

template <class T>
struct alignas(16) Packed {
  T x, y, z, unused;
};

__device__ __forceinline__ double infinity() { return 1e308 * 10.0; }

// The nearest of the candidates that it is asked to consider, the first among equals.
template <class T>
class Nearest {
 public:
  __device__ __forceinline__ explicit Nearest(const double* p) {
    double gap = 0.0;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      point_[a] = p[a];
      rounded_[a] = T(p[a]);
      gap += (p[a] - double(rounded_[a])) * (p[a] - double(rounded_[a]));
    }
    gap_ = T(sqrt(gap));
  }

  // Several at once, so that they are loaded together and their first test has one branch.
  template <int N>
  __device__ __forceinline__ void consider(const int (&candidate)[N], const Packed<T> (&q)[N]) {
    T distance[N], least = T(infinity());
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const T dx = rounded_[0] - q[k].x, dy = rounded_[1] - q[k].y, dz = rounded_[2] - q[k].z;
      distance[k] = dx * dx + dy * dy + dz * dz;
      least = min_of(distance[k], least);
    }
    if (!(least <= limit_)) return;
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (distance[k] <= limit_) decide(candidate[k], q[k]);  // NaN is no neighbour
  }

  // Whether a box may have a point to consider.
  __device__ __forceinline__ bool reaches(const Packed<T>* corners) const {
    const Packed<T> low = corners[0], high = corners[1];
    const T dx = outside(rounded_[0], low.x, high.x), dy = outside(rounded_[1], low.y, high.y);
    const T dz = outside(rounded_[2], low.z, high.z);
    return dx * dx + dy * dy + dz * dz <= limit_;
  }

  int index = -1;  // of the nearest; -1: none was finite

 private:
  __device__ __forceinline__ static T outside(T x, T low, T high) {
    return x < low ? low - x : (x > high ? x - high : T(0));
  }

  __device__ __forceinline__ void decide(int candidate, const Packed<T>& q) {
    const double point[3] = {double(q.x), double(q.y), double(q.z)}, distance = squared_distance(point_, point);
    if (!(distance < best_ || (distance == best_ && candidate < index))) return;
    best_ = distance;
    index = candidate;
    const T reach = sqrt_of(T(distance)) + gap_;
    // More than a dozen roundings to the nearest come to, and those of numbers below the smallest normal one.
    limit_ = reach * reach * T(1 + 2e-6) + T(2e-38);
  }

  double point_[3], best_ = infinity();
  T rounded_[3], gap_;       // the point as T, and how far that is from it
  T limit_ = T(infinity());  // of squared distances from the rounded point: where one is greater, it is not the nearest
};

// The target's points in the window around a projection.
template <class T>
class PixelWindow {
 public:
  __device__ __forceinline__ PixelWindow(const IcpAlignParams& p, int64_t image)
      : target_(static_cast<const T*>(p.target) + image * p.height * p.width * 3),
        camera_(icp_state(p)[image].camera),
        height_(int(p.height)),
        width_(int(p.width)) {}

  __device__ __forceinline__ bool nearest(const double* p, int64_t, double* match) const {
    int64_t u, v;
    if (!icp_window(camera_, p, height_, width_, &u, &v)) return false;
    Nearest<T> found(p);
    consider<1>(found, int(u), int(v));  // most likely it, so that few of the others are looked at twice
#pragma unroll 1
    for (int dv = -kIcpReach; dv <= kIcpReach; ++dv) consider<2 * kIcpReach + 1>(found, int(u) - kIcpReach, int(v) + dv);
    if (found.index < 0) return false;
#pragma unroll
    for (int a = 0; a < 3; ++a) match[a] = double(target_[3 * int64_t(found.index) + a]);
    return true;
  }

 private:
  // Pixels of a row; for one beyond the border that at the border again, which the window has, too.
  template <int N>
  __device__ __forceinline__ void consider(Nearest<T>& found, int u, int v) const {
    static_assert(double(float(kMinZ)) <= kMinZ, "what is greater than one of them is greater than the other");
    int index[N];
    Packed<T> q[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      index[k] = clamped(v, height_) * width_ + clamped(u + k, width_);
      const T* point = target_ + 3 * int64_t(index[k]);
      q[k] = {point[0], point[1], point[2], T(0)};
      if (!(q[k].z > T(kMinZ))) q[k].z = T(infinity() - infinity());
    }
    found.consider(index, q);
  }

  __device__ __forceinline__ static int clamped(int i, int n) { return i < 0 ? 0 : (i >= n ? n - 1 : i); }

  const T* target_;
  const IcpCamera camera_;
  int height_, width_;
};

// A group of packed points, and their boxes: two corners for each run, two around all.
template <class T>
struct PackedGroup {
  Packed<T> point[kIcpGroup], run[kIcpGroup / kIcpRun][2], all[2];
};

template <class T>
__device__ __forceinline__ PackedGroup<T>* packed_groups(const IcpAlignParams& p) {
  return reinterpret_cast<PackedGroup<T>*>(p.workspace);
}

__device__ __forceinline__ int* last_matches(const IcpAlignParams& p, int64_t image) {
  return reinterpret_cast<int*>(p.workspace + p.batch * icp_packed(p) + image * icp_last(p));
}

// All of the target's points.
template <class T>
class PackedCloud {
 public:
  __device__ __forceinline__ PackedCloud(const IcpAlignParams& p, int64_t image)
      : groups_(packed_groups<T>(p) + image * icp_groups(p)), last_(last_matches(p, image)), count_(int(icp_groups(p))) {}

  __device__ __forceinline__ bool nearest(const double* p, int64_t source, double* match) const {
    Nearest<T> found(p);
    // Where the point was matched before bounds the search; it decides nothing.
    const int before = last_[source];
    consider<1>(found, before);
    for (int g = 0; g < count_; ++g) {
      const PackedGroup<T>& group = groups_[g];
      if (!found.reaches(group.all)) continue;
#pragma unroll 1
      for (int r = 0; r < kIcpGroup / kIcpRun; ++r) {
        if (!found.reaches(group.run[r])) continue;
#pragma unroll 1
        for (int k = 0; k < kIcpRun; k += kTogether) consider<kTogether>(found, g * kIcpGroup + r * kIcpRun + k);
      }
    }
    if (found.index < 0) return false;
    last_[source] = found.index;
    const Packed<T> q = groups_[found.index / kIcpGroup].point[found.index % kIcpGroup];
    match[0] = double(q.x);
    match[1] = double(q.y);
    match[2] = double(q.z);
    return true;
  }

 private:
  static constexpr int kTogether = 8;

  template <int N>
  __device__ __forceinline__ void consider(Nearest<T>& found, int first) const {
    int index[N];
    Packed<T> q[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      index[k] = first + k;
      q[k] = groups_[first / kIcpGroup].point[first % kIcpGroup + k];
    }
    found.consider(index, q);
  }

  const PackedGroup<T>* groups_;
  int* last_;
  int count_;
};

// Calls `each(i)` for the points of the target that this thread has in its block's group.
template <class Each>
__device__ __forceinline__ void each_of_group(const IcpAlignParams& p, int64_t group, Each each) {
  const int64_t first = group * kIcpGroup, count = p.height * p.width;
#pragma unroll 1
  for (int k = int(threadIdx.x); k < kIcpGroup && first + k < count; k += kRunThreads) each(int(first) + k);
}

// This block's sums, into the workspace; an image has `blocks`.
template <int N>
__device__ __forceinline__ void keep_partial(const IcpAlignParams& p, const double (&sums)[N], int64_t blocks) {
  __shared__ double scratch[kBlockSumScratch<N, kRunThreads>];
  block_sum<kRunThreads>(sums, scratch, icp_partial(p) + blockIdx.x, p.batch * blocks);
}

// The sums of all blocks of this block's image, in its state.
template <int N>
__device__ __forceinline__ IcpState& total_of_image(const IcpAlignParams& p, int64_t blocks) {
  __shared__ double scratch[kBlockSumScratch<N, kReduceThreads>];
  const int64_t image = blockIdx.x;
  const double* partial = icp_partial(p) + image * blocks;
  double sums[N] = {};
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < blocks; i += kReduceThreads)
#pragma unroll
    for (int j = 0; j < N; ++j) sums[j] += partial[j * p.batch * blocks + i];
  IcpState& state = icp_state(p)[image];
  block_sum<kReduceThreads>(sums, scratch, state.sums, 1);
  __syncthreads();
  return state;
}

template <class T>
__device__ __forceinline__ void icp_align_means(const IcpAlignParams& p) {
  const int64_t groups = icp_groups(p), image = blockIdx.x / groups;
  const T* target = static_cast<const T*>(p.target) + image * p.height * p.width * 3;
  double sums[kIcpMeanSums] = {};
  each_of_group(p, blockIdx.x % groups, [&](int i) {
    double point[3];
    if (load_point(target, i, true, point)) add_ray(sums, point, double(i % int(p.width)), double(i / int(p.width)));
  });
  keep_partial(p, sums, groups);
}

template <class T>
__device__ __forceinline__ void icp_align_pack(const IcpAlignParams& p) {
  constexpr int kRuns = kIcpGroup / kIcpRun;
  __shared__ T corner[kRuns][6];  // the least of x, y, z, and of -x, -y, -z
  const int64_t groups = icp_groups(p), image = blockIdx.x / groups, first = blockIdx.x % groups * kIcpGroup;
  const int64_t count = p.height * p.width;
  const T* target = static_cast<const T*>(p.target) + image * count * 3;
  PackedGroup<T>& group = packed_groups<T>(p)[blockIdx.x];
  const T none = T(infinity());
  double sums[kIcpMeanSums] = {};
#pragma unroll 1
  for (int k = int(threadIdx.x); k < kIcpGroup; k += kRunThreads) {
    double point[3];
    const bool counts = first + k < count && load_point(target, first + k, false, point);
    if (counts) add_point(sums, point);
    const T nan = none - none;
    group.point[k] = counts ? Packed<T>{T(point[0]), T(point[1]), T(point[2]), T(0)} : Packed<T>{nan, nan, nan, T(0)};
  }
  __syncthreads();
#pragma unroll 1
  for (int t = int(threadIdx.x); t < 6 * kRuns; t += kRunThreads) {
    const T* x = &group.point[t / 6 * kIcpRun].x + t % 3;
    const T sign = t % 6 < 3 ? T(1) : T(-1);
    T least = none;
    for (int k = 0; k < kIcpRun; ++k) least = min_of(sign * x[4 * k], least);
    corner[t / 6][t % 6] = least;
  }
  __syncthreads();
  const auto box = [](const T* least, Packed<T>* corners) {
    corners[0] = {least[0], least[1], least[2], T(0)};
    corners[1] = {-least[3], -least[4], -least[5], T(0)};
  };
  if (threadIdx.x < kRuns) box(corner[threadIdx.x], group.run[threadIdx.x]);
  if (threadIdx.x == 0) {
    T least[6];
#pragma unroll
    for (int j = 0; j < 6; ++j) {
      least[j] = none;
      for (int r = 0; r < kRuns; ++r) least[j] = min_of(corner[r][j], least[j]);
    }
    box(least, group.all);
  }
  keep_partial(p, sums, groups);
}

__device__ __forceinline__ void icp_align_begin(const IcpAlignParams& p) {
  IcpState& state = total_of_image<kIcpMeanSums>(p, icp_groups(p));
  if (threadIdx.x == 0) state.means = icp_means(state.sums);
  if (threadIdx.x < 16) p.transform[blockIdx.x * int64_t(16) + threadIdx.x] = p.init[blockIdx.x * int64_t(16) + threadIdx.x];
}

template <class T>
__device__ __forceinline__ void icp_align_spreads(const IcpAlignParams& p) {
  const int64_t groups = icp_groups(p), image = blockIdx.x / groups;
  const T* target = static_cast<const T*>(p.target) + image * p.height * p.width * 3;
  const IcpMeans means = icp_state(p)[image].means;
  double sums[kIcpSpreadSums] = {};
  each_of_group(p, blockIdx.x % groups, [&](int i) {
    double point[3];
    if (load_point(target, i, true, point))
      add_spread(sums, means, point, double(i % int(p.width)), double(i / int(p.width)));
  });
  keep_partial(p, sums, groups);
}

__device__ __forceinline__ void icp_align_camera(const IcpAlignParams& p) {
  IcpState& state = total_of_image<kIcpSpreadSums>(p, icp_groups(p));
  if (threadIdx.x == 0) state.camera = icp_camera(state.sums, state.means);
}

// A source point and its match; each thread has one.
struct Pair {
  int64_t image, point;
  bool exists, found;
  double moved[3], match[3];
};

// Clouds of one scene are often in the same order.
__device__ __forceinline__ void icp_align_guess(const IcpAlignParams& p) {
  const int64_t blocks = runs_per_plane(p.points), i = blockIdx.x % blocks * kRunThreads + threadIdx.x;
  if (i < p.points) last_matches(p, blockIdx.x / blocks)[i] = int(i * (p.height * p.width) / p.points);
}

template <class Search, class T>
__device__ __forceinline__ Pair pair_of_thread(const IcpAlignParams& p) {
  const int64_t blocks = runs_per_plane(p.points);
  Pair pair = {blockIdx.x / blocks, blockIdx.x % blocks * kRunThreads + threadIdx.x, false, false, {}, {}};
  pair.exists = pair.point < p.points;
  double point[3];
  if (!pair.exists ||
      !load_point(static_cast<const T*>(p.source) + pair.image * p.points * 3, pair.point, p.organised, point))
    return pair;
  move(p.transform + pair.image * 16, point, pair.moved);
  pair.found = Search(p, pair.image).nearest(pair.moved, pair.point, pair.match);
  return pair;
}

template <class Search, class T>
__device__ __forceinline__ void icp_align_pairs(const IcpAlignParams& p) {
  Pair pair = pair_of_thread<Search, T>(p);
  const double* centre = icp_state(p)[pair.image].means.point;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    pair.moved[a] -= centre[a];
    pair.match[a] -= centre[a];
  }
  double sums[kIcpSums] = {};
  if (pair.found) add_pair(sums, pair.moved, pair.match);
  keep_partial(p, sums, runs_per_plane(p.points));
}

__device__ __forceinline__ void icp_align_compose(const IcpAlignParams& p) {
  const IcpState& state = total_of_image<kIcpSums>(p, runs_per_plane(p.points));
  if (threadIdx.x == 0) compose_alignment(state.sums, state.means.point, p.transform + blockIdx.x * int64_t(16));
}

template <class Search, class T>
__device__ __forceinline__ void icp_align_residual(const IcpAlignParams& p) {
  const Pair pair = pair_of_thread<Search, T>(p);
  if (!pair.exists) return;
  const int64_t i = pair.image * p.points + pair.point;
#pragma unroll
  for (int a = 0; a < 3; ++a)
    static_cast<T*>(p.residual)[3 * i + a] = pair.found ? T(pair.match[a] - pair.moved[a]) : T(0);
  p.valid[i] = pair.found;
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_ICP_ALIGN_DTYPE_KERNELS(KERNEL, suffix, T)                                              \
  KERNEL(icp_align_means_##suffix, mdepth::kRunThreads, IcpAlignParams, mdepth::icp_align_means<T>)     \
  KERNEL(icp_align_spreads_##suffix, mdepth::kRunThreads, IcpAlignParams, mdepth::icp_align_spreads<T>) \
  KERNEL(icp_align_pack_##suffix, mdepth::kRunThreads, IcpAlignParams, mdepth::icp_align_pack<T>)       \
  KERNEL(icp_align_pairs_window_##suffix, mdepth::kRunThreads, IcpAlignParams,                          \
         mdepth::icp_align_pairs<mdepth::PixelWindow<T>, T>)                                            \
  KERNEL(icp_align_pairs_all_##suffix, mdepth::kRunThreads, IcpAlignParams,                             \
         mdepth::icp_align_pairs<mdepth::PackedCloud<T>, T>)                                            \
  KERNEL(icp_align_residual_window_##suffix, mdepth::kRunThreads, IcpAlignParams,                       \
         mdepth::icp_align_residual<mdepth::PixelWindow<T>, T>)                                         \
  KERNEL(icp_align_residual_all_##suffix, mdepth::kRunThreads, IcpAlignParams,                          \
         mdepth::icp_align_residual<mdepth::PackedCloud<T>, T>)
#define MDEPTH_ICP_ALIGN_KERNELS(KERNEL)                                                     \
  MDEPTH_ICP_ALIGN_DTYPE_KERNELS(KERNEL, f32, float)                                         \
  MDEPTH_ICP_ALIGN_DTYPE_KERNELS(KERNEL, f64, double)                                        \
  KERNEL(icp_align_begin, mdepth::kReduceThreads, IcpAlignParams, mdepth::icp_align_begin)   \
  KERNEL(icp_align_camera, mdepth::kReduceThreads, IcpAlignParams, mdepth::icp_align_camera) \
  KERNEL(icp_align_guess, mdepth::kRunThreads, IcpAlignParams, mdepth::icp_align_guess)      \
  KERNEL(icp_align_compose, mdepth::kReduceThreads, IcpAlignParams, mdepth::icp_align_compose)

MDEPTH_ICP_ALIGN_KERNELS(MDEPTH_DEFINE_KERNEL)
