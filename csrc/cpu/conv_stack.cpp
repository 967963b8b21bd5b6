// Blocks of convolutions one after the other, each through conv_block.h; memory between two of them is given back when
// its last reader is through.
#include <memory>
#include <vector>

#include "conv_block.h"
#include "mdepth/conv_stack.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

template <class T>
int run(const ConvStackParams& p) {
  std::vector<int64_t> last_reader(size_t(p.count), p.count);
  for (int64_t k = 0; k + 1 < p.count; ++k) last_reader[size_t(k)] = k + 1;
  for (int64_t k = 0; k < p.count; ++k)
    if (p.blocks[k].skip >= 0) last_reader[size_t(p.blocks[k].skip)] = std::max(k, p.blocks[k].skip + 1);
  std::vector<std::unique_ptr<Scratch<T>>> results(size_t(p.count));

  ConvBlock<T> block{};
  block.threads = p.threads;
  block.batch = p.batch;
  block.channels = p.channels;
  block.height = p.height;
  block.width = p.width;
  block.x = static_cast<const T*>(p.x);
  block.image_step = p.image_step;
  block.channel_step = p.channel_step;
  block.line_step = p.line_step;
  block.pixel_step = p.pixel_step;
  for (int64_t k = 0; k < p.count; ++k) {
    const ConvStackBlock& from = p.blocks[k];
    const bool as_they_are = from.kernel == 1 && from.stride == 1 && block.channel_step == 1;
    block.rows = from.dw_weight ? Rows::kDepthwise : as_they_are ? Rows::kPixel : Rows::kPatch;
    block.out_channels = from.out_channels;
    block.kernel = from.kernel;
    block.stride = from.stride;
    block.doubled = from.doubled;
    block.cap = T(from.cap);
    block.dw_weight = static_cast<const T*>(from.dw_weight);
    block.dw_shift = static_cast<const T*>(from.dw_bias);
    block.weight = static_cast<const T*>(from.weight);
    block.shift = static_cast<const T*>(from.bias);
    block.skip = from.skip < 0 ? nullptr : results[size_t(from.skip)]->get();

    const int64_t step = from.doubled ? 2 : 1;
    const int64_t height = ((block.height - 1) / from.stride + 1) * step;
    const int64_t width = ((block.width - 1) / from.stride + 1) * step;
    block.out = static_cast<T*>(p.out);
    if (k + 1 < p.count) {
      results[size_t(k)].reset(new Scratch<T>(p.batch * height * width * from.out_channels));
      if (!*results[size_t(k)]) return 1;
      block.out = results[size_t(k)]->get();
    }
    if (ChannelsLast<T>(block).run() != 0) return 1;
    for (int64_t j = 0; j < k; ++j)
      if (last_reader[size_t(j)] == k) results[size_t(j)].reset();

    block.x = block.out;
    block.channels = from.out_channels;
    block.height = height;
    block.width = width;
    block.image_step = height * width * from.out_channels;
    block.channel_step = 1;
    block.line_step = width * from.out_channels;
    block.pixel_step = from.out_channels;
  }
  return 0;
}

}  // namespace

int conv_stack(const ConvStackParams& p) { return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p); }

}  // namespace MDEPTH_ISA
}  // namespace mdepth
