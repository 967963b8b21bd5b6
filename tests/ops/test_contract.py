"""What holds for every op alike: agreement of backends, layouts, dtypes, compilers, threads, forks, empty batches."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
from cases import CASES, assert_empty, gradients
from scenes import SIZES, awkward_layouts, relative_error

import mdepth_fast
from mdepth_fast import _dispatch, _native, _op

per_op = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
per_differentiable_op = pytest.mark.parametrize(
    "case", [case for case in CASES if case.differentiable], ids=lambda case: case.name
)


@per_op
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_cpu_equals_reference_in_double(case, size):
    inputs = case.inputs(height=size[0], width=size[1], dtype=torch.float64)
    want, want_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, "cpu", inputs)
    assert relative_error(got, want) < 1e-12
    for name, a, b in zip(case.differentiable, got_grads, want_grads):
        assert relative_error([a], [b]) < 1e-9, name


@per_op
@pytest.mark.parametrize("seed", range(3))
def test_float32_error_is_no_larger_than_eagers(case, seed):
    inputs = case.inputs(height=48, width=70, seed=seed)
    exact, exact_grads = gradients(case, "reference", {name: value.double() for name, value in inputs.items()})
    eager, eager_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, "cpu", inputs)
    # One ulp of slack: a scalar loss may be hit by chance.
    assert relative_error(got, exact) <= relative_error(eager, exact) + 1.2e-7
    assert relative_error(got_grads, exact_grads) <= relative_error(eager_grads, exact_grads) + 1.2e-7


@per_op
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(case, isa):
    native, before = _native.module(), _native.instruction_set()
    order = ["baseline", "avx2", "avx512"]
    if order.index(isa) > order.index(before):
        with pytest.raises(ValueError, match="not available"):
            native.set_isa(isa)
        return
    inputs = case.inputs(height=9, width=37, dtype=torch.float64)
    want, want_grads = gradients(case, "reference", inputs)
    native.set_isa(isa)
    try:
        assert _native.instruction_set() == isa
        got, got_grads = gradients(case, "cpu", inputs)
    finally:
        native.set_isa(before)
    assert relative_error(got, want) < 1e-12
    assert relative_error(got_grads, want_grads) < 1e-9


@per_differentiable_op
def test_gradcheck(case):
    inputs = case.inputs(batch=1, dtype=torch.float64, seed=3, **case.small)
    leaves = {name: value.clone().requires_grad_(name in case.differentiable) for name, value in inputs.items()}

    def function(*tensors):
        return tuple(case.call("cpu", **dict(zip(leaves, tensors))))

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), eps=1e-7, atol=1e-5, rtol=1e-5)


class _Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Collects calls of registered functions: (function, arguments, keywords)."""

    def __enter__(self):
        self.calls = []
        super().__enter__()
        return self.calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "mdepth":
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


@per_op
def test_opcheck(case):
    """Each registered op, with the arguments that the public function hands it."""
    inputs = case.inputs(batch=1, height=5, width=6)
    leaves = {name: value.clone().requires_grad_(name in case.differentiable) for name, value in inputs.items()}
    with _Calls() as calls:
        outputs = case.call("cpu", **leaves)
        if case.differentiable:
            sum(o.sum() for o in outputs).backward()
    op = _op.OPS[case.name]
    registered = {kernel.name for kernel in (op.forward, op.backward) if kernel}
    assert {function.__name__.split(".")[0] for function, _, _ in calls} == registered
    for function, args, kwargs in calls:
        grad = bool(case.differentiable) and "backward" not in function.__name__
        args = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t, grad=grad: t.detach().clone().requires_grad_(grad and t.is_floating_point()), args
        )
        torch.library.opcheck(function, args, kwargs)


@per_op
def test_compiles_to_one_graph(case):
    """Again for another backend asked for, which the graph then holds, forward and backward."""
    inputs = case.inputs()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(lambda backend, **t: case.call(backend, **t), fullgraph=True, backend=counter)
    want, want_grads = gradients(case, "cpu", inputs)

    one = dataclasses.replace(case, call=compiled)
    for _ in range(2):
        got, got_grads = gradients(one, None, inputs)
        assert relative_error(got, want) < 1e-6 and relative_error(got_grads, want_grads) < 1e-6
    assert counter.frame_count == 1
    with mdepth_fast.use_backend("cpu"):
        got, got_grads = gradients(one, None, inputs)
    assert relative_error(got, want) < 1e-6 and relative_error(got_grads, want_grads) < 1e-6
    with mdepth_fast.use_backend("reference"), _dispatch.record() as calls:
        gradients(one, None, inputs)
    assert counter.frame_count == 3 and not calls


@per_op
def test_layouts(case):
    inputs = case.inputs(height=6, width=9)
    want, want_grads = gradients(case, "cpu", inputs)
    for name, value in inputs.items():
        for layout, view in awkward_layouts(value).items():
            assert torch.equal(view, value) and not (view.is_contiguous() and layout == "strided")
            got, got_grads = gradients(case, "cpu", {**inputs, name: view})
            assert torch.equal(got[0], want[0]), (name, layout)
            assert all(torch.equal(a, b) for a, b in zip(got_grads, want_grads)), (name, layout)


@per_op
def test_strided_views_go_in_without_a_copy_by_the_caller(case):
    """`gradients` clones its leaves; here views of NaN-filled memory reach the op itself."""
    inputs = case.inputs(height=6, width=9)
    want = case.call("cpu", **inputs)
    for name, value in inputs.items():
        for layout, view in awkward_layouts(value).items():
            assert torch.equal(case.call("cpu", **{**inputs, name: view})[0], want[0]), (name, layout)


@per_op
def test_expanded_inputs_and_expanded_gradient(case):
    inputs = case.inputs(batch=1, height=5, width=6)
    one, one_grads = _sum_gradients(case, inputs, lambda value: value.expand(3, *value.shape[1:]))
    two, two_grads = _sum_gradients(case, inputs, lambda value: value.repeat(3, *[1] * (value.dim() - 1)))
    assert torch.equal(one[0], two[0])
    assert all(torch.equal(a, b) for a, b in zip(one_grads, two_grads))


def _sum_gradients(case, inputs, widen):
    """Outputs and the gradients of their bare sum: autograd hands the op a gradient of stride 0."""
    leaves = {
        name: (value.clone() if name in case.shared else widen(value)).requires_grad_(name in case.differentiable)
        for name, value in inputs.items()
    }
    outputs = case.call("cpu", **leaves)
    if not case.differentiable:
        return outputs, ()
    return outputs, torch.autograd.grad(sum(o.sum() for o in outputs), [leaves[name] for name in case.differentiable])


@per_op
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(case, dtype):
    inputs = {name: value.to(dtype) for name, value in case.inputs().items()}
    want = case.call("cpu", **{name: value.float() for name, value in inputs.items()})
    got = case.call("cpu", **inputs)
    assert got[0].dtype == (dtype if case.layer else torch.float64 if case.sums else torch.float32)
    assert torch.equal(got[0], want[0].to(got[0].dtype))
    _, grads = gradients(case, "cpu", inputs)
    assert all(g.dtype == dtype and torch.isfinite(g).all() for g in grads)


@per_op
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_changes_nothing(case, backend):
    inputs = case.inputs()
    want, want_grads = gradients(case, backend, inputs)

    def call(backend, **tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return case.call(backend, **tensors)

    got, got_grads = gradients(dataclasses.replace(case, call=call), backend, inputs)
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(a, b) for a, b in zip(got_grads, want_grads))


@per_op
def test_same_bits_for_any_number_of_threads(case):
    inputs = case.inputs(batch=3, height=70, width=300)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            outputs, grads = gradients(case, "cpu", inputs)
            results.append([*outputs, *grads])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@per_op
def test_outputs_are_written_everywhere(case, monkeypatch):
    """Memory that the op allocates starts as NaN; what is left unwritten shows."""
    inputs = case.inputs(height=33, width=65)
    want, want_grads = gradients(case, "cpu", inputs)
    empty = torch.empty

    def poisoned(*args, **kwargs):
        result = empty(*args, **kwargs)
        return result.fill_(torch.nan if result.is_floating_point() else 1 if result.dtype == torch.bool else 99)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: poisoned(*a, **{"dtype": self.dtype, **k}))
    got, got_grads = gradients(case, "cpu", inputs)
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(a, b) for a, b in zip(got_grads, want_grads))


@per_op
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_empty_batch(case, backend):
    inputs = case.inputs(batch=0)
    assert_empty(case, inputs, *gradients(case, backend, inputs))


@per_op
def test_large_batch_of_tiny_images_and_one_large_image(case):
    for size in ({"batch": 300, "height": 2, "width": 3}, {"batch": 1, "height": 3, "width": 3001}):
        inputs = case.inputs(dtype=torch.float64, **size)
        want, want_grads = gradients(case, "reference", inputs)
        got, got_grads = gradients(case, "cpu", inputs)
        assert relative_error(got, want) < 1e-11 and relative_error(got_grads, want_grads) < 1e-8


def _in_fork(case, inputs, queue):
    torch.set_num_threads(1)  # as a DataLoader worker does
    queue.put([t.detach().numpy() for t in case.call("cpu", **inputs)])


@per_op
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork of a process with threads: the very case
def test_in_a_forked_worker(case):
    """Forward only: autograd itself refuses to run in a fork."""
    inputs = case.inputs(height=40, width=60)
    want, _ = gradients(case, "cpu", inputs)  # the parent has used OpenMP
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_in_fork, args=(case, inputs, queue), daemon=True)
    worker.start()
    try:
        results = queue.get(timeout=60)
    finally:
        worker.kill()
    assert all(torch.equal(torch.from_numpy(a), b) for a, b in zip(results, want))


@per_op
def test_unknown_and_unavailable_backends(case):
    inputs = case.inputs()
    with pytest.raises(ValueError, match=r"backend: expected one of cpu, .*'cuba'"):
        case.call("cuba", **inputs)
    with pytest.raises(RuntimeError, match=rf"{case.name}: backend 'cuda' was asked for.*cuda: needs CUDA tensors"):
        case.call("cuda", **inputs)
    with mdepth_fast.use_backend("nvrtc"), pytest.raises(RuntimeError, match="nvrtc: needs CUDA tensors"):
        case.call(None, **inputs)


@per_op
def test_use_backend_reaches_the_reference(case):
    inputs = case.inputs()
    with mdepth_fast.use_backend("reference"), _dispatch.record() as calls:
        case.call(None, **inputs)
    assert not calls


def test_environment_variable_chooses(tmp_path):
    script = (
        "import torch, mdepth_fast._dispatch as d; print(d.uses_reference('x', d.asked(None), torch.device('cpu')))"
    )
    for value, want in (("reference", "True"), ("cpu", "False")):
        out = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "MDEPTH_BACKEND": value},
            capture_output=True,
            text=True,
        )
        assert out.stdout.strip() == want, out.stderr
    out = subprocess.run(
        [sys.executable, "-c", "import mdepth_fast.ops"],
        env={**os.environ, "MDEPTH_BACKEND": "gpu"},
        capture_output=True,
        text=True,
    )
    assert out.returncode != 0 and "MDEPTH_BACKEND: expected one of" in out.stderr


@pytest.fixture
def forgetful():
    """What can run is looked up anew before and after a test that changes it."""
    _dispatch.forget()
    yield
    _dispatch.forget()


def test_without_the_compiled_module_only_the_reference_by_name_runs(forgetful, monkeypatch):
    monkeypatch.setattr(_native, "_reason", "not built")
    case = next(case for case in CASES if case.name == "photometric_loss")
    with pytest.raises(RuntimeError, match=r"^photometric_loss: not built; MDEPTH_BACKEND=reference runs plain"):
        case.call(None, **case.inputs())
    with pytest.raises(RuntimeError, match="not built"):
        _dispatch.resolve("photometric_loss", "cpu", torch.device("cpu"))
    case.call("reference", **case.inputs())
    with mdepth_fast.use_backend("reference"):
        case.call(None, **case.inputs())


def test_automatic_fall_to_reference_is_announced_once(forgetful, monkeypatch):
    monkeypatch.setattr(_dispatch, "_implementations", {})
    monkeypatch.setattr(_dispatch, "_warned", set())
    with pytest.warns(RuntimeWarning, match="photometric_loss runs as plain PyTorch on cpu: cpu: photometric_loss has"):
        assert _dispatch.uses_reference("photometric_loss", "", torch.device("cpu"))


def test_native_boundary_rejects_what_the_kernels_cannot_take():
    device = torch.device("cpu")
    good = torch.zeros(2, 3)
    assert _native.address(good, "x", torch.float32, device) == good.data_ptr()
    for bad in (good.double(), good.T, torch.zeros(2, 6)[:, ::2]):
        with pytest.raises(RuntimeError, match=r"^x: expected"):
            _native.address(bad, "x", torch.float32, device)


@per_op
def test_shapes_on_the_meta_device(case):
    inputs = case.inputs()
    got = case.call(None, **{name: value.to("meta") for name, value in inputs.items()})
    want = case.call("cpu", **inputs)
    assert [(o.shape, o.dtype, o.device.type) for o in got] == [(o.shape, o.dtype, "meta") for o in want]


def test_the_registered_function_takes_whole_pairs_and_working_dtypes_alone():
    logits, thresholds = torch.zeros(2, 5, 3, 4), torch.arange(3.0)
    with pytest.raises(
        RuntimeError, match=r"^ordinal_decode: logits: expected shape \(2, 4, 3, 4\), got \(2, 5, 3, 4\)"
    ):
        torch.ops.mdepth.ordinal_decode(logits, thresholds, "cpu")
    with pytest.raises(RuntimeError, match=r"in float32 or float64, got torch.float16"):
        torch.ops.mdepth.ordinal_decode(logits[:, :4].half(), thresholds.half(), "cpu")


@per_op
def test_arrays_that_do_not_fit_together_reach_no_kernel(case):
    """The registered functions, which anybody may call, check every shape before an address is taken."""
    with _Calls() as calls:
        case.call("cpu", **case.inputs(batch=2, height=6, width=8))
    (function, args, keywords), kernel = calls[0], _op.OPS[case.name].forward
    for index, name in enumerate(kernel.inputs):
        value = args[index]
        if not isinstance(value, torch.Tensor) or value.dim() < 2:
            continue
        wrong = [*args[:index], value[None], *args[index + 1 :]]
        with pytest.raises(RuntimeError, match=rf"{case.name}: {name}: expected shape"):
            function(*wrong, **keywords)


def test_info_names_every_backend_and_reason():
    facts = mdepth_fast.info()
    assert facts["native"]["reason"] is None
    for op in (case.name for case in CASES):
        backends = facts["backends"][op]
        assert set(backends) == set(_dispatch.BACKENDS)
        if not torch.cuda.is_available():
            assert backends["cpu"] is None and "CUDA" in backends["cuda"]
        assert op in mdepth_fast.info_text()


@per_op
def test_numbers_that_memory_does_not_hold_as_they_are(case):
    """A lazy negation and zeros without memory: as inputs, and as the gradient that comes from above."""
    inputs = case.inputs()
    negated = {name: torch._neg_view(-value) for name, value in inputs.items()}
    assert torch.equal(case.call("cpu", **negated)[0], case.call("cpu", **inputs)[0])
    if not case.differentiable:
        return
    leaves = {name: value.clone().requires_grad_(name in case.differentiable) for name, value in inputs.items()}
    total = sum(output.sum() for output in case.call("cpu", **leaves))
    wanted = [leaves[name] for name in case.differentiable]
    plain = torch.autograd.grad(total, wanted, torch.tensor(-2.0), retain_graph=True)
    lazy = torch.autograd.grad(total, wanted, torch._neg_view(torch.tensor(2.0)), retain_graph=True)
    nothing = torch.autograd.grad(total, wanted, torch._efficientzerotensor(()))
    assert all(torch.equal(a, b) for a, b in zip(plain, lazy))
    assert not any(one.any() for one in nothing)


@per_differentiable_op
def test_autocast_around_the_backward_changes_nothing(case):
    inputs = case.inputs()
    results = []
    for enabled in (False, True):
        leaves = {name: value.clone().requires_grad_(name in case.differentiable) for name, value in inputs.items()}
        total = sum(output.sum() for output in case.call("cpu", **leaves))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(torch.autograd.grad(total, [leaves[name] for name in case.differentiable]))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@per_differentiable_op
def test_a_batch_of_gradients_is_right_or_refused(case):
    leaves = {name: value.requires_grad_(name in case.differentiable) for name, value in case.inputs().items()}
    output = case.call("cpu", **leaves)[0]
    leaf, directions = leaves[case.differentiable[0]], torch.stack([torch.ones_like(output), -torch.ones_like(output)])
    if _op.OPS[case.name].gradient.function is None:
        with pytest.raises(RuntimeError, match=rf"^{case.name}: .*one gradient at a time"):
            torch.autograd.grad(output, leaf, directions, is_grads_batched=True)
        return
    got = torch.autograd.grad(output, leaf, directions, is_grads_batched=True, retain_graph=True)[0]
    (want,) = torch.autograd.grad(output, leaf, directions[0])
    torch.testing.assert_close(got, torch.stack([want, -want]))


@pytest.mark.parametrize(
    "call",
    [
        lambda ops, r: ops.disparity_to_depth(r(1, 1, 0, 3), 4, 4, 0.1, 100.0, ""),
        lambda ops, r: ops.inverse_warp(r(1, 3, 0, 0), r(1, 1, 4, 4), r(1, 3, 4).double(), "border", ""),
        lambda ops, r: ops.inverse_warp(r(1, 3, 2, 2), r(1, 1, 4, 4), r(1, 3, 4).double(), "bordr", ""),
        lambda ops, r: ops.inverse_warp(r(1, 3, 2, 2), r(1, 1, 4, 4), r(1, 3, 4).double(), "float64", ""),
        lambda ops, r: ops.photometric_loss(r(1, 0, 4, 4), r(1, 0, 4, 4), 0.85, ""),
        lambda ops, r: ops.photometric_loss(r(1, 3, 1, 4), r(1, 3, 1, 4), 0.85, ""),
        lambda ops, r: ops.photometric_loss(r(1, 3, 4, 4), r(1, 3, 4, 4, device="meta"), 0.85, ""),
        lambda ops, r: ops.nnconv5(r(1, 0, 3, 3), r(0, 1, 5, 5), r(0), r(0), r(2, 0, 1, 1), r(2), r(2), None, ""),
        lambda ops, r: ops.ordinal_decode(r(1, 0, 3, 3), r(1), ""),
        lambda ops, r: ops.depth_metrics(
            r(2, 5, 5), r(2, 5, 5), None, None, -10000, 10, 5, 20, 0.0, 1.0, 0.0, 1.0, False, ""
        ),
        lambda ops, r: ops.conv_stack(
            r(1, 3, 64, 64), [r(9, 3, 3, 3), r(9), r(1, 9, 1, 1), r(1)], [False], [1], [9.0], [False], [-1], ""
        ),
        lambda ops, r: ops.conv_stack(
            r(1, 3, 8, 8), [r(9, 3, 3, 3), r(9)], [False], [1, 2, 2], [9.0], [False] * 3, [-1], ""
        ),
        lambda ops, r: ops.conv_stack(
            r(1, 3, 8, 8), [r(2, 3, 1, 1), r(2)] * 2, [False] * 2, [2, 1], [9.0] * 2, [False, True], [-1, 0], ""
        ),
        lambda ops, r: ops.conv_stack(r(1, 1, 5, 5), [r(0, 1, 1, 1), r(0)], [False], [1], [9.0], [False], [-1], ""),
    ],
)
def test_hostile_arguments_of_registered_functions_reach_no_kernel(call):
    with pytest.raises((RuntimeError, ValueError), match="expected"), _dispatch.record() as calls:
        call(torch.ops.mdepth, torch.rand)
    assert not calls
