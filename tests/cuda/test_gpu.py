"""Every op on a device, through every backend of C++: against the reference in double, and as a citizen of torch.

To run them, and fail where a backend is missing: MDEPTH_REQUIRE_BACKENDS=cuda,nvrtc pytest -m gpu tests/cuda
"""

import pytest
import torch
from cases import KERNEL_CASES as CASES
from cases import assert_empty, gradients
from scenes import SIZES, awkward_layouts, relative_error

from mdepth_fast import _dispatch
from mdepth_fast.data import AUGMENTATIONS, DepthAugment

pytestmark = pytest.mark.gpu
per_op = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
per_differentiable_op = pytest.mark.parametrize(
    "case", [case for case in CASES if case.differentiable], ids=lambda case: case.name
)


@pytest.fixture(params=["cuda", "nvrtc"])
def backend(request):
    reason = _dispatch.why_not("photometric_loss", request.param, torch.device("cuda", 0))
    if reason:
        pytest.skip(f"gpu: {request.param} cannot run here: {reason}")
    return request.param


@pytest.fixture
def compiled_backend():
    """One of the two, where they differ in nothing that matters: they run the same source by the same plan."""
    device = torch.device("cuda", 0)
    reasons = {name: _dispatch.why_not("photometric_loss", name, device) for name in ("cuda", "nvrtc")}
    name = next((name for name, reason in reasons.items() if reason is None), None)
    return name or pytest.skip(f"gpu: none can run here: {reasons}")


def to(inputs, *where):
    return {name: value.to(*where) for name, value in inputs.items()}


@per_op
@pytest.mark.parametrize("size", [*SIZES, (193, 641)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_equals_reference_in_double(case, size, backend):
    inputs = to(case.inputs(height=size[0], width=size[1], dtype=torch.float64), "cuda")
    want, want_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, backend, inputs)
    assert relative_error(got, want) < 1e-12
    for name, a, b in zip(case.differentiable, got_grads, want_grads):
        assert relative_error([a], [b]) < 1e-9, name


@per_op
@pytest.mark.parametrize("seed", range(3))
def test_float32_error_is_no_larger_than_eagers(case, seed, backend):
    inputs = to(case.inputs(height=96, width=320, seed=seed), "cuda")
    exact, exact_grads = gradients(case, "reference", to(inputs, torch.float64))
    eager, eager_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, backend, inputs)
    assert relative_error(got, exact) <= relative_error(eager, exact) + 1.2e-7
    assert relative_error(got_grads, exact_grads) <= relative_error(eager_grads, exact_grads) + 1.2e-7


@per_differentiable_op
def test_gradcheck(case, compiled_backend):
    inputs = to(case.inputs(batch=1, dtype=torch.float64, seed=3, **case.small), "cuda")
    leaves = {name: value.clone().requires_grad_(name in case.differentiable) for name, value in inputs.items()}

    def function(*tensors):
        return tuple(case.call(compiled_backend, **dict(zip(leaves, tensors))))

    # The source's gradient is summed by atomics, in any order.
    assert torch.autograd.gradcheck(function, tuple(leaves.values()), eps=1e-7, atol=1e-5, rtol=1e-5, nondet_tol=1e-12)


@per_op
def test_same_bits_from_run_to_run(case, backend):
    inputs = to(case.inputs(batch=3, height=96, width=321), "cuda")
    torch.use_deterministic_algorithms(True)
    try:
        results = [[*outputs, *grads] for outputs, grads in (gradients(case, backend, inputs) for _ in range(3))]
    finally:
        torch.use_deterministic_algorithms(False)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@per_op
def test_layouts(case, compiled_backend):
    inputs = to(case.inputs(height=6, width=9), "cuda")
    want = case.call(compiled_backend, **inputs)
    for name, value in inputs.items():
        for layout, view in awkward_layouts(value.cpu()).items():
            moved = torch.empty_strided(view.shape, view.stride(), dtype=view.dtype, device="cuda").copy_(view)
            got = case.call(compiled_backend, **{**inputs, name: moved})
            assert torch.equal(got[0], want[0]), (name, layout)


@per_op
def test_empty_batch(case, compiled_backend):
    inputs = to(case.inputs(batch=0), "cuda")
    assert_empty(case, inputs, *gradients(case, compiled_backend, inputs))


@per_op
def test_autocast_changes_nothing(case, compiled_backend):
    inputs = to(case.inputs(), "cuda")
    want = case.call(compiled_backend, **inputs)
    with torch.autocast("cuda", torch.float16):
        got = case.call(compiled_backend, **inputs)
    assert torch.equal(got[0], want[0])


@per_op
def test_compiles_to_one_graph(case, compiled_backend):
    inputs = to(case.inputs(), "cuda")
    torch._dynamo.reset()
    compiled = torch.compile(lambda **t: case.call(compiled_backend, **t), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**inputs)[0], case.call(compiled_backend, **inputs)[0])


@per_op
def test_on_a_side_stream(case, backend):
    """The inputs are written late on a stream of their own; a kernel on another stream would read what was before."""
    inputs = to(case.inputs(batch=4, height=96, width=320), "cuda")
    want, want_grads = gradients(case, backend, inputs)
    stale = {name: torch.full_like(value, 0.5) for name, value in inputs.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, value in inputs.items():
            stale[name].copy_(value)
        got, got_grads = gradients(case, backend, stale)
    stream.synchronize()
    assert torch.equal(got[0], want[0])
    assert relative_error(got_grads, want_grads) < 1e-5


@per_op
def test_on_the_second_device(case, backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("gpu: one device here")
    inputs = to(case.inputs(height=33, width=65), "cuda:1")
    with torch.cuda.device(0):
        got, got_grads = gradients(case, backend, inputs)
        assert torch.cuda.current_device() == 0
    want, want_grads = gradients(case, "cpu", to(inputs, "cpu"))
    assert relative_error([t.cpu() for t in got], want) < 1e-5
    assert relative_error([t.cpu() for t in got_grads], want_grads) < 1e-4


@per_op
def test_in_a_cuda_graph(case, backend):
    inputs = to(case.inputs(height=33, width=65), "cuda")
    other = to(case.inputs(height=33, width=65, seed=5), "cuda")
    leaves = {name: value.clone().requires_grad_(name in case.differentiable) for name, value in inputs.items()}
    wanted = [leaves[name] for name in case.differentiable]

    def step():
        outputs = case.call(backend, **leaves)
        return outputs, torch.autograd.grad(sum(o.sum() for o in outputs), wanted) if wanted else ()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # allocates, and compiles where there is something to compile
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs, grads = step()
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(other[name])
    graph.replay()
    want_outputs, want_grads = step()
    assert all(torch.equal(output, want) for output, want in zip(outputs, want_outputs, strict=True))
    assert relative_error(grads, want_grads) < 1e-5


@per_op
def test_over_2_to_the_31_elements(case, compiled_backend):
    """One image repeated, so that the last must come out as the first."""
    torch.cuda.empty_cache()  # what torch keeps of earlier tests does not count as free
    if torch.cuda.mem_get_info()[0] < 70 * 2**30:
        pytest.skip("gpu: less than 70 GiB of memory free")
    one = to(case.inputs(batch=1, height=1201, width=1301), "cuda")
    batch = 2**31 // max(value.numel() for value in one.values()) + 2
    leaves = {
        name: (value.clone() if name in case.shared else value.expand(batch, *value.shape[1:])).requires_grad_(
            name in case.differentiable and name not in case.shared
        )
        for name, value in one.items()
    }
    assert max(leaf.numel() for leaf in leaves.values()) > 2**31
    outputs = case.call(compiled_backend, **leaves)
    wanted = [name for name in case.differentiable if name not in case.shared]
    grads = torch.autograd.grad(sum(o.sum() for o in outputs), [leaves[name] for name in wanted]) if wanted else ()
    want = case.call(compiled_backend, **one)[0]
    if outputs[0].dim() > 1:
        assert torch.equal(outputs[0][-1:], want)
    else:
        assert relative_error(outputs, [want]) < 1e-6
    for name, grad in zip(wanted, grads):
        assert relative_error([grad[-1]], [grad[0]]) < 1e-6, name


@per_op
def test_nothing_waits_for_the_device(case, backend):
    inputs = to(case.inputs(), "cuda")
    gradients(case, backend, inputs)
    leaves = {name: value.clone().requires_grad_(name in case.differentiable) for name, value in inputs.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = sum(o.sum() for o in case.call(backend, **leaves))
        if case.differentiable:
            total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_runs_on_its_own_accord():
    """An installation with kernels for this device that quietly runs something else is broken."""
    device = torch.device("cuda", 0)
    if (reason := _dispatch.why_not("min_reprojection", "cuda", device)) is not None:
        pytest.skip(f"gpu: cuda cannot run here: {reason}")
    for case in CASES:
        assert _dispatch.resolve(case.name, "", device) == "cuda"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, "tf32"], ids=str)
@pytest.mark.parametrize("name", ["cuda", "nvrtc", "triton"])
@pytest.mark.parametrize("size", [(1, 64, 32, 7, 7), (2, 33, 19, 9, 17), (1, 256, 130, 28, 28)], ids=str)
def test_nnconv5_on_tensor_cores(kind, name, size):
    """As near to the reference in double as the rounded factors allow, and not as near as without rounding."""
    device = torch.device("cuda", 0)
    if reason := _dispatch.why_not("nnconv5", name, device):
        pytest.skip(f"gpu: {name} cannot run here: {reason}")
    if torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("gpu: no tensor cores that take these numbers")
    case = next(case for case in CASES if case.name == "nnconv5")
    batch, channels, out_channels, height, width = size
    inputs = to(case.inputs(batch, height, width, channels=channels, out_channels=out_channels), device)
    stored = torch.float32 if kind == "tf32" else kind
    inputs = {n: v.to(stored) for n, v in inputs.items()}
    want = case.call("reference", **to(inputs, torch.float64))
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        got, again = (case.call(name, **inputs) for _ in range(2))
    finally:
        torch.set_float32_matmul_precision(precision)
    assert got[0].dtype == stored and torch.equal(got[0], again[0])
    step = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, "tf32": 2.0**-10}[kind]
    assert 1e-6 < relative_error(got, want) < step


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_draws_the_same_as_on_the_cpu(name):
    images = torch.randint(0, 256, (4, 3, 480, 1242), dtype=torch.uint8)
    batch = {"target": images, "depth": torch.rand(4, 1, 480, 1242) * 9 + 1}
    augment = DepthAugment(**AUGMENTATIONS[name])
    want = augment(batch, torch.Generator().manual_seed(1))
    got = augment(to(batch, "cuda"), torch.Generator().manual_seed(1))
    assert got["target"].is_cuda and got["depth"].is_cuda
    assert ((got["depth"].cpu() - want["depth"]).abs() > 1e-4).float().mean() < 1e-3
    assert ((got["target"].cpu() - want["target"]).abs() > 3 / 255).float().mean() < 1e-3
