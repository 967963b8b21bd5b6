// One decoder stage of FastDepth. A block has a rectangle of pixels and a group of output channels, and takes the input
// channels, or its part of them, in chunks: their rectangles with a border, and the depthwise product of these, lie in
// shared memory; the pointwise product reads it there, all sums in registers. Each finished pixel goes out as its 2x2
// copies, with the skip added. So nothing between input and output is in global memory, but for the sums where the
// input channels are shared out among blocks (see grid.h); blocks of other output channels compute the depthwise
// product again, at 25 operations to the pointwise product's kOutputs.
//
// The pointwise product is exact, or on tensor cores: of halves or bfloat16 where the tensors are, of floats rounded to
// TF32 where the caller allows that. Sums and everything else are float in all cases.
#pragma once
#include "block.cuh"
#include "mdepth/nnconv5.h"
#include "tensor.cuh"

namespace mdepth {

constexpr int kTaps = 5, kReach = 2;

template <class Shape>
struct NnConv5Block : Shape {
  using T = typename Shape::Sum;
  static constexpr int kPixels = Shape::kWidth * Shape::kHeight;
  static constexpr int kStrip = sizeof(T) == 4 ? 8 : 4;   // pixels below each other in a depthwise product
  static constexpr int kTeam = kPixels / kStrip;          // threads with the same input channel
  static constexpr int kChunk = Shape::kThreads / kTeam;  // input channels
  static constexpr int kRegionWidth = Shape::kWidth + 2 * kReach;
  static constexpr int kRegion = kRegionWidth * (Shape::kHeight + 2 * kReach);
  static constexpr int kRegionStride = kRegion + (Shape::kWidth == 8 ? 8 : 0);  // a warp's channels: different banks
  static constexpr int kTapStride = 28;                                         // a multiple of 16 bytes
  static constexpr int kSumStride = kPixels + 8;  // of neighbouring output channels: different banks
  static constexpr int kMyRegion = kRegion / kTeam;
  static constexpr int kMyTaps = (kTaps * kTaps + kTeam - 1) / kTeam;
  static_assert(kNnConv5Part % kChunk == 0 && kRegion % kTeam == 0);
};

// x, of which the compiler does not know that it is the same each time, or how it came about: it would compute what
// follows from it before a loop, in registers that the loop needs, or all of it at each use.
template <class X>
__device__ __forceinline__ X anew(X x) {
#if defined(__CUDACC__)
  if constexpr (sizeof(X) == 8)
    asm volatile("" : "+l"(x));
  else
    asm volatile("" : "+r"(x));
#endif
  return x;
}

// Says so of a pointer that comes out of `anew`.
template <class X>
__device__ __forceinline__ X in_global(X x) {
#if defined(__CUDACC__)
  __builtin_assume(__isGlobal(x));
#endif
  return x;
}

// What a block has.
template <class Block>
struct NnConv5Place {
  int image, x, y, part, begin, end, first_output, parts;  // input channels begin..end

  __device__ __forceinline__ explicit NnConv5Place(const NnConv5Params& p) {
    const NnConv5Parts all = nnconv5_parts(p);
    const int groups = int(nnconv5_groups<Block>(p)), block = int(blockIdx.x);
    const BlockOrigin origin = block_origin<Block>(block / groups / all.count, p.height, p.width);
    image = int(origin.image);
    x = origin.x;
    y = origin.y;
    part = block / groups % all.count;
    parts = all.count;
    begin = part * all.channels;
    end = int(p.channels) - begin < all.channels ? int(p.channels) : begin + all.channels;
    first_output = block % groups * Block::kOutputs;
  }
};

// Of a column of taps four lie together in shared memory, for one read, the fifth of all columns behind them: which tap
// is at a place.
__device__ __forceinline__ int tap_at(int place) { return place < 4 * kTaps ? place % 4 * kTaps + place / 4 : place; }

// A thread's share of the rectangle and the taps of an input channel, `Number` in global memory. It is fetched before
// the pointwise product of the chunk before. Of the pixels with the border, one after another, a thread has every
// kTeam-th; after kPeriod of them it is in the same column again.
template <class Block, class Number>
struct NnConv5Input {
  using T = typename Block::T;
  static constexpr int kPeriod = Block::kRegionWidth / 4, kPeriodRows = kPeriod * Block::kTeam / Block::kRegionWidth;
  static_assert(kPeriod * Block::kTeam % Block::kRegionWidth == 0 && Block::kMyRegion % kPeriod == 0);
  const int member = int(threadIdx.x) % Block::kTeam, channel = int(threadIdx.x) / Block::kTeam;
  Number next[Block::kMyRegion];
  T next_tap[Block::kMyTaps];

  // Those of the chunk from input channel c0 on; 0 past the block's last and outside the image. Behind the last chunk
  // it is called too, or what was fetched before would stay alive.
  __device__ __forceinline__ void fetch(const NnConv5Params& p, const NnConv5Place<Block>& place, int c0) {
    const int c = c0 + channel, first = anew(member), height = anew(int(p.height)), width = anew(int(p.width));
    const bool exists = c < place.end;
    const Number* const from =
        in_global(anew(static_cast<const Number*>(p.x) + (place.image * p.channels + c) * (p.height * p.width)));
#pragma unroll
    for (int k = 0; k < kPeriod; ++k) {
      const int at = first + k * Block::kTeam;
      const int x = place.x - kReach + at % Block::kRegionWidth, y = place.y - kReach + at / Block::kRegionWidth;
      const int rows = exists && x >= 0 && x < width ? height : 0;
#pragma unroll
      for (int i = 0; i < Block::kMyRegion / kPeriod; ++i) {
        const int below = y + i * kPeriodRows;
        next[i * kPeriod + k] = unsigned(below) < unsigned(rows) ? from[below * width + x] : Number{};
      }
    }
    const T* const taps = in_global(anew(static_cast<const T*>(p.dw_weight) + c * int64_t(kTaps * kTaps)));
#pragma unroll
    for (int k = 0; k < Block::kMyTaps; ++k) {
      const int at = first + k * Block::kTeam;
      next_tap[k] = exists && at < kTaps * kTaps ? taps[tap_at(at)] : T(0);
    }
  }

  // Writes them to the channel's place in shared memory.
  __device__ __forceinline__ void put(T* region, T* tap) const {
#pragma unroll
    for (int k = 0; k < Block::kMyRegion; ++k) region[member + k * Block::kTeam] = to_float(next[k]);
#pragma unroll
    for (int k = 0; k < Block::kMyTaps; ++k)
      if (member + k * Block::kTeam < kTaps * kTaps) tap[member + k * Block::kTeam] = next_tap[k];
  }
};

template <class T>
__device__ __forceinline__ T scaled_relu(T value, T scale, T shift) {
  value = value * scale + shift;
  return value < T(0) ? T(0) : value;  // a NaN passes
}

// One thread's strip of the depthwise product, scaled, shifted and rectified; 0 past the last input channel.
template <class Block>
__device__ __forceinline__ void depthwise_strip(const NnConv5Params& p, int c, const typename Block::T* region,
                                                const typename Block::T* tap, typename Block::T (&sum)[Block::kStrip]) {
  using T = typename Block::T;
#pragma unroll
  for (int k = 0; k < Block::kStrip; ++k) sum[k] = T(0);
#pragma unroll 1
  for (int dx = 0; dx < kTaps; ++dx) {
    T column[kTaps];
#pragma unroll
    for (int dy = 0; dy < kTaps; ++dy) column[dy] = tap[dy < 4 ? 4 * dx + dy : 4 * kTaps + dx];
#pragma unroll
    for (int row = 0; row < Block::kStrip + 2 * kReach; ++row) {
      const T value = region[row * Block::kRegionWidth + dx];
#pragma unroll
      for (int k = 0; k < Block::kStrip; ++k)
        if (row - k >= 0 && row - k < kTaps) sum[k] += value * column[row - k];
    }
  }
  const bool exists = c < int(p.channels);
  const T scale = exists ? static_cast<const T*>(p.dw_scale)[c] : T(0);
  const T shift = exists ? static_cast<const T*>(p.dw_shift)[c] : T(0);
#pragma unroll
  for (int k = 0; k < Block::kStrip; ++k) sum[k] = scaled_relu(sum[k], scale, shift);
}

// `count` pixels beside each other, their sums finished, as their copies; of two the first is even, as is the width.
template <class Stored, int count, class T>
__device__ __forceinline__ void store_copies(const NnConv5Params& p, int64_t image, int64_t o, int x, int y,
                                             const T* sum) {
  struct alignas(2 * count * sizeof(Stored)) Copies {
    Stored of[2 * count];
  };
  const T scale = static_cast<const T*>(p.pw_scale)[o], shift = static_cast<const T*>(p.pw_shift)[o];
  T value[count];
#pragma unroll
  for (int i = 0; i < count; ++i) value[i] = scaled_relu(sum[i], scale, shift);
  const int64_t corner = (image * p.out_channels + o) * 4 * p.height * p.width + 4 * int64_t(y) * p.width + 2 * x;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int64_t at = corner + row * 2 * p.width;
    Copies copies;
    if (p.skip) copies = *reinterpret_cast<const Copies*>(static_cast<const Stored*>(p.skip) + at);
#pragma unroll
    for (int i = 0; i < 2 * count; ++i)
      round_to(p.skip ? value[i / 2] + to_float(copies.of[i]) : value[i / 2], copies.of[i]);
    *reinterpret_cast<Copies*>(static_cast<Stored*>(p.out) + at) = copies;
  }
}

// Stores the sums of a block, (kOutputs, kSumStride) in shared memory, two pixels beside each other a thread: as copies
// in the output, or in the workspace, (parts, B, O, H, W), if they are of a part of the input channels only.
template <class Stored, class Block>
__device__ __forceinline__ void store_tile(const NnConv5Params& p, const NnConv5Place<Block>& place,
                                           const typename Block::T* sums) {
  using T = typename Block::T;
  constexpr int kPairs = Block::kPixels / 2;
  const int width = int(p.width), height = int(p.height);
#pragma unroll 2
  for (int i = int(threadIdx.x); i < Block::kOutputs * kPairs; i += Block::kThreads) {
    const int o = place.first_output + i / kPairs, pixel = i % kPairs * 2;
    const int x = place.x + pixel % Block::kWidth, y = place.y + pixel / Block::kWidth;
    if (o >= int(p.out_channels) || x >= width || y >= height) continue;
    const T sum[2] = {sums[i / kPairs * Block::kSumStride + pixel], sums[i / kPairs * Block::kSumStride + pixel + 1]};
    const bool both = x + 1 < width;
    if (place.parts > 1) {
      const int64_t image = place.part * p.batch + place.image;
      T* const to = reinterpret_cast<T*>(p.workspace) + ((image * p.out_channels + o) * height + y) * width + x;
      to[0] = sum[0];
      if (both) to[1] = sum[1];
    } else if (width % 2 == 0) {
      store_copies<Stored, 2>(p, place.image, o, x, y, sum);
    } else {
      store_copies<Stored, 1>(p, place.image, o, x, y, sum);
      if (both) store_copies<Stored, 1>(p, place.image, o, x + 1, y, sum + 1);
    }
  }
}

// Adds up the parts' sums, a pixel of an output channel a thread.
template <class Stored, class T>
__device__ __forceinline__ void nnconv5_sum(const NnConv5Params& p) {
  const int64_t index = int64_t(blockIdx.x) * NnConv5Shape<T, 64>::kThreads + threadIdx.x;
  const int64_t plane = p.height * p.width, numbers = p.batch * p.out_channels * plane;
  if (index >= numbers) return;
  const int64_t parts = nnconv5_parts(p).count;
  const T* const from = reinterpret_cast<const T*>(p.workspace) + index;
  T sum = from[0];
#pragma unroll 8
  for (int64_t part = 1; part < parts; ++part) sum += from[part * numbers];
  const int64_t of = index / plane;
  const int at = int(index % plane), width = int(p.width);
  store_copies<Stored, 1>(p, of / p.out_channels, of % p.out_channels, at % width, at / width, &sum);
}

template <class Shape>
struct NnConv5Exact : NnConv5Block<Shape> {
  using Block = NnConv5Block<Shape>;
  static constexpr int kMyPixels = 4;                        // a thread's, kLanes apart
  static constexpr int kLanes = Block::kPixels / kMyPixels;  // threads whose pixels make up the rectangle
  static constexpr int kMyOutputs = Shape::kOutputs * kLanes / Shape::kThreads;
  static constexpr int kActiveStride = Block::kPixels + Shape::kWidth;   // a warp's channels: different banks
  static constexpr int kWeightStride = Shape::kOutputs + 4;              // the same for neighbouring channels
  static constexpr int kQuadStep = Shape::kThreads / Block::kChunk * 4;  // weights of four outputs are written together
  static constexpr int kMyQuads = (Shape::kOutputs + kQuadStep - 1) / kQuadStep;

  union Memory {
    struct alignas(16) {
      typename Block::T tap[Block::kChunk * Block::kTapStride], weight[Block::kChunk * kWeightStride];
      typename Block::T region[Block::kChunk * Block::kRegionStride], active[Block::kChunk * kActiveStride];
    } chunk;
    typename Block::T sums[Shape::kOutputs * Block::kSumStride];
  };
};

template <class T, int outputs>
__device__ __forceinline__ void nnconv5_tile(const NnConv5Params& p) {
  using Block = NnConv5Exact<NnConv5Shape<T, outputs>>;
  constexpr int kChunk = Block::kChunk, kLanes = Block::kLanes;
  constexpr int kMyOutputs = Block::kMyOutputs, kMyPixels = Block::kMyPixels;
  __shared__ typename Block::Memory memory;
  T* const active = memory.chunk.active;
  T* const weight = memory.chunk.weight;
  const NnConv5Place<Block> place(p);
  NnConv5Input<Block, T> input;
  const int thread = int(threadIdx.x), lane = thread % kLanes, my_output = thread / kLanes * kMyOutputs;
  const int quad_channel = thread % kChunk, quad_output = thread / kChunk * 4;
  const bool has_outputs = place.first_output + my_output < p.out_channels;
  const int strip_x = input.member % Block::kWidth, strip_y = input.member / Block::kWidth * Block::kStrip;
  T* const my_region = memory.chunk.region + input.channel * Block::kRegionStride;
  T* const my_tap = memory.chunk.tap + input.channel * Block::kTapStride;

  T sum[kMyOutputs][kMyPixels];
#pragma unroll
  for (int m = 0; m < kMyOutputs; ++m)
#pragma unroll
    for (int j = 0; j < kMyPixels; ++j) sum[m][j] = T(0);

  input.fetch(p, place, place.begin);
  for (int c0 = place.begin; c0 < place.end; c0 += kChunk) {
    input.put(my_region, my_tap);
    __syncthreads();
    const int channels = anew(int(p.channels));
    T quad[Block::kMyQuads][4];
#pragma unroll
    for (int k = 0; k < Block::kMyQuads; ++k) {
      const int c = c0 + quad_channel, o = place.first_output + quad_output + k * Block::kQuadStep;
      const T* const from = in_global(anew(static_cast<const T*>(p.pw_weight) + int64_t(o) * channels + c));
      const int rows = c < channels ? int(p.out_channels) - o : 0;
#pragma unroll
      for (int m = 0; m < 4; ++m) quad[k][m] = m < rows ? from[m * channels] : T(0);
    }
    T strip[Block::kStrip];
    depthwise_strip<Block>(p, c0 + input.channel, my_region + strip_y * Block::kRegionWidth + strip_x, my_tap, strip);
#pragma unroll
    for (int k = 0; k < Block::kStrip; ++k)
      active[input.channel * Block::kActiveStride + (strip_y + k) * Block::kWidth + strip_x] = strip[k];
#pragma unroll
    for (int k = 0; k < Block::kMyQuads; ++k)
#pragma unroll
      for (int m = 0; m < 4; ++m)
        if (quad_output < Block::kOutputs)
          weight[quad_channel * Block::kWeightStride + quad_output + k * Block::kQuadStep + m] = quad[k][m];
    __syncthreads();
    input.fetch(p, place, c0 + kChunk);
    if (!has_outputs) continue;
#pragma unroll 4
    for (int c = 0; c < kChunk; ++c) {
      T pixel[kMyPixels], factor[kMyOutputs];
#pragma unroll
      for (int j = 0; j < kMyPixels; ++j) pixel[j] = active[c * Block::kActiveStride + j * kLanes + lane];
#pragma unroll
      for (int m = 0; m < kMyOutputs; ++m) factor[m] = weight[c * Block::kWeightStride + my_output + m];
#pragma unroll
      for (int m = 0; m < kMyOutputs; ++m)
#pragma unroll
        for (int j = 0; j < kMyPixels; ++j) sum[m][j] += factor[m] * pixel[j];
    }
  }

  __syncthreads();
#pragma unroll
  for (int m = 0; m < kMyOutputs; ++m)
#pragma unroll
    for (int j = 0; j < kMyPixels; ++j)
      memory.sums[(my_output + m) * Block::kSumStride + j * kLanes + lane] = sum[m][j];
  __syncthreads();
  store_tile<T>(p, place, memory.sums);
}

// The same with the pointwise product on tensor cores. `Number` is what x, pw_weight, skip and out are made of (Tf32:
// float). A warp has 16 output channels and all pixels; where there are too few for all warps, part of the pixels.
template <class Number>
struct NnConv5Tensor : NnConv5Block<NnConv5Shape<float, 128>> {
  static constexpr int kRows = 16, kColumns = 8;  // of a product: output channels, pixels (a row of the square)
  static constexpr int kSteps = kChunk / (kStepWords * kPerWord<Number>);
  static constexpr int kWords = kSteps * kStepWords;
  static constexpr int kWordStride = kWords + 4;  // reads of a fragment fall into different banks
  static_assert(kOutputs == kRows * kThreads / kWarp && kWidth == kColumns && kSteps > 0);

  union Memory {
    struct alignas(16) {
      unsigned active[kPixels * kWordStride];
      float tap[kChunk * kTapStride], region[kChunk * kRegionStride];
    } chunk;
    float sums[kOutputs * kSumStride];
  };
};

// A word of pointwise weights, of which `left` are left in the row; 0 past its end. `whole`: rows begin at words.
template <bool whole, class Number>
__device__ __forceinline__ unsigned weight_word(const Number* from, int left) {
  unsigned word = 0;
  if (left <= 0) return word;
  if constexpr (sizeof(Number) == 4) {
    Number rounded;
    round_to(to_float(*from), rounded);
    memcpy(&word, &rounded, sizeof word);
  } else if (whole) {
    memcpy(&word, __builtin_assume_aligned(from, 4), sizeof word);
  } else {
    word = from[0].bits | (left > 1 ? unsigned(from[1].bits) << 16 : 0u);
  }
  return word;
}

// A lane's words of the pointwise weights of a chunk, from row `o` and the eighth after it.
template <bool whole, class Number, int steps>
__device__ __forceinline__ void fetch_weights(const NnConv5Params& p, int channels, int o, int c0,
                                              unsigned (&weight)[steps][4]) {
  const int first = c0 + int(threadIdx.x) % 4 * kPerWord<Number>;
  const Number* const row = in_global(anew(static_cast<const Number*>(p.pw_weight) + int64_t(o) * channels + first));
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int left = o + 8 * i < int(p.out_channels) ? channels - first : 0;
    const Number* const from = row + 8 * i * int64_t(channels);
#pragma unroll
    for (int k = 0; k < 2 * steps; ++k) {
      constexpr int kApart = kStepWords / 2 * kPerWord<Number>;
      weight[k / 2][k % 2 * 2 + i] = weight_word<whole>(from + k * kApart, left - k * kApart);
    }
  }
}

template <class Number, class Stored>
__device__ __forceinline__ void nnconv5_tensor_tile(const NnConv5Params& p) {
  using Block = NnConv5Tensor<Number>;
  constexpr int kThreads = Block::kThreads, kChunk = Block::kChunk, kSquareRows = Block::kHeight;
  __shared__ typename Block::Memory memory;
  unsigned* const active = memory.chunk.active;
  const NnConv5Place<Block> place(p);
  NnConv5Input<Block, Stored> input;
  const int thread = int(threadIdx.x), lane = thread % kWarp;
  const int strip_x = input.member % Block::kWidth, strip_y = input.member / Block::kWidth * Block::kStrip;
  float* const my_region = memory.chunk.region + input.channel * Block::kRegionStride;
  float* const my_tap = memory.chunk.tap + input.channel * Block::kTapStride;

  int warps = kThreads / kWarp;  // that have different outputs
  while (warps > 1 && place.first_output + warps / 2 * Block::kRows >= p.out_channels) warps /= 2;
  const int warp = thread / kWarp, part = warp / warps, parts = kThreads / kWarp / warps;
  const int my_output = warp % warps * Block::kRows + lane / 4;

  float sum[kSquareRows][4];
#pragma unroll
  for (int row = 0; row < kSquareRows; ++row)
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[row][i] = 0;

  input.fetch(p, place, place.begin);
  for (int c0 = place.begin; c0 < place.end; c0 += kChunk) {
    input.put(my_region, my_tap);
    __syncthreads();
    const int channels = anew(int(p.channels)), o = anew(place.first_output + my_output);
    unsigned weight[Block::kSteps][4];
    if (kPerWord<Number> == 1 || channels % 2 == 0)
      fetch_weights<true, Number>(p, channels, o, c0, weight);
    else
      fetch_weights<false, Number>(p, channels, o, c0, weight);
    float strip[Block::kStrip];
    depthwise_strip<Block>(p, c0 + input.channel, my_region + strip_y * Block::kRegionWidth + strip_x, my_tap, strip);
#pragma unroll
    for (int k = 0; k < Block::kStrip; ++k) {
      Number rounded;
      round_to(strip[k], rounded);
      const int pixel = (strip_y + k) * Block::kWidth + strip_x;
      memcpy(reinterpret_cast<char*>(active + pixel * Block::kWordStride) + input.channel * sizeof(Number), &rounded,
             sizeof rounded);
    }
    __syncthreads();
    input.fetch(p, place, c0 + kChunk);
#pragma unroll
    for (int row = 0; row < kSquareRows; ++row) {
      if (row % parts != part) continue;
      const unsigned* const words = active + (row * Block::kWidth + lane / 4) * Block::kWordStride + lane % 4;
#pragma unroll
      for (int step = 0; step < Block::kSteps; ++step) {
        const unsigned pixels[2] = {words[step * kStepWords], words[step * kStepWords + 4]};
        add_product(sum[row], weight[step], pixels, Number{});
      }
    }
  }

  __syncthreads();
#pragma unroll
  for (int row = 0; row < kSquareRows; ++row) {
    if (row % parts != part) continue;
    const int pixel = row * Block::kWidth + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) memory.sums[(my_output + i / 2 * 8) * Block::kSumStride + pixel + i % 2] = sum[row][i];
  }
  __syncthreads();
  store_tile<Stored>(p, place, memory.sums);
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_NNCONV5_KERNEL(KERNEL, name, ...) \
  KERNEL(nnconv5_##name, (mdepth::NnConv5Shape<float, 128>::kThreads), NnConv5Params, mdepth::__VA_ARGS__)
#define MDEPTH_NNCONV5_KERNELS(KERNEL)                                                         \
  MDEPTH_NNCONV5_KERNEL(KERNEL, f32_128, nnconv5_tile<float, 128>)                             \
  MDEPTH_NNCONV5_KERNEL(KERNEL, f32_64, nnconv5_tile<float, 64>)                               \
  MDEPTH_NNCONV5_KERNEL(KERNEL, f32_32, nnconv5_tile<float, 32>)                               \
  MDEPTH_NNCONV5_KERNEL(KERNEL, f64, nnconv5_tile<double, 64>)                                 \
  MDEPTH_NNCONV5_KERNEL(KERNEL, tf32, nnconv5_tensor_tile<mdepth::Tf32, float>)                \
  MDEPTH_NNCONV5_KERNEL(KERNEL, f16, nnconv5_tensor_tile<mdepth::Half, mdepth::Half>)          \
  MDEPTH_NNCONV5_KERNEL(KERNEL, bf16, nnconv5_tensor_tile<mdepth::BFloat16, mdepth::BFloat16>) \
  MDEPTH_NNCONV5_KERNEL(KERNEL, sum_f32, nnconv5_sum<float, float>)                            \
  MDEPTH_NNCONV5_KERNEL(KERNEL, sum_f64, nnconv5_sum<double, double>)                          \
  MDEPTH_NNCONV5_KERNEL(KERNEL, sum_f16, nnconv5_sum<mdepth::Half, float>)                     \
  MDEPTH_NNCONV5_KERNEL(KERNEL, sum_bf16, nnconv5_sum<mdepth::BFloat16, float>)

MDEPTH_NNCONV5_KERNELS(MDEPTH_DEFINE_KERNEL)
