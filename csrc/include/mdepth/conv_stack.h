// conv_stack: parameters. A kernel of the CPU alone.
#pragma once
#include "mdepth/params.h"

namespace mdepth {

struct ConvStackBlock {
  int64_t out_channels;
  int kernel, stride;  // of the depthwise convolution, where there is one: kernel 3 or 5, stride 1 or 2
  bool doubled;
  int64_t skip;           // index of the block whose result is added; -1: none
  double cap;             // results are clamped to 0..cap
  const void* dw_weight;  // (C, 1, kernel, kernel) or null: weight is of a dense convolution
  const void* dw_bias;    // (C,) or null
  const void* weight;     // (O, C, 1, 1), or (O, C, kernel, kernel)
  const void* bias;       // (O,)
};
MDEPTH_FIELDS(ConvStackBlock, out_channels, kernel, stride, doubled, skip, cap, dw_weight, dw_bias, weight, bias)

struct ConvStackParams {
  Dtype dtype;
  int threads;
  int64_t batch, channels, height, width;                   // of x
  int64_t image_step, channel_step, line_step, pixel_step;  // of x: (B, H, W, C) unless the first block is dense
  const void* x;
  const ConvStackBlock* blocks;
  int64_t count;
  void* out;  // of the last block, (B, H', W', O)
};
MDEPTH_FIELDS(ConvStackParams, dtype, threads, batch, channels, height, width, image_step, channel_step, line_step,
              pixel_step, x, blocks, count, out)

}  // namespace mdepth
