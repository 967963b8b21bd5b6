// The arithmetic of ordinal regression, host and device: one pair of logits of one pixel.
// Bin k's probability "beyond t_k" is P = sigmoid(d), d = y_{2k+1} - y_{2k}. With s = -d where the truth is beyond and
// s = d where it is not, the pair costs softplus(s), and its derivative by s is sigmoid(s): both free of cancellation.
#pragma once
#include "mdepth/log.h"
#include "mdepth/smoothness.h"

namespace mdepth {

// softplus(s) = max(s, 0) + log(1 + exp(-|s|)), and the logarithms of a pixel's pairs are taken together: `odds` is
// prod (1 + exp(-|s|)) - 1, updated so that it keeps its relative accuracy when every factor is near 1.
constexpr int kOrdinalFactors = 16;  // pairs between two logarithms; odds stays below 2^16

template <class T>
MDEPTH_HD T ordinal_excess(T excess, T s) {
  return excess + (s > T(0) ? s : T(0));
}

template <class T>
MDEPTH_HD T ordinal_odds(T odds, T s) {
  return odds + exp_negative(abs_of(s)) * (T(1) + odds);
}

template <class T>
MDEPTH_HD T ordinal_slope(T s) {
  const T e = exp_negative(abs_of(s));
  return (s >= T(0) ? T(1) : e) / (T(1) + e);
}

}  // namespace mdepth
