// ordinal_decode: parameters and launch plan.
#pragma once
#include "mdepth/grid.h"
#include "mdepth/params.h"
#include "mdepth/plan.h"

namespace mdepth {

struct OrdinalDecodeParams {
  Dtype dtype;
  int threads;
  int64_t batch, bins, height, width;
  const void* logits;      // (B, 2 bins, H, W)
  const void* thresholds;  // (bins + 1,)
  void* depth;             // out (B, 1, H, W)
  int64_t* label;          // out (B, 1, H, W)
};
MDEPTH_FIELDS(OrdinalDecodeParams, dtype, threads, batch, bins, height, width, logits, thresholds, depth, label)

#if !defined(__CUDACC_RTC__)

inline Plan plan_ordinal_decode(const OrdinalDecodeParams& p) {
  Plan plan;
  plan.add(with_dtype("ordinal_decode", p.dtype), p.batch * runs_per_plane(p.height * p.width), kRunThreads);
  return plan;
}

#endif

}  // namespace mdepth
