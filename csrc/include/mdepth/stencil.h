// 3x3 windows at the image's border: reflection, and its adjoint.
#pragma once
#include "mdepth/hd.h"

namespace mdepth {

// `reflect(-1) = 1`, `reflect(n) = n - 2`
MDEPTH_HD int reflect(int i, int n) { return i < 0 ? -i : (i >= n ? 2 * n - 2 - i : i); }

// How often the window before (after) position q reaches q: 0 outside the image, 2 where it also does by reflection.
MDEPTH_HD int weight_above(int q) { return q == 0 ? 0 : (q == 1 ? 2 : 1); }
MDEPTH_HD int weight_below(int q, int size) { return q == size - 1 ? 0 : (q == size - 2 ? 2 : 1); }

}  // namespace mdepth
