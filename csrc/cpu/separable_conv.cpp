// A depthwise-separable block of MobileNet in inference; the work is in separable.h.
#include "mdepth/launch.h"
#include "separable.h"

namespace mdepth {
namespace MDEPTH_ISA {
namespace {

template <class T>
int run(const SeparableConvParams& p) {
  Separable<T> block{};
  block.threads = p.threads;
  block.batch = p.batch;
  block.channels = p.channels;
  block.out_channels = p.out_channels;
  block.height = p.height;
  block.width = p.width;
  block.kernel = p.kernel;
  block.stride = p.stride;
  block.cap = T(p.cap);
  block.x = static_cast<const T*>(p.x);
  block.dw_weight = static_cast<const T*>(p.dw_weight);
  block.dw_shift = static_cast<const T*>(p.dw_bias);
  block.pw_weight = static_cast<const T*>(p.pw_weight);
  block.pw_shift = static_cast<const T*>(p.pw_bias);
  block.out = static_cast<T*>(p.out);
  return p.batch ? ChannelsLast<T>(block).run() : 0;
}

}  // namespace

int separable_conv(const SeparableConvParams& p) {
  return p.dtype == Dtype::kFloat64 ? run<double>(p) : run<float>(p);
}

}  // namespace MDEPTH_ISA
}  // namespace mdepth
