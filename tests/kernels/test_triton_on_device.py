"""The Triton kernels on a GPU, against the reference in float64."""

import dataclasses

import pytest
import torch
from cases import gradients
from scenes import relative_error, scene
from triton_blocks import CASES

from mdepth_fast.ops import inverse_warp, min_reprojection

pytestmark = pytest.mark.gpu

per_op = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# Triton compiles anew where 16 divides a size: all of them or, as a rule, none, so that it does so twice only.
SIZES = [(2, 2), (3, 5), (9, 33), (5, 129), (2, 251), (65, 17), (96, 320)]


def on_device(inputs):
    return {name: value.cuda() for name, value in inputs.items()}


@per_op
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_equals_the_reference_in_double(case, size):
    inputs = on_device(case.inputs(height=size[0], width=size[1], dtype=torch.float64))
    want, want_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, "triton", inputs)
    assert relative_error(got, want) < 1e-12
    for name, a, b in zip(case.differentiable, got_grads, want_grads):
        assert relative_error([a], [b]) < 1e-9, name


@per_op
@pytest.mark.parametrize("seed", range(3))
def test_float32_error_is_no_larger_than_eagers(case, seed):
    inputs = on_device(case.inputs(height=47, width=70, seed=seed))
    exact, exact_grads = gradients(case, "reference", {name: value.double() for name, value in inputs.items()})
    eager, eager_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, "triton", inputs)
    assert relative_error(got, exact) <= relative_error(eager, exact) + 1.2e-7
    assert relative_error(got_grads, exact_grads) <= relative_error(eager_grads, exact_grads) + 1.2e-7


@per_op
def test_same_bits_from_run_to_run(case):
    inputs = on_device(case.inputs(batch=5, height=67, width=301))
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(case, "triton", inputs) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for outputs, grads in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip([*outputs, *grads], [*runs[0][0], *runs[0][1]]))


@per_op
def test_on_a_side_stream(case):
    """Inputs are written on the stream that the kernels must then run on, late enough for any other to miss them."""
    inputs = on_device(case.inputs(batch=2, height=64, width=96))
    want, want_grads = gradients(case, "triton", inputs)
    late = {name: torch.zeros_like(value) for name, value in inputs.items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, value in inputs.items():
            late[name].copy_(value)
        got, got_grads = gradients(case, "triton", late)
    stream.synchronize()
    assert relative_error(got, want) < 1e-6 and relative_error(got_grads, want_grads) < 1e-6


@per_op
def test_on_the_second_device(case):
    if torch.cuda.device_count() < 2:
        pytest.skip("gpu: one CUDA device only")
    inputs = {name: value.to("cuda:1") for name, value in case.inputs().items()}
    want, _ = gradients(case, "reference", inputs)
    with torch.cuda.device(0):
        got, _ = gradients(case, "triton", inputs)
    assert relative_error(got, want) < 1e-6


@per_op
def test_in_a_cuda_graph(case):
    inputs = on_device(case.inputs(batch=2, height=33, width=65))
    want = [o.detach().clone() for o in case.call("triton", **inputs)]  # compiled by now
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        got = case.call("triton", **inputs)
    for output in got:
        output.fill_(torch.nan if output.is_floating_point() else -1)  # labels are not negative
    graph.replay()
    torch.cuda.synchronize()
    assert relative_error(got, want) < 1e-6


@per_op
def test_compiles_to_one_graph(case):
    inputs = on_device(case.inputs())
    want, _ = gradients(case, "triton", inputs)
    torch._dynamo.reset()
    compiled = torch.compile(lambda **tensors: case.call("triton", **tensors), fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(**inputs), want) < 1e-6


def test_compiles_with_inductor():
    """One op for all: they differ to it in name only, and it takes seconds for each."""
    case = next(case for case in CASES if case.name == "min_reprojection")
    inputs = on_device(case.inputs())
    want, want_grads = gradients(case, "triton", inputs)
    torch._dynamo.reset()
    compiled = torch.compile(lambda **tensors: case.call("triton", **tensors), fullgraph=True)
    got, got_grads = gradients(dataclasses.replace(case, call=lambda _, **tensors: compiled(**tensors)), "", inputs)
    assert relative_error(got, want) < 1e-6 and relative_error(got_grads, want_grads) < 1e-6


def test_more_than_two_to_the_31_elements():
    """45 planes of 7000 x 7000 pixels: the last begins beyond what an int32 counts."""
    torch.cuda.empty_cache()  # what torch keeps of earlier tests does not count as free
    free, _ = torch.cuda.mem_get_info()
    if free < 30e9:
        pytest.skip("gpu: needs 30 GB of free memory")
    source = torch.rand(1, 45, 7000, 7000, device="cuda")
    K = torch.tensor([[[5000.0, 0, 3499.5], [0, 5000.0, 3499.5], [0, 0, 1]]], device="cuda")
    depth = torch.full((1, 1, 7000, 7000), 2.0, device="cuda")
    warped, valid = inverse_warp(source, depth, K, torch.eye(4, device="cuda")[None], backend="triton")
    assert valid.all()
    for channel in (0, 44):  # by value, a plane at a time
        assert (warped[:, channel] - source[:, channel]).abs().max() < 1e-5


def test_ties_go_to_identity_then_to_the_lower_source():
    target, sources, depths, K, _, _ = (
        [t.cuda() for t in value] if isinstance(value, list) else value.cuda() for value in scene(2, 66, 130, 2)
    )
    still = torch.eye(4, device="cuda").repeat(2, 2, 1, 1)
    sources = sources[:, :1].repeat(1, 2, 1, 1, 1)
    assert (min_reprojection(target, sources, depths[0], K, still, backend="triton").selection == -1).all()
    free = min_reprojection(target, sources, depths[0], K, still, auto_mask=False, backend="triton")
    assert (free.selection == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["target", "depth", "K", "T"])
def test_non_finite_input_gives_a_non_finite_loss(value, where):
    target, sources, depths, K, T, _ = (
        [t.cuda() for t in value] if isinstance(value, list) else value.cuda() for value in scene(1, 9, 33, 2)
    )
    tensors = dict(target=target, sources=sources, depth=depths[0], K=K, T=T)
    broken = tensors[where].clone()
    broken[(0,) * (broken.dim() - 2) + ((1, 2) if where in ("target", "depth") else (0, 0))] = value
    tensors[where] = broken
    assert not torch.isfinite(min_reprojection(**tensors, backend="triton").loss)
