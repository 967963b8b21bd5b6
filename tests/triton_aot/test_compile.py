"""Every Triton kernel as its launcher calls it, compiled for real architectures: valid, without spills, within budget.

The launches are recorded from the implementations themselves, so a signature cannot drift from the call.
"""

import re
import subprocess

import pytest
import torch
import triton
import triton_blocks
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mdepth_fast.kernels import (
    _launch,
    berhu_loss,
    depth_metrics,
    disparity_to_depth,
    edge_aware_smoothness,
    inverse_warp,
    min_reprojection,
    nnconv5,
    ordinal_decode,
    ordinal_loss,
    photometric_loss,
    silog_loss,
)

CAPABILITIES = (80, 90, 120)
REGISTERS_OF_AN_SM = 65536
SHARED_BYTES = 48 * 1024
# Bytes that the ptxas of older versions spills on purpose, to reach a step of occupancy.
BY_CHOICE = 16 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9) else 0


def _photometric(dtype, everything):
    for width in (32, 33):
        image, grad = torch.zeros(2, 3, 16, width, dtype=dtype), torch.zeros(2, 1, 16, width, dtype=dtype)
        photometric_loss.forward(image, image, 0.85)
        for needs in [(True, False), (True, True), (False, True)][: 3 if everything else 2]:
            photometric_loss.backward(grad, image, image, 0.85, *needs)


def _warp(dtype, everything):
    source, depth = torch.zeros(2, 3, 16, 32, dtype=dtype), torch.zeros(2, 1, 16, 32, dtype=dtype)
    projection = torch.zeros(2, 3, 4, dtype=torch.float64)
    all_needs = [(True, True, True), (False, True, True), (True, False, False), (False, True, False)]
    for padding in ("border", "zeros")[: 2 if everything else 1]:
        inverse_warp.forward(source, depth, projection, padding)
        for needs in all_needs[: 4 if everything else 2]:
            inverse_warp.backward(source, source, depth, projection, padding, *needs)
        torch.use_deterministic_algorithms(True)
        try:
            inverse_warp.backward(source, source, depth, projection, padding, True, False, False)
        finally:
            torch.use_deterministic_algorithms(False)


def _smoothness(dtype, everything):
    disparity, image = torch.zeros(2, 1, 16, 32, dtype=dtype), torch.zeros(2, 3, 16, 32, dtype=dtype)
    for need_grad in (True, False)[: 2 if everything else 1]:
        edge_aware_smoothness.forward(disparity, image, need_grad)


def _disparity(dtype, everything):
    disparity, depth = torch.zeros(2, 1, 16, 32, dtype=dtype), torch.zeros(2, 1, 48, 64, dtype=dtype)
    for size in ((48, 64), (16, 32))[: 2 if everything else 1]:
        disparity_to_depth.forward(disparity, *size, 0.1, 100.0)
    disparity_to_depth.backward(depth, depth, 16, 32, 0.1, 100.0)


def _reprojection(dtype, everything):
    options = [(2, True, False, "border", True, 32), (2, True, False, "border", True, 33)]
    if everything:  # sources, auto-mask, noise, padding, gradient, width
        options += [
            (2, False, False, "zeros", True, 32),
            (2, True, True, "border", False, 33),
            (2, False, False, "zeros", False, 33),
            (1, True, False, "border", True, 32),
            (3, True, True, "border", True, 32),
        ]
    for count, auto_mask, noisy, padding, need_grad, width in options:
        target, depth = torch.zeros(2, 3, 16, width, dtype=dtype), torch.zeros(2, 1, 16, width, dtype=dtype)
        sources = torch.zeros(2, count, 3, 16, width, dtype=dtype)
        noise = sources[:, :, 0].contiguous() if noisy else None
        projection = torch.zeros(2, count, 3, 4, dtype=torch.float64)
        min_reprojection.forward(target, sources, [depth], projection, noise, 0.85, auto_mask, padding, need_grad)


def _ordinal(dtype, everything):
    logits, depth = torch.zeros(2, 160, 16, 32, dtype=dtype), torch.zeros(2, 1, 16, 32, dtype=dtype)
    thresholds, one = torch.zeros(81, dtype=dtype), torch.ones((), dtype=dtype)
    ordinal_decode.forward(logits, thresholds)
    for valid in (None, depth > 0)[: 2 if everything else 1]:
        ordinal_loss.forward(logits, depth, thresholds, valid)
        ordinal_loss.backward(one, one.long(), logits, depth, thresholds, valid)


def _depth_metrics(dtype, everything):
    maps, factor = torch.zeros(2, 2, 1, 16, 32, dtype=dtype), torch.zeros(2, dtype=torch.float64)
    depth_metrics.forward(*maps, factor, None, [1, 16, 0, 30], [1e-3, 80.0, 1e-3, 80.0], False)
    if everything:
        depth_metrics.forward(*maps, factor, factor, [0, 16, 0, 32], [0.0, torch.inf, 1e-3, 80.0], True)
        depth_metrics.forward(*maps, None, None, [0, 16, 0, 32], [0.0, 80.0, 1e-3, torch.inf], False)


def _depth_losses(dtype, everything):
    depth, one = torch.ones(8, 1, 16, 32, dtype=dtype), torch.ones((), dtype=dtype)
    coefficients, state = torch.zeros(8, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for valid, form in ((None, "eigen"), (depth > 0, "sqrt_unbiased"))[: 2 if everything else 1]:
        measured, log_prediction = valid is None, valid is not None
        berhu_loss.forward(depth, depth, valid, measured, 0.2)
        berhu_loss.backward(one, state, depth, depth, valid, measured, 0.2)
        silog_loss.forward(depth, depth, valid, measured, form, 0.5, 1.0, log_prediction)
        silog_loss.backward(one, coefficients, depth, depth, valid, measured, log_prediction)


def _nnconv5(dtype, everything):
    x, grad = torch.zeros(2, 64, 16, 32, dtype=dtype), torch.zeros(2, 48, 32, 64, dtype=dtype)
    channels, out_channels = torch.zeros(64, dtype=dtype), torch.zeros(48, dtype=dtype)
    depthwise, pointwise = torch.zeros(64, 1, 5, 5, dtype=dtype), torch.zeros(48, 64, 1, 1, dtype=dtype)
    weights = depthwise, channels, channels, pointwise, out_channels, out_channels
    many = torch.zeros(80, 64, 16, 32, dtype=dtype)  # of which no part is made
    skips = torch.zeros(80, 48, 32, 64, dtype=dtype)
    for images, skip in ((x, grad), (many, skips), (x, None), (many, None))[: 4 if everything else 2]:
        nnconv5.forward(images, *weights, skip)
    few = torch.zeros(32, dtype=dtype)  # output channels
    nnconv5.forward(many, *weights[:3], pointwise[:32], few, few, None)
    if everything:  # on tensor cores
        for half in (torch.float16, torch.bfloat16):
            nnconv5.forward(x.to(half), *weights[:3], pointwise.to(half), *weights[4:], grad.to(half))
            nnconv5.forward(many.to(half), *weights[:3], pointwise.to(half), *weights[4:], skips.to(half))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nnconv5, "_product", lambda backend, x: "tf32")
            nnconv5.forward(x, *weights, grad)
            nnconv5.forward(many, *weights, skips)
    nnconv5.backward(grad, x, *weights, True, True, True)


def _dtype(arguments):
    """What the first tensor is made of."""
    return str(next(value.dtype for value in arguments.values() if isinstance(value, torch.Tensor)))[6:]


def _launches(dtype, everything):
    """Label -> (kernel, warps, arguments) of every launch that differs from the others."""
    found = {}

    def record(kernel, programs, warps, **arguments):
        assert programs > 0
        for value in arguments.values():
            if isinstance(value, torch.Tensor):
                value.zero_()  # what PyTorch does with it next must not meet rubbish
        constants = {name: value for name, value in arguments.items() if name.isupper()}
        notes = [f"{name}={v if isinstance(v, str) else format(v, '.4g')}" for name, v in constants.items()]
        notes += [f"no {name}" for name, value in arguments.items() if value is None]
        label = f"{kernel.__module__.split('.')[-1]}.{kernel.__name__} {_dtype(arguments)} {' '.join(notes)}"
        found[label] = (kernel, warps, arguments)

    with pytest.MonkeyPatch.context() as patch:
        for module in triton_blocks.MODULES:
            patch.setattr(module, "launch", record)
        for run in (
            _photometric, _warp, _smoothness, _disparity, _reprojection, _ordinal, _depth_losses, _depth_metrics,
            _nnconv5,
        ):  # fmt: skip
            run(dtype, everything)
    return found


MAIN, DOUBLE = _launches(torch.float32, False), _launches(torch.float64, False)
OTHERS = {label: launch for label, launch in _launches(torch.float32, True).items() if label not in MAIN}


def _compile(kernel, warps, arguments, capability, aligned, tmp_path, **options):
    source = ASTSource(kernel, **_launch.signature(kernel, arguments, aligned))
    options = {"num_warps": warps, "enable_fp_fusion": False, **options}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    report = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    registers, stack, local = (
        int(re.search(rf"\b{name}:(\d+)", report).group(1)) for name in ("REG", "STACK", "LOCAL")
    )
    return compiled, (registers, stack, local, compiled.metadata.shared)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))


def _check(launch, label, capability, aligned, table, tmp_path):
    kernel, warps, arguments = launch
    compiled, numbers = _compile(kernel, warps, arguments, capability, aligned, tmp_path)
    table.append((label + ("" if aligned else " (unaligned)"), capability, *numbers))
    registers, stack, local, shared = numbers
    if 0 < stack <= BY_CHOICE:
        # Asked for no occupancy, it must not.
        _, (_, stack, _, _) = _compile(kernel, warps, arguments, capability, aligned, tmp_path, maxnreg=255)
    assert (stack, local) == (0, 0), f"{label} spills on sm_{capability}: {numbers}"
    assert shared <= SHARED_BYTES
    assert registers * warps * 32 <= REGISTERS_OF_AN_SM
    return compiled


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("label", MAIN)
def test_main_configurations(label, capability, table, tmp_path):
    compiled = _check(MAIN[label], label, capability, True, table, tmp_path)
    # No program has a whole multiprocessor to itself.
    assert table[-1][2] * MAIN[label][1] * 32 * 2 <= REGISTERS_OF_AN_SM
    scatters = MAIN[label][2].get("grad_source") is not None  # all that may use atomics
    assert bool(re.search(r"\b(red|atom)\.", compiled.asm["ptx"])) == scatters


@pytest.mark.parametrize("label", MAIN)
def test_sizes_that_16_does_not_divide(label, table, tmp_path):
    _check(MAIN[label], label, 90, False, table, tmp_path)


@pytest.mark.parametrize("label", OTHERS)
def test_other_configurations(label, table, tmp_path):
    _check(OTHERS[label], label, 90, True, table, tmp_path)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("label", DOUBLE)
def test_double_precision(label, capability, table, tmp_path):
    _check(DOUBLE[label], label, capability, True, table, tmp_path)


def test_a_spill_is_seen(tmp_path):
    """The budget's instrument: 16 pixels a thread are more than the registers hold."""
    launch = next(launch for label, launch in MAIN.items() if "min_reprojection._compare " in label)
    kernel, _, arguments = launch
    _, (registers, stack, _, _) = _compile(kernel, 1, {**arguments, "ROWS": 16, "COLUMNS": 32}, 90, True, tmp_path)
    print(registers, stack)
    assert stack > 0
