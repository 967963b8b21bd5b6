// Every kernel once, on buffers of exactly the right size, for the sanitizers. Prints what differs when the blocks run
// in the opposite order. An argument n, for float alone, takes the n-th barrier out and runs what has it; -1 none and all.
#include "kernels.h"
#include "mdepth/plan.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

using namespace mdepth;

constexpr int64_t kBatch = 2;
bool differs = false;

// Numbers that vary from element to element and stay between low and high.
template <class T>
std::vector<T> numbers(int64_t count, double low, double high) {
  std::vector<T> v(count);
  unsigned state = 1;
  for (T& x : v) {
    state = state * 1664525u + 1013904223u;
    x = T(low + (high - low) * (double(state >> 8) / double(1 << 24)));
  }
  return v;
}

std::vector<double> projections(int64_t count) {
  std::vector<double> v = numbers<double>(count * kProjection, -1e-3, 1e-3);
  for (int64_t i = 0; i < count; ++i)
    for (int k = 0; k < 3; ++k) {
      v[i * kProjection + 5 * k] += 1;
      v[i * kProjection + 4 * k + 3] *= 3000;
    }
  return v;
}

// Runs a plan forwards and backwards; `outputs` are compared between the two.
template <class Params>
void run(const char* what, Plan (*make_plan)(const Params&), Params p, std::vector<std::vector<char>*> outputs) {
  const Plan plan = make_plan(p);
  std::vector<double> workspace(plan.workspace);
  if constexpr (requires { p.workspace; }) p.workspace = workspace.data();
  std::vector<std::vector<char>> first;
  for (bool descending : {false, true}) {
    for (const Launch& one : plan.launches)
      if (!run_on_host(one.kernel.c_str(), one.blocks, one.threads, &p, descending)) std::abort();
    if (!descending)
      for (auto* output : outputs) first.push_back(*output);
  }
  for (size_t i = 0; i < outputs.size(); ++i)
    if (first[i] != *outputs[i]) {
      std::printf("%s: output %zu depends on the order of the blocks\n", what, i);
      differs = true;
    }
}

template <class T>
struct Room : std::vector<char> {
  explicit Room(int64_t count) : std::vector<char>(sizeof(T) * size_t(count)) {}
  T* get() { return reinterpret_cast<T*>(data()); }
};

// The numbers that are stored as `Number` where the pointwise product is of them.
template <class Number>
void run_nnconv5_of(NnConv5Params p, Product product, const std::vector<float>& x, const std::vector<float>& pw_weight,
                    const std::vector<float>& skip) {
  const auto rounded = [](const std::vector<float>& from) {
    std::vector<Number> to(from.size());
    for (size_t i = 0; i < from.size(); ++i) round_to(from[i], to[i]);
    return to;
  };
  const auto half_x = rounded(x), half_weight = rounded(pw_weight), half_skip = rounded(skip);
  Room<Number> out(int64_t(skip.size()));
  p.product = product;
  p.x = half_x.data();
  p.pw_weight = half_weight.data();
  p.skip = half_skip.data();
  p.out = out.get();
  run("nnconv5 of halves", plan_nnconv5, p, {&out});
}

template <class T, int64_t kHeight, int64_t kWidth>
void run_nnconv5(Dtype dtype, int64_t in, int64_t out) {
  constexpr int64_t kPlane = kHeight * kWidth;
  auto x = numbers<T>(kBatch * in * kPlane, -1, 1), dw_weight = numbers<T>(in * 25, -1, 1);
  auto pw_weight = numbers<T>(out * in, -1, 1), factors = numbers<T>(in, -1, 1);
  auto skip = numbers<T>(kBatch * out * 4 * kPlane, -1, 1);
  Room<T> doubled(kBatch * out * 4 * kPlane);
  NnConv5Params n{};
  n.dtype = dtype;
  n.batch = kBatch;
  n.channels = in;
  n.out_channels = out;
  n.height = kHeight;
  n.width = kWidth;
  n.x = x.data();
  n.dw_weight = dw_weight.data();
  n.dw_scale = n.dw_shift = factors.data();
  n.pw_weight = pw_weight.data();
  n.pw_scale = n.pw_shift = factors.data() + in - out;
  n.skip = skip.data();
  n.out = doubled.get();
  run("nnconv5", plan_nnconv5, n, {&doubled});
  if constexpr (sizeof(T) == 4) {
    n.product = Product::kTf32;
    run("nnconv5_tf32", plan_nnconv5, n, {&doubled});
    run_nnconv5_of<Half>(n, Product::kFloat16, x, pw_weight, skip);
    run_nnconv5_of<BFloat16>(n, Product::kBFloat16, x, pw_weight, skip);
  }
}

template <class T, int64_t kHeight, int64_t kWidth>
void run_all(Dtype dtype, Padding padding, bool others, bool min_reprojection) {
  constexpr int64_t kPlane = kHeight * kWidth;
  constexpr int64_t kSources = 3, kScales = 2, kChannels = 3;  // one source more than min_reprojection keeps
  auto target = numbers<T>(kBatch * 3 * kPlane, 0, 1);
  auto source = numbers<T>(kBatch * kSources * 3 * kPlane, 0, 1);
  auto depth = numbers<T>(kBatch * kPlane, 1, 5), other_depth = numbers<T>(kBatch * kPlane, -1, 3);
  auto noise = numbers<T>(kBatch * kSources * kPlane, 0, 0.1);
  auto projection = projections(kBatch * kSources);
  Room<T> a(kBatch * kChannels * kPlane), b(kBatch * kChannels * kPlane), map(kBatch * kPlane);
  Room<bool> valid(kBatch * kPlane);
  Room<double> poses(kBatch * kProjection);

  if (min_reprojection) {
    MinReprojectionParams m{};
    Room<double> losses(kScales), grad_poses(kScales * kBatch * kSources * kProjection);
    Room<int8_t> selection(kScales * kBatch * kPlane);
    Room<T> grad_depth(kScales * kBatch * kPlane);
    m.dtype = dtype;
    m.padding = padding;
    m.batch = kBatch;
    m.sources = kSources;
    m.scales = kScales;
    m.height = kHeight;
    m.width = kWidth;
    m.ssim_weight = 0.85;
    m.auto_mask = true;
    m.target = target.data();
    m.source = source.data();
    m.depth[0] = depth.data();
    m.depth[1] = other_depth.data();
    m.projection = projection.data();
    m.identity_noise = noise.data();
    m.loss = losses.get();
    m.selection = selection.get();
    m.grad_depth = grad_depth.get();
    m.grad_projection = grad_poses.get();
    run("min_reprojection", plan_min_reprojection, m, {&losses, &selection, &grad_depth, &grad_poses});
  }
  if (!others) return;

  InverseWarpParams w{};
  w.dtype = dtype;
  w.padding = padding;
  w.batch = kBatch;
  w.channels = kChannels;
  w.height = w.source_height = kHeight;
  w.width = w.source_width = kWidth;
  w.source = source.data();
  w.depth = depth.data();
  w.projection = projection.data();
  w.warped = a.get();
  w.valid = valid.get();
  run("inverse_warp", plan_inverse_warp, w, {&a, &valid});
  w.grad = target.data();
  w.grad_depth = map.get();
  w.grad_projection = poses.get();
  run("inverse_warp_backward", plan_inverse_warp_backward, w, {&map, &poses});
  w.grad_source = b.get();
  run("inverse_warp_backward, atomic", plan_inverse_warp_backward, w, {});
  w.ordered = true;
  run("inverse_warp_backward, ordered", plan_inverse_warp_backward, w, {});

  PhotometricLossParams l{};
  l.dtype = dtype;
  l.batch = kBatch;
  l.channels = kChannels;
  l.height = kHeight;
  l.width = kWidth;
  l.ssim_weight = 0.85;
  l.prediction = source.data();
  l.target = target.data();
  l.loss = map.get();
  run("photometric_loss", plan_photometric_loss, l, {&map});
  l.grad = depth.data();
  l.grad_prediction = a.get();
  l.grad_target = b.get();
  run("photometric_loss_backward", plan_photometric_loss_backward, l, {&a, &b});

  EdgeAwareSmoothnessParams e{};
  Room<double> loss(1);
  e.dtype = dtype;
  e.batch = kBatch;
  e.channels = kChannels;
  e.height = kHeight;
  e.width = kWidth;
  e.disparity = depth.data();
  e.image = target.data();
  e.loss = loss.get();
  e.grad_disparity = map.get();
  run("edge_aware_smoothness", plan_edge_aware_smoothness, e, {&loss, &map});

  Room<T> larger(kBatch * 3 * kPlane);
  auto grad_of_larger = numbers<T>(kBatch * 3 * kPlane, 0, 1);
  DisparityToDepthParams y{};
  y.dtype = dtype;
  y.batch = kBatch;
  y.height = 3 * kHeight;
  y.width = kWidth;
  y.map_height = kHeight;
  y.map_width = kWidth;
  y.min_depth = 0.1;
  y.max_depth = 100;
  y.disparity = target.data();
  y.depth = larger.get();
  run("disparity_to_depth", plan_disparity_to_depth, y, {&larger});
  y.grad = grad_of_larger.data();
  y.grad_disparity = map.get();
  run("disparity_to_depth_backward", plan_disparity_to_depth_backward, y, {&map});

  DepthMetricsParams r{};
  Room<double> sums(kBatch * kDepthSums);
  const std::vector<double> factors_of_images(kBatch, 1.1);
  r.dtype = dtype;
  r.batch = kBatch;
  r.height = kHeight;
  r.width = kWidth;
  r.top = 1;
  r.bottom = kHeight;
  r.right = kWidth - 1;
  r.max_valid = r.max_depth = 2.5;
  r.min_depth = 0.1;
  r.prediction = depth.data();
  r.ground_truth = other_depth.data();
  r.scale = factors_of_images.data();
  r.sums = sums.get();
  run("depth_metrics", plan_depth_metrics, r, {&sums});

  // Two chunks of input channels, half of the threads without an output one; input channels in parts.
  run_nnconv5<T, kHeight, kWidth>(dtype, 35, 11);
  run_nnconv5<T, 7, 9>(dtype, 70, 35);

  constexpr int64_t kBins = 17;  // one more than share a logarithm
  auto logits = numbers<T>(kBatch * 2 * kBins * kPlane, -3, 3);
  std::vector<T> thresholds(kBins + 1);
  for (int64_t k = 0; k <= kBins; ++k) thresholds[k] = T(0.2 * double(k));
  Room<int64_t> label(kBatch * kPlane), count(1);
  Room<T> grad_logits(kBatch * 2 * kBins * kPlane);
  OrdinalDecodeParams d{};
  d.dtype = dtype;
  d.batch = kBatch;
  d.bins = kBins;
  d.height = kHeight;
  d.width = kWidth;
  d.logits = logits.data();
  d.thresholds = thresholds.data();
  d.depth = map.get();
  d.label = label.get();
  run("ordinal_decode", plan_ordinal_decode, d, {&map, &label});

  OrdinalLossParams o{};
  o.dtype = dtype;
  o.batch = kBatch;
  o.bins = kBins;
  o.height = kHeight;
  o.width = kWidth;
  o.logits = logits.data();
  o.depth = other_depth.data();
  o.thresholds = thresholds.data();
  o.count = count.get();
  o.loss = loss.get();
  run("ordinal_loss", plan_ordinal_loss, o, {&loss, &count});
  o.grad = target.data();
  o.grad_logits = grad_logits.get();
  run("ordinal_loss_backward", plan_ordinal_loss_backward, o, {&grad_logits});

  Room<double> numbers_of_images(2 * kBatch), state(2);
  SilogLossParams s{};
  s.dtype = dtype;
  s.batch = kBatch;
  s.height = kHeight;
  s.width = kWidth;
  s.form = SilogForm::kSqrtUnbiased;
  s.variance_focus = 0.85;
  s.scale = 10;
  s.measured = true;
  s.prediction = depth.data();
  s.depth = other_depth.data();
  s.loss = loss.get();
  s.coefficients = numbers_of_images.get();
  run("silog_loss", plan_silog_loss, s, {&loss, &numbers_of_images});
  s.grad = target.data();
  s.grad_prediction = map.get();
  run("silog_loss_backward", plan_silog_loss_backward, s, {&map});

  BerhuLossParams h{};
  h.dtype = dtype;
  h.batch = kBatch;
  h.height = kHeight;
  h.width = kWidth;
  h.threshold = 0.2;
  h.valid = valid.get();
  h.prediction = depth.data();
  h.depth = other_depth.data();
  h.loss = loss.get();
  h.state = state.get();
  run("berhu_loss", plan_berhu_loss, h, {&loss, &state});
  h.grad = target.data();
  h.grad_prediction = map.get();
  run("berhu_loss_backward", plan_berhu_loss_backward, h, {&map});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    run_all<float, 17, 35>(Dtype::kFloat32, Padding::kBorder, true, true);
    run_all<float, 2, 3>(Dtype::kFloat32, Padding::kZeros, true, true);
    run_all<double, 17, 35>(Dtype::kFloat64, Padding::kZeros, true, true);
    return differs ? 2 : 0;
  }
  const int n = std::atoi(argv[1]);
  if (n >= 0) dropped_barrier = barrier_number(n);
  run_all<float, 17, 35>(Dtype::kFloat32, Padding::kBorder, n < kBarriersBeforeMinReprojection,
                         n < 0 || n >= kBarriersBeforeMinReprojection);
  std::printf("%d barriers\n", kBarriers);
  return differs ? 2 : 0;
}
