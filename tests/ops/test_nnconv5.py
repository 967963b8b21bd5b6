import numpy as np
import oracles
import pytest
import torch
from cases import CASES
from scenes import relative_error

from mdepth_fast.ops import nnconv5

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
NAMES = ("x", "dw_weight", "dw_scale", "dw_shift", "pw_weight", "pw_scale", "pw_shift", "skip")


def tensors(batch, channels, out_channels, height, width, dtype=torch.float64):
    shapes = [(batch, channels, height, width), (channels, 1, 5, 5), (channels,), (channels,)]
    shapes += [(out_channels, channels, 1, 1), (out_channels,), (out_channels,)]
    shapes.append((batch, out_channels, 2 * height, 2 * width))
    return {name: torch.randn(shape, dtype=dtype) for name, shape in zip(NAMES, shapes)}


@BACKENDS
@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (2, 2, 3, 4, 5), (1, 3, 9, 6, 17), (1, 1, 2, 9, 50)])
def test_against_loops(backend, size):
    arguments = tensors(*size)
    got = nnconv5(**arguments, backend=backend)
    arrays = {name: value.numpy() for name, value in arguments.items()}
    arrays["dw_weight"], arrays["pw_weight"] = arrays["dw_weight"][:, 0], arrays["pw_weight"][..., 0, 0]
    for b in range(size[0]):
        want = oracles.nnconv5(**{**arrays, "x": arrays["x"][b], "skip": arrays["skip"][b]})
        np.testing.assert_allclose(got[b].numpy(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "size", [(1, 300, 5, 11, 40), (2, 37, 21, 2, 7), (1, 17, 8, 33, 49), (3, 64, 33, 7, 7), (1, 3, 16, 1, 130)]
)
@pytest.mark.parametrize("threads", [1, 4])
def test_strips_blocks_and_sharing(size, threads):
    """Several strips of rows, blocks of channels and panels of pixels with something left over; strips of one thread's
    own, and strips that all threads share."""
    arguments, before = tensors(*size), torch.get_num_threads()
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}
    want = nnconv5(**leaves, backend="reference")
    weight = torch.rand_like(want)
    want_grads = torch.autograd.grad((want * weight).sum(), list(leaves.values()))
    torch.set_num_threads(threads)
    try:
        got = nnconv5(**leaves, backend="cpu")
        got_grads = torch.autograd.grad((got * weight).sum(), list(leaves.values()))
    finally:
        torch.set_num_threads(before)
    assert relative_error([got], [want]) < 1e-13
    for name, a, b in zip(NAMES, got_grads, want_grads):
        assert relative_error([a], [b]) < 1e-11, name


@pytest.mark.parametrize(("channels", "out_channels", "height"), [(512, 256, 7), (88, 56, 28), (40, 24, 56)])
@pytest.mark.parametrize("with_skip", [True, False])
def test_the_layout_of_the_input_is_kept_and_changes_no_bit(channels, out_channels, height, with_skip):
    arguments = tensors(2, channels, out_channels, height, 28, torch.float32)
    if not with_skip:
        del arguments["skip"]
    planes = nnconv5(**arguments)
    x = arguments["x"].contiguous(memory_format=torch.channels_last)
    pixels = nnconv5(**{**arguments, "x": x})
    assert planes.is_contiguous() and pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(planes, pixels)


@BACKENDS
def test_without_a_skip_and_frozen_tensors(backend):
    arguments = tensors(2, 3, 5, 4, 6)
    skip = arguments.pop("skip")
    bare = nnconv5(**arguments, backend=backend)
    torch.testing.assert_close(bare + skip, nnconv5(**arguments, skip=skip, backend=backend), rtol=0, atol=0)
    full = {name: value.clone().requires_grad_() for name, value in arguments.items()}
    nnconv5(**full, backend=backend).sum().backward()
    for name in arguments:
        alone = arguments[name].clone().requires_grad_()
        nnconv5(**{**arguments, name: alone}, backend=backend).sum().backward()
        torch.testing.assert_close(alone.grad, full[name].grad, rtol=1e-12, atol=1e-12, msg=name)


@BACKENDS
def test_nan_stays_where_its_window_is(backend):
    arguments = tensors(1, 3, 2, 12, 40)
    arguments["x"][0, 1, 6, 20] = torch.nan
    bad = nnconv5(**arguments, backend=backend).isnan()
    window = torch.zeros_like(bad)
    window[..., 8:18, 36:46] = True
    assert torch.equal(bad, window)


def test_a_layer_keeps_the_dtype_of_its_input():
    arguments = tensors(1, 3, 2, 4, 5, torch.float32)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for backend in ("cpu", "reference"):
            out = nnconv5(**{**arguments, "x": arguments["x"].to(dtype)}, backend=backend)
            assert out.dtype == dtype


def test_errors():
    good = tensors(2, 4, 3, 5, 6)
    for name, wrong, error, message in [
        ("x", good["x"][0], ValueError, r"^x: expected shape \(B, C, H, W\)"),
        ("x", good["x"][:, :, :0], ValueError, r"^x: expected C, H and W of at least 1, got shape \(2, 4, 0, 6\)"),
        ("dw_weight", good["dw_weight"][..., :3], ValueError, r"^dw_weight: expected .*\(4, 1, 5, 5\), got \(4, 1, 5"),
        ("dw_scale", good["dw_scale"][:3], ValueError, r"^dw_scale: expected shape \(C,\) = \(4\), got \(3,\)"),
        ("dw_shift", None, TypeError, r"^dw_shift: expected a tensor \(C,\), got NoneType"),
        ("pw_weight", good["pw_weight"][:, :3], ValueError, r"^pw_weight: expected .*\(any, 4, 1, 1\), got \(3, 3"),
        ("pw_scale", good["pw_scale"].int(), TypeError, r"^pw_scale: expected a floating-point tensor"),
        ("pw_shift", good["pw_shift"][:2], ValueError, r"^pw_shift: expected shape \(O,\) = \(3\), got \(2,\)"),
        ("skip", good["skip"][..., :6], ValueError, r"^skip: expected .*\(2, 3, 10, 12\), got \(2, 3, 10, 6\)"),
        ("skip", good["skip"].to("meta"), ValueError, r"^skip: expected device cpu, where x is, got meta"),
    ]:
        with pytest.raises(error, match=message):
            nnconv5(**{**good, name: wrong})


def test_gradients_with_weights_in_channels_last():
    """As `network.to(memory_format=torch.channels_last)` leaves them."""
    inputs = next(case for case in CASES if case.name == "nnconv5").inputs(dtype=torch.float64)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = {
            name: (value.contiguous(memory_format=layout) if value.dim() == 4 else value).detach().requires_grad_()
            for name, value in inputs.items()
        }
        results.append(torch.autograd.grad(nnconv5(**leaves, backend="cpu").sum(), list(leaves.values())))
    for got, want in zip(*results):
        assert relative_error([got], [want]) < 1e-12
