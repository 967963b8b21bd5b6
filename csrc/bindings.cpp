// pybind11 module mdepth_fast._C. Addresses arrive as integers and are trusted here: mdepth_fast/_native.py is the only
// caller and has checked dtype, device, layout and size of every tensor behind them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "mdepth/launch.h"

namespace py = pybind11;
using namespace mdepth;

namespace {

using Address = uintptr_t;

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa best_isa() {
#if defined(MDEPTH_HAS_AVX512) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa active_isa = best_isa();

std::string isa_name(Isa isa) { return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "baseline"; }

// For tests and comparisons; a set that the CPU lacks is refused.
void set_isa(const std::string& name) {
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
    if (isa_name(isa) == name && isa <= best_isa()) {
      active_isa = isa;
      return;
    }
  throw std::invalid_argument("instruction set '" + name + "' is not available on this CPU");
}

#if defined(MDEPTH_HAS_AVX512)
#define MDEPTH_PICK(op) \
  (active_isa == Isa::kAvx512 ? avx512::op : active_isa == Isa::kAvx2 ? avx2::op : baseline::op)
#else
#define MDEPTH_PICK(op) (baseline::op)
#endif

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Where an op runs: on so many CPU threads, or on a GPU. `allocate` gives the address of that many doubles there.
struct Where {
  enum Kind { kCpu, kLaunch, kPlan };
  Kind kind = kCpu;
  int threads = 0;
  int device = 0;
  Address stream = 0;
  py::function allocate;
};

template <class Params>
py::object launch(int (*kernel)(const Params&), const Params& params) {
  int error;
  {
    py::gil_scoped_release release;
    error = kernel(params);
  }
  if (error) throw std::bad_alloc();
  return py::none();
}

// Parameters without a member for it belong to plans that need none.
void set_workspace(...) {}
template <class Params>
auto set_workspace(Params& params, double* workspace) -> decltype(void(params.workspace)) {
  params.workspace = workspace;
}

// On the CPU or through the compiled CUDA kernels: None. For another launcher (NVRTC): the plan as a list of
// (kernel, blocks, threads), the kernels' one argument as bytes.
template <class Params>
py::object run(const Where& where, int (*kernel)(const Params&), Plan (*make_plan)(const Params&), Params params) {
  params.threads = where.threads;
  if (where.kind == Where::kCpu) return launch(kernel, params);
  const Plan plan = make_plan(params);
  if (plan.workspace) {
    const py::object address = where.allocate(plan.workspace);
    set_workspace(params, at<double>(address.cast<Address>()));
  }
  if (where.kind == Where::kPlan) {
    py::list launches;
    for (const Launch& one : plan.launches) launches.append(py::make_tuple(one.kernel, one.blocks, one.threads));
    return py::make_tuple(launches, py::bytes(reinterpret_cast<const char*>(&params), sizeof(params)));
  }
#if defined(MDEPTH_HAS_CUDA)
  const char* error;
  {
    py::gil_scoped_release release;
    error = cuda::launch(plan, &params, where.device, reinterpret_cast<void*>(where.stream));
  }
  if (error) throw std::runtime_error(error);
  return py::none();
#else
  throw std::runtime_error("built without CUDA");
#endif
}

py::object inverse_warp(int dtype, int padding, const Where& where, std::vector<int64_t> size, std::vector<int64_t> source_size,
                  Address source, Address depth, Address projection, Address warped, Address valid) {
  InverseWarpParams p{};
  p.dtype = Dtype(dtype);
  p.padding = Padding(padding);
  p.batch = source_size.at(0);
  p.channels = source_size.at(1);
  p.source_height = source_size.at(2);
  p.source_width = source_size.at(3);
  p.height = size.at(0);
  p.width = size.at(1);
  p.source = at<void>(source);
  p.depth = at<void>(depth);
  p.projection = at<double>(projection);
  p.warped = at<void>(warped);
  p.valid = at<bool>(valid);
  return run(where, MDEPTH_PICK(inverse_warp), plan_inverse_warp, p);
}

py::object inverse_warp_backward(int dtype, int padding, const Where& where, std::vector<int64_t> size,
                           std::vector<int64_t> source_size, Address source, Address depth, Address projection,
                           Address grad, Address grad_source, Address grad_depth, Address grad_projection, bool ordered) {
  InverseWarpParams p{};
  p.dtype = Dtype(dtype);
  p.padding = Padding(padding);
  p.batch = source_size.at(0);
  p.channels = source_size.at(1);
  p.source_height = source_size.at(2);
  p.source_width = source_size.at(3);
  p.height = size.at(0);
  p.width = size.at(1);
  p.source = at<void>(source);
  p.depth = at<void>(depth);
  p.projection = at<double>(projection);
  p.grad = at<void>(grad);
  p.grad_source = at<void>(grad_source);
  p.grad_depth = at<void>(grad_depth);
  p.grad_projection = at<double>(grad_projection);
  p.ordered = ordered;
  return run(where, MDEPTH_PICK(inverse_warp_backward), plan_inverse_warp_backward, p);
}

PhotometricLossParams photometric_params(int dtype, const std::vector<int64_t>& size, double ssim_weight,
                                         Address prediction, Address target) {
  PhotometricLossParams p{};
  p.dtype = Dtype(dtype);
  p.batch = size.at(0);
  p.channels = size.at(1);
  p.height = size.at(2);
  p.width = size.at(3);
  p.ssim_weight = ssim_weight;
  p.prediction = at<void>(prediction);
  p.target = at<void>(target);
  return p;
}

py::object photometric_loss(int dtype, const Where& where, std::vector<int64_t> size, double ssim_weight, Address prediction,
                      Address target, Address loss) {
  PhotometricLossParams p = photometric_params(dtype, size, ssim_weight, prediction, target);
  p.loss = at<void>(loss);
  return run(where, MDEPTH_PICK(photometric_loss), plan_photometric_loss, p);
}

py::object photometric_loss_backward(int dtype, const Where& where, std::vector<int64_t> size, double ssim_weight,
                               Address prediction, Address target, Address grad, Address grad_prediction,
                               Address grad_target) {
  PhotometricLossParams p = photometric_params(dtype, size, ssim_weight, prediction, target);
  p.grad = at<void>(grad);
  p.grad_prediction = at<void>(grad_prediction);
  p.grad_target = at<void>(grad_target);
  return run(where, MDEPTH_PICK(photometric_loss_backward), plan_photometric_loss_backward, p);
}

py::object min_reprojection(int dtype, int padding, const Where& where, std::vector<int64_t> size, double ssim_weight,
                      bool auto_mask, Address target, Address source, std::vector<Address> depth, Address projection,
                      Address identity_noise, Address loss, Address selection, Address grad_depth,
                      Address grad_projection) {
  if (depth.size() > size_t(kMaxScales)) throw std::invalid_argument("too many scales");
  MinReprojectionParams p{};
  p.dtype = Dtype(dtype);
  p.padding = Padding(padding);
  p.batch = size.at(0);
  p.sources = size.at(1);
  p.height = size.at(2);
  p.width = size.at(3);
  p.scales = int64_t(depth.size());
  p.ssim_weight = ssim_weight;
  p.auto_mask = auto_mask;
  p.target = at<void>(target);
  p.source = at<void>(source);
  for (size_t k = 0; k < depth.size(); ++k) p.depth[k] = at<void>(depth[k]);
  p.projection = at<double>(projection);
  p.identity_noise = at<void>(identity_noise);
  p.loss = at<double>(loss);
  p.selection = at<int8_t>(selection);
  p.grad_depth = at<void>(grad_depth);
  p.grad_projection = at<double>(grad_projection);
  return run(where, MDEPTH_PICK(min_reprojection), plan_min_reprojection, p);
}

py::object edge_aware_smoothness(int dtype, const Where& where, std::vector<int64_t> size, Address disparity, Address image,
                           Address loss, Address grad_disparity) {
  EdgeAwareSmoothnessParams p{};
  p.dtype = Dtype(dtype);
  p.batch = size.at(0);
  p.channels = size.at(1);
  p.height = size.at(2);
  p.width = size.at(3);
  p.disparity = at<void>(disparity);
  p.image = at<void>(image);
  p.loss = at<double>(loss);
  p.grad_disparity = at<void>(grad_disparity);
  return run(where, MDEPTH_PICK(edge_aware_smoothness), plan_edge_aware_smoothness, p);
}

DisparityToDepthParams disparity_to_depth_params(int dtype, const std::vector<int64_t>& size,
                                                 const std::vector<int64_t>& map_size, double min_depth,
                                                 double max_depth, Address depth) {
  DisparityToDepthParams p{};
  p.dtype = Dtype(dtype);
  p.batch = size.at(0);
  p.height = size.at(1);
  p.width = size.at(2);
  p.map_height = map_size.at(0);
  p.map_width = map_size.at(1);
  p.min_depth = min_depth;
  p.max_depth = max_depth;
  p.depth = at<void>(depth);
  return p;
}

py::object disparity_to_depth(int dtype, const Where& where, std::vector<int64_t> size, std::vector<int64_t> map_size,
                              double min_depth, double max_depth, Address depth, Address disparity) {
  DisparityToDepthParams p = disparity_to_depth_params(dtype, size, map_size, min_depth, max_depth, depth);
  p.disparity = at<void>(disparity);
  return run(where, MDEPTH_PICK(disparity_to_depth), plan_disparity_to_depth, p);
}

py::object disparity_to_depth_backward(int dtype, const Where& where, std::vector<int64_t> size,
                                       std::vector<int64_t> map_size, double min_depth, double max_depth,
                                       Address depth, Address grad, Address grad_disparity) {
  DisparityToDepthParams p = disparity_to_depth_params(dtype, size, map_size, min_depth, max_depth, depth);
  p.grad = at<void>(grad);
  p.grad_disparity = at<void>(grad_disparity);
  return run(where, MDEPTH_PICK(disparity_to_depth_backward), plan_disparity_to_depth_backward, p);
}

py::object ordinal_decode(int dtype, const Where& where, std::vector<int64_t> size, Address logits, Address thresholds,
                          Address depth, Address label) {
  OrdinalDecodeParams p{};
  p.dtype = Dtype(dtype);
  p.batch = size.at(0);
  p.bins = size.at(1);
  p.height = size.at(2);
  p.width = size.at(3);
  p.logits = at<void>(logits);
  p.thresholds = at<void>(thresholds);
  p.depth = at<void>(depth);
  p.label = at<int64_t>(label);
  return run(where, MDEPTH_PICK(ordinal_decode), plan_ordinal_decode, p);
}

OrdinalLossParams ordinal_loss_params(int dtype, const std::vector<int64_t>& size, Address logits, Address depth,
                                      Address thresholds, Address valid, Address count) {
  OrdinalLossParams p{};
  p.dtype = Dtype(dtype);
  p.batch = size.at(0);
  p.bins = size.at(1);
  p.height = size.at(2);
  p.width = size.at(3);
  p.logits = at<void>(logits);
  p.depth = at<void>(depth);
  p.thresholds = at<void>(thresholds);
  p.valid = at<bool>(valid);
  p.count = at<int64_t>(count);
  return p;
}

py::object ordinal_loss(int dtype, const Where& where, std::vector<int64_t> size, Address logits, Address depth,
                        Address thresholds, Address valid, Address count, Address loss) {
  OrdinalLossParams p = ordinal_loss_params(dtype, size, logits, depth, thresholds, valid, count);
  p.loss = at<double>(loss);
  return run(where, MDEPTH_PICK(ordinal_loss), plan_ordinal_loss, p);
}

py::object ordinal_loss_backward(int dtype, const Where& where, std::vector<int64_t> size, Address logits,
                                 Address depth, Address thresholds, Address valid, Address count, Address grad,
                                 Address grad_logits) {
  OrdinalLossParams p = ordinal_loss_params(dtype, size, logits, depth, thresholds, valid, count);
  p.grad = at<void>(grad);
  p.grad_logits = at<void>(grad_logits);
  return run(where, MDEPTH_PICK(ordinal_loss_backward), plan_ordinal_loss_backward, p);
}

py::object depth_metrics(int dtype, const Where& where, std::vector<int64_t> size, std::vector<int64_t> window,
                         std::vector<double> ranges, bool inverse, Address prediction, Address ground_truth,
                         Address scale, Address shift, Address sums) {
  DepthMetricsParams p{};
  p.dtype = Dtype(dtype);
  p.batch = size.at(0);
  p.height = size.at(1);
  p.width = size.at(2);
  p.top = window.at(0);
  p.bottom = window.at(1);
  p.left = window.at(2);
  p.right = window.at(3);
  p.min_valid = ranges.at(0);
  p.max_valid = ranges.at(1);
  p.min_depth = ranges.at(2);
  p.max_depth = ranges.at(3);
  p.inverse = inverse;
  p.prediction = at<void>(prediction);
  p.ground_truth = at<void>(ground_truth);
  p.scale = at<double>(scale);
  p.shift = at<double>(shift);
  p.sums = at<double>(sums);
  return run(where, MDEPTH_PICK(depth_metrics), plan_depth_metrics, p);
}

SilogLossParams silog_loss_params(int dtype, const std::vector<int64_t>& size, bool log_prediction, bool measured,
                                  Address prediction, Address depth, Address valid, Address coefficients) {
  SilogLossParams p{};
  p.dtype = Dtype(dtype);
  p.batch = size.at(0);
  p.height = size.at(1);
  p.width = size.at(2);
  p.log_prediction = log_prediction;
  p.measured = measured;
  p.prediction = at<void>(prediction);
  p.depth = at<void>(depth);
  p.valid = at<bool>(valid);
  p.coefficients = at<double>(coefficients);
  return p;
}

py::object silog_loss(int dtype, const Where& where, std::vector<int64_t> size, bool log_prediction, bool measured,
                      Address prediction, Address depth, Address valid, Address coefficients, int form,
                      double variance_focus, double scale, Address loss) {
  SilogLossParams p = silog_loss_params(dtype, size, log_prediction, measured, prediction, depth, valid, coefficients);
  p.form = SilogForm(form);
  p.variance_focus = variance_focus;
  p.scale = scale;
  p.loss = at<double>(loss);
  return run(where, MDEPTH_PICK(silog_loss), plan_silog_loss, p);
}

py::object silog_loss_backward(int dtype, const Where& where, std::vector<int64_t> size, bool log_prediction,
                               bool measured, Address prediction, Address depth, Address valid, Address coefficients,
                               Address grad, Address grad_prediction) {
  SilogLossParams p = silog_loss_params(dtype, size, log_prediction, measured, prediction, depth, valid, coefficients);
  p.grad = at<void>(grad);
  p.grad_prediction = at<void>(grad_prediction);
  return run(where, MDEPTH_PICK(silog_loss_backward), plan_silog_loss_backward, p);
}

BerhuLossParams berhu_loss_params(int dtype, const std::vector<int64_t>& size, double threshold, bool measured,
                                  Address prediction, Address depth, Address valid, Address state) {
  BerhuLossParams p{};
  p.dtype = Dtype(dtype);
  p.batch = size.at(0);
  p.height = size.at(1);
  p.width = size.at(2);
  p.threshold = threshold;
  p.measured = measured;
  p.prediction = at<void>(prediction);
  p.depth = at<void>(depth);
  p.valid = at<bool>(valid);
  p.state = at<double>(state);
  return p;
}

py::object berhu_loss(int dtype, const Where& where, std::vector<int64_t> size, double threshold, bool measured,
                      Address prediction, Address depth, Address valid, Address state, Address loss) {
  BerhuLossParams p = berhu_loss_params(dtype, size, threshold, measured, prediction, depth, valid, state);
  p.loss = at<double>(loss);
  return run(where, MDEPTH_PICK(berhu_loss), plan_berhu_loss, p);
}

py::object berhu_loss_backward(int dtype, const Where& where, std::vector<int64_t> size, double threshold,
                               bool measured, Address prediction, Address depth, Address valid, Address state,
                               Address grad, Address grad_prediction) {
  BerhuLossParams p = berhu_loss_params(dtype, size, threshold, measured, prediction, depth, valid, state);
  p.grad = at<void>(grad);
  p.grad_prediction = at<void>(grad_prediction);
  return run(where, MDEPTH_PICK(berhu_loss_backward), plan_berhu_loss_backward, p);
}

py::object nnconv5(int dtype, const Where& where, std::vector<int64_t> size, bool channels_last, Address x,
                   Address dw_weight, Address dw_scale, Address dw_shift, Address pw_weight, Address pw_scale,
                   Address pw_shift, Address skip, Address out, int product) {
  NnConv5Params p{};
  p.dtype = Dtype(dtype);
  p.product = Product(product);
  p.channels_last = channels_last;
  p.batch = size.at(0);
  p.channels = size.at(1);
  p.out_channels = size.at(2);
  p.height = size.at(3);
  p.width = size.at(4);
  p.x = at<void>(x);
  p.dw_weight = at<void>(dw_weight);
  p.dw_scale = at<void>(dw_scale);
  p.dw_shift = at<void>(dw_shift);
  p.pw_weight = at<void>(pw_weight);
  p.pw_scale = at<void>(pw_scale);
  p.pw_shift = at<void>(pw_shift);
  p.skip = at<void>(skip);
  p.out = at<void>(out);
  return run(where, MDEPTH_PICK(nnconv5), plan_nnconv5, p);
}

// On a GPU this is left to the vendor's libraries.
void nnconv5_weight_gradients(int dtype, int threads, std::vector<int64_t> size, Address x, Address active,
                              Address grad_depthwise, Address grad_pointwise, Address grad_dw_weight,
                              Address grad_pw_weight) {
  NnConv5WeightGradientsParams p{};
  p.dtype = Dtype(dtype);
  p.threads = threads;
  p.batch = size.at(0);
  p.channels = size.at(1);
  p.out_channels = size.at(2);
  p.height = size.at(3);
  p.width = size.at(4);
  p.x = at<void>(x);
  p.active = at<void>(active);
  p.grad_depthwise = at<void>(grad_depthwise);
  p.grad_pointwise = at<void>(grad_pointwise);
  p.grad_dw_weight = at<void>(grad_dw_weight);
  p.grad_pw_weight = at<void>(grad_pw_weight);
  launch(MDEPTH_PICK(nnconv5_weight_gradients), p);
}

// A block: (out_channels, kernel, stride, doubled, skip), its cap, and (dw_weight, dw_bias, weight, bias).
void conv_stack(int dtype, int threads, std::vector<int64_t> size, std::vector<int64_t> steps, Address x,
                std::vector<std::array<int64_t, 5>> shapes, std::vector<double> caps,
                std::vector<std::array<Address, 4>> weights, Address out) {
  std::vector<ConvStackBlock> blocks;
  for (size_t k = 0; k < shapes.size(); ++k) {
    const auto [out_channels, kernel, stride, doubled, skip] = shapes[k];
    const auto [dw_weight, dw_bias, weight, bias] = weights.at(k);
    if (skip >= int64_t(k) || (dw_weight && kernel != 3 && kernel != 5) || (dw_weight && stride != 1 && stride != 2))
      throw std::invalid_argument("block " + std::to_string(k));
    blocks.push_back({out_channels, int(kernel), int(stride), doubled != 0, skip, caps.at(k), at<void>(dw_weight),
                      at<void>(dw_bias), at<void>(weight), at<void>(bias)});
  }
  ConvStackParams p{};
  p.dtype = Dtype(dtype);
  p.threads = threads;
  p.batch = size.at(0);
  p.channels = size.at(1);
  p.height = size.at(2);
  p.width = size.at(3);
  p.image_step = steps.at(0);
  p.channel_step = steps.at(1);
  p.line_step = steps.at(2);
  p.pixel_step = steps.at(3);
  p.x = at<void>(x);
  p.blocks = blocks.data();
  p.count = int64_t(blocks.size());
  p.out = at<void>(out);
  launch(MDEPTH_PICK(conv_stack), p);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of mdepth_fast; use mdepth_fast.ops";
  m.attr("version") = MDEPTH_VERSION;
  m.attr("sources") = MDEPTH_SOURCES;  // digests by mdepth_fast/_source_tree.py
  m.attr("compiler") = __VERSION__;
#if defined(MDEPTH_HAS_OPENMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.attr("max_scales") = kMaxScales;
  m.attr("enums") = py::dict(py::arg("float32") = int(Dtype::kFloat32), py::arg("float64") = int(Dtype::kFloat64),
                             py::arg("border") = int(Padding::kBorder), py::arg("zeros") = int(Padding::kZeros),
                             py::arg("exact") = int(Product::kExact), py::arg("tf32") = int(Product::kTf32),
                             py::arg("float16") = int(Product::kFloat16),
                             py::arg("bfloat16") = int(Product::kBFloat16),
                             py::arg("eigen") = int(SilogForm::kEigen),
                             py::arg("image_mean") = int(SilogForm::kImageMean),
                             py::arg("sqrt") = int(SilogForm::kSqrt),
                             py::arg("sqrt_unbiased") = int(SilogForm::kSqrtUnbiased));
#if defined(MDEPTH_HAS_CUDA)
  m.attr("cuda") = py::dict(py::arg("toolkit") = MDEPTH_CUDA_VERSION, py::arg("architectures") = MDEPTH_CUDA_ARCHS);
  m.def("cuda_driver", &cuda::driver_version);
#else
  m.attr("cuda") = py::none();
#endif
  py::class_<Where>(m, "Where", "Where an op runs: a number of CPU threads, or a stream of a GPU")
      .def(py::init([](int threads) {
        Where where;
        where.threads = threads;
        return where;
      }))
      .def(py::init([](bool launch, int device, Address stream, py::function allocate) {
        Where where;
        where.kind = launch ? Where::kLaunch : Where::kPlan;
        where.device = device;
        where.stream = stream;
        where.allocate = std::move(allocate);
        return where;
      }));
  py::implicitly_convertible<int, Where>();
  m.def("isa", [] { return isa_name(active_isa); });
  m.def("set_isa", &set_isa);
  m.def("depth_metrics", &depth_metrics);
  m.def("inverse_warp", &inverse_warp);
  m.def("inverse_warp_backward", &inverse_warp_backward);
  m.def("photometric_loss", &photometric_loss);
  m.def("photometric_loss_backward", &photometric_loss_backward);
  m.def("min_reprojection", &min_reprojection);
  m.def("edge_aware_smoothness", &edge_aware_smoothness);
  m.def("disparity_to_depth", &disparity_to_depth);
  m.def("disparity_to_depth_backward", &disparity_to_depth_backward);
  m.def("nnconv5", &nnconv5);
  m.def("nnconv5_weight_gradients", &nnconv5_weight_gradients);
  m.def("conv_stack", &conv_stack);
  m.def("ordinal_decode", &ordinal_decode);
  m.def("ordinal_loss", &ordinal_loss);
  m.def("ordinal_loss_backward", &ordinal_loss_backward);
  m.def("silog_loss", &silog_loss);
  m.def("silog_loss_backward", &silog_loss_backward);
  m.def("berhu_loss", &berhu_loss);
  m.def("berhu_loss_backward", &berhu_loss_backward);
}
