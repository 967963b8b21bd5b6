"""The Triton kernels of nnconv5, interpreted: blocks of channels and runs of pixels with something left over."""

import pytest
import torch
import triton_blocks
from cases import gradients
from scenes import relative_error

from mdepth_fast import _dispatch
from mdepth_fast.kernels import nnconv5 as kernels
from mdepth_fast.kernels._launch import Block
from mdepth_fast.ops import nnconv5

CASE = next(case for case in triton_blocks.CASES if case.name == "nnconv5")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "size", [(1, 1, 1, 1), (37, 70, 3, 5), (16, 64, 9, 4), (33, 3, 1, 17), (70, 33, 5, 3), (96, 130, 2, 3)], ids=str
)
def test_numbers_of_channels(size, dtype):
    channels, out_channels, height, width = size
    sizes = dict(channels=channels, out_channels=out_channels, height=height, width=width)
    inputs = CASE.inputs(**sizes, dtype=dtype)
    want, want_grads = gradients(CASE, "reference", {name: value.double() for name, value in inputs.items()})
    got, got_grads = gradients(CASE, "triton", inputs)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert relative_error(got, want) < tolerance
    for name, a, b in zip(CASE.differentiable, got_grads, want_grads):
        assert relative_error([a], [b]) < tolerance, name


def test_several_tiles_blocks_of_channels_and_runs(monkeypatch):
    """Of each more than one, with something left over; runs of pixels that neither rows nor images end with."""
    monkeypatch.setattr(kernels, "OUT_CHANNELS", 16)
    monkeypatch.setattr(kernels, "FORWARD", Block(4, 8, 4))
    monkeypatch.setattr(kernels, "POINTWISE_WEIGHTS", Block(2, 16, 4))
    monkeypatch.setattr(kernels, "DEPTHWISE_WEIGHTS", Block(4, 8, 4))
    inputs = CASE.inputs(batch=2, channels=17, out_channels=18, height=5, width=9, dtype=torch.float64)
    want, want_grads = gradients(CASE, "reference", inputs)
    got, got_grads = gradients(CASE, "triton", inputs)
    assert relative_error(got, want) < 1e-12
    for name, a, b in zip(CASE.differentiable, got_grads, want_grads):
        assert relative_error([a], [b]) < 1e-12, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("with_skip", [True, False])
def test_parts_of_the_input_channels(with_skip, dtype, monkeypatch):
    """Several, with a shorter last one; the sums of several programs."""
    ran = []
    launch = kernels.launch
    monkeypatch.setattr(
        kernels, "launch", lambda kernel, *a, **k: (ran.append(k.get("parts")), launch(kernel, *a, **k))
    )
    monkeypatch.setattr(kernels, "SUM", Block(2, 16, 4))
    inputs = CASE.inputs(batch=2, channels=102, out_channels=5, height=3, width=9, dtype=dtype)
    inputs["skip"] = inputs["skip"] if with_skip else None
    want, got = (nnconv5(**inputs, backend=name) for name in ("reference", "triton"))
    assert ran == [2, 2] and relative_error([got], [want]) < (1e-13 if dtype == torch.float64 else 1e-6)
    assert torch.equal(got, nnconv5(**inputs, backend="triton"))


def test_without_a_skip_and_frozen_tensors():
    inputs = CASE.inputs(batch=1, height=3, width=5, channels=2, out_channels=3, dtype=torch.float64)
    skip = inputs.pop("skip")
    bare = nnconv5(**inputs, backend="triton")
    assert relative_error([bare + skip], [nnconv5(**inputs, skip=skip, backend="triton")]) < 1e-15
    full = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    nnconv5(**full, backend="reference").sum().backward()
    for name in ("x", "dw_weight", "pw_weight"):
        alone = inputs[name].clone().requires_grad_()
        nnconv5(**{**inputs, name: alone}, backend="triton").sum().backward()
        assert relative_error([alone.grad], [full[name].grad]) < 1e-12, name


def test_products_that_nobody_needs_are_not_made():
    inputs = CASE.inputs(batch=1, height=2, width=3, channels=2, out_channels=3)
    _dispatch.resolve("nnconv5", "triton", torch.device("cpu"))
    run = _dispatch.select("nnconv5_backward", "triton")
    grad = inputs.pop("skip")
    needs = {f"need_{name}": name not in ("x", "dw_weight", "pw_weight") for name in inputs}
    grads = run(grad=grad, **inputs, **needs)
    assert [0 if grad is None else grad.numel() for grad in grads] == [0, 0, 2, 2, 0, 3, 3]


def test_nan_stays_where_its_window_is():
    inputs = CASE.inputs(batch=1, height=12, width=40, channels=3, out_channels=2)
    inputs["x"][0, 1, 6, 20] = torch.nan
    bad = nnconv5(**inputs, backend="triton").isnan()
    window = torch.zeros_like(bad)
    window[..., 8:18, 36:46] = True
    assert torch.equal(bad, window)


def test_a_layer_keeps_the_dtype_of_its_input():
    inputs = CASE.inputs(batch=1, height=2, width=3)
    for dtype in (torch.float16, torch.bfloat16):
        half = {**inputs, "x": inputs["x"].to(dtype)}
        got, want = (nnconv5(**half, backend=name) for name in ("triton", "reference"))
        assert got.dtype == dtype
        torch.testing.assert_close(got, want)


def test_products_of_halves():
    """What a GPU with tensor cores is given. No bfloat16: the interpreter multiplies its bits as integers."""
    inputs = CASE.inputs(batch=1, height=5, width=9, channels=19, out_channels=3)
    half = {name: v.half() if name in ("x", "pw_weight", "skip") else v for name, v in inputs.items()}
    got = torch.ops.mdepth.nnconv5(*half.values(), backend="triton")
    want = nnconv5(**{name: v.double() for name, v in half.items()}, backend="reference")
    assert got.dtype == torch.float16 and 0 < relative_error([got], [want]) < 2**-10
