// pybind11 module mdepth_fast._C. Parameters arrive as the bytes of an op's struct, addresses among them, and are trusted
// here: mdepth_fast/_native.py is the only caller and has checked dtype, device, layout and size of every tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "mdepth/fields.h"
#include "mdepth/ops.h"
#if defined(MDEPTH_HAS_CUDA)
#include "launcher.h"
#endif

namespace py = pybind11;
using namespace mdepth;

namespace {

enum Isa { kBaseline, kAvx2, kAvx512 };
constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

Isa best_isa() {
#if defined(MDEPTH_HAS_AVX512) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    return kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
  return kBaseline;
}

Isa active_isa = best_isa();

// For tests and comparisons; a set that the CPU lacks is refused.
void set_isa(const std::string& name) {
  for (int isa = kBaseline; isa <= best_isa(); ++isa)
    if (name == kIsaNames[isa]) {
      active_isa = Isa(isa);
      return;
    }
  throw std::invalid_argument("instruction set '" + name + "' is not available on this CPU");
}

// A function of the module, its parameters behind a pointer.
struct Op {
  const char* name;
  Fields fields;
  int (*cpu[3])(const void* params);  // by instruction set
  Plan (*plan)(const void* params);   // null: no GPU kernels
};

template <class Params, int (*kernel)(const Params&)>
int call(const void* params) {
  return kernel(*static_cast<const Params*>(params));
}

template <class Params, Plan (*plan)(const Params&)>
Plan plan_of(const void* params) {
  return plan(*static_cast<const Params*>(params));
}

#if defined(MDEPTH_HAS_AVX512)
#define MDEPTH_CPU(name, Params) {call<Params, baseline::name>, call<Params, avx2::name>, call<Params, avx512::name>}
#else
#define MDEPTH_CPU(name, Params) {call<Params, baseline::name>, nullptr, nullptr}
#endif
#define MDEPTH_ENTRY(name, Params) \
  {#name, fields(Tag<Params>()), MDEPTH_CPU(name, Params), plan_of<Params, plan_##name>},
#define MDEPTH_CPU_ENTRY(name, Params) {#name, fields(Tag<Params>()), MDEPTH_CPU(name, Params), nullptr},

const Op kOps[] = {MDEPTH_OPS(MDEPTH_ENTRY) MDEPTH_CPU_OPS(MDEPTH_CPU_ENTRY)};

// The bytes of a struct, at an address that any of its members may have.
class ParamsOf {
 public:
  ParamsOf(const Op& op, const py::bytes& bytes) {
    char* data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(bytes.ptr(), &data, &size)) throw py::error_already_set();
    if (size_t(size) != op.fields.size || op.fields.size > sizeof(bytes_))
      throw std::invalid_argument(std::string(op.name) + ": parameters of another size");
    std::memcpy(bytes_, data, size_t(size));
  }
  const void* get() const { return bytes_; }

 private:
  alignas(std::max_align_t) char bytes_[512];
};

void run_on_cpu(const Op& op, const py::bytes& bytes) {
  const ParamsOf params(op, bytes);
  const auto kernel = op.cpu[active_isa];
  int error;
  {
    py::gil_scoped_release release;
    error = kernel(params.get());
  }
  if (error) throw std::bad_alloc();
}

Plan plan(const Op& op, const py::bytes& bytes) { return op.plan(ParamsOf(op, bytes).get()); }

// (kernel, blocks, threads) of each launch
py::list launches(const Op& op, const py::bytes& bytes) {
  py::list all;
  for (const Launch& one : plan(op, bytes).launches) all.append(py::make_tuple(one.kernel, one.blocks, one.threads));
  return all;
}

// None, or what CUDA says has failed.
#if defined(MDEPTH_HAS_CUDA)
py::object run_on_cuda(const Op& op, const py::bytes& bytes, int device, uintptr_t stream) {
  const ParamsOf params(op, bytes);
  const Plan plan = op.plan(params.get());
  const char* error;
  {
    py::gil_scoped_release release;
    error = cuda::launch(plan, params.get(), device, reinterpret_cast<void*>(stream));
  }
  return error ? py::object(py::str(error)) : py::object(py::none());
}
#endif

py::tuple described(const Fields& fields) {
  py::list members;
  for (int i = 0; i < fields.count; ++i) {
    const Field& one = fields.begin[i];
    members.append(py::make_tuple(one.name, one.offset, std::string(1, one.kind), one.count));
  }
  return py::make_tuple(fields.size, members);
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
  m.attr("enums") =
      py::dict(py::arg("float32") = int(Dtype::kFloat32), py::arg("float64") = int(Dtype::kFloat64),
               py::arg("border") = int(Padding::kBorder), py::arg("zeros") = int(Padding::kZeros),
               py::arg("masked") = int(Outside::kMasked), py::arg("grey") = int(Outside::kGrey),
               py::arg("exact") = int(Product::kExact), py::arg("tf32") = int(Product::kTf32),
               py::arg("float16") = int(Product::kFloat16), py::arg("bfloat16") = int(Product::kBFloat16),
               py::arg("eigen") = int(SilogForm::kEigen), py::arg("image_mean") = int(SilogForm::kImageMean),
               py::arg("sqrt") = int(SilogForm::kSqrt), py::arg("sqrt_unbiased") = int(SilogForm::kSqrtUnbiased),
               py::arg("separate") = int(SmoothnessForm::kSeparate), py::arg("joint") = int(SmoothnessForm::kJoint));
  m.def("isa", [] { return kIsaNames[active_isa]; });
  m.def("set_isa", &set_isa);

  py::class_<Op> op(m, "Op",
                    "A native function; its parameters are the bytes of `params`: size, (name, offset, kind, count)s");
  op.def_property_readonly("params", [](const Op& self) { return described(self.fields); });
  op.def_property_readonly("has_plan", [](const Op& self) { return self.plan != nullptr; });
  op.def("cpu", &run_on_cpu);
  op.def("workspace", [](const Op& self, const py::bytes& bytes) { return plan(self, bytes).workspace; });
  op.def("launches", &launches);
#if defined(MDEPTH_HAS_CUDA)
  op.def("cuda", &run_on_cuda);
  m.attr("cuda") = py::dict(py::arg("toolkit") = MDEPTH_CUDA_VERSION, py::arg("architectures") = MDEPTH_CUDA_ARCHS);
  m.def("cuda_driver", &cuda::driver_version);
#else
  m.attr("cuda") = py::none();
#endif
  py::dict ops;
  for (const Op& one : kOps) ops[one.name] = py::cast(&one, py::return_value_policy::reference);
  m.attr("ops") = ops;
  m.attr("conv_stack_block") = described(fields(Tag<ConvStackBlock>()));
}
