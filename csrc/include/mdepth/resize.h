// Bilinear resizing along one axis, from `in` pixels to `out`: the outer edges coincide, so pixel i of the result lies at
// (i + 1/2) in / out - 1/2, or at an end where that is beyond it. Positions are whole numbers of 1 / (2 out) pixels: only
// weights are rounded, and forward, backward, host and device agree on who reads whom.
#pragma once
#include "mdepth/hd.h"
#include "mdepth/params.h"

namespace mdepth {

MDEPTH_HD int64_t resize_position(int64_t i, int64_t in, int64_t out) {
  const int64_t position = (2 * i + 1) * in - out, last = 2 * out * (in - 1);
  return position < 0 ? 0 : (position > last ? last : position);
}

// What one pixel of the result is made of: the pixels before and after it, both read even where a weight is 0.
template <class T>
struct ResizeTaps {
  int first, second;
  T w_first, w_second;
};

template <class T>
MDEPTH_HD ResizeTaps<T> resize_taps(int64_t i, int64_t in, int64_t out) {
  const int64_t position = resize_position(i, in, out), unit = 2 * out;
  ResizeTaps<T> t;
  t.first = int(position / unit);
  t.second = t.first + (in != out && t.first + 1 < in ? 1 : 0);
  const int64_t part = position - t.first * unit;
  t.w_first = T(unit - part) / T(unit);
  t.w_second = T(part) / T(unit);
  return t;
}

// The first pixel of the result that does not lie before pixel i.
MDEPTH_HD int64_t resize_reach(int64_t i, int64_t in, int64_t out) {
  const int64_t distance = (2 * i + 1) * out - in;
  if (distance <= 0) return 0;
  const int64_t first = (distance + 2 * in - 1) / (2 * in);
  return first < out ? first : out;
}

// Which pixels of the result read pixel i: `begin` to `end`, half-open.
struct ResizeReaders {
  int begin, end;
};

MDEPTH_HD ResizeReaders resize_readers(int64_t i, int64_t in, int64_t out) {
  ResizeReaders r;
  r.begin = in == out ? int(i) : int(resize_reach(i - 1, in, out));
  r.end = in == out ? int(i) + 1 : int(resize_reach(i + 1, in, out));
  return r;
}

// With what weight pixel `reader` of the result reads pixel i, if it does.
template <class T>
MDEPTH_HD T resize_weight(int64_t reader, int64_t i, int64_t in, int64_t out) {
  const int64_t distance = resize_position(reader, in, out) - 2 * out * i;
  return T(2 * out - (distance < 0 ? -distance : distance)) / T(2 * out);
}

}  // namespace mdepth
