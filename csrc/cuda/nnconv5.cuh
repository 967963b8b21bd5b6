// One decoder stage of FastDepth. A block has a square of pixels and a group of output channels, and takes the input
// channels in chunks: their squares with a border, and the depthwise product of these, lie in shared memory; the
// pointwise product reads it there, all sums in registers. Each finished pixel goes out as its 2x2 copies, with the
// skip added. So nothing between input and output is in global memory; blocks of other output channels compute the
// depthwise product again, at 25 operations to the pointwise product's kOutputs.
//
// The pointwise product is exact, or on tensor cores: of halves or bfloat16 where the tensors are, of floats rounded to
// TF32 where the caller allows that. Sums and everything else are float in all cases.
#pragma once
#include "block.cuh"
#include "tensor.cuh"

namespace mdepth {

constexpr int kTaps = 5, kReach = 2;

template <class T>
struct NnConv5Block : NnConv5Shape<T> {
  using Shape = NnConv5Shape<T>;
  static constexpr int kPixels = Shape::kWidth * Shape::kHeight;
  static constexpr int kLanes = 16;                             // threads whose pixels make up the square
  static constexpr int kMyPixels = kPixels / kLanes;            // a thread's, kLanes apart
  static constexpr int kMyOutputs = Shape::kOutputs * kLanes / Shape::kThreads;
  static constexpr int kStrip = 4;                              // pixels below each other in a depthwise product
  static constexpr int kChunk = Shape::kThreads * kStrip / kPixels;  // input channels: a strip for every thread
  static constexpr int kRegionWidth = Shape::kWidth + 2 * kReach;
  static constexpr int kRegion = kRegionWidth * (Shape::kHeight + 2 * kReach);
  static constexpr int kRegionStride = kRegion + 8;             // a warp's two channels fall into different banks
  static constexpr int kWeightStride = Shape::kOutputs + 4;     // the same for neighbouring channels
};

template <class T>
__device__ __forceinline__ T scaled_relu(T value, T scale, T shift) {
  value = value * scale + shift;
  return value < T(0) ? T(0) : value;  // a NaN passes
}

// One thread's strip of the depthwise product.
template <class T>
__device__ __forceinline__ void depthwise_strip(const T* region, const T* tap, T (&sum)[NnConv5Block<T>::kStrip]) {
  using Block = NnConv5Block<T>;
#pragma unroll
  for (int k = 0; k < Block::kStrip; ++k) sum[k] = T(0);
#pragma unroll
  for (int dx = 0; dx < kTaps; ++dx)
#pragma unroll
    for (int row = 0; row < Block::kStrip + 2 * kReach; ++row) {
      const T value = region[row * Block::kRegionWidth + dx];
#pragma unroll
      for (int k = 0; k < Block::kStrip; ++k)
        if (row - k >= 0 && row - k < kTaps) sum[k] += value * tap[(row - k) * kTaps + dx];
    }
}

template <class T>
__device__ __forceinline__ void nnconv5_tile(const NnConv5Params& p) {
  using Block = NnConv5Block<T>;
  constexpr int kThreads = Block::kThreads, kChunk = Block::kChunk, kLanes = Block::kLanes;
  constexpr int kMyOutputs = Block::kMyOutputs, kMyPixels = Block::kMyPixels;
  __shared__ T region[kChunk * Block::kRegionStride], tap[kChunk * kTaps * kTaps];
  alignas(16) __shared__ T active[kChunk * Block::kPixels], weight[kChunk * Block::kWeightStride];
  const int width = int(p.width), height = int(p.height), thread = int(threadIdx.x);
  const int64_t plane = p.width * p.height, groups = (p.out_channels + Block::kOutputs - 1) / Block::kOutputs;
  const BlockOrigin origin = block_origin<NnConv5Shape<T>>(blockIdx.x / groups, p.height, p.width);
  const int64_t first_output = blockIdx.x % groups * Block::kOutputs;
  const int lane = thread % kLanes, my_output = thread / kLanes * kMyOutputs;
  const bool has_outputs = first_output + my_output < p.out_channels;
  const int strips = Block::kPixels / Block::kStrip, my_channel = thread / strips;
  const int strip_x = thread % Block::kWidth, strip_y = thread % strips / Block::kWidth * Block::kStrip;
  const T* const image = static_cast<const T*>(p.x) + origin.image * p.channels * plane;

  T sum[kMyOutputs][kMyPixels];
#pragma unroll
  for (int m = 0; m < kMyOutputs; ++m)
#pragma unroll
    for (int j = 0; j < kMyPixels; ++j) sum[m][j] = T(0);

  for (int64_t c0 = 0; c0 < p.channels; c0 += kChunk) {
    const int count = p.channels - c0 < kChunk ? int(p.channels - c0) : kChunk;
    for (int i = thread; i < kChunk * Block::kRegion; i += kThreads) {
      const int c = i / Block::kRegion, at = i % Block::kRegion;
      const int x = origin.x - kReach + at % Block::kRegionWidth, y = origin.y - kReach + at / Block::kRegionWidth;
      const bool exists = c < count && x >= 0 && x < width && y >= 0 && y < height;
      region[c * Block::kRegionStride + at] = exists ? image[(c0 + c) * plane + y * width + x] : T(0);
    }
    for (int i = thread; i < count * kTaps * kTaps; i += kThreads)
      tap[i] = static_cast<const T*>(p.dw_weight)[c0 * kTaps * kTaps + i];
    __syncthreads();
    for (int i = thread; i < kChunk * Block::kOutputs; i += kThreads) {
      const int c = i % kChunk, o = i / kChunk;
      weight[c * Block::kWeightStride + o] =
          c < count && first_output + o < p.out_channels
              ? static_cast<const T*>(p.pw_weight)[(first_output + o) * p.channels + c0 + c]
              : T(0);
    }
    T strip[Block::kStrip];
    const bool has_channel = my_channel < count;
    if (has_channel) {
      depthwise_strip(region + my_channel * Block::kRegionStride + strip_y * Block::kRegionWidth + strip_x,
                      tap + my_channel * kTaps * kTaps, strip);
      const T scale = static_cast<const T*>(p.dw_scale)[c0 + my_channel];
      const T shift = static_cast<const T*>(p.dw_shift)[c0 + my_channel];
#pragma unroll
      for (int k = 0; k < Block::kStrip; ++k) strip[k] = scaled_relu(strip[k], scale, shift);
    }
#pragma unroll
    for (int k = 0; k < Block::kStrip; ++k)
      active[my_channel * Block::kPixels + (strip_y + k) * Block::kWidth + strip_x] = has_channel ? strip[k] : T(0);
    __syncthreads();
    if (!has_outputs) continue;
#pragma unroll 4
    for (int c = 0; c < kChunk; ++c) {
      T pixel[kMyPixels], factor[kMyOutputs];
#pragma unroll
      for (int j = 0; j < kMyPixels; ++j) pixel[j] = active[c * Block::kPixels + j * kLanes + lane];
#pragma unroll
      for (int m = 0; m < kMyOutputs; ++m) factor[m] = weight[c * Block::kWeightStride + my_output + m];
#pragma unroll
      for (int m = 0; m < kMyOutputs; ++m)
#pragma unroll
        for (int j = 0; j < kMyPixels; ++j) sum[m][j] += factor[m] * pixel[j];
    }
  }

#pragma unroll
  for (int m = 0; m < kMyOutputs; ++m) {
    const int64_t o = first_output + my_output + m;
    if (o >= p.out_channels) continue;
    const T scale = static_cast<const T*>(p.pw_scale)[o], shift = static_cast<const T*>(p.pw_shift)[o];
    const int64_t first = (origin.image * p.out_channels + o) * 4 * plane;
    T* const out = static_cast<T*>(p.out) + first;
    const T* const skip = p.skip ? static_cast<const T*>(p.skip) + first : nullptr;
#pragma unroll
    for (int j = 0; j < kMyPixels; ++j) {
      const int x = origin.x + (j * kLanes + lane) % Block::kWidth, y = origin.y + (j * kLanes + lane) / Block::kWidth;
      if (x >= width || y >= height) continue;
      const T value = scaled_relu(sum[m][j], scale, shift);
#pragma unroll
      for (int copy = 0; copy < 4; ++copy) {
        const int64_t at = (2 * int64_t(y) + copy / 2) * 2 * width + 2 * x + copy % 2;
        out[at] = skip ? value + skip[at] : value;
      }
    }
  }
}

// The same with the pointwise product on tensor cores. `Number` is what x, pw_weight, skip and out are made of (Tf32:
// float). A warp has 16 output channels and all pixels; where there are too few for all warps, part of the pixels. Half
// a warp has an input channel of the chunk; what it needs of the next one is fetched while this one is computed.
template <class Number>
struct NnConv5Tensor : NnConv5Block<float> {
  static constexpr int kRows = 16, kColumns = 8;  // of a product: output channels, pixels (a row of the square)
  static constexpr int kSteps = kChunk / (kStepWords * kPerWord<Number>);
  static constexpr int kWords = kSteps * kStepWords;
  static constexpr int kWordStride = kWords + 4;  // reads of a fragment fall into different banks
  static constexpr int kTeam = kThreads / kChunk;  // threads with the same input channel
  static constexpr int kMyRegion = kRegion / kTeam;
  static constexpr int kMyTaps = (kTaps * kTaps + kTeam - 1) / kTeam;
  static_assert(kOutputs == kRows * kThreads / kWarp && kWidth == kColumns && kSteps > 0);
  static_assert(kRegion % kTeam == 0 && kTeam == kPixels / kStrip);
};

// The words (first, ...) of row `o` of the pointwise weights; 0 past the last channel or row.
template <class Number>
__device__ __forceinline__ unsigned weight_word(const NnConv5Params& p, int64_t o, int64_t first) {
  unsigned word = 0;
  if (o >= p.out_channels || first >= p.channels) return word;
  const Number* const from = static_cast<const Number*>(p.pw_weight) + o * p.channels + first;
  if constexpr (sizeof(Number) == 4) {
    Number rounded;
    round_to(to_float(*from), rounded);
    memcpy(&word, &rounded, sizeof word);
  } else if (p.channels % 2 == 0) {
    memcpy(&word, __builtin_assume_aligned(from, 4), sizeof word);
  } else {
    word = from[0].bits | (first + 1 < p.channels ? unsigned(from[1].bits) << 16 : 0u);
  }
  return word;
}

template <class Number>
__device__ __forceinline__ void store_pixel(const NnConv5Params& p, int64_t image, int64_t o, int x, int y, float value) {
  if (o >= p.out_channels || x >= p.width || y >= p.height) return;
  value = scaled_relu(value, static_cast<const float*>(p.pw_scale)[o], static_cast<const float*>(p.pw_shift)[o]);
  const int64_t corner = (image * p.out_channels + o) * 4 * p.height * p.width + 4 * int64_t(y) * p.width + 2 * x;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    struct alignas(2 * sizeof(Number)) Pair {
      Number left, right;
    } pair;
    const int64_t at = corner + row * 2 * p.width;
    float left = value, right = value;
    if (p.skip) {
      pair = *reinterpret_cast<const Pair*>(static_cast<const Number*>(p.skip) + at);
      left += to_float(pair.left);
      right += to_float(pair.right);
    }
    if constexpr (sizeof(Number) == 4) {
      pair.left.value = left;  // the result is not rounded
      pair.right.value = right;
    } else {
      round_to(left, pair.left);
      round_to(right, pair.right);
    }
    *reinterpret_cast<Pair*>(static_cast<Number*>(p.out) + at) = pair;
  }
}

template <class Number>
__device__ __forceinline__ void nnconv5_tensor_tile(const NnConv5Params& p) {
  using Block = NnConv5Tensor<Number>;
  constexpr int kThreads = Block::kThreads, kChunk = Block::kChunk, kSquareRows = Block::kHeight;
  __shared__ float region[kChunk * Block::kRegionStride], tap[kChunk * kTaps * kTaps];
  alignas(16) __shared__ unsigned active[Block::kPixels * Block::kWordStride];
  const int width = int(p.width), height = int(p.height), thread = int(threadIdx.x), lane = thread % kWarp;
  const int64_t plane = p.width * p.height, groups = (p.out_channels + Block::kOutputs - 1) / Block::kOutputs;
  const BlockOrigin origin = block_origin<NnConv5Shape<float>>(blockIdx.x / groups, p.height, p.width);
  const int64_t first_output = blockIdx.x % groups * Block::kOutputs;
  const int member = thread % Block::kTeam, my_channel = thread / Block::kTeam;
  const int strip_x = member % Block::kWidth, strip_y = member / Block::kWidth * Block::kStrip;
  float* const my_region = region + my_channel * Block::kRegionStride;
  float* const my_tap = tap + my_channel * kTaps * kTaps;
  const Number* const image = static_cast<const Number*>(p.x) + (origin.image * p.channels + my_channel) * plane;

  int warps = kThreads / kWarp;  // that have different outputs
  while (warps > 1 && first_output + warps / 2 * Block::kRows >= p.out_channels) warps /= 2;
  const int warp = thread / kWarp, part = warp / warps, parts = kThreads / kWarp / warps;
  const int64_t my_output = first_output + warp % warps * Block::kRows + lane / 4;

  float sum[kSquareRows][4];
#pragma unroll
  for (int row = 0; row < kSquareRows; ++row)
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[row][i] = 0;

  int offset[Block::kMyRegion];  // in a plane; -1 outside the image
#pragma unroll
  for (int k = 0; k < Block::kMyRegion; ++k) {
    const int at = member + k * Block::kTeam;
    const int x = origin.x - kReach + at % Block::kRegionWidth, y = origin.y - kReach + at / Block::kRegionWidth;
    offset[k] = x >= 0 && x < width && y >= 0 && y < height ? y * width + x : -1;
  }
  Number next[Block::kMyRegion];
  float next_tap[Block::kMyTaps];
  const auto fetch = [&](int64_t c0) {
    const bool exists = c0 + my_channel < p.channels;
#pragma unroll
    for (int k = 0; k < Block::kMyRegion; ++k)
      next[k] = exists && offset[k] >= 0 ? image[c0 * plane + offset[k]] : Number{};
#pragma unroll
    for (int k = 0; k < Block::kMyTaps; ++k) {
      const int at = member + k * Block::kTeam;
      next_tap[k] = exists && at < kTaps * kTaps
                        ? static_cast<const float*>(p.dw_weight)[(c0 + my_channel) * kTaps * kTaps + at] : 0.0f;
    }
  };

  fetch(0);
  for (int64_t c0 = 0; c0 < p.channels; c0 += kChunk) {
#pragma unroll
    for (int k = 0; k < Block::kMyRegion; ++k) my_region[member + k * Block::kTeam] = to_float(next[k]);
#pragma unroll
    for (int k = 0; k < Block::kMyTaps; ++k)
      if (member + k * Block::kTeam < kTaps * kTaps) my_tap[member + k * Block::kTeam] = next_tap[k];
    __syncthreads();
    if (c0 + kChunk < p.channels) fetch(c0 + kChunk);
    const bool exists = c0 + my_channel < p.channels;  // one that does not is 0 after scale, shift and relu
    const float scale = exists ? static_cast<const float*>(p.dw_scale)[c0 + my_channel] : 0.0f;
    const float shift = exists ? static_cast<const float*>(p.dw_shift)[c0 + my_channel] : 0.0f;
    unsigned weight[Block::kSteps][4];
#pragma unroll
    for (int step = 0; step < Block::kSteps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weight[step][i] = weight_word<Number>(
            p, my_output + i % 2 * 8, c0 + (step * kStepWords + i / 2 * 4 + lane % 4) * kPerWord<Number>);

    float strip[Block::kStrip];
    depthwise_strip(my_region + strip_y * Block::kRegionWidth + strip_x, my_tap, strip);
#pragma unroll
    for (int k = 0; k < Block::kStrip; ++k) {
      Number rounded;
      round_to(scaled_relu(strip[k], scale, shift), rounded);
      const int pixel = (strip_y + k) * Block::kWidth + strip_x;
      memcpy(reinterpret_cast<char*>(active + pixel * Block::kWordStride) + my_channel * sizeof(Number),
                       &rounded, sizeof rounded);
    }
    __syncthreads();
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

#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int row = 0; row < kSquareRows; ++row)
      if (row % parts == part) store_pixel<Number>(p, origin.image, my_output + i / 2 * 8, origin.x + lane % 4 * 2 + i % 2, origin.y + row,
                          sum[row][i]);
  }
}

}  // namespace mdepth

// name, threads, parameters, function
#define MDEPTH_NNCONV5_TENSOR_KERNEL(KERNEL, name, Number) \
  KERNEL(name, mdepth::NnConv5Shape<float>::kThreads, NnConv5Params, mdepth::nnconv5_tensor_tile<mdepth::Number>)
#define MDEPTH_NNCONV5_KERNELS(KERNEL)                                                                   \
  KERNEL(nnconv5_f32, mdepth::NnConv5Shape<float>::kThreads, NnConv5Params, mdepth::nnconv5_tile<float>)   \
  KERNEL(nnconv5_f64, mdepth::NnConv5Shape<double>::kThreads, NnConv5Params, mdepth::nnconv5_tile<double>) \
  MDEPTH_NNCONV5_TENSOR_KERNEL(KERNEL, nnconv5_tf32, Tf32)                                                 \
  MDEPTH_NNCONV5_TENSOR_KERNEL(KERNEL, nnconv5_f16, Half)                                                  \
  MDEPTH_NNCONV5_TENSOR_KERNEL(KERNEL, nnconv5_bf16, BFloat16)

MDEPTH_NNCONV5_KERNELS(MDEPTH_DEFINE_KERNEL)
