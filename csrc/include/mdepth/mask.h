// Which pixels count in a loss over sparse ground truth, host and device.
#pragma once
#include "mdepth/hd.h"

namespace mdepth {

// 0, negative, infinite and NaN mean "not measured".
template <class T>
MDEPTH_HD bool measured(T depth) {
  return (depth > T(0)) & (depth - depth == T(0));
}

// Whether pixel `at` counts: as the mask says, else those measured, else every one.
template <class Params, class T>
MDEPTH_HD bool counts(const Params& p, int64_t at, T depth) {
  return p.valid ? p.valid[at] : !p.measured || measured(depth);
}

}  // namespace mdepth
